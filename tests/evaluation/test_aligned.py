"""The evaluation of a split, and the references that know nothing of anatomy."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from equisynth.evaluation.aligned import LOOKUP_BINS, evaluate_references, evaluate_split, fit_references, measure


class MemoryDataset:
    """The reading side of a prepared dataset: label = curve(input), shifted by one voxel for training."""

    def __init__(self, curve: Any, roles: tuple[str, ...] = ("label", "label_aligned"), clip: Any = None) -> None:
        state = np.random.RandomState(0)
        intensity = SimpleNamespace(channels=1, clip=clip, signal_range=2.0, background=0.0)
        self.info = SimpleNamespace(n_dims=3, input=intensity, label=intensity, invalid_at_or_below=None)
        self.splits = {"train": ["c", "a"], "test": ["d", "b"]}
        self.arrays: dict[tuple[str, str], np.ndarray] = {}
        for case in "abcd":
            image = state.rand(18, 16, 17).astype(np.float32)
            self.arrays[case, "input"] = image
            for role in roles:
                self.arrays[case, role] = curve(image).astype(np.float32)
            mask = np.ones(image.shape, np.uint8)
            mask[:2] = 0
            self.arrays[case, "label_mask"] = self.arrays[case, "label_aligned_mask"] = mask
            for role in ("label", "label_aligned"):
                if role in roles:
                    self.arrays[case, role][mask == 0] = 1e3  # must never be looked at

    def cases(self, split: str) -> list[str]:
        return self.splits[split]

    def has(self, case: str, role: str) -> bool:
        return (case, role) in self.arrays

    def image(self, case: str, role: str) -> np.ndarray:
        return self.arrays[case, role]

    def mask(self, case: str, role: str) -> np.ndarray | None:
        return self.arrays.get((case, f"{role}_mask"))


def test_a_perfect_prediction() -> None:
    dataset = MemoryDataset(lambda x: 2 * x)
    result = evaluate_split(dataset, "test", lambda case: 2 * dataset.image(case, "input"))
    assert list(result["cases"]) == ["b", "d"]
    pooled = result["pooled"]
    assert (pooled["mae"], pooled["mse"], pooled["psnr"]) == (0, 0, None)
    assert pooled["ssim"] == pytest.approx(1)
    assert pooled["nmi"] == pytest.approx(2)
    json.dumps(result, allow_nan=False)


def test_a_constant_error_in_one_of_two_cases() -> None:
    dataset = MemoryDataset(lambda x: x)
    result = evaluate_split(dataset, "test", lambda case: dataset.image(case, "input") + (case == "d"))
    assert result["cases"]["d"]["mae"] == pytest.approx(1, rel=1e-6)
    assert result["cases"]["d"]["psnr"] == pytest.approx(20 * math.log10(2), rel=1e-6)
    assert result["pooled"]["mae"] == pytest.approx(0.5, rel=1e-6)
    assert result["pooled"]["mse"] == pytest.approx(0.5, rel=1e-6)


def test_every_mask_counts() -> None:
    state = np.random.RandomState(0)
    image = state.rand(12, 12, 12).astype(np.float32)
    masks = []
    for axis in range(3):
        mask = np.ones(image.shape, np.uint8)
        mask[(slice(None),) * axis + (0,)] = 0
        masks.append(mask)
    prediction = image.copy()
    for axis in range(3):
        prediction[(slice(None),) * axis + (0,)] = 50
    found = measure(image, prediction, image, *masks, 3, 1.0)
    assert found.absolute.mean == 0
    assert found.absolute.mass == 11**3
    assert found.information.mass == 11**3


def test_without_an_aligned_label_nothing_is_claimed() -> None:
    dataset = MemoryDataset(lambda x: x, roles=("label",))
    result = evaluate_split(dataset, "test", lambda case: dataset.image(case, "input"))
    assert result["computed"] is False
    assert evaluate_references(dataset, "test") == {}


def test_the_registered_label_stands_in() -> None:
    dataset = MemoryDataset(lambda x: x, roles=("label", "label_registered"))
    assert evaluate_split(dataset, "test", lambda case: dataset.image(case, "input"))["label"] == "label_registered"


def test_the_line_finds_a_line() -> None:
    dataset = MemoryDataset(lambda x: 3 - 2 * x)
    result = evaluate_references(dataset, "test")
    assert result["linear_fit"]["mae"] == pytest.approx(0, abs=1e-5)
    assert result["linear_fit"]["ssim"] == pytest.approx(1, abs=1e-5)
    assert result["mean_label"]["mae"] == pytest.approx(0.5, abs=0.02)  # mean |2 (x - 1/2)| of uniform x


def test_the_table_finds_a_curve_that_no_line_follows() -> None:
    dataset = MemoryDataset(lambda x: np.abs(x - 0.5))
    result = evaluate_references(dataset, "test")
    assert result["lookup_table"]["mae"] < 1 / LOOKUP_BINS
    assert result["lookup_table"]["residual_rmse"] < 1 / LOOKUP_BINS
    assert result["linear_fit"]["mae"] > 0.1


def test_the_residual_is_what_intensities_cannot_explain() -> None:
    state = np.random.RandomState(3)
    dataset = MemoryDataset(lambda x: x + state.choice([-0.3, 0.3], x.shape))
    assert fit_references(dataset).residual == pytest.approx(0.3, rel=0.02)


def test_colours_have_a_fit_each() -> None:
    dataset = MemoryDataset(lambda x: x)
    state = np.random.RandomState(0)
    intensity = SimpleNamespace(channels=3, clip=None, signal_range=255.0, background=0.0)
    dataset.info = SimpleNamespace(n_dims=2, input=intensity, label=intensity, invalid_at_or_below=None)
    dataset.arrays = {}
    for case in "abcd":
        image = state.randint(0, 256, (20, 22, 3)).astype(np.uint8)
        dataset.arrays[case, "input"] = image
        dataset.arrays[case, "label"] = dataset.arrays[case, "label_aligned"] = 255 - image
    result = evaluate_references(dataset, "test")
    assert result["linear_fit"]["mae"] == pytest.approx(0, abs=1e-3)
    assert result["lookup_table"]["mae"] < 255 / LOOKUP_BINS


def test_values_that_mean_invalid_are_no_truth() -> None:
    dataset = MemoryDataset(lambda x: 2 * x)
    dataset.info.invalid_at_or_below = 0
    for case in "abcd":
        dataset.arrays[case, "label_aligned"][10:] = 0  # beyond what was registered
    found = evaluate_split(dataset, "test", lambda case: 2 * dataset.arrays[case, "input"])
    assert found["pooled"]["mae"] == pytest.approx(0, abs=1e-7)
