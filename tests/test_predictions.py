"""Predictions are NIfTI on the case's grid, whatever the case itself is kept as."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile

from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_info
from equisynth.errors import UserError
from equisynth.predictions import read_prediction, write_prediction
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


def test_colours_of_slides(slides: PreparedDataset, tmp_path: Path) -> None:
    values = np.random.RandomState(0).randint(0, 256, (*SHAPE, 3)).astype(np.uint8)
    write_prediction(tmp_path / "test" / "c.nii", values, slides, "c")
    found = read_prediction(slides, tmp_path, "test", "c")
    assert found.dtype == np.uint8
    assert np.array_equal(found, values)
    image = nibabel.load(tmp_path / "test" / "c.nii")
    assert image.shape == (*SHAPE, 1, 1, 3)
    assert np.array_equal(image.affine, np.eye(4))


def test_another_grid(slides: PreparedDataset, tmp_path: Path) -> None:
    write_prediction(tmp_path / "test" / "c.nii", np.zeros((30, 40, 3), np.uint8), slides, "c")
    with pytest.raises(UserError, match=r"c\.nii: shape \(30, 40, 1, 1, 3\), expected the case's \(30, 41\)"):
        read_prediction(slides, tmp_path, "test", "c")


def test_sides_that_nifti_holds(slides: PreparedDataset, tmp_path: Path) -> None:
    write_prediction(tmp_path / "test" / "c.nii", np.ones((2, 32_767, 3), np.uint8), slides, "c")
    image = nibabel.load(tmp_path / "test" / "c.nii")
    assert image.shape == (2, 32_767, 1, 1, 3)
    assert np.asarray(image.dataobj).all()
    with pytest.raises(UserError, match=r"b\.nii: 2 x 32768 voxels, NIfTI holds at most 32767 a side"):
        write_prediction(tmp_path / "test" / "b.nii", np.ones((2, 32_768, 3), np.uint8), slides, "b")
    assert not (tmp_path / "test" / "b.nii").exists()
