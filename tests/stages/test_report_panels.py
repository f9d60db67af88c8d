"""Panels of small datasets: which cases, what of them, against what; the same bytes for every model of a dataset."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from equisynth.config import LabelDeformation
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case, write_info
from equisynth.datasets.synthetic import SyntheticDataset
from equisynth.files import link, read_json
from equisynth.panels import ERROR_COLOURS, ERROR_HIDDEN
from equisynth.predictions import new_prediction
from equisynth.stages import panels
from equisynth.stages.report import LONGEST, case_pictures
from mlflow_repository import make_settings

CASES = {"train": ("a",), "validate": ("b",), "test": ("c", "d", "e", "f")}
RANGE = 2.0


def intensity(channels: int = 1) -> dict[str, Any]:
    return {
        "modality": "M", "channels": channels, "mean": [0.0] * channels, "std": [1.0] * channels, "unit": "one",
        "signal_range": 255 if channels == 3 else RANGE,
    }  # fmt: skip


def write_dataset(
    folder: Path,
    n_dims: int,
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    channels: int = 1,
    stored: tuple[str, ...] = ("input", "label"),
    **preparation: Any,
) -> PreparedDataset:
    for case, of_case in arrays.items():
        write_case(folder, case, of_case, np.eye(4), n_dims)
    info = {
        "n_dims": n_dims, "voxel_size": (1.0, 1.0, 2.0)[:n_dims], "input": intensity(channels),
        "label": intensity(channels), "licence": "none", "name": "small", "splits": CASES, "preparation": preparation,
        "stored": stored,
    }  # fmt: skip
    write_info(folder, DatasetInfo.model_validate(info))
    return PreparedDataset.open(folder)


@pytest.fixture
def volumes(tmp_path: Path) -> PreparedDataset:
    """Volumes of 18 x 20 x 12 voxels, stored to the left, the back and up; evaluated in a box."""
    random = np.random.RandomState(0)
    cases = {}
    for case in (case for split in CASES.values() for case in split):
        roles = ("input", "label", "label_aligned", "label_registered")
        arrays: dict[str, np.ndarray] = {role: RANGE * random.rand(18, 20, 12).astype(np.float32) for role in roles}
        arrays["evaluation_mask"] = np.zeros((18, 20, 12), np.uint8)
        arrays["evaluation_mask"][2:10, 4:14, 2:8] = 1
        cases[case] = arrays | {"deformation": random.rand(3, 18, 20, 12)}
    return write_dataset(tmp_path / "data", 3, cases, orientation="LPS")


def predict(dataset: PreparedDataset, folder: Path, error: float, role: str = "label_aligned") -> Path:
    for case in dataset.cases("test"):
        suffix = dataset.suffix(case)
        with new_prediction(folder / "test" / f"{case}{suffix}", dataset, case) as values:
            values[:] = dataset.image(case, role) + error
    return folder


def evaluated(**mae: float | None) -> dict[str, Any]:
    """What the evaluation says of test cases: MAE each."""
    cases = {case: {"mae": value, "ssim": None} for case, value in mae.items()}
    return {"test": {"split": "test", "label": "label_aligned", "cases": cases, "pooled": {}}}


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def rgb(colour: str) -> list[int]:
    return list(bytes.fromhex(colour[1:]))


def test_volumes_in_three_slices_and_models_side_by_side(volumes: PreparedDataset, tmp_path: Path) -> None:
    settings = make_settings()
    details = {"good": evaluated(c=0.3, d=0.2, e=0.1, f=None), "poor": evaluated(c=0.1, d=0.2, e=0.3, f=0.4)}
    for name, error in (("good", 0.0), ("poor", 0.1)):
        predictions = predict(volumes, tmp_path / name, error)
        panels.write(settings, volumes, predictions, details[name], tmp_path / f"panels/{name}")
    good, poor = (read_json(tmp_path / f"panels/{name}/panels.json") for name in ("good", "poor"))
    assert [(case["case"], case["chosen"]) for case in good["cases"]] == [
        ("c", ["first", "worst"]), ("d", ["first"]), ("e", ["best"]),
    ]  # fmt: skip
    assert [(case["case"], case["chosen"]) for case in poor["cases"]] == [
        ("c", ["first", "best"]), ("d", ["first"]), ("f", ["worst"]),
    ]  # fmt: skip
    assert good["cases"][0]["measures"] == {"mae": 0.3}
    assert (good["chosen_by"], good["error_range"][0], good["display_range"]) == ("mae", 0.0, poor["display_range"])
    planes = good["cases"][0]["planes"]
    # Turned, the box spans 8..15 from the left, 6..15 from the back; a slice is 2 voxels of 1 mm thick.
    assert [(plane["plane"], plane["index"], plane["size"]) for plane in planes] == [
        ("axial", 5, [18, 20]), ("coronal", 11, [18, 24]), ("sagittal", 12, [20, 24]),
    ]  # fmt: skip
    names = ["input", "label", "aligned", "prediction", "error", "checkerboard", "deformation"]
    assert all(list(plane["images"]) == names for plane in planes)
    first, second = (hashes(tmp_path / f"panels/{name}") for name in ("good", "poor"))
    named = {file for case in good["cases"] for plane in case["planes"] for file in plane["images"].values()}
    assert named | {"panels.json"} == set(first)
    for case, plane in (("c", "axial"), ("d", "sagittal")):
        same = {name for name in names if first[f"{case}-{plane}-{name}.webp"] == second[f"{case}-{plane}-{name}.webp"]}
        assert same == {"input", "label", "aligned", "deformation"}
    panels.write(settings, volumes, tmp_path / "good", details["good"], tmp_path / "panels/good")
    assert hashes(tmp_path / "panels/good") == first


def test_errors_are_against_the_aligned_label_where_it_is_evaluated(volumes: PreparedDataset, tmp_path: Path) -> None:
    predictions = predict(volumes, tmp_path / "predictions", 0.0)
    panels.write(make_settings(), volumes, predictions, evaluated(), tmp_path / "panels")
    content = read_json(tmp_path / "panels/panels.json")
    assert [case["chosen"] for case in content["cases"]] == [["first"], ["first"]]
    assert (content["chosen_by"], content["cases"][0]["measures"]) == (None, {})
    error = opened(tmp_path / "panels/c-axial-error.webp")
    assert error.shape == (20, 18, 3)
    inside = np.zeros((20, 18), bool)
    inside[4:14, 8:16] = True  # of LPS, rows from the front and columns from the left: one flip is undone
    np.testing.assert_array_equal(error[inside], np.broadcast_to(rgb(ERROR_COLOURS[0]), (80, 3)))
    np.testing.assert_array_equal(error[~inside], np.broadcast_to(rgb(ERROR_HIDDEN), (280, 3)))
    for case in "cd":  # a perfect prediction: the checkerboard is the label itself
        for plane in ("axial", "coronal", "sagittal"):
            folder = tmp_path / "panels"
            board, label = (opened(folder / f"{case}-{plane}-{name}.webp") for name in ("checkerboard", "aligned"))
            np.testing.assert_array_equal(board, label)


def test_pictures_of_one_experiment_are_turned_too(volumes: PreparedDataset) -> None:
    """Stored to the left and the back: the first voxel is the last one to the right and the front."""
    prediction = np.asarray(volumes.image("c", "label"))
    drawn = case_pictures(panels.Case(volumes, "c"), "label", prediction)
    for values, stored in ((drawn.prediction, prediction), (drawn.input, volumes.image("c", "input"))):
        np.testing.assert_array_equal(values, np.asarray(stored)[::-1, ::-1])
    np.testing.assert_array_equal(drawn.mask, np.asarray(volumes.mask("c", "evaluation"))[::-1, ::-1])


def test_the_label_as_trained_on(volumes: PreparedDataset, tmp_path: Path) -> None:
    predictions = predict(volumes, tmp_path / "predictions", 0.0, "label_registered")
    settings = make_settings(trains_on_label="re-registered")
    panels.write(settings, volumes, predictions, evaluated(), tmp_path / "panels")
    assert read_json(tmp_path / "panels/panels.json")["trains_on_label"] == "re-registered"
    label, prediction = (opened(tmp_path / f"panels/c-axial-{name}.webp") for name in ("label", "prediction"))
    np.testing.assert_array_equal(label, prediction)


def test_without_an_aligned_label_the_registered_one_is_shown_and_compared_with(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    roles = ("input", "label", "label_registered")
    cases = {case: {role: random.rand(30, 40).astype(np.float32) for role in roles} for case in "abcdef"}
    dataset = write_dataset(tmp_path / "data", 2, cases)
    predictions = predict(dataset, tmp_path / "predictions", 0.0, "label_registered")
    for trained_on, expected in (("deformed", {"registered"}), ("re-registered", set())):
        settings = make_settings(trains_on_label=trained_on)
        panels.write(settings, dataset, predictions, evaluated(), tmp_path / "panels")
        (case, _) = read_json(tmp_path / "panels/panels.json")["cases"]
        assert (case["reference"], case["checkerboard_with"]) == ("label_registered", "input")
        (plane,) = case["planes"]
        assert (plane["plane"], plane["index"], plane["size"]) == ("picture", None, [40, 30])
        assert set(plane["images"]) == {"input", "label", "prediction", "error", "checkerboard"} | expected
        error = opened(tmp_path / "panels" / plane["images"]["error"])
        np.testing.assert_array_equal(error, np.broadcast_to(rgb(ERROR_COLOURS[0]), error.shape))


def test_pairs_made_from_pictures_have_their_deformation(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    cases = {case: {"input": random.randint(0, 256, (90, 100, 3)).astype(np.uint8)} for case in "abcdef"}
    pictures = write_dataset(tmp_path / "data", 2, cases, channels=3, stored=("input",))
    bounds = {
        "width_range": [0.2, 0.2], "magnitude_range": [4, 4], "center_range": [0.5, 0.5], "degree_range": [3],
        "translation_range": [2, 2],
    }  # fmt: skip
    ranges = LabelDeformation.model_validate({key: {"lower": v, "upper": v} for key, v in bounds.items()})
    dataset = SyntheticDataset(pictures, ranges, (64, 64), seed=0)
    predictions = predict(dataset, tmp_path / "predictions", 0)
    panels.write(make_settings(), dataset, predictions, evaluated(), tmp_path / "panels")
    content = read_json(tmp_path / "panels/panels.json")
    assert content["display_range"] == {"input": [0.0, 255.0], "label": [0.0, 255.0]}
    (plane,) = content["cases"][0]["planes"]
    assert {"aligned", "deformation"} < set(plane["images"])
    assert opened(tmp_path / "panels" / plane["images"]["deformation"]).shape == (256, 256, 3)


@pytest.fixture
def slides(tmp_path: Path) -> PreparedDataset:
    """Pictures of 3000 x 2000 pixels kept as TIFF; details of the label in one place."""
    splits = {"train": ("a",), "validate": ("b",), "test": ("c",)}
    flat = np.full((3000, 2000, 3), 200, np.uint8)
    detailed = flat.copy()
    detailed[2400:2600, 1000:1200] = np.random.RandomState(0).randint(0, 256, (200, 200, 3))
    for role, values in (("input", flat), ("label", flat), ("label_registered", detailed)):
        tifffile.imwrite(tmp_path / f"{role}.tif", values, photometric="rgb", metadata=None)
        for case in "abc":
            link(tmp_path / f"{role}.tif", tmp_path / f"data/cases/{case}/{role}.tif")
    info = {
        "n_dims": 2, "voxel_size": (1, 1), "input": intensity(3), "label": intensity(3), "licence": "none",
        "name": "slides", "splits": splits, "invalid_at_or_below": 0,
    }  # fmt: skip
    write_info(tmp_path / "data", DatasetInfo.model_validate(info))
    return PreparedDataset.open(tmp_path / "data")


def test_slides_as_an_overview_and_a_detail_in_little_memory(slides: PreparedDataset, tmp_path: Path) -> None:
    predictions = predict(slides, tmp_path / "predictions", 0, "label_registered")
    tracemalloc.start()
    panels.write(make_settings(), slides, predictions, evaluated(), tmp_path / "panels")
    drawn = case_pictures(panels.Case(slides, "c"), "label", panels.read_prediction(slides, predictions, "test", "c"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 18e6  # a slide as it is stored; a float32 copy takes four times that
    assert max(drawn.prediction.shape) <= LONGEST
    overview, detail = read_json(tmp_path / "panels/panels.json")["cases"][0]["planes"]
    assert (overview["plane"], overview["size"]) == ("picture", [334, 500])
    assert (detail["plane"], detail["size"]) == ("detail", [256, 256])
    shown = opened(tmp_path / "panels" / detail["images"]["prediction"]).astype(float)
    assert (shown.std(axis=-1) > 8).mean() > 0.5  # the 200 x 200 pixels of noise fill 0.61 of it


# --- which cases


def test_best_and_worst_follow_the_first_measure_that_there_is() -> None:
    names = ("a", "b", "c")
    chosen = {"a": ["first", "worst"], "b": ["first"], "c": ["best"]}
    measured = {
        "registered_mae": {"a": 1.0, "b": 0.5, "c": 2.0},
        "full_valid_mae": {"a": 0.2, "c": 0.1},
        "full_valid_ssim": {"a": 1.0},
    }
    assert panels.choose(names, measured) == ("full_valid_mae", chosen)
    assert panels.choose(names, measured | {"local_mae": {"a": 1.0, "b": 2.0}}) == (
        "local_mae", {"a": ["first", "best"], "b": ["first", "worst"]},
    )  # fmt: skip
    shown = panels.measures_of("a", measured, "full_valid_mae")
    assert list(shown.items()) == [("full_valid_mae", 0.2), ("registered_mae", 1.0), ("full_valid_ssim", 1.0)]
    assert panels.measures_of("b", measured, "full_valid_mae") == {"registered_mae": 0.5}


def test_one_measured_case_is_neither_best_nor_worst() -> None:
    firsts = {"a": ["first"], "b": ["first"]}
    assert panels.choose(("a", "b"), {"mae": {"a": 0.1}}) == ("mae", firsts)
    assert panels.choose(("a", "b"), {"ssim": {"a": 0.1, "b": 0.2}}) == (None, firsts)
