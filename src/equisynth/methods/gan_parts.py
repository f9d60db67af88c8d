"""What the GAN baselines share: options, networks, losses, the schedule of the learning rate, work on slices.

Pix2pix, CycleGAN and NEMAR are `GanMethod`s; RegGAN, which has other networks and options, uses some of the functions.
All of them are methods of two dimensions, on pictures or on slices of volumes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam

from equisynth.config import Count, NonNegative, Settings, Strict
from equisynth.errors import UserError
from equisynth.losses import masked_error
from equisynth.methods.base import SELECTION, Batch, Method
from equisynth.networks.gan_layers import FinalActivation, Initialisation, Norm, adversarial_loss, initialise
from equisynth.networks.patch_discriminator import PatchDiscriminator, PixelDiscriminator
from equisynth.networks.residual_generator import ResidualGenerator
from equisynth.networks.skip_generator import LEVELS, SkipGenerator

BLOCKS = {"resnet_3blocks": 3, "resnet_6blocks": 6, "resnet_9blocks": 9}
GanLoss = Literal["lsgan", "vanilla", "wgangp"]
Share = Annotated[float, Field(ge=0, le=1)]


class GanOptions(Strict):
    """What ``settings.network`` holds. Aliases are the names in the published configurations.

    Attributes:
        discriminator: ``basic`` has three layers, ``n_layers`` as many as `discriminator_layers`.
        gan_loss: ``wgangp`` is without its gradient penalty, as published.
        pool_size: images that CycleGAN's discriminators may see again; no other method has a pool.
        decay_share: the learning rate falls linearly over this share of the epochs, the last ones.
        use_masking: none means true.
    """

    generator: Literal["resnet_3blocks", "resnet_6blocks", "resnet_9blocks", "unet_128", "unet_256", "unet_512"] = (
        Field("resnet_9blocks", serialization_alias="netG")
    )  # architecture of the translating network
    generator_width: Count = Field(64, serialization_alias="ngf")  # channels of its first level
    discriminator: Literal["basic", "n_layers", "pixel"] = Field("basic", serialization_alias="netD")
    discriminator_width: Count = Field(64, serialization_alias="ndf")  # channels of its first level
    discriminator_layers: Count = Field(3, serialization_alias="n_layers_D")  # of `n_layers`
    norm: Norm = "instance"  # normalisation
    initialisation: Initialisation = Field("normal", serialization_alias="init_type")  # distribution of initial weights
    initialisation_gain: NonNegative = Field(0.02, serialization_alias="init_gain")  # its width
    dropout: bool = False  # in the generator
    gan_loss: GanLoss = Field("lsgan", serialization_alias="gan_mode")
    pool_size: Annotated[int, Field(ge=0)] = 0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of Adam
    decay_policy: Literal["linear"] = Field("linear", serialization_alias="lr_policy")  # how the learning rate falls
    decay_share: Share = 0.5
    final_activation: FinalActivation = "linear"  # of the generator
    use_masking: bool | None = None

    @property
    def masked(self) -> bool:
        """Whether networks and measures see nothing of what masks call invalid."""
        return self.use_masking is not False


class GanMethod(Method):
    """Options, schedule and translation of pix2pix, CycleGAN and NEMAR.

    Attributes:
        chosen: the checked options, set by each method's constructor.
    """

    Options: ClassVar[type[Strict]] = GanOptions
    chosen: GanOptions

    @classmethod
    def options(cls, settings: Settings) -> GanOptions:
        """``settings.network``, checked, also against the patches.

        Raises:
            UserError: an unknown key, a value of another kind, patches that the networks cannot take.
        """
        options = super().options(settings)
        assert isinstance(options, GanOptions)
        check_two_dimensional(settings)
        _check_patches(settings, options)
        return options

    @classmethod
    def published_network(cls, settings: Settings) -> dict[str, Any]:
        """The options in the shape of the published configurations, with what follows from data and settings."""
        options = cls.options(settings)
        falling = decay_epochs(settings, options.decay_share)
        return {
            **published_entry(settings, options, {"dropout", "decay_share"}),
            "no_dropout": not options.dropout,
            "lr": settings.learning_rate.generator,
            "n_epochs": settings.epochs - falling,
            "n_epochs_decay": falling,
        }

    def start_epoch(self, epoch: int) -> None:
        """Sets the learning rate of all optimisers."""
        rate = learning_rate(self.settings, self.chosen.decay_share, epoch)
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = rate

    def validation(self, batch: Batch) -> dict[str, Tensor]:
        """Mean absolute error of the translation."""
        batch = augmented(self.settings, batch)
        output = self.networks["i2i"](batch.input.values)
        return {SELECTION: similarity_to_label(batch, output, self.chosen.masked)}

    @staticmethod
    def translate(network: nn.Module, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pictures (B, C, H, W), or slices (B, C, H, W, 1)."""
        return slice_wise(network, values)


def generator(settings: Settings, options: GanOptions, reverse: bool = False) -> nn.Module:
    """An initialised generator from input to label, or in reverse from label to input."""
    channels = (settings.data.input.channels, settings.data.label.channels)
    source, target = reversed(channels) if reverse else channels
    width, norm, dropout, final = options.generator_width, options.norm, options.dropout, options.final_activation
    network: nn.Module
    if options.generator in BLOCKS:
        network = ResidualGenerator(source, target, width, BLOCKS[options.generator], norm, dropout, final)
    else:
        network = SkipGenerator(source, target, width, LEVELS[options.generator], norm, dropout, final)
    return _initialised(network, options)


def discriminator(options: GanOptions, channels: int) -> nn.Module:
    """An initialised discriminator of images of so many channels: one logit per patch, or per pixel."""
    network: nn.Module
    if options.discriminator == "pixel":
        network = PixelDiscriminator(channels, options.discriminator_width, options.norm)
    else:
        network = PatchDiscriminator(channels, options.discriminator_width, _layers(options), options.norm)
    return _initialised(network, options)


def adam(networks: Iterable[nn.Module], rate: float, beta1: float) -> Adam:
    """Adam over the parameters of some networks.

    Not fused: biases in front of norms have a gradient of zero up to rounding, which Adam makes as large as any other,
    and published numbers are met with this rounding.
    """
    return Adam(chain.from_iterable(network.parameters() for network in networks), lr=rate, betas=(beta1, 0.999))


def adversarial(logits: Tensor, real: bool, kind: GanLoss) -> Tensor:
    """How far a discriminator's logits are from calling all patches real, or fake; the mean over patches."""
    logits = logits.float()
    if kind == "wgangp":
        return -logits.mean() if real else logits.mean()
    return adversarial_loss(logits, real, kind)


def augmented(settings: Settings, batch: Batch) -> Batch:
    """The batch moved by its random transformations, on the background of the settings, if they say so."""
    if not settings.augment_with_random_transformation:
        return batch
    fill = settings.augmentation_input_background_value, settings.augmentation_label_background_value
    return batch.augmented(*fill)


def similarity_to_label(batch: Batch, output: Tensor, masked: bool) -> Tensor:
    """The measure of validation: mean absolute error, over pixels that are valid in both images if masked."""
    mask = batch.input.comparison_mask(batch.label) if masked else None
    return masked_error(output, batch.label.values, mask)


def slice_wise(network: nn.Module, values: Tensor) -> Tensor:
    """Translates pictures (B, C, H, W), or slices (B, C, H, W, 1) without their last axis."""
    output: Tensor = network(values[..., 0])[..., None] if values.ndim == 5 else network(values)
    return output


def decay_epochs(settings: Settings, share: float) -> int:
    """How many epochs, the last ones, the learning rate falls."""
    return round(share * settings.epochs)


def learning_rate(settings: Settings, share: float, epoch: int) -> float:
    """Constant, then falling linearly, so that it would be zero in the epoch after the last.

    Args:
        share: of all epochs in which it falls.
        epoch: from 1.
    """
    falling = decay_epochs(settings, share)
    passed = max(0, epoch - (settings.epochs - falling))
    return settings.learning_rate.generator * (1 - passed / (falling + 1))


def published_entry(settings: Settings, options: Strict, left_out: set[str]) -> dict[str, Any]:
    """Options, channels, and the axis that slices lack, by their published names.

    Args:
        options: with ``use_masking``, which is not stated where it is none.
        left_out: names of options that the published configurations lack or state otherwise.
    """
    entry = options.model_dump(mode="json", by_alias=True, exclude=left_out)
    if entry["use_masking"] is None:
        del entry["use_masking"]
    entry |= {"input_nc": settings.data.input.channels, "output_nc": settings.data.label.channels}
    return entry | ({"squeeze_dim": settings.data.n_dims - 1} if settings.slices else {})


def check_two_dimensional(settings: Settings) -> None:
    """Raises ``UserError`` unless patches are pictures or slices."""
    if settings.data.n_dims == 3 and not settings.slices:
        raise UserError(
            f"params.yaml: {settings.experiment}: slices: found false, expected true and a patch_size that ends with "
            f"1: method '{settings.method}' has two dimensions, the data three"
        )


def network_error(settings: Settings, key: str, found: object, expected: str) -> UserError:
    """A complaint about an option that does not fit the other settings, in the words of all such complaints."""
    return UserError(f"params.yaml: {settings.experiment}: network.{key}: found {found!r}, expected {expected}")


def _initialised(network: nn.Module, options: GanOptions) -> nn.Module:
    initialise(network.modules(), options.initialisation, options.initialisation_gain)
    return network


def _layers(options: GanOptions) -> int:
    return 3 if options.discriminator == "basic" else options.discriminator_layers


def _check_patches(settings: Settings, options: GanOptions) -> None:
    """The generator must give back the size it gets, and norms need more than one pixel."""
    sides = settings.patch_size[:2]
    patch = f"patch_size is {list(settings.patch_size)}"
    if options.generator in BLOCKS:
        if any(side % 4 or side < 8 for side in sides):
            expected = f"a unet, or sides that are multiples of 4 and at least 8: {patch}"
            raise network_error(settings, "generator", options.generator, expected)
    else:
        least = 2 ** (LEVELS[options.generator] - 1)
        if options.norm == "instance" and max(sides) <= least:
            raise network_error(settings, "generator", options.generator, f"a side above {least}: {patch}")
    if options.discriminator != "pixel":
        layers = _layers(options)
        least = 3 * 2**layers
        if min(sides) < least:
            key, found = (
                ("discriminator", "basic") if options.discriminator == "basic" else ("discriminator_layers", layers)
            )
            raise network_error(settings, key, found, f"sides of at least {least}: {patch}")
