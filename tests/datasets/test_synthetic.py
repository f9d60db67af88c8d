"""Pairs made from pictures: golden ones, what a deformation means, and that each is made once."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from pydantic import ValidationError

from equisynth.config import Intensity, LabelDeformation, MinValidRatio, RandomTransformation, Ranges
from equisynth.datasets import synthetic
from equisynth.datasets.patches import TrainingPatches
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case
from equisynth.datasets.synthetic import SyntheticDataset, centred, draw_deformation, misaligned, rolled
from equisynth.errors import UserError
from equisynth.geometry.random_deformations import GaussianBump, random_gaussian_bump
from equisynth.geometry.rectangle import largest_interior_rectangle
from equisynth.geometry.warping import warp
from golden_data import load

GOLDEN = load("08_data") / "synthetic"
SIZE = (24, 20)


def ranges(width: Any, magnitude: Any, center: Any, degree: Any, translation: Any) -> LabelDeformation:
    """Each given as (lower, upper)."""
    names = ("width_range", "magnitude_range", "center_range", "degree_range", "translation_range")
    values = (width, magnitude, center, degree, translation)
    return LabelDeformation(
        **{name: Ranges(lower=lower, upper=upper) for name, (lower, upper) in zip(names, values, strict=True)}
    )


def constant(width: Any, magnitude: Any, center: Any, degree: float, translation: Any) -> LabelDeformation:
    return ranges(*((value, value) for value in (width, magnitude, center, (degree,), translation)))


PUBLISHED = {
    "lr": ranges(((0.1, 0.1), (0.3, 0.3)), ((-20, -20), (20, 20)), ((0, 0), (1, 1)), ((-15,), (15,)),
                 ((-15, -15), (15, 15))),
    "sr": ranges(((0.1, 0.1), (0.3, 0.3)), ((-2, -2), (2, 2)), ((0, 0), (1, 1)), ((-1.5,), (1.5,)),
                 ((-1.5, -1.5), (1.5, 1.5))),
    "lc": constant((0.2, 0.15), (20, -20), (0.3, 0.7), -10, (-10, 10)),
    "sc": constant((0.2, 0.15), (2, -2), (0.3, 0.7), -1, (-1, 1)),
}  # fmt: skip
STILL = constant((0.2, 0.2), (0, 0), (0.5, 0.5), 0, (0, 0))
MODERATE = constant((0.2, 0.2), (2, -2), (0.5, 0.5), 5, (1, -2))


def dataset_of(folder: Path, pictures: dict[str, np.ndarray], **info: Any) -> PreparedDataset:
    """Prepared pictures, all of them in the training split."""
    for case, picture in pictures.items():
        write_case(folder, case, {"input": picture}, np.eye(4), n_dims=2)
    colours = {"channels": 3, "mean": (110.0,) * 3, "std": (70.0,) * 3, "signal_range": 255, "unit": "8 bit"}
    fields = {
        "input": Intensity(modality="photograph", **colours), "label": Intensity(modality="rolled", **colours),
        "splits": {"train": tuple(pictures), "validate": ("v",), "test": ("t",)}, **info,
    }  # fmt: skip
    return PreparedDataset(
        folder, DatasetInfo(name="pictures", n_dims=2, voxel_size=(1.0, 1.0), licence="none", **fields)
    )


def smooth_picture(shape: tuple[int, int]) -> np.ndarray:
    x, y = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    return np.stack([2 * x, 3 * y, 40 + x + y], axis=-1).astype(np.uint8)


@pytest.fixture
def pictures(tmp_path: Path) -> PreparedDataset:
    return dataset_of(tmp_path / "prepared", {"a": smooth_picture((48, 40)), "b": smooth_picture((30, 44))})


def settings_for(size: tuple[int, ...] = SIZE, **changes: Any) -> SimpleNamespace:
    values = {
        "patch_size": size, "training_stride": None, "label_role": "label", "trains_on_label": "deformed on the fly",
        "batch_size": 2, "epoch_steps": None, "paired": True, "transformations_per_sample": 1,
        "min_valid_ratio": MinValidRatio(), "input_noise_std_range": None, "label_noise_std_range": None,
        "random_transformation": RandomTransformation(rotation_degrees=(-15.0, 15.0), flips=True),
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


# --- golden


@pytest.mark.parametrize("mode", GOLDEN.children())
def test_training_patches_golden(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training patches, given the deformations and orders that the reference draws from one random state."""
    golden, settings = GOLDEN / mode, GOLDEN.json("settings_json")
    names = [f"case{index:03d}" for index in range(len(settings["image_shapes"]))]
    images = [GOLDEN[f"image{index}"] for index in range(len(names))]
    images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1) for image in images]

    def intensity(role: str) -> Intensity:
        mean, std = settings[f"{role}_mean_and_std"]
        return Intensity(modality=role, channels=3, mean=tuple(mean), std=tuple(std), signal_range=255, unit="8 bit")

    prepared = dataset_of(
        tmp_path, dict(zip(names, images, strict=True)), input=intensity("input"), label=intensity("label")
    )
    state = RandomState(settings["seed"])
    bumps = {name: random_gaussian_bump(settings["lower"], settings["upper"], state) for name in names}
    monkeypatch.setattr(SyntheticDataset, "bump", lambda self, case: bumps[case])
    orders = [np.arange(len(names)) for _ in range(1 if mode == "paired" else 2)]
    for order in orders:
        state.shuffle(order)
    np.testing.assert_array_equal(orders[0], golden["image_order"])
    np.testing.assert_array_equal(orders[-1], golden["label_image_order"])

    paired = mode == "paired"
    dataset = SyntheticDataset(prepared, STILL, settings["patch"], seed=0)
    patches = TrainingPatches(dataset, settings_for(tuple(settings["patch"]), paired=paired), "train", 0)
    patches.order, patches.label_order = orders[0], None if paired else orders[1]
    items = [patches[index] for index in range(len(golden["input"]))]
    stacked = {key: np.stack([item[key] for item in items]) for key in items[0]}
    for key in ("input", "input_mask", "label_mask"):
        golden.check(key, stacked[key])
    # Outside of its mask the label means nothing.
    expected = golden["label"] * golden["label_mask"]
    error = np.abs(stacked["label"] - expected).max() / np.abs(expected).max()
    assert error <= golden.tolerance("label")


# --- one picture


def test_colours_roll() -> None:
    assert rolled(np.array([[[1, 2, 3]]])).tolist() == [[[3, 1, 2]]]


@pytest.mark.parametrize("shape", [(48, 40), (47, 40), (48, 41), (31, 33)])
def test_the_cut_lies_around_the_centre(shape: tuple[int, int]) -> None:
    """A picture whose values are its coordinates: the mean over a centred cut is the centre."""
    picture = smooth_picture(shape)
    values, valid = centred(picture, SIZE)
    assert valid is None
    assert values.shape == (*SIZE, 3)
    expected = 2 * (shape[0] - 1) / 2, 3 * (shape[1] - 1) / 2
    np.testing.assert_allclose(values.reshape(-1, 3).astype(float).mean(0)[:2], expected, atol=1e-3)
    assert (values.dtype == np.uint8) == all((s - p) % 2 == 0 for s, p in zip(shape, SIZE, strict=True))


@pytest.mark.parametrize(("shape", "held"), [((16, 40), (16, 20)), ((17, 13), (16, 12)), ((100, 18), (24, 18))])
def test_outside_of_a_small_picture_is_invalid(shape: tuple[int, int], held: tuple[int, int]) -> None:
    """Between its pixels, where the centres of both lie half a pixel apart."""
    values, valid = centred(smooth_picture(shape), SIZE)
    assert valid is not None
    assert not values[valid == 0].any()
    assert values[valid > 0].any()
    first = [(part - size) // 2 for part, size in zip(SIZE, held, strict=True)]
    assert valid[tuple(slice(f, f + size) for f, size in zip(first, held, strict=True))].all()
    assert valid.sum() == np.prod(held)


def test_a_shift_moves_the_label_by_as_much() -> None:
    picture = smooth_picture((48, 40))
    field = np.broadcast_to(np.array([3.0, -2.0], np.float32).reshape(2, 1, 1), (2, *SIZE))
    label, valid = misaligned(picture, np.ascontiguousarray(field))
    assert valid.all()
    np.testing.assert_allclose(label, rolled(picture)[12 + 3 : 36 + 3, 10 - 2 : 30 - 2], atol=1e-3)


def test_invalid_pixels_are_left_out_by_a_rectangle() -> None:
    field = np.zeros((2, *SIZE), np.float32)
    field[0] = 15 + np.arange(SIZE[1]) / 2  # reaches beyond the picture along a slanted line
    label, valid = misaligned(smooth_picture((48, 40)), field)
    rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    assert 0 < valid.sum() < valid.size
    assert valid.sum() == len(rows) * len(columns)
    assert not label[valid == 0].any()


def test_the_rectangle_is_found_as_published() -> None:
    """The search looks four pixels ahead; one more or less would end in another rectangle here."""
    valid = RandomState(18).rand(*SIZE) > 0.03
    field = np.where(valid, 0, 100).astype(np.float32) * np.ones((2, 1, 1), np.float32)
    label_mask = misaligned(smooth_picture((48, 40)), field)[1]
    assert np.array_equal(label_mask, largest_interior_rectangle(valid, 4))
    for step in (3, 5):
        assert not np.array_equal(label_mask, largest_interior_rectangle(valid, step))


# --- a dataset


def test_label_is_the_aligned_label_deformed(pictures: PreparedDataset) -> None:
    dataset = SyntheticDataset(pictures, MODERATE, SIZE, seed=1)
    aligned, label = dataset.image("a", "label_aligned"), dataset.image("a", "label")
    field = torch.from_numpy(dataset.deformation("a"))[None]
    expected = warp(torch.from_numpy(np.moveaxis(aligned, -1, 0).astype(np.float32))[None], field)[0]
    inner = (slice(6, -6), slice(6, -6))  # the field stays inside of the cut there
    np.testing.assert_allclose(label[inner], np.moveaxis(expected.numpy(), 0, -1)[inner], atol=1e-3)
    assert np.abs(label[inner] - aligned[inner]).max() > 1
    there_and_back = warp(torch.from_numpy(dataset.deformation("a", inverse=True))[None], field)[0] + field[0]
    assert there_and_back[(slice(None), *inner)].abs().max() < 0.05


def test_reads_like_a_prepared_dataset(pictures: PreparedDataset) -> None:
    dataset = SyntheticDataset(pictures, MODERATE, SIZE, seed=1)
    assert dataset.cases("train") == ("a", "b")
    assert dataset.shape("b") == SIZE
    present = ["input", "label", "label_aligned", "label_mask", "deformation", "inverse_deformation"]
    assert all(dataset.has("a", role) for role in present)
    assert not any(dataset.has("a", role) for role in ("label_registered", "input_mask", "evaluation_mask"))
    assert not dataset.has("v", "label")  # there is no such picture
    for role in ("input", "label", "label_aligned"):
        assert dataset.image("b", role).shape == (*SIZE, 3)
    assert np.array_equal(dataset.image("b", "label_aligned"), rolled(dataset.image("b", "input")))
    assert dataset.mask("b", "input") is None
    assert dataset.mask("b", "evaluation") is None
    assert np.array_equal(dataset.affine("b")[:2, 3], [3, 12])
    with pytest.raises(UserError, match="case a: has no label_registered"):
        dataset.image("a", "label_registered")


def test_a_small_picture_has_masks(tmp_path: Path) -> None:
    dataset = SyntheticDataset(dataset_of(tmp_path, {"s": smooth_picture((16, 40))}), STILL, SIZE, seed=0)
    assert dataset.has("s", "input_mask")
    assert dataset.has("s", "label_aligned_mask")
    assert np.array_equal(dataset.mask("s", "label_aligned"), dataset.mask("s", "input"))
    item = TrainingPatches(dataset, settings_for(), "train", 0)[0]
    assert item["input_mask"][0].sum() == 16 * 20
    assert np.array_equal(item["input_mask"], item["label_mask"])
    assert not item["input"][:, item["input_mask"][0] == 0].any()


def test_deformations_follow_from_seed_and_name_alone(pictures: PreparedDataset) -> None:
    alone = SyntheticDataset(pictures, PUBLISHED["lr"], SIZE, seed=3)
    after_another = SyntheticDataset(pictures, PUBLISHED["lr"], SIZE, seed=3)
    after_another.image("a", "label")
    assert np.array_equal(alone.image("b", "label"), after_another.image("b", "label"))
    assert alone.bump("a") != alone.bump("b")
    assert alone.bump("a") != SyntheticDataset(pictures, PUBLISHED["lr"], SIZE, seed=4).bump("a")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ranges(name: str) -> None:
    """Constant ones are the same for all pictures, small ones are a tenth of large ones."""
    deformation = PUBLISHED[name]
    bumps = [draw_deformation(deformation, RandomState(seed)) for seed in range(50)]
    assert len(set(bumps)) == (1 if name.endswith("c") else 50)
    limit = 20.0 if name.startswith("l") else 2.0
    assert limit / 2 < max(abs(value) for bump in bumps for value in bump.magnitude) <= limit
    angle = max(abs(bump.rotation[0]) for bump in bumps)
    assert np.deg2rad(limit / 4) < angle <= np.deg2rad(limit)


def test_draws_as_the_simulator_does() -> None:
    bump = draw_deformation(PUBLISHED["lc"], RandomState(0))
    assert bump == GaussianBump((0.2, 0.15), (20, -20), (0.3, 0.7), (float(np.deg2rad(-10)),), (-10, 10))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("degree_range", {"lower": [-1, 0], "upper": [1, 0]}, "degree_range: found 2 values, expected 1"),
        ("center_range", {"lower": [0.5], "upper": [0.5]}, "center_range: found 1 values, expected 2"),
        ("width_range", {"lower": [0, 0.1], "upper": [0.3, 0.3]}, "expected widths above 0"),
        ("magnitude_range", {"lower": [2, 2], "upper": [-2, 2]}, "lower <= upper"),
        ("translation_range", {"lower": [0], "upper": [1, 1]}, "as many values"),
        ("center", {}, "Extra inputs"),
    ],
)
def test_wrong_ranges_are_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LabelDeformation.model_validate({**PUBLISHED["sr"].model_dump(), key: value})


def test_other_datasets_are_refused(tmp_path: Path) -> None:
    grey = Intensity(modality="T1", signal_range=1, unit="1")
    with pytest.raises(UserError, match="pictures is no dataset of colour pictures"):
        SyntheticDataset(dataset_of(tmp_path, {"a": np.zeros((9, 9), np.uint8)}, input=grey), STILL, SIZE, seed=0)


# --- made once


class Counted:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(synthetic, "misaligned", self)

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return misaligned(*arguments)


def test_a_pair_is_made_once(pictures: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Counted(monkeypatch)
    patches = TrainingPatches(SyntheticDataset(pictures, MODERATE, SIZE, seed=1), settings_for(), "train", 0)
    for epoch in range(3):
        patches.set_epoch(epoch)
        assert [patches[index]["label"].shape for index in range(len(patches))] == [(3, *SIZE)] * 2
    assert made.calls == 2


def test_memory_is_bounded(pictures: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Counted(monkeypatch)
    dataset = SyntheticDataset(pictures, MODERATE, SIZE, seed=1)
    monkeypatch.setattr(synthetic, "MEMORY", dataset.side("a", "label").nbytes + 1)
    first = dataset.image("a", "label")
    dataset.image("b", "label")
    assert list(dataset._sides) == [("b", "label")]
    assert np.array_equal(dataset.image("a", "label"), first)
    assert made.calls == 3


def test_labels_are_kept_as_files(pictures: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, cache = Counted(monkeypatch), tmp_path / "cache"

    def opened(deformation: LabelDeformation = MODERATE, size: tuple[int, int] = SIZE) -> SyntheticDataset:
        return SyntheticDataset(pictures, deformation, size, seed=1, cache=cache)

    first = opened().side("a", "label")
    again = opened().side("a", "label")
    assert made.calls == 1
    assert np.array_equal(first.values, again.values)
    assert np.array_equal(first.mask, again.mask)
    opened(size=(16, 16)).image("a", "label")
    opened(STILL).image("a", "label")
    assert made.calls == 3
    changed = smooth_picture((48, 40))
    changed[0, 0] = 255
    write_case(pictures.folder, "a", {"input": changed}, np.eye(4), n_dims=2)
    opened().image("a", "label")
    assert made.calls == 4


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no more", None])
def test_a_damaged_file_is_made_again(
    pictures: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    made, cache = Counted(monkeypatch), tmp_path / "cache"
    first = SyntheticDataset(pictures, MODERATE, SIZE, seed=1, cache=cache).image("a", "label")
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    assert np.array_equal(SyntheticDataset(pictures, MODERATE, SIZE, seed=1, cache=cache).image("a", "label"), first)
    assert made.calls == 2


def test_pickles_without_images(pictures: PreparedDataset) -> None:
    dataset = SyntheticDataset(pictures, MODERATE, SIZE, seed=1)
    empty = len(pickle.dumps(dataset))
    expected = dataset.image("a", "label")
    assert len(pickle.dumps(dataset)) == empty
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).image("a", "label"), expected)
