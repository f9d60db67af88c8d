"""Pix2pix: a generator that a discriminator judges beside its input (Isola et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field
from torch import Tensor, cat, nn

from equisynth.config import NonNegative, Settings, Strict
from equisynth.losses import masked_error
from equisynth.methods import gan_parts
from equisynth.methods.base import Batch, Update, frozen


class Pix2PixOptions(gan_parts.GanOptions):
    """What ``settings.network`` holds."""

    l1_weight: NonNegative = Field(100.0, serialization_alias="lambda_L1")  # of the mean absolute error


class Pix2Pix(gan_parts.GanMethod):
    """Needs aligned pairs: the generator is to reproduce the label, pixel by pixel and to the discriminator's eye."""

    Options: ClassVar[type[Strict]] = Pix2PixOptions
    chosen: Pix2PixOptions

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        options = self.options(settings)
        assert isinstance(options, Pix2PixOptions)
        self.chosen = options
        channels = settings.data.input.channels + settings.data.label.channels
        self.networks = {
            "i2i": gan_parts.generator(settings, options),
            "discriminator": gan_parts.discriminator(options, channels),
        }
        self.optimisers = {
            optimiser: gan_parts.adam([self.networks[network]], settings.learning_rate.generator, options.beta1)
            for optimiser, network in (("generator", "i2i"), ("discriminator", "discriminator"))
        }

    def updates(self, batch: Batch) -> Iterator[Update]:
        """The discriminator, then the generator through the updated one, both on the same translation."""
        batch = gan_parts.augmented(self.settings, batch)
        mask = batch.input.comparison_mask(batch.label) if self.chosen.masked else 1
        source, target = batch.input.values * mask, batch.label.values * mask
        fake = self.networks["i2i"](source) * mask

        on_fake = self._judged(source, fake.detach(), real=False)
        on_real = self._judged(source, target, real=True)
        log = {"discriminator_real": on_real.detach(), "discriminator_fake": on_fake.detach()}
        yield Update("discriminator", (on_fake + on_real) / 2, log)

        with frozen(self.networks["discriminator"]):
            fooled = self._judged(source, fake, real=True)
        difference = self.chosen.l1_weight * masked_error(fake, target, None)
        total = fooled + difference
        log = {"adversarial": fooled.detach(), "l1": difference.detach(), "loss": total.detach()}
        yield Update("generator", total, log)

    @staticmethod
    def predictor(settings: Settings) -> nn.Module:
        """The generator alone."""
        return gan_parts.generator(settings, Pix2Pix.options(settings))

    def _judged(self, source: Tensor, image: Tensor, real: bool) -> Tensor:
        """The discriminator's loss on an image (B, C', H, W) beside the input (B, C, H, W) it belongs to."""
        logits = self.networks["discriminator"](cat([source, image], dim=1))
        return gan_parts.adversarial(logits, real, self.chosen.gan_loss)


METHOD = Pix2Pix
