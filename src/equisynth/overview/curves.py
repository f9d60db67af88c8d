"""Plots of a dataset: every case by model, and curves of the trainings."""

from __future__ import annotations

from equisynth.overview import plots
from equisynth.overview.content import SPLITS, Dataset
from equisynth.overview.words import ARROWS, card, case_count, e, full_title, legend, plural, unit_text

CURVE_ORDER = ("selection", "similarity")


def card_of_cases(dataset: Dataset) -> str:
    parts = []
    for split in SPLITS:
        plotted = []
        for measure in dataset.measures(split):
            values = {found.name: found.cases.get(split, {}).get(measure.name, {}) for found in dataset.evaluated}
            drawn = plots.cases(full_title(measure), dataset.letters, values)
            if drawn:
                plotted.append(
                    _plot(f"{e(full_title(measure))} {ARROWS[measure.direction]}", unit_text(measure, dataset), drawn)
                )
        if plotted:
            parts.append(f'<div data-split="{split}"><div class="plots">{_first(plotted)}</div></div>')
    if not parts:
        return ""
    thinned = any(case_count(dataset, split) > plots.MAX_CASES for split in SPLITS)
    some = f" At most {plots.MAX_CASES} cases are drawn; means are over all." if thinned else ""
    words = f"A dot is a case, a line joins it between models, a bar is the mean over cases.{some}"
    note = f'<p class="muted">{words}</p>'
    return card("Case by case", note + legend(dataset, dataset.evaluated) + "".join(parts))


def card_of_curves(dataset: Dataset) -> str:
    trained = [found for found in dataset.experiments if found.history]
    names = {key.partition("/")[2] for found in trained for record in found.history for key in record if "/" in key}
    if not names:
        return ""
    ordered = sorted(names, key=lambda name: (CURVE_ORDER.index(name) if name in CURVE_ORDER else 9, name))
    colours = {found.name: position for position, found in enumerate(dataset.experiments)}
    plotted = []
    for name in ordered:
        lines = []
        for found in trained:
            for part in ("validation", "train"):
                key = f"{part}/{name}"
                points = [
                    (float(r["epoch"]), float(r[key])) for r in found.history if isinstance(r.get(key), int | float)
                ]
                if points:
                    mark = found.best_epoch if key == "validation/selection" else None
                    title = f"{dataset.letters[found.name]} {part}"
                    lines.append(plots.Line(title, colours[found.name], points, part == "train", mark))
        plotted.append(_plot(e(name.replace("_", " ")), "", plots.curves(name.replace("_", " "), lines)))
    note = (
        '<p class="muted">By epoch; solid: validation, dashed: training. A ring marks the best epoch, by '
        "<i>selection</i>. "
        "Losses of different methods are not comparable.</p>"
    )
    return card("Curves", note + legend(dataset, trained) + f'<div class="plots">{_first(plotted)}</div>')


def _first(plotted: list[str], count: int = 6) -> str:
    """The first plots; more of them on demand."""
    rest = plotted[count:]
    more = ""
    if rest:
        summary = f"<summary>{plural(len(rest), 'more plot')}</summary>"
        more = f'</div><details class="more">{summary}<div class="plots">{"".join(rest)}</div></details><div>'
    return "".join(plotted[:count]) + more


def _plot(title: str, unit: str, drawn: str) -> str:
    return f'<figure class="plot-box"><figcaption>{title} <small>{unit}</small></figcaption>{drawn}</figure>'
