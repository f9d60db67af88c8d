"""The loss terms: golden numbers and closed forms."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from equisynth.geometry.derivatives import add_identity, jacobian
from equisynth.geometry.transforms import Image
from equisynth.losses import (
    RigidityPenalty,
    adversarial,
    affinity,
    beyond_limit,
    dissimilarity,
    interpolate,
    masked_error,
    orthonormality,
    properness,
    rigidity_coefficient,
)
from golden_data import Golden, load

CASES = load("03_losses").children()
TERMS = ("orthonormality", "properness", "affinity")


def tensor(golden: Golden, key: str) -> torch.Tensor:
    return torch.from_numpy(golden[key])


def penalty_of(golden: Golden, letters: str, only: str | None = None) -> RigidityPenalty:
    given = dict(zip(TERMS, golden["weights_orthonormality_properness_affinity"].tolist(), strict=True))
    weights = given if only is None else {term: float(term == only) for term in TERMS}
    return RigidityPenalty(
        tuple(golden["voxel_size"].tolist()),
        **{f"{term}_weight": weight for term, weight in weights.items()},
        first_central=letters[0] == "c",
        second_central=letters[1] == "c",
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("letters", ["ff", "fc", "cf", "cc"])
def test_rigidity_golden(case: str, letters: str) -> None:
    golden = load("03_losses") / case
    displacement = tensor(golden, "ddf").requires_grad_()
    coefficient = tensor(golden, "rigidity_coefficient")[:, None]
    for used, name in ((None, "nocoef"), (coefficient, "coef")):
        for term in TERMS:
            golden.check(f"rigidity_{term}_{letters}_{name}", penalty_of(golden, letters, term)(displacement, used))
        golden.check(f"rigidity_total_{letters}_{name}", penalty_of(golden, letters)(displacement, used))
    (gradient,) = torch.autograd.grad(penalty_of(golden, letters)(displacement, coefficient), displacement)
    golden.check(f"rigidity_total_{letters}_coef_gradient", gradient)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("letters", ["ff", "fc", "cf", "cc"])
def test_rigidity_maps_golden(case: str, letters: str) -> None:
    golden = load("03_losses") / case
    voxel_size = golden["voxel_size"].tolist()
    first = jacobian(tensor(golden, "ddf"), voxel_size, letters[0] == "c")
    golden.check(f"orthonormality_map_{letters[0]}", orthonormality(add_identity(first)))
    golden.check(f"properness_map_{letters[0]}", properness(add_identity(first)))
    golden.check(f"affinity_map_{letters}", affinity(first, voxel_size, letters[1] == "c"))


@pytest.mark.parametrize("case", CASES)
def test_similarity_and_limits_golden(case: str) -> None:
    golden = load("03_losses") / case
    first, second, mask = (tensor(golden, key) for key in ("image_1", "image_2", "mask"))
    golden.check("masked_mae", masked_error(first, second, mask, "mae"))
    golden.check("masked_mse", masked_error(first, second, mask, "mse"))
    for key in golden.keys():
        if key.startswith("squared_constraint_max"):
            golden.check(key, beyond_limit(tensor(golden, "constraint_value"), float(key.partition("_max")[2])))


@pytest.mark.parametrize("case", CASES)
def test_interpolation_golden(case: str) -> None:
    golden = load("03_losses") / case
    intensities, coefficients = golden["coefgen_ct_values"].tolist(), golden["coefgen_coefficients"].tolist()
    golden.check("interpolate_1d", interpolate(tensor(golden, "interpolate_1d_x"), intensities, coefficients))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("masked", [True, False])
def test_rigidity_coefficient_golden(case: str, masked: bool) -> None:
    """Known difference: the reference extrapolates beyond the given intensities, ours is constant there."""
    golden = load("03_losses") / case
    intensities, coefficients = golden["coefgen_ct_values"].tolist(), golden["coefgen_coefficients"].tolist()
    volume, mask = tensor(golden, "coefgen_volume"), tensor(golden, "mask") if masked else None
    ours = rigidity_coefficient(volume, mask, intensities, coefficients)[:, 0]
    expected = tensor(golden, "coefgen_output_with_mask" if masked else "coefgen_output_no_mask")
    mean = volume.mean(dim=1)
    below, above = mean < intensities[0], mean > intensities[-1]
    if mask is not None:
        below, above = below & (mask[:, 0] > 0), above & (mask[:, 0] > 0)
    inside = ~(below | above)
    assert inside.any()
    scale = float(expected.abs().max())
    assert float((ours - expected)[inside].abs().max()) <= 1e-5 * scale
    assert torch.all(ours[below] == coefficients[0])
    torch.testing.assert_close(ours[above], torch.full_like(ours[above], coefficients[-1]))


def rigid_motion(n_dims: int, voxel_size: tuple[float, ...], shape: tuple[int, ...]) -> torch.Tensor:
    """Displacement in voxels of a rotation in the first and last axes and a translation, in world units."""
    angle = 0.4
    matrix = np.eye(n_dims)
    matrix[0, 0] = matrix[-1, -1] = math.cos(angle)
    matrix[0, -1], matrix[-1, 0] = -math.sin(angle), math.sin(angle)
    sizes = np.array(voxel_size)[:, *[None] * n_dims]
    world = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")) * sizes
    moved = np.tensordot(matrix, world, axes=1) + 1.7
    return torch.from_numpy((moved - world) / sizes)[None].float()


GRIDS = [((1.0, 0.8), (9, 12)), ((0.9, 0.9, 1.25), (7, 8, 6))]


@pytest.mark.parametrize(("voxel_size", "shape"), GRIDS)
@pytest.mark.parametrize(("first", "second"), list(product([True, False], repeat=2)))
def test_rigid_motions_cost_nothing(
    voxel_size: tuple[float, ...], shape: tuple[int, ...], first: bool, second: bool
) -> None:
    penalty = RigidityPenalty(voxel_size, 1.0, 1.0, 1.0, first, second)
    motion = rigid_motion(len(shape), voxel_size, shape)
    assert penalty(motion) < 1e-9
    assert penalty(torch.zeros_like(motion)) == 0
    assert penalty(motion * 1.2) > 1e-3


@pytest.mark.parametrize(("voxel_size", "shape"), GRIDS)
def test_rigidity_of_a_scaling_in_closed_form(voxel_size: tuple[float, ...], shape: tuple[int, ...]) -> None:
    n, scale = len(shape), 1.3
    grid = torch.stack(torch.meshgrid(*(torch.arange(float(size)) for size in shape), indexing="ij"))[None]
    displacement = (scale - 1) * grid
    expected = {"orthonormality": n * (scale**2 - 1) ** 2, "properness": (scale**n - 1) ** 2, "affinity": 0.0}
    for term, value in expected.items():
        weights = {f"{name}_weight": float(name == term) for name in expected}
        assert float(RigidityPenalty(voxel_size, **weights)(displacement)) == pytest.approx(value, rel=1e-4, abs=1e-9)


def test_affinity_counts_mixed_derivatives_twice() -> None:
    x, y = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    only_affinity = RigidityPenalty((1.0, 1.0), 1.0, 0.0, 0.0, True, True)
    zero = torch.zeros_like(x)
    assert float(only_affinity(torch.stack([x * y, zero])[None])) == pytest.approx(2.0, rel=1e-4)
    assert float(only_affinity(torch.stack([x * x, zero])[None])) == pytest.approx(4.0, rel=1e-4)


def test_rigidity_gradient_is_the_derivative() -> None:
    """The gradient predicts the change of the penalty along a random direction."""
    generator = torch.Generator().manual_seed(3)
    for shape in ((6, 7), (5, 6, 7)):
        n = len(shape)
        displacement = torch.randn(2, n, *shape, generator=generator) * 0.3
        direction = torch.randn(2, n, *shape, generator=generator)
        coefficient = torch.rand(2, 1, *shape, generator=generator)
        penalty = RigidityPenalty((1.0,) * n, 0.7, 0.5, 0.3)
        leaf = displacement.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(penalty(leaf, coefficient), leaf)
        step = 1e-2
        ahead, behind = (float(penalty(displacement + s * direction, coefficient)) for s in (step, -step))
        assert float((gradient * direction).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=2e-2)


def test_masked_error_counts_invalid_elements_as_zero() -> None:
    ones, mask = torch.ones(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., :2, :] = 1
    assert float(masked_error(ones * 3, ones, mask, "mae")) == 1.0
    assert float(masked_error(ones * 3, ones, mask, "mse")) == 2.0
    assert float(masked_error(ones * 3, ones, None, "mae")) == 2.0
    assert float(dissimilarity(Image(ones * 3, mask), Image(ones, 1 - mask))) == 0.0
    assert float(dissimilarity(Image(ones * 3, mask), Image(ones, None))) == 1.0


def test_beyond_limit_in_closed_form() -> None:
    values = torch.tensor([[0.5, -2.0], [-0.5, 0.0]])
    assert float(beyond_limit(values, 1.0)) == pytest.approx(0.5)
    assert float(beyond_limit(values, 0.25)) == pytest.approx((2 * 0.25**2 + 1.75**2) / 2)


def test_adversarial_is_binary_cross_entropy() -> None:
    logits = torch.tensor([-30.0, 0.0, 2.0, 80.0])
    for real in (True, False):
        reference = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))
        assert float(adversarial(logits, real)) == pytest.approx(float(reference), rel=1e-6)


def test_losses_stay_in_float32_under_autocast() -> None:
    displacement = torch.randn(1, 3, 6, 6, 6) * 0.2
    penalty = RigidityPenalty((1.0, 1.0, 1.0), 1.0, 1.0, 1.0)
    plain = penalty(displacement)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(penalty(displacement), plain)
        assert adversarial(torch.ones(2, dtype=torch.bfloat16), True).dtype == torch.float32
        half = torch.ones(1, 1, 4, 4, dtype=torch.bfloat16)
        assert masked_error(half, half, None).dtype == torch.float32
