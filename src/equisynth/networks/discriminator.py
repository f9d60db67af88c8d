"""The spectrally normalised residual discriminator, with or without a condition image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from equisynth.networks.layers import ResidualBlock, check_shape, convolution, down_path


class Discriminator(nn.Module):
    """One logit per image: is it real (of the condition image, where there is one)?

    Spectral norm (Miyato et al. 2018) in every layer but the stem: each pass in training mode advances the
    power iteration by one.

    Args:
        n_dims: number of spatial dimensions, 2 or 3.
        in_channels: channels of the image plus those of the condition image.
        features: channels per down block; every axis is halved ``len(features)`` times.
    """

    def __init__(self, n_dims: int, in_channels: int, features: Sequence[int]) -> None:
        super().__init__()
        self.halvings = len(features)
        activation = nn.LeakyReLU(inplace=True)
        # The padding of the 1-wide stem grows every axis by two voxels: kept from the reference, as is that there
        # is no stem where the channels happen to agree.
        self.stem = (
            convolution(n_dims)(in_channels, features[0], kernel_size=1, padding=1)
            if in_channels != features[0]
            else nn.Identity()
        )
        self.initial_block = ResidualBlock(n_dims, features[0], activation, spectral_norm)
        self.down_blocks = down_path(n_dims, features, activation, spectral_norm)
        self.final_block = ResidualBlock(n_dims, features[-1], activation, spectral_norm)
        self.linear = spectral_norm(nn.Linear(features[-1], 1))

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits ``(B,)`` of ``image`` ``(B, C, *S)``, seen beside ``condition`` ``(B, C', *S)``."""
        shape = image.shape[2:]
        check_shape(shape, self.halvings, "discriminator")
        x = image if condition is None else torch.cat([condition, image], dim=1)
        x = self.initial_block(self.stem(x))
        for down in self.down_blocks:
            x = down(x)
        x = self.final_block(x).relu()
        # The pool has the size of the image without the stem's growth; what sticks out is left out.
        pooled = tuple(slice(size >> self.halvings) for size in shape)
        x = x[(slice(None), slice(None), *pooled)].flatten(start_dim=2).mean(dim=2)  # (B, features[-1])
        logits: Tensor = self.linear(x)
        return logits.squeeze(1)
