"""The terms of the training losses: masked similarity, non-rigidity, limits, adversarial.

Every function returns a scalar (or an image) in float32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from equisynth.geometry.derivatives import add_identity, derivative, determinant, jacobian
from equisynth.geometry.transforms import Image

SimilarityName = Literal["mae", "mse"]


def masked_error(first: Tensor, second: Tensor, mask: Tensor | None, kind: SimilarityName = "mae") -> Tensor:
    """Mean over **all** elements of ``mask * |first - second|`` ("mae") or of its square ("mse").

    Args:
        first, second: ``(B, C, *S)``.
        mask: ``(B, 1, *S)`` or ``None`` for valid everywhere; invalid elements count as zero in the mean.
    """
    difference = first.float() - second.float()
    error = difference.abs() if kind == "mae" else difference.square()
    return (error if mask is None else error * mask).mean()


def dissimilarity(first: Image, second: Image, kind: SimilarityName = "mae") -> Tensor:
    """The method's d(a, b): ``masked_error`` of two images where both are valid."""
    return masked_error(first.values, second.values, first.comparison_mask(second), kind)


def beyond_limit(values: Tensor, limit: float) -> Tensor:
    """``max(0, |values| - limit)²`` of ``(B, K)``: mean over the batch, sum over the K components."""
    return F.relu(values.float().abs() - limit).square().mean(dim=0).sum()


def adversarial(logits: Tensor, real: bool) -> Tensor:
    """Binary cross entropy of the discriminator's logits against all real or all fake."""
    logits = logits.float()
    return F.softplus(-logits if real else logits).mean()


@dataclass(frozen=True)
class RigidityPenalty:
    """Penalty of what is not a rigid motion (Staring, Klein, Pluim, Medical Physics 34, 2007).

    Weighted sum of the means of orthonormality ``‖JJᵀ - I‖²``, properness ``(det J - 1)²`` and affinity (squared
    second derivatives, mixed ones twice), J the Jacobian of the transformation in world units.

    Attributes:
        voxel_size: world units per voxel, one per axis.
        affinity_weight, orthonormality_weight, properness_weight: a weight of zero costs nothing.
        first_central, second_central: central instead of forward differences for first and second derivatives.
    """

    voxel_size: tuple[float, ...]
    affinity_weight: float = 1.0
    orthonormality_weight: float = 0.01
    properness_weight: float = 0.1
    first_central: bool = False
    second_central: bool = False

    def __call__(self, displacement: Tensor, coefficient: Tensor | None = None) -> Tensor:
        """Penalty of a displacement field ``(B, n, *S)`` in voxels.

        ``coefficient`` ``(B, 1, *S)`` weighs the penalty locally: bones bend less than muscle.
        """
        jacobians = jacobian(displacement.float(), self.voxel_size, self.first_central)  # (B, n, n, *S')
        gradients = add_identity(jacobians)
        near = None if coefficient is None else self._on_first_derivatives(coefficient.float())
        penalty = jacobians.new_zeros(())
        if self.orthonormality_weight:
            penalty = penalty + self.orthonormality_weight * _mean(orthonormality(gradients), near)
        if self.properness_weight:
            penalty = penalty + self.properness_weight * _mean(properness(gradients), near)
        if self.affinity_weight:
            far = None if coefficient is None else self._on_second_derivatives(coefficient.float())
            bending = affinity(jacobians, self.voxel_size, self.second_central)
            penalty = penalty + self.affinity_weight * _mean(bending, far)
        return penalty

    def _on_first_derivatives(self, coefficient: Tensor) -> Tensor:
        return _crop(coefficient) if self.first_central else _average_neighbours(coefficient)

    def _on_second_derivatives(self, coefficient: Tensor) -> Tensor:
        if self.second_central:
            return _crop(self._on_first_derivatives(coefficient))
        return _average_neighbours(_crop(coefficient)) if self.first_central else _crop(coefficient)


def orthonormality(gradients: Tensor) -> Tensor:
    """``‖FFᵀ - I‖²`` of deformation gradients F = I + J ``(B, n, n, *S)``, per voxel: ``(B, *S)``."""
    rows = gradients.unbind(dim=1)  # n times (B, n, *S)
    terms = [(row.square().sum(dim=1) - 1).square() for row in rows]
    terms += [2 * (row * other).sum(dim=1).square() for i, row in enumerate(rows) for other in rows[:i]]
    return torch.stack(terms).sum(dim=0)


def properness(gradients: Tensor) -> Tensor:
    """``(det F - 1)²`` of deformation gradients F = I + J ``(B, n, n, *S)``, per voxel: ``(B, *S)``."""
    return (determinant(gradients) - 1).square()


def affinity(jacobians: Tensor, voxel_size: Sequence[float], central: bool) -> Tensor:
    """Squared second derivatives, mixed ones twice, per voxel: ``(B, *S')`` from ``(B, n, n, *S)``."""
    n = jacobians.shape[1]
    terms = [
        (2 if i < j else 1) * derivative(jacobians[:, :, i], j, voxel_size[j], central).square().sum(dim=1)
        for i in range(n)
        for j in range(i, n)
    ]
    return torch.stack(terms).sum(dim=0)


def rigidity_coefficient(
    values: Tensor, mask: Tensor | None, intensities: Sequence[float], coefficients: Sequence[float]
) -> Tensor:
    """Local weight of the rigidity penalty from an image, ``(B, 1, *S)``.

    Piecewise linear in the channel mean of ``values`` ``(B, C, *S)``, constant beyond the given intensities;
    ``coefficients[0]`` where ``mask`` ``(B, 1, *S)`` is zero.
    """
    mean = values.float().mean(dim=1, keepdim=True).clamp(intensities[0], intensities[-1])
    result = interpolate(mean, intensities, coefficients)
    return result if mask is None else torch.where(mask > 0, result, coefficients[0])


def interpolate(x: Tensor, positions: Sequence[float], values: Sequence[float]) -> Tensor:
    """Piecewise linear function through the given points; the end segments go on beyond them."""
    pairs = list(zip(positions, values, strict=True))
    slopes = [(v1 - v0) / (p1 - p0) for (p0, v0), (p1, v1) in zip(pairs[:-1], pairs[1:], strict=True)]
    result = values[0] + slopes[0] * (x - positions[0])
    for position, before, after in zip(positions[1:-1], slopes[:-1], slopes[1:], strict=True):
        result = result + (after - before) * F.relu(x - position)  # a kink at every inner point
    return result


def _mean(penalty: Tensor, coefficient: Tensor | None) -> Tensor:
    return (penalty if coefficient is None else penalty * coefficient[:, 0]).mean()


def _crop(volume: Tensor) -> Tensor:
    """One voxel less on each side of each spatial axis."""
    return volume[(slice(None), slice(None), *(slice(1, -1) for _ in volume.shape[2:]))]


def _average_neighbours(volume: Tensor) -> Tensor:
    """Mean of the corners of each cell: one voxel less per axis."""
    return (F.avg_pool2d if volume.dim() == 4 else F.avg_pool3d)(volume, kernel_size=2, stride=1)
