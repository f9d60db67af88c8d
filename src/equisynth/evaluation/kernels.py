"""Loops of the measures over voxels, compiled: they read the images where they lie and hold a few rows beside them."""

from __future__ import annotations

import numpy as np
from numba import njit

WINDOW = 7
"""Side of SSIM's uniform window in voxels."""


@njit(cache=True)
def extent(values: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value inside the mask; (inf, -inf) where it is empty, NaN where one is not finite."""
    lower, upper = np.inf, -np.inf
    for index in range(values.size):
        if inside[index]:
            value = float(values[index])
            if not np.isfinite(value):
                return np.nan, np.nan
            lower = min(lower, value)
            upper = max(upper, value)
    return lower, upper


@njit(cache=True)
def count_pairs(
    a: np.ndarray,
    b: np.ndarray,
    inside: np.ndarray,
    edges_a: np.ndarray,
    edges_b: np.ndarray,
    histogram: np.ndarray,
) -> None:
    """Adds value pairs to a joint histogram; a value on the last edge belongs to the last bin."""
    bins = histogram.shape[0]
    scale_a = bins / (edges_a[bins] - edges_a[0])
    scale_b = bins / (edges_b[bins] - edges_b[0])
    for index in range(a.size):
        if not inside[index]:
            continue
        x, y = a[index], b[index]
        i = min(max(int((x - edges_a[0]) * scale_a), 0), bins - 1)
        while i > 0 and x < edges_a[i]:
            i -= 1
        while i < bins - 1 and x >= edges_a[i + 1]:
            i += 1
        j = min(max(int((y - edges_b[0]) * scale_b), 0), bins - 1)
        while j > 0 and y < edges_b[j]:
            j -= 1
        while j < bins - 1 and y >= edges_b[j + 1]:
            j += 1
        histogram[i, j] += 1


@njit(cache=True, error_model="numpy")
def ssim_sums(
    a: np.ndarray,
    b: np.ndarray,
    inside: np.ndarray,
    weights: np.ndarray,
    window: np.ndarray,
    c1: float,
    c2: float,
) -> tuple[float, float, bool]:
    """Weighted sum of SSIM and of weights over all whole windows inside the content mask; whether all inside is finite.

    Box sums of a, b, a² + b², ab and the mask run along the second axis, then the first, so that what is summed of a
    slab stays in the processor's cache; along the third each window is added anew, for several voxels at once.
    """
    n0, n1, n2 = a.shape
    w0, w1, w2 = window
    m2 = n2 - w2 + 1
    if n0 < w0 or n1 < w1 or m2 < 1:
        return 0.0, 0.0, True
    count = float(w0 * w1 * w2)
    share, unbiased = 1 / count, count / (count - 1)
    lines = np.zeros((n0, 5, n2))  # sums over the last rows of each plane
    rows = np.zeros((5, n2))  # of these, over the last planes
    sums = np.zeros((5, m2))
    similarity = np.zeros(m2)
    checks = np.zeros(n2)
    nothing, nowhere, nothings = np.zeros(n2, a.dtype), np.zeros(n2, inside.dtype), np.zeros((5, n2))
    total = 0.0
    mass = 0.0
    for row in range(n1):
        for part in range(5):
            for x in range(n2):
                rows[part, x] = 0
        for plane in range(n0):
            line = lines[plane]
            new_a, new_b, new_inside = a[plane, row], b[plane, row], inside[plane, row]
            if row < w1:
                _slide(line, checks, new_a, new_b, new_inside, nothing, nothing, nowhere)
            else:
                gone = row - w1
                _slide(line, checks, new_a, new_b, new_inside, a[plane, gone], b[plane, gone], inside[plane, gone])
            if row < w1 - 1:
                continue
            if plane < w0:
                _add(rows, line, nothings)
            else:
                _add(rows, line, lines[plane - w0])
            if plane < w0 - 1:
                continue
            _add_windows(rows, w2, sums)
            for z in range(m2):
                mean_a = sums[0, z] * share
                mean_b = sums[1, z] * share
                squares = mean_a * mean_a + mean_b * mean_b
                variances = (sums[2, z] * share - squares) * unbiased
                covariance = (sums[3, z] * share - mean_a * mean_b) * unbiased
                similarity[z] = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
            weight_row = weights[plane - w0 + 1 + w0 // 2, row - w1 + 1 + w1 // 2]
            for z in range(m2):
                weight = weight_row[z + w2 // 2]
                if weight != 0 and sums[4, z] > count - 0.5:
                    total += weight * similarity[z]
                    mass += weight
    return total, mass, checks.sum() == 0


@njit(cache=True, inline="always")
def _slide(
    sums: np.ndarray,
    checks: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    inside: np.ndarray,
    gone_a: np.ndarray,
    gone_b: np.ndarray,
    was_inside: np.ndarray,
) -> None:
    """Adds a row of a, b, a² + b², ab and the mask to sums (5, X), and takes another away.

    What is outside counts as zero: a NaN there would stay in the sums for ever. One inside stays in the checks (X).
    """
    for x in range(a.size):
        p = float(a[x]) if inside[x] else 0.0
        q = float(b[x]) if inside[x] else 0.0
        r = float(gone_a[x]) if was_inside[x] else 0.0
        s = float(gone_b[x]) if was_inside[x] else 0.0
        sums[0, x] += p - r
        sums[1, x] += q - s
        sums[2, x] += (p * p + q * q) - (r * r + s * s)
        sums[3, x] += p * q - r * s
        sums[4, x] += 1.0 * inside[x] - 1.0 * was_inside[x]
        checks[x] += (p - p) + (q - q)


@njit(cache=True, inline="always")
def _add(sums: np.ndarray, new: np.ndarray, gone: np.ndarray) -> None:
    """Adds one array to sums and takes another away, all (5, X)."""
    for part in range(5):
        for x in range(sums.shape[1]):
            sums[part, x] += new[part, x] - gone[part, x]


@njit(cache=True, inline="always")
def _add_windows(rows: np.ndarray, width: int, sums: np.ndarray) -> None:
    """Sums of ``width`` neighbours, `WINDOW` or 1: (5, X) -> (5, X - width + 1)."""
    for part in range(5):
        for x in range(sums.shape[1]):
            value = rows[part, x]
            if width == WINDOW:
                for step in range(1, WINDOW):
                    value += rows[part, x + step]
            sums[part, x] = value
