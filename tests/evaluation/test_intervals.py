"""Paired differences: known means, coverage, and what too few or equal cases give."""

from __future__ import annotations

import math

import numpy as np
import pytest

from equisynth.evaluation.intervals import FEWEST_CASES, Difference, paired_difference


def named(values: np.ndarray | list[float]) -> dict[str, float | None]:
    return {f"case{k}": float(value) for k, value in enumerate(values)}


def test_pairs_are_kept_together() -> None:
    hard = np.random.RandomState(0).rand(20) * 100  # cases differ far more than the models do
    noise = np.random.RandomState(1).rand(20) * 0.1
    found = paired_difference(named(hard + 1 + noise), named(hard))
    assert found.cases == 20
    assert found.mean == pytest.approx(1 + noise.mean())
    assert found.interval is not None
    assert 1 < found.interval[0] < found.mean < found.interval[1] < 1.1
    assert found.is_clear
    mirrored = paired_difference(named(hard), named(hard + 1 + noise))
    assert mirrored.mean == pytest.approx(-found.mean)
    assert mirrored.is_clear


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    state, covered, rounds = np.random.RandomState(0), 0, 100
    for _ in range(rounds):
        found = paired_difference(named(state.randn(15) + 0.5), named(np.zeros(15)), confidence=0.8)
        assert found.interval is not None
        covered += found.interval[0] <= 0.5 <= found.interval[1]
    assert 0.65 * rounds < covered < 0.92 * rounds


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b = named(np.random.RandomState(0).rand(8)), named(np.random.RandomState(1).rand(8))
    assert paired_difference(a, b) == paired_difference(a, b)


def test_too_few_cases_have_a_mean_and_no_interval() -> None:
    values = named(range(FEWEST_CASES - 1))
    found = paired_difference(values, named([0.0] * len(values)))
    assert found == Difference(5, 2.0, None)
    assert not found.is_clear


def test_only_shared_finite_cases_count() -> None:
    a = named([1.0] * 7) | {"only a": 5.0, "none": None, "infinite": math.inf}
    b = named([0.0] * 7) | {"only b": 5.0, "none": 1.0, "infinite": 1.0}
    assert paired_difference(a, b) == Difference(7, 1.0, (1.0, 1.0))
    assert math.isnan(paired_difference({}, b).mean)
