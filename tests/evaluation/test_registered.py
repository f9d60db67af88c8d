"""Evaluation around random locations: locations, balls, weights and masks in closed form; registrations are kept."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from equisynth.datasets.prepared import PreparedDataset
from equisynth.errors import UserError
from equisynth.evaluation import local_registration, registered
from equisynth.evaluation.by_case import place_name
from equisynth.evaluation.local_registration import (
    ElasticStep,
    LocalRegistration,
    WarpedLabel,
    ball_box,
    parameter_maps,
    shifted,
    squared_distance,
)
from equisynth.evaluation.metrics import WINDOW
from equisynth.evaluation.registered import (
    RegisteredSettings,
    case_locations,
    draw_locations,
    evaluate,
    measure_case,
    register,
)
from equisynth.evaluation.weighted import WeightedMeasures, measure, valid_content
from equisynth.preprocessing import elastix
from equisynth.preprocessing.elastix import RegistrationFailed
from equisynth.preprocessing.registration import RigidStep
from equisynth.work import remembered
from registered_cases import AIR, NATIVE_VOXEL, SHAPE, VOXEL, grid, true_ct, write_heads

STEP = {"iterations": 20, "samples": 400, "step_size_samples": 200}
SETTINGS = RegisteredSettings(
    locations=2,
    weight_std_mm=15,
    registration=LocalRegistration(
        rigid=RigidStep(**STEP), elastic=ElasticStep(**STEP, grid_spacing=30), radius_mm=30, label_radius_mm=36
    ),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_heads(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def whole(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with all transformations of the test split."""
    cache = tmp_path_factory.mktemp("cache")
    done = register(dataset, "test", SETTINGS, cache)
    assert (done.found, done.failures) == (4, {})
    return cache


class Counter:
    """Counts registrations, and makes the chosen ones go wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: dict[int, BaseException] | None = None) -> None:
        self.calls, self._fail, self._register = 0, fail or {}, elastix.register
        monkeypatch.setattr(elastix, "register", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls in self._fail:
            raise self._fail[self.calls]
        return self._register(*args, **kwargs)


# --- locations and balls


def test_locations_lie_in_the_body_outside_of_every_invalid_region() -> None:
    state = np.random.RandomState(0)
    body, first, second = (state.rand(9, 8, 7) > share for share in (0.5, 0.6, 0.6))
    allowed = body & ~first & ~second
    regions = [first.astype(np.uint8), None, second.astype(np.uint8)]
    every = draw_locations(body.astype(np.uint8), regions, 10**6, np.random.RandomState(1))
    assert set(every) == {tuple(place) for place in np.argwhere(allowed).tolist()}
    assert len(every) == len(set(every))
    assert draw_locations(body.astype(np.uint8), regions, 5, np.random.RandomState(1)) == every[:5]
    assert draw_locations(body.astype(np.uint8), regions, 5, np.random.RandomState(2)) != every[:5]


def test_locations_are_uniform() -> None:
    body = np.ones((4, 1, 1), np.uint8)
    drawn = [draw_locations(body, [], 1, np.random.RandomState(seed))[0][0] for seed in range(2000)]
    assert np.abs(np.bincount(drawn) / 2000 - 0.25).max() < 0.04


def test_locations_follow_from_seed_and_case(dataset: PreparedDataset) -> None:
    assert case_locations(dataset, "c", SETTINGS) == case_locations(dataset, "c", SETTINGS)
    assert case_locations(dataset, "c", SETTINGS) != case_locations(dataset, "d", SETTINGS)
    other = SETTINGS.model_copy(update={"seed": 1})
    assert case_locations(dataset, "c", SETTINGS) != case_locations(dataset, "c", other)
    assert all(location[0] >= 6 for location in case_locations(dataset, "c", SETTINGS))


def test_ball_of_an_oblique_grid() -> None:
    affine = np.eye(4)
    affine[:3, :3] = [[2.0, 0.5, 0], [-0.4, 1.5, 0.2], [0, 0.3, -2.5]]
    affine[:3, 3] = [5, -7, 11]
    shape, centre = (15, 16, 14), (4, 9, 6)
    world = grid(shape, affine)
    squares = ((world - world[(slice(None), *centre)].reshape(3, 1, 1, 1)) ** 2).sum(axis=0)
    box = ball_box(affine, centre, 7.0, shape)
    np.testing.assert_allclose(squared_distance(affine, centre, box), squares[box])
    inside = squares <= 49
    assert inside.sum() == inside[box].sum()
    assert all(inside[box].any(axis=tuple({0, 1, 2} - {axis}))[[0, -1]].all() for axis in range(3))  # and no larger
    first = [part.start for part in box]
    np.testing.assert_allclose(shifted(affine, box)[:3, 3], world[(slice(None), *first)])


def test_invalid_regions_leave_the_ball_and_the_label(
    dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    hole, region = np.zeros(SHAPE, np.uint8), dataset.region
    hole[:, 9:, :] = 1
    monkeypatch.setattr(
        dataset, "region", lambda case, name: hole if name == "input_invalid_region" else region(case, name)
    )
    centre = (9, 10, 11)
    found = local_registration.surroundings(dataset, "c", centre, SETTINGS.registration)
    squares = squared_distance(dataset.affine("c"), centre, found.box)
    assert np.array_equal(found.ball > 0, (squares <= 30.0**2) & (hole[found.box] == 0))
    assert found.ball.any()
    assert found.image.shape == found.ball.shape
    # The CT is invalid where the MR's voxel there (of the first six planes) is: 2.6 mm a voxel on a grid of 3 mm.
    first = (found.label_affine[0, 3] + 2.6 * np.arange(found.label.shape[0])) / 3.0
    middle = (slice(None), *(n // 2 for n in found.label.shape[1:]))
    assert np.array_equal(found.label_valid[middle] == 0, np.rint(first) < 6)
    np.testing.assert_array_equal(found.label[middle], dataset.image("c", "label_native")[
        (slice(round(found.label_affine[0, 3] / 2.6), None),
         *(round(found.label_affine[k, 3] / NATIVE_VOXEL[k]) + found.label.shape[k] // 2 for k in (1, 2)))
    ][: found.label.shape[0]])  # fmt: skip


# --- measures in closed form


def around(
    monkeypatch: pytest.MonkeyPatch, dataset: PreparedDataset, case: str, **masks: np.ndarray
) -> tuple[int, ...]:
    """Makes registration the identity: the truth, and masks (*S) in place of the warped ones; one location."""
    location = case_locations(dataset, case, SETTINGS)[0]
    values, ones = true_ct(dataset, case), np.ones(SHAPE, np.uint8)

    def warped(surroundings: Any, *_: Any) -> WarpedLabel:
        box = surroundings.box
        return WarpedLabel(values[box], masks.get("body", ones)[box], masks.get("valid", ones)[box])

    monkeypatch.setattr(registered, "case_locations", lambda *_: [location])
    monkeypatch.setattr(registered, "found_transformation", lambda *_: {})
    monkeypatch.setattr(registered, "warped_label", warped)
    return location


def counted(dataset: PreparedDataset, case: str, location: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Weights (*S) as the text says, and where they count."""
    squares = ((grid(SHAPE, np.diag([*VOXEL, 1.0])) - (np.array(location) * VOXEL).reshape(3, 1, 1, 1)) ** 2).sum(
        axis=0
    )
    evaluation = dataset.mask(case, "evaluation")
    assert evaluation is not None
    return np.exp(-squares / (2 * 15.0**2)), (squares <= 30.0**2) & (evaluation > 0)


def test_weights_sign_and_error_volume(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    location = around(monkeypatch, dataset, "c")
    weights, inside = counted(dataset, "c", location)
    state = np.random.RandomState(0)
    errors = state.normal(3, 20, SHAPE)
    arrays = measure_case(dataset, "c", true_ct(dataset, "c") - errors, SETTINGS, Path("unused"))
    expected, mass = (weights * inside)[inside], (weights * inside).sum()
    absolute, squared, signed = (arrays[name] for name in ("absolute", "squared", "signed"))
    assert arrays["count"] == 1
    assert absolute == pytest.approx([np.abs(errors[inside]) @ expected, mass], rel=1e-5)
    assert squared == pytest.approx([errors[inside] ** 2 @ expected, mass], rel=1e-5)
    assert signed == pytest.approx([errors[inside] @ expected, mass], rel=1e-5)  # registered minus prediction
    np.testing.assert_allclose(arrays["errors"], np.abs(errors) * weights * inside, rtol=1e-3, atol=1e-3)


def test_nothing_counts_outside_of_the_masks(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    state = np.random.RandomState(1)
    masks = {name: (state.rand(*SHAPE) > 0.3).astype(np.uint8) for name in ("body", "valid")}
    location = around(monkeypatch, dataset, "c", **masks)
    _, inside = counted(dataset, "c", location)
    body = dataset.region("c", "input_body")
    assert body is not None
    inside &= (masks["valid"] > 0) & ~((body > 0) & (masks["body"] == 0))
    prediction = true_ct(dataset, "c") + np.where(inside, 0, np.nan)
    assert measure_case(dataset, "c", prediction, SETTINGS, Path("unused"))["absolute"][0] == 0
    wrong = true_ct(dataset, "c") + inside
    total, mass = measure_case(dataset, "c", wrong, SETTINGS, Path("unused"))["absolute"]
    assert total == pytest.approx(mass)


def test_body_of_the_label_alone_stays() -> None:
    body = np.array([1, 1, 0, 0, 1], np.uint8)
    warped = WarpedLabel(
        np.zeros(5, np.float32), np.array([1, 0, 1, 0, 1], np.uint8), np.array([1, 1, 1, 1, 0], np.uint8)
    )
    assert valid_content(body, warped).tolist() == [1, 0, 1, 1, 0]
    assert valid_content(body, warped, symmetric=True).tolist() == [1, 0, 0, 1, 0]


def test_ssim_counts_windows_whole_inside_the_content() -> None:
    state = np.random.RandomState(2)
    label, prediction = state.rand(2, 20, 18, 17).astype(np.float32)
    content = np.ones(label.shape, np.uint8)
    content[4:6, 9, 2:4] = 0
    weights = state.rand(*label.shape) * (state.rand(*label.shape) > 0.5)
    found, _ = measure(label, prediction, content, weights, 1.0)
    _, similarity = structural_similarity(label.astype(float), prediction.astype(float), data_range=1.0, full=True)
    half, kept = WINDOW // 2, np.zeros(label.shape, bool)
    for place in np.ndindex(*(n - WINDOW + 1 for n in label.shape)):
        if content[tuple(slice(i, i + WINDOW) for i in place)].all():
            kept[tuple(i + half for i in place)] = True
    assert kept.any()
    assert found.similarity.mass == pytest.approx((weights * kept).sum())
    assert found.similarity.mean == pytest.approx(np.average(similarity, weights=weights * kept), abs=1e-6)


def test_summaries_have_numbers_or_none() -> None:
    empty = WeightedMeasures().summary(4096)
    assert set(empty) == {"mae", "mse", "me", "psnr", "ssim"}
    assert set(empty.values()) == {None}
    content, weights = np.ones((9, 9, 9), np.uint8), np.ones((9, 9, 9))
    found, _ = measure(np.full((9, 9, 9), 7, np.float32), np.full((9, 9, 9), 3), content, weights, 4096)
    values = found.summary(4096)
    assert (values["mae"], values["mse"], values["me"]) == (4, 16, 4)
    assert values["psnr"] == pytest.approx(20 * math.log10(4096) - 10 * math.log10(16))


# --- registrations


def test_a_known_shift_is_undone(dataset: PreparedDataset, whole: Path) -> None:
    found = evaluate(dataset, "test", lambda case: true_ct(dataset, case), SETTINGS, whole)
    assert (found["locations"], found["failures"]) == (4, {})
    for case in dataset.cases("test"):
        unregistered = []
        for location in case_locations(dataset, case, SETTINGS):
            weights, inside = counted(dataset, case, location)
            error = np.abs(dataset.image(case, "label") - true_ct(dataset, case))
            unregistered.append(np.average(error, weights=weights * inside))
        assert found["cases"][case]["mae"] < 0.35 * np.mean(unregistered)
    assert found["pooled"]["ssim"] > 0.9
    json.dumps(found, allow_nan=False)


def test_pooled_and_per_case(dataset: PreparedDataset, whole: Path) -> None:
    volumes: dict[str, np.ndarray] = {}
    found = evaluate(
        dataset, "test", lambda case: true_ct(dataset, case) - 100, SETTINGS, whole, keep_errors=volumes.__setitem__
    )
    assert list(found["cases"]) == ["c", "d"]
    cases = [found["cases"][case]["mse"] for case in "cd"]
    assert min(cases) < found["pooled"]["mse"] < max(cases)
    assert found["pooled"]["me"] > 50
    sums = {
        case: measure_case(dataset, case, true_ct(dataset, case) - 100, SETTINGS, whole)["absolute"] for case in "cd"
    }
    for case, volume in volumes.items():
        assert volume.shape == SHAPE
        assert volume.sum(dtype=np.float64) == pytest.approx(sums[case][0], rel=1e-5)
    total, mass = sum(sums.values())
    assert found["pooled"]["mae"] == pytest.approx(total / mass)


def test_a_second_model_registers_nothing(
    dataset: PreparedDataset, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(monkeypatch)
    first = evaluate(dataset, "test", lambda case: true_ct(dataset, case), SETTINGS, whole)
    second = evaluate(dataset, "test", lambda case: dataset.image(case, "label"), SETTINGS, whole)
    assert counter.calls == 0
    assert first["pooled"] != second["pooled"]


def test_parts_merge_to_the_whole(
    dataset: PreparedDataset, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, merged = Counter(monkeypatch), tmp_path / "merged"
    for number in (1, 2, 3):
        register(dataset, "test", SETTINGS, tmp_path / str(number), part=(number, 3))
        shutil.copytree(tmp_path / str(number), merged, dirs_exist_ok=True)
    assert counter.calls == 4
    files = {path.relative_to(whole) for path in whole.rglob("*.npz")}
    assert files == {path.relative_to(merged) for path in merged.rglob("*.npz")}
    for file in files:  # the same, bit by bit, wherever and whenever it was found
        with np.load(whole / file, allow_pickle=False) as a, np.load(merged / file, allow_pickle=False) as b:
            assert all(np.array_equal(a[name], b[name]) for name in (*a.files, *b.files))
    results = [evaluate(dataset, "test", lambda case: true_ct(dataset, case), SETTINGS, c) for c in (whole, merged)]
    assert results[0] == results[1]
    assert counter.calls == 4
    with pytest.raises(UserError, match="part 3/2"):
        register(dataset, "test", SETTINGS, tmp_path, part=(3, 2))


def test_killed_in_the_middle_it_continues(
    dataset: PreparedDataset, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = SETTINGS.model_copy(update={"locations": 1})
    with monkeypatch.context() as patch:
        Counter(patch, {2: KeyboardInterrupt()})
        with pytest.raises(KeyboardInterrupt):
            register(dataset, "test", one, tmp_path)
    counter = Counter(monkeypatch)
    assert register(dataset, "test", one, tmp_path).found == 2
    assert counter.calls == 1

    measured, stop = [], True

    def prediction(case: str) -> np.ndarray:
        if case == "d" and stop:
            raise KeyboardInterrupt
        measured.append(case)
        return true_ct(dataset, case)

    remember = remembered(tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        evaluate(dataset, "test", prediction, one, tmp_path, remember)
    stop = False
    found = evaluate(dataset, "test", prediction, one, tmp_path, remember)
    assert measured == ["c", "d"]
    assert found == evaluate(dataset, "test", prediction, one, whole)


def test_failures_are_named_and_not_repeated(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = SETTINGS.model_copy(update={"locations": 1})
    with monkeypatch.context() as patch:
        Counter(patch, {1: RegistrationFailed("too few samples")})
        found = evaluate(dataset, "test", lambda case: true_ct(dataset, case), one, tmp_path)
    (place,) = case_locations(dataset, "c", one)
    assert found["failures"] == {place_name("c", place): "too few samples"}
    assert (found["locations"], found["cases"]["c"]["mae"], found["cases"]["c"]["locations"]) == (1, None, 0)
    assert found["pooled"]["mae"] == found["cases"]["d"]["mae"]
    counter = Counter(monkeypatch)
    assert register(dataset, "test", one, tmp_path).failures == found["failures"]
    assert counter.calls == 0


def test_other_settings_or_images_are_other_files(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def keep(folder: Path) -> Any:
        return lambda name, compute: names.append(name) or {}

    monkeypatch.setattr(local_registration, "remembered", keep)
    settings, (place, _) = SETTINGS.registration, case_locations(dataset, "c", SETTINGS)
    around = local_registration.surroundings(dataset, "c", place, settings)
    more = settings.model_copy(update={"elastic": ElasticStep(**STEP, grid_spacing=29)})
    masked = around.__class__(**{**vars(around), "ball": around.ball * 0})
    for seen, said in ((around, settings), (around, settings), (around, more), (masked, settings)):
        local_registration.found_transformation(seen, said, AIR, Path("unused"), "c/place")
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_published_parameters() -> None:
    rigid, elastic = parameter_maps(LocalRegistration(), AIR)
    expected = {
        "Metric": "AdvancedMattesMutualInformation TransformBendingEnergyPenalty TransformRigidityPenalty",
        "Metric0Weight": "1.0", "Metric1Weight": "20.0", "Metric2Weight": "1.0", "LinearityConditionWeight": "100.0",
        "OrthonormalityConditionWeight": "1.0", "PropernessConditionWeight": "10.0", "NumberOfHistogramBins": "64",
        "FinalGridSpacingInPhysicalUnits": "5.0", "MaximumNumberOfIterations": "500", "NumberOfSpatialSamples": "10000",
        "MovingImagePyramidSchedule": "2 8 8 1 4 4 1 1 1", "FixedImagePyramidSchedule": "8 8 8 4 4 4 1 1 1",
        "DefaultPixelValue": "-1024.0", "UseRandomSampleRegion": "false",
    }  # fmt: skip
    assert {key: " ".join(elastic[key]) for key in expected} == expected
    expected = {
        "MaximumNumberOfIterations": "500", "NumberOfSpatialSamples": "2000", "NumberOfResolutions": "3",
        "AutomaticTransformInitialization": "false", "NumberOfHistogramBins": "64", "Transform": "EulerTransform",
    }  # fmt: skip
    assert {key: " ".join(rigid[key]) for key in expected} == expected


def test_without_the_label_on_its_own_grid_nothing_is_claimed(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "has", lambda case, role: role != "label_native")
    found = evaluate(dataset, "test", lambda case: true_ct(dataset, case), SETTINGS, tmp_path)
    assert found["computed"] is False
    with pytest.raises(UserError, match="has no label_native"):
        register(dataset, "test", SETTINGS, tmp_path)


@pytest.mark.slow  # starts processes
def test_processes_find_and_measure_the_same(dataset: PreparedDataset, whole: Path, tmp_path: Path) -> None:
    remember = remembered(tmp_path / "work")
    found = evaluate(dataset, "test", lambda case: true_ct(dataset, case), SETTINGS, tmp_path, remember, jobs=2)
    assert found == evaluate(dataset, "test", lambda case: true_ct(dataset, case), SETTINGS, whole)
