"""The prepared layout: what is written is what is read, lazily; what is wrong is said in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest

from equisynth.config import Intensity
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, Skipped, write_case, write_info
from equisynth.errors import UserError

SHAPE = (5, 6, 7)
CASES = {"train": ("a", "b"), "validate": ("c",), "test": ("d",)}


def intensity(channels: int = 1) -> Intensity:
    return Intensity(
        modality="T2", channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels, signal_range=6.5, unit="1"
    )


def info(n_dims: int = 3, channels: int = 1, **fields: object) -> DatasetInfo:
    return DatasetInfo(
        **{
            "name": "toy",
            "n_dims": n_dims,
            "voxel_size": (1.0, 2.0, 3.0)[:n_dims],
            "input": intensity(channels),
            "label": intensity(channels),
            "licence": "none",
            "splits": CASES,
            "skipped": (Skipped(case="e", reason="no PD"),),
            **fields,
        }
    )


def arrays(random: np.random.RandomState) -> dict[str, np.ndarray]:
    return {
        "input": random.randn(*SHAPE).astype(np.float32),
        "label": random.randn(*SHAPE).astype(np.float32),
        "label_mask": (random.rand(*SHAPE) > 0.5).astype(np.uint8),
        "evaluation_mask": (random.rand(*SHAPE) > 0.5).astype(np.uint8),
        "deformation": random.randn(3, *SHAPE).astype(np.float32),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, case in enumerate(("a", "b", "c", "d")):
        write_case(tmp_path, case, arrays(np.random.RandomState(seed)), np.diag([1.0, 2.0, 3.0, 1.0]))
    write_info(tmp_path, info())
    return tmp_path


def test_reads_what_was_written(folder: Path) -> None:
    dataset = PreparedDataset.open(folder)
    written = arrays(np.random.RandomState(1))
    assert dataset.info == info()
    assert dataset.cases("train") == ("a", "b")
    assert dataset.shape("b") == SHAPE
    for role in ("input", "label"):
        assert np.array_equal(dataset.image("b", role), written[role])
        assert dataset.image("b", role).dtype == np.float32
    assert np.array_equal(dataset.mask("b", "label"), written["label_mask"])
    assert np.array_equal(dataset.mask("b", "evaluation"), written["evaluation_mask"])
    assert np.array_equal(dataset.deformation("b"), written["deformation"])
    assert np.array_equal(dataset.affine("b"), np.diag([1.0, 2.0, 3.0, 1.0]))
    assert not dataset.has("b", "label_aligned")
    dataset.verify()


def test_absent_mask_means_valid_everywhere(folder: Path) -> None:
    assert PreparedDataset.open(folder).mask("a", "input") is None


def test_images_are_memory_maps_that_cannot_be_written(folder: Path) -> None:
    image = PreparedDataset.open(folder).image("a", "input")
    base = image
    while getattr(base, "base", None) is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0, 0] = 1


def test_pickles_without_images(folder: Path) -> None:
    dataset = PreparedDataset.open(folder)
    empty = len(pickle.dumps(dataset))
    expected = dataset.image("a", "input").copy()
    assert len(pickle.dumps(dataset)) == empty
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).image("a", "input"), expected)


def test_files_open_elsewhere_as_usual_nifti(folder: Path) -> None:
    image = nibabel.load(folder / "cases" / "a" / "deformation.nii")
    assert image.shape == (*SHAPE, 1, 3)
    assert image.header.get_intent()[0] == "vector"
    assert image.header.get_zooms()[:3] == (1, 2, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_two_dimensional_colour_images(tmp_path: Path, dtype: type) -> None:
    random = np.random.RandomState(0)
    image = (random.rand(8, 9, 3) * 255).astype(dtype)
    field = random.randn(2, 8, 9).astype(np.float32)
    mask = np.ones((8, 9), np.uint8)
    for case in ("a", "b", "c", "d"):
        content = {"input": image, "label": image, "label_mask": mask, "deformation": field}
        write_case(tmp_path, case, content, np.eye(4), n_dims=2)
    write_info(tmp_path, info(n_dims=2, channels=3))
    dataset = PreparedDataset.open(tmp_path)
    dataset.verify()
    assert np.array_equal(dataset.image("a", "input"), image)
    assert dataset.image("a", "input").dtype == dtype
    assert np.array_equal(dataset.deformation("a"), field)
    assert dataset.mask("a", "label").shape == (8, 9)


def test_same_content_same_bytes(folder: Path, tmp_path: Path) -> None:
    first = (folder / "cases" / "a" / "input.nii").read_bytes()
    write_case(tmp_path / "again", "a", arrays(np.random.RandomState(0)), np.diag([1.0, 2.0, 3.0, 1.0]))
    assert (tmp_path / "again" / "cases" / "a" / "input.nii").read_bytes() == first


def test_a_failing_case_leaves_nothing(tmp_path: Path) -> None:
    bad = arrays(np.random.RandomState(0))
    bad["label"][0, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"label\.nii: holds values that are not finite"):
        write_case(tmp_path, "a", bad, np.eye(4))
    assert list((tmp_path / "cases").iterdir()) == []


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".hidden", "a b"])
def test_case_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="rename it"):
        write_case(tmp_path, name, arrays(np.random.RandomState(0)), np.eye(4))


def change_info(folder: Path, **fields: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "splits, message",
    [
        ({"train": ["a"], "validate": [], "test": ["d"]}, "'validate' is empty"),
        ({"train": ["a"], "test": ["d"]}, "expected train, validate, test"),
        ({"train": ["a"], "validate": ["a"], "test": ["d"]}, "'a' is in 'train' and in 'validate'"),
        ({"train": ["../a"], "validate": ["c"], "test": ["d"]}, "no file name"),
    ],
)
def test_wrong_splits(folder: Path, splits: dict, message: str) -> None:
    change_info(folder, splits=splits)
    with pytest.raises(UserError, match=r"dataset\.json") as error:
        PreparedDataset.open(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_description(folder: Path) -> None:
    change_info(folder, format=2)
    with pytest.raises(UserError, match=r"dataset\.json: format"):
        PreparedDataset.open(folder)
    with pytest.raises(UserError, match="not found"):
        PreparedDataset.open(folder / "nowhere")


def test_missing_image(folder: Path) -> None:
    (folder / "cases" / "c" / "label.nii").unlink()
    with pytest.raises(UserError, match=r"c/label\.nii: not found"):
        PreparedDataset.open(folder)


def replace(folder: Path, role: str, values: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "cases" / "a" / f"{role}.nii")


@pytest.mark.parametrize(
    "role, values, message",
    [
        ("label", np.zeros((5, 6, 8), np.float32), "expected the input's"),
        ("label", np.zeros((5, 6), np.float32), "expected 3 axes"),
        ("label", np.zeros((*SHAPE, 1, 2), np.float32), "expected 3 axes and 1 channels"),
        ("label", np.zeros(SHAPE, np.int16), "int16, expected float32 or uint8"),
        ("label", np.full(SHAPE, np.inf, np.float32), "not finite"),
        ("label_mask", np.full(SHAPE, 2, np.uint8), "expected a mask of 0 and 1"),
    ],
)
def test_malformed_images(folder: Path, role: str, values: np.ndarray, message: str) -> None:
    replace(folder, role, values)
    with pytest.raises(UserError) as error:
        PreparedDataset.open(folder).verify()
    assert message in str(error.value)
    assert f"a/{role}.nii" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"\0" * 400])
def test_damaged_file(folder: Path, content: bytes) -> None:
    (folder / "cases" / "a" / "label.nii").write_bytes(content)
    with pytest.raises(UserError, match=r"a/label\.nii: cannot be read as NIfTI"):
        PreparedDataset.open(folder).image("a", "label")


def test_truncated_file(folder: Path) -> None:
    path = folder / "cases" / "a" / "label.nii"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"a/label\.nii: cannot be read as NIfTI"):
        PreparedDataset.open(folder).image("a", "label")


def test_unknown_split(folder: Path) -> None:
    with pytest.raises(UserError, match="'training': unknown"):
        PreparedDataset.open(folder).cases("training")
