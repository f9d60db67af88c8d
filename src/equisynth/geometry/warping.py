"""Warping: sampling volumes at displaced positions, composing displacement fields, integrating velocities.

Coordinates are voxel indices; interpolation is linear on a corner-aligned grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from equisynth.geometry.grids import identity_grid, per_axis

MASK_TOLERANCE = 1e-5  # An interpolated mask counts as valid from 1 - this on.

Padding = Literal["border", "zeros"]
Mode = Literal["linear", "nearest"]


def warp(volume: Tensor, displacement: Tensor) -> Tensor:
    """``volume(p + displacement(p))``, linear, border padding.

    Args:
        volume: (B, C, *S).
        displacement: (B, n, *S) in voxels.
    """
    return sample(volume, displaced(displacement))


def displaced(displacement: Tensor) -> Tensor:
    """Positions p + u(p) that a displacement field (B, n, *S) reads from, (B, n, *S) in voxels."""
    return displacement + identity_grid(displacement.shape[2:], displacement.device, displacement.dtype)


def sample(volume: Tensor, positions: Tensor, padding: Padding = "border", mode: Mode = "linear") -> Tensor:
    """Values of a volume at given positions.

    Args:
        volume: (B, C, *S).
        positions: (B, n, *T) in voxels of the volume; T has any number of axes.
        padding: What lies outside: the nearest border value, or zeros.

    Returns:
        (B, C, *T).
    """
    return sample_grid(volume, sampling_grid(positions, volume.shape[2:]), padding, mode)


def field_of_view(positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Mask (B, 1, *T): 1 where all coordinates of positions (B, n, *T) lie in [0, size - 1] of a volume of ``shape``.

    The test is made on the normalised coordinate in the dtype of the positions, whose rounding lets exact hits of the
    border count as inside: flips and quarter turns keep their whole mask.
    """
    return inside(sampling_grid(positions.detach(), shape))


def sampling_grid(positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Positions (B, n, *T) as grid_sample wants them: (B, *T, n), last axis first, ``2 p / (size - 1) - 1``.

    Made once, it serves to sample an image and its mask and to test the field of view.
    """
    # p / ((size - 1) / 2) rounds like 2 p / (size - 1): halving is exact. An axis of one voxel divides by nothing.
    half = per_axis([max(size - 1, 1) / 2 for size in reversed(shape)], positions)
    return positions.flip(1).div_(half).sub_(1).movedim(1, -1)  # A view at the end: nothing is permuted in memory.


def inside(grid: Tensor) -> Tensor:
    """Field-of-view mask (B, 1, *T) of a sampling grid (B, *T, n)."""
    return (grid.detach().abs().amax(-1) <= 1).to(grid.dtype).unsqueeze(1)


def sample_grid(volume: Tensor, grid: Tensor, padding: Padding = "border", mode: Mode = "linear") -> Tensor:
    """As ``sample``, at a sampling grid (B, *T, n)."""
    n = volume.ndim - 2
    target = grid.shape[1:-1]
    if len(target) != n:  # A list of points: grid_sample wants as many target axes as the volume has.
        grid = grid.reshape(grid.shape[0], -1, *(1,) * (n - 1), n)
    if volume.shape[0] != grid.shape[0]:
        batch = max(volume.shape[0], grid.shape[0])
        volume, grid = volume.expand(batch, *volume.shape[1:]), grid.expand(batch, *grid.shape[1:])
    values: Tensor = grid_sample(
        volume, grid, mode="bilinear" if mode == "linear" else "nearest", padding_mode=padding, align_corners=True
    )
    return values if len(target) == n else values.reshape(*values.shape[:2], *target)


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The displacement field of I∘first∘then: an image warped by ``first``, the result by ``then``; (B, n, *S)."""
    return then + warp(first, then)


def integrate_velocity(velocity: Tensor, squarings: int = 7) -> Tensor:
    """Displacement field of exp(v), v a stationary velocity field (B, n, *S) in voxels, by scaling and squaring.

    Arsigny et al., *A Log-Euclidean framework for statistics on diffeomorphisms*, MICCAI 2006.
    """
    displacement = velocity / 2.0**squarings
    for _ in range(squarings):
        displacement = compose(displacement, displacement)
    return displacement


def integrate_both(velocity: Tensor, squarings: int = 7) -> tuple[Tensor, Tensor]:
    """``exp(v)`` and its inverse ``exp(-v)``, integrated as one batch."""
    forward, inverse = integrate_velocity(torch.cat((velocity, -velocity)), squarings).chunk(2)
    return forward, inverse


@torch.no_grad()
def binarise(mask: Tensor) -> Tensor:
    """1 where an interpolated mask is valid (>= 1 - 1e-5), else 0; carries no graph."""
    return (mask >= 1 - MASK_TOLERANCE).to(mask.dtype)
