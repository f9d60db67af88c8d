"""Training pairs: golden sequences, and what the program adds (fixed by seed, epoch and index; clear errors)."""

from __future__ import annotations

import fnmatch
import pickle
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from equisynth.config import MinValidRatio, RandomTransformation
from equisynth.datasets.patches import (
    Source,
    TrainingPatches,
    ValidationPatches,
    add_noise,
    draw_transformation,
    read_pair,
)
from equisynth.datasets.sequence import draw_order
from equisynth.datasets.tiles import patches_per_axis
from equisynth.errors import UserError
from golden_data import Golden, load

GOLDEN = load("08_data") / "training_set"
MODES = [(case, mode) for case in GOLDEN.children() for mode in (GOLDEN / case).children() if "array" not in mode]
KEYS = ("input", "label", "input_mask", "label_mask", "random_affine")


def known_difference(key: str, settings: dict[str, Any]) -> bool:
    """Flips about the centre in voxels instead of world units, where the two differ (and the noise is not touched)."""
    flipped = settings["generate_flips"] and any(size != 1 for size in settings["voxel_size"])
    return bool(flipped) and fnmatch.fnmatch(key, "training_set/*/random_affine")


def normalisation(settings: dict[str, Any], role: str) -> SimpleNamespace:
    mean, std = settings[f"{role}_mean_and_std"]
    return SimpleNamespace(mean=mean, std=std, clip=settings[f"{role}_min_and_max"])


def sources(case: Golden, settings: dict[str, Any], role: str) -> list[Source]:
    arrays = [case / name for name in case.children() if name.startswith("array")]
    n_dims = len(settings["patch_size"])
    threshold = settings["mask_threshold"]
    return [Source(a[role], a[f"{role}_mask"], n_dims, normalisation(settings, role), threshold) for a in arrays]


def ranges(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return tuple(tuple(part) if isinstance(part, list) else part for part in value)


def reference_items(case: Golden, settings: dict[str, Any], generations: int, count: int) -> list[list[Any]]:
    """Our pieces on the reference's one sequential state per worker."""
    inputs, labels = sources(case, settings, "input"), sources(case, settings, "label")
    patch, stride = settings["patch_size"], settings["stride"]
    counts = [prod(patches_per_axis(source.shape, patch, stride)) for source in inputs]
    random_transformation = RandomTransformation(
        rotation_degrees=ranges(settings["rotation_degree_range"]),
        log_scale_std=ranges(settings["log_scale_scale"]),
        log_shear_std=ranges(settings["log_shear_scale"]),
        translation=ranges(settings["translation_range"]),
        flips=settings["generate_flips"],
        right_angle_rotations=settings["generate_orthogonal_rotations"],
    )
    state = np.random.RandomState(settings["seed"])
    result = []
    for _ in range(generations):
        worker_seed = int(state.randint(2**32, dtype=np.uint32))
        order = draw_order(state, counts, settings["cluster"])
        base = state.randint(2**32)
        label_order, label_base = order, None
        if not settings["paired"]:
            label_order = draw_order(state, counts, settings["cluster"])
            label_base = state.randint(2**32)
        worker = state if settings["worker"] is None else np.random.RandomState(worker_seed + settings["worker"])
        items: list[Any] = [len(order)]
        for index in range(count):
            sample = read_pair(
                inputs[order[index]],
                labels[label_order[index]],
                patch,
                tuple(settings["min_mask_ratios"]),
                np.random.RandomState(base ^ index),
                None if label_base is None else np.random.RandomState(label_base ^ index),
                "golden",
            )
            number = settings["n_random_deformations"]
            probability = settings["zero_random_deformation_prob"]
            voxel_size = settings["voxel_size"]
            affine = draw_transformation(
                worker, patch, voxel_size, random_transformation, number or 1, identity_probability=probability
            )
            noise = settings["input_noise_amplitude_range"], settings["label_noise_amplitude_range"]
            sample = add_noise(sample, worker, *noise)
            sample["random_affine"] = affine if number else affine[0]
            items.append(sample)
        result.append(items)
    return result


@pytest.mark.parametrize(("case", "mode"), MODES)
def test_training_set_golden(case: str, mode: str) -> None:
    golden = GOLDEN / case / mode
    settings = golden.json("settings_json")
    names = golden.children()
    count = max(len((golden / name)["input"]) for name in names)
    for name, (length, *items) in zip(names, reference_items(GOLDEN / case, settings, len(names), count), strict=True):
        generation = golden / name
        generation.check("length", length)
        for key in KEYS:
            if not known_difference(generation.prefix + key, settings):
                stored = len(generation[key])
                generation.check(key, np.stack([item[key] for item in items[:stored]]))


class MemoryDataset:
    """A prepared dataset's reading side, in memory."""

    def __init__(self, shapes: list[tuple[int, ...]], masks: bool = True, threshold: float | None = None) -> None:
        state = np.random.RandomState(0)
        intensity = SimpleNamespace(mean=(0.0,), std=(2.0,), clip=None)
        n_dims = len(shapes[0])
        self.info = SimpleNamespace(
            name="memory", n_dims=n_dims, voxel_size=(1.0,) * n_dims, input=intensity, label=intensity,
            invalid_at_or_below=threshold,
        )  # fmt: skip
        self.images = {f"case{k}": state.rand(*shape).astype(np.float32) for k, shape in enumerate(shapes)}
        self.masks = {name: (image > 0.2).astype(np.uint8) for name, image in self.images.items()} if masks else {}

    def cases(self, split: str) -> list[str]:
        return list(self.images)[::-1] if split != "empty" else []

    def has(self, case: str, role: str) -> bool:
        return role in ("input", "label")

    def shape(self, case: str) -> tuple[int, ...]:
        return self.images[case].shape

    def image(self, case: str, role: str) -> np.ndarray:
        return self.images[case]

    def mask(self, case: str, role: str) -> np.ndarray | None:
        return self.masks.get(case)


class FakeSettings(SimpleNamespace):
    """What patches read of settings, and no more."""

    def model_copy(self, update: dict[str, Any]) -> FakeSettings:
        return FakeSettings(**{**vars(self), **update})


def settings_for(patch: tuple[int, ...], **changes: Any) -> FakeSettings:
    values: dict[str, Any] = {
        "patch_size": patch, "training_stride": patch, "label_role": "label", "trains_on_label": "deformed",
        "batch_size": 2, "epoch_steps": None, "paired": True, "transformations_per_sample": 1,
        "min_valid_ratio": MinValidRatio(),
        "input_noise_std_range": (0.0, 0.1), "label_noise_std_range": None,
        "random_transformation": RandomTransformation(rotation_degrees=(-20.0, 20.0), translation=(-2.0, 2.0)),
    }  # fmt: skip
    return FakeSettings(**{**values, **changes})


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_items_depend_on_seed_epoch_and_index_alone() -> None:
    dataset, settings = MemoryDataset([(12, 14), (16, 10), (9, 9)]), settings_for((4, 4))
    first = TrainingPatches(dataset, settings, "train", 3)
    second = TrainingPatches(dataset, settings, "train", 3)
    first.set_epoch(2)
    second.set_epoch(1)
    _ = [second[k] for k in range(4)]  # what was read before does not matter
    second.set_epoch(2)
    second = pickle.loads(pickle.dumps(second))  # as a worker process sees it
    assert all(same(first[k], second[k]) for k in reversed(range(len(first))))
    first.set_epoch(3)
    assert not same(first[0], second[0])
    seeds = [TrainingPatches(dataset, settings, "train", seed)[0] for seed in (3, 4)]
    assert not same(*seeds)


def test_an_item_is_normalised_masked_and_complete() -> None:
    dataset = MemoryDataset([(12, 14)])
    patches = TrainingPatches(dataset, settings_for((4, 6), input_noise_std_range=None), "train", 0)
    assert len(patches) == 3 * 2
    item = patches[1]
    assert {key: (value.shape, value.dtype) for key, value in item.items()} == {
        "input": ((1, 4, 6), np.float32),
        "input_mask": ((1, 4, 6), np.float32),
        "label": ((1, 4, 6), np.float32),
        "label_mask": ((1, 4, 6), np.float32),
        "random_affine": ((3, 3), np.float64),
    }
    assert np.all(item["input"][item["input_mask"] == 0] == 0)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.where(dataset.masks["case0"] > 0, dataset.images["case0"] / 2, 0), (4, 6)
    )
    assert (np.abs(windows - item["input"][0]).max(axis=(2, 3)) < 1e-6).sum() == 1


def test_validation_is_one_fixed_variant() -> None:
    dataset, settings = MemoryDataset([(12, 14)]), settings_for((4, 4))
    patches = ValidationPatches(dataset, settings, "validate", 3)
    before = [patches[k] for k in range(len(patches))]
    patches.set_epoch(7)
    assert all(same(patches[k], item) for k, item in enumerate(before))
    assert not same(before[0], TrainingPatches(dataset, settings, "validate", 3)[0])


def test_validation_pairs_are_transformed_as_one() -> None:
    """Also where training draws input and label apart, each with its own transformation."""
    dataset = MemoryDataset([(12, 14), (16, 10), (9, 9)])
    settings = settings_for((4, 4), paired=False, transformations_per_sample=2)
    assert TrainingPatches(dataset, settings, "train", 3)[0]["random_affine"].shape == (2, 3, 3)
    patches = ValidationPatches(dataset, settings, "validate", 3)
    assert patches.label_order is None
    assert patches[0]["random_affine"].shape == (3, 3)


def test_epoch_steps_limit_an_epoch() -> None:
    dataset = MemoryDataset([(12, 14), (12, 12)])
    assert len(TrainingPatches(dataset, settings_for((4, 4), epoch_steps=3), "train", 0)) == 6


def test_unpaired_patches_come_from_separate_places() -> None:
    dataset = MemoryDataset([(12, 14), (12, 12), (20, 12)])
    patches = TrainingPatches(dataset, settings_for((4, 4), paired=False, transformations_per_sample=2), "train", 0)
    items = [patches[k] for k in range(len(patches))]
    assert items[0]["random_affine"].shape == (2, 3, 3)
    assert not any(np.array_equal(item["input_mask"], item["label_mask"]) for item in items[:3])


def test_values_at_or_below_the_threshold_are_invalid() -> None:
    dataset = MemoryDataset([(12, 12)], masks=False, threshold=0.5)
    item = TrainingPatches(dataset, settings_for((12, 12)), "train", 0)[0]
    assert np.array_equal(item["label_mask"][0] > 0, dataset.images["case0"] > 0.5)


def test_an_image_smaller_than_a_patch_is_named() -> None:
    with pytest.raises(UserError, match=r"case1.*\[3, 9\].*\[4, 4\]"):
        TrainingPatches(MemoryDataset([(8, 8), (3, 9)]), settings_for((4, 4)), "train", 0)


def test_an_unreachable_ratio_is_named() -> None:
    settings = settings_for((4, 4), min_valid_ratio=MinValidRatio(input=1.0, label=1.0))
    dataset = MemoryDataset([(8, 8)])
    dataset.masks["case0"][:] = 0
    with pytest.raises(UserError, match="min_valid_ratio.*case0"):
        TrainingPatches(dataset, settings, "train", 0)[0]


def test_an_empty_split_is_named() -> None:
    with pytest.raises(UserError, match="split empty"):
        TrainingPatches(MemoryDataset([(8, 8)]), settings_for((4, 4)), "empty", 0)


def test_more_than_256_cases() -> None:
    patches = TrainingPatches(MemoryDataset([(4, 4)] * 300), settings_for((4, 4)), "train", 0)
    assert sorted(patches.order) == list(range(300))
