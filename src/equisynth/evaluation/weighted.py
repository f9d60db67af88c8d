"""Errors that count with a weight, and where a registered label can be compared (spec: evaluation, cermep)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.evaluation.local_registration import WarpedLabel
from equisynth.evaluation.metrics import Pooled, psnr, ssim
from equisynth.evaluation.pooling import PooledMeasures
from equisynth.preprocessing.elastix import FloatArray, Mask


@dataclass(frozen=True)
class WeightedMeasures(PooledMeasures):
    """Weighted sums of one or several locations; ``signed`` is registered label minus prediction."""

    absolute: Pooled = Pooled()
    squared: Pooled = Pooled()
    signed: Pooled = Pooled()
    similarity: Pooled = Pooled()

    def values(self, signal_range: float) -> dict[str, float]:
        return {
            "mae": self.absolute.mean,
            "mse": self.squared.mean,
            "me": self.signed.mean,
            "psnr": psnr(self.squared, signal_range),
            "ssim": self.similarity.mean,
        }


def valid_content(body: Mask, registered: WarpedLabel, symmetric: bool = False) -> Mask:
    """Where the registered label can be compared (*P): it is valid, and has body where the input has.

    Body that the label alone shows stays, as published, unless ``symmetric``.
    """
    lost = (body > 0) & (registered.body == 0)
    if symmetric:
        lost |= (body == 0) & (registered.body > 0)
    return ((registered.valid > 0) & ~lost).astype(np.uint8)


def measure(
    registered: FloatArray,
    prediction: npt.NDArray[Any],
    content: Mask,
    weights: npt.NDArray[np.float64],
    signal_range: float,
) -> tuple[WeightedMeasures, npt.NDArray[np.float64]]:
    """Weighted sums around one location, and the weighted absolute errors (*P).

    Args:
        registered, prediction: (*P), raw units.
        content: (*P); SSIM's windows lie whole inside.
        weights: (*P), zero where nothing is compared.
    """
    difference = np.where(weights > 0, registered.astype(np.float64) - prediction, 0.0)
    absolute, mass = weights * np.abs(difference), float(weights.sum())
    found = WeightedMeasures(
        Pooled(float(absolute.sum()), mass),
        Pooled(float((weights * difference**2).sum()), mass),
        Pooled(float((weights * difference).sum()), mass),
        ssim(registered, np.asarray(prediction, np.float32), content, weights, signal_range),
    )
    return found, absolute
