"""Resampling between grids: another image's grid, a voxel size around the volume centre, an orientation of the axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

IN_PLANE_TOLERANCE, SLICE_TOLERANCE = 1e-3, 1e-2
"""Header voxel sizes this close (mm) to the target count as equal."""


def to_grid(values: Array, affine: Matrix, shape: Sequence[int], target_affine: Matrix, order: int = 1) -> Array:
    """Values (*S) with ``affine`` (index to mm) on the grid of another image; 0 outside of the field of view."""
    matrix = np.linalg.inv(affine) @ target_affine
    return _affine_transform(values, matrix[:3, :3], matrix[:3, 3], shape, order=order, mode="constant")


def voxel_size(affine: Matrix) -> tuple[float, ...]:
    """Lengths of an affine's columns: mm per voxel along each axis, whatever the orientation."""
    return tuple(float(size) for size in np.linalg.norm(affine[:3, :3], axis=0))


def agreed_voxel_size(own: Sequence[float], target: Sequence[float]) -> tuple[float, ...]:
    """``own``, replaced by ``target`` on axes where the header differs by rounding only (last axis: slices)."""
    tolerances = [IN_PLANE_TOLERANCE] * (len(own) - 1) + [SLICE_TOLERANCE]
    return tuple(
        float(t if abs(o - t) <= tolerance else o) for o, t, tolerance in zip(own, target, tolerances, strict=True)
    )


def resampled_shape(shape: Sequence[int], own: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """floor((shape - 1) own / target + 1): the voxels of the target size whose centres fit between the outer ones."""
    # The small number keeps whole ratios whole: (40 - 1) * 3.6 / 1.2 is 117 minus rounding.
    return tuple(int(np.floor((n - 1) * o / t + 1 + 1e-9)) for n, o, t in zip(shape, own, target, strict=True))


def to_voxel_size(values: Array, own: Sequence[float], target: Sequence[float]) -> Array:
    """Values (*S) of voxel size ``own`` at voxel size ``target``, linear, both grids centred on the same point."""
    if tuple(own) == tuple(target):
        return np.asarray(values, dtype=np.float32)
    shape = resampled_shape(values.shape, own, target)
    step = np.array(target) / np.array(own)
    offset = (np.array(values.shape) - 1) / 2 - step * (np.array(shape) - 1) / 2
    return _affine_transform(values, step, offset, shape)


def from_voxel_size(values: Array, shape: Sequence[int], own: Sequence[float], target: Sequence[float]) -> Array:
    """Back from ``to_voxel_size`` to the original grid (``shape``, voxel size ``own``); the border repeats."""
    if tuple(own) == tuple(target):
        return np.asarray(values, dtype=np.float32)
    step = np.array(own) / np.array(target)
    offset = (np.array(values.shape) - 1) / 2 - step * (np.array(shape) - 1) / 2
    return _affine_transform(values, step, offset, shape)


def resampling_affine(shape: Sequence[int], own: Sequence[float], target: Sequence[float]) -> Matrix:
    """Where the voxels of ``to_voxel_size`` lie: index after -> index (4, 4) in an image of ``shape`` before."""
    step = np.array(target) / np.array(own)
    after = np.array(resampled_shape(shape, own, target))
    matrix = np.diag([*step, 1.0])
    matrix[:-1, -1] = (np.array(shape) - 1) / 2 - step * (after - 1) / 2
    return matrix


def orientation(affine: Matrix) -> str:
    """Where the axes point, e.g. ``LPS``: to the left, the back and up; of oblique ones the closest directions."""
    from nibabel.orientations import aff2axcodes

    return "".join(aff2axcodes(affine))


def reoriented(values: Array, own: str, target: str) -> Array:
    """Values (*S) stored in one orientation, axes permuted and flipped to another; no value changes."""
    from nibabel.orientations import apply_orientation

    result: Array = np.ascontiguousarray(apply_orientation(values, _turn(own, target)))
    return result


def reoriented_shape(shape: Sequence[int], own: str, target: str) -> tuple[int, ...]:
    """The shape of ``reoriented``."""
    goes_to = _turn(own, target)[:, 0].astype(int)
    return tuple(int(shape[axis]) for axis in np.argsort(goes_to))


def reoriented_affine(affine: Matrix, shape: Sequence[int], target: str) -> Matrix:
    """The affine of ``reoriented`` values, whose shape was ``shape`` before."""
    from nibabel.orientations import inv_ornt_aff

    result: Matrix = affine @ inv_ornt_aff(_turn(orientation(affine), target), tuple(shape))
    return result


def _turn(own: str, target: str) -> Matrix:
    """nibabel's transform (n, 2) between two orientations: where each axis goes, and whether it is flipped."""
    from nibabel.orientations import axcodes2ornt, ornt_transform

    turn: Matrix = ornt_transform(axcodes2ornt(own), axcodes2ornt(target))
    return turn


def _affine_transform(
    values: Array, matrix: Matrix, offset: Matrix, shape: Sequence[int], order: int = 1, mode: str = "nearest"
) -> Array:
    """values(matrix p + offset) for the voxels p of ``shape``; a vector stands for a diagonal matrix."""
    result: Array = ndimage.affine_transform(
        np.asarray(values, dtype=np.float32), matrix, offset, tuple(shape), order=order, mode=mode, output=np.float32
    )
    return result
