"""How well a method registers while it translates: distances to known deformations, and the pair after registration.

The networks are asked for the inverse deformation d⁻¹ (from the translated input to the label) and for its part without
the intra-modality step, d_cross⁻¹; both are compared with the displacement that misaligned the label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from equisynth.evaluation.metrics import Pooled
from equisynth.geometry.derivatives import jacobian_determinant
from equisynth.geometry.transforms import Field, Image


@dataclass(frozen=True)
class DeformationErrors:
    """Sums over samples that add up; lengths in voxels.

    Attributes:
        distance: mean Euclidean distance of the predicted to the true displacement.
        drift: per axis, mean signed difference predicted - true.
        largest: mean over samples of the largest distance.
    """

    distance: Pooled = field(default_factory=Pooled)
    drift: tuple[Pooled, ...] = ()
    largest: Pooled = field(default_factory=Pooled)

    def __add__(self, other: DeformationErrors) -> DeformationErrors:
        drift = tuple(a + b for a, b in zip(self.drift, other.drift, strict=True)) if self.drift else other.drift
        return DeformationErrors(self.distance + other.distance, drift, self.largest + other.largest)


def comparable(input_mask: Tensor, label_mask: Tensor, truth: Tensor) -> Tensor:
    """Where a deformation can be judged (B, 1, *S): valid in the label, and in the input that lies there.

    Args:
        input_mask, label_mask: (B, 1, *S).
        truth: displacement field (B, n, *S) in voxels that deformed the aligned label.
    """
    seen = Image(input_mask, input_mask).warp(Field(truth))
    return seen.valid() * label_mask


def deformation_errors(predicted: Tensor, truth: Tensor, mask: Tensor) -> DeformationErrors:
    """Errors of displacement fields (B, n, *S) in voxels inside a mask (B, 1, *S).

    A sample with an empty mask adds nothing. Outside of the mask anything may stand; NaN inside makes NaN.
    """
    difference = torch.where(mask > 0, (predicted - truth).double(), 0.0)
    distance, weight = difference.square().sum(dim=1).sqrt(), mask[:, 0].double()
    mass = float(weight.sum())
    drift = tuple(Pooled(float((difference[:, axis] * weight).sum()), mass) for axis in range(difference.shape[1]))
    worst = [float((d * w).max()) for d, w in zip(distance, weight, strict=True) if w.any()]
    return DeformationErrors(Pooled(float((distance * weight).sum()), mass), drift, Pooled(sum(worst), len(worst)))


def folded_share(displacement: np.ndarray, mask: np.ndarray | None = None) -> Pooled:
    """Share of voxels whose Jacobian determinant is not positive: there a displacement field (n, *S) folds.

    The determinant is taken by forward differences, so that the last voxel along each axis has none: a field of one
    voxel along any axis measures nothing. NaN where a determinant inside the mask is not finite.
    """
    values = torch.from_numpy(np.ascontiguousarray(displacement))[None].double()
    determinant = jacobian_determinant(values, (1.0,) * len(displacement))[0].numpy()
    inside = tuple(slice(size) for size in determinant.shape)
    weight = np.ones(determinant.shape) if mask is None else np.asarray(mask[inside] > 0, dtype=np.float64)
    folded = float(((determinant <= 0) * weight).sum())
    return Pooled(folded if np.isfinite(determinant[weight > 0]).all() else math.nan, float(weight.sum()))


def mean_displacement(displacement: np.ndarray, mask: np.ndarray | None = None) -> Pooled:
    """Mean length in voxels of a displacement field (n, *S); NaN or infinite where a vector inside the mask is."""
    length = np.linalg.norm(displacement.astype(np.float64), axis=0)
    inside = np.ones(length.shape, bool) if mask is None else np.asarray(mask > 0)
    return Pooled(float(length[inside].sum()), float(inside.sum()))
