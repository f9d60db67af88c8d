"""Crops of shipped photographs: counts, places, splits, and the pairs that are made from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from equisynth import params
from equisynth.datasets.opened import open_dataset
from equisynth.datasets.prepared import PreparedDataset
from equisynth.errors import UserError
from equisynth.proof import crops, protocol
from equisynth.proof.protocol import Run

ROOT = Path(__file__).parents[2]
SPECIFIED = protocol.read(ROOT / protocol.FILE)
TREE = params.read(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("crops") / "photographs"
    crops.write_dataset(SPECIFIED.photographs, params.data_settings(TREE, "coco", "paper"), "coco", path)
    return path


def test_counts_and_sizes(folder: Path) -> None:
    dataset = PreparedDataset.open(folder)
    assert [len(dataset.cases(split)) for split in ("train", "validate", "test")] == [256, 24, 48]
    assert {dataset.shape(case) for split in ("train", "test") for case in dataset.cases(split)} == {(96, 96)}
    pictures = {case.split("-", 2)[2] for case in dataset.cases("test")}
    assert pictures == {"china", "hubble_deep_field", "chelsea"}


def test_crops_are_the_same_every_time_and_follow_the_seed(folder: Path, tmp_path: Path) -> None:
    small = SPECIFIED.photographs.model_copy(update={"crops": {"train": 4, "validate": 2, "test": 3}})
    data = params.data_settings(TREE, "coco", "paper")
    names = ("a", "b", "c")
    for name, settings in zip(names, (small, small, small.model_copy(update={"seed": 1})), strict=True):
        crops.write_dataset(settings, data, "coco", tmp_path / name)
    texts = [(tmp_path / name / "dataset.json").read_text(encoding="utf-8") for name in names]
    assert texts[0] == texts[1] != texts[2]
    one, whole, other = (PreparedDataset.open(path) for path in (tmp_path / "a", folder, tmp_path / "c"))
    for case in one.cases("test"):  # fewer crops are the first ones of more
        np.testing.assert_array_equal(one.image(case, "input"), whole.image(case, "input"))
    assert any((one.image(case, "input") != other.image(case, "input")).any() for case in one.cases("test"))


def test_a_crop_is_a_place_of_the_halved_picture() -> None:
    picture = crops.halved("chelsea.png")
    assert picture.shape == (150, 225, 3)
    crop = crops.random_crop(picture, 96, np.random.RandomState(0), "chelsea.png")
    places = [
        (top, left)
        for top in range(150 - 96 + 1)
        for left in range(225 - 96 + 1)
        if (picture[top, left : left + 96] == crop[0]).all()
    ]
    top, left = places[0]
    np.testing.assert_array_equal(picture[top : top + 96, left : left + 96], crop)
    with pytest.raises(UserError, match="smaller than a crop of 151"):
        crops.random_crop(picture, 151, np.random.RandomState(0), "chelsea.png")


def test_half_size_is_smoothed_and_stays_in_place() -> None:
    from scipy.ndimage import gaussian_filter, shift
    from skimage.data import astronaut

    half = crops.halved("astronaut.png").astype(float)
    smooth = gaussian_filter(astronaut().astype(float), (1, 1, 0))
    between = shift(smooth, (-0.5, -0.5, 0), order=1, mode="nearest")[::2, ::2]  # centres of 2 x 2 pixels
    assert np.abs(half - between).mean() < 3
    assert np.abs(half - np.roll(between, 1, axis=1)).mean() > 5


def test_half_size_averages_noise_more_than_four_pixels_would(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(128, 20, (200, 200, 3)).round().astype(np.uint8)
    monkeypatch.setattr(crops, "read_photograph", lambda _: noise)
    half = crops.halved("noise.png")
    assert half.shape == (100, 100, 3)
    assert half.dtype == np.uint8
    assert half.std() < 10  # four pixels: 20 / 2


@pytest.mark.parametrize(("method", "same"), [("lc_eqsim_com", True), ("lr_eqsim_com", False)])
def test_constant_misalignment_is_one_field_for_all_and_pairs_are_valid_everywhere(
    method: str, same: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = protocol.settings(SPECIFIED, TREE, Run("photographs", method, 0))
    dataset = open_dataset(folder, settings)
    cases = [*dataset.cases("train")[:3], *dataset.cases("validate")[:1], *dataset.cases("test")[:3]]
    fields = [dataset.deformation(case) for case in cases]
    assert all((field == fields[0]).all() for field in fields[1:]) == same
    assert len({field.tobytes() for field in fields}) == (1 if same else len(cases))
    for case in cases:
        assert dataset.shape(case) == (64, 64)
        mask = dataset.mask(case, "label")
        assert mask is None or mask.all(), case
        whole = PreparedDataset.open(folder).image(case, "input")
        np.testing.assert_array_equal(dataset.image(case, "input"), whole[16:80, 16:80])


def test_all_seeds_see_the_same_pairs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [Run("photographs", "lr_defsim", seed) for seed in (0, 1)]
    first, second = (open_dataset(folder, protocol.settings(SPECIFIED, TREE, run)) for run in runs)
    case = first.cases("test")[0]
    np.testing.assert_array_equal(first.image(case, "label"), second.image(case, "label"))
