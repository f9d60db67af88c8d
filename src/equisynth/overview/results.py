"""The table of results: the experiments of a dataset, best values, differences with intervals, references, notes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from equisynth.compare import FAMILIES, Measure, number, signed
from equisynth.evaluation.intervals import FEWEST_CASES
from equisynth.overview.content import SPLITS, Dataset, Experiment, difference
from equisynth.overview.words import (
    ARROWS,
    DIRECTIONS,
    SPLIT_NAMES,
    badge,
    breakable,
    card,
    case_count,
    e,
    full_title,
    plural,
    unit_text,
)

MAX_PAIRED = 60_000
"""Pairs of models, times cases: above this the page compares with the best models alone (bootstraps of minutes)."""
REFERENCE_TITLE = "References that know no anatomy, fitted on the training pairs"
REFERENCES = {"lookup_table": "lookup table", "linear_fit": "linear fit", "mean_label": "mean label"}


def card_of_results(dataset: Dataset) -> str:
    splits = [split for split in SPLITS if dataset.measures(split)]
    if not splits:
        return ""
    tables = "".join(f'<div data-split="{split}">{_table(dataset, split)}</div>' for split in splits)
    return card("Results", _verdict(dataset) + _choose_baseline(dataset) + tables)


def differences(dataset: Dataset) -> dict[str, Any]:
    """Split -> measure -> baseline -> experiment -> difference in words."""
    if not _has_baselines(dataset):
        return {}
    return {
        split: {
            measure.name: {
                base.name: {
                    found.name: delta
                    for found in dataset.evaluated
                    if found is not base and (delta := _delta(measure, split, found, base)) is not None
                }
                for base in dataset.evaluated
            }
            for measure in dataset.measures(split)
        }
        for split in SPLITS
    }


def _verdict(dataset: Dataset) -> str:
    """The best model of the test cases beside the one after it, in a sentence."""
    measure = dataset.primary()
    best = dataset.best(measure, "test") if measure else None
    if measure is None or best is None:
        return ""
    others = [
        found for found in dataset.evaluated if found is not best and measure.name in found.pooled.get("test", {})
    ]
    if not others:
        return ""
    second = min(others, key=lambda found: measure.badness(found.pooled["test"][measure.name]) or 0.0)
    text = f"{badge(dataset, best)} has the lowest test {e(full_title(measure))}; {badge(dataset, second)} comes next"
    found = difference(measure, "test", second, best)
    if found is None:
        return f'<p class="verdict">{text}.</p>'
    by = f"{signed(found.mean)} per case"
    if found.interval is None:
        why = f"too few cases ({found.cases}) to say whether that means anything"
    else:
        ends = " to ".join(map(signed, found.interval))
        why = f"95 % interval {ends}: " + ("a clear difference" if found.is_clear else "no clear difference")
    return f'<p class="verdict">{text}, by {by} ({why}).</p>'


def _has_baselines(dataset: Dataset) -> bool:
    """Whether differences between all pairs of models are worth their time."""
    models, cases = len(dataset.evaluated), max(case_count(dataset, split) for split in SPLITS)
    return models > 1 and models**2 * cases <= MAX_PAIRED


def _choose_baseline(dataset: Dataset) -> str:
    if not _has_baselines(dataset):
        return ""
    options = "".join(
        f'<option value="{e(found.name)}">{dataset.letters[found.name]} · {e(found.name)}</option>'
        for found in dataset.evaluated
    )
    return (
        '<p class="controls"><label>Differences to <select data-baseline><option value="">the best of each column'
        f"</option>{options}</select></label></p>"
    )


def _table(dataset: Dataset, split: str) -> str:
    measures = dataset.measures(split)
    leading = dataset.primary(split)
    families = [family for family in FAMILIES if any(measure.family == family for measure in measures)]
    groups = "".join(
        f'<th scope="colgroup" colspan="{sum(m.family == family for m in measures)}">{FAMILIES[family]}</th>'
        for family in families
    )
    heads = "".join(_head(measure, dataset, leading) for measure in measures)
    rows = "".join(_row(dataset, found, measures, split) for found in dataset.evaluated if split in found.pooled)
    label = f"{SPLIT_NAMES[split]} cases of {dataset.name}"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{e(label)}">'
        f'<table class="results" data-table="{split}">'
        f'<caption class="hidden">{e(label)}: {len(measures)} measures by experiment</caption>'
        f'<thead><tr class="families"><td></td>{groups}</tr><tr><th scope="col" aria-sort="none">'
        f'<button type="button">Experiment</button></th>{heads}</tr></thead><tbody>{rows}</tbody>'
        f"{_reference_rows(dataset, measures, split)}</table></div>{_notes(dataset, split)}"
    )


def _head(measure: Measure, dataset: Dataset, leading: Measure | None) -> str:
    state = {"lower": "ascending", "higher": "descending"}.get(measure.direction, "none")
    arrow, words = ARROWS[measure.direction], DIRECTIONS[measure.direction]
    hint = f' title="{e(measure.name)}{": " + words if words else ""}"'
    spoken = f'<span class="hidden"> ({words})</span>' if words else ""
    return (
        f'<th scope="col" data-measure="{e(measure.name)}" data-direction="{measure.direction}" '
        f'aria-sort="{state if measure == leading else "none"}"{hint}><button type="button">{e(measure.title)} '
        f'<span aria-hidden="true">{arrow}</span>{spoken}</button>'
        f"{unit_text(measure, dataset, '<small>', '</small>')}</th>"
    )


def _row(dataset: Dataset, experiment: Experiment, measures: list[Measure], split: str) -> str:
    cells = "".join(_cell(dataset, experiment, measure, split) for measure in measures)
    return (
        f'<tr data-experiment="{e(experiment.name)}"><th scope="row">{badge(dataset, experiment)}'
        f'<span class="name">{breakable(experiment.name)}</span></th>{cells}</tr>'
    )


def _cell(dataset: Dataset, experiment: Experiment, measure: Measure, split: str) -> str:
    value = experiment.pooled[split].get(measure.name)
    if value is None:
        return '<td class="none"><span class="muted" title="not measured">–</span></td>'
    best = dataset.best(measure, split)
    others = [found for found in dataset.evaluated if measure.name in found.pooled.get(split, {})]
    is_best = (
        best is not None
        and len(others) > 1
        and experiment.pooled[split][measure.name] == best.pooled[split][measure.name]
    )
    delta = None if best is None or len(others) == 1 else _delta(measure, split, experiment, best)
    second = '<span class="delta" data-best>best</span>' if is_best else _delta_html(delta)
    return (
        f'<td data-value="{value!r}"{" class=best-cell" if is_best else ""}><span class="value">{number(value)}</span>'
        f"{second}</td>"
    )


def _delta_html(delta: Mapping[str, str] | None) -> str:
    if delta is None:
        return '<span class="delta"></span>'
    interval = f" <i>{delta['interval']}</i>" if delta.get("interval") else ""
    return f'<span class="delta {delta["state"]}">{delta["text"]}{interval}</span>'


def _delta(measure: Measure, split: str, a: Experiment, b: Experiment) -> dict[str, str] | None:
    """Difference a - b in words; ``state``: better, worse, open (the interval holds 0), few (no interval)."""
    found = difference(measure, split, a, b)
    if found is None:
        return None
    text = {"text": signed(found.mean), "state": "few"}
    if found.interval is not None:
        text["interval"] = f"[{signed(found.interval[0])}, {signed(found.interval[1])}]"
        text["state"] = "open"
        if found.is_clear and measure.direction in ("lower", "higher"):
            text["state"] = "better" if (found.mean < 0) == (measure.direction == "lower") else "worse"
    return text


def _reference_rows(dataset: Dataset, measures: list[Measure], split: str) -> str:
    """Experiments of a dataset may be trained on other pairs, and so have other references."""
    groups: dict[str, list[Experiment]] = {}
    for found in dataset.evaluated:
        if found.references and found.reference_split == split:
            groups.setdefault(json.dumps(found.references, sort_keys=True), []).append(found)
    rows = []
    for position, group in enumerate(groups.values()):
        whose = "" if len(groups) == 1 else " " + "".join(badge(dataset, found) for found in group)
        for name in [*REFERENCES, *sorted(group[0].references.keys() - REFERENCES.keys())]:
            values = group[0].references.get(name)
            if values is None:
                continue
            cells = "".join(
                f'<td><span class="value">{number(values[m.name])}</span></td>' if m.name in values else "<td></td>"
                for m in measures
            )
            rows.append(
                f'<tr><th scope="row"><span class="name">{e(REFERENCES.get(name, name))}{whose}</span></th>{cells}</tr>'
            )
        if position == 2:
            break  # further ones say little more
    if not rows:
        return ""
    head = f'<th colspan="{len(measures) + 1}" scope="rowgroup"><span>{REFERENCE_TITLE}</span></th>'
    return f'<tbody class="references"><tr class="between">{head}</tr>{"".join(rows)}</tbody>'


def _notes(dataset: Dataset, split: str) -> str:
    notes = []
    if len(dataset.evaluated) > 1:
        count = case_count(dataset, split)
        if count < FEWEST_CASES:
            notes.append(
                f"Small print: mean difference over cases. No intervals: {plural(count, 'case')}, "
                f"at least {FEWEST_CASES} needed."
            )
        else:
            notes.append(
                "Small print: mean difference over cases and its 95 % interval (paired bootstrap). "
                '<span class="delta better">better</span> and <span class="delta worse">worse</span>: the interval '
                "excludes 0."
            )
    without: dict[str, list[str]] = {}
    values: dict[str, list[str]] = {}
    for found in dataset.evaluated:
        mark = badge(dataset, found)
        if found.fid.get("split", "test") != split:
            continue
        if found.fid.get("computed"):
            values.setdefault(_fid_note(found.fid), []).append(mark)
        else:
            without.setdefault(f"not computed ({e(str(found.fid.get('reason', 'no reason given')))})", []).append(mark)
        for family, reason in found.missing.items():
            if family in dataset.inapplicable:
                continue
            without.setdefault(f"{FAMILIES.get(family, family)}: {e(reason)}", []).append(mark)
    for text, marks in {**values, **without}.items():
        prefix = "" if any(text.startswith(f"{name}:") for name in FAMILIES.values()) else "FID: "
        notes.append(f"{''.join(marks)} {prefix}{text}")
    return f'<ul class="notes">{"".join(f"<li>{note}</li>" for note in notes)}</ul>' if notes else ""


def _fid_note(fid: Mapping[str, Any]) -> str:
    cuts = {key: value for key, value in fid.items() if isinstance(value, Mapping)}
    counts = ", ".join(
        f"{key}: {value.get('images')} against {value.get('real_images')} real ones" for key, value in cuts.items()
    )
    warning = next((str(value["warning"]) for value in cuts.values() if value.get("warning")), "")
    sha = str(fid.get("weights_sha256", ""))[:12]
    text = f"{counts}; weights {sha}" + (f". {warning}" if warning else "")
    return e(text)
