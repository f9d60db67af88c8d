"""U-Net: the image-to-image network and the two dense registration networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from equisynth.networks.layers import check_shape, convolution, transposed_convolution

Activation = Literal["relu", "leaky_relu"]
FinalActivation = Literal["linear", "softplus"]


class UNet(nn.Module):
    """U-Net with strided convolutions down and transposed convolutions up.

    Blocks are two 3-wide convolutions, each followed by an optional group norm and the activation. The blocks of
    the full resolution (the first and the last) have no norm, so that absolute intensities pass through.

    Args:
        n_dims: number of spatial dimensions, 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        features: channels per resolution level, full resolution first; ``len(features) - 1`` halvings.
        normalization_groups: groups of the group norms, ``None`` for no norm.
        activation: ``"relu"`` or ``"leaky_relu"`` (slope 0.01).
        final_activation: ``"linear"`` or ``"softplus"``.
    """

    def __init__(
        self,
        n_dims: int,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        normalization_groups: int | None = None,
        activation: Activation = "relu",
        final_activation: FinalActivation = "linear",
    ) -> None:
        super().__init__()
        top, *deeper = features
        self.halvings = len(deeper)
        self.initial_block = _DoubleConvolution(n_dims, in_channels, top, None, activation)
        self.down_blocks = nn.ModuleList(
            _Down(n_dims, above, below, normalization_groups, activation)
            for above, below in zip(features[:-1], deeper, strict=True)
        )
        self.up_blocks = nn.ModuleList(
            _Up(n_dims, features[level + 1], features[level], normalization_groups if level else None, activation)
            for level in reversed(range(self.halvings))
        )
        self.final_convolution = convolution(n_dims)(top, out_channels, kernel_size=1)
        self.final_activation = {"linear": nn.Identity, "softplus": nn.Softplus}[final_activation]()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, *S)`` to ``(B, out_channels, *S)``; every axis divisible by ``2 ** halvings``."""
        check_shape(x.shape[2:], self.halvings, "U-Net")
        x = self.initial_block(x)
        skips = []
        for down in self.down_blocks:
            skips.append(x)
            x = down(x)
        for up in self.up_blocks:
            x = up(x, skips.pop())
        y: Tensor = self.final_activation(self.final_convolution(x))
        return y


class _DoubleConvolution(nn.Module):
    def __init__(
        self, n_dims: int, in_channels: int, out_channels: int, groups: int | None, activation: Activation
    ) -> None:
        super().__init__()
        conv = convolution(n_dims)
        self.conv1 = conv(in_channels, out_channels, kernel_size=3, padding=1)
        self.conv2 = conv(out_channels, out_channels, kernel_size=3, padding=1)
        self.norm1 = nn.GroupNorm(groups, out_channels) if groups else nn.Identity()
        self.norm2 = nn.GroupNorm(groups, out_channels) if groups else nn.Identity()
        # in place: neither a convolution nor a norm needs its own output for its gradient
        self.activation = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}[activation](inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm1(self.conv1(x)))
        x = self.activation(self.norm2(self.conv2(x)))
        return x


class _Down(nn.Module):
    def __init__(
        self, n_dims: int, in_channels: int, out_channels: int, groups: int | None, activation: Activation
    ) -> None:
        super().__init__()
        self.downsample = convolution(n_dims)(in_channels, out_channels, kernel_size=2, stride=2)
        self.block = _DoubleConvolution(n_dims, out_channels, out_channels, groups, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.downsample(x))
        return x


class _Up(nn.Module):
    def __init__(
        self, n_dims: int, in_channels: int, skip_channels: int, groups: int | None, activation: Activation
    ) -> None:
        super().__init__()
        self.upsample = transposed_convolution(n_dims)(in_channels, in_channels, kernel_size=2, stride=2)
        self.block = _DoubleConvolution(n_dims, in_channels + skip_channels, skip_channels, groups, activation)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.block(torch.cat([self.upsample(x), skip], dim=1))
        return x
