"""Random elastic deformations of the simulator: an integrated velocity field, then a rotation and a translation.

Draws come from a numpy RandomState in a fixed order; the results are numpy displacement fields (n, *S) in voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.random import RandomState
from scipy.ndimage import gaussian_filter1d

from equisynth.geometry import splines
from equisynth.geometry.random_transformations import Matrices, Range, random_rigid, rigid
from equisynth.geometry.simulated_fields import DisplacementField, affine_after, affine_field, compose, integrate


@dataclass(frozen=True)
class GaussianBump:
    """A velocity that is a Gaussian bump along each axis, followed by a rigid transformation.

    One number per axis, angles one in 2D and three in 3D. Drawn in the order of the fields.
    """

    width: tuple[float, ...]  # Standard deviation, as a fraction of the side; entry d shapes velocity component d.
    magnitude: tuple[float, ...]  # Velocity at the centre, world units.
    center: tuple[float, ...]  # As a fraction of the side.
    rotation: tuple[float, ...]  # Radians, as in ``random_transformations``.
    translation: tuple[float, ...]  # World units.


def random_gaussian_bump(
    lower: Mapping[str, Sequence[float]], upper: Mapping[str, Sequence[float]], random_state: RandomState
) -> GaussianBump:
    """A bump with every field of ``GaussianBump`` uniform between ``lower[field]`` and ``upper[field]``."""
    drawn = {}
    for field in fields(GaussianBump):
        low, high = np.asarray(lower[field.name], float), np.asarray(upper[field.name], float)
        drawn[field.name] = tuple((random_state.rand(len(low)) * (high - low) + low).tolist())
    return GaussianBump(**drawn)


def gaussian_deformation(
    bump: GaussianBump, shape: Sequence[int], voxel_size: Sequence[float], inverse: bool = False
) -> DisplacementField:
    """The displacement field (n, *shape) of a bump, or that of the inverse transformation; voxels."""
    squares = np.zeros((len(shape), *shape))  # Squared distance from the centre in widths; entry d by width d.
    for axis, size in enumerate(shape):
        distance = np.linspace(0, 1, size) - bump.center[axis]
        for d, width in enumerate(bump.width):
            squares[d] += ((distance / width) ** 2).reshape(-1, *(1,) * (len(shape) - 1 - axis))
    peak = np.divide(bump.magnitude, voxel_size).reshape(-1, *(1,) * len(shape))
    velocity = (peak * np.exp(-0.5 * squares)).astype(np.float32)
    after = _in_voxels(rigid(bump.rotation, bump.translation, shape, voxel_size), voxel_size)
    return _inverse(velocity, after) if inverse else _forward(velocity, after)


def noise_deformation(
    shape: Sequence[int],
    voxel_size: Sequence[float],
    *,
    noise_mean: Sequence[float],
    noise_std: Sequence[float],
    smoothing_std: Sequence[float],
    rotation: Sequence[Range],
    translation: Sequence[Range],
    downsampling: Sequence[int] | None = None,
    random_state: RandomState,
    threads: int = 1,
) -> tuple[DisplacementField, DisplacementField]:
    """A velocity of smoothed white noise, integrated, then a random rigid transformation about the image centre.

    Args:
        shape: Of the image, n axes.
        voxel_size: World units per voxel.
        noise_mean, noise_std: Of the noise before smoothing, world units per axis.
        smoothing_std: Standard deviation of the Gaussian that smooths it, world units per axis.
        rotation: (lower, upper) in radians per angle.
        translation: (lower, upper) in world units per axis.
        downsampling: The noise is drawn on a grid coarser by these factors and upsampled by cubic B-splines.
        random_state: Draws the noise, the translation, the rotation, in this order.
        threads: Of the integration.

    Returns:
        The displacement field and that of the inverse transformation, (n, *shape) in voxels.
    """
    factors = tuple(downsampling or (1,) * len(shape))
    coarse = tuple(-(-size // factor) for size, factor in zip(shape, factors, strict=True))
    # Smoothing is linear: as a matrix per axis it is a matrix product, several times faster than filtering.
    smoothing = [
        gaussian_filter1d(np.eye(size), std / (voxel * factor), axis=0)
        for size, std, voxel, factor in zip(coarse, smoothing_std, voxel_size, factors, strict=True)
    ]
    velocity = np.empty((len(shape), *shape), np.float32)
    for component, mean, std, size in zip(velocity, noise_mean, noise_std, voxel_size, strict=True):
        noise = random_state.randn(*coarse)  # One component at a time: the draws are in double precision.
        noise *= std / size
        noise += mean / size
        smooth = noise.astype(np.float32)
        for axis, matrix in enumerate(smoothing):
            smooth = splines.along(matrix, smooth, axis)
        component[...] = splines.upsample(smooth, factors)[tuple(map(slice, shape))]
    after = random_rigid(shape, voxel_size, rotation=rotation, translation=translation, random_state=random_state)
    after = _in_voxels(after, voxel_size)
    return _forward(velocity, after, threads), _inverse(velocity, after, threads, reuse=True)


def _forward(velocity: DisplacementField, after: Matrices, threads: int = 1) -> DisplacementField:
    """p -> A exp(v)(p)."""
    return affine_after(after, integrate(velocity, threads=threads))


def _inverse(velocity: DisplacementField, after: Matrices, threads: int = 1, reuse: bool = False) -> DisplacementField:
    """p -> exp(-v)(A⁻¹ p)."""
    elastic = integrate(velocity, sign=-1, threads=threads, reuse=reuse)
    before = affine_field(np.linalg.inv(after).astype(np.float64), velocity.shape[1:])
    return compose(elastic, before, out=before, threads=threads)


def _in_voxels(matrix: Matrices, voxel_size: Sequence[float]) -> Matrices:
    """A world matrix acting on voxel indices, D⁻¹ A D."""
    sizes = np.array([*voxel_size, 1.0])
    moved: Matrices = matrix * sizes / sizes[:, None]
    return moved
