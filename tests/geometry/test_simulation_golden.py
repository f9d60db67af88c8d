"""Golden numbers of the simulator: random transformations and deformations, splines, interior rectangles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.random import RandomState

from equisynth.geometry import splines
from equisynth.geometry.random_deformations import gaussian_deformation, noise_deformation, random_gaussian_bump
from equisynth.geometry.random_transformations import random_affine
from equisynth.geometry.rectangle import largest_interior_rectangle
from golden_data import Golden, load

GOLDEN = load("04_simulation")


def cases(kind: str) -> list[Any]:
    return [pytest.param(GOLDEN / kind / case, id=f"{kind}-{case}") for case in (GOLDEN / kind).children()]


@pytest.mark.parametrize("golden", cases("affine"))
def test_random_affine(golden: Golden) -> None:
    settings = golden.json("settings_json")
    random_state = RandomState(settings["seed"])
    shape, voxel_size = settings["shape"], np.array(settings["voxel_size"])
    matrices = random_affine(
        settings["batch_size"],
        shape,
        voxel_size,
        rotation_degrees=settings["degree_ranges"],
        log_scale_std=settings["log_scale_scales"],
        log_shear_std=settings["log_shear_scales"],
        translation=settings["translation_ranges"],
        flips=settings["generate_flips"],
        right_angle_rotations=settings["generate_orthogonal_rotations"],
        random_state=random_state,
    )
    assert random_state.uniform() == golden["next_uniform_of_the_random_state"]
    if not settings["generate_flips"] or bool((voxel_size == 1).all()):
        golden.check("matrices", matrices)
        return
    # Known difference: the reference mirrors about the centre in voxels, in a space of world units. The linear part is
    # the same; its matrices miss the true centre by the error that the mirroring makes.
    n = len(shape)
    expected = golden["matrices"]
    np.testing.assert_allclose(matrices[:, :n, :n], expected[:, :n, :n], atol=1e-5)
    assert matrices.shape == expected.shape
    np.testing.assert_array_equal(matrices[:, n], expected[:, n])


@pytest.mark.parametrize("golden", cases("gaussian"))
def test_gaussian_deformation(golden: Golden) -> None:
    settings = golden.json("settings_json")
    random_state = RandomState(settings["seed"])
    for name in golden.children():
        sample = golden / name
        bump = random_gaussian_bump(settings["lower"], settings["upper"], random_state)
        for field in ("width", "magnitude", "center", "rotation", "translation"):
            sample.check(field, getattr(bump, field))
        shape, voxel_size = settings["shape"], settings["voxel_size"]
        sample.check("ddf", gaussian_deformation(bump, shape, voxel_size))
        sample.check("inverse_ddf", gaussian_deformation(bump, shape, voxel_size, inverse=True))


@pytest.mark.parametrize("golden", cases("noise"))
def test_noise_deformation(golden: Golden) -> None:
    """Known difference: the reference smooths coarse noise as if its voxels had the size of the fine ones. Ours does
    not, so that its numbers come out where the smoothing is multiplied by the factor.
    """
    settings = golden.json("settings_json")
    factors = settings["downsampling_factor"]
    displacement, inverse = noise_deformation(
        settings["shape"],
        settings["voxel_size"],
        noise_mean=settings["noise_mean"],
        noise_std=settings["noise_std"],
        smoothing_std=np.multiply(settings["gaussian_filter_std"], factors),
        rotation=np.transpose(settings["rotation_bounds"]),
        translation=np.transpose(settings["translation_bounds"]),
        downsampling=factors,
        random_state=RandomState(settings["seed"]),
    )
    golden.check("ddf", displacement)
    golden.check("inverse_ddf", inverse)


@pytest.mark.parametrize("golden", cases("spline"))
def test_spline_upsampling(golden: Golden) -> None:
    volume = golden["volume"]
    axes = max(volume.ndim - (2 if volume.ndim >= 3 else 1), 1)  # Leading axes are batch and channel.
    factors = np.broadcast_to(golden["factor"], axes)
    golden.check("coefficients", splines.coefficients(volume, axes))
    golden.check("upsampled", splines.upsample(volume, factors))


@pytest.mark.parametrize("golden", cases("rectangle"))
def test_largest_interior_rectangle(golden: Golden) -> None:
    result = largest_interior_rectangle(golden["mask"], int(golden["search_space_per_step"]))
    np.testing.assert_array_equal(result, golden["result"])
