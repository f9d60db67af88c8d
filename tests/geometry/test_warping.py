"""Properties of grids, sampling, composing and integrating."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from equisynth.geometry import warping
from equisynth.geometry.grids import identity_grid, other_grid
from equisynth.geometry.transforms import Affine, Field, Image

SHAPES = [(23, 18), (14, 12, 13)]


def smooth(shape: Sequence[int], channels: int, batch: int = 2, seed: int = 0) -> Tensor:
    """A random smooth volume (batch, channels, *shape) that vanishes towards the border, largest magnitude 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, *(4,) * len(shape), generator=generator)
    mode = "bicubic" if len(shape) == 2 else "trilinear"
    volume = torch.nn.functional.interpolate(coarse, size=tuple(shape), mode=mode, align_corners=True)
    for axis, size in enumerate(shape):
        window = torch.sin(torch.linspace(0, torch.pi, size)) ** 2
        volume = volume * window.view(-1, *(1,) * (len(shape) - 1 - axis))
    return volume / volume.abs().amax()


@pytest.mark.parametrize("shape", SHAPES)
def test_no_displacement_changes_nothing(shape: tuple[int, ...]) -> None:
    volume = torch.randn(2, 3, *shape)
    zero = torch.zeros(2, len(shape), *shape)
    torch.testing.assert_close(warping.warp(volume, zero), volume, atol=2e-5, rtol=0)
    assert warping.field_of_view(warping.displaced(zero), shape).min() == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_whole_voxel_shift_reads_along_the_right_axis(shape: tuple[int, ...], mode: warping.Mode) -> None:
    volume = torch.randn(1, 2, *shape)
    for axis in range(len(shape)):
        shift = torch.zeros(1, len(shape), *shape)
        shift[:, axis] = 2
        moved = warping.sample(volume, warping.displaced(shift), mode=mode)
        inner = slice(0, shape[axis] - 2)
        expected = volume.movedim(axis + 2, 0)[2:]
        torch.testing.assert_close(moved.movedim(axis + 2, 0)[inner], expected, atol=2e-5, rtol=0)
        seen = warping.field_of_view(warping.displaced(shift), shape).movedim(axis + 2, 0)
        assert seen[inner].min() == 1
        assert seen[shape[axis] - 2 :].max() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_ramps_are_sampled_exactly(shape: tuple[int, ...]) -> None:
    """The coordinates themselves, sampled anywhere inside, give the positions back."""
    positions = torch.rand(2, len(shape), 50) * (torch.tensor(shape)[:, None] - 1)
    ramps = identity_grid(shape).expand(2, -1, *shape)
    torch.testing.assert_close(warping.sample(ramps, positions), positions, atol=1e-5, rtol=1e-5)


def test_padding() -> None:
    volume = torch.full((1, 1, 5, 6), 3.0)
    outside = torch.tensor([[[-4.0, 2.0], [2.0, 9.0]]])
    assert warping.sample(volume, outside).unique().tolist() == [3]
    assert warping.sample(volume, outside, padding="zeros").unique().tolist() == [0]


@pytest.mark.parametrize("shape", SHAPES)
def test_composition_warps_by_the_first_then_by_the_second(shape: tuple[int, ...]) -> None:
    first, second = smooth(shape, len(shape), seed=1), smooth(shape, len(shape), seed=2)
    ramps = identity_grid(shape).expand(2, -1, *shape)  # Once warped they are interpolated as the field itself is.
    step_by_step = warping.warp(warping.warp(ramps, first), second)
    torch.testing.assert_close(warping.warp(ramps, warping.compose(first, second)), step_by_step, atol=1e-4, rtol=0)
    assert (warping.warp(ramps, warping.compose(second, first)) - step_by_step).abs().max() > 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_composition_is_associative(shape: tuple[int, ...]) -> None:
    a, b, c = (0.5 * smooth(shape, len(shape), seed=seed) for seed in range(3))
    left = warping.compose(warping.compose(a, b), c)
    right = warping.compose(a, warping.compose(b, c))
    assert (left - right).abs().max() < 0.05 * left.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_integrated_velocities_are_inverse_to_each_other(shape: tuple[int, ...]) -> None:
    forward, inverse = warping.integrate_both(0.5 * smooth(shape, len(shape)))
    for one, other in ((forward, inverse), (inverse, forward)):
        assert warping.compose(one, other).abs().max() < 0.2 * forward.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_integrating_twice_as_long_is_composing_with_itself(shape: tuple[int, ...]) -> None:
    velocity = smooth(shape, len(shape))
    once = warping.integrate_velocity(velocity)
    torch.testing.assert_close(warping.integrate_velocity(2 * velocity, squarings=8), warping.compose(once, once))


def test_constant_velocity_moves_by_itself() -> None:
    velocity = torch.tensor([0.7, -1.2]).view(1, 2, 1, 1).expand(1, 2, 9, 8).clone()
    torch.testing.assert_close(warping.integrate_velocity(velocity), velocity, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(7, 6), (5, 4, 6)])
def test_gradients(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    volume = torch.randn(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    field = (0.3 * torch.randn(1, len(shape), *shape, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(warping.warp, (volume, field), fast_mode=True)
    assert torch.autograd.gradcheck(lambda v: warping.integrate_both(v, 2), field, fast_mode=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_warping_commutes_with_what_ignores_position(shape: tuple[int, ...]) -> None:
    """Equivariance: a map of values applied before or after a warp is the same, if linear."""
    volume, field = torch.randn(2, 3, *shape), smooth(shape, len(shape))
    mix = torch.randn(4, 3)
    mixed = torch.einsum("oc,bc...->bo...", mix, volume)
    torch.testing.assert_close(
        warping.warp(mixed, field), torch.einsum("oc,bc...->bo...", mix, warping.warp(volume, field)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_warping_commutes_with_translation(shape: tuple[int, ...]) -> None:
    """Equivariance: shifting the image and its deformation by whole voxels shifts the result."""
    volume, field = torch.randn(1, 1, *shape), smooth(shape, len(shape), batch=1)
    axes = tuple(range(2, 2 + len(shape)))
    roll = (1,) * len(shape)
    shifted = warping.warp(volume.roll(roll, axes), field.roll(roll, axes))
    inner = (..., *(slice(3, -3),) * len(shape))
    torch.testing.assert_close(shifted[inner], warping.warp(volume, field).roll(roll, axes)[inner], atol=2e-5, rtol=0)


def test_grids_are_shared_and_usable_in_training() -> None:
    with torch.inference_mode():
        born = identity_grid((5, 9))
        warping.warp(torch.zeros(1, 1, 5, 9), torch.zeros(1, 2, 5, 9))
    assert identity_grid((5, 9)) is born
    assert not born.is_inference()
    velocity = torch.zeros(1, 2, 5, 9, requires_grad=True)
    warping.integrate_velocity(velocity).sum().backward()
    assert velocity.grad is not None


def test_binarise_tolerates_rounding_only() -> None:
    mask = torch.tensor([1.0, 1 - 0.9e-5, 1 - 2e-5, 0.5, 0.0], requires_grad=True)
    result = warping.binarise(mask)
    assert result.tolist() == [1, 1, 0, 0, 0]
    assert not result.requires_grad


def test_resampling_to_another_voxel_size_converts_displacements() -> None:
    """A shift of one coarse voxel is a shift of two fine ones."""
    image = Image(identity_grid((21, 17)).clone())
    shift = torch.ones(1, 2, 8, 6)
    ratio = (2.0, 2.0)
    still, moved = (image.resample((8, 6), ratio, field, centred=False) for field in (None, shift))
    torch.testing.assert_close(still.values, other_grid((8, 6), ratio), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.values - still.values, torch.full_like(shift, 2.0), atol=1e-4, rtol=0)


def test_resampling_around_the_centre_and_back() -> None:
    image = Image(identity_grid((21, 17)).clone(), torch.ones(1, 1, 21, 17))
    coarse = image.resample((11, 9), (2.0, 2.0))
    back = coarse.resample((21, 17), (0.5, 0.5))
    assert back.mask is not None
    torch.testing.assert_close(back.values * back.mask, image.values * back.mask, atol=1e-4, rtol=0)
    assert back.mask.mean() == 1


def test_a_slice_of_one_voxel_has_no_division_by_zero() -> None:
    volume = torch.randn(1, 1, 1, 6)
    assert torch.isfinite(warping.warp(volume, torch.zeros(1, 2, 1, 6))).all()


def test_masks_carry_no_graph_and_sampled_values_do() -> None:
    field = torch.zeros(1, 2, 6, 7, requires_grad=True)
    image = Image(torch.rand(1, 1, 6, 7), torch.ones(1, 1, 6, 7))
    warped = image.warp(Field(field))
    assert warped.mask is not None
    assert warped.values.requires_grad
    assert not warped.mask.requires_grad
    composed = Field(field, torch.ones(1, 1, 6, 7)).then(Affine(torch.eye(3)[None]))
    assert composed.mask is not None
    assert not composed.mask.requires_grad
