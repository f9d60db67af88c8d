"""Own data: what is read, what is refused and by which line, and where each voxel ends up."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile

import own_data
from equisynth.check import check_own
from equisynth.config import Data
from equisynth.datasets.archives import CaseSkipped
from equisynth.datasets.folder import (
    FolderCases,
    FolderPreparation,
    FolderSource,
    constants,
    locate,
    prepare_case,
    prepare_input,
)
from equisynth.datasets.raw_scan import ModelGrid, Scan
from equisynth.errors import UserError
from own_data import affine, data, pair, picture, volume, write_case
from pipeline_repository import ROOT as REPOSITORY

KEPT = FolderPreparation(input=None, label=None)
Prepared = tuple[dict[str, np.ndarray], dict]


def prepare(
    folder: Path, case: str = "a", preparation: FolderPreparation = KEPT, wanted: Data | None = None
) -> Prepared:
    with FolderCases(locate(FolderSource(path=folder))) as source:
        return prepare_case(source.read(case), case, preparation, wanted or data())


# --- volumes


GRIDS: dict[str, dict] = {
    "upright": {},
    "other axes": {"axes": "PIL"},
    "oblique": {"axes": "LPS", "turned": 12.0},
    "anisotropic": {"shape": (44, 52, 10), "voxel_size": (1.0, 1.0, 4.0)},
    "int16": {"dtype": np.int16},
    "uint8": {"dtype": np.uint8},
    "float64": {"dtype": np.float64},
}


@pytest.mark.parametrize("label_grid", GRIDS)
@pytest.mark.parametrize("input_grid", ["upright", "oblique"])
def test_each_voxel_shows_its_place_in_the_scanner(tmp_path: Path, input_grid: str, label_grid: str) -> None:
    images = {"input": volume("input", **GRIDS[input_grid]), "label": volume("label", **GRIDS[label_grid])}
    arrays, facts = prepare(write_case(tmp_path, "a", images))
    matrix = np.array(facts["affine"])
    assert nibabel.aff2axcodes(matrix) == ("R", "A", "S")
    assert np.allclose(np.linalg.norm(matrix[:3, :3], axis=0), 2.0)
    points = own_data.grid(arrays["input"].shape, matrix)
    inside = (np.linalg.norm(points / own_data.SEMI_AXES, axis=-1) < 0.8) & (arrays.get("label_mask", 1) > 0)
    assert inside.sum() > 500
    for role in ("input", "label"):
        assert arrays[role].dtype == np.float32
        errors = np.abs(arrays[role] - 100 * own_data.anatomy(points, role))[inside]
        assert errors.max() < 12  # of 200; 90 where an organ is looked for on the other side
        assert errors.mean() < 2.5


def test_what_the_label_does_not_show_is_invalid(tmp_path: Path) -> None:
    label = volume("label")
    cut = nibabel.Nifti1Image(np.asarray(label.dataobj)[:11], label.affine)  # the left half
    folder = write_case(tmp_path, "a", {"input": volume("input"), "label": cut})
    arrays, facts = prepare(folder, wanted=data(background=-7.0))
    assert arrays["label_mask"][:11].all()
    assert not arrays["label_mask"][11:].any()
    assert np.all(arrays["label"][11:] == -7)
    assert facts["valid_ratio"] == 0.5
    assert np.array_equal(arrays["label"][:11], np.asarray(cut.dataobj))


def test_one_grid_is_kept_to_the_last_bit(tmp_path: Path) -> None:
    images = pair()
    arrays, facts = prepare(write_case(tmp_path, "a", images))
    assert set(arrays) == {"input", "label"}  # valid everywhere: no mask
    for role, image in images.items():
        assert np.array_equal(arrays[role], np.asarray(image.dataobj))  # type: ignore[attr-defined]
    assert np.allclose(facts["affine"], images["input"].affine)  # type: ignore[attr-defined]


def test_masks_follow_their_own_grids(tmp_path: Path) -> None:
    coarse = affine((11, 13, 10), (4.0, 4.0, 4.0), "LAS")
    left = np.zeros((11, 13, 10), np.uint8)
    left[6:] = 255  # stored from right to left
    masks = {role: nibabel.Nifti1Image(left, coarse) for role in ("label_mask", "evaluation_mask")}
    middle = nibabel.Nifti1Image(np.ones((6, 6, 6), np.uint8), affine((6, 6, 6)))
    arrays, _ = prepare(
        write_case(tmp_path, "a", {**pair(), **masks, "label_aligned": volume("label"), "label_aligned_mask": middle})
    )
    assert arrays["label_aligned_mask"].sum() == 6**3  # nothing beyond the mask's own field of view
    for role in masks:
        assert arrays[role].shape == arrays["input"].shape
        assert set(np.unique(arrays[role])) == {0, 1}
        assert arrays[role][:10].all()
        assert not arrays[role][11:].any()
    assert "input_mask" not in arrays


def test_no_orientation_in_the_header_is_said(tmp_path: Path) -> None:
    images = pair()
    for image in images.values():
        image.header["sform_code"] = image.header["qform_code"] = 0  # type: ignore[attr-defined]
        image.set_sform(None, 0)  # type: ignore[attr-defined]
        image.set_qform(None, 0)  # type: ignore[attr-defined]
    arrays, facts = prepare(write_case(tmp_path, "a", images))
    assert all("says nothing of orientation" in note for note in facts["notes"])
    assert len(facts["notes"]) == 2
    assert np.array_equal(arrays["label"], np.asarray(images["label"].dataobj))  # type: ignore[attr-defined]


# --- intensities


def test_percentiles_of_the_foreground_become_0_and_1(tmp_path: Path) -> None:
    values = np.zeros((10, 10, 10), np.float32)
    values[5:] = np.linspace(10, 60, 500).reshape(5, 10, 10)
    image = nibabel.Nifti1Image(values, affine(values.shape))
    folder = write_case(tmp_path, "a", {"input": image, "label": image})
    settings = FolderPreparation.model_validate({"input": {"percentiles": [0, 50]}, "label": {"low": 20, "high": 40}})
    arrays, facts = prepare(folder, preparation=settings)
    assert np.allclose(facts["intensity"]["input"], [10, 35])  # the zeros do not count
    assert facts["intensity"]["label"] == [20, 40]
    for role, (low, high) in facts["intensity"].items():
        assert np.allclose(arrays[role], np.clip((values - low) / (high - low), 0, 1), atol=1e-6)


def test_aligned_label_is_scaled_like_the_label(tmp_path: Path) -> None:
    label = volume("label")
    aligned = nibabel.Nifti1Image(np.asarray(label.dataobj) * 0.5, label.affine)
    folder = write_case(tmp_path, "a", {**pair(), "label_aligned": aligned})
    arrays, facts = prepare(folder, preparation=FolderPreparation())
    low, high = facts["intensity"]["label"]
    assert high > 100
    for role, image in (("label", label), ("label_aligned", aligned)):
        expected = np.clip((np.asarray(image.dataobj) - low) / (high - low), 0, 1)
        assert np.allclose(arrays[role], expected, atol=1e-5)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"input": {"percentiles": [99, 1]}}, "lower < upper"),
        ({"input": {"low": 3, "high": 3}}, "low < high"),
        ({"splits": {"validate": 2.0, "test": 0.1}}, "less than 1"),
        ({"speed": 3}, "Extra inputs"),
    ],
)
def test_wrong_preparation(content: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FolderPreparation.model_validate(content)


# --- pictures


def test_8_bit_colours_stay_as_they_are(tmp_path: Path) -> None:
    images = {role: picture(role) for role in ("input", "label")}
    arrays, facts = prepare(write_case(tmp_path, "a", images), wanted=data(2, 3))
    for role, image in images.items():
        assert arrays[role].dtype == np.uint8
        assert np.array_equal(arrays[role], image)
    assert facts["notes"] == []


def test_alpha_is_left_out_and_grey_becomes_colour(tmp_path: Path) -> None:
    images = {"input": picture("input", channels=4), "label": picture("label", channels=1)}
    arrays, facts = prepare(write_case(tmp_path, "a", images), wanted=data(2, 3))
    assert np.array_equal(arrays["input"], images["input"][..., :3])
    assert np.array_equal(arrays["label"], np.repeat(images["label"][..., None], 3, axis=-1))
    assert facts["notes"] == ["a_input.tif: the alpha channel is left out"]


def test_16_bit_numbers_are_kept(tmp_path: Path) -> None:
    images = {role: picture(role, channels=1, peak=60000) for role in ("input", "label")}
    arrays, facts = prepare(write_case(tmp_path, "a", images), wanted=data(2, 1))
    assert np.array_equal(arrays["input"], images["input"].astype(np.float32))
    assert len(facts["notes"]) == 2


def test_pictures_at_another_pixel_size(tmp_path: Path) -> None:
    images = {role: picture(role) for role in ("input", "label")} | {"label_mask": picture(channels=1) // 60}
    arrays, _ = prepare(write_case(tmp_path, "a", images), wanted=data(2, 3, voxel_size=(2.0, 2.0)))
    assert arrays["input"].shape == arrays["label"].shape == (20, 24, 3)
    assert arrays["label_mask"].shape == (20, 24)
    assert 0 < arrays["label_mask"].mean() < 1


def test_jpeg_compressed_tiff(tmp_path: Path) -> None:
    from PIL import Image

    for role in ("input", "label"):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(picture(role)).save(tmp_path / "a" / f"a_{role}.tif", compression="jpeg")
    arrays, _ = prepare(tmp_path, wanted=data(2, 3))
    assert np.abs(arrays["input"].astype(int) - picture("input")).mean() < 4


def test_single_slices_lose_their_third_axis(tmp_path: Path) -> None:
    options = {"shape": (22, 1, 20), "voxel_size": (1.2, 3.0, 0.9)}
    images = pair(**options)
    arrays, _ = prepare(write_case(tmp_path, "a", images), wanted=data(2, voxel_size=(1.2, 0.9)))
    assert arrays["input"].shape == (22, 20)
    assert np.array_equal(arrays["label"], np.asarray(images["label"].dataobj)[:, 0])  # type: ignore[attr-defined]


# --- the table in the documentation


def two_grids() -> dict[str, object]:
    return {"input": volume("input"), "label": volume("label", (30, 30, 12), (1.5, 1.5, 4.0), "LPI", 9.0)}


def with_values(role: str, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, object]:
    images = pair()
    image = images[role]
    images[role] = nibabel.Nifti1Image(change(np.array(image.dataobj)), image.affine)  # type: ignore[attr-defined]
    return images


def elsewhere() -> nibabel.Nifti1Image:
    image = volume("label")
    moved = image.affine.copy()
    moved[0, 3] += 500
    return nibabel.Nifti1Image(image.dataobj, moved)


def nan(values: np.ndarray) -> np.ndarray:
    values[3, 4, 5] = np.nan
    return values


def both(channels: int = 3, peak: int = 200) -> dict[str, object]:
    return {role: picture(role, channels=channels, peak=peak) for role in ("input", "label")}


INPUTS: dict[str, tuple[Callable[[], dict[str, object]], Data]] = {
    "3D NIfTI, int16": (lambda: pair(dtype=np.int16), data()),
    "3D NIfTI, uint8": (lambda: pair(dtype=np.uint8), data()),
    "3D NIfTI, float64": (lambda: pair(dtype=np.float64), data()),
    "3D NIfTI, any orientation (PIL)": (lambda: pair(axes="PIL"), data()),
    "3D NIfTI, oblique": (lambda: pair(turned=12.0), data()),
    "3D NIfTI, anisotropic (1 x 1 x 4 mm)": (lambda: pair(shape=(44, 52, 10), voxel_size=(1.0, 1.0, 4.0)), data()),
    "4D NIfTI, last axis 1": (lambda: with_values("label", lambda v: v[..., None]), data()),
    "4D NIfTI, two volumes": (lambda: with_values("label", lambda v: np.stack([v, v], -1)), data()),
    "different grids in a pair of volumes": (two_grids, data()),
    "label beside the input's field of view": (
        lambda: {"input": volume("input"), "label": elsewhere()},
        data(),
    ),
    "2D NIfTI, one slice, anisotropic": (
        lambda: pair(shape=(22, 26, 1), voxel_size=(1.2, 0.9, 1.0)), data(2, voxel_size=(1.2, 0.9)),
    ),
    "TIFF, 8-bit grey": (lambda: both(channels=1), data(2)),
    "TIFF, 8-bit RGB": (both, data(2, 3)),
    "TIFF, 8-bit RGBA": (lambda: both(channels=4), data(2, 3)),
    "TIFF, 16-bit grey": (lambda: both(channels=1, peak=60000), data(2)),
    "TIFF, colour where one channel is expected": (both, data(2)),
    "different sizes in a pair of pictures": (
        lambda: {"input": picture("input"), "label": picture("label", (40, 40))}, data(2, 3),
    ),
    "a TIFF with a NIfTI": (lambda: {**pair(shape=(22, 26, 1)), "input": picture("input", (22, 26), 1)}, data(2)),
    "2D images where 3D is expected": (both, data()),
    "NaN voxels": (lambda: with_values("input", nan), data()),
    "all-zero volume": (lambda: with_values("label", lambda v: 0 * v), data()),
}  # fmt: skip


def outcome(folder: Path, images: dict[str, object], wanted: Data) -> str:
    """What becomes of a case, in the words of the documentation."""
    write_case(folder, "a", images)
    try:
        arrays, facts = prepare(folder, preparation=FolderPreparation(), wanted=wanted)
    except CaseSkipped as reason:
        return f"refused: `{str(reason).replace(f'{folder}/', '')}`"
    shape = " x ".join(str(size) for size in arrays["label"].shape)
    said = f"; says `{facts['notes'][0]}`" if facts["notes"] else ""
    valid = f", {100 * facts['valid_ratio']:.0f} % of the label valid" if facts["valid_ratio"] < 1 else ""
    return f"handled: {shape}{valid}{said}"


def test_the_documentation_says_what_becomes_of_each_input(tmp_path: Path) -> None:
    rows = [
        f"| {name} | {outcome(tmp_path / str(number), images(), wanted)} |"
        for number, (name, (images, wanted)) in enumerate(INPUTS.items())
    ]
    (warning,) = check_own(write_case(tmp_path / "single", "a", pair()))[2]
    rows.append(f"| a single case | handled; `equisynth check` warns: `{warning}` |")
    text = (REPOSITORY / "docs" / "own-data.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- inputs:begin -->\n(.*?)<!-- inputs:end -->", text, re.DOTALL)
    assert table is not None
    expected = "\n".join(["| input | what becomes of it |", "|---|---|", *rows])
    assert table[1].strip() == expected, f"docs/own-data.md should say:\n{expected}"


# --- folders, tables, damage


def listed(path: Path) -> FolderCases:
    return FolderCases(locate(FolderSource(path=path)))


def test_bad_cases_are_named_and_good_ones_kept(tmp_path: Path) -> None:
    for case in ("good", "other"):
        write_case(tmp_path, case, pair())
    write_case(tmp_path, "lonely", {"input": volume()})
    write_case(tmp_path, "twice", pair())
    write_case(tmp_path, "twice", {"input": volume()}, ".nii")
    write_case(tmp_path, "odd name", pair())
    write_case(tmp_path, "cut", pair())
    cut = tmp_path / "cut" / "cut_label.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-200])
    write_case(
        tmp_path, "empty", {**pair(), "label_mask": nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))}
    )
    (tmp_path / "good" / "notes.txt").write_text("x")
    with listed(tmp_path) as source:
        assert source.cases() == ["cut", "empty", "good", "other"]
        assert source.incomplete_cases() == ["lonely", "odd name", "twice"]
        assert [path.name for path in source.unknown] == ["notes.txt"]
        for case, reason in {
            "lonely": "lonely: no label image",
            "twice": "twice_input.nii.gz: a second input",
            "odd name": "'odd name': expected letters",
            "cut": r"cut_label.nii.gz: cannot be read",
            "empty": r"empty_label_mask.nii.gz: no voxel",
            "absent": "holds no case 'absent'",
        }.items():
            with pytest.raises(CaseSkipped, match=reason):
                source.read(case)
        assert set(source.read("good")) == {"input", "label"}


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_tables_of_paths(tmp_path: Path, kind: str) -> None:
    write_case(tmp_path / "files", "a", pair())
    one = {"input": "files/a/a_input.nii.gz", "label": "files/a/a_label.nii.gz"}
    rows = [
        {"case": "first", **one, "label_mask": ""},
        {"case": "second", **one, "label_mask": "files/absent.nii.gz"},
        {"case": "same", **one, "label_mask": ""},
        {"case": "same", **one, "label_mask": ""},
        {"case": "half", "input": one["input"], "label": "", "label_mask": ""},
    ]
    path = tmp_path / f"cases.{kind}"
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text(json.dumps(rows) if kind == "json" else "\n".join(lines), encoding="utf-8")
    with listed(path) as source:
        assert source.cases() == ["first", "second"]
        assert set(source.read("first")) == {"input", "label"}
        with pytest.raises(CaseSkipped, match=r"files/absent.nii.gz: not found"):
            source.read("second")
        with pytest.raises(CaseSkipped, match="'same' stands 2 times"):
            source.read("same")
        with pytest.raises(CaseSkipped, match="case 'half': no label image"):
            source.read("half")
        before = source.contents()
    nibabel.save(volume(gain=50), tmp_path / one["input"])
    with listed(path) as source:
        after = source.contents()
    assert {name for name in before if before[name] != after[name]} == {one["input"]}


def test_images_beside_each_other_instead_of_in_folders(tmp_path: Path) -> None:
    (tmp_path / "a_input.nii.gz").touch()
    with pytest.raises(UserError, match=r"a_input\.nii\.gz in the folder itself: give each case a"), listed(tmp_path):
        pass


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("cases.csv", "case,imput,label\na,b,c\n", "unknown column 'imput'; known: case, input, label"),
        ("cases.csv", "case;input;label\na;b;c\n", "columns are separated by semicolons, expected commas"),
        ("cases.csv", "case,input,label\n,b,c\n", "a row without a case"),
        ("cases.csv", "case,input,label\n", "no case with an input and a label"),
        ("cases.json", '{"case": "a"}', "expected a list"),
        ("cases.json", '[{"case": "a", "input": 3}]', "input is 3, expected text"),
        ("cases.json", "[", "or write the table as CSV"),
        ("cases.txt", "", "ends with .csv or .json"),
    ],
)
def test_wrong_tables(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(message)), listed(tmp_path / name):
        pass


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: not found; expected a folder of cases"):
        listed(tmp_path / "absent")
    with pytest.raises(UserError, match="no case with an input and a label") as error, listed(tmp_path):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a_label.nii", b"", "cannot be read"),
        ("a_label.nii.gz", gzip.compress(b"no image", mtime=0), "cannot be read"),
        ("a_label.tif", b"II*\0 not a tiff", "cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    write_case(tmp_path, "a", {"input": volume()})
    (tmp_path / "a" / name).write_bytes(content)
    with listed(tmp_path) as source, pytest.raises(CaseSkipped, match=f"{re.escape(name)}: {reason}") as error:
        source.read("a")
    assert "\n" not in str(error.value)


def test_kinds_of_images_that_are_not_read(tmp_path: Path) -> None:
    complex_values = nibabel.Nifti1Image(np.ones((4, 4, 4), np.complex64), np.eye(4))
    write_case(tmp_path, "complex", {**pair(), "label": complex_values})
    write_case(tmp_path, "stack", both())
    tifffile.imwrite(tmp_path / "stack" / "stack_label.tif", np.ones((5, 40, 48), np.uint8), photometric="minisblack")
    write_case(tmp_path, "palette", both())
    colours = np.arange(768, dtype=np.uint16).reshape(3, 256)
    tifffile.imwrite(tmp_path / "palette" / "palette_label.tif", picture(channels=1), colormap=colours)
    with listed(tmp_path) as source:
        for case, reason in {"complex": "holds complex64", "stack": "holds a stack", "palette": "PALETTE"}.items():
            with pytest.raises(CaseSkipped, match=f"{case}_label.*: .*{reason}"):
                source.read(case)


def test_a_picture_longer_than_its_file_may_be_is_skipped(tmp_path: Path) -> None:
    images = {role: np.arange(2 * 32_768).reshape(2, -1).astype(np.uint16) for role in ("input", "label")}
    write_case(tmp_path, "a", images)
    with pytest.raises(CaseSkipped, match=r"a_input\.tif: 2 x 32768 pixels, expected sides up to 32767; cut it into"):
        prepare(tmp_path, wanted=data(2))


# --- one raw scan


@pytest.mark.parametrize("scaling", [None, {"percentiles": [1, 99]}, {"low": 5, "high": 120}])
def test_a_raw_scan_is_prepared_like_the_inputs(tmp_path: Path, scaling: dict | None) -> None:
    settings = FolderPreparation.model_validate({"input": scaling})
    image = volume(axes="LPI", turned=10.0, voxel_size=(2.0, 1.5, 3.0))
    folder = write_case(tmp_path, "a", {"input": image, "label": volume("label")})
    arrays, _ = prepare(folder, preparation=settings)
    known = json.loads(json.dumps(constants(settings, data())))
    scan = Scan(np.asarray(image.dataobj), image.affine)
    grid = ModelGrid.of(scan, known["orientation"], known["voxel_size"])
    result = prepare_input(Scan(grid.forward(scan.values), grid.affine), known)
    assert np.allclose(result.values, arrays["input"], atol=1e-5)
    assert grid.back(result.values).shape == image.shape
