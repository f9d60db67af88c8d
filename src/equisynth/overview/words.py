"""Words and small pieces of HTML that all parts of the page share; everything that is not ours is escaped."""

from __future__ import annotations

from functools import cache
from html import escape

from equisynth.compare import FAMILIES, Measure
from equisynth.overview import plots
from equisynth.overview.content import Dataset, Experiment

ARROWS = {"lower": "↓", "higher": "↑", "zero": "→0", "": ""}
DIRECTIONS = {"lower": "lower is better", "higher": "higher is better", "zero": "nearest to zero is best", "": ""}
SPLIT_NAMES = {"test": "Test", "validate": "Validation"}


def card(title: str, body: str) -> str:
    return f'<div class="card block"><h3>{title}</h3>{body}</div>'


def badge(dataset: Dataset, experiment: Experiment) -> str:
    position = [found.name for found in dataset.experiments].index(experiment.name)
    title, text = e(experiment.name), dataset.letters[experiment.name]
    return f'<span class="badge {plots.series(position)}" title="{title}">{text}</span>'


def case_count(dataset: Dataset, split: str) -> int:
    """Number of cases of a split that some model was measured on."""
    return len({case for found in dataset.evaluated for table in found.cases.get(split, {}).values() for case in table})


def full_title(measure: Measure) -> str:
    """With what it is measured against, where that is not the aligned label."""
    return (
        f"{measure.title}, {FAMILIES[measure.family].lower()}"
        if measure.family not in ("", "fid/")
        else (f"FID {measure.title}" if measure.family else measure.title)
    )


def unit_text(measure: Measure, dataset: Dataset, before: str = "", after: str = "") -> str:
    unit = measure.unit(dataset.unit)
    return f"{before}{e(unit)}{after}" if unit else ""


def identifier(dataset: str) -> str:
    return "dataset-" + "".join(letter if letter.isalnum() else f"-{ord(letter)}-" for letter in dataset)


def plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def breakable(name: str) -> str:
    """May be broken behind its separators."""
    return e(name).replace("_", "_<wbr>").replace("-", "-<wbr>")


@cache
def e(text: str) -> str:
    return escape(str(text), quote=True)


def legend(dataset: Dataset, experiments: list[Experiment]) -> str:
    items = "".join(f"<li>{badge(dataset, found)}{breakable(found.name)}</li>" for found in experiments)
    return f'<ul class="legend">{items}</ul>'
