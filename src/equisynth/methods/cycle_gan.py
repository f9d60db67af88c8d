"""CycleGAN: two generators, each the other's inverse, and a discriminator per modality (Zhu et al., ICCV 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from equisynth.config import NonNegative, Settings, Strict
from equisynth.losses import masked_error
from equisynth.methods import gan_parts
from equisynth.methods.base import Batch, Update, frozen
from equisynth.methods.image_pool import ImagePool

LABEL, INPUT = "label", "input"


class CycleGanOptions(gan_parts.GanOptions):
    """What ``settings.network`` holds.

    Attributes:
        cycle_weight_input, cycle_weight_label: of the way there and back that starts from this modality.
        identity_weight: relative to those; above 0 a generator is to leave images of its target modality alone.
    """

    cycle_weight_input: NonNegative = Field(10.0, serialization_alias="lambda_A")
    cycle_weight_label: NonNegative = Field(10.0, serialization_alias="lambda_B")
    identity_weight: NonNegative = Field(0.0, serialization_alias="lambda_identity")


class CycleGan(gan_parts.GanMethod):
    """Needs no pairs: discriminators know each modality, and what is translated there and back must be what it was.

    ``networks["i2i"]`` goes from input to label, ``networks["back"]`` from label to input; ``discriminator_label``
    judges labels and what looks like them, ``discriminator_input`` inputs.
    """

    Options: ClassVar[type[Strict]] = CycleGanOptions
    chosen: CycleGanOptions

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        options = self.options(settings)
        assert isinstance(options, CycleGanOptions)
        self.chosen = options
        self.networks = {
            "i2i": gan_parts.generator(settings, options),
            "back": gan_parts.generator(settings, options, reverse=True),
            "discriminator_label": gan_parts.discriminator(options, settings.data.label.channels),
            "discriminator_input": gan_parts.discriminator(options, settings.data.input.channels),
        }
        pairs = {"generators": ("i2i", "back"), "discriminators": ("discriminator_label", "discriminator_input")}
        self.optimisers = {
            name: gan_parts.adam([self.networks[one] for one in pair], settings.learning_rate.generator, options.beta1)
            for name, pair in pairs.items()
        }
        self.pools = {LABEL: ImagePool(options.pool_size), INPUT: ImagePool(options.pool_size)}
        self.draws = Random()

    @classmethod
    def options(cls, settings: Settings) -> gan_parts.GanOptions:
        """See `GanMethod.options`."""
        options = super().options(settings)
        assert isinstance(options, CycleGanOptions)
        channels = settings.data.input.channels, settings.data.label.channels
        if options.identity_weight and channels[0] != channels[1]:
            expected = f"0: an input of {channels[0]} channels is no label of {channels[1]}"
            raise gan_parts.network_error(settings, "identity_weight", options.identity_weight, expected)
        return options

    def start_epoch(self, epoch: int) -> None:
        """Sets learning rates; what is drawn in an epoch follows from the seed and its number."""
        super().start_epoch(epoch)
        self.draws = Random(f"{self.settings.seed} {epoch}")

    def memory(self) -> dict[str, Any]:
        """The images in the pools."""
        return {f"pool of {side}s": pool.images for side, pool in self.pools.items() if pool.size}

    def recall(self, memory: dict[str, Any]) -> None:
        """Fills the pools."""
        for side, pool in self.pools.items():
            pool.images = list(memory.get(f"pool of {side}s", []))

    def updates(self, batch: Batch) -> Iterator[Update]:
        """Both generators, then both discriminators on the translations from before that step."""
        batch = gan_parts.augmented(self.settings, batch)
        real = {INPUT: batch.input.values, LABEL: batch.label.values}
        there, back = self.networks["i2i"], self.networks["back"]
        # masks come after both ways: the second translation sees all of the first
        fake = {LABEL: there(real[INPUT]), INPUT: back(real[LABEL])}
        cycled = {INPUT: back(fake[LABEL]), LABEL: there(fake[INPUT])}
        if self.chosen.masked:
            valid = {INPUT: batch.input.valid(), LABEL: batch.label.valid()}
            fake = {LABEL: fake[LABEL] * valid[INPUT], INPUT: fake[INPUT] * valid[LABEL]}
            cycled = {side: image * valid[side] for side, image in cycled.items()}
        yield self._generator_update(real, fake, cycled)
        yield self._discriminator_update(real, fake)

    @staticmethod
    def predictor(settings: Settings) -> nn.Module:
        """The generator from input to label alone."""
        return gan_parts.generator(settings, CycleGan.options(settings))

    def _generator_update(self, real: dict[str, Tensor], fake: dict[str, Tensor], cycled: dict[str, Tensor]) -> Update:
        weights = {INPUT: self.chosen.cycle_weight_input, LABEL: self.chosen.cycle_weight_label}
        terms = {}
        for side in (LABEL, INPUT):
            with frozen(self.networks[f"discriminator_{side}"]):
                terms[f"adversarial_{side}"] = self._judged(side, fake[side], real=True)
            terms[f"cycle_{side}"] = weights[side] * masked_error(cycled[side], real[side], None)
            if self.chosen.identity_weight:
                same = self.networks["i2i" if side == LABEL else "back"](real[side])
                weight = weights[side] * self.chosen.identity_weight
                terms[f"identity_{side}"] = weight * masked_error(same, real[side], None)
        total = sum(terms.values())
        assert isinstance(total, Tensor)
        return Update(
            "generators", total, {name: term.detach() for name, term in terms.items()} | {"loss": total.detach()}
        )

    def _discriminator_update(self, real: dict[str, Tensor], fake: dict[str, Tensor]) -> Update:
        losses = {}
        for side in (LABEL, INPUT):
            shown = self.pools[side].exchange(fake[side].detach(), self.draws)
            on_real, on_fake = self._judged(side, real[side], real=True), self._judged(side, shown, real=False)
            losses[f"discriminator_{side}"] = (on_real + on_fake) / 2
        total = losses["discriminator_label"] + losses["discriminator_input"]
        return Update("discriminators", total, {name: loss.detach() for name, loss in losses.items()})

    def _judged(self, side: str, images: Tensor, real: bool) -> Tensor:
        logits = self.networks[f"discriminator_{side}"](images)
        return gan_parts.adversarial(logits, real, self.chosen.gan_loss)


METHOD = CycleGan
