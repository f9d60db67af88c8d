"""What the GAN baselines share: norms by name, their residual block, final activations, initial weights, losses.

All of them are 2D. The layers follow the paper's comparison (pix2pix, CycleGAN, NEMAR, RegGAN), whose published
configurations use instance norm throughout.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["instance", "batch", "none"]
FinalActivation = Literal["linear", "tanh"]
Initialisation = Literal["normal", "xavier", "kaiming", "orthogonal"]


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """``instance``: without parameters or running statistics; ``batch``: with both; ``none``: the identity."""
    return {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d, "none": _NoNorm}[norm](channels)


def has_bias(norm: Norm) -> bool:
    """Whether the convolution in front of a norm has a bias: with instance norm only (where it does nothing)."""
    return norm == "instance"


def final_layer(activation: FinalActivation) -> nn.Module:
    """The last activation of a generator."""
    return {"linear": nn.Identity, "tanh": nn.Tanh}[activation]()


class ReflectedResidualBlock(nn.Module):
    """``x + norm(conv(norm(conv(x)).relu()))`` with 3-wide convolutions on reflected borders.

    Args:
        dropout: drop half of the activations between the two convolutions.
    """

    def __init__(self, channels: int, norm: Norm = "instance", dropout: bool = False) -> None:
        super().__init__()
        bias = has_bias(norm)
        self.branch = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=bias), norm_layer(norm, channels), nn.ReLU(),
            *([nn.Dropout(0.5)] if dropout else []),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=bias), norm_layer(norm, channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def initialise(modules: Iterable[nn.Module], kind: Initialisation = "normal", gain: float = 0.02) -> None:
    """Fills convolutions, linear layers and batch norms in place; biases become zero.

    ``normal``: N(0, gain); ``xavier``: normal with this gain; ``kaiming``: normal, fan-in; ``orthogonal``: this gain.
    """
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            match kind:
                case "normal":
                    nn.init.normal_(module.weight, 0.0, gain)
                case "xavier":
                    nn.init.xavier_normal_(module.weight, gain)
                case "kaiming":
                    nn.init.kaiming_normal_(module.weight)
                case "orthogonal":
                    nn.init.orthogonal_(module.weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, gain)
            nn.init.zeros_(module.bias)


def adversarial_loss(logits: Tensor, real: bool, kind: Literal["lsgan", "vanilla"]) -> Tensor:
    """Mean over all patches: squared distance to 1 (real) or 0, or binary cross entropy with logits against it."""
    target = torch.full_like(logits, float(real))
    if kind == "lsgan":
        return nn.functional.mse_loss(logits, target)
    return nn.functional.binary_cross_entropy_with_logits(logits, target)


class _NoNorm(nn.Identity):
    def __init__(self, channels: int) -> None:
        super().__init__()
