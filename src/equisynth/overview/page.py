"""The collected experiments -> one HTML page that needs no other file and no network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from equisynth.compare import Measure, number
from equisynth.evaluation.names import ABSOLUTE_ERRORS
from equisynth.overview.content import SPLITS, Dataset, Experiment, Overview
from equisynth.overview.curves import card_of_cases, card_of_curves
from equisynth.overview.images import card_of_extremes, card_of_viewer, viewer_data
from equisynth.overview.results import REFERENCES, card_of_results, differences
from equisynth.overview.words import (
    SPLIT_NAMES,
    badge,
    breakable,
    card,
    case_count,
    e,
    full_title,
    identifier,
    plural,
    unit_text,
)

TITLE = "Image synthesis experiments"


def to_html(overview: Overview) -> str:
    """The page; equal collections make equal pages."""
    parts = {name: files("equisynth.overview").joinpath(f"page.{name}").read_text("utf-8") for name in ("css", "js")}
    data = json.dumps(_data(overview), separators=(",", ":"), ensure_ascii=False, sort_keys=True)
    embedded = data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f'<title>{TITLE}</title><link rel="icon" href="data:,"><style>{parts["css"]}</style></head><body>'
        f'<a class="skip" href="#content">Skip to the results</a>{_header(overview)}'
        f'<main id="content">{"".join(_body(overview))}</main>{_footer(overview)}'
        f'<script type="application/json" id="data">{embedded}</script><script>{parts["js"]}</script></body></html>\n'
    )


def _header(overview: Overview) -> str:
    links = "".join(f'<a href="#{identifier(found.name)}">{e(found.name)}</a>' for found in overview.datasets)
    count = sum(len(found.evaluated) for found in overview.datasets)
    scale = f"{e(overview.scale)} scale"
    return (
        f'<header><div class="wide"><h1>{TITLE}</h1><p class="sub">{plural(count, "evaluated experiment")} · '
        f"{plural(len(overview.datasets), 'dataset')} · {scale} · "
        "<strong>Not for clinical use</strong></p></div></header>"
        f'<nav aria-label="Datasets"><div class="wide">{links}</div></nav>'
    )


def _footer(overview: Overview) -> str:
    left = ""
    if overview.left_out:
        left = f" {plural(overview.left_out, 'image')} left out to keep this page small; they are in reports/panels."
    return (
        f'<footer><div class="wide">Made by <code>equisynth overview</code> from reports/ (content '
        f"<code>{overview.digest}</code>).{left} Research software: not for clinical use.</div></footer>"
    )


def _body(overview: Overview) -> Iterator[str]:
    if not overview.datasets:
        yield '<p class="empty">No experiments yet: <code>pipeline</code> in params.yaml is empty.</p>'
        return
    yield f'<section class="glance" aria-label="At a glance">{"".join(map(_glance, overview.datasets))}</section>'
    for dataset in overview.datasets:
        yield _section(dataset)


def _glance(dataset: Dataset) -> str:
    """A card: the best model and by how much."""
    measure = dataset.primary()
    best = dataset.best(measure, "test") if measure else None
    if measure is None or best is None:
        found = [experiment for experiment in dataset.experiments if "not run" not in experiment.problems]
        text = "Not evaluated yet" if found else "Not run yet"
        link = f'<a class="card" href="#{identifier(dataset.name)}">'
        return f'{link}<h2>{e(dataset.name)}</h2><p class="muted">{text}</p></a>'
    value = number(best.pooled["test"][measure.name])
    only = len([found for found in dataset.evaluated if measure.name in found.pooled.get("test", {})]) == 1
    who = f"{badge(dataset, best)}<span>{e(best.name)}</span>"
    return (
        f'<a class="card" href="#{identifier(dataset.name)}"><h2>{e(dataset.name)}</h2>'
        f'<p class="figure">{value}</p><p class="of">{e(full_title(measure))}{unit_text(measure, dataset, " · ")}</p>'
        f'<p class="who">{who}</p><p class="muted">{"the only model evaluated" if only else "best"} on the test cases'
        f"{_against_references(best, measure)}</p></a>"
    )


def _against_references(best: Experiment, measure: Measure) -> str:
    """Compared with the best of what knows no anatomy, by the measure shown or else by one that both have."""
    if best.reference_split != "test":
        return ""
    for name in dict.fromkeys([measure.name, *ABSOLUTE_ERRORS]):
        own, found = best.pooled["test"].get(name), {key: values.get(name) for key, values in best.references.items()}
        values = {key: value for key, value in found.items() if value is not None and key in REFERENCES}
        if own is None or not values:
            continue
        other = Measure(name)
        reference = min(values, key=lambda key: other.badness(values[key]) or 0.0)
        is_better = (other.badness(own) or 0.0) < (other.badness(values[reference]) or 0.0)
        by = "" if name == measure.name else f" by {e(full_title(other))} {number(own)}"
        words = "better than" if is_better else "<strong>not better than</strong>"
        return f";{by} {words} the best {REFERENCES[reference]} ({number(values[reference])})"
    return ""


def _section(dataset: Dataset) -> str:
    parts = [card_of_results(dataset), card_of_cases(dataset), card_of_curves(dataset), card_of_viewer(dataset)]
    parts += [card_of_extremes(dataset), _models_card(dataset), _missing_card(dataset)]
    splits = [split for split in SPLITS if dataset.measures(split)]
    counts = [f"{plural(case_count(dataset, split), f'{SPLIT_NAMES[split].lower()} case')}" for split in splits]
    kind = {2: "pictures", 3: "volumes"}.get(dataset.n_dims, "images")
    about = [f"{e(dataset.input)} → {e(dataset.label)}", kind, *counts]
    switch = ""
    if len(splits) > 1:
        buttons = "".join(
            f'<button type="button" data-split-button="{split}" aria-pressed="{str(split == "test").lower()}">'
            f"{SPLIT_NAMES[split]}</button>"
            for split in splits
        )
        switch = f'<div class="segments" role="group" aria-label="Cases of {e(dataset.name)}">{buttons}</div>'
    return (
        f'<section class="dataset" id="{identifier(dataset.name)}" data-dataset="{e(dataset.name)}">'
        f'<div class="title"><div><h2>{e(dataset.name)}</h2><p class="sub">{" · ".join(about)}</p></div>{switch}</div>'
        f"{''.join(parts)}</section>"
    )


def _models_card(dataset: Dataset) -> str:
    rows = []
    promoted = [
        found.registered for found in dataset.experiments if found.registered and found.registered.get("champion")
    ]
    champion = max((int(version["version"]) for version in promoted if "version" in version), default=None)
    for found in dataset.experiments:
        version = found.registered
        if not version or "name" not in version or "version" not in version:
            continue
        uri = f"models:/{version['name']}/{version['version']}"
        is_champion = int(version["version"]) == champion  # an older one was the champion until this one came
        alias = f' <span class="tag best">@{e(version.get("alias", "champion"))}</span>' if is_champion else ""
        suffix = ".nii.gz" if dataset.n_dims == 3 else ".tif"
        command = f"equisynth predict input{suffix} --model {uri} --output synthesised{suffix}"
        rows.append(
            f'<tr><th scope="row">{badge(dataset, found)}<span class="name">{breakable(found.name)}</span></th>'
            f'<td><code>{e(uri)}</code>{alias}</td><td class="why">{e(version.get("reason", ""))}</td>'
            f'<td class="command"><code>{e(command)}</code><button type="button" class="copy" data-copy="{e(command)}" '
            f'aria-label="Copy the command for {e(found.name)}">Copy</button></td></tr>'
        )
    if not rows:
        return ""
    return card(
        "Registered versions",
        '<p class="muted">The champion had the least error on the validation split when it was registered; test cases '
        "may say otherwise.</p>"
        '<div class="scroll"><table class="models"><thead><tr><th scope="col">Experiment</th>'
        '<th scope="col">Version</th><th scope="col">Champion?</th><th scope="col">Use it</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>",
    )


def _missing_card(dataset: Dataset) -> str:
    rows = []
    for found in dataset.experiments:
        if not found.problems:
            continue
        name = f"{badge(dataset, found)}{breakable(found.name)}"
        if "not run" in found.problems:
            rows.append(
                f'<li>{name} <span class="tag">not run</span> <code>dvc repro report@{e(found.name)}</code></li>'
            )
        else:
            state = "" if found.is_evaluated else '<span class="tag worst">not evaluated</span> '
            rows.append(f'<li>{name} {state}<span class="muted">{e("; ".join(found.problems))}</span></li>')
    return card("Missing", f'<ul class="missing">{"".join(rows)}</ul>') if rows else ""


def _data(overview: Overview) -> dict[str, Any]:
    datasets = {found.name: viewer_data(found) | {"differences": differences(found)} for found in overview.datasets}
    return {"images": overview.images, "datasets": datasets}
