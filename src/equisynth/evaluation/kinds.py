"""What is measured of a split besides whole images: each kind by its name, which `names.PREFIXES` knows too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equisynth.datasets.prepared import PreparedDataset
from equisynth.evaluation import deformations, full_valid, registered
from equisynth.evaluation.by_case import Prediction
from equisynth.evaluation.names import LEFT_OUT
from equisynth.evaluation.registered import KeepErrors
from equisynth.evaluation.settings import EvaluationSettings
from equisynth.work import Remember, anew


@dataclass(frozen=True)
class Translated:
    """A split that a model translated, and what measuring it takes.

    Attributes:
        prediction: case -> (*S) or (*S, C'), raw units.
        cache: folder of registrations.
        model: folder of the model, whose registration networks are measured; None: they are not.
        remember: may know what was measured of a case from an interrupted run.
        keep_errors: takes each case and its error volume (*S) of local registrations.
        jobs: processes that register and measure (-1: one per core).
    """

    dataset: PreparedDataset
    split: str
    prediction: Prediction
    settings: EvaluationSettings
    cache: Path
    model: Path | None = None
    remember: Remember = anew
    keep_errors: KeepErrors | None = None
    jobs: int = 1


def measure(kind: str, split: Translated) -> dict[str, Any]:
    """One of `KINDS`, for JSON: ``{"split", "computed": False, "reason"}`` where the settings leave it out."""
    left_out = {"split": split.split, "computed": False, "reason": LEFT_OUT}
    return KINDS[kind](split) or left_out


def _registered(of: Translated) -> dict[str, Any] | None:
    settings = of.settings.registered
    if settings is None:
        return None
    return registered.evaluate(
        of.dataset, of.split, of.prediction, settings, of.cache, of.remember, of.keep_errors, of.jobs
    )


def _full_valid(of: Translated) -> dict[str, Any] | None:
    settings = of.settings.full_valid
    if settings is None:
        return None
    return full_valid.evaluate(of.dataset, of.split, of.prediction, settings, of.cache, of.remember, of.jobs)


def _deformation(of: Translated) -> dict[str, Any] | None:
    return None if of.model is None else deformations.evaluate(of.model, of.dataset, of.split, of.remember)


KINDS: dict[str, Callable[[Translated], dict[str, Any] | None]] = {
    "registered": _registered,
    "full_valid": _full_valid,
    "deformation": _deformation,
}
