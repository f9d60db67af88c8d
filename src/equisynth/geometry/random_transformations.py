"""Random affine transformations of the simulator, as world matrices in double precision.

The order of the draws is part of the data: a seed gives the same transformations everywhere. Angles are counted from
the last axis here (in 3D angle 0 turns axes 0 and 1, angle 1 axes 0 and 2, angle 2 axes 1 and 2), unlike in
``affine.rotation_matrix``; the published settings depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

Matrices = NDArray[np.float64]
Range = Sequence[float]

PLANES = {2: ((0, 1),), 3: ((0, 1), (0, 2), (1, 2))}  # Axes that each rotation angle turns.


def random_affine(
    batch: int,
    shape: Sequence[int],
    voxel_size: Sequence[float],
    *,
    rotation_degrees: Sequence[Range],
    log_scale_std: Sequence[float],
    log_shear_std: Sequence[float],
    translation: Sequence[Range],
    flips: bool = False,
    right_angle_rotations: bool = False,
    random_state: RandomState,
) -> Matrices:
    """Translation · rotation · right angles · flips · scale and shear, all but the translation about the image centre.

    Args:
        batch: Number of matrices.
        shape: Of the image or patch, n axes.
        voxel_size: World units per voxel.
        rotation_degrees: (lower, upper) per angle, 1 in 2D and 3 in 3D.
        log_scale_std: Standard deviation of the logarithm of the scale, per axis.
        log_shear_std: The same for shears, per pair of axes.
        translation: (lower, upper) per axis, world units.
        flips: Mirror each axis with probability one half.
        right_angle_rotations: Turn each pair of axes by 0, 90, 180 or 270 degrees.
        random_state: Advanced by the draws.

    Returns:
        (batch, n+1, n+1) float64, acting on index times voxel size.
    """
    n = len(shape)
    planes = PLANES[n]
    log_scales = random_state.randn(batch, n) * np.asarray(log_scale_std)
    log_shears = random_state.randn(batch, len(planes)) * np.asarray(log_shear_std)
    signs = np.ones((batch, n))
    if flips:
        signs = np.stack([2 * random_state.randint(2, size=n) - 1 for _ in range(batch)])
    quarters = np.zeros((batch, len(planes)), int)
    if right_angle_rotations:
        quarters = random_state.randint(0, 4, (batch, len(planes)))
    angles = np.deg2rad(_uniform(random_state, batch, rotation_degrees))
    shifts = _uniform(random_state, batch, translation)

    linear = _rotations(np.cos(angles), np.sin(angles))
    linear = linear @ _rotations(np.array([1, 0, -1, 0])[quarters], np.array([0, 1, 0, -1])[quarters])  # Exact.
    linear = linear * signs[:, None, :]
    linear = linear @ _scale_and_shear(log_scales, log_shears)
    return _about_centre(linear, shifts, shape, voxel_size)


def random_rigid(
    shape: Sequence[int],
    voxel_size: Sequence[float],
    *,
    rotation: Sequence[Range],
    translation: Sequence[Range],
    random_state: RandomState,
) -> Matrices:
    """A rotation about the image centre, then a translation, (n+1, n+1) float64; the translation is drawn first.

    Args:
        rotation: (lower, upper) in radians per angle.
        translation: (lower, upper) in world units per axis.
    """
    shift = _uniform(random_state, 1, translation)[0]
    return rigid(_uniform(random_state, 1, rotation)[0], shift, shape, voxel_size)


def rigid(
    angles: Sequence[float] | Matrices,
    translation: Sequence[float] | Matrices,
    shape: Sequence[int],
    voxel_size: Sequence[float],
) -> Matrices:
    """The simulator's rigid matrix (n+1, n+1): angles in radians about the image centre, translation in world units."""
    turned = np.asarray(angles, float)[None]
    linear = _rotations(np.cos(turned), np.sin(turned))
    matrix: Matrices = _about_centre(linear, np.asarray(translation, float)[None], shape, voxel_size)[0]
    return matrix


def _uniform(random_state: RandomState, batch: int, ranges: Sequence[Range]) -> Matrices:
    """(batch, k) numbers within k ranges."""
    lower, upper = np.asarray(ranges, float).T
    drawn: Matrices = random_state.rand(batch, len(lower)) * (upper - lower) + lower
    return drawn


def _rotations(cos: Matrices, sin: Matrices) -> Matrices:
    """(B, k) cosines and sines as rotations (B, n, n); the last plane turns first."""
    n = 2 if cos.shape[1] == 1 else 3
    product: Matrices = np.tile(np.eye(n), (len(cos), 1, 1))
    for k, (i, j) in enumerate(PLANES[n]):
        turn = np.tile(np.eye(n), (len(cos), 1, 1))
        turn[:, i, i] = turn[:, j, j] = cos[:, k]
        turn[:, i, j], turn[:, j, i] = -sin[:, k], sin[:, k]
        product = product @ turn
    return product


def _scale_and_shear(log_scales: Matrices, log_shears: Matrices) -> Matrices:
    """Matrix exponentials (B, n, n) of the symmetric matrices with these (off-)diagonals."""
    n = log_scales.shape[1]
    logarithm = log_scales[:, :, None] * np.eye(n)
    for k, (i, j) in enumerate(PLANES[n]):
        logarithm[:, i, j] = logarithm[:, j, i] = log_shears[:, k]
    values, vectors = np.linalg.eigh(logarithm)
    exponential: Matrices = (vectors * np.exp(values)[:, None, :]) @ vectors.transpose(0, 2, 1)
    return exponential


def _about_centre(linear: Matrices, shifts: Matrices, shape: Sequence[int], voxel_size: Sequence[float]) -> Matrices:
    """Homogeneous matrices (B, n+1, n+1) of linear maps (B, n, n) about the image centre and shifts (B, n)."""
    n = len(shape)
    centre = (np.asarray(shape) - 1) / 2 * np.asarray(voxel_size)
    matrices = np.tile(np.eye(n + 1), (len(linear), 1, 1))
    matrices[:, :n, :n] = linear
    matrices[:, :n, n] = centre - linear @ centre + shifts
    return matrices
