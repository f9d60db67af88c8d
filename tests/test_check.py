"""``equisynth check``: what it finds, that what it suggests resolves, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

from equisynth import params
from equisynth.check import check_own, check_prepared, run, to_yaml
from equisynth.cli import main
from equisynth.config import Data
from equisynth.datasets.folder import FolderCases, FolderPreparation, FolderSource, locate, prepare_case
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_info
from equisynth.datasets.prepared import write_case as write_prepared
from equisynth.errors import UserError
from equisynth.findings import FLIP_MARGIN
from equisynth.suggested_params import dataset_name, patch_sizes
from own_data import data, pair, picture, volume, write_case
from pipeline_repository import ROOT as REPOSITORY

SHAPE = (28, 34, 26)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five good cases and several kinds of trouble."""
    top = tmp_path_factory.mktemp("scans")
    for number in range(3):
        write_case(top, f"case{number}", pair(shape=SHAPE, gain=90.0 + 10 * number))
    other = {"input": volume("input", SHAPE), "label": volume("label", (30, 30, 14), (1.8, 2.1, 4.0), "LPI", 6.0)}
    write_case(top, "grids", other)
    label = volume("label", SHAPE)
    mirrored = nibabel.Nifti1Image(np.asarray(label.dataobj)[::-1], label.affine)
    write_case(top, "mirrored", {"input": volume("input", SHAPE), "label": mirrored})
    write_case(top, "tiny", pair(shape=(12, 12, 10), dtype=np.int16))
    write_case(top, "lonely", {"label": label})
    (top / "case0" / "readme.txt").write_text("x")
    return top


def test_what_it_finds(folder: Path) -> None:
    findings, _, warnings = check_own(folder)
    assert [case.case for case in findings.cases] == ["case0", "case1", "case2", "grids", "mirrored", "tiny"]
    assert list(findings.skipped) == ["lonely"]
    case = findings.cases[0]
    assert (case.n_dims, case.same_grid, case.overlap, case.masks) == (3, True, 1.0, ())
    image = case.images["input"]
    assert (image.shape, image.voxel_size, image.orientation, image.stored) == (
        SHAPE,
        (2.0, 2.0, 2.0),
        "RAS",
        "float32",
    )
    values = np.asarray(volume("input", SHAPE, gain=90.0).dataobj)
    assert np.allclose([image.low, image.high, image.mean[0], image.std[0]],
                       [values.min(), values.max(), values.mean(), values.std()], rtol=1e-4)  # fmt: skip
    text = "\n".join(warnings)
    for line in (
        "grids: input and label lie on different grids",
        "mirrored: suspected left-right flip",
        "tiny: 12 x 12 x 10 voxels when prepared, too small",
        "no role by their name",
    ):
        assert line in text
    assert len(warnings) == 4
    grids = next(case for case in findings.cases if case.case == "grids")
    assert grids.images["label"].shape == (30, 30, 14)  # along right, front and up, though stored as LPI
    assert grids.images["label"].orientation == "LPI"
    assert 0.5 < grids.overlap < 1


def test_flips_are_told_by_a_wide_margin(folder: Path) -> None:
    cases = {case.case: case.flip for case in check_own(folder)[0].cases}
    for name, flip in cases.items():
        assert flip is not None
        ratio = flip.mirrored / flip.as_is
        if name == "mirrored":
            assert ratio > 1 + 2 * (FLIP_MARGIN - 1)
        elif name != "tiny":
            assert ratio < 1


@pytest.mark.parametrize("flipped", [True, False])
def test_flipped_pictures(tmp_path: Path, flipped: bool) -> None:
    label = picture("label", (80, 96))
    write_case(tmp_path, "a", {"input": picture("input", (80, 96)), "label": label[:, ::-1] if flipped else label})
    (case,) = check_own(tmp_path)[0].cases
    assert case.flip is not None
    assert case.flip.suspected is flipped


# --- parameters


def resolved(tree: dict[str, Any], scale: str) -> Any:
    """Settings of the suggested experiment, from its printed text merged into the repository's parameters."""
    pasted = yaml.safe_load(to_yaml(tree))
    merged = params.merge(params.read(REPOSITORY / "params.yaml"), pasted)
    (name,) = pasted["datasets"]
    FolderSource.model_validate(params.source(merged, name, scale))
    FolderPreparation.model_validate(params.preparation(merged, name, scale))
    assert params.data_settings(merged, name, scale).n_dims in (2, 3)
    return params.resolve(merged, *pasted["pipeline"], scale)


def slices(shape: tuple[int, int]) -> dict[str, object]:
    return pair(shape=(*shape, 1), voxel_size=(1.2, 0.9, 1.0))


@pytest.mark.parametrize(
    "images, patches",
    [
        (pair(shape=SHAPE), {"paper": (16, 32, 16), "demo": (24, 24, 24)}),
        (pair(shape=(70, 72, 9), voxel_size=(0.8, 0.8, 5.0)), {"paper": (64, 64, 8), "demo": (24, 24, 8)}),
        (pair(shape=(30, 30, 5)), {"paper": (28, 28, 4), "demo": (24, 24, 4)}),
        ({r: picture(r, (300, 90)) for r in ("input", "label")}, {"paper": (256, 64), "demo": (64, 64)}),
        (slices((40, 50)), {"paper": (32, 32), "demo": (40, 48)}),
    ],
    ids=["volumes", "thick slices", "very thick slices", "pictures", "single slices"],
)
def test_suggested_parameters_resolve_and_fit(
    tmp_path: Path, images: dict[str, object], patches: dict[str, tuple[int, ...]]
) -> None:
    for case in ("a", "b", "c"):
        write_case(tmp_path, case, images)
    findings, tree, warnings = check_own(tmp_path, "mine")
    assert tree is not None
    assert warnings == []
    for scale, patch in patches.items():
        settings = resolved(tree, scale)
        assert settings.patch_size == patch
        assert settings.data.voxel_size == findings.cases[0].images["input"].voxel_size
    preparation = FolderPreparation.model_validate(tree["datasets"]["mine"]["preparation"])
    with FolderCases(locate(FolderSource(path=tmp_path))) as source:
        arrays, _ = prepare_case(source.read("a"), "a", preparation, settings.data)
    assert all(size >= wanted for size, wanted in zip(arrays["input"].shape, patch, strict=False))
    label = settings.data.label
    assert float(arrays["label"].max()) - float(arrays["label"].min()) <= label.signal_range


def test_hounsfield_units_are_kept(tmp_path: Path) -> None:
    images = pair()
    label = images["label"]
    values = np.asarray(label.dataobj) * 10 - 1024  # type: ignore[attr-defined]
    write_case(tmp_path, "a", {**images, "label": nibabel.Nifti1Image(values.astype(np.int16), label.affine)})  # type: ignore[attr-defined]
    tree = check_own(tmp_path, "mine")[1]
    assert tree is not None
    parts = tree["datasets"]["mine"]
    assert parts["preparation"]["label"] is None
    assert parts["preparation"]["input"] == {"percentiles": [0.5, 99.5]}
    assert resolved(tree, "demo").data.label.background == -1024


def test_colours_are_measured(tmp_path: Path) -> None:
    images = {role: picture(role) for role in ("input", "label")}
    write_case(tmp_path, "a", images)
    tree = check_own(tmp_path, "mine")[1]
    assert tree is not None
    side = tree["datasets"]["mine"]["data"]["input"]
    assert np.allclose(side["mean"], images["input"].mean(axis=(0, 1)), atol=1e-3)
    assert np.allclose(side["std"], images["input"].std(axis=(0, 1)), atol=1e-3)
    assert side["signal_range"] == 255


@pytest.mark.parametrize("size", range(4, 70))
def test_patches_fit_images_and_networks(size: int) -> None:
    patch, levels = patch_sizes((size, 200), 64, 5)
    assert patch[0] <= min(size, 64)
    assert all(side % 2**levels == 0 and side > 0 for side in patch)
    assert patch[0] > min(size, 64) / 2


@pytest.mark.parametrize(
    "folder_name, name",
    [("My Scans (new)", "my_scans_new"), ("ixi", "my_ixi"), ("2024-ct", "my_2024_ct"), ("___", "mydata")],
)
def test_names_that_stages_can_have(folder_name: str, name: str) -> None:
    assert dataset_name(folder_name) == name


# --- the command


def ended(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_warnings_end_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ended(["check", str(folder)], capsys)
    assert code == 0
    for words in ("6 usable cases, 1 skipped", "28 x 34 x 26", "suspected left-right flip", "skipped: lonely: "):
        assert words in out
    pasted = yaml.safe_load(out[out.index("sources:") :])
    assert list(pasted) == ["sources", "datasets", "scales", "pipeline"]


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ended(["check", str(folder), "--json", "--name", "mine"], capsys)
    facts = json.loads(out)
    assert code == 0
    assert len(facts["cases"]) == 6
    assert facts["cases"][0]["images"]["label"]["shape"] == list(SHAPE)
    assert facts["skipped"]["lonely"].endswith("no input image")
    assert list(facts["parameters"]["datasets"]) == ["mine"]
    assert len(facts["warnings"]) == 4


@pytest.mark.parametrize(
    "name, expected",
    [("ixi", "choose another, such as my_ixi"), ("my scans", "such as my_scans"), ("my-set", "such as my_set")],
)
def test_names_that_stages_cannot_have(folder: Path, name: str, expected: str) -> None:
    with pytest.raises(UserError, match=f"--name .*{expected}"):
        check_own(folder, name)


def test_nothing_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = nibabel.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4))
    write_case(tmp_path, "a", {"input": empty, "label": empty})
    code, _, err = ended(["check", str(tmp_path)], capsys)
    assert code == 2
    assert "no case can be used (a: " in err
    assert "a_input.nii.gz: every value is 0" in err
    assert len(err.strip().splitlines()) == 1


def test_too_thin_for_any_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path, "a", pair(shape=(30, 30, 3)))
    code, _, err = ended(["check", str(tmp_path)], capsys)
    assert code == 2
    assert "less than 4 voxels" in err


def test_few_cases_are_warned_of(tmp_path: Path) -> None:
    write_case(tmp_path, "a", pair())
    warnings = check_own(tmp_path)[2]
    assert len(warnings) == 1
    assert warnings[0].startswith("1 of the 3 cases that are needed")


# --- prepared datasets


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    settings: Data = data()
    cases = {"train": ("a", "b"), "validate": ("c",), "test": ("d",)}
    fields: dict[str, Any] = settings.model_dump()
    skipped = ({"case": "e", "reason": "e_label.nii: not found"},)
    write_info(tmp_path, DatasetInfo(**fields, name="toy", splits=cases, skipped=skipped))  # type: ignore[arg-type]
    image = np.asarray(volume().dataobj)
    deformation = np.zeros((3, *image.shape), np.float32)
    deformation[0] = 3
    deformation[1] = 4
    half = np.ones(image.shape, np.uint8)
    half[:11] = 0
    for case in ("a", "b", "c", "d"):
        arrays = {"input": image, "label": image, "deformation": deformation, "label_mask": half}
        write_prepared(tmp_path, case, arrays, np.diag([2.0, 2.0, 2.0, 1.0]))
    return tmp_path


def test_prepared_dataset(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = check_prepared(PreparedDataset.open(prepared))
    assert facts["splits"] == {"train": 2, "validate": 1, "test": 1}
    assert facts["skipped"] == {"e": "e_label.nii: not found"}
    assert facts["cases"]["a"] == {
        "split": "train",
        "shape": [22, 26, 20],
        "roles": ["deformation", "input", "label", "label_mask"],
        "label_valid": 0.5,
        "displacement_voxels": 5.0,
    }
    code, out, _ = ended(["check", str(prepared)], capsys)
    assert code == 0
    for words in ("prepared dataset toy", "2 train, 1 validate, 1 test", "5.00 voxels", "50 %", "skipped: e: "):
        assert words in out


def test_damaged_prepared_dataset(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = prepared / "cases" / "b" / "label.nii"
    values = np.array(nibabel.load(path).dataobj)
    values[1, 1, 1] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    with pytest.raises(UserError, match=r"b/label.nii: holds values that are not finite"):
        run(prepared)
    path.unlink()
    code, _, err = ended(["check", str(prepared), "--json"], capsys)
    assert code == 2
    assert "b/label.nii: not found" in err
