"""The registration networks of NEMAR and RegGAN: a U-Net that predicts a displacement, and NEMAR's affine one."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equisynth.networks.gan_layers import ReflectedResidualBlock

SLOPE = 0.2


class FieldArchitecture(NamedTuple):
    """Channels per level on the way down, on the way up (deepest first), and residual blocks at the bottom."""

    down: tuple[int, ...]
    up: tuple[int, ...]
    blocks: int = 3

    @property
    def least_side(self) -> int:
        """Of the images: two pixels must be left at the bottom, whose borders are reflected."""
        return 2 ** (len(self.down) + 1)


ARCHITECTURES = {
    "A": FieldArchitecture((32, *(64,) * 6), (*(64,) * 6, 32)),  # sides of at least 256
    "B": FieldArchitecture((32, *(64,) * 5), (*(64,) * 5, 32)),  # at least 128
    "S": FieldArchitecture((32, *(64,) * 3), (*(64,) * 3, 32)),  # at least 32; ours, for small patches
}


class FieldNetwork(nn.Module):
    """Displacement field ``(B, 2, H, W)`` from two images joined on channels ``(B, in_channels, H, W)``.

    Arar et al., *Unsupervised multi-modal image registration via geometry preserving image-to-image translation*,
    CVPR 2020. What the two channels mean is for the caller: x and y in normalised units (NEMAR), rows and columns in
    pixels (RegGAN).

    Args:
        initialisation: of all convolutions but those on the way up, which are always kaiming.
        near_identity: the output convolution starts at N(0, 1e-5).
    """

    def __init__(
        self,
        in_channels: int,
        architecture: FieldArchitecture,
        initialisation: Literal["normal", "kaiming"] = "normal",
        near_identity: bool = True,
    ) -> None:
        super().__init__()
        down, up, blocks = architecture
        self.least_side = architecture.least_side
        bottom = down[-1]
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(above, below, 3, padding=1), nn.LeakyReLU(SLOPE), ReflectedResidualBlock(below))
            for above, below in zip((in_channels, *down[:-1]), down, strict=True)
        )
        self.bottom = nn.Sequential(
            nn.Conv2d(bottom, 2 * bottom, 1), nn.LeakyReLU(SLOPE),
            *(ReflectedResidualBlock(2 * bottom) for _ in range(blocks)),
            nn.Conv2d(2 * bottom, bottom, 1), nn.LeakyReLU(SLOPE),
        )  # fmt: skip
        self.up = nn.ModuleList(
            nn.Conv2d(below + skip, above, 3, padding=1)
            for below, skip, above in zip((bottom, *up[:-1]), reversed(down), up, strict=True)
        )
        self.refine = nn.Sequential(
            ReflectedResidualBlock(up[-1]), nn.Conv2d(up[-1], up[-1], 1), nn.LeakyReLU(SLOPE)
        )  # fmt: skip
        self.output = nn.Conv2d(up[-1], 2, 3, padding=1)
        self._initialise(initialisation, near_identity)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.down:
            skips.append(down(x))
            x = F.max_pool2d(skips[-1], 2)
        if min(x.shape[2:]) < 2:
            raise ValueError(f"field network: {len(self.down)} levels need sides of at least {self.least_side}")
        x = self.bottom(x)
        for up in self.up:
            skip = skips.pop()
            x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
            x = F.leaky_relu(up(torch.cat([x, skip], dim=1)), SLOPE)
        field: Tensor = self.output(self.refine(x))
        return field

    def _initialise(self, kind: str, near_identity: bool) -> None:
        blocks = [module for module in self.modules() if isinstance(module, ReflectedResidualBlock)]
        relu = {inner for block in blocks for inner in block.modules()}  # the only ones in front of a ReLU
        for module in self.modules():
            if not isinstance(module, nn.Conv2d):
                continue
            nn.init.zeros_(module.bias) if module.bias is not None else None
            if module in set(self.up) or (kind == "kaiming" and module not in relu):
                nn.init.kaiming_normal_(module.weight, SLOPE, nonlinearity="leaky_relu")
            elif kind == "kaiming":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, 0.0, 0.02)
        if near_identity:
            nn.init.normal_(self.output.weight, 0.0, 1e-5)


class AffineNetwork(nn.Module):
    """NEMAR's affine alternative: the difference (B, 2, 3) of a matrix from the identity (not published).

    Args:
        shape: (H, W) of the images, which fixes the size of a linear layer.
    """

    WIDTHS = (32, 64, 128, 256, 256)
    LEAST_SIDE = 2 ** len(WIDTHS)

    def __init__(self, in_channels: int, shape: tuple[int, int]) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for above, below in zip((in_channels, *self.WIDTHS[:-1]), self.WIDTHS, strict=True):
            blocks += [nn.Conv2d(above, below, 3, padding=1), nn.InstanceNorm2d(below), nn.ReLU(), nn.MaxPool2d(2)]
        self.convolutions = nn.Sequential(*blocks)
        cells = (shape[0] // self.LEAST_SIDE) * (shape[1] // self.LEAST_SIDE)
        self.linear = nn.Sequential(nn.Linear(self.WIDTHS[-1] * cells, self.WIDTHS[-1]), nn.ReLU())
        self.output = nn.Linear(self.WIDTHS[-1], 6)
        nn.init.normal_(self.output.weight, 0.0, 5e-4)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        difference: Tensor = self.output(self.linear(self.convolutions(x).flatten(start_dim=1)))
        return difference.view(-1, 2, 3)
