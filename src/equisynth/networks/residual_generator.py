"""The generator of CycleGAN and NEMAR: down twice, residual blocks, up twice (Johnson et al. 2016; Zhu et al. 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from equisynth.networks.gan_layers import (
    FinalActivation,
    Norm,
    ReflectedResidualBlock,
    final_layer,
    has_bias,
    norm_layer,
)


class ResidualGenerator(nn.Module):
    """``resnet_<n>blocks``.

    Args:
        features: channels at full resolution; four times as many in the blocks.
        blocks: 3, 6 or 9 in the published configurations.
        dropout: inside the blocks.
        final_activation: ``linear``, or ``tanh`` as in the original papers.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int = 64,
        blocks: int = 9,
        norm: Norm = "instance",
        dropout: bool = False,
        final_activation: FinalActivation = "linear",
    ) -> None:
        super().__init__()
        f, bias = features, has_bias(norm)

        def normed(layer: nn.Module, channels: int) -> list[nn.Module]:
            return [layer, norm_layer(norm, channels), nn.ReLU()]

        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3),
            *normed(nn.Conv2d(in_channels, f, 7, bias=bias), f),
            *normed(nn.Conv2d(f, 2 * f, 3, stride=2, padding=1, bias=bias), 2 * f),
            *normed(nn.Conv2d(2 * f, 4 * f, 3, stride=2, padding=1, bias=bias), 4 * f),
            *(ReflectedResidualBlock(4 * f, norm, dropout) for _ in range(blocks)),
            *normed(nn.ConvTranspose2d(4 * f, 2 * f, 3, stride=2, padding=1, output_padding=1, bias=bias), 2 * f),
            *normed(nn.ConvTranspose2d(2 * f, f, 3, stride=2, padding=1, output_padding=1, bias=bias), f),
            nn.ReflectionPad2d(3),
            nn.Conv2d(f, out_channels, 7),
            final_layer(final_activation),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, out_channels, H', W')``: sizes rounded up to multiples of four."""
        y: Tensor = self.layers(x)
        return y
