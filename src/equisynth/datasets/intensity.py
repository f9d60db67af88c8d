"""From the values of an image to what networks see, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def normalise(
    values: np.ndarray, mean: Sequence[float], std: Sequence[float], clip: Sequence[float] | None = None
) -> np.ndarray:
    """Clips (raw units), then subtracts the mean and divides by the standard deviation of each channel.

    Args:
        values: (*S) for one channel or (*S, C), any numeric type.
        mean: per channel, raw units.
        std: per channel, raw units.
        clip: lowest and highest value kept, or None.

    Returns:
        float32 of the same shape.
    """
    result = np.asarray(values, dtype=np.float32)
    if clip is not None:
        result = np.clip(result, np.float32(clip[0]), np.float32(clip[1]))
    normalised: np.ndarray = (result - _per_channel(mean)) / _per_channel(std)
    return normalised


def denormalise(
    values: np.ndarray, mean: Sequence[float], std: Sequence[float], mask: np.ndarray | None = None
) -> np.ndarray:
    """The inverse (without the clipping) for channel-first batches (B, C, *S), optionally times a mask (B, 1, *S)."""
    shape = (-1,) + (1,) * (values.ndim - 2)
    result = values * np.asarray(std, np.float32).reshape(shape) + np.asarray(mean, np.float32).reshape(shape)
    return result if mask is None else result * mask


def valid_mask(
    mask: np.ndarray | None, values: np.ndarray | None, n_dims: int, invalid_at_or_below: float | None
) -> np.ndarray | None:
    """Where a patch is valid, (*P) bool, or None for everywhere.

    Args:
        mask: (*P), valid where above 0; None: everywhere.
        values: raw values (*P) or (*P, C); only looked at where ``invalid_at_or_below`` is given.
        n_dims: number of spatial axes.
        invalid_at_or_below: a pixel none of whose channels exceeds this is invalid.
    """
    valid = None if mask is None else np.asarray(mask) > 0
    if invalid_at_or_below is not None and values is not None:
        above = np.asarray(np.asarray(values) > invalid_at_or_below)
        above = np.asarray(above.any(axis=-1)) if above.ndim > n_dims else above
        valid = above if valid is None else valid & above
    return valid


def channels_first(values: np.ndarray, n_dims: int) -> np.ndarray:
    """(*S) or (*S, C) -> (C, *S), a view."""
    return values[None] if values.ndim == n_dims else np.moveaxis(values, -1, 0)


def _per_channel(values: Sequence[float]) -> np.ndarray:
    """() for one channel, so that (*S) broadcasts, else (C,)."""
    array = np.asarray(values, dtype=np.float32)
    return array[0] if array.size == 1 else array
