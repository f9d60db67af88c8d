"""Typed settings of one experiment, checked once at the door: every error names the key.

``params.py`` composes them from ``params.yaml``; the shape of the training fields is that of the published experiments.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _in_order(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError("expected [lower, upper] with lower <= upper")
    return limits


NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[float, float], AfterValidator(_in_order)]
NoiseRange = Annotated[tuple[NonNegative, NonNegative], AfterValidator(_in_order)]
Widths = Annotated[tuple[Count, ...], Field(min_length=1)]
Weight = NonNegative | None
"""Weight of a loss term; none or zero: the term is not computed."""

ON_THE_FLY = "deformed on the fly"
"""The label that is made while training, see ``Settings.label_deformation``."""
LABEL_ROLES: dict[str, str] = {
    "deformed": "label",
    ON_THE_FLY: "label",
    "unregistered": "label",
    "rigidly registered": "label",
    "aligned": "label_aligned",
    "re-registered": "label_registered",
    "registered": "label_registered",
    "deformably registered": "label_registered",
}
"""What an experiment calls the label it trains on -> role in the prepared dataset."""


class Strict(BaseModel):
    """Unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Intensity(Strict):
    """Meaning of the values of one modality.

    Attributes:
        modality: what people call it (T2, PD, CT).
        channels: number of channels C.
        mean, std: per channel; the networks see (value - mean) / std.
        clip: values are clipped to this range before mean and std.
        signal_range: extent of the signal for PSNR, SSIM and FID.
        background: value of air.
        unit: one line for people.
    """

    modality: str
    channels: Count = 1
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Positive, ...] = (1.0,)
    clip: Range | None = None
    signal_range: Positive
    background: float = 0.0
    unit: str

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Intensity:
        for key in ("mean", "std"):
            found = len(getattr(self, key))
            if found != self.channels:
                raise ValueError(f"{key} has {found} values, expected one per channel ({self.channels})")
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip is {self.clip}, expected [lower, upper] with lower < upper")
        return self


class Data(Strict):
    """What a prepared dataset's images are. ``voxel_size`` in mm (pixels for photographs), one per axis."""

    n_dims: Literal[2, 3]  # number of axes
    voxel_size: tuple[Positive, ...]  # mm (pixels for pictures), one per axis
    input: Intensity  # what the input's values mean
    label: Intensity  # what the label's values mean
    invalid_at_or_below: float | None = None  # a pixel none of whose channels exceeds it is invalid; null: none
    licence: str  # of the data; every model that is trained on them carries it

    @model_validator(mode="after")
    def _one_size_per_axis(self) -> Data:
        if len(self.voxel_size) != self.n_dims:
            raise ValueError(f"voxel_size has {len(self.voxel_size)} values, expected n_dims = {self.n_dims}")
        return self


class RandomTransformation(Strict):
    """Ranges of r. Rotations in degrees, translations in world units; a list of ranges gives one per axis.

    Attributes:
        log_scale_std: standard deviation of the logarithm of the scale.
        translation: [lower, upper] in mm (pixels for pictures), or such a range per axis.
    """

    rotation_degrees: Range | tuple[Range, ...] | None = None  # [lower, upper], or such a range per axis
    log_scale_std: NonNegative | tuple[NonNegative, ...] | None = None
    log_shear_std: NonNegative | tuple[NonNegative, ...] | None = None  # the same of the shear
    translation: Range | tuple[Range, ...] | None = None
    flips: bool = False  # mirror along random axes
    right_angle_rotations: bool = False  # rotate by random multiples of 90°


class MinValidRatio(Strict):
    """Smallest valid share of a training patch."""

    input: Annotated[float, Field(ge=0, le=1)] | None = None  # of the input's voxels; null: any
    label: Annotated[float, Field(ge=0, le=1)] | None = None  # of the label's voxels; null: any


class Ranges(Strict):
    """What is drawn uniformly between two bounds, one of each per axis (or per angle)."""

    lower: tuple[float, ...]  # lower bounds
    upper: tuple[float, ...]  # upper bounds, none below its lower one

    @model_validator(mode="after")
    def _in_order(self) -> Ranges:
        if len(self.lower) != len(self.upper) or any(a > b for a, b in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f"found {self.lower} to {self.upper}, expected as many values, lower <= upper")
        return self


class LabelDeformation(Strict):
    """Misalignment of labels that are made while training, from 2D pictures. Equal bounds: the same for all."""

    width_range: Ranges  # standard deviation of the Gaussian bump, as a fraction of the side
    magnitude_range: Ranges  # velocity at its centre, pixels
    center_range: Ranges  # as a fraction of the side
    degree_range: Ranges  # of the rotation that follows
    translation_range: Ranges  # pixels

    @model_validator(mode="after")
    def _two_dimensional(self) -> LabelDeformation:
        for key, ranges in self:
            expected = 1 if key == "degree_range" else 2
            if len(ranges.lower) != expected:
                raise ValueError(f"{key}: found {len(ranges.lower)} values, expected {expected}")
        if min(self.width_range.lower) <= 0:
            raise ValueError(f"width_range: found {self.width_range.lower}, expected widths above 0")
        return self


class Features(Strict):
    """Widths per level of each network; none where a method has no such network."""

    discriminator: Widths | None = None  # of the discriminator
    i2i: Widths | None = None  # of the network that translates
    intra_modality_reg: Widths | None = None  # of the registration of the translated input to the label
    cross_modality_reg: Widths | None = None  # of the registration of the label to the input
    rigid_reg: Widths | None = None  # of the encoder that finds the rigid part


class LearningRate(Strict):
    """Adam's learning rates."""

    generator: Positive  # of all networks but the discriminator
    discriminator: Positive | None = None  # of the discriminator


class Loss(Strict):
    """Weights of the terms and the limits of the rigid transformation.

    Attributes:
        commutation: of the difference between translating a deformed input and deforming the translated one.
        equivariant_similarity: true: the output of the deformed input, brought back, is fitted to the label; false or
            null: the output itself.
    """

    similarity: Literal["mae", "mse"] = "mae"  # mean absolute or mean squared error
    similarity_weight: Weight = None  # of the similarity of output and label as they lie (`supervised`)
    cross_modality_similarity: Weight = None  # of the similarity after the cross-modality registration
    intra_modality_similarity: Weight = None  # of the similarity after the intra-modality registration
    rigid_similarity: Weight = None  # of the similarity after the rigid registration alone
    forward_rigidity: Weight = None  # of the rigidity penalty of the deformation
    inverse_rigidity: Weight = None  # of the rigidity penalty of its inverse
    commutation: Weight = None
    self_commutation: Weight = None  # the same with the predicted deformation in place of a random one
    discriminator: Weight = None  # of the discriminator's own loss
    adversarial: Weight = None  # of what the discriminator says of the output
    max_rotation_degrees: Positive | None = None  # limit of the rigid registration, per axis
    max_translation: Positive | None = None  # limit of the rigid registration, per axis; mm (pixels for pictures)
    equivariant_similarity: bool | None = None
    equivariant_adversarial: bool = True  # show the discriminator outputs of deformed inputs


class RigidityCoefficient(Strict):
    """Piecewise linear map from the label's intensity to the local weight of the rigidity penalty."""

    values: tuple[float, ...]  # of the label, increasing
    coefficients: tuple[float, ...]  # weights there; between two values linear

    @model_validator(mode="after")
    def _pairs(self) -> RigidityCoefficient:
        if len(self.values) != len(self.coefficients) or len(self.values) < 2:
            raise ValueError("values and coefficients must have the same length of at least 2")
        if list(self.values) != sorted(set(self.values)):
            raise ValueError(f"values are {self.values}, expected in increasing order, each once")
        return self


class Rigidity(Strict):
    """Weights and finite differences of the rigidity penalty (Staring, Klein, Pluim 2007)."""

    affinity_weight: NonNegative = 1.0  # of second derivatives
    orthonormality_weight: NonNegative = 0.01  # of the Jacobian's distance to a rotation
    properness_weight: NonNegative = 0.1  # of the determinant's distance to 1
    first_derivatives_central: bool = False  # central differences; else forward ones
    second_derivatives_central: bool = False  # central differences; else forward ones
    coefficient: RigidityCoefficient | None = None  # local weight by the label's intensity; null: 1 everywhere


class Settings(Strict):
    """One experiment at one scale, resolved and complete.

    Attributes:
        trains_on_label: the label that training sees: ``deformed``, ``deformed on the fly``, ``unregistered``,
            ``rigidly registered``, ``aligned``, ``re-registered``, ``registered`` or ``deformably registered``.
        inference_stride: distance of tiles at inference, voxels, at most the patch size; null: the patch size.
        fusing_mask_smoothing: width of the soft border with which tiles are fused, voxels; null: none.
        input_noise_std_range: [lower, upper] of the standard deviation of noise, normalised; null: none.
        label_deformation: of labels made while training (``deformed on the fly``, pictures only).
        discriminator: what it sees: input and image, or the image alone.
        transformations_per_sample: 2: the label's is drawn apart from the input's.
        slices: a method of two dimensions on volumes: patches are single slices across the last axis.
        augmentation_input_background_value, augmentation_label_background_value: normalised; what warped images take
            where they are invalid.
        network: what only this method knows (``Method.Options``).
    """

    experiment: str
    scale: str
    seed: int = 0  # instead of the seed of the file
    dataset: str
    method: str
    data: Data

    trains_on_label: str
    batch_size: Count  # of all processes together; with a discriminator at least 2
    patch_size: tuple[Count, ...]  # voxels, one per axis; whole halvings of it must fit the networks
    training_stride: tuple[Positive, ...] | None = None  # distance of training patches in voxels; null: the patch size
    inference_stride: tuple[Count, ...] | None = None
    fusing_mask_smoothing: NonNegative | None = None
    random_transformation: RandomTransformation  # r, with which the method asks for equivariance and augments
    input_noise_std_range: NoiseRange | None = None
    label_noise_std_range: NoiseRange | None = None  # the same for the label
    paired: bool = True  # false: input and label of a sample come from different cases
    transformations_per_sample: Count = 1
    min_valid_ratio: MinValidRatio = MinValidRatio()  # smallest valid share of a training patch
    augment_with_random_transformation: bool = False  # r deforms input and label alike, as augmentation
    label_deformation: LabelDeformation | None = None
    slices: bool = False
    augmentation_input_background_value: float | None = None
    augmentation_label_background_value: float | None = None
    features: Features = Features()  # widths per level of each network; null: the method has no such network
    normalization_groups: Count | None = 16  # of group normalisation; null: none. Divides every width but the first
    final_activation: Literal["linear", "softplus"] = "linear"  # of the translating network
    network: dict[str, Any] = {}
    epochs: Count  # number of epochs; the best one on the validation split becomes the model
    epoch_steps: Count | None = None  # batches per epoch; null: every patch once
    learning_rate: LearningRate  # of Adam
    loss: Loss = Loss()  # weights of the terms (null or 0: not computed) and limits of the rigid transformation
    rigidity: Rigidity | None = None  # weights and finite differences of the rigidity penalty; null: the defaults below
    discriminator: Literal["none", "conditional", "unconditional"] = "none"

    @property
    def label_role(self) -> str:
        """Role in the prepared dataset of the label that training sees."""
        return LABEL_ROLES[self.trains_on_label]

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        n_dims = self.data.n_dims
        if self.trains_on_label not in LABEL_ROLES:
            raise ValueError(f"trains_on_label is '{self.trains_on_label}', expected one of {sorted(LABEL_ROLES)}")
        if (self.label_deformation is not None) != (self.trains_on_label == ON_THE_FLY):
            found = "missing" if self.label_deformation is None else "set"
            raise ValueError(
                f"label_deformation is {found} and trains_on_label is '{self.trains_on_label}', "
                f"expected label_deformation with '{ON_THE_FLY}' and with no other label"
            )
        for key in ("patch_size", "training_stride", "inference_stride"):
            value = getattr(self, key)
            if value is not None and len(value) != n_dims:
                raise ValueError(f"{key} has {len(value)} values, expected {n_dims} (the dataset has {n_dims} axes)")
        if self.inference_stride and any(s > p for s, p in zip(self.inference_stride, self.patch_size, strict=True)):
            raise ValueError(
                f"inference_stride is {list(self.inference_stride)}, expected at most patch_size "
                f"{list(self.patch_size)}: tiles would leave gaps"
            )
        self._one_range_per_axis()
        if self.discriminator != "none":
            if self.batch_size < 2:
                raise ValueError("batch_size is 1, expected at least 2: a discriminator trains on half of the batch")
            if self.features.discriminator is None or self.learning_rate.discriminator is None:
                raise ValueError(
                    "discriminator is set, so features.discriminator and learning_rate.discriminator are needed"
                )
        self._patch_fits_networks()
        if self.slices:
            self._within_slices()
        if not self.network and self.features.i2i is None:
            raise ValueError("features.i2i: missing; add it (the widths of the translating network)")
        if self.normalization_groups is not None:
            for width in (self.features.i2i or ())[1:]:
                if width % self.normalization_groups:
                    raise ValueError(
                        f"normalization_groups is {self.normalization_groups}, expected a divisor of {width} "
                        "(a width in features.i2i)"
                    )
        return self

    def _within_slices(self) -> None:
        """Patches are slices, and what is drawn for them stays in their plane."""
        if self.data.n_dims != 3 or self.patch_size[-1] != 1:
            raise ValueError(
                f"slices is true and patch_size is {list(self.patch_size)}, expected volumes and a last entry of 1"
            )
        drawn = self.random_transformation
        in_plane = {"rotation_degrees": 1, "log_scale_std": 2, "log_shear_std": 1, "translation": 2}
        for key, count in in_plane.items():
            value = getattr(drawn, key)
            single = not isinstance(value, tuple) or (key in ("rotation_degrees", "translation") and _is_range(value))
            beyond = () if value is None else (value,) if single else value[count:]
            if any(entry not in (0, (0, 0)) for entry in beyond):
                raise ValueError(
                    f"slices is true and random_transformation.{key} is {value}, expected a list with zeros for all "
                    f"but the first {count}: slices are moved within their plane only"
                )
        if drawn.flips or drawn.right_angle_rotations:
            raise ValueError("slices is true, expected random_transformation without flips and right_angle_rotations")

    def _one_range_per_axis(self) -> None:
        n_dims = self.data.n_dims
        n_pairs = n_dims * (n_dims - 1) // 2
        expected = {
            "rotation_degrees": n_pairs, "log_scale_std": n_dims, "log_shear_std": n_pairs, "translation": n_dims,
        }  # fmt: skip
        for key, count in expected.items():
            value = getattr(self.random_transformation, key)
            is_list = isinstance(value, tuple) and not (key in ("rotation_degrees", "translation") and _is_range(value))
            if is_list and len(value) != count:
                raise ValueError(
                    f"random_transformation.{key} has {len(value)} entries, expected one for all, or {count}"
                )

    def _patch_fits_networks(self) -> None:
        for name, features in self.features:
            if features is None:
                continue
            halvings = len(features) if name in ("discriminator", "rigid_reg") else len(features) - 1
            for size in self.patch_size:
                # The published photographs' experiments have 400² patches and five halvings: the rigid encoder
                # leaves out what an odd size leaves over, and needs a single cell to remain.
                fits = size >= 2**halvings if name == "rigid_reg" else size % 2**halvings == 0
                if not fits:
                    needed = "of at least" if name == "rigid_reg" else "divisible by"
                    raise ValueError(
                        f"patch_size is {list(self.patch_size)}, but features.{name} with {len(features)} levels "
                        f"needs every axis {needed} {2**halvings}"
                    )


def _is_range(value: tuple[Any, ...]) -> bool:
    return len(value) == 2 and not isinstance(value[0], tuple)
