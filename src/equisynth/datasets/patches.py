"""Training and validation patches of a prepared dataset, read as windows of memory-mapped images.

An epoch walks all training patches once: every case stands as often as it has patches at the training stride, in
random order, each time with a freshly drawn position, random affine transformation and noise. All of it is fixed by
(seed, epoch, index), whatever the number of workers and wherever a run was resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from equisynth.datasets.intensity import channels_first, normalise, valid_mask
from equisynth.datasets.randomness import named_random_state
from equisynth.datasets.sequence import MAXIMUM_TRIES, draw_noise, draw_order, find_patch
from equisynth.datasets.tiles import patches_per_axis, window
from equisynth.errors import UserError
from equisynth.geometry.random_transformations import random_affine

if TYPE_CHECKING:
    from equisynth.config import RandomTransformation, Settings
    from equisynth.datasets.prepared import PreparedDataset

Sample = dict[str, np.ndarray]


class Normalisation(Protocol):
    """What of ``config.Intensity`` a patch needs."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    clip: tuple[float, float] | None


@dataclass(frozen=True)
class Source:
    """One image as it lies on disk: values (*S) or (*S, C), and its valid mask (*S), None where valid everywhere.

    ``name`` is for messages.
    """

    values: np.ndarray
    mask: np.ndarray | None
    n_dims: int
    normalisation: Normalisation
    invalid_at_or_below: float | None = None
    name: str = "image"

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape (*S)."""
        return tuple(self.values.shape[: self.n_dims])

    def mask_patch(self, start: Sequence[int], patch_size: Sequence[int]) -> np.ndarray | None:
        """Where the patch is valid, (*P) bool, None for everywhere."""
        place = window(start, patch_size)
        mask = None if self.mask is None else self.mask[place]
        values = None if self.invalid_at_or_below is None else self.values[place]
        return valid_mask(mask, values, self.n_dims, self.invalid_at_or_below)

    def valid_share(self, start: Sequence[int], patch_size: Sequence[int]) -> float:
        """Valid share of a patch, 0 to 1."""
        mask = self.mask_patch(start, patch_size)
        return 1.0 if mask is None else float(np.count_nonzero(mask)) / mask.size

    def patch(self, start: Sequence[int], patch_size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """A normalised patch, zero where invalid, (C, *P) float32, and its mask (1, *P) float32.

        Raises:
            UserError: NaN or infinity, or a mask above 1 (preparation writes none: the file changed since).
        """
        mask = self.mask_patch(start, patch_size)
        if self.mask is not None and self.mask[window(start, patch_size)].max() > 1:
            raise UserError(f"{self.name}_mask: holds values above 1, expected a mask of 0 and 1; prepare it again")
        weights = np.ones((1, *patch_size), np.float32) if mask is None else mask[None].astype(np.float32)
        raw = self.values[window(start, patch_size)]
        if raw.dtype.kind == "f" and not np.isfinite(raw).all():
            raise UserError(f"{self.name}: holds values that are not finite (NaN or infinity); prepare it again")
        values = normalise(raw, self.normalisation.mean, self.normalisation.std, self.normalisation.clip)
        return np.ascontiguousarray(channels_first(values, self.n_dims) * weights), weights


def read_pair(
    input_source: Source,
    label_source: Source,
    patch_size: Sequence[int],
    minimum_shares: tuple[float, float],
    random_state: np.random.RandomState,
    label_state: np.random.RandomState | None,
    name: str,
    tries: int = MAXIMUM_TRIES,
) -> Sample:
    """Draws one valid enough pair of patches.

    Args:
        minimum_shares: smallest valid share of the input and of the label patch.
        random_state: draws the position of the input patch (and of the label patch, if paired).
        label_state: draws the label's own position where the two are unpaired, else None.
        name: of the case, for messages.

    Returns:
        input (C, *P), input_mask (1, *P), label (C', *P), label_mask (1, *P), float32.
    """

    def shares(*sources: Source) -> Any:
        return lambda start: [source.valid_share(start, patch_size) for source in sources]

    if label_state is None:
        both = shares(input_source, label_source)
        start = find_patch(random_state, input_source.shape, patch_size, both, minimum_shares, name, tries)
        label_start = start
    else:
        one = shares(input_source)
        start = find_patch(random_state, input_source.shape, patch_size, one, minimum_shares[:1], name, tries)
        other = shares(label_source)
        label_start = find_patch(label_state, label_source.shape, patch_size, other, minimum_shares[1:], name, tries)
    values, mask = input_source.patch(start, patch_size)
    label, label_mask = label_source.patch(label_start, patch_size)
    return {"input": values, "input_mask": mask, "label": label, "label_mask": label_mask}


def draw_transformation(
    random_state: np.random.RandomState,
    shape: Sequence[int],
    voxel_size: Sequence[float],
    settings: RandomTransformation,
    count: int = 1,
    identity_probability: float = 0.0,
) -> np.ndarray:
    """Random affine transformations in world units, (count, n+1, n+1) float64."""
    n_dims = len(shape)
    if random_state.uniform() < identity_probability:
        return np.broadcast_to(np.eye(n_dims + 1), (count, n_dims + 1, n_dims + 1)).copy()
    planes = n_dims * (n_dims - 1) // 2
    return random_affine(
        count,
        shape,
        voxel_size,
        rotation_degrees=_per_axis(settings.rotation_degrees, planes, (0.0, 0.0)),
        log_scale_std=_per_axis(settings.log_scale_std, n_dims, 0.0),
        log_shear_std=_per_axis(settings.log_shear_std, planes, 0.0),
        translation=_per_axis(settings.translation, n_dims, (0.0, 0.0)),
        flips=settings.flips,
        right_angle_rotations=settings.right_angle_rotations,
        random_state=random_state,
    )


def _per_axis(value: Any, count: int, absent: Any) -> tuple[Any, ...]:
    """One entry (a number or a range) per axis from a single one, from a list of them, or from none."""
    if value is None:
        return (absent,) * count
    one_for_all = np.ndim(value) == np.ndim(absent)
    return (value,) * count if one_for_all else tuple(value)


def add_noise(
    sample: Sample,
    random_state: np.random.RandomState,
    input_std_range: Sequence[float] | None,
    label_std_range: Sequence[float] | None,
) -> Sample:
    """Adds white noise everywhere, also outside the masks (as published)."""
    result = dict(sample)
    for key, std_range in (("input", input_std_range), ("label", label_std_range)):
        noise = draw_noise(random_state, sample[key].shape, std_range)
        if noise is not None:
            result[key] = sample[key] + noise
    return result


class TrainingPatches:
    """The training pairs of a split as a map-style dataset.

    An item is a dictionary of input (C, *P), input_mask (1, *P), label (C', *P), label_mask (1, *P), all float32,
    normalised and zero where invalid, and random_affine, a world matrix (n+1, n+1) float64 (or (k, n+1, n+1) where
    the settings ask for k transformations per sample).

    Args:
        dataset: the prepared dataset.
        settings: patch size, stride, label, ranges of what is drawn.
        split: train, validate or test.
        seed: items depend on (seed, epoch, index) alone.
        limit: at most so many items per epoch; default ``epoch_steps * batch_size`` where ``epoch_steps`` is given.

    Raises:
        UserError: the split is empty, a label is missing, shapes differ, or an image is smaller than a patch.
    """

    purpose = "train"

    def __init__(
        self, dataset: PreparedDataset, settings: Settings, split: str, seed: int, limit: int | None = None
    ) -> None:
        self.dataset, self.settings, self.split, self.seed = dataset, settings, split, seed
        if limit is None and settings.epoch_steps is not None:
            limit = settings.epoch_steps * settings.batch_size
        self.limit = limit
        self.patch_size = tuple(settings.patch_size)
        self.stride = tuple(settings.training_stride or settings.patch_size)
        self.cases = sorted(dataset.cases(split))
        if not self.cases:
            raise UserError(f"{dataset.info.name}: split {split} has no cases; expected at least one")
        self.counts = [self._count(case) for case in self.cases]
        self.set_epoch(0)

    def _count(self, case: str) -> int:
        where = f"{self.dataset.info.name}, case {case}"
        if not self.dataset.has(case, self.settings.label_role):
            raise UserError(
                f"{where}: found no {self.settings.label_role}, which trains_on_label: "
                f"{self.settings.trains_on_label} needs; prepare it or train on another label"
            )
        shape = self.dataset.shape(case)  # of all its images
        if any(size < patch for size, patch in zip(shape, self.patch_size, strict=True)):
            raise UserError(
                f"{where}: shape {list(shape)} is smaller than patch_size {list(self.patch_size)}; "
                "choose a smaller patch_size or leave the case out"
            )
        return prod(patches_per_axis(shape, self.patch_size, self.stride))

    def _source(self, case: str, role: str) -> Source:
        info = self.dataset.info
        return Source(
            self.dataset.image(case, role),
            self.dataset.mask(case, role),
            info.n_dims,
            info.input if role == "input" else info.label,
            info.invalid_at_or_below,
            f"{info.name}, case {case}: {role}",
        )

    def set_epoch(self, epoch: int) -> None:
        """Fixes the variant of the items: their order and everything drawn for them."""
        self.epoch = epoch
        state = self._state(epoch, "order")
        self.order = draw_order(state, self.counts)[: self.limit]
        self.label_order = None if self.settings.paired else draw_order(state, self.counts)[: self.limit]

    def _state(self, epoch: int, *names: object) -> np.random.RandomState:
        return named_random_state(self.seed, self.purpose, self.split, str(epoch), *map(str, names))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        settings = self.settings
        state = self._state(self.epoch, "item", index)
        case = self.cases[self.order[index]]
        label_case = case if self.label_order is None else self.cases[self.label_order[index]]
        minimum = settings.min_valid_ratio
        sample = read_pair(
            self._source(case, "input"),
            self._source(label_case, settings.label_role),
            self.patch_size,
            (minimum.input or 0.0, minimum.label or 0.0),
            state,
            None if self.label_order is None else state,
            case if case == label_case else f"{case} (label: {label_case})",
        )
        matrices = draw_transformation(
            state,
            self.patch_size,
            self.dataset.info.voxel_size,
            settings.random_transformation,
            settings.transformations_per_sample,
        )
        sample = add_noise(sample, state, settings.input_noise_std_range, settings.label_noise_std_range)
        sample["random_affine"] = matrices[0] if settings.transformations_per_sample == 1 else matrices
        return sample


class ValidationPatches(TrainingPatches):
    """The same fixed variant of a split's patches each epoch: epochs are comparable.

    Pairs are pairs, transformed as one, also where a method trains on images that are drawn apart.
    """

    purpose = "validate"

    def __init__(
        self, dataset: PreparedDataset, settings: Settings, split: str, seed: int, limit: int | None = None
    ) -> None:
        paired = settings.model_copy(update={"paired": True, "transformations_per_sample": 1})
        super().__init__(dataset, paired, split, seed, limit)

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the first one."""
        super().set_epoch(0)
