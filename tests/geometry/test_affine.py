"""Properties of affine matrices, affine transformations, and their masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.random import RandomState

from equisynth.geometry import affine, warping
from equisynth.geometry.random_transformations import random_affine, random_rigid, rigid
from equisynth.geometry.transforms import Affine, Field, Image

CASES = [((9, 9), (0.9375, 0.9375)), ((8, 8), (1.2, 1.2)), ((7, 7, 7), (0.7, 0.7, 0.7)), ((6, 8, 6), (1.3, 0.4, 1.3))]


def draw(shape: tuple[int, ...], voxel_size: tuple[float, ...], seed: int = 0, **settings: object) -> np.ndarray:
    n = len(shape)
    angles = 1 if n == 2 else 3
    defaults: dict[str, object] = {
        "rotation_degrees": [(0, 0)] * angles,
        "log_scale_std": [0] * n,
        "log_shear_std": [0] * angles,
        "translation": [(0, 0)] * n,
    }
    return random_affine(8, shape, voxel_size, **{**defaults, **settings}, random_state=RandomState(seed))  # type: ignore[arg-type]


def generic(shape: tuple[int, ...], voxel_size: tuple[float, ...], seed: int = 0) -> Affine:
    n = len(shape)
    angles = 1 if n == 2 else 3
    matrices = draw(
        shape,
        voxel_size,
        seed,
        rotation_degrees=[(-40, 40)] * angles,
        log_scale_std=[0.2] * n,
        log_shear_std=[0.1] * angles,
        translation=[(-1, 1)] * n,
        flips=True,
        right_angle_rotations=True,
    )
    return Affine.from_world(torch.from_numpy(matrices), voxel_size)


@pytest.mark.parametrize(("shape", "voxel_size"), CASES)
def test_identity_flips_and_quarter_turns_keep_the_whole_mask(
    shape: tuple[int, ...], voxel_size: tuple[float, ...]
) -> None:
    """Exact hits of the border are inside, whatever the voxel size: nothing is lost at the edges."""
    turnable = len(set(shape)) == 1
    image = Image(torch.rand(8, 1, *shape) + 1, torch.ones(8, 1, *shape))
    seen = set()
    for seed in range(8):
        matrices = draw(shape, voxel_size, seed, flips=True, right_angle_rotations=turnable)
        for dtype in (torch.float32, torch.float64):
            transformation = Affine.from_world(torch.from_numpy(matrices), voxel_size, dtype)
            warped = Image(image.values.to(dtype), image.valid().to(dtype)).warp(transformation)
            assert warped.mask is not None
            assert warped.mask.min() == 1
            assert warped.values.min() > 0.99
            field = Field(transformation.as_displacement(shape))
            assert warping.field_of_view(field.positions(shape), shape).min() == 1
        seen |= {tuple(np.round(matrix, 3).ravel()) for matrix in matrices}
    assert len(seen) >= 2 ** len(shape)


@pytest.mark.parametrize(("shape", "voxel_size"), CASES)
def test_flips_mirror_about_the_image_centre(shape: tuple[int, ...], voxel_size: tuple[float, ...]) -> None:
    """In world units: every voxel lands on a voxel, whatever the voxel size."""
    volume = torch.rand(8, 1, *shape)
    matrices = draw(shape, voxel_size, flips=True)
    warped = Image(volume).warp(Affine.from_world(torch.from_numpy(matrices), voxel_size)).values
    for sample, matrix in enumerate(matrices):
        axes = [axis + 1 for axis in range(len(shape)) if matrix[axis, axis] < 0]
        torch.testing.assert_close(warped[sample], volume[sample].flip(axes), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("shape", "voxel_size"), CASES)
def test_all_but_the_translation_keeps_the_centre(shape: tuple[int, ...], voxel_size: tuple[float, ...]) -> None:
    n = len(shape)
    centre = (np.array(shape) - 1) / 2 * voxel_size
    angles = 1 if n == 2 else 3
    settings = {"log_scale_std": [0.3] * n, "log_shear_std": [0.3] * angles, "rotation_degrees": [(-90, 90)] * angles}
    for matrix in draw(shape, voxel_size, flips=True, right_angle_rotations=True, **settings):
        np.testing.assert_allclose(matrix[:n, :n] @ centre + matrix[:n, n], centre, atol=1e-9)
        assert abs(matrix[:n, :n] - np.eye(n)).max() > 1e-3


@pytest.mark.parametrize("n", [2, 3])
def test_inverse_is_exact(n: int) -> None:
    """In 3D too, where the angles of the inverse rotation are not the negated ones."""
    torch.manual_seed(0)
    angles = torch.rand(5, 1 if n == 2 else 3, dtype=torch.float64) - 0.5
    matrix = affine.rigid_matrix(angles, torch.randn(5, n, dtype=torch.float64), torch.randn(5, n, dtype=torch.float64))
    identity = torch.eye(n + 1, dtype=torch.float64).expand(5, -1, -1)
    torch.testing.assert_close(affine.multiply(matrix, affine.invert(matrix)), identity, atol=1e-12, rtol=0)
    general = torch.randn(5, n, n, dtype=torch.float64) + 3 * torch.eye(n, dtype=torch.float64)
    general = affine.homogeneous(general, torch.randn(5, n, dtype=torch.float64))
    torch.testing.assert_close(affine.invert(general), torch.linalg.inv(general))


def test_rotations_are_proper_and_turn_about_their_axis() -> None:
    for axis in range(3):
        angles = torch.zeros(1, 3)
        angles[:, axis] = 0.4
        rotation = affine.rotation_matrix(angles)[0]
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3))
        assert torch.linalg.det(rotation) == pytest.approx(1)
        torch.testing.assert_close(rotation[:, axis], torch.eye(3)[axis])
    single = affine.rotation_matrix(torch.tensor([[0.1, 0.2, 0.3]]))
    parts = [affine.rotation_matrix(torch.eye(3)[k : k + 1] * (k + 1) / 10) for k in range(3)]
    torch.testing.assert_close(single, parts[2] @ parts[1] @ parts[0])


def test_the_simulator_counts_its_angles_from_the_last_axis() -> None:
    angles = (0.3, 0.0, 0.0)
    simulated = torch.from_numpy(rigid(angles, (0, 0, 0), (1, 1, 1), (1, 1, 1)))[:3, :3]
    torch.testing.assert_close(simulated, affine.rotation_matrix(torch.tensor([[0.0, 0.0, 0.3]]).double())[0])


@pytest.mark.parametrize(("shape", "voxel_size"), CASES)
def test_affine_compositions(shape: tuple[int, ...], voxel_size: tuple[float, ...]) -> None:
    first, second = generic(shape, voxel_size), generic(shape, voxel_size, seed=1)
    field = Field(torch.randn(8, len(shape), *shape))
    points = second.positions(shape)
    torch.testing.assert_close(
        first.then(second).positions(shape), affine.transform_points(first.matrix, points), atol=1e-3, rtol=1e-4
    )
    moved = first.then(field)
    expected = affine.transform_points(first.matrix, field.positions(shape))
    torch.testing.assert_close(moved.positions(shape), expected, atol=1e-3, rtol=1e-4)
    both = first.then(second).then(field).displacement
    torch.testing.assert_close(first.then(second.then(field)).displacement, both, atol=1e-3, rtol=1e-4)
    identity = first.then(first.inverse()).as_displacement(shape)
    torch.testing.assert_close(identity, torch.zeros_like(identity), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("shape", "voxel_size"), CASES)
def test_affine_and_its_field_warp_alike(shape: tuple[int, ...], voxel_size: tuple[float, ...]) -> None:
    transformation = generic(shape, voxel_size)
    volume = torch.randn(8, 2, *shape)
    field = Field(transformation.as_displacement(shape))
    torch.testing.assert_close(
        warping.sample(volume, transformation.positions(shape)), warping.warp(volume, field.displacement),
        atol=1e-3, rtol=0,
    )  # fmt: skip
    values = Image(volume)[2:3].warp(transformation[2:3]).values
    torch.testing.assert_close(values, Image(volume).warp(transformation)[2:3].values)
    assert len(transformation[:3]) == len(field[:3]) == len(Image(volume)[:3]) == 3


def test_gradients_reach_angles_through_world_and_voxel_units() -> None:
    angles = torch.full((1, 3), 0.1, dtype=torch.float64, requires_grad=True)
    shift = torch.full((1, 3), 0.2, dtype=torch.float64, requires_grad=True)

    def positions(angles: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        matrix = affine.rigid_matrix(angles, shift, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        transformation = Affine.from_world(matrix, (1.0, 0.5, 2.0), torch.float64)
        return transformation.inverse().positions((3, 4, 5))

    assert torch.autograd.gradcheck(positions, (angles, shift))


def test_right_angles_are_exact_in_voxels() -> None:
    matrix = torch.from_numpy(rigid([math.pi / 2], (0, 0), (8, 8), (1.2, 1.2)))[None]
    voxel = Affine.from_world(matrix, (1.2, 1.2)).matrix[0]
    torch.testing.assert_close(voxel, torch.tensor([[0.0, -1, 7], [1, 0, 0], [0, 0, 1]]), atol=1e-15, rtol=0)


def test_random_transformations_depend_on_the_state_alone() -> None:
    one, other, third = (draw((9, 8), (1, 1), seed, rotation_degrees=[(-9, 9)]) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, other)
    assert abs(one - third).max() > 0
    bounds = {"rotation": [(0.1, 0.2)], "translation": [(1, 2), (3, 4)]}
    state = RandomState(0)
    np.testing.assert_array_equal(
        random_rigid((5, 5), (1, 1), **bounds, random_state=RandomState(0)),
        random_rigid((5, 5), (1, 1), **bounds, random_state=state),
    )
    assert abs(random_rigid((5, 5), (1, 1), **bounds, random_state=state)[:2, 2]).max() < 5
