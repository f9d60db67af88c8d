"""Patch positions, responsibility masks, fusing masks and random sequences."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from equisynth.datasets.intensity import denormalise, normalise
from equisynth.datasets.sequence import draw_order, draw_start, find_patch
from equisynth.datasets.tiles import axis_masks, axis_starts, patch_masks, patch_starts, patches_per_axis
from equisynth.errors import UserError
from golden_data import load

GOLDEN = load("08_data")


@pytest.mark.parametrize("rule", ["floor", "include_last"])
@pytest.mark.parametrize("case", (GOLDEN / "patches").children())
def test_patches_golden(case: str, rule: str) -> None:
    golden = GOLDEN / "patches" / case
    shape, patch, stride = (golden[key].tolist() for key in ("shape", "patch_size", "stride"))
    last = rule == "include_last"
    counts = patches_per_axis(shape, patch, stride, last)
    (golden / rule).check("num_patches_per_dimension", np.array(counts))
    (golden / rule).check("num_patches", prod(counts))
    starts = np.array(list(patch_starts(shape, patch, stride, last)))
    (golden / rule).check("start_and_end_indices", np.stack([starts, starts + patch], axis=1))
    (golden / rule).check("patch_masks", patch_masks(shape, patch, stride, last))


@pytest.mark.parametrize("case", (GOLDEN / "fusing").children())
def test_fusing_golden(case: str) -> None:
    golden = GOLDEN / "fusing" / case
    patch, stride, smoothing = (golden[key].tolist() for key in ("patch_size", "stride", "smoothing"))
    starts, masks, index = [], [], []
    for number, shape in enumerate(golden["array_shapes"].tolist()):
        own = list(patch_starts(shape, patch, stride))
        starts += own
        index += [number] * len(own)
        masks.append(patch_masks(shape, patch, stride, smoothing=smoothing))
    golden.check("array_index", np.array(index))
    golden.check("start_and_end_indices", np.stack([np.array(starts), np.array(starts) + patch], axis=1))
    golden.check("fusing_masks", np.concatenate(masks))


@pytest.mark.parametrize("case", (GOLDEN / "random_index").children())
def test_random_index_golden(case: str) -> None:
    golden = GOLDEN / "random_index" / case
    patch, stride = golden["patch_size"].tolist(), golden["stride"].tolist()
    shapes, cluster = golden["array_shapes"].tolist(), int(golden["cluster_size"])
    counts = [prod(patches_per_axis(shape, patch, stride)) for shape in shapes]
    state = np.random.RandomState(int(golden["seed"]))
    for name in golden.children():
        generation = golden / name
        order = draw_order(state, counts, None if cluster < 0 else cluster)
        base = state.randint(2**32)
        generation.check("array_index", order)
        versions = sorted({key for key in generation.keys() if key.startswith("version")})
        drawn: list[list[tuple[int, ...]]] = [[] for _ in versions]
        for index, array in enumerate(order):
            item = np.random.RandomState(base ^ index)
            for version in range(len(versions)):
                drawn[version].append(draw_start(item, shapes[array], patch))
        for version, key in enumerate(sorted(versions)):
            generation.check(key, np.array(drawn[version]))


@pytest.mark.parametrize("case", (GOLDEN / "normalize").children())
def test_normalise_golden(case: str) -> None:
    golden = GOLDEN / "normalize" / case
    mean, std = golden["mean_and_std"].tolist()
    values = golden["array_channel_last"]
    golden.check("normalized", normalise(values, mean, std))
    golden.check("clipped_and_normalized", normalise(values, mean, std, golden["min_and_max"].tolist()))
    golden.check("denormalized", denormalise(golden["tensor_channel_first"], mean, std))
    golden.check("denormalized_masked", denormalise(golden["tensor_channel_first"], mean, std, golden["mask"]))


def test_masks_without_smoothing_are_a_partition() -> None:
    shape, patch, stride = (13, 9), (6, 5), (4, 3)
    total = np.zeros(shape)
    for start, mask in zip(patch_starts(shape, patch, stride), patch_masks(shape, patch, stride), strict=True):
        total[start[0] : start[0] + 6, start[1] : start[1] + 5] += mask
    assert np.array_equal(total, np.ones(shape))


def test_a_stride_below_one_repeats_slices() -> None:
    assert patches_per_axis((10,), (1,), (0.125,)) == (73,)
    assert axis_starts(2, 1, 0.5, include_last=False) == [0, 0, 1]
    assert axis_masks([0], 4, 4, 2.0).tolist() == [[1, 1, 1, 1]]


def test_more_than_256_cases() -> None:
    order = draw_order(np.random.RandomState(0), [2] * 700)
    assert np.array_equal(np.bincount(order), np.full(700, 2))


def test_a_ratio_that_no_patch_reaches_ends_with_an_error() -> None:
    with pytest.raises(UserError, match="case sub-1.*30 %.*50 %"):
        find_patch(np.random.RandomState(0), (8, 8), (4, 4), lambda start: (0.3,), (0.5,), "sub-1", tries=20)
