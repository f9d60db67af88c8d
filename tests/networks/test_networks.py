"""Sizes of the published networks, and what the networks refuse."""

from __future__ import annotations

import json

import pytest
import torch

from equisynth.networks.discriminator import Discriminator
from equisynth.networks.encoder import RigidEncoder
from equisynth.networks.unet import UNet
from golden_data import DIRECTORY

NAMES = DIRECTORY / "full_size_state_names.json"
PUBLISHED = json.loads(NAMES.read_text()) if NAMES.exists() else {}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_published_parameters(name: str) -> None:
    entry = PUBLISHED[name]
    model, n = entry["model"], len(entry["patch_size"])
    x, y = model["n_input_channels"], model["n_output_channels"]
    registration = {
        key: model[f"n_features_per_block_{key}"] for key in ("rigid_reg", "cross_modality_reg", "intra_modality_reg")
    }
    with torch.device("meta"):
        networks = [
            UNet(n, x, y, model["n_features_per_block_i2i"], model["n_normalization_groups"], "leaky_relu"),
            RigidEncoder(n, x + y + 2, registration["rigid_reg"]),
            UNet(n, x + y + 2, n, registration["cross_modality_reg"]),
            UNet(n, n + y + y + 2, n, registration["intra_modality_reg"]),
        ]
    expected = entry["i2ireg"]
    shapes = [list(tensor.shape) for network in networks for tensor in network.state_dict().values()]
    assert shapes == [shape for _, shape in expected["state"]]
    assert sum(p.numel() for network in networks for p in network.parameters()) == expected["n_parameters"]


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "discriminator" in PUBLISHED[name]])
def test_published_discriminators_have_the_published_parameters(name: str) -> None:
    entry = PUBLISHED[name]
    model = entry["model"]
    condition = model["n_input_channels"] if model.get("conditional_discriminator", True) else 0
    channels = condition + model["n_output_channels"]
    with torch.device("meta"):
        network = Discriminator(len(entry["patch_size"]), channels, model["n_features_per_block_discriminator"])
    expected = entry["discriminator"]
    assert [list(tensor.shape) for tensor in network.state_dict().values()] == [shape for _, shape in expected["state"]]
    assert sum(parameter.numel() for parameter in network.parameters()) == expected["n_parameters"]


@pytest.mark.parametrize("shape", [(16, 12), (16, 12, 8)])
def test_output_keeps_the_shape(shape: tuple[int, ...]) -> None:
    network = UNet(len(shape), 2, 3, (4, 4, 8), 2, "leaky_relu", "softplus")
    out = network(torch.randn(2, 2, *shape))
    assert out.shape == (2, 3, *shape)
    assert (out > 0).all()


def test_shapes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        UNet(2, 1, 1, (4, 4, 4))(torch.zeros(1, 1, 16, 10))
    with pytest.raises(ValueError, match="at least 8"):
        RigidEncoder(2, 1, (4, 4, 4))(torch.zeros(1, 1, 16, 6), torch.zeros(1, 2, 16, 6))
    with pytest.raises(ValueError, match="divisible by 8"):
        Discriminator(2, 1, (4, 4, 4))(torch.zeros(1, 1, 16, 12))


def test_the_rigid_encoder_halves_odd_sizes_as_the_published_400_by_400_patches_need() -> None:
    network = RigidEncoder(2, 1, (4, 4, 4))
    angles, translation = network(torch.randn(2, 1, 20, 12), torch.randn(2, 2, 20, 12))  # 20 -> 10 -> 5 -> 2
    assert angles.shape == (2, 1)
    assert translation.shape == (2, 2)


@pytest.mark.parametrize("shape", [(2, 2), (4, 2, 2), (8, 4)])
def test_discriminator_leaves_one_cell_also_on_the_smallest_patches(shape: tuple[int, ...]) -> None:
    assert Discriminator(len(shape), 2, (3,))(torch.randn(5, 1, *shape), torch.randn(5, 1, *shape)).shape == (5,)
