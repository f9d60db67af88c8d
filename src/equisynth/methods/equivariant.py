"""Deformation equivariant image synthesis from non-aligned pairs: the method, in all variants.

Honkamaa, Khan, Koivukoski, Valkonen, Latonen, Ruusuvuori, Marttinen: *Deformation equivariant cross-modality image
synthesis with paired non-aligned training data*, Medical Image Analysis 2023.

The image-to-image network F is trained together with registration networks R (rigid), C (cross modality: label to
input) and I (intra modality: translated input to label) that explain the misalignment of the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from equisynth.config import Settings
from equisynth.errors import UserError
from equisynth.geometry.affine import rigid_matrix
from equisynth.geometry.grids import constant, identity_grid, per_axis
from equisynth.geometry.transforms import Affine, Field, Image, integrate
from equisynth.geometry.warping import integrate_velocity
from equisynth.losses import beyond_limit, dissimilarity, rigidity_coefficient
from equisynth.methods import parts
from equisynth.methods.base import SELECTION, Batch, Deformations, Method, Overview, Update
from equisynth.networks.encoder import RigidEncoder
from equisynth.networks.unet import UNet


class Pass:
    """One pass of the networks over a batch: an attribute is computed when a loss first asks for it.

    The attributes are the lines of the method's table, in its order, each with its formula: I∘a∘b is the image I
    warped by a first, then by b; sg[·] is detached. What no loss asks for costs nothing.

    Args:
        networks: the method's networks by name.
        voxel_size: world units per voxel, one per axis.
        batch: input x, label y and the random transformation r.
        equivariant: F(x∘r) will be asked for, so F(x) and F(x∘r) are one call of F.
        both_ways: φ_i will be asked for, not only φ_i⁻¹, so both are integrated as one batch.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        voxel_size: tuple[float, ...],
        batch: Batch,
        equivariant: bool,
        both_ways: bool = True,
    ) -> None:
        self.networks, self.voxel_size = networks, voxel_size
        self.equivariant, self.both_ways = equivariant, both_ways
        self.input, self.label, self.random = batch.input, batch.label, batch.random

    @cached_property
    def rigid_parameters(self) -> tuple[Tensor, Tensor]:
        """R: angles (B, 1 or 3) in radians and translation (B, n) in world units."""
        x = self.input.values
        coordinates = _coordinates(x, self.voxel_size).expand(len(x), *(-1 for _ in x.shape[1:]))
        volume = torch.cat([x.detach(), self.input.valid(), self.label.values, self.label.valid()], dim=1)
        angles, translation = self.networks["rigid_registration"](volume, coordinates)
        return angles.float(), translation.float()

    @cached_property
    def rigid(self) -> Affine:
        """T: a rotation about the centre of the image, then a translation."""
        angles, translation = self.rigid_parameters
        shape = self.input.values.shape[2:]
        middle = tuple(size * (n - 1) / 2 for size, n in zip(self.voxel_size, shape, strict=True))
        centre = constant(middle, angles.device, angles.dtype)
        return Affine.from_world(rigid_matrix(angles, translation, centre), self.voxel_size)

    @cached_property
    def rigid_inverse(self) -> Affine:
        """sg[T⁻¹]"""
        return self.rigid.detach().inverse()

    @cached_property
    def label_rigid(self) -> Image:
        """y_rigid = y∘T"""
        return self.label.warp(self.rigid)

    @cached_property
    def elastic_cross(self) -> tuple[Field, Field]:
        """φ_c = exp(v_c) and φ_c⁻¹ = exp(-v_c)"""
        moved = self.label_rigid
        volume = [moved.values.detach(), moved.valid(), self.input.values, self.input.valid()]
        return integrate(self.networks["cross_registration"](torch.cat(volume, dim=1)).float())

    @cached_property
    def cross(self) -> Field:
        """d_cross = sg[T]∘φ_c"""
        return self.rigid.detach().then(self.elastic_cross[0])

    @cached_property
    def label_cross(self) -> Image:
        """y_cross = y∘sg[T]∘φ_c"""
        return self.label.warp(self.cross)

    @cached_property
    def _elastic_intra(self) -> tuple[Field | None, Field]:
        inverse, label, output = self.elastic_cross[1].detach(), self.label_cross.detach(), self.output
        volume = [inverse.displacement, label.values, label.valid(), output.values, output.valid()]
        velocity = self.networks["intra_registration"](torch.cat(volume, dim=1)).float()
        return integrate(velocity) if self.both_ways else (None, Field(integrate_velocity(-velocity)))

    @property
    def elastic_intra(self) -> Field:
        """φ_i = exp(v_i)"""
        field = self._elastic_intra[0]
        assert field is not None, "φ_i is asked for in a pass that does not go both ways"
        return field

    @property
    def elastic_intra_inverse(self) -> Field:
        """φ_i⁻¹ = exp(-v_i)"""
        return self._elastic_intra[1]

    @cached_property
    def random_input(self) -> Image:
        """x∘r"""
        return self.input.warp(self.random)

    @cached_property
    def _outputs(self) -> tuple[Image, Image | None]:
        if not self.equivariant:
            return self.translate(self.input), None
        both = self.translate(Image(torch.cat([self.input.values, self.random_input.values])))
        plain, deformed = both.values.chunk(2)
        return Image(plain, self.input.mask), Image(deformed, self.random_input.mask)

    @property
    def output(self) -> Image:
        """F(x)"""
        return self._outputs[0]

    @property
    def random_output(self) -> Image:
        """F(x∘r)"""
        output = self._outputs[1]
        assert output is not None, "F(x∘r) is asked for in a pass that is not equivariant"
        return output

    @cached_property
    def output_random(self) -> Image:
        """F(x)∘r"""
        return self.output.warp(self.random)

    @cached_property
    def commutation(self) -> Field:
        """r⁻¹∘φ_i⁻¹"""
        return self.random.inverse().then(self.elastic_intra_inverse)

    @cached_property
    def commuted(self) -> Image:
        """com = F(x∘r)∘r⁻¹∘φ_i⁻¹: deformed, translated, deformed back, then fitted"""
        return self.random_output.warp(self.commutation)

    @cached_property
    def commuted_random(self) -> Image:
        """com∘r"""
        return self.random_output.warp(self.commutation.then(self.random))

    @cached_property
    def label_random(self) -> Image:
        """y∘sg[d_cross]∘r"""
        return self.label.warp(self.cross.detach().then(self.random))

    @cached_property
    def fitted(self) -> Image:
        """F(x)∘φ_i⁻¹"""
        return self.output.warp(self.elastic_intra_inverse)

    @cached_property
    def elastic_forward(self) -> Field:
        """sg[φ_c]∘φ_i"""
        return self.elastic_cross[0].detach().then(self.elastic_intra, track_mask=False)

    @cached_property
    def elastic_inverse(self) -> Field:
        """φ_i⁻¹∘sg[φ_c⁻¹]"""
        return self.elastic_intra_inverse.then(self.elastic_cross[1].detach(), track_mask=False)

    @cached_property
    def forward(self) -> Field:
        """sg[d_cross]∘φ_i: from the label to the translated input"""
        return self.cross.detach().then(self.elastic_intra)

    @cached_property
    def cross_inverse(self) -> Field:
        """d_cross⁻¹ = φ_c⁻¹∘sg[T⁻¹]"""
        return self.elastic_cross[1].then(self.rigid_inverse)

    @cached_property
    def inverse(self) -> Field:
        """d⁻¹ = sg[φ_i⁻¹]∘φ_c⁻¹∘sg[T⁻¹]: from the translated input to the label"""
        return self.elastic_intra_inverse.detach().then(self.cross_inverse)

    @cached_property
    def predicted_output(self) -> Image:
        """F(x∘sg[d⁻¹])"""
        return self.translate(self.input.warp(self.inverse.detach()))

    @cached_property
    def output_predicted(self) -> Image:
        """F(x)∘sg[d⁻¹]"""
        return self.output.warp(self.inverse.detach())

    def translate(self, image: Image) -> Image:
        """F, valid where its input is."""
        return Image(self.networks["i2i"](image.values).float(), image.mask)


class Equivariant(Method):
    """EqSim and DefSim, with or without Com, self commutation, EqAdv, DefCondAdv, DefUncondAdv and Aug."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        n, features, rate = settings.data.n_dims, settings.features, settings.learning_rate
        x, y = settings.data.input.channels, settings.data.label.channels
        rigid, cross, intra = features.rigid_reg, features.cross_modality_reg, features.intra_modality_reg
        if rigid is None or cross is None or intra is None:
            raise UserError(
                f"features: found {features}, expected also rigid_reg, cross_modality_reg and intra_modality_reg"
            )
        self.networks = {
            "i2i": parts.image_to_image_network(settings),
            "rigid_registration": parts.laid_out(RigidEncoder(n, x + y + 2, rigid), n),
            "cross_registration": parts.laid_out(UNet(n, x + y + 2, n, cross), n),
            "intra_registration": parts.laid_out(UNet(n, n + y + y + 2, n, intra), n),
        }
        beta1 = 0.5 if self.adversary else 0.9
        self.optimisers = {"generator": parts.adam(self.networks.values(), rate.generator, beta1)}
        if self.adversary:
            self.networks["discriminator"] = parts.discriminator(settings)
            network = self.networks["discriminator"]
            self.optimisers["discriminator"] = parts.adam([network], rate.discriminator, beta1)
        self.rigidity = parts.rigidity_penalty(settings)

    def updates(self, batch: Batch) -> Iterator[Update]:
        """D on the first half of the batch, then the generator side on the rest; without D on the whole batch."""
        batch = self._augmented(batch)
        if self.adversary:
            first, batch = batch.halves()
            if self.settings.loss.discriminator:
                yield self._discriminator_update(first)
        yield self._generator_update(batch)

    def validation(self, batch: Batch) -> dict[str, Tensor]:
        """The intra similarity: com (EqSim) or F(x)∘φ_i⁻¹ (DefSim) against y_cross."""
        equivariant = bool(self.settings.loss.equivariant_similarity)
        return {SELECTION: self._intra_similarity(self.run(self._augmented(batch), equivariant, both_ways=False))}

    def run(self, batch: Batch, equivariant: bool = False, both_ways: bool = True) -> Pass:
        """A pass over a batch as it is (not augmented); ``Pass`` explains the switches."""
        return Pass(self.networks, self.settings.data.voxel_size, batch, equivariant, both_ways)

    def deformations(self, batch: Batch) -> Deformations:
        """d⁻¹, and d_cross⁻¹ without the intra-modality step."""
        done = self.run(batch, both_ways=False)
        return Deformations(done.inverse.displacement, done.cross_inverse.displacement)

    def overview(self, batch: Batch) -> Overview:
        """The lines of `Pass`."""
        p = self.run(batch, equivariant=True)
        return Overview(
            inputs={"x, input": p.input, "x∘r": p.random_input},
            outputs={
                "F(x), output": p.output,
                "F(x∘r)": p.random_output,
                "F(x)∘r": p.output_random,
                "F(x∘r)∘r⁻¹∘φ_i⁻¹": p.commuted,
                "F(x)∘d⁻¹": p.output_predicted,
            },
            labels={
                "y, label": p.label,
                "y∘T": p.label_rigid,
                "y∘d_cross": p.label_cross,
                "y∘d_cross∘r": p.label_random,
                "y∘d": p.label.warp(p.forward),
            },
            deformations={
                "r, random": p.random,
                "T, rigid": p.rigid,
                "φ_c, cross-modality": p.elastic_cross[0],
                "d_cross = T∘φ_c": p.cross,
                "φ_i, intra-modality": p.elastic_intra,
                "d = d_cross∘φ_i": p.forward,
                "d⁻¹": p.inverse,
            },
        )

    @staticmethod
    def predictor(settings: Settings) -> nn.Module:
        """F alone."""
        return parts.image_to_image_network(settings)

    def _augmented(self, batch: Batch) -> Batch:
        return batch.augmented() if self.settings.augment_with_random_transformation else batch

    def _discriminator_update(self, batch: Batch) -> Update:
        with torch.no_grad():
            condition, real, fake = self._shown(self.run(batch, self._deformed_adversary, both_ways=False))
        return parts.discriminator_update(self, condition, real, fake)

    def _generator_update(self, batch: Batch) -> Update:
        weights = self.settings.loss
        equivariant = (
            self._wanted(weights.commutation)
            or (bool(weights.equivariant_similarity) and self._wanted(weights.intra_modality_similarity))
            or (self._deformed_adversary and self._wanted(weights.adversarial))
        )
        done = self.run(batch, equivariant)
        terms = {name: (weight, term()) for name, (weight, term) in self._terms(done).items() if self._wanted(weight)}
        total = sum((weight * value for weight, value in terms.values() if weight), done.input.values.new_zeros(()))
        log = {"loss": total.detach()} | {name: value.detach() for name, (_, value) in terms.items()}
        if self.monitor:
            log |= _displacement_statistics(done)
        return Update("generator", total, log)

    def _wanted(self, weight: float | None) -> bool:
        """Whether a term is computed: it has a weight, or a weight of zero that is monitored."""
        return bool(weight) or (self.monitor and weight is not None)

    def _terms(self, done: Pass) -> dict[str, tuple[float | None, Callable[[], Tensor]]]:
        """Weight and value of each term of the generator's loss, the value unevaluated."""
        w, p = self.settings.loss, done
        terms: dict[str, tuple[float | None, Callable[[], Tensor]]] = {
            "rigid_similarity": (w.rigid_similarity, lambda: self._d(p.label_rigid, p.output.detach())),
            "cross_similarity": (w.cross_modality_similarity, lambda: self._d(p.label_cross, p.output.detach())),
            "intra_similarity": (w.intra_modality_similarity, lambda: self._intra_similarity(p)),
            "commutation": (w.commutation, lambda: self._d(p.random_output, p.output_random)),
            "self_commutation": (w.self_commutation, lambda: self._d(p.predicted_output, p.output_predicted)),
            "forward_rigidity_sum": (
                _half(w.forward_rigidity),
                lambda: self._rigidity_sum(p, p.elastic_cross[0], p.elastic_forward),
            ),
            "inverse_rigidity_sum": (
                _half(w.inverse_rigidity),
                lambda: self._rigidity_sum(p, p.elastic_cross[1], p.elastic_inverse),
            ),
        }
        if w.max_rotation_degrees is not None:
            angle = math.radians(w.max_rotation_degrees)
            terms["rotation_limit"] = (1.0, lambda: beyond_limit(p.rigid_parameters[0], angle))
        if w.max_translation is not None:
            length = w.max_translation
            terms["translation_limit"] = (1.0, lambda: beyond_limit(p.rigid_parameters[1], length))
        if self.adversary:
            terms["adversarial"] = (w.adversarial, lambda: self._adversarial(p))
        return terms

    def _d(self, first: Image, second: Image) -> Tensor:
        return dissimilarity(first, second, self.settings.loss.similarity)

    def _intra_similarity(self, done: Pass) -> Tensor:
        fitted = done.commuted if self.settings.loss.equivariant_similarity else done.fitted
        return self._d(done.label_cross.detach(), fitted)

    def _rigidity_sum(self, done: Pass, cross: Field, both: Field) -> Tensor:
        """Penalty of the cross modality part plus that of the whole elastic deformation, evaluated as one batch."""
        coefficient = self._rigidity_coefficient(done.label_rigid.detach())
        if coefficient is not None:
            coefficient = torch.cat([coefficient, coefficient])
        return 2 * self.rigidity(torch.cat([cross.displacement, both.displacement]), coefficient)

    def _rigidity_coefficient(self, label: Image) -> Tensor | None:
        given = self.settings.rigidity.coefficient if self.settings.rigidity else None
        if given is None:
            return None
        return rigidity_coefficient(label.values, label.mask, given.values, given.coefficients)

    @property
    def _deformed_adversary(self) -> bool:
        """EqAdv: D compares under r. DefUncondAdv sees nothing deformed, whatever the switch says."""
        return self.settings.discriminator == "conditional" and self.settings.loss.equivariant_adversarial

    def _shown(self, done: Pass) -> tuple[Tensor | None, Tensor, Tensor]:
        """What D is shown: the condition image, a real and a fake image, both zero where either is invalid."""
        condition: Image | None
        if self.settings.discriminator == "unconditional":
            condition, real, fake = None, done.label, done.output
        elif self._deformed_adversary:
            condition, real, fake = done.random_input, done.label_random, done.commuted_random
        else:
            condition, real, fake = done.input, done.label_cross.detach(), done.fitted
        mask = real.comparison_mask(fake)
        return None if condition is None else condition.values, real.values * mask, fake.values * mask

    def _adversarial(self, done: Pass) -> Tensor:
        condition, _, fake = self._shown(done)
        return parts.fooling(self.networks["discriminator"], condition, fake)


def _half(weight: float | None) -> float | None:
    return None if weight is None else weight / 2


def _coordinates(like: Tensor, voxel_size: tuple[float, ...]) -> Tensor:
    """Index x voxel size / shape along each axis, (1, n, *S)."""
    shape = like.shape[2:]
    scale = [size / n for size, n in zip(voxel_size, shape, strict=True)]
    return identity_grid(shape, like.device, like.dtype) * per_axis(scale, like)


def _displacement_statistics(done: Pass) -> dict[str, Tensor]:
    """How far images are moved, in voxels: mean lengths, and the mean along each axis (a drift, if not zero)."""
    forward, intra = done.forward.displacement.detach(), done.elastic_intra.displacement.detach()
    statistics = {"displacement": forward.norm(dim=1).mean(), "intra_displacement": intra.norm(dim=1).mean()}
    return statistics | {f"drift_axis_{axis}": forward[:, axis].mean() for axis in range(forward.shape[1])}


METHOD = Equivariant
