"""NEMAR with our components: its two orders of translation and registration, on the equivariant method's networks.

Arar, Ginger, Danon, Bermano, Cohen-Or: *Unsupervised multi-modal image registration via geometry preserving
image-to-image translation*, CVPR 2020, as Honkamaa et al. 2023 compare it. One registration network U moves the input
onto the label; translated first or moved first, the result should be the label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from equisynth.config import Settings, Strict
from equisynth.errors import UserError
from equisynth.geometry.transforms import Field, Image
from equisynth.geometry.warping import integrate_velocity
from equisynth.losses import adversarial, dissimilarity
from equisynth.methods import parts
from equisynth.methods.base import SELECTION, Batch, Deformations, Method, Overview, Update
from equisynth.networks.unet import UNet


class Pass:
    """One pass over a batch: an attribute is computed when a loss first asks for it. I∘a is I warped by a."""

    def __init__(self, networks: Mapping[str, nn.Module], batch: Batch) -> None:
        self.networks, self.input, self.label = networks, batch.input, batch.label

    @cached_property
    def field(self) -> Field:
        """φ = exp(U(y, x)): moves the input, or its translation, onto the label."""
        volume = [self.label.values.detach(), self.label.valid(), self.input.values, self.input.valid()]
        velocity = self.networks["cross_registration"](torch.cat(volume, dim=1)).float()
        return Field(integrate_velocity(velocity))

    @cached_property
    def moved_input(self) -> Image:
        """x∘φ"""
        return self.input.warp(self.field)

    @cached_property
    def _outputs(self) -> tuple[Image, Image]:
        """F(x) and F(x∘φ) in one call of F."""
        both = self.networks["i2i"](torch.cat([self.input.values, self.moved_input.values])).float()
        plain, warped = both.chunk(2)
        return Image(plain, self.input.mask), Image(warped, self.moved_input.mask)

    @property
    def output(self) -> Image:
        """F(x)"""
        return self._outputs[0]

    @property
    def of_moved(self) -> Image:
        """F(x∘φ): moved first, then translated"""
        return self._outputs[1]

    @cached_property
    def moved(self) -> Image:
        """F(x)∘φ: translated first, then moved"""
        return self.output.warp(self.field)


class NemarEquivariant(Method):
    """F and U against D, which sees the input as it is beside y, F(x)∘φ or F(x∘φ)."""

    class Options(Strict):
        """What only this method knows.

        Attributes:
            whole_batch: train and validate on all of a batch; as published, its second half is never used.
        """

        whole_batch: bool = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        options = self.options(settings)
        assert isinstance(options, self.Options)
        self.whole_batch = options.whole_batch
        n, features, rate = settings.data.n_dims, settings.features, settings.learning_rate
        if features.i2i is None or features.cross_modality_reg is None:
            raise UserError(f"features: found {features}, expected also i2i and cross_modality_reg")
        if settings.discriminator != "conditional":
            raise UserError(f"discriminator: found '{settings.discriminator}', this method needs a conditional one")
        if settings.rigidity is not None and settings.rigidity.coefficient is not None:
            raise UserError("rigidity.coefficient: this method weighs all places alike; take it out")
        channels = settings.data.input.channels + settings.data.label.channels + 2
        self.networks = {
            "i2i": parts.image_to_image_network(settings),
            "cross_registration": parts.laid_out(UNet(n, channels, n, features.cross_modality_reg), n),
        }
        self.optimisers = {"generator": parts.adam(self.networks.values(), rate.generator, beta1=0.5)}
        self.networks["discriminator"] = parts.discriminator(settings)
        network = self.networks["discriminator"]
        self.optimisers["discriminator"] = parts.adam([network], rate.discriminator, beta1=0.5)
        self.rigidity = parts.rigidity_penalty(settings)

    def updates(self, batch: Batch) -> Iterator[Update]:
        """D, then F and U, both on the first half of the batch (or on the whole batch).

        D's step changes neither F nor U, so that one pass serves both.
        """
        done = self.run(self._augmented(batch if self.whole_batch else batch.halves()[0]))
        if self.settings.loss.discriminator:
            yield self._discriminator_update(done)
        yield self._generator_update(done)

    def validation(self, batch: Batch) -> dict[str, Tensor]:
        """The similarity of both orders to the label, of as many samples as a training step uses."""
        used = batch if self.whole_batch else batch[: self.settings.batch_size // 2]
        return {SELECTION: self._similarity(self.run(self._augmented(used)))}

    def run(self, batch: Batch) -> Pass:
        """A pass over all of a batch as it is."""
        return Pass(self.networks, batch)

    def deformations(self, batch: Batch) -> Deformations:
        """φ; there is no intra-modality step."""
        return Deformations(self.run(batch).field.displacement)

    def overview(self, batch: Batch) -> Overview:
        """The lines of `Pass`."""
        p = self.run(batch)
        inputs = {"x, input": p.input, "x∘φ": p.moved_input}
        outputs = {"F(x), output": p.output, "F(x∘φ)": p.of_moved, "F(x)∘φ": p.moved}
        return Overview(inputs, outputs, {"y, label": p.label}, {"φ, registration": p.field})

    @staticmethod
    def predictor(settings: Settings) -> nn.Module:
        """F alone."""
        return parts.image_to_image_network(settings)

    def _augmented(self, batch: Batch) -> Batch:
        return batch.augmented() if self.settings.augment_with_random_transformation else batch

    def _discriminator_update(self, done: Pass) -> Update:
        condition, real, fakes = self._shown(done)
        network, weight = self.networks["discriminator"], self.settings.loss.discriminator
        assert weight is not None
        log = {"discriminator_real": adversarial(network(real, condition), real=True)}
        for name, fake in fakes.items():  # each call advances D's power iterations by one
            log[f"discriminator_{name}"] = adversarial(network(fake.detach(), condition), real=False)
        loss = weight * torch.stack(list(log.values())).sum()
        return Update("discriminator", loss, {name: value.detach() for name, value in log.items()})

    def _generator_update(self, done: Pass) -> Update:
        weights, total, log = self.settings.loss, done.input.values.new_zeros(()), {}
        if weights.cross_modality_similarity:
            log["cross_similarity"] = self._similarity(done)
            total = total + weights.cross_modality_similarity / 2 * log["cross_similarity"]
        if weights.adversarial:
            condition, _, fakes = self._shown(done)
            network = self.networks["discriminator"]
            fooled = {f"adversarial_{name}": parts.fooling(network, condition, fake) for name, fake in fakes.items()}
            log |= fooled
            total = total + weights.adversarial / 2 * torch.stack(list(fooled.values())).sum()
        if weights.forward_rigidity:
            log["forward_rigidity"] = self.rigidity(done.field.displacement)
            total = total + weights.forward_rigidity * log["forward_rigidity"]
        return Update("generator", total, {name: value.detach() for name, value in ({"loss": total} | log).items()})

    def _similarity(self, done: Pass) -> Tensor:
        """d(y, F(x)∘φ) + d(y, F(x∘φ))"""
        kind = self.settings.loss.similarity
        orders = done.moved, done.of_moved
        return torch.stack([dissimilarity(done.label, order, kind) for order in orders]).sum()

    def _shown(self, done: Pass) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What D is shown: the condition, a real and both fake images, all but the first zero where one is invalid."""
        mask = done.label.comparison_mask(done.of_moved)
        fakes = {"moved": done.moved, "of_moved": done.of_moved}
        shown = {name: image.values * mask for name, image in fakes.items()}
        return done.input.values, done.label.values * mask, shown


METHOD = NemarEquivariant
