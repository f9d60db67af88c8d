"""Convolutions by number of dimensions, and the residual blocks that the encoder and the discriminator share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

Wrap = Callable[[nn.Module], nn.Module]
"""Applied to each layer with weights, e.g. a spectral norm."""


def convolution(n_dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """The convolution class for 2 or 3 spatial dimensions."""
    return {2: nn.Conv2d, 3: nn.Conv3d}[n_dims]  # type: ignore[return-value]


def transposed_convolution(n_dims: int) -> type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]:
    """The transposed convolution class for 2 or 3 spatial dimensions."""
    return {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[n_dims]  # type: ignore[return-value]


def average_pool(volume: Tensor, size: int) -> Tensor:
    """Average over non-overlapping cubes of ``size`` voxels; an incomplete last cube is dropped."""
    return (F.avg_pool2d if volume.dim() == 4 else F.avg_pool3d)(volume, size)


def check_shape(shape: Sequence[int], halvings: int, network: str) -> None:
    """Raises ``ValueError`` unless every axis can be halved that often."""
    divisor = 2**halvings
    if any(size % divisor or size < divisor for size in shape):
        raise ValueError(f"{network}: spatial shape {tuple(shape)} must be divisible by {divisor} along every axis")


def unchanged(layer: nn.Module) -> nn.Module:
    """The wrap that does nothing."""
    return layer


class ResidualBlock(nn.Module):
    """``x + act(conv(act(conv(x))))`` with 3-wide convolutions."""

    def __init__(self, n_dims: int, channels: int, activation: nn.Module, wrap: Wrap = unchanged) -> None:
        super().__init__()
        conv = convolution(n_dims)
        self.conv1 = wrap(conv(channels, channels, kernel_size=3, padding=1))
        self.conv2 = wrap(conv(channels, channels, kernel_size=3, padding=1))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.activation(self.conv2(self.activation(self.conv1(x))))
        return x + branch


class ResidualDownBlock(nn.Module):
    """Halves every axis: ``act(conv3(act(conv4 stride 2(x)))) + conv1(average pool(x))``."""

    def __init__(
        self, n_dims: int, in_channels: int, out_channels: int, activation: nn.Module, wrap: Wrap = unchanged
    ) -> None:
        super().__init__()
        conv = convolution(n_dims)
        self.conv1 = wrap(conv(in_channels, out_channels, kernel_size=4, stride=2, padding=1))
        self.conv2 = wrap(conv(out_channels, out_channels, kernel_size=3, padding=1))
        self.projection = wrap(conv(in_channels, out_channels, kernel_size=1))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.activation(self.conv2(self.activation(self.conv1(x))))
        shortcut: Tensor = self.projection(average_pool(x, 2))
        return branch + shortcut


def down_path(n_dims: int, features: Sequence[int], activation: nn.Module, wrap: Wrap = unchanged) -> nn.ModuleList:
    """One down block per entry of ``features``; the first keeps ``features[0]`` channels."""
    return nn.ModuleList(
        ResidualDownBlock(n_dims, before, after, activation, wrap)
        for before, after in zip((features[0], *features[:-1]), features, strict=True)
    )
