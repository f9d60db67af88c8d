"""Golden numbers of masked images and masked transformations."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from equisynth.geometry.transforms import Affine, Field, Image, Transformation
from golden_data import Golden, load

GOLDEN = load("02_masked")


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def cases(pattern: str) -> list[tuple[str, str]]:
    """(dimensions, name) of all golden entries, or groups of entries, whose name matches."""
    names = {(d, key.split("/")[0]): None for d in GOLDEN.children() for key in (GOLDEN / d).keys()}
    return [(d, name) for d, name in names if re.fullmatch(pattern, name)]


def sizes(golden: Golden, key: str = "voxel_size") -> list[float]:
    return [float(size) for size in golden[key]]


def transformation(golden: Golden, name: str) -> Transformation:
    """``A``, ``B_nomask``, ``affine_1``."""
    if name.startswith("affine"):
        return Affine.from_world(tensor(golden[name]), sizes(golden))
    key, masked = name.removesuffix("_nomask"), not name.endswith("_nomask")
    return Field(tensor(golden[f"ddf_{key}"]), tensor(golden[f"ddf_{key}_mask"]) if masked else None)


def image(golden: Golden, name: str) -> Image:
    """``vol``, ``vol_nomask``, ``deformed_by_affine_1``."""
    if name.startswith("deformed_by_"):
        return image(golden, "vol").warp(transformation(golden, name.removeprefix("deformed_by_")))
    return Image(tensor(golden["volume"]), None if name.endswith("_nomask") else tensor(golden["volume_mask"]))


def check_mask(golden: Golden, mask: torch.Tensor | None, like: torch.Tensor) -> None:
    present = bool(golden["has_mask"]) if "has_mask" in golden else True
    if not present and mask is None:
        return
    found = torch.ones_like(like[:, :1]) if mask is None else mask
    if present:
        golden.check("mask", found)
    else:
        assert bool((found == 1).all())


@pytest.mark.parametrize(("dimensions", "name"), cases(r"compose_.+__.+"))
def test_composition(dimensions: str, name: str) -> None:
    """The file's ``compose_X__Y`` warps by Y first: Y.then(X)."""
    golden = GOLDEN / dimensions
    pair = name.removeprefix("compose_").removesuffix("_update_mask_false")
    second, first = (transformation(golden, part) for part in pair.split("__"))
    composed = first.then(second, track_mask=not name.endswith("_update_mask_false"))
    assert isinstance(composed, Field)
    (golden / name).check("deformation", composed.displacement)
    check_mask(golden / name, composed.mask, composed.displacement)


@pytest.mark.parametrize(("dimensions", "name"), cases(r"deform_vol.*__.+"))
def test_warped_image(dimensions: str, name: str) -> None:
    golden = GOLDEN / dimensions
    what, by = name.removeprefix("deform_").split("__")
    warped = image(golden, what).warp(transformation(golden, by))
    (golden / name).check("volume", warped.values)
    check_mask(golden / name, warped.mask, warped.values)


@pytest.mark.parametrize(("dimensions", "name"), cases(r"generate_mask_.+"))
def test_mask_of_warped_image(dimensions: str, name: str) -> None:
    """The mask of the image alone: that of the transformation plays no part in these entries."""
    golden = GOLDEN / dimensions
    what, _, by = name.removeprefix("generate_mask_").partition("__")
    result = image(golden, what)
    if by:
        result = result.warp(transformation(golden, by if by.startswith("affine") else f"{by}_nomask"))
    golden.check(name, result.valid())


@pytest.mark.parametrize(("dimensions", "name"), cases(r"comparison_mask_.+"))
def test_comparison_mask(dimensions: str, name: str) -> None:
    golden = GOLDEN / dimensions
    left, right = name.removeprefix("comparison_mask_").split("__")
    if left.startswith("deformations_"):
        one, other = (transformation(golden, part) for part in (left.removeprefix("deformations_"), right))
        assert isinstance(one, Field)
        assert isinstance(other, Field)
        golden.check(name, one.comparison_mask(other))
    else:
        golden.check(name, image(golden, left).comparison_mask(image(golden, right)))


@pytest.mark.parametrize("dimensions", GOLDEN.children())
def test_affine(dimensions: str) -> None:
    golden = GOLDEN / dimensions
    unit = [1.0] * len(sizes(golden))
    first, second = (Affine.from_world(tensor(golden[f"affine_{i}"]), unit) for i in (1, 2))  # Kept in world units.
    golden.check("affine_1_compose_affine_2", second.then(first).matrix)
    golden.check("affine_1_inverse", first.inverse().matrix)
    shape = golden["volume"].shape[2:]
    golden.check("affine_1_deformation_voxels", transformation(golden, "affine_1").as_displacement(shape))


@pytest.mark.parametrize(("dimensions", "name"), cases(r"deform_other_grid_.+"))
def test_other_grid(dimensions: str, name: str) -> None:
    """Known difference: the displacement is in voxels of the other grid and the reference adds it to source voxels as
    if it were in those. Ours converts it, so that a displacement divided by the ratio gives the golden numbers.
    """
    golden = GOLDEN / dimensions
    target_size, shape = sizes(golden, "other_grid_voxel_size"), [int(s) for s in golden["other_grid_shape"]]
    ratio = [target / source for target, source in zip(target_size, sizes(golden), strict=True)]
    displacement = Affine.from_world(tensor(golden["affine_1"]), target_size).as_displacement(shape)
    unscaled = displacement / torch.tensor(ratio, dtype=displacement.dtype).view(1, -1, *(1,) * len(shape))
    result = image(golden, "vol").resample(shape, ratio, unscaled, centred=name.endswith("_centered"))
    (golden / name).check("volume", result.values)
    check_mask(golden / name, result.mask, result.values)
