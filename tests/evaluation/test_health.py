"""Health of deformations, in closed form."""

from __future__ import annotations

import json

import numpy as np
import pytest

from equisynth.evaluation.health import Health, health, summarise


def test_a_translation_folds_nothing() -> None:
    field = np.broadcast_to(np.reshape([3.0, -4.0], (2, 1, 1)), (2, 9, 8))
    assert health(field, (1, 1)).summary() == {"folded_share": 0, "mean_displacement": 5}
    assert health(field, (2, 1)).summary()["mean_displacement"] == pytest.approx(np.hypot(6, 4))


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("voxel_size", [1.0, 2.5])
def test_a_reflection_folds_everything(n_dims: int, voxel_size: float) -> None:
    field = np.zeros((n_dims, *(7,) * n_dims))
    field[0] = 6 - 2 * np.indices((7,) * n_dims)[0]  # p -> 6 - p
    assert health(field, (voxel_size,) * n_dims).summary()["folded_share"] == 1


def test_a_collapse_is_folded_and_a_compression_is_not() -> None:
    rows = np.indices((8, 8))[0].astype(float)
    for slope, share in ((-1.0, 1), (-0.99, 0)):  # everything lands in one row; almost
        assert health(np.stack([slope * rows, 0 * rows]), (1, 1)).summary()["folded_share"] == share


def test_only_the_mask_counts_and_half_is_half() -> None:
    field, mask = np.zeros((2, 11, 6)), np.zeros((11, 6), np.uint8)
    field[0, 5:] = -3.0 * np.arange(6).reshape(-1, 1)  # from row 5 on each row lands two rows before the last one
    mask[:10, :5] = 1
    assert health(field, (1, 1), mask).summary()["folded_share"] == pytest.approx(0.5)
    mask[5:] = 0
    assert health(field, (1, 1), mask).summary() == {"folded_share": 0, "mean_displacement": 0}


def test_cases_pool_by_voxels_and_survive_being_kept() -> None:
    still, moved = np.zeros((2, 5, 5)), np.ones((2, 10, 5)) * np.reshape([0.0, 3.0], (2, 1, 1))
    cases = {"b": health(moved, (1, 1)), "a": health(still, (1, 1))}
    found = summarise(cases)
    assert list(found["cases"]) == ["a", "b"]
    assert found["pooled"]["mean_displacement"] == pytest.approx(2)
    assert Health.from_arrays(cases["b"].to_arrays()) == cases["b"]
    json.dumps(found, allow_nan=False)


def test_nothing_is_claimed_of_an_empty_mask_or_a_field_that_is_not_finite() -> None:
    nothing = {"folded_share": None, "mean_displacement": None}
    field = np.zeros((2, 5, 5))
    assert health(field, (1, 1), np.zeros((5, 5))).summary() == nothing
    field[0, 2, 2] = np.nan
    assert health(field, (1, 1)).summary() == nothing
    assert summarise({}) == {"cases": {}, "pooled": nothing}
