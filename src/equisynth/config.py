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

    n_dims: Literal[2, 3]
    voxel_size: tuple[Positive, ...]
    input: Intensity
    label: Intensity
    invalid_at_or_below: float | None = None
    licence: str

    @model_validator(mode="after")
    def _one_size_per_axis(self) -> Data:
        if len(self.voxel_size) != self.n_dims:
            raise ValueError(f"voxel_size has {len(self.voxel_size)} values, expected n_dims = {self.n_dims}")
        return self


class RandomTransformation(Strict):
    """Ranges of r. Rotations in degrees, translations in world units; a list of ranges gives one per axis."""

    rotation_degrees: Range | tuple[Range, ...] | None = None
    log_scale_std: NonNegative | tuple[NonNegative, ...] | None = None
    log_shear_std: NonNegative | tuple[NonNegative, ...] | None = None
    translation: Range | tuple[Range, ...] | None = None
    flips: bool = False
    right_angle_rotations: bool = False


class MinValidRatio(Strict):
    """Smallest valid share of a training patch."""

    input: Annotated[float, Field(ge=0, le=1)] | None = None
    label: Annotated[float, Field(ge=0, le=1)] | None = None


class Ranges(Strict):
    """What is drawn uniformly between two bounds, one of each per axis (or per angle)."""

    lower: tuple[float, ...]
    upper: tuple[float, ...]

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

    discriminator: Widths | None = None
    i2i: Widths | None = None
    intra_modality_reg: Widths | None = None
    cross_modality_reg: Widths | None = None
    rigid_reg: Widths | None = None


class LearningRate(Strict):
    """Adam's learning rates."""

    generator: Positive
    discriminator: Positive | None = None


class Loss(Strict):
    """Weights of the terms and the limits of the rigid transformation."""

    similarity: Literal["mae", "mse"] = "mae"
    similarity_weight: Weight = None
    cross_modality_similarity: Weight = None
    intra_modality_similarity: Weight = None
    rigid_similarity: Weight = None
    forward_rigidity: Weight = None
    inverse_rigidity: Weight = None
    commutation: Weight = None
    self_commutation: Weight = None
    discriminator: Weight = None
    adversarial: Weight = None
    max_rotation_degrees: Positive | None = None
    max_translation: Positive | None = None
    equivariant_similarity: bool | None = None
    equivariant_adversarial: bool = True


class RigidityCoefficient(Strict):
    """Piecewise linear map from the label's intensity to the local weight of the rigidity penalty."""

    values: tuple[float, ...]
    coefficients: tuple[float, ...]

    @model_validator(mode="after")
    def _pairs(self) -> RigidityCoefficient:
        if len(self.values) != len(self.coefficients) or len(self.values) < 2:
            raise ValueError("values and coefficients must have the same length of at least 2")
        if list(self.values) != sorted(set(self.values)):
            raise ValueError(f"values are {self.values}, expected in increasing order, each once")
        return self


class Rigidity(Strict):
    """Weights and finite differences of the rigidity penalty (Staring, Klein, Pluim 2007)."""

    affinity_weight: NonNegative = 1.0
    orthonormality_weight: NonNegative = 0.01
    properness_weight: NonNegative = 0.1
    first_derivatives_central: bool = False
    second_derivatives_central: bool = False
    coefficient: RigidityCoefficient | None = None


class Settings(Strict):
    """One experiment at one scale, resolved and complete.

    Attributes:
        transformations_per_sample: 2: the label's is drawn apart from the input's.
        slices: a method of two dimensions on volumes: patches are single slices across the last axis.
        augmentation_input_background_value, augmentation_label_background_value: normalised; what warped images take
            where they are invalid.
        network: what only this method knows (``Method.Options``).
    """

    experiment: str
    scale: str
    seed: int = 0
    dataset: str
    method: str
    data: Data

    trains_on_label: str
    batch_size: Count
    patch_size: tuple[Count, ...]
    training_stride: tuple[Positive, ...] | None = None
    inference_stride: tuple[Count, ...] | None = None
    fusing_mask_smoothing: NonNegative | None = None
    random_transformation: RandomTransformation
    input_noise_std_range: NoiseRange | None = None
    label_noise_std_range: NoiseRange | None = None
    paired: bool = True
    transformations_per_sample: Count = 1
    min_valid_ratio: MinValidRatio = MinValidRatio()
    augment_with_random_transformation: bool = False
    label_deformation: LabelDeformation | None = None
    slices: bool = False
    augmentation_input_background_value: float | None = None
    augmentation_label_background_value: float | None = None
    features: Features = Features()
    normalization_groups: Count | None = 16
    final_activation: Literal["linear", "softplus"] = "linear"
    network: dict[str, Any] = {}
    epochs: Count
    epoch_steps: Count | None = None
    learning_rate: LearningRate
    loss: Loss = Loss()
    rigidity: Rigidity | None = None
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
