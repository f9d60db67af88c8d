"""Golden numbers of sampling, composing, integrating, differentiating and of affine matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from equisynth.geometry import affine, derivatives, warping
from equisynth.geometry.grids import identity_grid, other_grid
from equisynth.geometry.transforms import Affine, Field
from golden_data import Golden, load

GOLDEN = load("01_primitives")
DIMENSIONS = GOLDEN.children()


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


@pytest.fixture(params=DIMENSIONS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return GOLDEN / request.param


def voxel_size(golden: Golden) -> list[float]:
    return [float(size) for size in golden["voxel_size"]]


def world(field: torch.Tensor, golden: Golden) -> torch.Tensor:
    """A displacement field in voxels as one in world units."""
    return field * torch.tensor(voxel_size(golden), dtype=field.dtype).view(1, -1, *(1,) * (field.ndim - 2))


def test_sampling_at_points(golden: Golden) -> None:
    volume, points = tensor(golden["volume"]), tensor(golden["points"])
    golden.check("interpolate_border", warping.sample(volume, points))
    golden.check("interpolate_zeros", warping.sample(volume, points, padding="zeros"))
    golden.check("interpolate_nearest_border", warping.sample(volume, points, mode="nearest"))
    golden.check("interpolate_mask", warping.field_of_view(points, volume.shape[2:]))
    golden.check("transform_points", points + warping.sample(tensor(golden["ddf_1"]), points))


def test_warping_and_composing(golden: Golden) -> None:
    volume, first, then = (tensor(golden[key]) for key in ("volume", "ddf_1", "ddf_2"))
    shape = volume.shape[2:]
    golden.check("deform_volume", warping.warp(volume, first))
    golden.check("deform_volume_mask", warping.field_of_view(warping.displaced(first), shape))
    golden.check("compose_first1_then2", warping.compose(first, then))
    golden.check("compose_first1_then2_mask", warping.field_of_view(warping.displaced(then), shape))


def test_integrating(golden: Golden) -> None:
    velocity = tensor(golden["ddf_1"])
    golden.check("integrate_svf_7", warping.integrate_velocity(velocity))
    golden.check("integrate_svf_7_negative", warping.integrate_velocity(-velocity))
    golden.check("integrate_svf_3", warping.integrate_velocity(velocity, squarings=3))
    forward, inverse = warping.integrate_both(velocity)
    golden.check("integrate_svf_7", forward)
    golden.check("integrate_svf_7_negative", inverse)


@pytest.mark.parametrize("origin", ["centered", "zero_origin"])
def test_sampling_on_another_grid(golden: Golden, origin: str) -> None:
    volume, displacement = tensor(golden["volume"]), tensor(golden["ddf_other_grid"])
    ratio = [float(size) for size in golden["ddf_other_grid_relative_voxel_size"]]
    centred_in = volume.shape[2:] if origin == "centered" else None
    grid = other_grid(displacement.shape[2:], ratio, centred_in)
    positions = grid + displacement
    golden.check(f"deform_volume_other_grid_{origin}", warping.sample(volume, positions))
    golden.check(f"deform_volume_other_grid_{origin}_mask", warping.field_of_view(positions, volume.shape[2:]))
    if centred_in is not None:
        golden.check("centered_grid_other", grid[0])


def test_grid_in_world_units(golden: Golden) -> None:
    golden.check("zero_origin_grid", world(identity_grid(golden["volume"].shape[2:]), golden)[0])


def derivative_keys() -> list[Any]:
    return [(d, key) for d in DIMENSIONS for key in (GOLDEN / d).keys() if key.startswith("derivative_")]


@pytest.mark.parametrize(("dimensions", "key"), derivative_keys())
def test_derivatives(dimensions: str, key: str) -> None:
    golden = GOLDEN / dimensions
    _, axis_name, kind, extent = key.split("_")
    axis = int(axis_name.removeprefix("dim"))
    actual = derivatives.derivative(
        tensor(golden["volume"]), axis, voxel_size(golden)[axis], kind == "central", extent == "same"
    )
    golden.check(key, actual)


@pytest.mark.parametrize("kind", ["central", "forward"])
def test_jacobian(golden: Golden, kind: str) -> None:
    field = tensor(golden["ddf_1"])
    golden.check(f"jacobian_matrices_{kind}", derivatives.jacobian(field, voxel_size(golden), kind == "central"))
    determinants = derivatives.jacobian_determinant(field, voxel_size(golden), kind == "central")
    golden.check(f"jacobian_determinants_{kind}", determinants)


def test_affine_fields(golden: Golden) -> None:
    matrix, field = tensor(golden["affine_world_1"]), tensor(golden["ddf_1"])
    shape = field.shape[2:]
    transformation = Affine.from_world(matrix, voxel_size(golden))
    golden.check("affine_ddf_world_units", world(transformation.as_displacement(shape), golden))
    golden.check("affine_ddf_unit_voxel", Affine(matrix).as_displacement(shape))
    golden.check("affine_applied_to_ddf_world_units", world(transformation.then(Field(field)).displacement, golden))
    golden.check("concatenate_1_then_2", affine.multiply(tensor(golden["affine_world_2"]), matrix))


def test_rigid_matrices(golden: Golden) -> None:
    angles, translation, origin = (tensor(golden[f"rigid_{part}"]) for part in ("angles", "translations", "origin"))
    golden.check("rotation_matrix", affine.rotation_matrix(angles))
    forward = affine.rigid_matrix(angles, translation, origin)
    golden.check("rigid_forward", forward)
    if angles.shape[1] == 1:  # Known difference in 3D: the published inverse is only approximate, ours is exact.
        golden.check("rigid_inverse", affine.invert(forward))
    identity = affine.multiply(affine.invert(forward), forward)
    torch.testing.assert_close(identity, torch.eye(identity.shape[-1]).expand_as(identity), atol=1e-5, rtol=0)
