"""Predictions lie on the case's grid, in the format that the case itself is kept in."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile

from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case, write_info
from equisynth.errors import UserError
from equisynth.predictions import new_prediction, prediction_form, prediction_path, read_prediction
from own_data import data

SHAPE = (30, 41)


@pytest.fixture
def slides(tmp_path: Path) -> PreparedDataset:
    """8-bit colour pictures kept as TIFF."""
    splits = {"train": ("a",), "validate": ("b",), "test": ("c",)}
    for case in "abc":
        folder = tmp_path / "slides" / "cases" / case
        folder.mkdir(parents=True)
        for role in ("input", "label"):
            tifffile.imwrite(folder / f"{role}.tif", np.zeros((*SHAPE, 3), np.uint8), photometric="rgb", metadata=None)
    write_info(tmp_path / "slides", DatasetInfo(**data(2, 3).model_dump(), name="slides", splits=splits))
    return PreparedDataset.open(tmp_path / "slides")


@pytest.fixture
def pictures(tmp_path: Path) -> PreparedDataset:
    """The same kept as NIfTI, and as floating point numbers."""
    splits = {"train": ("a",), "validate": ("b",), "test": ("c",)}
    for case, dtype in (("a", np.uint8), ("b", np.uint8), ("c", np.float32)):
        values = np.zeros((*SHAPE, 3), dtype)
        write_case(
            tmp_path / "pictures", case, {"input": values, "label": values}, np.diag([2.0, 2.0, 1.0, 1.0]), n_dims=2
        )
    write_info(tmp_path / "pictures", DatasetInfo(**data(2, 3).model_dump(), name="pictures", splits=splits))
    return PreparedDataset.open(tmp_path / "pictures")


def written(dataset: PreparedDataset, folder: Path, case: str) -> tuple[Path, np.ndarray]:
    """Writes random values of a case's form; where, and what."""
    shape, dtype = prediction_form(dataset, case)
    values = (np.random.RandomState(0).rand(*shape) * 255).astype(dtype)
    path = prediction_path(dataset, folder, "test", case)
    with new_prediction(path, dataset, case) as out:
        out[...] = values
    return path, values


def test_a_slide_is_predicted_as_a_slide(slides: PreparedDataset, tmp_path: Path) -> None:
    path, values = written(slides, tmp_path, "c")
    assert path == tmp_path / "test" / "c.tif"
    found = read_prediction(slides, tmp_path, "test", "c")
    assert found.dtype == np.uint8
    assert np.array_equal(found, values)
    assert np.array_equal(tifffile.imread(path), values)  # as other programs see it


@pytest.mark.parametrize("case, dtype", [("b", np.uint8), ("c", np.float32)])
def test_nifti_keeps_the_grid_and_the_kind_of_values(
    pictures: PreparedDataset, tmp_path: Path, case: str, dtype: type
) -> None:
    path, values = written(pictures, tmp_path, case)
    assert path == tmp_path / "test" / f"{case}.nii"
    found = read_prediction(pictures, tmp_path, "test", case)
    assert found.dtype == dtype
    assert np.array_equal(found, values)
    image = nibabel.load(path)
    assert image.shape == (*SHAPE, 1, 1, 3)
    assert np.array_equal(image.affine, np.diag([2.0, 2.0, 1.0, 1.0]))


def test_another_grid(slides: PreparedDataset, pictures: PreparedDataset, tmp_path: Path) -> None:
    for dataset, shape in ((slides, (30, 40, 3)), (pictures, (30, 40, 1, 1, 3))):
        path, _ = written(dataset, tmp_path, "b")
        if path.suffix == ".tif":
            tifffile.imwrite(path, np.zeros(shape, np.uint8), photometric="rgb", metadata=None)
        else:
            nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), path)
        message = re.escape(f"b{path.suffix}: shape {shape}, expected the case's (30, 41)")
        with pytest.raises(UserError, match=message):
            read_prediction(dataset, tmp_path, "test", "b")


def test_an_error_leaves_no_file(slides: PreparedDataset, pictures: PreparedDataset, tmp_path: Path) -> None:
    for dataset in (slides, pictures):
        path = prediction_path(dataset, tmp_path, "test", "c")
        with pytest.raises(RuntimeError), new_prediction(path, dataset, "c"):
            raise RuntimeError
        assert not list(path.parent.iterdir())


def test_sides_that_nifti_holds(pictures: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is computed."""
    path = tmp_path / "c.nii"
    monkeypatch.setattr(PreparedDataset, "shape", lambda *_: (1, 32_767))
    with new_prediction(path, pictures, "c") as out:
        out[...] = 1
    assert nibabel.load(path).shape == (1, 32_767, 1, 1, 3)
    monkeypatch.setattr(PreparedDataset, "shape", lambda *_: (1, 32_768))
    with (
        pytest.raises(UserError, match=r"c\.nii: 1 x 32768 voxels, NIfTI holds at most 32767 a side"),
        new_prediction(path, pictures, "c"),
    ):
        pytest.fail("the block must not be entered")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_no_measure_could_judge(pictures: PreparedDataset, tmp_path: Path, value: float) -> None:
    path = prediction_path(pictures, tmp_path, "test", "c")
    with new_prediction(path, pictures, "c") as out:
        out[...] = 1
        out[7, 8, 2] = value
    with pytest.raises(UserError, match=r"test/c\.nii: holds values that are not finite .* the model diverged"):
        read_prediction(pictures, tmp_path, "test", "c")
