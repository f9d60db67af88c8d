"""Affine matrices: homogeneous (B, n+1, n+1), in world units (index times voxel size) or in voxels.

The matrices are tiny and the fields are not: matrices are multiplied in double precision, fields are built from them
by broadcasting. No matrix product is left to the device, whose reduced-precision ones (TF32) would shift images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equisynth.geometry.grids import constant

ROUNDING = 1e-10  # In voxels; far below what a single-precision field can tell.


def to_voxels(matrix: Tensor, voxel_size: Sequence[float]) -> Tensor:
    """World matrix (B, n+1, n+1) as a voxel matrix, D⁻¹ A D with D the voxel size; float64.

    Entries that are whole numbers but for rounding become whole: right angles and flips are exact, so that they send
    border voxels onto border voxels and not just outside.
    """
    sizes = [*map(float, voxel_size), 1.0]
    ratios = tuple(column / row for row in sizes for column in sizes)
    matrix = _double(matrix)
    voxels = matrix * constant(ratios, matrix.device, matrix.dtype).view(len(sizes), len(sizes))
    rounding = (voxels.round() - voxels).detach()
    return voxels + rounding * (rounding.abs() < ROUNDING)


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Product of small matrices (B, k, k), evaluated in double precision, in the dtype of ``left``."""
    product = (_double(left)[..., :, :, None] * _double(right)[..., None, :, :]).sum(-2)
    return product.to(left.dtype)


def invert(matrix: Tensor) -> Tensor:
    """Exact inverse of affine matrices (B, n+1, n+1), n = 2 or 3: adjugate over determinant, no device sync."""
    wide = _double(matrix)
    n = matrix.shape[-1] - 1
    linear, translation = wide[..., :n, :n], wide[..., :n, n]
    if n == 2:
        (a, b), (c, d) = (linear[..., i, :].unbind(-1) for i in range(2))
        adjugate = torch.stack((d, -b, -c, a), -1).reshape(*linear.shape)
    elif n == 3:
        x, y, z = linear.unbind(-1)  # The rows of the adjugate are the cross products of the columns.
        adjugate = torch.stack((torch.linalg.cross(y, z), torch.linalg.cross(z, x), torch.linalg.cross(x, y)), -2)
    else:
        raise ValueError(f"affine matrices of 2 or 3 dimensions expected, got {tuple(matrix.shape)}")
    determinant = (adjugate[..., 0, :] * linear[..., :, 0]).sum(-1)
    inverse = adjugate / determinant[..., None, None]
    return homogeneous(inverse, -(inverse * translation[..., None, :]).sum(-1)).to(matrix.dtype)


def homogeneous(linear: Tensor, translation: Tensor) -> Tensor:
    """(B, n, n) and (B, n) as one matrix (B, n+1, n+1)."""
    top = torch.cat((linear, translation[..., None]), -1)  # (B, n, n+1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., -1] = 1
    return torch.cat((top, bottom), -2)


def rotation_matrix(angles: Tensor) -> Tensor:
    """Rotation matrices (B, n, n) of angles (B, 1) or (B, 3) in radians.

    2D: [[cos, -sin], [sin, cos]]. 3D: R3(a3) R2(a2) R1(a1), angle k turning about axis k: the 2D matrix in the two
    other axes in increasing order. (The simulator in ``random_transformations`` counts its angles from the last axis.)
    """
    cos, sin = angles.cos(), angles.sin()
    if angles.shape[-1] == 1:
        return torch.stack((torch.cat((cos, -sin), -1), torch.cat((sin, cos), -1)), -2)
    rotation = None
    for axis in range(3):
        turn = _plane_rotation(cos[..., axis], sin[..., axis], axis)
        rotation = turn if rotation is None else multiply(turn, rotation)
    assert rotation is not None
    return rotation


def rigid_matrix(angles: Tensor, translation: Tensor, origin: Tensor) -> Tensor:
    """Rotation about a point, then a translation: T(origin + t) R T(-origin), (B, n+1, n+1).

    Args:
        angles: (B, 1) or (B, 3), radians; see ``rotation_matrix``.
        translation: (B, n), world units.
        origin: (B, n) or (n,), world units.
    """
    rotation = rotation_matrix(angles)
    return homogeneous(rotation, origin + translation - (rotation * origin[..., None, :]).sum(-1))


def affine_positions(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """Where a voxel matrix (B, n+1, n+1) sends every voxel of a grid, (B, n, *shape) in voxels."""
    n = len(shape)
    positions = matrix[:, :n, n].reshape(-1, n, *(1,) * n)
    for axis, size in enumerate(shape):
        index = torch.arange(size, device=matrix.device, dtype=matrix.dtype).view(-1, *(1,) * (n - 1 - axis))
        column = matrix[:, :n, axis].reshape(-1, n, *(1,) * n)
        positions = positions + column * index  # Grows axis by axis: only the last sum has the size of the grid.
    return positions


def affine_displacement(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """Displacement field of a voxel matrix, A p - p, (B, n, *shape) in voxels."""
    return affine_positions(matrix - torch.eye(len(shape) + 1, device=matrix.device, dtype=matrix.dtype), shape)


def transform_vectors(matrix: Tensor, vectors: Tensor) -> Tensor:
    """The linear part of voxel matrices (B, n+1, n+1) applied to vectors (B, n, *S)."""
    n = vectors.shape[1]
    columns = matrix[:, :n, :n].reshape(-1, n, n, *(1,) * (vectors.ndim - 2))  # (B, n, n, 1, ...)
    result = columns[:, :, 0] * vectors[:, :1]
    for axis in range(1, n):
        result = torch.addcmul(result, columns[:, :, axis], vectors[:, axis : axis + 1])
    return result


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Voxel matrices (B, n+1, n+1) applied to points (B, n, *T) in voxels."""
    n = points.shape[1]
    return transform_vectors(matrix, points) + matrix[:, :n, n].reshape(-1, n, *(1,) * (points.ndim - 2))


def _plane_rotation(cos: Tensor, sin: Tensor, axis: int) -> Tensor:
    """3D rotation (B, 3, 3) in the two axes other than ``axis``."""
    one, zero = torch.ones_like(cos), torch.zeros_like(cos)
    i, j = (other for other in range(3) if other != axis)
    entries = {(i, i): cos, (i, j): -sin, (j, i): sin, (j, j): cos, (axis, axis): one}
    rows = (torch.stack([entries.get((row, column), zero) for column in range(3)], -1) for row in range(3))
    return torch.stack(tuple(rows), -2)


def _double(matrix: Tensor) -> Tensor:
    return matrix if matrix.device.type == "mps" else matrix.double()  # Apple's GPUs know no double precision.
