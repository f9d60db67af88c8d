"""NEMAR: translation and registration in both orders, judged beside the input that was not moved.

Arar, Ginger, Danon, Bermano, Cohen-Or: *Unsupervised multi-modal image registration via geometry preserving
image-to-image translation*, CVPR 2020, as Honkamaa et al. 2023 compare it. One spatial transformer R moves the input
onto the label; translated first or moved first, the result should be the label. No loss knows masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from equisynth.config import Count, NonNegative, Settings, Strict
from equisynth.errors import UserError
from equisynth.geometry.grids import identity_grid, per_axis
from equisynth.geometry.transforms import Field as Deformation
from equisynth.geometry.transforms import Image
from equisynth.losses import masked_error
from equisynth.methods import gan_parts, parts
from equisynth.methods.base import SELECTION, Batch, Deformations, Overview, Update, frozen
from equisynth.networks.field_network import ARCHITECTURES, AffineNetwork, FieldNetwork

VALID = 1 - 1e-6
"""A pixel moved in from beyond the border is less than this of an image of ones."""


class NemarOptions(gan_parts.GanOptions):
    """What ``settings.network`` holds beside what all GAN baselines have; their pool is not used.

    Attributes:
        reconstruction_weight: of the similarity of both orders to the label.
        smoothness_weight: of the deformation's smoothness.
        transformer: R predicts a displacement of every pixel (``unet``) or an affine transformation.
        transformer_architecture: of the former; ``S`` (small patches) is ours.
        identity_initialisation: the former starts close to no displacement.
        regulariser_levels: at how many halved resolutions the displacement is to be smooth.
        bilateral_alpha: above 0, the displacement may change more where the moved image does.
    """

    adversarial_weight: NonNegative = Field(1.0, serialization_alias="lambda_GAN")  # of the adversarial loss
    reconstruction_weight: NonNegative = Field(100.0, serialization_alias="lambda_recon")
    smoothness_weight: NonNegative = Field(200.0, serialization_alias="lambda_smooth")
    transformer: Literal["unet", "affine"] = Field("unet", serialization_alias="stn_type")
    transformer_architecture: Literal["A", "B", "S"] = Field("A", serialization_alias="stn_cfg")
    identity_initialisation: bool = True
    regulariser_levels: Count = Field(1, serialization_alias="stn_multires_reg")
    bilateral_alpha: NonNegative = Field(0.0, serialization_alias="stn_bilateral_alpha")


class Orders(NamedTuple):
    """Both orders of translation T and registration R of a batch, (B, C, H, W) each, and R's penalty.

    ``output`` T(x); ``moved_input`` x∘R; ``of_moved`` T(x∘R); ``moved`` T(x)∘R.
    """

    output: Tensor
    moved_input: Tensor
    of_moved: Tensor
    moved: Tensor
    penalty: Tensor


class Nemar(gan_parts.GanMethod):
    """T and R against D, which sees the input as it is beside the label, T(x∘R) or T(x)∘R."""

    Options: ClassVar[type[Strict]] = NemarOptions
    chosen: NemarOptions

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        options = self.chosen = self.options(settings)
        rate, channels = settings.learning_rate.generator, settings.data.input.channels + settings.data.label.channels
        self.networks = {
            "i2i": gan_parts.generator(settings, options),
            "registration": _transformer(settings, options),
        }
        self.optimisers = {"generator": parts.adam(self.networks.values(), rate, options.beta1)}
        self.networks["discriminator"] = gan_parts.discriminator(options, channels)
        self.optimisers["discriminator"] = parts.adam([self.networks["discriminator"]], rate, options.beta1)

    @classmethod
    def options(cls, settings: Settings) -> NemarOptions:
        """``settings.network``, checked, also against the patches and what validation needs.

        Raises:
            UserError: an unknown key, a value of another kind, patches that the networks cannot take, no background.
        """
        options = super().options(settings)
        assert isinstance(options, NemarOptions)
        _check_transformer(settings, options)
        if settings.augmentation_label_background_value is None:
            raise UserError(
                f"params.yaml: {settings.experiment}: augmentation_label_background_value: missing; add it to "
                f"datasets.{settings.dataset}.training (the normalised value of empty label, which NEMAR's validation "
                "takes where registration moves nothing in)"
            )
        return options

    @classmethod
    def published_network(cls, settings: Settings) -> dict[str, Any]:
        """The options in the shape of the published configurations, with what follows from data and settings."""
        entry, (height, width) = super().published_network(settings), settings.patch_size[:2]
        away = not entry.pop("identity_initialisation")
        return {**entry, "stn_no_identity_init": away, "img_height": height, "img_width": width}

    def updates(self, batch: Batch) -> Iterator[Update]:
        """D, then T and R together through the updated D, on the same images."""
        batch = gan_parts.augmented(self.settings, batch)
        done = self.orders(batch)
        yield self._discriminator_update(batch, done)
        yield self._generator_update(batch, done)

    def validation(self, batch: Batch) -> dict[str, Tensor]:
        """Mean absolute error of the output moved onto the label, on background where nothing was moved in."""
        batch = gan_parts.augmented(self.settings, batch)
        return {SELECTION: gan_parts.similarity_to_label(batch, self.translated_and_moved(batch), self.chosen.masked)}

    def orders(self, batch: Batch) -> Orders:
        """Both orders of a batch as it is."""
        source = batch.input.values
        output, difference = self.networks["i2i"](source), self._difference(batch)
        moved_input, moved = move(source, difference), move(output, difference)
        penalty = self._penalty(difference, moved_input.detach())
        return Orders(output, moved_input, self.networks["i2i"](moved_input), moved, penalty)

    def translated_and_moved(self, batch: Batch) -> Tensor:
        """T(x)∘R, and the label's background where some of a pixel comes from beyond the border."""
        output, difference = self.networks["i2i"](batch.input.values), self._difference(batch)
        seen = (move(torch.ones_like(output), difference) > VALID).to(output.dtype)
        background = self.settings.augmentation_label_background_value
        assert background is not None
        return move(output, difference) * seen + (1 - seen) * background

    def deformations(self, batch: Batch) -> Deformations:
        """Where `move` reads; there is no intra-modality step."""
        return Deformations(displacement(self._difference(batch), batch.input.values.shape[2:]))

    def overview(self, batch: Batch) -> Overview:
        """Both orders."""
        done = self.orders(batch)
        inputs = {"x, input": batch.input, "x∘R": Image(done.moved_input)}
        images = (Image(values) for values in (done.output, done.of_moved, done.moved))
        outputs = dict(zip(("T(x), output", "T(x∘R)", "T(x)∘R"), images, strict=True))
        field = {"R, registration": Deformation(self.deformations(batch).whole)}
        return Overview(inputs, outputs, {"y, label": batch.label}, field)

    @staticmethod
    def predictor(settings: Settings) -> nn.Module:
        """T alone."""
        return gan_parts.generator(settings, Nemar.options(settings))

    def _discriminator_update(self, batch: Batch, done: Orders) -> Update:
        log = {
            "discriminator_real": self._judged(batch, batch.label.values, real=True),
            "discriminator_of_moved": self._judged(batch, done.of_moved.detach(), real=False),
            "discriminator_moved": self._judged(batch, done.moved.detach(), real=False),
        }
        loss = self.chosen.adversarial_weight / 2 * torch.stack(list(log.values())).sum()
        return Update("discriminator", loss, {name: value.detach() for name, value in log.items()})

    def _generator_update(self, batch: Batch, done: Orders) -> Update:
        weights, terms = self.chosen, {}
        with frozen(self.networks["discriminator"]):
            for name, image in (("of_moved", done.of_moved), ("moved", done.moved)):
                terms[f"l1_{name}"] = weights.reconstruction_weight * masked_error(image, batch.label.values, None)
                terms[f"adversarial_{name}"] = weights.adversarial_weight * self._judged(batch, image, real=True)
        terms["smoothness"] = weights.smoothness_weight * done.penalty
        terms["loss"] = torch.stack(list(terms.values())).sum()
        return Update("generator", terms["loss"], {name: value.detach() for name, value in terms.items()})

    def _judged(self, batch: Batch, image: Tensor, real: bool) -> Tensor:
        """D's loss on an image (B, C', H, W) beside the input, which is not moved."""
        logits = self.networks["discriminator"](torch.cat([batch.input.values, image], dim=1))
        return gan_parts.adversarial(logits, real, self.chosen.gan_loss)

    def _difference(self, batch: Batch) -> Tensor:
        """What R predicts from input and label: a displacement (B, 2, H, W), or that of a matrix (B, 2, 3)."""
        difference: Tensor = self.networks["registration"](torch.cat([batch.input.values, batch.label.values], dim=1))
        return difference

    def _penalty(self, difference: Tensor, moved: Tensor) -> Tensor:
        if self.chosen.transformer == "affine":
            return difference.abs().mean()
        return roughness(difference, moved, self.chosen.regulariser_levels, self.chosen.bilateral_alpha)


def move(image: Tensor, difference: Tensor) -> Tensor:
    """An image (B, C, H, W) read where R says, linear, zeros beyond the border.

    Args:
        difference: from the identity. A displacement field (B, 2, H, W), x and y, in units in which the image extends
            from -1 to 1; or a matrix (B, 2, 3). As published the field is added to positions of pixels that put the
            corners' centres at -1 and 1, while the image is read with its outer borders there: no displacement scales
            by W / (W - 1), and half of a pixel of the edge lies outside.
    """
    grid = _grid(difference, image.shape[2:])
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def displacement(difference: Tensor, shape: Sequence[int]) -> Tensor:
    """How far from each pixel `move` reads an image of ``shape``, (B, 2, H, W) in pixels, rows first."""
    grid = _grid(difference, shape).movedim(-1, 1).flip(1)
    half = per_axis([side / 2 for side in shape], grid)
    return (grid + 1) * half - 0.5 - identity_grid(shape, grid.device, grid.dtype)


def _grid(difference: Tensor, shape: Sequence[int]) -> Tensor:
    """Where `move` reads, (B, H, W, 2), x and y, the image's outer borders at -1 and 1."""
    if difference.ndim == 3:
        identity = torch.eye(2, 3, dtype=difference.dtype, device=difference.device)
        return F.affine_grid(identity + difference, [len(difference), 1, *shape], align_corners=False)
    y, x = (torch.linspace(-1, 1, side, device=difference.device) for side in difference.shape[2:])
    return difference.movedim(1, -1) + torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def roughness(field: Tensor, image: Tensor, levels: int = 1, alpha: float = 0.0) -> Tensor:
    """Mean absolute differences of neighbours along both axes and both diagonals, summed.

    Args:
        field: (B, 2, H, W).
        image: (B, C, H, W); with ``alpha`` > 0 a difference weighs exp(-alpha |that of the image|), channel mean.
        levels: also at so many halved resolutions in all, each with half the weight of the one before.
    """
    total = field.new_zeros(())
    for level in range(levels):
        size = [side // 2**level for side in field.shape[2:]]
        coarse, seen = (_resized(values, size) for values in (field, image))
        for step, change in zip(_steps(coarse), _steps(seen), strict=True):
            weight = torch.exp(-alpha * change.abs()).mean(dim=1, keepdim=True) if alpha else 1.0
            total = total + (weight * step.abs()).mean() / 2**level
    return total


def _steps(values: Tensor) -> list[Tensor]:
    """Differences of neighbours along rows, columns and the two diagonals of (B, C, H, W)."""
    corner, right = values[..., :-1, :-1], values[..., :-1, 1:]
    below, across = values[..., 1:, :-1], values[..., 1:, 1:]
    return [values.diff(dim=2), values.diff(dim=3), corner - across, below - right]


def _resized(values: Tensor, size: list[int]) -> Tensor:
    if list(values.shape[2:]) == size:
        return values
    return F.interpolate(values, size, mode="bilinear", align_corners=False)


def _transformer(settings: Settings, options: NemarOptions) -> nn.Module:
    """R: input and label, joined on channels, -> what `move` takes."""
    channels = settings.data.input.channels + settings.data.label.channels
    if options.transformer == "affine":
        height, width = settings.patch_size[:2]
        return AffineNetwork(channels, (height, width))
    architecture = ARCHITECTURES[options.transformer_architecture]
    kind: Literal["normal", "kaiming"] = "kaiming" if options.initialisation == "kaiming" else "normal"
    return FieldNetwork(channels, architecture, kind, options.identity_initialisation)


def _check_transformer(settings: Settings, options: NemarOptions) -> None:
    """R must take the patches and know the initialisation."""
    patch = f"patch_size is {list(settings.patch_size)}"
    sides = settings.patch_size[:2]
    if options.transformer == "affine":
        if min(sides) < AffineNetwork.LEAST_SIDE:
            expected = f"'unet', or sides of at least {AffineNetwork.LEAST_SIDE}: {patch}"
            raise gan_parts.network_error(settings, "transformer", "affine", expected)
        return
    if min(sides) < ARCHITECTURES[options.transformer_architecture].least_side:
        fitting = [name for name, kind in ARCHITECTURES.items() if kind.least_side <= min(sides)]
        expected = f"one that takes such patches ({', '.join(fitting) or 'sides of at least 32'}): {patch}"
        raise gan_parts.network_error(settings, "transformer_architecture", options.transformer_architecture, expected)
    if min(sides) < 2**options.regulariser_levels:
        expected = f"at most {int(math.log2(min(sides)))}, so that two pixels are left: {patch}"
        raise gan_parts.network_error(settings, "regulariser_levels", options.regulariser_levels, expected)
    if options.initialisation not in ("normal", "kaiming"):
        expected = "normal or kaiming: the registration network knows no other"
        raise gan_parts.network_error(settings, "initialisation", options.initialisation, expected)


METHOD = Nemar
