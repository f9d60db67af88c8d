"""What methods with our own networks share: the image-to-image network, the discriminator and its update, Adam."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Adam

from equisynth.config import Rigidity, Settings
from equisynth.losses import RigidityPenalty, adversarial
from equisynth.methods.base import Method, Update, frozen
from equisynth.networks.discriminator import Discriminator
from equisynth.networks.unet import UNet


def image_to_image_network(settings: Settings) -> nn.Module:
    """F: from the channels of the input to those of the label."""
    assert settings.features.i2i is not None
    network = UNet(
        settings.data.n_dims,
        settings.data.input.channels,
        settings.data.label.channels,
        settings.features.i2i,
        settings.normalization_groups,
        "leaky_relu",
        settings.final_activation,
    )
    return laid_out(network, settings.data.n_dims)


def discriminator(settings: Settings) -> nn.Module:
    """D: sees a label-like image, beside an input image if it is conditional."""
    assert settings.features.discriminator is not None
    condition = settings.data.input.channels if settings.discriminator == "conditional" else 0
    channels = condition + settings.data.label.channels
    network = Discriminator(settings.data.n_dims, channels, settings.features.discriminator)
    return laid_out(network, settings.data.n_dims)


def laid_out(network: nn.Module, n_dims: int) -> nn.Module:
    """The network with its weights in the memory layout in which its convolutions are fastest; same values."""
    if n_dims == 3:
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network


def adam(networks: Iterable[nn.Module], learning_rate: float | None, beta1: float) -> Adam:
    """Adam, in its fused implementation, over the parameters of some networks."""
    assert learning_rate is not None
    parameters = itertools.chain.from_iterable(network.parameters() for network in networks)
    return Adam(parameters, lr=learning_rate, betas=(beta1, 0.999), fused=True)


def rigidity_penalty(settings: Settings) -> RigidityPenalty:
    """The rigidity penalty of the settings, in the world units of the data."""
    given = settings.rigidity or Rigidity()
    return RigidityPenalty(
        settings.data.voxel_size,
        given.affinity_weight,
        given.orthonormality_weight,
        given.properness_weight,
        given.first_derivatives_central,
        given.second_derivatives_central,
    )


def discriminator_update(method: Method, condition: Tensor | None, real: Tensor, fake: Tensor) -> Update:
    """D's step: real and fake, both without a graph, in two passes (each advances D's power iterations)."""
    network, weight = method.networks["discriminator"], method.settings.loss.discriminator
    assert weight is not None
    on_real = adversarial(network(real, condition), real=True)
    on_fake = adversarial(network(fake, condition), real=False)
    log = {"discriminator_real": on_real.detach(), "discriminator_fake": on_fake.detach()}
    return Update("discriminator", weight * (on_real + on_fake), log)


def fooling(discriminator: nn.Module, condition: Tensor | None, fake: Tensor) -> Tensor:
    """The generator's adversarial loss: D should take the fake image for real. D's weights get no gradient."""
    with frozen(discriminator) as network:
        return adversarial(network(fake, condition), real=True)
