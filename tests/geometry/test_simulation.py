"""Properties of simulated deformations, splines and interior rectangles."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from scipy.ndimage import gaussian_filter

from equisynth.geometry import simulated_fields, splines, warping
from equisynth.geometry.random_deformations import GaussianBump, gaussian_deformation, noise_deformation
from equisynth.geometry.random_transformations import rigid
from equisynth.geometry.rectangle import largest_interior_rectangle
from equisynth.geometry.transforms import Affine, Field

SHAPES = [(31, 26), (18, 21, 15)]


def noise(shape: tuple[int, ...], seed: int = 0, **changes: object) -> tuple[np.ndarray, np.ndarray]:
    n = len(shape)
    settings: dict[str, object] = {
        "noise_mean": [0.3] * n,
        "noise_std": [8.0] * n,
        "smoothing_std": [3.0] * n,
        "rotation": [(0.02, 0.1)] * (1 if n == 2 else 3),
        "translation": [(0.2, 0.6)] * n,
    }
    voxel_size = (0.9, 1.1, 1.3)[:n]
    return noise_deformation(shape, voxel_size, **{**settings, **changes}, random_state=RandomState(seed))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_fields_agree_with_tensors(shape: tuple[int, ...]) -> None:
    random_state = RandomState(0)
    n = len(shape)
    first, then = (gaussian_filter(random_state.randn(n, *shape), [0, *[2] * n]).astype(np.float32) * 9 for _ in "ab")
    composed = warping.compose(torch.from_numpy(first)[None], torch.from_numpy(then)[None])[0].numpy()
    for threads in (1, 3):
        np.testing.assert_allclose(simulated_fields.compose(first, then, threads=threads), composed, atol=1e-4)
    integrated = warping.integrate_both(torch.from_numpy(first)[None])
    for sign, expected in zip((1, -1), integrated, strict=True):
        np.testing.assert_allclose(simulated_fields.integrate(first, sign=sign), expected[0].numpy(), atol=1e-4)
    matrix = rigid([0.3] * (1 if n == 2 else 3), [0.5] * n, shape, [1] * n)
    transformation = Affine(torch.from_numpy(matrix)[None].float())
    field = transformation.as_displacement(shape)[0].numpy()
    np.testing.assert_allclose(simulated_fields.affine_field(matrix, shape), field, atol=1e-4)
    after = transformation.then(Field(torch.from_numpy(first)[None])).displacement[0].numpy()
    np.testing.assert_allclose(simulated_fields.affine_after(matrix, first), after, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_deformation_and_its_inverse_cancel(shape: tuple[int, ...]) -> None:
    forward, inverse = (torch.from_numpy(field)[None] for field in noise(shape))
    assert forward.dtype == torch.float32
    assert forward.abs().max() > 1
    for one, other in ((forward, inverse), (inverse, forward)):
        left_over = warping.compose(one, other) * warping.field_of_view(warping.displaced(other), shape)
        inner = left_over[(..., *(slice(4, -4),) * len(shape))]
        assert inner.abs().mean() < 0.03 * forward.abs().mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_coarse_noise_is_smoothed_in_world_units(shape: tuple[int, ...]) -> None:
    """The factor changes where noise is drawn, not how far the smoothing reaches: neighbours correlate alike."""
    n = len(shape)
    still = {"rotation": [(0, 0)] * (1 if n == 2 else 3), "translation": [(0, 0)] * n, "noise_mean": [0] * n}

    def roughness(factor: int) -> float:
        """How much neighbours differ, relative to the field itself, over several draws."""
        fields = [
            noise(shape, seed, noise_std=[1e-2] * n, smoothing_std=[4.0] * n, downsampling=[factor] * n, **still)[0]
            for seed in range(12)
        ]
        steps = [field - field.mean(tuple(range(1, n + 1)), keepdims=True) for field in fields]
        return float(np.mean([np.diff(s, axis=1).std() for s in steps]) / np.mean([s.std() for s in steps]))

    fine, coarse = roughness(1), roughness(2)
    assert coarse == pytest.approx(fine, rel=0.25)


def test_noise_deformation_is_repeatable_and_ignores_threads() -> None:
    one, other, third = noise((14, 12, 13)), noise((14, 12, 13), threads=2), noise((14, 12, 13), seed=1)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    assert abs(one[0] - third[0]).max() > 0.1


def test_noise_deformation_needs_little_memory() -> None:
    shape = (64, 64, 40)
    noise(shape)  # Compiles.
    field = 3 * np.prod(shape) * 4
    tracemalloc.start()
    noise(shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * field  # Both results are two of these.


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_deformation_and_its_inverse_cancel(shape: tuple[int, ...]) -> None:
    n = len(shape)
    bump = GaussianBump((0.2,) * n, (2.0,) * n, (0.5,) * n, (0.05,) * (1 if n == 2 else 3), (0.4,) * n)
    voxel_size = (0.9, 1.1, 1.3)[:n]
    forward, inverse = (
        torch.from_numpy(gaussian_deformation(bump, shape, voxel_size, inverse=which))[None] for which in (False, True)
    )
    left_over = warping.compose(forward, inverse)[(..., *(slice(4, -4),) * n)]
    assert left_over.abs().max() < 0.1 * forward.abs().max()


def test_gaussian_bump_without_magnitude_is_rigid() -> None:
    shape, voxel_size = (12, 15), (1.0, 0.5)
    bump = GaussianBump((0.2, 0.2), (0.0, 0.0), (0.5, 0.5), (0.2,), (1.0, -0.5))
    matrix = torch.from_numpy(rigid(bump.rotation, bump.translation, shape, voxel_size))[None]
    expected = Affine.from_world(matrix, voxel_size).as_displacement(shape)[0].numpy()
    np.testing.assert_allclose(gaussian_deformation(bump, shape, voxel_size), expected, atol=1e-5)


def test_splines_keep_constants_and_pass_through_the_values() -> None:
    np.testing.assert_allclose(splines.upsample(np.full((4, 5), 2.5), (3, 2)), 2.5)
    volume = RandomState(0).rand(2, 6, 7)
    fine = splines.upsample(volume, (3, 5))
    assert fine.shape == (2, 18, 35)
    np.testing.assert_allclose(fine[:, 1::3, 2::5], volume, atol=1e-12)  # Odd factors have a sample at each voxel.
    assert splines.upsample(volume, (1, 1)) is volume


def corners(box: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lower and upper (exclusive) corner of the ones, which must fill a box."""
    inside = np.argwhere(box)
    lower, upper = inside.min(0), inside.max(0) + 1
    assert box.dtype == np.uint8
    assert box.sum() == np.prod(upper - lower)
    return tuple(lower.tolist()), tuple(upper.tolist())


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("shape", [(9,), (24, 19), (10, 9, 11)])
def test_rectangle_is_valid_and_cannot_be_extended(shape: tuple[int, ...], step: int) -> None:
    random_state = RandomState(0)
    for _ in range(20):
        mask = (random_state.rand(*shape) > 0.1).astype(np.uint8)
        before = mask.copy()
        box = largest_interior_rectangle(mask, step)
        np.testing.assert_array_equal(mask, before)
        lower, upper = corners(box)
        assert mask[box > 0].all()
        for axis, (low, high) in enumerate(zip(lower, upper, strict=True)):
            sides = [slice(a, b) for a, b in zip(lower, upper, strict=True)]
            for side in (low - 1, high):
                if 0 <= side < shape[axis]:
                    assert not mask[tuple(s if a != axis else side for a, s in enumerate(sides))].all()


def test_rectangle_steps_back_along_one_axis_to_get_further_along_another() -> None:
    """From a long low box to a tall narrow one: only for a corner that looks six voxels far."""
    mask = np.zeros((20, 10), np.uint8)
    mask[10:13] = 1
    mask[:10, 6:] = 1
    assert corners(largest_interior_rectangle(mask, 5)) == ((10, 0), (13, 10))
    assert corners(largest_interior_rectangle(mask, 6)) == ((0, 6), (13, 10))


@pytest.mark.parametrize("shape", [(41, 33), (23, 25, 21)])
def test_rectangle_inside_an_ellipsoid(shape: tuple[int, ...]) -> None:
    """The largest box about the middle has one of the ellipsoid's voxels at its corner."""
    grid = np.stack(np.meshgrid(*(np.arange(size) - size // 2 for size in shape), indexing="ij"), -1)  # (*S, n)
    mask = ((grid / (np.array(shape) // 2)) ** 2).sum(-1) <= 1
    largest = (2 * np.abs(grid[mask]) + 1).prod(1).max()
    assert largest_interior_rectangle(mask, 4).sum() == largest


@pytest.mark.parametrize("shape", [(9, 7), (9, 8, 5)])
@pytest.mark.parametrize(("top", "bottom", "expected"), [(2, 1, "top"), (1, 2, "bottom"), (1, 1, "top")])
def test_rectangle_starts_at_the_valid_voxel_nearest_to_the_middle(
    shape: tuple[int, ...], top: int, bottom: int, expected: str
) -> None:
    mask = np.zeros(shape, np.uint8)
    mask[:top] = mask[-bottom:] = 1
    wanted = mask.copy()
    wanted[4:] = 0
    np.testing.assert_array_equal(largest_interior_rectangle(mask, 2), wanted if expected == "top" else mask - wanted)


@pytest.mark.parametrize("shape", [(7, 6), (1, 1), (480, 360), (5, 7, 6)])
@pytest.mark.parametrize("step", [1, 4])
def test_rectangle_of_a_whole_and_of_an_empty_mask(shape: tuple[int, ...], step: int) -> None:
    for dtype in (np.uint8, bool, np.float32):
        assert largest_interior_rectangle(np.ones(shape, dtype), step).all()
        empty = largest_interior_rectangle(np.zeros(shape, dtype), step)
        assert empty.shape == shape
        assert not empty.any()


def test_rectangle_refuses_to_stand_still() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        largest_interior_rectangle(np.ones((3, 3), np.uint8), 0)
