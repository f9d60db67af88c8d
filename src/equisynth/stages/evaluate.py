"""Stage ``evaluate``: predictions -> reports/metrics/<experiment>.json and reports/evaluation/<experiment>.json.

The first holds one number per measure, under the names that DVC and MLflow show: ``validate``, ``test`` (``mae``,
``mse``, ``psnr``, ``ssim``, ``nmi``; ``registered_mae`` and so on where there is no aligned label), the lookup table's
``reference``, ``fid/axis0..2``. The second holds everything: each case, all references, and what the FID was computed
from. An interrupted stage measures only what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from equisynth.config import Strict
from equisynth.datasets.opened import open_dataset
from equisynth.datasets.prepared import PreparedDataset
from equisynth.description import read_description
from equisynth.evaluation import fid
from equisynth.evaluation.aligned import evaluate_references, evaluate_split, named_measures
from equisynth.files import write_json
from equisynth.params import read
from equisynth.predictions import read_prediction
from equisynth.validation import validate
from equisynth.work import Remember, anew, count_remembered, fingerprint, remembered, resumable, say_continuing

SPLITS = ("validate", "test")


class FidSettings(Strict):
    """``weights``: a file of pytorch-fid's Inception weights; ``axes``: across which volumes are cut into slices."""

    weights: Path = fid.LOCAL_WEIGHTS
    axes: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)


class EvaluationSettings(Strict):
    """``split``: whose predictions the FID and the references are measured on."""

    split: Literal["validate", "test"] = "test"
    fid: FidSettings = FidSettings()


def run(
    experiment: str,
    prepared: Path,
    predictions: Path,
    reports: Path = Path("reports"),
    work: Path = Path(".equisynth/evaluate"),
    models: Path = Path("models"),
) -> None:
    """Evaluates an experiment's predictions; the settings are the section ``evaluation`` of ``params.yaml``.

    Args:
        work: what was measured of each case waits below it until all is done.
        models: ``models/<experiment>/model.json`` says what the model was trained on.
    """
    settings = validate(EvaluationSettings, read()["evaluation"], "evaluation")
    trained = read_description(models / experiment).settings
    dataset = open_dataset(prepared, trained)
    dataset.require(trained.data, f"the model in {models / experiment} was trained on")
    pairs = trained.model_dump(mode="json", include={"label_deformation", "patch_size"})
    key = [settings.model_dump(mode="json"), pairs, fingerprint(prepared), fingerprint(predictions)]
    with resumable(work, experiment, key) as folder:
        say_continuing("evaluate", experiment, count_remembered(folder))
        details = evaluate(dataset, predictions, settings, remembered(folder))
        write_json(reports / "evaluation" / f"{experiment}.json", details)
        write_json(reports / "metrics" / f"{experiment}.json", summary(details))


def evaluate(
    dataset: PreparedDataset, predictions: Path, settings: EvaluationSettings, remember: Remember = anew
) -> dict[str, Any]:
    """Everything that is measured, for JSON.

    Args:
        predictions: holds ``<split>/<case>.nii``.
        remember: may know what was measured of a case from an interrupted run.
    """
    info = dataset.info
    result: dict[str, Any] = {}
    for split in SPLITS:
        prediction = partial(read_prediction, dataset, predictions, split)
        result[split] = evaluate_split(dataset, split, prediction, remember)
    result["references"] = evaluate_references(dataset, settings.split, remember=remember)
    result["fid"] = {"split": settings.split} | fid.evaluate(
        (read_prediction(dataset, predictions, settings.split, case) for case in sorted(dataset.cases(settings.split))),
        real_labels(dataset, settings.split),
        info.n_dims,
        info.label.background,
        info.label.signal_range,
        settings.fid.weights,
        settings.fid.axes,
        remember=remember,
    )
    return result


def summary(details: Mapping[str, Any]) -> dict[str, Any]:
    """One number per measure; what was not measured is left out, and a missing FID says why."""
    metrics: dict[str, Any] = {split: named_measures(details[split]) for split in SPLITS}
    table = details["references"].get("lookup_table")
    if table is not None:
        metrics["reference"] = {"lookup_table": {key: table[key] for key in ("mae", "ssim") if table[key] is not None}}
    found = details["fid"]
    if found["computed"]:
        metrics |= {f"fid/{key}": value["value"] for key, value in found.items() if isinstance(value, Mapping)}
        metrics["fid"] = {"computed": True, "weights_sha256": found["weights_sha256"]}
    else:
        metrics["fid"] = {"computed": False, "reason": found["reason"].split(" and ")[0]}  # whole in the details
    return {key: value for key, value in metrics.items() if value != {}}


def real_labels(dataset: PreparedDataset, split: str) -> Iterator[np.ndarray]:
    """Real images of the label's modality: aligned ones where there are any."""
    for case in sorted(dataset.cases(split)):
        yield dataset.image(case, "label_aligned" if dataset.has(case, "label_aligned") else "label")
