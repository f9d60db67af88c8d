"""The discriminators of pix2pix, CycleGAN and NEMAR: one logit per overlapping patch, or per pixel."""

from __future__ import annotations

from torch import Tensor, nn

from equisynth.networks.gan_layers import Norm, has_bias, norm_layer


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): ``layers`` = 3 is ``basic``, which sees 70 x 70 pixels."""

    def __init__(self, in_channels: int, features: int = 64, layers: int = 3, norm: Norm = "instance") -> None:
        super().__init__()
        widths = [features * min(2**layer, 8) for layer in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, features, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            convolution = nn.Conv2d(
                widths[layer - 1], widths[layer], 4, stride=stride, padding=1, bias=has_bias(norm)
            )  # fmt: skip
            blocks += [convolution, norm_layer(norm, widths[layer]), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, 1, h, w)`` of ``(B, in_channels, H, W)``; 256² becomes 30²."""
        logits: Tensor = self.layers(x)
        return logits


class PixelDiscriminator(nn.Module):
    """One logit per pixel from 1-wide convolutions (``netD: pixel``; not in the published configurations)."""

    def __init__(self, in_channels: int, features: int = 64, norm: Norm = "instance") -> None:
        super().__init__()
        bias = has_bias(norm)
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, features, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(features, 2 * features, 1, bias=bias),
            norm_layer(norm, 2 * features),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * features, 1, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, 1, H, W)`` of ``(B, in_channels, H, W)``."""
        logits: Tensor = self.layers(x)
        return logits
