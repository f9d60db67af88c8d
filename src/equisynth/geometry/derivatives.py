"""Finite differences of volumes, and Jacobians of displacement fields."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equisynth.geometry.grids import per_axis


def derivative(
    volume: Tensor, axis: int, voxel_size: float = 1.0, central: bool = False, same_shape: bool = True
) -> Tensor:
    """Difference quotient of a volume (B, C, *S) along one spatial axis.

    Args:
        axis: Spatial axis, counted from 0.
        voxel_size: Of that axis.
        central: (f(x+1) - f(x-1)) / 2, else f(x+1) - f(x).
        same_shape: Shrink all axes alike (by 2 resp. 1) so that derivatives along different axes can be combined:
            central differences crop the other axes; forward ones average the two diagonal corners of the other axes
            (in 3D two of the four neighbours, as the published method does). Else only ``axis`` shrinks.
    """
    reach = 2 if central else 1
    dim = axis + 2
    scale = 1.0 / (voxel_size * reach)
    if central:
        source = _crop(volume, tuple(d for d in range(2, volume.ndim) if d != dim), 1, 1) if same_shape else volume
        difference = _crop(source, (dim,), 2, 0) - _crop(source, (dim,), 0, 2)
    else:
        difference = _crop(volume, (dim,), 1, 0) - _crop(volume, (dim,), 0, 1)
        if same_shape:
            others = tuple(d for d in range(2, volume.ndim) if d != dim)
            difference = _crop(difference, others, 1, 0) + _crop(difference, others, 0, 1)
            scale /= 2
    return difference if scale == 1 else difference * scale


def jacobian(displacement: Tensor, voxel_size: Sequence[float], central: bool = False) -> Tensor:
    """Jacobian of a displacement field in world units.

    Args:
        displacement: (B, n, *S) in voxels.

    Returns:
        (B, n, n, *S'), entry [:, i, j] = d(u_i voxel_size_i) / d(x_j voxel_size_j); S' as of ``derivative``.
    """
    columns = [
        derivative(displacement, axis, central=central) * per_axis([row / size for row in voxel_size], displacement)
        for axis, size in enumerate(voxel_size)
    ]
    return torch.stack(columns, 2)


def jacobian_determinant(displacement: Tensor, voxel_size: Sequence[float], central: bool = False) -> Tensor:
    """Determinant of the Jacobian of the transformation p + u(p): local change of volume, (B, *S')."""
    return determinant(add_identity(jacobian(displacement, voxel_size, central)))


def add_identity(matrices: Tensor) -> Tensor:
    """J + I for a field of matrices (B, n, n, *S)."""
    n = matrices.shape[1]
    identity = torch.eye(n, device=matrices.device, dtype=matrices.dtype)
    return matrices + identity.view(1, n, n, *(1,) * (matrices.ndim - 3))


def determinant(matrices: Tensor) -> Tensor:
    """Determinant (B, *S) of a field of matrices (B, n, n, *S), n = 2 or 3, in closed form: element-wise, no batched
    matrix products."""
    rows = [row.unbind(1) for row in matrices.unbind(1)]
    if len(rows) == 2:
        (a, b), (c, d) = rows
        return a * d - b * c
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _crop(volume: Tensor, dims: tuple[int, ...], lower: int, upper: int) -> Tensor:
    """A view without the first ``lower`` and last ``upper`` elements of each of the given dimensions."""
    for dim in dims:
        volume = volume.narrow(dim, lower, volume.shape[dim] - lower - upper)
    return volume
