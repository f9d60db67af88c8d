"""Stage ``report``: predictions -> reports/pictures/<experiment>/*.png, reports/<experiment>.html, reports/panels.

The first two are for those who look at one experiment, in MLflow or on paper; what the page of all experiments shows
side by side is drawn by `stages.panels`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from equisynth.datasets.opened import open_dataset
from equisynth.description import read_description
from equisynth.errors import UserError
from equisynth.files import atomic_folder, atomic_path, read_json
from equisynth.predictions import read_prediction
from equisynth.report import CasePictures, draw_case, draw_curves, draw_deformation, to_html, to_png
from equisynth.stages import panels
from equisynth.store import flatten
from equisynth.tracking import log_details, log_files, run_of

SPLIT = "test"
CASES = 3
"""At most so many cases are drawn."""
LONGEST = 1024
"""Pixels that are read along a picture's longest side, at most: of a larger one every second, or third."""


def run(experiment: str) -> None:
    """Draws curves and the first test cases.

    Together with the dataset's sheet they are logged to the training's run and written into one page. Panels of the
    first, the best and the worst test case are written beside them.
    """
    folder, out = Path("models") / experiment, Path("reports/pictures") / experiment
    description = read_description(folder)
    settings = description.settings
    dataset = open_dataset(Path("data/prepared") / settings.dataset, settings)
    history = read_json(Path("reports/history") / f"{experiment}.json")
    pictures = {"1-curves": draw_curves(history, description.best_epoch)}
    for name in dataset.cases(SPLIT)[:CASES]:
        case = panels.Case(dataset, name)
        prediction = read_prediction(dataset, Path("predictions") / experiment, SPLIT, name)
        pictures[f"2-prediction-{name}"] = draw_case(case_pictures(case, settings.label_role, prediction))
        components = case.deformation()
        if components is not None:
            field = np.stack([read((slice(None),) * len(components)) for read in components])
            title = f"{name}: deformation that misaligned its label"
            pictures[f"3-deformation-{name}"] = draw_deformation(field, case.voxel_size, title)
    files = {"0-dataset": read_sheet(settings.dataset)}
    files |= {name: to_png(figure) for name, figure in sorted(pictures.items())}
    with atomic_folder(out) as temporary:
        for name, content in files.items():
            (temporary / f"{name}.png").write_bytes(content)
    metrics = flatten(read_json(Path("reports/metrics") / f"{experiment}.json"), "/")
    note = (
        f"{settings.data.input.modality} → {settings.data.label.modality}, {settings.method} method, {settings.scale} "
        f"scale, best epoch {description.best_epoch} of {settings.epochs}. Not for clinical use."
    )
    with atomic_path(Path("reports") / f"{experiment}.html") as path:
        path.write_text(to_html(experiment, note, metrics, files), encoding="utf-8")
    details = read_json(Path("reports/evaluation") / f"{experiment}.json")
    beside = [
        Path("reports") / part / f"{experiment}.json" for part in ("metrics", "evaluation", "history", "registry")
    ]
    drawn = Path("reports/panels") / experiment
    there = [path for path in beside if path.is_file()]
    panels.write(settings, dataset, Path("predictions") / experiment, details, drawn, there)
    run_id = run_of(experiment)
    log_files(run_id, out)
    log_details(run_id, experiment)


def read_sheet(dataset: str) -> bytes:
    """The picture sheet that stage ``prepare`` drew of a dataset, a PNG file."""
    path = Path("reports/datasets") / f"{dataset}.png"
    if not path.is_file():
        raise UserError(f"{path}: not found, expected the dataset's picture sheet; run: dvc repro prepare@{dataset}")
    return path.read_bytes()


def case_pictures(case: panels.Case, label_role: str, prediction: np.ndarray) -> CasePictures:
    """A case of a prepared dataset beside its prediction; large pictures thinned while they are read."""
    info, mask = case.dataset.info, case.mask("evaluation")
    step = -(-max(case.shape) // LONGEST) if info.n_dims == 2 else 1
    place = (slice(None, None, step),) * info.n_dims

    def image(role: str) -> np.ndarray:
        return np.asarray(case.image(role)[place])

    return CasePictures(
        name=case.name,
        n_dims=info.n_dims,
        voxel_size=case.voxel_size,
        input=image("input"),
        prediction=np.asarray(case.turned(prediction)[place]),
        aligned=image("label_aligned") if case.dataset.has(case.name, "label_aligned") else None,
        label=image(label_role),
        mask=None if mask is None else np.asarray(mask[place]),
        modalities=(info.input.modality, info.label.modality),
    )
