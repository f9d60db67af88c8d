"""Tiles against an affinely registered label: which tiles, where they are valid, and maps that are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from equisynth.datasets.prepared import PreparedDataset
from equisynth.errors import UserError
from equisynth.evaluation import full_valid
from equisynth.evaluation.affine_registration import AffineRegistration, affine_map, warped
from equisynth.evaluation.full_valid import (
    FullValidSettings,
    Tile,
    evaluate,
    full_valid_starts,
    grey,
    is_full_valid,
    measure_tile,
    register,
)
from equisynth.preprocessing.elastix import RegistrationFailed
from equisynth.work import remembered
from registered_cases import blots, true_stain, write_sections

SIDE = 96
SETTINGS = FullValidSettings(
    tile=SIDE, stride=48, registration=AffineRegistration(iterations=(150, 100, 60, 40), sampling=0.5)
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_sections(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def whole(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the maps of all tiles of the test split."""
    cache = tmp_path_factory.mktemp("cache")
    assert register(dataset, "test", SETTINGS, cache).failures == {}
    return cache


class Counter:
    """Counts registrations, and makes the chosen ones go wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: dict[int, BaseException] | None = None) -> None:
        self.calls, self._fail, self._map = 0, fail or {}, full_valid.affine_map
        monkeypatch.setattr(full_valid, "affine_map", self)

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls in self._fail:
            raise self._fail[self.calls]
        return self._map(*args)


# --- tiles


def test_tiles_with_a_whole_label_and_some_input(dataset: PreparedDataset) -> None:
    assert full_valid_starts(dataset, "c", SETTINGS) == [(0, 0), (0, 48), (0, 96), (48, 0), (48, 48)]
    assert full_valid_starts(dataset, "c", SETTINGS.model_copy(update={"tile": 150})) == []
    ones, picture = np.ones((10, 10), np.uint8), np.ones((10, 10, 3), np.uint8)
    sparse, holed = np.zeros((10, 10), np.uint8), ones.copy()
    sparse[0, :5], holed[3, 3] = 1, 0
    assert is_full_valid(Tile(picture, picture, sparse, ones), 0.05)
    assert not is_full_valid(Tile(picture, picture, sparse, ones), 0.06)
    assert not is_full_valid(Tile(picture, picture, ones, holed), 0.05)


def test_black_pixels_are_invalid(dataset: PreparedDataset) -> None:
    tile = full_valid.read_tile(dataset, "c", (0, 0), SIDE)
    assert tile.label_mask.all()
    assert tile.input_mask.dtype == np.uint8


# --- registration


@pytest.mark.parametrize("seed", [0, 1])
def test_a_known_affine_map_is_found(seed: int) -> None:
    """The second image has another contrast, and axes of different lengths catch a wrong order."""
    matrix, shape = np.array([[1.02, 0.03], [-0.03, 0.98]]), (160, 192)
    centre = (np.array(shape) - 1) / 2
    offset = centre + [5, -4] - matrix @ centre
    full = blots((shape[0] + 60, shape[1] + 60), seed)
    fixed = ndimage.affine_transform(full, matrix, offset + 30, output_shape=shape, order=3)
    moving = 1 - full[30 : 30 + shape[0], 30 : 30 + shape[1]] ** 2
    found = affine_map(fixed.astype(np.float32), moving.astype(np.float32), AffineRegistration())
    places = np.indices(shape).reshape(2, -1)
    error = found[:, :2] @ places + found[:, 2:] - matrix @ places - offset[:, None]
    assert np.linalg.norm(error, axis=0).mean() < 0.4
    again = affine_map(fixed.astype(np.float32), moving.astype(np.float32), AffineRegistration())
    assert np.array_equal(again, found)


def test_warping_reads_where_the_map_says() -> None:
    values = np.arange(30.0).reshape(5, 6)
    moved = warped(values, np.array([[1, 0, 1.5], [0, 1, -1]]))
    assert moved[1, 2] == pytest.approx((values[2, 1] + values[3, 1]) / 2)
    assert (moved[:, 0] == 0).all()
    assert (moved[4] == 0).all()


def test_nothing_to_see_is_a_failure() -> None:
    with pytest.raises(RegistrationFailed):
        affine_map(np.zeros((64, 64), np.float32), np.zeros((64, 64), np.float32), AffineRegistration())


def test_grey_is_the_mean_of_the_channels() -> None:
    picture = np.array([[[0, 51, 102]]], np.uint8)
    assert grey(picture).item() == pytest.approx(0.2)


# --- measures


def test_only_what_read_valid_pixels_counts() -> None:
    state = np.random.RandomState(0)
    label = state.randint(1, 255, (24, 20, 3)).astype(np.uint8)
    ones = np.ones((24, 20), np.uint8)
    input_mask, evaluation = ones.copy(), ones.copy()
    input_mask[:, 0], evaluation[:, 19] = 0, 0
    tile = Tile(label, label, input_mask, ones)
    prediction = np.full(label.shape, 1e6)
    prediction[:21, 1:19] = label[3:, 1:19]  # the map reads three rows further down
    shift = np.array([[1.0, 0, 3], [0, 1, 0]])
    found = measure_tile(tile, shift, prediction, evaluation, 255)
    assert found.absolute.total == 0
    assert found.absolute.mass == 21 * 18
    half = measure_tile(tile, np.array([[1.0, 0, 2.5], [0, 1, 0]]), prediction, evaluation, 255)
    assert half.absolute.mass == 21 * 18  # of the last rows half a pixel would be read from outside


def test_a_shift_is_undone(dataset: PreparedDataset, whole: Path) -> None:
    found = evaluate(dataset, "test", lambda case: true_stain(dataset, case), SETTINGS, whole)
    assert (found["tiles"], found["failures"]) == (10, {})
    unregistered = np.mean(
        [np.abs(dataset.image(case, "label") - true_stain(dataset, case).astype(float)).mean() for case in "cd"]
    )
    assert found["pooled"]["mae"] < 0.25 * unregistered
    cases = [found["cases"][case]["mae"] for case in "cd"]
    assert min(cases) < found["pooled"]["mae"] < max(cases)
    json.dumps(found, allow_nan=False)


def test_a_second_model_registers_nothing_and_parts_merge(
    dataset: PreparedDataset, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, merged = Counter(monkeypatch), tmp_path / "merged"
    for number in (1, 2):
        register(dataset, "test", SETTINGS, tmp_path / str(number), part=(number, 2))
        shutil.copytree(tmp_path / str(number), merged, dirs_exist_ok=True)
    assert counter.calls == 10
    results = [evaluate(dataset, "test", lambda case: true_stain(dataset, case), SETTINGS, c) for c in (whole, merged)]
    assert results[0] == results[1]
    assert results[0] != evaluate(dataset, "test", lambda case: dataset.image(case, "label"), SETTINGS, merged)
    assert counter.calls == 10
    with pytest.raises(UserError, match="part 0/2"):
        register(dataset, "test", SETTINGS, tmp_path, part=(0, 2))


def test_killed_in_the_middle_it_continues(
    dataset: PreparedDataset, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Counter(patch, {4: KeyboardInterrupt()})
        with pytest.raises(KeyboardInterrupt):
            register(dataset, "test", SETTINGS, tmp_path)
    counter, remember = Counter(monkeypatch), remembered(tmp_path / "work")
    found = evaluate(dataset, "test", lambda case: true_stain(dataset, case), SETTINGS, tmp_path, remember)
    assert counter.calls == 7
    assert found == evaluate(dataset, "test", lambda case: true_stain(dataset, case), SETTINGS, whole)

    def refuse(case: str) -> np.ndarray:
        raise AssertionError(case)

    assert found == evaluate(dataset, "test", refuse, SETTINGS, tmp_path, remember)


def test_failures_are_named_and_not_repeated(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Counter(patch, {2: RegistrationFailed("no overlap")})
        found = evaluate(dataset, "test", lambda case: true_stain(dataset, case), SETTINGS, tmp_path)
    assert found["failures"] == {"c/0-48": "no overlap"}
    assert (found["tiles"], found["cases"]["c"]["tiles"]) == (9, 4)
    counter = Counter(monkeypatch)
    assert register(dataset, "test", SETTINGS, tmp_path).failures == found["failures"]
    assert counter.calls == 0
