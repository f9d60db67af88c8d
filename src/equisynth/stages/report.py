"""Stage ``report``: predictions -> reports/pictures/<experiment>/*.png and reports/<experiment>.html."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from equisynth.datasets.opened import open_dataset
from equisynth.datasets.prepared import PreparedDataset
from equisynth.description import read_description
from equisynth.errors import UserError
from equisynth.files import atomic_folder, atomic_path, read_json
from equisynth.predictions import read_prediction
from equisynth.report import CasePictures, draw_case, draw_curves, draw_deformation, to_html, to_png
from equisynth.store import flatten
from equisynth.tracking import log_files, run_of

SPLIT = "test"
CASES = 3
"""At most so many cases are drawn."""


def run(experiment: str) -> None:
    """Draws curves and the first test cases.

    Together with the dataset's sheet they are logged to the training's run and written into one page.
    """
    folder, out = Path("models") / experiment, Path("reports/pictures") / experiment
    description = read_description(folder)
    settings = description.settings
    dataset = open_dataset(Path("data/prepared") / settings.dataset, settings)
    history = read_json(Path("reports/history") / f"{experiment}.json")
    pictures = {"1-curves": draw_curves(history, description.best_epoch)}
    for case in dataset.cases(SPLIT)[:CASES]:
        prediction = read_prediction(dataset, Path("predictions") / experiment, SPLIT, case)
        pictures[f"2-prediction-{case}"] = draw_case(case_pictures(dataset, case, settings.label_role, prediction))
        if dataset.has(case, "deformation"):
            title = f"{case}: deformation that misaligned its label"
            field = np.asarray(dataset.deformation(case))
            pictures[f"3-deformation-{case}"] = draw_deformation(field, settings.data.voxel_size, title)
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
    log_files(run_of(experiment), out)


def read_sheet(dataset: str) -> bytes:
    """The picture sheet that stage ``prepare`` drew of a dataset, a PNG file."""
    path = Path("reports/datasets") / f"{dataset}.png"
    if not path.is_file():
        raise UserError(f"{path}: not found, expected the dataset's picture sheet; run: dvc repro prepare@{dataset}")
    return path.read_bytes()


def case_pictures(dataset: PreparedDataset, case: str, label_role: str, prediction: np.ndarray) -> CasePictures:
    """A case of a prepared dataset beside its prediction."""
    info = dataset.info
    aligned = np.asarray(dataset.image(case, "label_aligned")) if dataset.has(case, "label_aligned") else None
    return CasePictures(
        name=case,
        n_dims=info.n_dims,
        voxel_size=info.voxel_size,
        input=np.asarray(dataset.image(case, "input")),
        prediction=prediction,
        aligned=aligned,
        label=np.asarray(dataset.image(case, label_role)),
        mask=dataset.mask(case, "evaluation"),
        modalities=(info.input.modality, info.label.modality),
    )
