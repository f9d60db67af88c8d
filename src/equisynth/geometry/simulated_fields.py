"""Composing and integrating displacement fields of whole volumes without a graph: numpy, compiled, little memory.

Fields are (n, *S) float32 in voxels, n = 2 or 3. The same mathematics as ``warping``, whose tensors would take several
times the memory and time at the size of a volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from equisynth.geometry.compiled import compiled

DisplacementField = NDArray[np.float32]
Matrix = NDArray[np.float64]


def compose(
    first: DisplacementField, then: DisplacementField, out: DisplacementField | None = None, threads: int = 1
) -> DisplacementField:
    """``then + first(p + then(p))``, linear, border padding, as ``warping.compose``; ``out`` may be ``then``."""
    first, then = np.ascontiguousarray(first), np.ascontiguousarray(then)
    out = np.empty_like(then) if out is None else out
    rows = np.linspace(0, then.shape[1], threads + 1).astype(int)
    kernel = _compose_2d if len(then) == 2 else _compose_3d
    if threads == 1:
        kernel(first, then, out, 0, then.shape[1])
        return out
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda start, stop: kernel(first, then, out, start, stop), rows[:-1], rows[1:]):
            pass
    return out


def integrate(
    velocity: DisplacementField, squarings: int = 7, sign: int = 1, threads: int = 1, reuse: bool = False
) -> DisplacementField:
    """``exp(sign * velocity)`` by scaling and squaring; with ``reuse`` in the memory of the velocity, which is lost."""
    current = velocity if reuse else velocity.copy()
    current *= sign / 2**squarings
    other = np.empty_like(current)
    for _ in range(squarings):
        current, other = compose(current, current, other, threads), current
    return current


def affine_field(matrix: Matrix, shape: Sequence[int]) -> DisplacementField:
    """Displacement field (n, *shape) of a voxel matrix (n+1, n+1)."""
    field = np.zeros((len(shape), *shape), np.float32)
    return _add_affine(field, matrix)


def affine_after(matrix: Matrix, field: DisplacementField) -> DisplacementField:
    """``A (p + u(p)) - p`` of a voxel matrix (n+1, n+1)."""
    n = len(field)
    moved = (matrix[:n, :n].astype(np.float32) @ field.reshape(n, -1)).reshape(field.shape)
    return _add_affine(moved, matrix)


def _add_affine(field: DisplacementField, matrix: Matrix) -> DisplacementField:
    """Adds A p - p in place."""
    n = len(field)
    change = matrix - np.eye(n + 1)
    for component, row in zip(field, change, strict=False):
        for axis, size in enumerate(component.shape):
            shift = row[axis] * np.arange(size) + (row[n] if axis == 0 else 0)
            component += shift.astype(np.float32).reshape(-1, *(1,) * (n - 1 - axis))
    return field


# Unsigned offsets spare the compiled loops the test for negative indices, which would take half of their time.


@compiled
def _compose_3d(
    first: DisplacementField, then: DisplacementField, out: DisplacementField, start: int, stop: int
) -> None:
    """Slices start to stop of volumes (3, D, H, W)."""
    _, depth, height, width = first.shape
    flat = first.reshape(3, -1)
    zero, last_x, last_y, last_z = np.float32(0), np.float32(depth - 1), np.float32(height - 1), np.float32(width - 1)
    for i in range(start, stop):
        for j in range(height):
            for k in range(width):
                x = min(max(np.float32(i) + then[0, i, j, k], zero), last_x)
                y = min(max(np.float32(j) + then[1, i, j, k], zero), last_y)
                z = min(max(np.float32(k) + then[2, i, j, k], zero), last_z)
                x0, y0, z0 = int(x), int(y), int(z)
                corner = np.uint64((x0 * height + y0) * width + z0)
                dx = np.uint64(height * width if x0 < depth - 1 else 0)
                dy = np.uint64(width if y0 < height - 1 else 0)
                dz = np.uint64(1 if z0 < width - 1 else 0)
                x, y, z = x - np.float32(x0), y - np.float32(y0), z - np.float32(z0)
                for c in range(3):
                    f = flat[c]
                    f00 = f[corner] + z * (f[corner + dz] - f[corner])
                    f01 = f[corner + dy] + z * (f[corner + dy + dz] - f[corner + dy])
                    f10 = f[corner + dx] + z * (f[corner + dx + dz] - f[corner + dx])
                    f11 = f[corner + dx + dy] + z * (f[corner + dx + dy + dz] - f[corner + dx + dy])
                    f0 = f00 + y * (f01 - f00)
                    f1 = f10 + y * (f11 - f10)
                    out[c, i, j, k] = then[c, i, j, k] + f0 + x * (f1 - f0)


@compiled
def _compose_2d(
    first: DisplacementField, then: DisplacementField, out: DisplacementField, start: int, stop: int
) -> None:
    """Rows start to stop of pictures (2, H, W)."""
    _, height, width = first.shape
    flat = first.reshape(2, -1)
    zero, last_y, last_z = np.float32(0), np.float32(height - 1), np.float32(width - 1)
    for j in range(start, stop):
        for k in range(width):
            y = min(max(np.float32(j) + then[0, j, k], zero), last_y)
            z = min(max(np.float32(k) + then[1, j, k], zero), last_z)
            y0, z0 = int(y), int(z)
            corner = np.uint64(y0 * width + z0)
            dy = np.uint64(width if y0 < height - 1 else 0)
            dz = np.uint64(1 if z0 < width - 1 else 0)
            y, z = y - np.float32(y0), z - np.float32(z0)
            for c in range(2):
                f = flat[c]
                f0 = f[corner] + z * (f[corner + dz] - f[corner])
                f1 = f[corner + dy] + z * (f[corner + dy + dz] - f[corner + dy])
                out[c, j, k] = then[c, j, k] + f0 + y * (f1 - f0)
