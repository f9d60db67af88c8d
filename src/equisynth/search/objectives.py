"""The program's own training as an objective."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equisynth.config import Settings
from equisynth.errors import UserError
from equisynth.files import sha256
from equisynth.search.plan import Report
from equisynth.search.settings import ALIGNED, REGISTERED
from equisynth.search.trials import FOLDED
from equisynth.validation import FILE

if TYPE_CHECKING:
    from equisynth.datasets.prepared import PreparedDataset

SPLIT = "validate"
TRUTH = "label_aligned"


@dataclass(frozen=True)
class OwnTraining:
    """Trains and measures a trial; can be sent to a process.

    Attributes:
        prepared: folder of the prepared dataset.
        objective: what is measured beside ``registered``, which the training itself knows.
        folded: measure the share of folded voxels.
    """

    prepared: Path
    objective: str
    folded: bool

    def __call__(self, settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        from equisynth.datasets.opened import open_dataset
        from equisynth.evaluation.aligned import evaluate_split
        from equisynth.model import load_model
        from equisynth.stages.predict import translate_case
        from equisynth.stages.train import train_once

        dataset, out = open_dataset(self.prepared, settings), folder / "model"
        train_once(settings, dataset, out, report)
        model = load_model(out)
        result = {REGISTERED: model.description.selection, "model_sha256": sha256(out / "model.safetensors")}
        if self.objective == ALIGNED:
            found = evaluate_split(dataset, SPLIT, lambda case: translate_case(model, dataset, case))
            result[ALIGNED] = found["pooled"]["mae"]
        if self.folded:
            result[FOLDED] = _folded_share(out, dataset)
        return result


def chosen_objective(asked: str, prepared: Path, settings: Settings) -> str:
    """``auto`` made up: the true aligned label where the validation split has one.

    Raises:
        UserError: no prepared dataset, or no such label where the parameters ask for it.
    """
    if asked == REGISTERED:
        return asked
    from equisynth.datasets.opened import open_dataset

    dataset = open_dataset(prepared, settings)
    cases = dataset.cases(SPLIT)
    if cases and all(dataset.has(case, TRUTH) for case in cases):
        return ALIGNED
    if asked == ALIGNED:
        raise UserError(
            f"{FILE}: search.objective: found '{ALIGNED}', but no validation case of {settings.dataset} has an aligned "
            f"label; choose '{REGISTERED}'"
        )
    return REGISTERED


def _folded_share(model: Path, dataset: PreparedDataset) -> float | None:
    """Of the deformations that a model's registration networks find; None for a method that has none."""
    from equisynth.evaluation.deformations import evaluate

    found = evaluate(model, dataset, SPLIT)
    if not found["computed"]:
        return None
    share = found["pooled"][FOLDED]
    return 1.0 if share is None else float(share)  # a deformation that is not finite keeps nothing in its place
