"""Whole images from overlapping tiles; files: ``volumes.py``, ``slides.py``. Memory is bounded by one row of tiles.

Tiles of the training patch size lie at the inference stride, the last one flush with the end. Each prediction is
weighted by its fusing mask (``datasets/tiles.py``); the output is the weighted sum over the sum of weights. Tiles are
walked row by row along the first axis, and the part of the image that no later tile reaches is handed on at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from equisynth.config import Data, Intensity, Settings
from equisynth.datasets.intensity import channels_first, denormalise, normalise, valid_mask
from equisynth.datasets.tiles import axis_masks, axis_starts, outer, window

Predict = Callable[[Tensor, Tensor], Tensor]
"""Normalised, masked patches (B, C, *P) and their masks (B, 1, *P) -> normalised label patches (B, C', *P)."""
Progress = Callable[[int, int], None]
"""Called with the number of tiles done and of all tiles."""
Read = Callable[[tuple[slice, ...]], tuple[np.ndarray, "np.ndarray | None"]]
"""Raw values (*P) or (*P, C) and valid mask (*P) of a window of the image; None: valid everywhere."""


class Description(Protocol):
    """What of a model's description inference needs: patch size, stride, smoothing and intensities of its settings."""

    @property
    def settings(self) -> Settings:
        """Of the experiment that trained the model."""
        ...


class Predictor(Protocol):
    """A trained model."""

    @property
    def description(self) -> Description:
        """How to feed it."""
        ...

    def predict(self, values: Tensor, mask: Tensor) -> Tensor:
        """See `Predict`."""
        ...


@dataclass(frozen=True)
class Rule:
    """How tiles become an image.

    Attributes:
        minimum_weight: a tile is skipped, adding no weight, where the sum of mask times fusing mask is below.
        colours: False: tiles are de-normalised and masked, then fused (0 where the input is invalid). True: masked
            normalised tiles are fused, then de-normalised (the label's mean colour where the input is invalid).
    """

    minimum_weight: float
    colours: bool


VOLUME = Rule(minimum_weight=1.0, colours=False)
PICTURE = Rule(minimum_weight=1e-5, colours=True)


def translate_slabs(
    predict: Predict,
    read: Read,
    shape: Sequence[int],
    description: Description,
    rule: Rule = VOLUME,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Translates an image of any size, slab by slab along its first axis.

    An image smaller than a patch is filled up with invalid voxels. A 2D model translates a volume slice by slice along
    its last axis.

    Args:
        shape: of the image, (*S).
        description: patch size, stride, smoothing and intensities of the model.

    Yields:
        The first index along axis 0 and the values (n, *S[1:], C') float32 of consecutive slabs.
    """
    settings = description.settings
    patch, stride = _tiling(settings, len(shape))
    slice_wise = len(shape) > settings.data.n_dims
    padded = [max(size, extent) for size, extent in zip(shape, patch, strict=True)]
    starts = [axis_starts(*axis) for axis in zip(padded, patch, stride, strict=True)]
    profiles = [
        axis_masks(first, size, extent, settings.fusing_mask_smoothing)
        for first, size, extent in zip(starts, padded, patch, strict=True)
    ]
    rows, columns = len(starts[0]), list(itertools.product(*(range(len(axis)) for axis in starts[1:])))
    total = rows * len(columns)
    channels = settings.data.label.channels
    sums = np.zeros((patch[0], *padded[1:], channels), dtype=np.float32)
    weights = np.zeros((patch[0], *padded[1:]), dtype=np.float32)

    for row, first in enumerate(starts[0]):
        waiting: list[tuple[tuple[slice, ...], np.ndarray, np.ndarray, np.ndarray]] = []
        for number, column in enumerate(columns):
            index = (row, *column)
            start = [axis[k] for axis, k in zip(starts, index, strict=True)]
            fusing = outer([profile[k] for profile, k in zip(profiles, index, strict=True)])
            values, mask = _tile(read, start, patch, shape, settings.data)
            if float((mask * fusing).sum(dtype=np.float64)) >= rule.minimum_weight:
                waiting.append(((slice(None), *window(start[1:], patch[1:])), values, mask, fusing))
            if waiting and (len(waiting) == batch_size or number + 1 == len(columns)):
                tiles = _predict_tiles(predict, waiting, settings.data.label, rule, slice_wise)
                for (place, _, _, fusing), tile in zip(waiting, tiles, strict=True):
                    sums[place] += np.moveaxis(tile, 0, -1) * fusing[..., None]
                    weights[place] += fusing
                waiting = []
            if progress is not None:
                progress(row * len(columns) + number + 1, total)
        following = starts[0][row + 1] if row + 1 < rows else padded[0]
        done = min(following, shape[0]) - first
        if done > 0:
            visible = (slice(done), *(slice(size) for size in shape[1:]))
            yield first, _fused(sums[visible], weights[visible], settings.data.label, rule)
        shift = following - first
        for buffer in (sums, weights):
            buffer[: patch[0] - shift] = buffer[shift:].copy()
            buffer[patch[0] - shift :] = 0


def translate_volume(
    predict: Predict,
    image: np.ndarray,
    mask: np.ndarray | None,
    description: Description,
    rule: Rule = VOLUME,
    batch_size: int = 4,
    progress: Progress | None = None,
    out: np.ndarray | None = None,
    convert: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Translates an image in memory or behind a memory map.

    Args:
        image: raw values, (*S), or (*S, C) where the model's input has several channels; any numeric type.
        mask: (*S), valid where above 0; None: everywhere.
        out: (*S) or (*S, C'), written instead of a new array.
        convert: applied to slabs before they are written, e.g. `to_8_bit`.

    Returns:
        (*S), or (*S, C') where the label has several channels, float32; the values of the label, 0 (`VOLUME`) or
        its mean colour (`PICTURE`) where the input is invalid.
    """
    data = description.settings.data
    several = data.input.channels > 1
    shape = image.shape[:-1] if several else image.shape
    if mask is not None and mask.shape != shape:
        raise ValueError(f"mask of shape {mask.shape} does not fit an image of shape {shape}")
    channels = data.label.channels
    if out is None:
        out = np.empty((*shape, channels) if channels > 1 else shape, dtype=np.float32)

    def read(place: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray | None]:
        return image[place], None if mask is None else mask[place]

    for first, slab in translate_slabs(predict, read, shape, description, rule, batch_size, progress):
        values = slab if convert is None else convert(slab)
        out[first : first + len(slab)] = values if channels > 1 else values[..., 0]
    return out


def _tiling(settings: Settings, n_axes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Patch size and stride for an image of so many axes; a 2D model sees a volume as slices."""
    if n_axes < settings.data.n_dims:
        raise ValueError(f"an image of {n_axes} axes does not fit a model of {settings.data.n_dims}")
    extra = (1,) * (n_axes - settings.data.n_dims)
    patch = tuple(settings.patch_size)
    return patch + extra, tuple(settings.inference_stride or patch) + extra


def _tile(
    read: Read, start: Sequence[int], patch: Sequence[int], shape: Sequence[int], data: Data
) -> tuple[np.ndarray, np.ndarray]:
    """A normalised, masked tile (C, *P) and its mask (*P), float32; invalid outside the image."""
    place = tuple(slice(a, min(a + b, c)) for a, b, c in zip(start, patch, shape, strict=True))
    raw, mask = read(place)
    raw = np.asarray(raw)
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        finite = np.asarray(np.isfinite(raw).reshape(*raw.shape[: len(shape)], -1).all(axis=-1))
        mask = finite if mask is None else np.asarray(finite & (np.asarray(mask) > 0))
        raw = np.nan_to_num(raw, posinf=0.0, neginf=0.0)
    valid = valid_mask(mask, raw, len(shape), data.invalid_at_or_below)
    weights = np.ones(raw.shape[: len(shape)], np.float32) if valid is None else valid.astype(np.float32)
    intensity = data.input
    values = channels_first(normalise(raw, intensity.mean, intensity.std, intensity.clip), len(shape)) * weights
    missing = [(0, size - found) for size, found in zip(patch, weights.shape, strict=True)]
    if any(count for _, count in missing):
        values, weights = np.pad(values, [(0, 0), *missing]), np.pad(weights, missing)
    return values, weights


def _predict_tiles(
    predict: Predict, waiting: Sequence[Sequence[Any]], label: Intensity, rule: Rule, slice_wise: bool
) -> np.ndarray:
    """The tiles' contributions before weighting, (B, C', *P): masked, and de-normalised for volumes."""
    values = torch.from_numpy(np.stack([tile[1] for tile in waiting]))
    mask = torch.from_numpy(np.stack([tile[2] for tile in waiting])[:, None])
    with torch.no_grad():
        tiles = predict(values.squeeze(-1), mask.squeeze(-1)).unsqueeze(-1) if slice_wise else predict(values, mask)
    found = tiles.detach().to("cpu", torch.float32).numpy()
    if rule.colours:
        return found * mask.numpy()
    return denormalise(found, label.mean, label.std, mask.numpy())


def _fused(sums: np.ndarray, weights: np.ndarray, label: Intensity, rule: Rule) -> np.ndarray:
    """Weighted means (n, *S[1:], C'), 0 (volumes) or the mean colour where nothing was predicted."""
    covered = weights[..., None] > 0
    result = np.divide(sums, weights[..., None], out=np.zeros_like(sums), where=covered)
    if rule.colours:
        result = result * np.asarray(label.std, np.float32) + np.asarray(label.mean, np.float32)
    return result


def to_8_bit(values: np.ndarray) -> np.ndarray:
    """Clipped to 0..255 and rounded half to even."""
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)
