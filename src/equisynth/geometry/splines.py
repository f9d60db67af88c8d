"""Interpolating cubic B-splines: upsampling of coarse arrays by whole factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def upsample(volume: Array, factors: Sequence[int]) -> Array:
    """Cubic B-spline upsampling of the last ``len(factors)`` axes, each becoming ``factor`` times as long.

    Every coarse voxel is divided into ``factor`` fine ones (corners are not aligned). The spline passes through the
    given values with coefficients mirrored at the border (see ``coefficients``); beyond the border it continues with
    the outermost coefficient. Axes of factor 1 stay as they are.
    """
    for axis, factor in enumerate(factors, start=volume.ndim - len(factors)):
        if factor != 1:
            size = volume.shape[axis]
            volume = along(_evaluation(size, factor) @ np.linalg.inv(_interpolation(size)), volume, axis)
    return volume


def coefficients(volume: Array, axes: int) -> Array:
    """Coefficients, along the last ``axes`` axes, of the spline through the values; mirrored at the half sample."""
    for axis in range(volume.ndim - axes, volume.ndim):
        volume = along(np.linalg.inv(_interpolation(volume.shape[axis])), volume, axis)
    return volume


def _interpolation(size: int) -> Array:
    """The matrix that gives values at the samples from coefficients: (1, 4, 1) / 6, mirrored at the border."""
    matrix = np.zeros((size, size))
    index = np.arange(size)
    for offset, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        np.add.at(matrix, (index, np.clip(index + offset, 0, size - 1)), weight)  # c[-1] = c[0]: both rules agree.
    return matrix


def _evaluation(size: int, factor: int) -> Array:
    """The matrix (factor * size, size) that evaluates the spline at the fine samples from its coefficients."""
    position = (np.arange(size * factor) + 0.5) / factor - 0.5
    matrix = np.zeros((len(position), size))
    for offset in range(-1, 3):
        knot = np.floor(position).astype(int) + offset
        np.add.at(matrix, (np.arange(len(position)), np.clip(knot, 0, size - 1)), _cubic(np.abs(position - knot)))
    return matrix


def _cubic(distance: Array) -> Array:
    """The centred cubic B-spline at non-negative distances."""
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far)


def along(matrix: Array, volume: Array, axis: int) -> Array:
    """A matrix applied along one axis, in the dtype of the volume; nothing is transposed."""
    matrix = matrix.astype(volume.dtype)
    if axis == volume.ndim - 1:
        return np.asarray(volume @ matrix.T)
    product = matrix @ volume.reshape(*volume.shape[: axis + 1], -1)
    return product.reshape(*volume.shape[:axis], len(matrix), *volume.shape[axis + 1 :])
