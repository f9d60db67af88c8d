"""Stages raw and prepare: archives in, a prepared dataset out; repeatable, resumable, and clear about what is wrong."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equisynth.config import Data, Intensity
from equisynth.datasets import ixi
from equisynth.datasets.prepared import PreparedDataset
from equisynth.errors import UserError
from equisynth.files import read_json
from equisynth.stages import prepare, raw
from killing import kill_in_child

SOURCE: dict[str, Any] = {
    "kind": "phantom",
    "cases": {"train": 2, "validate": 1, "test": 1},
    "voxel_size": [5.0, 5.0, 5.5],
    "shape": [38, 43, 31],
    "incomplete_cases": 1,
}
PREPARATION: dict[str, Any] = {
    "body_mask_closing": 2,
    "evaluation_dilation": 1,
    "deformation": {"velocity_std_mm": 30},
    "registration": None,
}
PD, T2 = (Intensity(modality=m, clip=(0, 6.5), signal_range=6.5, unit="white matter = 1") for m in ("PD", "T2"))
DATA = Data(n_dims=3, voxel_size=(5.0, 5.0, 5.5), input=T2, label=PD, licence="CC BY-SA 3.0")


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


@pytest.fixture(scope="module")
def raw_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "ixi"
    raw.run(SOURCE, "ixi", folder)
    return folder


@pytest.fixture(scope="module")
def prepared(raw_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare.run(PREPARATION, DATA, "ixi", raw_folder, folder / "ixi", work=folder / "work", sheets=folder)
    return folder / "ixi"


def test_prepared_dataset_is_complete(prepared: Path, raw_folder: Path) -> None:
    dataset = PreparedDataset.open(prepared)
    dataset.verify()
    splits = read_json(raw_folder / "splits.json")
    lacking = splits["train"].pop()
    assert {split: list(cases) for split, cases in dataset.info.splits.items()} == splits
    assert [(s.case, s.reason) for s in dataset.info.skipped] == [(lacking, "no PD scan in the archives")]
    assert dataset.info.data == DATA
    for case in dataset.cases("train"):
        assert dataset.shape(case) == tuple(SOURCE["shape"])
        assert np.allclose(dataset.affine(case), np.diag([5, 5, 5.5, 1]))
        assert dataset.mask(case, "input") is None
        assert dataset.mask(case, "label_aligned") is None
        assert dataset.mask(case, "label") is not None
        assert dataset.mask(case, "evaluation") is not None
        assert dataset.deformation(case, inverse=True).shape == (3, *SOURCE["shape"])


def test_preparation_of_a_raw_scan_is_described(prepared: Path) -> None:
    described = PreparedDataset.open(prepared).info.preparation
    assert described["kind"] == "ixi"
    assert described["voxel_size"] == [5, 5, 5.5]
    assert len(described["reference_body_quantiles"]) == 5
    assert described["deformation"]["velocity_std_mm"] == 30


def test_same_bytes_whatever_the_jobs(prepared: Path, raw_folder: Path, tmp_path: Path) -> None:
    prepare.run(PREPARATION, DATA, "ixi", raw_folder, tmp_path / "ixi", jobs=2, work=tmp_path / "work", sheets=tmp_path)
    assert contents(tmp_path / "ixi") == contents(prepared)
    assert (tmp_path / "ixi.png").read_bytes() == prepared.with_suffix(".png").read_bytes()


def test_a_repeat_continues_where_it_stopped(
    prepared: Path, raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    whole = ixi.prepare_case

    def until_the_third(scans: Any, case: str, *rest: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(case)
        return whole(scans, case, *rest)

    monkeypatch.setattr(ixi, "prepare_case", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(PREPARATION, DATA, "ixi", raw_folder, tmp_path / "ixi", work=tmp_path / "work", sheets=tmp_path)
    assert not (tmp_path / "ixi").exists()
    first = list(done)
    done.clear()
    monkeypatch.setattr(ixi, "prepare_case", lambda scans, case, *rest: done.append(case) or whole(scans, case, *rest))
    prepare.run(PREPARATION, DATA, "ixi", raw_folder, tmp_path / "ixi", work=tmp_path / "work", sheets=tmp_path)
    assert len(first) == len(done) == 2
    assert not set(first) & set(done)
    assert contents(tmp_path / "ixi") == contents(prepared)


def test_a_kill_while_the_output_is_made_loses_nothing(
    prepared: Path, raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases go into the output under second names: what a kill leaves of it is no output, and no case is lost."""
    monkeypatch.setattr(prepare, "sheet_png", lambda dataset: b"sheet")  # drawn a dozen times, it would take long
    sheets = tmp_path / "sheets"

    def stage() -> None:
        prepare.run(PREPARATION, DATA, "ixi", raw_folder, tmp_path / "ixi", work=tmp_path / "work", sheets=sheets)

    def finished() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in tmp_path.glob("work/ixi/*/cases/*/*.nii")}

    stage()
    before, kills = finished(), 0
    for step in range(1, 100, 8):
        shutil.rmtree(tmp_path / "ixi", ignore_errors=True)
        kills += kill_in_child(stage, step)
        assert not (tmp_path / "ixi").exists() or contents(tmp_path / "ixi") == contents(prepared)
        assert finished() == before
    assert kills > 3
    stage()
    assert contents(tmp_path / "ixi") == contents(prepared)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ixi", "sheets", "work"]
    assert [path.name for path in sheets.iterdir()] == ["ixi.png"]


def test_a_kill_leaves_no_raw_data_or_all(raw_folder: Path, tmp_path: Path) -> None:
    def stage() -> None:
        raw.run(SOURCE, "ixi", tmp_path / "ixi")

    assert kill_in_child(stage, 2)
    assert not (tmp_path / "ixi").exists()
    stage()
    assert contents(tmp_path / "ixi") == contents(raw_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["ixi"]


def test_own_splits(prepared: Path, raw_folder: Path, tmp_path: Path) -> None:
    a, b = read_json(raw_folder / "splits.json")["train"][:2]
    c = read_json(raw_folder / "splits.json")["test"][0]
    lists = {"train": [a.split("-")[0]], "validate": [b], "test": [c]}
    prepare.run(
        {**PREPARATION, "splits": lists},
        DATA,
        "ixi",
        raw_folder,
        tmp_path / "a",
        work=tmp_path / "work",
        sheets=tmp_path,
    )
    dataset = PreparedDataset.open(tmp_path / "a")
    assert dataset.info.splits == {"train": (a,), "validate": (b,), "test": (c,)}
    # A case does not depend on which others there are.
    assert contents(tmp_path / "a" / "cases" / a) == contents(prepared / "cases" / a)


def test_fractions(raw_folder: Path, tmp_path: Path) -> None:
    fractions = {"validate": 0.25, "test": 0.25, "seed": 3}
    prepare.run(
        {**PREPARATION, "splits": fractions},
        DATA,
        "ixi",
        raw_folder,
        tmp_path / "a",
        work=tmp_path / "work",
        sheets=tmp_path,
    )
    splits = PreparedDataset.open(tmp_path / "a").info.splits
    assert [len(splits[name]) for name in ("train", "validate", "test")] == [2, 1, 1]
    with pytest.raises(UserError, match="smaller fractions"):
        wrong = {**PREPARATION, "splits": {"validate": 0.5, "test": 0.5}}
        prepare.run(wrong, DATA, "ixi", raw_folder, tmp_path / "b", work=tmp_path / "work", sheets=tmp_path)


def test_a_split_without_a_usable_case_is_an_error(raw_folder: Path, tmp_path: Path) -> None:
    splits = read_json(raw_folder / "splits.json")
    lists = {"train": splits["test"], "validate": [splits["train"][-1]], "test": splits["validate"]}
    with pytest.raises(UserError, match="no case of split 'validate' can be used .*no PD scan"):
        prepare.run(
            {**PREPARATION, "splits": lists},
            DATA,
            "ixi",
            raw_folder,
            tmp_path / "a",
            work=tmp_path / "work",
            sheets=tmp_path,
        )
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"deformation": {"smoothing": 10}}, "deformation.smoothing"),
        ({"seed": -1}, "seed"),
        ({"bias": True}, "bias"),
    ],
)
def test_wrong_preparation(raw_folder: Path, tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare.run(wrong, DATA, "ixi", raw_folder, tmp_path / "a", work=tmp_path / "work", sheets=tmp_path)


# --- raw


def test_raw_is_repeatable(raw_folder: Path, tmp_path: Path) -> None:
    raw.run(SOURCE, "ixi", tmp_path / "ixi", jobs=2)
    assert contents(tmp_path / "ixi") == contents(raw_folder)


def test_archives_of_the_user(prepared: Path, raw_folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for modality in ixi.MODALITIES:
        shutil.copy(raw_folder / f"IXI-{modality}.tar", mine)
    raw.run({"kind": "path", "path": str(mine)}, "ixi", tmp_path / "raw")
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["source.json"]  # nothing is copied
    with pytest.raises(UserError, match=r"preparation\.splits: null"):
        prepare.run(
            PREPARATION, DATA, "ixi", tmp_path / "raw", tmp_path / "out", work=tmp_path / "work", sheets=tmp_path
        )
    splits = {split: list(cases) for split, cases in PreparedDataset.open(prepared).info.splits.items()}
    own = {**PREPARATION, "splits": splits}
    prepare.run(own, DATA, "ixi", tmp_path / "raw", tmp_path / "out", work=tmp_path / "work", sheets=tmp_path)
    assert contents(tmp_path / "out" / "cases") == contents(prepared / "cases")


@pytest.mark.parametrize(
    "source, message",
    [
        ({"kind": "phantom", "cases": {"train": 0, "validate": 1, "test": 1}}, "cases"),
        ({"kind": "phantom", "sead": 1}, "sead"),
        ({"kind": "disk"}, "found 'disk', expected 'phantom' or 'path' or 'download'"),
        ({"kind": "path", "path": "nowhere"}, "nowhere not found"),
    ],
)
def test_wrong_source(tmp_path: Path, source: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        raw.run(source, "ixi", tmp_path / "ixi")
    assert message in str(error.value)
    assert not (tmp_path / "ixi").exists()


def test_unknown_dataset(tmp_path: Path) -> None:
    known = "cermep, coco, folder, ixi, staining"
    with pytest.raises(UserError, match=rf"datasets\.mri\.layout: found 'mri', expected one of: {known}"):
        raw.run(SOURCE, "mri", tmp_path / "mri")
