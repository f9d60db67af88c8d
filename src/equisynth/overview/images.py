"""The image viewer of a dataset and its worst and best cases; the page's script fills in the images themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from equisynth.compare import Measure, number
from equisynth.overview import plots
from equisynth.overview.content import Case, Dataset, Experiment, Plane
from equisynth.overview.words import badge, breakable, card, e, full_title, legend

SHARED = ("input", "label", "registered", "aligned")
"""Images that follow from the dataset and from what a model is trained on."""
TRUTH = {"label_aligned": "aligned", "label_registered": "registered", "label": "label"}
"""What a prediction is compared with -> its image."""
NAMES = {"aligned": "aligned label", "registered": "registered label", "label": "label as trained on"}
EXPLANATIONS = {
    "error": ("Error", "Absolute difference of prediction and label; grey where nothing is compared."),
    "checkerboard": ("Checkerboard", "The prediction and {other} in turn: edges should meet at the squares' borders."),
    "deformation": ("Deformation", "A straight grid over the aligned label, bent as the label was."),
}


def card_of_viewer(dataset: Dataset) -> str:
    """Controls and an empty viewer."""
    shown = [found for found in dataset.experiments if found.panels]
    if not shown:
        return card("Images", '<p class="empty">No images: no model was reported yet.</p>') if dataset.evaluated else ""
    body = (
        '<div class="controls"><label>Case <select data-viewer-case></select></label>'
        '<div class="segments" role="group" aria-label="Plane" data-viewer-planes></div>'
        '<label class="check"><input type="checkbox" data-viewer-flip> Label in place of predictions</label>'
        '<label>Size <input type="range" min="130" max="420" value="150" step="10" data-viewer-size></label></div>'
        '<p class="muted hint">Press and hold a prediction (or Space on it) to see the label in its place.</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Images side by side">'
        '<div class="viewer" data-viewer></div></div>'
        '<noscript><p class="empty">The images need JavaScript; as files they are in reports/panels.</p></noscript>'
    )
    return card("Images", legend(dataset, shown) + body)


def card_of_extremes(dataset: Dataset) -> str:
    """Each model's worst and best case."""
    blocks = []
    for experiment in dataset.experiments:
        cases = [_extreme(why, case) for why in ("worst", "best") for case in _chosen(experiment, why)]
        if cases:
            blocks.append(
                f'<div class="extremes"><h4>{badge(dataset, experiment)}{breakable(experiment.name)}</h4>'
                f'<div class="pair">{"".join(cases)}</div></div>'
            )
    return card("Worst and best cases", "".join(blocks)) if blocks else ""


def _chosen(experiment: Experiment, why: str) -> Iterator[Case]:
    return (case for case in experiment.panels if why in case.chosen and case.planes)


def _extreme(why: str, case: Case) -> str:
    plane = case.planes[0]
    truth = _truth(case, plane)
    names = {"input": "input", "prediction": "prediction", truth: NAMES[truth], "error": "error"}
    pictures = "".join(
        f'<figure><img data-image="{plane.images[kind]}" alt="{e(name)} of {e(case.name)}">'
        f"<figcaption>{e(name)}</figcaption></figure>"
        for kind, name in names.items()
        if kind in plane.images
    )
    numbers = " · ".join(
        f"{e(full_title(Measure(key)))} {number(value)}" for key, value in list(case.measures.items())[:1]
    )
    title = f'<span class="tag {why}">{why}</span> {e(case.name)} <small>{numbers}</small>'
    return f'<div class="extreme {why}"><h5>{title}</h5><div class="strip">{pictures}</div></div>'


def _truth(case: Case, plane: Plane) -> str:
    wanted = TRUTH.get(case.reference, "label")
    return next((kind for kind in (wanted, "aligned", "registered") if kind in plane.images), "label")


# --- data of the viewer


def viewer_data(dataset: Dataset) -> dict[str, Any]:
    """What the page's script needs beside the images themselves.

    Labels may differ between models (they are trained on other ones), so that each kind of shared image is a list of
    images, each with the experiments that it belongs to.
    """
    shown = [found for found in dataset.experiments if found.panels]
    cases: dict[tuple[str, str], dict[str, Any]] = {}
    for found in shown:
        for case in found.panels:
            entry = cases.setdefault((case.split, case.name), {"name": case.name, "split": case.split, "tags": []})
            entry["tags"] += [f"{dataset.letters[found.name]} {why}" for why in case.chosen if why != "first"]
            for plane in case.planes:
                _add_plane(entry.setdefault("planes", {}), found, case, plane)
    position = {found.name: n for n, found in enumerate(dataset.experiments)}
    return {
        "models": [
            {"name": found.name, "letter": dataset.letters[found.name], "series": plots.series(position[found.name])}
            for found in shown
        ],
        "names": {"input": f"input ({dataset.input})", **NAMES},
        "cases": [entry for entry in cases.values() if "planes" in entry],
        "explanations": _explanations(dataset, shown),
    }


def _add_plane(planes: dict[str, Any], experiment: Experiment, case: Case, plane: Plane) -> None:
    place = planes.setdefault(plane.name, {"shared": {}, "models": {}})
    for kind in SHARED:
        if kind in plane.images:
            owners = place["shared"].setdefault(kind, {}).setdefault(plane.images[kind], [])
            owners.append(experiment.name)
    truth = _truth(case, plane)
    own = {kind: key for kind, key in plane.images.items() if kind not in SHARED}
    place["models"][experiment.name] = own | {"truth": plane.images.get(truth), "truth_name": NAMES[truth]}


def _explanations(dataset: Dataset, shown: list[Experiment]) -> Mapping[str, Any]:
    others = sorted({case.checkerboard_with for found in shown for case in found.panels if case.checkerboard_with})
    words = {"label_aligned": "the aligned label", "label_registered": "the registered label", "input": "the input"}
    other = " or ".join(words.get(name, "the label") for name in others) or "the label"
    found: dict[str, Any] = {}
    for kind, (title, text) in EXPLANATIONS.items():
        found[kind] = {"title": title, "text": text.format(other=other)}
    scales = {(model.error_range, model.error_colours) for model in shown if model.error_range}
    if len(scales) == 1:
        (low, high), colours = next(iter(scales))
        found["error"] |= {"low": f"{low:g}", "high": f"{high:g} {dataset.unit}", "colours": list(colours)}
    return found
