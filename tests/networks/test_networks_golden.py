"""The networks print the numbers of the reference: outputs, gradients, power iterations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from equisynth.networks.discriminator import Discriminator
from equisynth.networks.encoder import RigidEncoder
from equisynth.networks.unet import UNet
from golden_data import Golden, load

CASES = [
    f"{dimensions}/{case}"
    for dimensions in load("05_networks").children()
    for case in (load("05_networks") / dimensions).children()
]


def case_of(path: str) -> Golden:
    golden = load("05_networks")
    for part in path.split("/"):
        golden = golden / part
    return golden


def cases(kind: str) -> list[str]:
    return [path for path in CASES if path.split("/")[1].startswith(kind)]


def load_in_order(network: nn.Module, state: Golden) -> None:
    """Our names differ from the reference's, the order of parameters and buffers does not."""
    names = [str(name) for name in state["__order__"]]
    ours = network.state_dict()
    assert len(ours) == len(names)
    network.load_state_dict({key: torch.from_numpy(state[name]) for key, name in zip(ours, names, strict=True)})


def inputs(golden: Golden, name: str) -> torch.Tensor:
    return torch.from_numpy(golden[f"in/{name}"])


@pytest.mark.parametrize("path", cases("unet"))
def test_unet(path: str) -> None:
    golden = case_of(path)
    info = golden.json("info_json")
    network = UNet(
        info["n_dims"],
        info["n_input_channels"],
        info["n_output_channels"],
        info["n_features_per_block"],
        info["n_normalization_groups"],
        {"ReLU": "relu", "LeakyReLU": "leaky_relu"}[info["activation"]],
        {"identity": "linear", "Softplus": "softplus"}[info["final"]],
    )
    load_in_order(network, golden / "state")
    x = inputs(golden, "x").requires_grad_()
    out = network(x)
    golden.check("out", out)
    out.square().mean().backward()
    golden.check("input_gradient_of_mean_square_output", x.grad)
    gradients = [parameter.grad.double().numpy() for parameter in network.parameters()]
    checksums = golden / "parameter_gradient_of_mean_square_output"
    checksums.check("sum", np.array([gradient.sum() for gradient in gradients]), 2e-3)
    checksums.check("sumsq", np.array([np.square(gradient).sum() for gradient in gradients]), 2e-3)
    first = [
        np.pad(gradient.ravel()[:5], (0, max(0, 5 - gradient.size)), constant_values=np.nan) for gradient in gradients
    ]
    checksums.check("first5", np.array(first), 2e-3)


@pytest.mark.parametrize("path", cases("rigid_encoder"))
def test_rigid_encoder(path: str) -> None:
    golden = case_of(path)
    info = golden.json("info_json")
    network = RigidEncoder(info["n_dims"], info["n_input_channels"], info["n_features_per_block"])
    load_in_order(network, golden / "state")
    angles, translation = network(inputs(golden, "volume"), inputs(golden, "coordinates"))
    assert angles.shape[1] == {2: 1, 3: 3}[info["n_dims"]]
    golden.check("out", torch.cat([angles, translation], dim=1))


@pytest.mark.parametrize("path", cases("disc"))
def test_discriminator(path: str) -> None:
    golden = case_of(path)
    info = golden.json("info_json")
    channels = info["n_input_channels"] + info["n_output_channels"]
    network = Discriminator(info["n_dims"], channels, info["n_features_per_block"])
    load_in_order(network, golden / "state")
    image = inputs(golden, "output_volume")
    condition = inputs(golden, "input_volume") if "in/input_volume" in golden else None

    golden.check("out_eval", network.eval()(image, condition))
    for step in (1, 2):
        golden.check(f"out_train_{step}", network.train()(image, condition))
        recorded = golden / f"buffers_after_train_{step}"
        buffers = [buffer for _, buffer in network.named_buffers()]
        keys = [str(name) for name in (golden / "state")["__order__"] if str(name) in recorded]
        assert len(keys) == len(buffers) > 0
        for key, buffer in zip(keys, buffers, strict=True):
            recorded.check(key, buffer)
    golden.check("out_eval_after", network.eval()(image, condition))
