"""Where the patches of an image lie, and how overlapping predictions are fused: pure index arithmetic.

An image of shape (*S) is covered by patches of one size at a stride. Two rules count them: the *floor* rule
(training: what does not fit is left out) and the *include last* rule (inference: the last patch is flush with the end).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
from scipy.ndimage import gaussian_filter1d


def patches_per_axis(
    shape: Sequence[int], patch_size: Sequence[int], stride: Sequence[float], include_last: bool = False
) -> tuple[int, ...]:
    """Number of patches along each axis: floor or, with the last one flush, ceil of (shape - patch) / stride, plus one.

    A stride below one (2D slices of a volume taken several times per epoch) gives several patches per voxel.
    """
    rounded = math.ceil if include_last else math.floor
    return tuple(
        rounded((size - patch) / step) + 1 for size, patch, step in zip(shape, patch_size, stride, strict=True)
    )


def axis_starts(size: int, patch: int, stride: float, include_last: bool = True) -> list[int]:
    """First voxel of every patch along one axis; the last patch never reaches beyond the end."""
    (count,) = patches_per_axis((size,), (patch,), (stride,), include_last)
    return [min(int(index * stride), size - patch) for index in range(count)]


def patch_starts(
    shape: Sequence[int], patch_size: Sequence[int], stride: Sequence[float], include_last: bool = True
) -> Iterator[tuple[int, ...]]:
    """First voxels of all patches, the last axis running fastest."""
    axes = (axis_starts(*axis, include_last) for axis in zip(shape, patch_size, stride, strict=True))
    return itertools.product(*axes)


def axis_masks(starts: Sequence[int], size: int, patch: int, smoothing: float | None = None) -> np.ndarray:
    """One-dimensional fusing masks of the patches along one axis.

    A patch is responsible (1) for its centre: the overlap with each neighbour is split in the middle, the lower
    margin being floor(overlap / 2) and the upper one ceil(overlap / 2); there is no margin at the border of the image.
    With ``smoothing`` (standard deviation in voxels) the mask is Gaussian-smoothed inside the patch, nearest edge.

    Returns:
        (number of patches, patch) float32.
    """
    masks = np.zeros((len(starts), patch), dtype=np.float32)
    for index, start in enumerate(starts):
        overlap_below = starts[index - 1] + patch - start if index > 0 else 0
        overlap_above = start + patch - starts[index + 1] if index + 1 < len(starts) else 0
        lower = max(overlap_below, 0) // 2
        upper = -(-max(overlap_above, 0) // 2)
        masks[index, lower : patch - upper] = 1
    if smoothing:
        # The Gaussian and the box both separate over axes, so that smoothing one axis at a time is exact.
        masks = gaussian_filter1d(masks, smoothing, axis=1, mode="nearest")
    return masks


def outer(profiles: Sequence[np.ndarray]) -> np.ndarray:
    """The product mask of one profile per axis, (*P)."""
    return reduce(np.multiply.outer, profiles)


def patch_masks(
    shape: Sequence[int],
    patch_size: Sequence[int],
    stride: Sequence[float],
    include_last: bool = True,
    smoothing: float | None = None,
) -> np.ndarray:
    """The fusing masks of all patches in the order of :func:`patch_starts`, (number of patches, *P) float32."""
    axes = []
    for size, patch, step in zip(shape, patch_size, stride, strict=True):
        axes.append(axis_masks(axis_starts(size, patch, step, include_last), size, patch, smoothing))
    return np.stack([outer(profiles) for profiles in itertools.product(*axes)])


def window(start: Sequence[int], patch_size: Sequence[int]) -> tuple[slice, ...]:
    """The slices that cut a patch out of an array."""
    return tuple(slice(first, first + size) for first, size in zip(start, patch_size, strict=True))
