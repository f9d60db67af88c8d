"""The generator of pix2pix: a U-Net down to a single pixel (Isola et al. 2017), here for any size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equisynth.networks.gan_layers import FinalActivation, Norm, final_layer, has_bias, norm_layer

LEVELS = {"unet_128": 7, "unet_256": 8, "unet_512": 9}


class SkipGenerator(nn.Module):
    """``unet_128``, ``unet_256``, ``unet_512``: 7, 8, 9 halvings with skip connections.

    A level of odd size is padded by zeros at the bottom or right and cut again afterwards, so that e.g. 160 x 192
    passes through eight halvings. Instance norm needs more than one pixel: some side must exceed 2^(levels - 1).

    Args:
        features: channels of the first level: f, 2f, 4f, then 8f in all deeper ones.
        dropout: half of the activations in the deepest levels but one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int = 64,
        levels: int = 8,
        norm: Norm = "instance",
        dropout: bool = False,
        final_activation: FinalActivation = "linear",
    ) -> None:
        super().__init__()
        widths = [features * min(2**level, 8) for level in range(levels)]
        bias, last = has_bias(norm), levels - 1
        self.down = nn.ModuleList(
            nn.Conv2d(above, below, 4, stride=2, padding=1, bias=bias)
            for above, below in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        # from the innermost level out, as they are used; inside, a level hands on its input beside its result
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(
                widths[level] * (1 if level == last else 2), widths[level - 1] if level else out_channels, 4,
                stride=2, padding=1, bias=bias or level == 0,
            )
            for level in reversed(range(levels))
        )  # fmt: skip
        self.down_norms = nn.ModuleList(
            norm_layer(norm if 0 < level < last else "none", widths[level]) for level in range(levels)
        )
        self.up_norms = nn.ModuleList(
            norm_layer(norm if level else "none", widths[level - 1] if level else out_channels)
            for level in reversed(range(levels))
        )
        self.dropouts = nn.ModuleList(
            nn.Dropout(0.5) if dropout and 4 <= level < last else nn.Identity() for level in reversed(range(levels))
        )
        self.final_activation = final_layer(final_activation)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        y: Tensor = self.final_activation(self._level(x, 0))
        return y

    def _level(self, x: Tensor, level: int) -> Tensor:
        height, width = x.shape[2:]
        last = len(self.down) - 1
        y = F.pad(x, (0, width % 2, 0, height % 2))
        y = self.down_norms[level](self.down[level](F.leaky_relu(y, 0.2) if level else y))
        if level < last:
            y = torch.cat([y, self._level(y, level + 1)], dim=1)
        y = self.up_norms[last - level](self.up[last - level](F.relu(y)))
        return self.dropouts[last - level](y)[..., :height, :width]
