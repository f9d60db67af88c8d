"""Generator and discriminator of RegGAN, with channel attention and instance-layer norms (Kim et al., U-GAT-IT 2020).

Kong et al., *Breaking the dilemma of medical image-to-image translation*, NeurIPS 2021, as the paper compares it.
Batches hold one image. The spectral norms advance by one power iteration at every pass in training mode.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm  # v before u, as published; the parametrised one has the opposite order

from equisynth.networks.gan_layers import FinalActivation, final_layer

SLOPE, EPSILON = 0.2, 1e-5
LEAST_SIDE = 64
"""Of images: smaller ones leave nothing to the discriminator's global head."""


class Logits(NamedTuple):
    """What the discriminator says: of small patches, of large ones, and of the pooled features (the attention)."""

    local: Tensor
    large: Tensor
    attention: Tensor


class ChannelAttention(nn.Module):
    """Doubles the channels, scales each by the weight of a classifier of pooled features, and mixes them down again.

    The weight used as gate is the raw one; the classifier itself uses the spectrally normalised one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(1))
        self.classifier = spectral_norm(nn.Linear(2 * channels, 1, bias=False))
        self.mix = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, H, W)`` to the attended ``(B, C, H, W)`` and the classifier's logits ``(B, 1)``."""
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        logits = self.classifier(pooled)
        raw = self.classifier.weight_orig
        assert isinstance(raw, Tensor)
        gate = raw[:, :, None, None]
        mixed = self.mix(torch.cat([x, x], dim=1) * gate)
        return nn.functional.leaky_relu(self.strength * mixed + x, SLOPE), logits


class InstanceLayerNorm(nn.Module):
    """A learned mixture of instance and layer norm, with scale and shift given (adaptive) or learned.

    Args:
        adaptive: scale and shift come with each call; starts as instance norm rather than as layer norm.
    """

    def __init__(self, channels: int, adaptive: bool = False) -> None:
        super().__init__()
        start = (3.2, 1.0) if adaptive else (1.0, 3.2)
        self.mixture = nn.Parameter(torch.tensor(start).expand(1, channels, 2).clone())
        if not adaptive:
            self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
            self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """``x`` (B, C, H, W); ``scale`` and ``shift`` (B, C) where adaptive."""
        share = self.mixture.softmax(dim=2)[..., None, None]  # (1, C, 2, 1, 1)
        mixed = share[:, :, 0] * _standardised(x, (2, 3)) + share[:, :, 1] * _standardised(x, (1, 2, 3))
        if scale is None or shift is None:
            return self.scale * mixed + self.shift
        return scale[:, :, None, None] * mixed + shift[:, :, None, None]


class AttentionGenerator(nn.Module):
    """RegGAN's generator.

    Args:
        shape: (H, W) of its images, divisible by four: it fixes the size of a linear layer.
        features: channels after the first convolution.
        blocks: residual blocks at a quarter of the resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shape: tuple[int, int],
        features: int = 64,
        blocks: int = 7,
        final_activation: FinalActivation = "linear",
    ) -> None:
        super().__init__()
        if shape[0] % 4 or shape[1] % 4:
            raise ValueError(f"attention generator: shape {shape} must be divisible by 4")
        self.shape, f = shape, features
        self.attention = ChannelAttention(2 * f)
        self.scale = nn.Linear(4 * f, 4 * f, bias=False)
        self.shift = nn.Linear(4 * f, 4 * f, bias=False)
        self.blocks = nn.ModuleList(_AdaptiveBlock(4 * f) for _ in range(blocks))
        self.encoder = nn.Sequential(*_down(in_channels, f), *_down(f, 2 * f))
        self.style = nn.Sequential(
            nn.Linear(f * shape[0] * shape[1] // 4, 4 * f, bias=False), nn.ReLU(),
            nn.Linear(4 * f, 4 * f, bias=False), nn.ReLU(),
        )  # fmt: skip
        self.widen = nn.Sequential(
            nn.ReplicationPad2d(1), nn.Conv2d(2 * f, 4 * f, 3), InstanceLayerNorm(4 * f), nn.ReLU()
        )  # fmt: skip
        self.decoder = nn.Sequential(
            *_up(4 * f, 2 * f),
            *_up(2 * f, f),
            nn.ReplicationPad2d(3),
            nn.Conv2d(f, out_channels, 7, bias=final_activation == "linear"),
            final_layer(final_activation),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(1, in_channels, *shape)`` to ``(1, out_channels, *shape)``."""
        if tuple(x.shape[2:]) != tuple(self.shape):
            raise ValueError(f"attention generator: image of shape {tuple(x.shape[2:])}, built for {self.shape}")
        attended, _ = self.attention(self.encoder(x))
        y = self.widen(attended)
        style = self.style(y.flatten(start_dim=1))
        scale, shift = self.scale(style), self.shift(style)
        for block in self.blocks:
            y = block(y, scale, shift)
        out: Tensor = self.decoder(y)
        return out


class AttentionDiscriminator(nn.Module):
    """RegGAN's discriminator with a local, a global and an attention head.

    Args:
        features: channels after the first convolution.
    """

    def __init__(self, in_channels: int, features: int = 32) -> None:
        super().__init__()
        f = features
        self.attention = ChannelAttention(2 * f)
        self.local_head = spectral_norm(nn.Conv2d(8 * f, 1, 4, bias=False))
        self.global_head = spectral_norm(nn.Conv2d(32 * f, 1, 3, bias=False))
        self.encoder = nn.Sequential(*_down(in_channels, f), *_down(f, 2 * f))
        self.shared = nn.Sequential(*_down(2 * f, 4 * f))
        self.local = nn.Sequential(*_down(4 * f, 8 * f, stride=1))
        self.coarse = nn.Sequential(
            *_down(4 * f, 8 * f), *_down(8 * f, 16 * f), *_down(16 * f, 32 * f, stride=1)
        )  # fmt: skip
        self.pad = nn.ReplicationPad2d(1)

    def forward(self, x: Tensor) -> Logits:
        """Logits of images ``(1, C, H, W)``."""
        attended, attention = self.attention(self.encoder(x))
        shared = self.shared(attended)
        local = self.local_head(self.pad(self.local(shared)))
        return Logits(local, self.global_head(self.pad(self.coarse(shared))), attention)


class _AdaptiveBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(1)
        self.conv1 = nn.Conv2d(channels, channels, 3, bias=False)
        self.norm1 = InstanceLayerNorm(channels, adaptive=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, bias=False)
        self.norm2 = InstanceLayerNorm(channels, adaptive=True)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y = self.norm1(self.conv1(self.pad(x)), scale, shift).relu()
        result: Tensor = x + self.norm2(self.conv2(self.pad(y)), scale, shift)
        return result


def _down(in_channels: int, out_channels: int, stride: int = 2) -> list[nn.Module]:
    """4-wide convolution under spectral norm on repeated borders, leaky ReLU."""
    convolution = spectral_norm(nn.Conv2d(in_channels, out_channels, 4, stride=stride))
    return [nn.ReplicationPad2d(1), convolution, nn.LeakyReLU(SLOPE)]


def _up(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Twice the resolution by rearranging channels."""
    return [
        nn.ReflectionPad2d(1), nn.Conv2d(in_channels, out_channels, 3, bias=False), InstanceLayerNorm(out_channels),
        nn.ReLU(),
        nn.Conv2d(out_channels, 4 * out_channels, 1), nn.PixelShuffle(2), InstanceLayerNorm(out_channels), nn.ReLU(),
    ]  # fmt: skip


def _standardised(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    mean, variance = x.mean(dim=axes, keepdim=True), x.var(dim=axes, keepdim=True)  # unbiased, as published
    return (x - mean) / (variance + EPSILON).sqrt()
