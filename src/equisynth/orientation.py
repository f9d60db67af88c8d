"""Volumes seen as people draw them: axes to the right, the front and up, whatever order they are stored in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def to_ras(values: Array, orientation: str) -> Array:
    """A volume (*S) or (*S, C), seen so that its axes point to the right, the front and up; nothing is read.

    Args:
        orientation: where its axes point, such as ``LPS``.
    """
    axes, flipped = turn(orientation)
    turned = np.transpose(values, (*axes, *range(3, values.ndim)))
    return turned[tuple(slice(None, None, -1) if flip else slice(None) for flip in flipped)]


def sizes_to_ras(sizes: Sequence[float], orientation: str) -> tuple[float, ...]:
    """What there is one of per axis, in the order of the turned axes."""
    return tuple(sizes[axis] for axis in turn(orientation)[0])


def turn(orientation: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Per turned axis: which it was, and whether it is flipped."""
    pairs = ("RL", "AP", "SI")
    axes = tuple(next(axis for axis, code in enumerate(orientation) if code in pair) for pair in pairs)
    return axes, tuple(orientation[axis] in "LPI" for axis in axes)
