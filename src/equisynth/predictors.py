"""How a trained model is asked: in which precision, and averaged over mirrored copies of each tile or not."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from equisynth.config import Settings
from equisynth.description import Description
from equisynth.errors import UserError
from equisynth.inference import Predict
from equisynth.model import Model

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FLIPS = ("none", "trained", "all")
"""No mirrors; those that training drew; all, whatever training drew."""


@dataclass(frozen=True)
class Asked:
    """A model and the way it is asked; a ``Predictor``."""

    model: Model
    predict: Predict

    @property
    def description(self) -> Description:
        """Of the model."""
        return self.model.description


def asked(model: Model, precision: str = "no", flips: str = "none") -> Asked:
    """A model asked in a precision and over mirrors; both must have been checked."""
    predict: Predict = model.predict
    dtype = PRECISIONS[precision]
    if dtype is not None:
        predict = in_precision(predict, model.device.type, dtype)
    return Asked(model, predict if flips == "none" else over_mirrors(predict))


def in_precision(predict: Predict, device: str, dtype: torch.dtype) -> Predict:
    """The same prediction with the network's products in a shorter number format."""

    def predict_so(values: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(device, dtype):
            return predict(values, mask)

    return predict_so


def over_mirrors(predict: Predict) -> Predict:
    """The mean prediction (B, C', *P) over all 2^n mirrored copies of tiles, each mirrored back."""

    def predict_mean(values: Tensor, mask: Tensor) -> Tensor:
        axes = range(2, values.ndim)
        choices = [choice for count in range(len(axes) + 1) for choice in itertools.combinations(axes, count)]
        total = predict(values, mask)
        for choice in choices[1:]:
            total = total + predict(values.flip(choice), mask.flip(choice)).flip(choice)
        return total / len(choices)

    return predict_mean


def check_precision(precision: str, device: torch.device) -> None:
    """
    Raises:
        UserError: unknown, or the device cannot compute in it.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision: found '{precision}', expected one of: {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"--precision fp16 needs a GPU, found {device}; choose bf16 or no")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("--precision bf16: this GPU cannot compute in it; choose fp16 or no")


def check_flips(flips: str, settings: Settings) -> None:
    """
    Raises:
        UserError: unknown, or training drew no mirrors and they are not asked for all the same.
    """
    if flips not in FLIPS:
        raise UserError(f"--flips: found '{flips}', expected one of: {', '.join(FLIPS)}")
    if flips == "trained" and not settings.random_transformation.flips:
        raise UserError(
            f"--flips trained: {settings.experiment} was trained without mirrored images "
            "(random_transformation.flips is false); leave it out, or choose all to mirror nevertheless"
        )
