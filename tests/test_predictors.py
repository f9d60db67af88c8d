"""Precision and mirrors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from equisynth.errors import UserError
from equisynth.predictors import check_flips, check_precision, in_precision, over_mirrors
from test_training import settings


@pytest.mark.parametrize("n", [2, 3])
def test_the_mean_over_mirrors_turns_with_the_image(n: int) -> None:
    """Whatever the network: mirroring the image mirrors the prediction, and the mean is over all 2^n copies."""
    torch.manual_seed(0)
    network = (nn.Conv2d, nn.Conv3d)[n - 2](1, 1, 3, padding=1)
    calls = []

    @torch.no_grad()
    def predict(values: Tensor, mask: Tensor) -> Tensor:
        calls.append(values)
        return network(values) * mask

    values, mask = torch.rand(2, 1, *[5] * n), (torch.rand(2, 1, *[5] * n) > 0.3).float()
    mean = over_mirrors(predict)
    found = mean(values, mask)
    assert len(calls) == 2**n
    assert not torch.allclose(found, predict(values, mask))
    for axis in range(2, 2 + n):
        assert torch.allclose(mean(values.flip(axis), mask.flip(axis)).flip(axis), found, atol=1e-6)


def test_mirrors_leave_what_treats_voxels_alone_as_it_is() -> None:
    values = torch.rand(1, 1, 4, 6)
    assert torch.allclose(over_mirrors(lambda v, m: 2 * v + m)(values, values), 3 * values)


def test_precision_is_that_of_the_network_s_products() -> None:
    layer, seen = nn.Conv2d(1, 1, 1), []

    def predict(values: Tensor, mask: Tensor) -> Tensor:
        seen.append(layer(values).dtype)
        return values

    in_precision(predict, "cpu", torch.bfloat16)(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert seen == [torch.bfloat16]


def test_wrong_options() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="--precision: found 'half', expected one of: no, bf16, fp16"):
        check_precision("half", cpu)
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        check_precision("fp16", cpu)
    check_precision("bf16", cpu)
    plain, mirrored = settings(), settings(random_transformation={"flips": True})
    with pytest.raises(UserError, match="--flips: found 'some'"):
        check_flips("some", mirrored)
    with pytest.raises(UserError, match="was trained without mirrored images"):
        check_flips("trained", plain)
    for flips, chosen in (("trained", mirrored), ("all", plain), ("none", plain)):
        check_flips(flips, chosen)
