"""Stage ``evaluate``: predictions -> reports/metrics/, reports/evaluation/ and reports/error_volumes/.

``reports/metrics/<experiment>.json`` holds one number per measure, under the names that DVC and MLflow show;
``reports/evaluation/<experiment>.json`` everything: each case, what was not measured and why; docs/evaluation.md lists
both. ``reports/error_volumes/<experiment>/`` holds where local registrations find errors. An interrupted stage measures
only what is left; registrations are kept for all models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.datasets.opened import open_dataset
from equisynth.datasets.prepared import PreparedDataset
from equisynth.datasets.prepared_files import as_nifti
from equisynth.evaluation import full_valid, real_images
from equisynth.evaluation.aligned import evaluate_references, evaluate_split
from equisynth.evaluation.kinds import KINDS, Translated, measure
from equisynth.evaluation.settings import CACHE, EvaluationSettings, read_settings
from equisynth.evaluation.summary import summary
from equisynth.files import atomic_folder, atomic_path, link, sha256, write_json
from equisynth.model import WEIGHTS, described_method
from equisynth.params import read
from equisynth.predictions import read_prediction
from equisynth.work import Remember, anew, count_remembered, fingerprint, remembered, resumable, say_continuing

SPLITS = ("validate", "test")
ERRORS = "error_volumes"
KeepErrors = Callable[[str, str, npt.NDArray[np.float32]], None]


def run(
    experiment: str,
    prepared: Path,
    predictions: Path,
    reports: Path = Path("reports"),
    work: Path = Path(".equisynth/evaluate"),
    models: Path = Path("models"),
    *,
    name: str | None = None,
    splits: Sequence[str] = SPLITS,
    settings: EvaluationSettings | None = None,
    cache: Path | None = None,
    jobs: int = -1,
) -> None:
    """Evaluates an experiment's predictions.

    Args:
        work: what was measured of each case waits below it until all is done.
        models: ``<experiment>/`` there is the model that predicted.
        name: of the files that are written; default: the experiment's.
        settings: default: those of ``params.yaml``.
        cache: folder of registrations; default: that of the dataset below `CACHE`.
        jobs: processes that register and measure (-1: one per core).
    """
    settings = settings or read_settings(read())
    if settings.split not in splits:
        settings = EvaluationSettings.model_validate(settings.model_dump() | {"split": splits[-1]})
    name, model = name or experiment, models / experiment
    trained = described_method(model)[0].settings  # the method's file is loaded before the code is fingerprinted
    dataset = open_dataset(prepared, trained)
    dataset.require(trained.data, f"the model in {model} was trained on")
    cache = cache or CACHE / trained.dataset
    pairs = trained.model_dump(mode="json", include={"label_deformation", "patch_size"})
    files = [sha256(model / WEIGHTS), fingerprint(prepared), fingerprint(predictions)]
    with resumable(work, name, [settings.model_dump(mode="json"), list(splits), pairs, files]) as folder:
        say_continuing("evaluate", name, count_remembered(folder))
        volumes = folder / ERRORS
        keep_errors = partial(_keep_errors, dataset, volumes)
        details = evaluate(dataset, predictions, settings, remembered(folder), splits, model, cache, jobs, keep_errors)
        write_json(reports / "evaluation" / f"{name}.json", details)
        write_json(reports / "metrics" / f"{name}.json", summary(details))
        with atomic_folder(reports / ERRORS / name) as temporary:  # empty, where there are none
            for path in sorted(volumes.rglob("*.nii")):
                link(path, temporary / path.relative_to(volumes))


def evaluate(
    dataset: PreparedDataset,
    predictions: Path,
    settings: EvaluationSettings,
    remember: Remember = anew,
    splits: Sequence[str] = SPLITS,
    model: Path | None = None,
    cache: Path = CACHE,
    jobs: int = 1,
    keep_errors: KeepErrors | None = None,
) -> dict[str, Any]:
    """Everything that is measured, for JSON.

    Args:
        predictions: holds ``<split>/<case>.nii``.
        remember: may know what was measured of a case from an interrupted run.
        model: folder of the model, whose registration networks are measured; None: they are not.
        cache: folder of registrations.
        keep_errors: takes split, case and error volume (*S) of local registrations.
    """
    translated = {}
    for split in splits:
        prediction = partial(read_prediction, dataset, predictions, split)
        keep = None if keep_errors is None else partial(keep_errors, split)
        translated[split] = Translated(dataset, split, prediction, settings, cache, model, remember, keep, jobs)
    result: dict[str, Any] = {
        split: evaluate_split(dataset, split, found.prediction, remember) for split, found in translated.items()
    }
    for kind in KINDS:
        result[kind] = {split: measure(kind, found) for split, found in translated.items()}
    result["references"] = evaluate_references(dataset, settings.split, remember=remember)
    result["fid"] = _fid(dataset, predictions, settings, remember)
    return result


def _fid(
    dataset: PreparedDataset, predictions: Path, settings: EvaluationSettings, remember: Remember
) -> dict[str, Any]:
    """FID of the predictions of ``settings.split``, see :func:`equisynth.evaluation.real_images.evaluate`."""
    prediction, tiles = partial(read_prediction, dataset, predictions, settings.split), settings.full_valid
    return real_images.evaluate(
        dataset, settings.split, prediction, settings.fid, tiles or full_valid.FullValidSettings(), remember=remember
    )


def _keep_errors(
    dataset: PreparedDataset, folder: Path, split: str, case: str, errors: npt.NDArray[np.float32]
) -> None:
    path = folder / split / f"{case}.nii"
    if not path.is_file():
        import nibabel

        with atomic_path(path) as temporary:
            nibabel.save(as_nifti(path, errors, dataset.affine(case), dataset.info.n_dims), temporary)
