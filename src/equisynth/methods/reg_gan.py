"""RegGAN: a generator whose output a registration network moves onto the label before the two are compared.

Kong, Lian, Huang, Li, Hu, Zhou: *Breaking the dilemma of medical image-to-image translation*, NeurIPS 2021, as Honkamaa
et al. 2023 compare it. Two dimensions, one image per step; the size of the images is part of the generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from equisynth.config import Count, NonNegative, Settings, Strict
from equisynth.errors import UserError
from equisynth.geometry.transforms import Field as Deformation
from equisynth.geometry.transforms import Image
from equisynth.geometry.warping import displaced, sample
from equisynth.methods import gan_parts, parts
from equisynth.methods.base import SELECTION, Batch, Deformations, Method, Overview, Update, frozen
from equisynth.networks.attention_gan import LEAST_SIDE, AttentionDiscriminator, AttentionGenerator, Logits
from equisynth.networks.field_network import ARCHITECTURES, FieldNetwork
from equisynth.networks.gan_layers import FinalActivation

MASK_TOLERANCE = 1e-6
"""A warped mask counts as valid from 1 - this on (as published; stricter than for the random transformations)."""


class RegGanOptions(Strict):
    """What ``settings.network`` holds. Aliases are the names in the published configurations.

    Attributes:
        similarity_weight: of the similarity after registration.
        registration_architecture: ``S`` (small patches) is ours.
        blocks: residual blocks of the generator.
        use_masking: none means true.
        generator_width, discriminator_width: channels after the first convolution, fixed as published.
    """

    similarity_weight: NonNegative = Field(20.0, serialization_alias="Corr_lamda")
    adversarial_weight: NonNegative = Field(1.0, serialization_alias="Adv_lamda")  # of the adversarial loss
    smoothness_weight: NonNegative = Field(10.0, serialization_alias="Smooth_lamda")  # of the deformation's smoothness
    registration_architecture: Literal["A", "B", "S"] = Field("A", serialization_alias="reg_architecture_config")
    blocks: Count = Field(7, serialization_alias="n_blocks")
    final_activation: FinalActivation = "linear"  # of the generator
    use_masking: bool | None = None
    generator_width: Count = 64
    discriminator_width: Count = 32


class Registered(NamedTuple):
    """An output G(x), the displacement that moves it onto the label, the moved output, and where to compare it.

    ``flow`` (1, 2, H, W) in pixels, rows first; ``mask`` (1, 1, H, W), none where all is compared.
    """

    output: Tensor
    flow: Tensor
    moved: Tensor
    mask: Tensor | None


class RegGan(Method):
    """G and the registration network against D, which sees an output or a label without the input."""

    Options: ClassVar[type[Strict]] = RegGanOptions

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.chosen = self.options(settings)
        channels, rate = settings.data.label.channels, settings.learning_rate.generator
        architecture = ARCHITECTURES[self.chosen.registration_architecture]
        self.networks = {
            "i2i": self.predictor(settings),
            "registration": FieldNetwork(2 * channels, architecture, "kaiming"),
        }
        self.optimisers = {"generator": parts.adam(self.networks.values(), rate, beta1=0.5)}
        self.networks["discriminator"] = AttentionDiscriminator(channels, self.chosen.discriminator_width)
        self.optimisers["discriminator"] = parts.adam([self.networks["discriminator"]], rate, beta1=0.5)

    @classmethod
    def options(cls, settings: Settings) -> RegGanOptions:
        """``settings.network``, checked, also against patches and batches.

        Raises:
            UserError: an unknown key, a value of another kind, patches that the networks cannot take, batches.
        """
        options = super().options(settings)
        assert isinstance(options, RegGanOptions)
        gan_parts.check_two_dimensional(settings)
        _check_sizes(settings, options)
        return options

    @classmethod
    def published_network(cls, settings: Settings) -> dict[str, Any]:
        """The options in the shape of the published configurations, with what follows from data and patches."""
        options = cls.options(settings)
        entry = gan_parts.published_entry(settings, options, {"generator_width", "discriminator_width"})
        return {**entry, "size": list(settings.patch_size[:2])}

    def updates(self, batch: Batch) -> Iterator[Update]:
        """G and the registration network first, then D on what the updated G makes of the same image."""
        batch = gan_parts.augmented(self.settings, batch)
        yield self._generator_update(batch)
        with torch.no_grad():
            output = self.networks["i2i"](batch.input.values)
        yield self._discriminator_update(batch, output)

    def validation(self, batch: Batch) -> dict[str, Tensor]:
        """The error of the output after registration."""
        batch = gan_parts.augmented(self.settings, batch)
        return {SELECTION: self._similarity(batch, self.registered(batch))}

    def registered(self, batch: Batch) -> Registered:
        """The output for a batch, moved onto its label."""
        output = self.networks["i2i"](batch.input.values)
        flow = self.networks["registration"](torch.cat([output, batch.label.values], dim=1))
        mask = None
        if self.masked:
            seen = sample(batch.input.valid(), displaced(flow.detach()), padding="zeros") >= 1 - MASK_TOLERANCE
            mask = seen.to(flow.dtype) * batch.label.valid()
        return Registered(output, flow, sample(output, displaced(flow)), mask)

    def deformations(self, batch: Batch) -> Deformations:
        """φ; there is no intra-modality step."""
        return Deformations(self.registered(batch).flow)

    def overview(self, batch: Batch) -> Overview:
        """G(x) before and after registration."""
        done = self.registered(batch)
        outputs = {"G(x), output": Image(done.output, batch.input.mask), "G(x)∘φ": Image(done.moved, done.mask)}
        field = {"φ, registration": Deformation(done.flow)}
        return Overview({"x, input": batch.input}, outputs, {"y, label": batch.label}, field)

    @property
    def masked(self) -> bool:
        """Whether D and the similarity see nothing of what masks call invalid."""
        return self.chosen.use_masking is not False

    @staticmethod
    def predictor(settings: Settings) -> nn.Module:
        """G alone."""
        options = RegGan.options(settings)
        height, width = settings.patch_size[:2]
        return AttentionGenerator(
            settings.data.input.channels,
            settings.data.label.channels,
            (height, width),
            options.generator_width,
            options.blocks,
            options.final_activation,
        )

    @staticmethod
    def translate(network: nn.Module, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pictures (B, C, H, W), or slices (B, C, H, W, 1), of the size that the network was trained with.

        Raises:
            UserError: another size.
        """
        assert isinstance(network, AttentionGenerator)
        found = tuple(values.shape[2:4])
        if found != network.shape:
            raise UserError(f"RegGAN translates tiles of {network.shape} pixels (patch_size) only, found {found}")
        return gan_parts.slice_wise(network, values)

    def _generator_update(self, batch: Batch) -> Update:
        done = self.registered(batch)
        with frozen(self.networks["discriminator"]) as network:
            judged = network(self._shown(batch, done.output))
        weights = self.chosen
        terms = {
            "similarity": (weights.similarity_weight, self._similarity(batch, done)),
            "adversarial": (weights.adversarial_weight, judgement(judged, real=True)),
            "smoothness": (weights.smoothness_weight, smoothness(done.flow)),
        }
        total = torch.stack([weight * value for weight, value in terms.values()]).sum()
        log = {name: value.detach() for name, (_, value) in terms.items()}
        return Update("generator", total, log | {"loss": total.detach()})

    def _discriminator_update(self, batch: Batch, output: Tensor) -> Update:
        network, weight = self.networks["discriminator"], self.chosen.adversarial_weight
        # Fake first: each pass advances D's power iterations.
        on_fake = judgement(network(self._shown(batch, output)), real=False)
        on_real = judgement(network(self._shown(batch, batch.label.values)), real=True)
        log = {"discriminator_fake": on_fake.detach(), "discriminator_real": on_real.detach()}
        return Update("discriminator", weight * (on_fake + on_real), log)

    def _similarity(self, batch: Batch, done: Registered) -> Tensor:
        error = (done.moved - batch.label.values).abs()
        return (error if done.mask is None else error * done.mask).mean()

    def _shown(self, batch: Batch, image: Tensor) -> Tensor:
        """What D is shown of an image: it is zero where input or label are invalid."""
        return image * batch.input.comparison_mask(batch.label) if self.masked else image


def judgement(logits: Logits, real: bool) -> Tensor:
    """How far D is from calling an image real, or fake: squared distances, the mean of each head, their sum."""
    return torch.stack([(head - float(real)).square().mean() for head in logits]).sum()


def smoothness(flow: Tensor) -> Tensor:
    """Mean squared difference of neighbours along rows plus that along columns, of (B, 2, H, W)."""
    return flow.diff(dim=2).square().mean() + flow.diff(dim=3).square().mean()


def _check_sizes(settings: Settings, options: RegGanOptions) -> None:
    """One image per step, of a size that all three networks take."""
    if settings.batch_size != 1:
        raise UserError(
            f"params.yaml: {settings.experiment}: batch_size: found {settings.batch_size}, expected 1: RegGAN is "
            "defined for one image per step"
        )
    name, sides = options.registration_architecture, settings.patch_size[:2]
    if any(side % 4 or side < LEAST_SIDE for side in sides):
        raise UserError(
            f"params.yaml: {settings.experiment}: patch_size: found {list(settings.patch_size)}, expected sides that "
            f"are multiples of 4 and at least {LEAST_SIDE} (RegGAN's generator and discriminator)"
        )
    if min(sides) < ARCHITECTURES[name].least_side:
        fitting = [other for other, kind in ARCHITECTURES.items() if kind.least_side <= min(sides)]
        expected = f"one that takes such patches ({', '.join(fitting)}): patch_size is {list(settings.patch_size)}"
        raise gan_parts.network_error(settings, "registration_architecture", name, expected)


METHOD = RegGan
