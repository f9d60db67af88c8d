"""The prepared layout: what is written is what is read, lazily; what is wrong is said in one line."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile

from equisynth.config import Intensity
from equisynth.datasets import prepared, prepared_files
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, Skipped, write_case, write_info
from equisynth.datasets.roles import IMAGES, MASKS, REGIONS, ROLES, grid_of, image_of
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
        ("label", np.zeros((*SHAPE, 2), np.float32), "expected 3 axes"),
        ("label", np.zeros((*SHAPE, 1, 2), np.float32), "has 2 channels, expected 1"),
        ("deformation", np.zeros((*SHAPE, 1, 2), np.float32), "has 2 channels, expected 3"),
        ("input_mask", np.zeros(SHAPE, np.float32), "expected a mask of uint8"),
        ("input_body_mask", np.zeros((5, 6, 8), np.uint8), "expected the input's"),
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


def test_roles_are_all_known() -> None:
    assert len(set(ROLES)) == len(ROLES)
    assert {role for role in ROLES if grid_of(role) != "input"} == {
        "label_native", "label_native_mask", "label_native_body_mask",
    }  # fmt: skip
    assert [image_of(role) for role in ("label_mask", "evaluation_mask", "mask", "label", "label_body_mask")] == [
        "label", "evaluation", None, None, None,
    ]  # fmt: skip
    assert all(f"{region}_mask" in MASKS for region in REGIONS)


def test_files_that_are_no_role(folder: Path) -> None:
    assert PreparedDataset.open(folder).roles("a") == ("deformation", "evaluation_mask", "input", "label", "label_mask")
    (folder / "cases" / "a" / "labels.nii").write_bytes(b"")
    with pytest.raises(UserError, match=r"a/labels\.nii: is no role"):
        PreparedDataset.open(folder).verify()


@pytest.mark.parametrize(
    "stored, message", [(["label"], "expected 'input'"), (["input", "lable"], "expected 'input' and others of")]
)
def test_wrong_stored(folder: Path, stored: list[str], message: str) -> None:
    change_info(folder, stored=stored)
    with pytest.raises(UserError, match=r"dataset\.json: stored") as error:
        PreparedDataset.open(folder)
    assert message in str(error.value)


# --- pictures alone: labels are made while training


def test_what_every_case_has_is_said_by_the_description(tmp_path: Path) -> None:
    for case in ("a", "b", "c", "d"):
        write_case(tmp_path, case, {"input": np.zeros((8, 9, 3), np.uint8)}, np.eye(4), n_dims=2)
    write_info(tmp_path, info(n_dims=2, channels=3))
    with pytest.raises(UserError, match=r"a/label\.nii: not found"):
        PreparedDataset.open(tmp_path)
    write_info(tmp_path, info(n_dims=2, channels=3, stored=("input",)))
    dataset = PreparedDataset.open(tmp_path)
    dataset.verify()
    assert dataset.image("a", "input").shape == (8, 9, 3)
    assert dataset.mask("a", "label") is None
    with pytest.raises(UserError, match=r"a/label\.nii: not found"):
        dataset.image("a", "label")


# --- TIFF


def write_tiff(path: Path, values: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, photometric="rgb" if values.ndim == 3 else "minisblack", metadata=None, **options)


def slide(folder: Path, **info_fields: Any) -> tuple[PreparedDataset, dict[str, np.ndarray]]:
    """Cases as TIFF, one shared mask each."""
    random = np.random.RandomState(0)
    images = {role: random.randint(0, 256, (30, 41, 3)).astype(np.uint8) for role in ("input", "label")}
    values = {**images, "mask": (random.rand(30, 41) > 0.5).astype(np.uint8)}
    for case in ("a", "b", "c", "d"):
        for role, array in values.items():
            write_tiff(folder / "cases" / case / f"{role}.tif", array)
    write_info(folder, info(n_dims=2, channels=3, **info_fields))
    return PreparedDataset.open(folder), values


def test_tiff(tmp_path: Path) -> None:
    dataset, values = slide(tmp_path)
    dataset.verify()
    assert dataset.shape("a") == (30, 41)
    assert dataset.roles("a") == ("input", "label", "mask")
    assert np.array_equal(dataset.affine("a"), np.eye(4))
    for role in ("input", "label"):
        found = dataset.image("a", role)
        assert type(found) is np.ndarray
        assert np.array_equal(found, values[role])
        with pytest.raises(ValueError, match="read-only"):
            found[0, 0, 0] = 1


def test_one_mask_serves_all_that_have_none(tmp_path: Path) -> None:
    dataset, values = slide(tmp_path)
    assert all(np.array_equal(dataset.mask("a", role), values["mask"]) for role in ("input", "label", "evaluation"))
    assert dataset.has("a", "input_mask")
    assert dataset.has("a", "evaluation_mask")
    # not of images that are not there, not of another grid, and nothing but validity
    assert dataset.mask("a", "label_aligned") is None
    assert not dataset.has("a", "label_registered_mask")
    assert dataset.region("a", "input_body") is None
    own = 1 - values["mask"]
    write_tiff(tmp_path / "cases" / "a" / "label_mask.tif", own)
    again = PreparedDataset.open(tmp_path)
    assert np.array_equal(again.mask("a", "label"), own)
    assert np.array_equal(again.mask("a", "input"), values["mask"])


def test_formats_mix(tmp_path: Path) -> None:
    dataset, values = slide(tmp_path)
    mask = values["mask"]
    (tmp_path / "cases" / "b" / "mask.tif").unlink()
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "cases" / "b" / "mask.nii")
    aligned = nibabel.Nifti1Image(values["label"].reshape(30, 41, 1, 1, 3), np.eye(4))
    nibabel.save(aligned, tmp_path / "cases" / "b" / "label_aligned.nii")
    assert np.array_equal(dataset.mask("b", "label_aligned"), mask)
    assert np.array_equal(dataset.image("b", "label_aligned"), values["label"])
    dataset.verify()


def test_masks_are_one_kind_of_mask_each(folder: Path) -> None:
    dataset = PreparedDataset.open(folder)
    for name in ("input_body", "mask", "deformation"):
        with pytest.raises(ValueError, match="no valid mask"):
            dataset.mask("a", name)
    for name in (*IMAGES, "evaluation"):
        with pytest.raises(ValueError, match="no region"):
            dataset.region("a", name)


@pytest.mark.parametrize(
    "damage", ["empty", "words", "truncated", "compressed", "channels", "16 bit", "values", "size"]
)
def test_malformed_tiff(tmp_path: Path, damage: str) -> None:
    dataset, values = slide(tmp_path)
    image, role = tmp_path / "cases" / "a" / "label.tif", "label"
    message = "cannot be read as uncompressed TIFF"
    match damage:
        case "empty":
            image.write_bytes(b"")
        case "words":
            image.write_bytes(b"not an image at all")
        case "truncated":
            image.write_bytes(image.read_bytes()[:-10])
        case "compressed":
            write_tiff(image, values["label"], compression="zlib")
        case "channels":
            write_tiff(image, values["label"][..., 0])
            message = "has 1 channels, expected 3"
        case "16 bit":
            write_tiff(image, values["label"].astype(np.uint16))
            message = "holds uint16, expected float32 or uint8"
        case "size":
            write_tiff(image, values["label"][1:])
            message = r"shape \(29, 41\), expected the input's \(30, 41\)"
        case "values":
            role = "mask"
            write_tiff(image.with_name("mask.tif"), np.full((30, 41), 255, np.uint8))
            message = "holds values up to 255, expected a mask"
    with pytest.raises(UserError, match=message) as error:
        dataset.verify()
    assert f"a/{role}.tif" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_role_in_two_formats(tmp_path: Path) -> None:
    dataset, _ = slide(tmp_path)
    (tmp_path / "cases" / "a" / "label.nii").write_bytes(b"")
    with pytest.raises(UserError, match=r"a: holds both label\.nii and label\.tif"):
        dataset.verify()


def test_files_are_checked_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_files, "BLOCK", 7)
    values = np.zeros((4, 5, 6), np.float32, order="F")
    prepared_files.check_values(tmp_path, values, is_mask=False)
    for place in [(0, 0, 0), (3, 4, 5), (2, 1, 3)]:
        bad = values.copy(order="F")
        bad[place] = np.nan
        with pytest.raises(UserError, match="not finite"):
            prepared_files.check_values(tmp_path, bad, is_mask=False)


# --- a label on its own grid


def test_native_label_has_its_own_grid(tmp_path: Path) -> None:
    random, native = np.random.RandomState(0), np.diag([0.5, 0.5, 2.0, 1.0])
    extra = {
        "label_native": random.randn(9, 8, 3).astype(np.float32),
        "label_native_body_mask": (random.rand(9, 8, 3) > 0.5).astype(np.uint8),
        "input_body_mask": (random.rand(*SHAPE) > 0.5).astype(np.uint8),
        "label_invalid_region_mask": (random.rand(*SHAPE) > 0.5).astype(np.uint8),
        "mask": np.ones(SHAPE, np.uint8),
    }
    affines = dict.fromkeys(("label_native", "label_native_body_mask"), native)
    for case in ("a", "b", "c", "d"):
        write_case(tmp_path, case, {**arrays(random), **extra}, np.eye(4), affines=affines)
    write_info(tmp_path, info(stored=("input", "label", "label_native")))
    dataset = PreparedDataset.open(tmp_path)
    dataset.verify()
    assert dataset.shape("a") == SHAPE
    assert np.array_equal(dataset.image("a", "label_native"), extra["label_native"])
    for name in ("label_native_body", "input_body", "label_invalid_region"):
        assert np.array_equal(dataset.region("a", name), extra[f"{name}_mask"])
    assert dataset.region("a", "input_invalid_region") is None
    assert dataset.mask("a", "label_native") is None  # the shared mask lies on another grid
    assert np.array_equal(dataset.affine("a"), np.eye(4))
    assert np.array_equal(dataset.native_affine("a"), native)
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), native), tmp_path / "cases/b/label_native_body_mask.nii")
    with pytest.raises(UserError, match=r"b/label_native_body_mask\.nii: .* expected the label_native's \(9, 8, 3\)"):
        PreparedDataset.open(tmp_path).verify()


# --- many files


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux shows them")
def test_open_files_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "OPEN_MAPS", 3)
    dataset = PreparedDataset.open(folder)
    held = dataset.image("a", "input")
    expected, before = held.copy(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for seed, case in enumerate(("a", "b", "c", "d")):
            written = arrays(np.random.RandomState(seed))
            for role in ("input", "label"):
                assert np.array_equal(dataset.image(case, role), written[role])
            dataset.mask(case, "input"), dataset.mask(case, "label"), dataset.deformation(case)
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert np.array_equal(held, expected)


def test_a_file_is_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_map(path: Path, n_dims: int) -> np.ndarray:
        opened.append(path)
        return np.zeros(SHAPE, np.uint8)

    monkeypatch.setattr(prepared, "open_map", open_map)
    dataset = PreparedDataset.open(folder)
    for _ in range(3):
        dataset.image("a", "input"), dataset.image("a", "label"), dataset.mask("a", "label"), dataset.mask("a", "input")
    assert [path.name for path in opened] == ["input.nii", "label.nii", "label_mask.nii"]


def test_too_many_open_files_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(nibabel.Nifti1Image, "from_filename", full)
    with pytest.raises(UserError, match="too many files open; raise the limit"):
        PreparedDataset.open(folder).image("a", "input")


def test_images_too_large_for_nifti(tmp_path: Path) -> None:
    wide = np.broadcast_to(np.zeros(1, np.uint8), (2, 40_000))
    with pytest.raises(UserError, match=r"a/input\.nii: 2 x 40000 voxels, NIfTI holds at most 32767 a side"):
        write_case(tmp_path, "a", {"input": wide}, np.eye(4), n_dims=2)
    assert not list((tmp_path / "cases").iterdir())
