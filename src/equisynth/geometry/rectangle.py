"""The largest axis-aligned box inside a mask, by a local search that grows from the middle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equisynth.geometry.compiled import compiled

Integers = NDArray[np.int64]
Counts = NDArray[np.signedinteger]


def largest_interior_rectangle(mask: NDArray[np.generic], step: int) -> NDArray[np.uint8]:
    """A large axis-aligned box of valid voxels, 1 inside and 0 outside.

    The box starts as the middle voxel (index ``size // 2`` of each axis). In turn its lower and its upper corner move
    to where the box becomes largest, by up to ``step`` voxels along each axis at once, inwards or outwards (stepping
    back along one axis may let a corner get further along another), until neither move makes the box larger. Of equally
    large boxes the first counts, in C order of the offsets. Hence no side of the result can be moved outwards; it is
    a local optimum, not always the largest box of all.

    Where the middle is not valid, the valid voxel nearest to it starts (the first of equally near ones in C order); a
    mask without valid voxels gives an empty box.

    Args:
        mask: (*S), valid where not zero; any number of axes.
        step: How far a corner looks along each axis, in voxels, at least 1.

    Raises:
        ValueError: If ``step`` is less than 1.
    """
    if step < 1:
        raise ValueError(f"step must be at least 1, not {step}")
    valid = mask != 0
    box = np.zeros(mask.shape, np.uint8)
    start = _start(valid)
    if start is not None:
        table, strides = _summed_area_table(valid)
        lower, upper = _grow(table, strides, np.array(mask.shape), start, step)
        box[tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))] = 1
    return box


def _start(valid: NDArray[np.bool_]) -> Integers | None:
    """Index of the valid voxel nearest to the middle."""
    middle = np.array(valid.shape) // 2
    if valid.size and valid[tuple(middle)]:
        return middle
    indices = np.argwhere(valid)
    if not len(indices):
        return None
    nearest: Integers = indices[((indices - middle) ** 2).sum(1).argmin()]
    return nearest


def _summed_area_table(valid: NDArray[np.bool_]) -> tuple[Counts, Integers]:
    """Number of valid voxels below each grid corner, flat, (prod(S + 1),), and its strides in elements, (n,)."""
    table: Counts = np.zeros([size + 1 for size in valid.shape], np.int32 if valid.size < 2**31 else np.int64)
    rows, sums = (valid[None], np.stack([table, table])) if valid.ndim == 1 else (valid, table)
    for index in np.ndindex(rows.shape[:-2]):
        _add_up(rows[index], sums[tuple(place + 1 for place in index)])
    for axis in range(valid.ndim - 2):
        np.cumsum(sums, axis, out=sums)
    return (sums[1] if valid.ndim == 1 else sums).reshape(-1), np.array(table.strides) // table.itemsize


@compiled
def _add_up(valid: NDArray[np.bool_], table: Counts) -> None:
    """The table (H + 1, W + 1) of one plane (H, W), in one pass."""
    for row in range(valid.shape[0]):
        total = 0
        for column in range(valid.shape[1]):
            total += valid[row, column]
            table[row + 1, column + 1] = table[row, column + 1] + total


@compiled
def _grow(table: Counts, strides: Integers, shape: Integers, start: Integers, step: int) -> tuple[Integers, Integers]:
    """Lower corner (n,) and upper corner (n,), exclusive, of the box that the search ends with."""
    n_dims = len(shape)
    lower, upper = start.copy(), start + 1
    largest = 1
    stable = False
    while not stable:
        stable = True
        for corner in (lower, upper):
            origin, best = corner.copy(), corner.copy()
            corner -= step
            for _ in range((2 * step + 1) ** n_dims):
                volume = 1
                for axis in range(n_dims):
                    inside = 0 <= lower[axis] < upper[axis] <= shape[axis]
                    volume *= upper[axis] - lower[axis] if inside else 0
                if volume > largest and _count(table, strides, lower, upper) == volume:
                    largest, stable = volume, False
                    best[:] = corner
                axis = n_dims - 1  # the next offset, in C order
                corner[axis] += 1
                while axis > 0 and corner[axis] > origin[axis] + step:
                    corner[axis] = origin[axis] - step
                    axis -= 1
                    corner[axis] += 1
            corner[:] = best
    return lower, upper


@compiled
def _count(table: Counts, strides: Integers, lower: Integers, upper: Integers) -> int:
    """Number of valid voxels in a box: the signed sum of the table at its 2^n corners."""
    total = 0
    for corner in range(2 ** len(strides)):
        position, sign = 0, 1
        for axis in range(len(strides)):
            if corner >> axis & 1:
                position += lower[axis] * strides[axis]
                sign = -sign
            else:
                position += upper[axis] * strides[axis]
        total += sign * table[position]
    return total
