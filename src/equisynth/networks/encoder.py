"""The residual encoder that predicts a few numbers from a volume: the parameters of a rigid transformation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equisynth.networks.layers import ResidualBlock, convolution, down_path


class RigidEncoder(nn.Module):
    """Residual encoder, global average pool, linear: rotation angles and translation of a rigid transformation.

    Pooling forgets where things are; the coordinates given as further channels keep it.

    Args:
        n_dims: number of spatial dimensions, 2 or 3.
        in_channels: channels of the volume, without the coordinates.
        features: channels per down block; every axis is halved, rounded down, ``len(features)`` times.
    """

    def __init__(self, n_dims: int, in_channels: int, features: Sequence[int]) -> None:
        super().__init__()
        self.halvings = len(features)
        self.n_angles = n_dims * (n_dims - 1) // 2
        activation = nn.ReLU(inplace=True)
        self.stem = convolution(n_dims)(in_channels + n_dims, features[0], kernel_size=3, padding=1)
        self.initial_block = ResidualBlock(n_dims, features[0], activation)
        self.down_blocks = down_path(n_dims, features, activation)
        self.final_block = ResidualBlock(n_dims, features[-1], activation)
        self.linear = nn.Linear(features[-1], self.n_angles + n_dims)

    def forward(self, volume: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Angles ``(B, 1 or 3)`` in radians and translation ``(B, n)`` in world units.

        ``volume`` is ``(B, C, *S)``, ``coordinates`` ``(B, n, *S)``: index x voxel size / shape along each axis.
        """
        shape = tuple(volume.shape[2:])
        if min(shape) < 2**self.halvings:
            raise ValueError(
                f"rigid encoder: spatial shape {shape} must be at least {2**self.halvings} along every axis"
            )
        x = self.initial_block(self.stem(torch.cat([volume, coordinates], dim=1)))
        for down in self.down_blocks:
            x = down(x)
        x = self.final_block(x).relu().flatten(start_dim=2).float().mean(dim=2)  # (B, features[-1])
        with torch.autocast(x.device.type, enabled=False):  # half precision would round positions of far voxels
            parameters = self.linear(x)
        return parameters[:, : self.n_angles], parameters[:, self.n_angles :]
