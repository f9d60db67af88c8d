"""Traditional supervised training on the pairs as they are (NoReg), with a conditional discriminator or without."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from equisynth.config import Settings
from equisynth.geometry.transforms import Image
from equisynth.losses import dissimilarity
from equisynth.methods import parts
from equisynth.methods.base import SELECTION, Batch, Method, Update


class Supervised(Method):
    """F trained to reproduce the label; optionally D judges the result beside the input (DefCondAdv)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        rate = settings.learning_rate
        self.networks = {"i2i": parts.image_to_image_network(settings)}
        self.optimisers = {"generator": parts.adam(self.networks.values(), rate.generator, beta1=0.9)}
        if self.adversary:
            self.networks["discriminator"] = parts.discriminator(settings)
            network = self.networks["discriminator"]
            self.optimisers["discriminator"] = parts.adam([network], rate.discriminator, beta1=0.9)

    def updates(self, batch: Batch) -> Iterator[Update]:
        """D on the first half of the batch, then F on the rest; without D on the whole batch."""
        batch = self._augmented(batch)
        if self.adversary:
            first, batch = batch.halves()
            if self.settings.loss.discriminator:
                with torch.no_grad():
                    shown = self._shown(first, self._translated(first))
                yield parts.discriminator_update(self, *shown)
        yield self._generator_update(batch)

    def validation(self, batch: Batch) -> dict[str, Tensor]:
        """The masked similarity to the label."""
        batch = self._augmented(batch)
        return {SELECTION: self._similarity(batch, self._translated(batch))}

    @staticmethod
    def predictor(settings: Settings) -> nn.Module:
        """F alone."""
        return parts.image_to_image_network(settings)

    def _generator_update(self, batch: Batch) -> Update:
        weights, output = self.settings.loss, self._translated(batch)
        similarity = self._similarity(batch, output)
        log = {"similarity": similarity.detach()}
        total = (weights.similarity_weight or 0.0) * similarity
        if self.adversary and weights.adversarial:
            condition, _, fake = self._shown(batch, output)
            fooled = parts.fooling(self.networks["discriminator"], condition, fake)
            log["adversarial"] = fooled.detach()
            total = total + weights.adversarial * fooled
        log["loss"] = total.detach()
        return Update("generator", total, log)

    def _augmented(self, batch: Batch) -> Batch:
        return batch.augmented() if self.settings.augment_with_random_transformation else batch

    def _translated(self, batch: Batch) -> Image:
        return Image(self.networks["i2i"](batch.input.values).float(), batch.input.mask)

    def _similarity(self, batch: Batch, output: Image) -> Tensor:
        return dissimilarity(output, batch.label, self.settings.loss.similarity)

    def _shown(self, batch: Batch, output: Image) -> tuple[Tensor | None, Tensor, Tensor]:
        """What D is shown: the condition image, the label and the output, both zero where either is invalid."""
        mask = batch.label.comparison_mask(output)
        condition = batch.input.values if self.settings.discriminator == "conditional" else None
        return condition, batch.label.values * mask, output.values * mask


METHOD = Supervised
