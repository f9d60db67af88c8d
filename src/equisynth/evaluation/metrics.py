"""Image similarity inside masks: pooled sums that add up over cases.

Arrays are (*S) or (*S, C) with masks (*S); memory-mapped arrays are fine. Everything streams over slabs along one axis
in the images' own type with float64 sums, so that a volume never exists a second time in memory.

What lies outside of the mask never counts, whatever it is. A value inside that is not finite makes the measure NaN (an
infinite one the errors infinite, and the PSNR minus infinity): nothing that could be taken for a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from equisynth.evaluation.kernels import WINDOW, count_pairs, extent, ssim_sums

K1, K2 = 0.01, 0.03
SLAB_VOXELS = 2_000_000


@dataclass(frozen=True)
class Pooled:
    """A weighted sum and the weights' sum; adding two of them pools their cases."""

    total: float = 0.0
    mass: float = 0.0

    def __add__(self, other: Pooled) -> Pooled:
        return Pooled(self.total + other.total, self.mass + other.mass)

    @property
    def mean(self) -> float:
        """The weighted mean; NaN where nothing was measured."""
        return self.total / self.mass if self.mass > 0 else math.nan


def errors(label: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> tuple[Pooled, Pooled]:
    """Absolute and squared error inside a mask, channels averaged.

    Args:
        label, prediction: (*S) or (*S, C).
        mask: weights (*S).

    Returns:
        absolute and squared error; their mass is the sum of the mask.
    """
    absolute = squared = mass = 0.0
    for a, b, weight in _slabs(mask.ndim, label, prediction, mask):
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            difference = np.subtract(a, b, dtype=np.result_type(a, b, np.float32))
        difference[weight == 0] = 0
        channels = difference.shape[-1]
        weight = weight.astype(difference.dtype)
        mass += float(weight.sum(dtype=np.float64))
        weight = weight[..., None]
        absolute += float((np.abs(difference) * weight).sum(dtype=np.float64)) / channels
        squared += float((np.square(difference) * weight).sum(dtype=np.float64)) / channels
    return Pooled(absolute, mass), Pooled(squared, mass)


def psnr(squared_error: Pooled, signal_range: float) -> float:
    """Peak signal-to-noise ratio in dB of a pooled squared error; infinite if perfect, NaN if the mask was empty.

    Minus infinity if the error is infinite.
    """
    mean = squared_error.mean
    if math.isnan(mean):
        return math.nan
    return math.inf if mean == 0 else 20 * math.log10(signal_range) - 10 * math.log10(mean)


def ssim(
    label: np.ndarray,
    prediction: np.ndarray,
    content_mask: np.ndarray,
    evaluation_mask: np.ndarray,
    data_range: float,
) -> Pooled:
    """Structural similarity (Wang et al. 2004) with a uniform 7-voxel window and sample covariance.

    Averaged, with the evaluation mask as weight, over the voxels whose whole window lies inside the image and the
    content mask; channels are averaged. Without mass where there is no such voxel, as in an image smaller than the
    window. Two equal images have 1, constant ones too.

    Args:
        label, prediction: (*S) or (*S, C) with two or three spatial axes.
        content_mask: (*S), valid where above 0.
        evaluation_mask: weights (*S).
        data_range: extent of the signal.
    """
    n_dims = content_mask.ndim
    window = np.array([WINDOW] * n_dims + [1] * (3 - n_dims))
    total, mass, finite = 0.0, 0.0, True
    for a, b, content, weight in _slabs(n_dims, label, prediction, content_mask, evaluation_mask, halo=WINDOW - 1):
        inside = np.ascontiguousarray(_three_axes(content > 0, n_dims))
        weights = np.ascontiguousarray(_three_axes(weight, n_dims), dtype=np.float64)
        for channel in range(a.shape[-1]):
            precision = np.result_type(a, b, np.float32)  # exact; a kernel per type takes seconds to compile
            first, second = (_compact(_three_axes(image[..., channel], n_dims), precision) for image in (a, b))
            part, part_mass, part_finite = ssim_sums(
                first, second, inside, weights, window, (K1 * data_range) ** 2, (K2 * data_range) ** 2
            )
            total += part
            mass += part_mass
            finite = finite and part_finite
    return Pooled(total if finite else math.nan, mass)


def normalised_mutual_information(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> Pooled:
    """(H(a) + H(b)) / H(a, b) (Studholme et al. 1999) of the joint histogram inside a mask, weighted by its mass.

    max(2, floor(sqrt(N / 5))) bins per image for N masked voxels, spread over the range of the masked values; all
    channels go into one histogram. Undefined, and then without mass: an empty mask, a single voxel, or two constant
    images. 1 where one of them is constant: they share nothing.

    Args:
        a, b: (*S) or (*S, C), same number of channels.
        mask: (*S), counts where above 0.
    """
    count, lower, upper = 0, [math.inf, math.inf], [-math.inf, -math.inf]
    for *images, weight in _slabs(mask.ndim, a, b, mask):
        inside = np.ascontiguousarray(weight > 0)
        count += int(np.count_nonzero(inside))
        for index, image in enumerate(images):
            for channel in range(image.shape[-1]):
                smallest, largest = extent(_compact(image[..., channel], image.dtype).ravel(), inside.ravel())
                lower[index] = float(np.minimum(lower[index], smallest))  # keeps NaN, unlike min
                upper[index] = float(np.maximum(upper[index], largest))
    if count == 0:
        return Pooled()
    if not all(map(math.isfinite, lower + upper)):
        return Pooled(math.nan, count)
    bins = max(int(math.sqrt(count / 5)), 2)
    edges = [_edges(lower[k], upper[k], bins, image.dtype) for k, image in enumerate((a, b))]
    histogram = np.zeros((bins, bins), dtype=np.int64)
    for first, second, weight in _slabs(mask.ndim, a, b, mask):
        inside = np.ascontiguousarray(weight > 0).ravel()
        for channel in range(first.shape[-1]):
            x = _compact(first[..., channel], edges[0].dtype).ravel()
            y = _compact(second[..., channel], edges[1].dtype).ravel()
            count_pairs(x, y, inside, edges[0], edges[1], histogram)
    joint = _entropy(histogram)
    if joint == 0:
        return Pooled()
    return Pooled((_entropy(histogram.sum(axis=1)) + _entropy(histogram.sum(axis=0))) / joint * count, count)


def _edges(lower: float, upper: float, bins: int, dtype: np.dtype) -> np.ndarray:
    """Bin edges as numpy's histograms draw them, in the images' own precision."""
    if lower == upper:
        lower, upper = lower - 0.5, upper + 0.5
    dtype = dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float64)
    return np.linspace(dtype.type(lower), dtype.type(upper), bins + 1)


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _slabs(n_dims: int, *arrays: np.ndarray, halo: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
    """Slabs of the arrays along their slowest axis; images get a trailing channel axis, masks (the last ones) do not.

    Which arrays are images follows from their order: the first two. All measures here are symmetric in the axes, so
    that column-major arrays are walked along their last axis. Consecutive slabs overlap by ``halo`` planes.
    """
    images = [image if image.ndim > n_dims else image[..., None] for image in arrays[:2]]
    shape = images[0].shape[:n_dims]
    for array in (*images, *arrays[2:]):
        if array.shape[:n_dims] != shape:
            raise ValueError(f"arrays of shapes {[a.shape for a in arrays]} do not lie on one grid")
    if images[0].shape != images[1].shape:
        raise ValueError(f"images of shapes {images[0].shape} and {images[1].shape} have different channels")
    views = [*images, *arrays[2:]]
    if n_dims > 1 and abs(images[0].strides[0]) < abs(images[0].strides[n_dims - 1]):
        order = list(range(n_dims))[::-1]
        views = [view.transpose(order + list(range(n_dims, view.ndim))) for view in views]
    size = views[0].shape[0]
    plane = max(math.prod(views[0].shape[1:]), 1)
    step = max(SLAB_VOXELS // plane, halo + 1) if plane else size
    for first in range(0, max(size - halo, 1), step):
        yield tuple(view[first : first + step + halo] for view in views)


def _compact(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """In C order and read-only: a kernel is compiled for each kind of array, which takes seconds."""
    compact = np.ascontiguousarray(array, dtype).view()
    compact.flags.writeable = False
    return compact


def _three_axes(array: np.ndarray, n_dims: int) -> np.ndarray:
    return array.reshape(array.shape + (1,) * (3 - n_dims))
