"""Raw archives, splits and prepared datasets."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from wrong_inputs.entry import Arrange, Wrong, nothing, together
from wrong_inputs.workplace import (
    EXPERIMENT,
    PREPARED,
    REMOVED,
    SHAPE,
    change,
    change_json,
    image,
    remove,
    single,
    text,
    truncate,
    values,
)

RAW, PREPARE, TRAIN = "raw ixi --jobs 1", "prepare ixi --jobs 1", f"train {EXPERIMENT}"
CASE = f"{PREPARED}/cases/a"
DATASET = f"{PREPARED}/dataset.json"
NAMES = ("IXI001-Guys-0001", "IXI002-Guys-0002", "IXI003-Guys-0003")
ONE_EACH = {split: [name] for split, name in zip(("train", "validate", "test"), NAMES, strict=True)}


def archives(members: Iterable[str] = (), scan: bytes | None = None) -> Arrange:
    """Three archives of tiny scans in scans/, and the parameters that point there; the T2 archive holds ``members``."""

    def arrange(folder: Path) -> None:
        (folder / "scans").mkdir()
        content = (
            scan if scan is not None else nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)).to_bytes()
        )
        for modality in ("T1", "T2", "PD"):
            own = [f"{name}-{modality}.nii" for name in NAMES]
            names = list(members) or own if modality == "T2" else own
            with tarfile.open(folder / f"scans/IXI-{modality}.tar", "w") as archive:
                for name in names:
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        change("sources/ixi", {"kind": "path", "path": "scans"})(folder)

    return arrange


def located(folder: Path) -> None:
    """What the stage raw says of those archives."""
    archives = {modality: f"../../../scans/IXI-{modality}.tar" for modality in ("T1", "T2", "PD")}
    (folder / "data/raw/ixi").mkdir(parents=True)
    source = {"layout": "ixi", "kind": "path", "archives": archives, "source": {"kind": "path", "path": "scans"}}
    (folder / "data/raw/ixi/source.json").write_text(json.dumps(source))
    change("datasets/ixi/preparation/splits", ONE_EACH)(folder)


def _raw(name: str, what: str, words: tuple[str, ...], *steps: Arrange) -> Wrong:
    return Wrong(name, what, RAW, words, together(*steps))


def _prepare(name: str, what: str, words: tuple[str, ...], *steps: Arrange, pending: str = "") -> Wrong:
    return Wrong(name, what, PREPARE, words, together(archives(), located, *steps), pending=pending)


def _train(name: str, what: str, words: tuple[str, ...], *steps: Arrange, **more: Any) -> Wrong:
    more = {"database": True, "records": ("mlflow.db",)} | more
    return Wrong(name, what, TRAIN, words, together(*steps), **more)


def _link_member(folder: Path) -> None:
    member = tarfile.TarInfo(f"{NAMES[0]}-T2.nii")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(folder / "scans/IXI-T2.tar", "w") as archive:
        archive.addfile(member)


SPLITS = "datasets/ixi/preparation/splits"

ENTRIES = (
    # sources and archives
    _raw(
        "source kind",
        "an unknown kind of source",
        ("sources.ixi.kind", "'disk'", "'phantom'", "'path'"),
        change("sources/ixi/kind", "disk"),
    ),
    _raw(
        "source key",
        "an unknown key of a source",
        ("sources.ixi", "sed", "no such key", "seed"),
        change("sources/ixi", {"kind": "phantom", "sed": 1}),
    ),
    _raw(
        "source no mapping",
        "a source that is no mapping",
        ("sources.ixi", "'phantom'", "mapping"),
        change("sources/ixi", "phantom"),
    ),
    _raw(
        "source path",
        "a source without its path",
        ("sources.ixi", "path", "missing"),
        change("sources/ixi", {"kind": "path"}),
    ),
    _raw(
        "source absent",
        "a source whose folder does not exist",
        ("sources.ixi.path", "nowhere", "check the path"),
        change("sources/ixi", {"kind": "path", "path": "nowhere"}),
    ),
    _raw(
        "archive absent",
        "an archive is absent",
        ("sources.ixi.path", "IXI-PD.tar", "check"),
        archives(),
        remove("scans/IXI-PD.tar"),
    ),
    _raw(
        "archive empty",
        "an empty archive file",
        ("scans/IXI-T2.tar", "neither tar nor zip", "download"),
        archives(),
        text("scans/IXI-T2.tar", ""),
    ),
    _raw(
        "archive truncated",
        "a truncated archive",
        ("scans/IXI-T2.tar", "damaged", "download"),
        archives(),
        truncate("scans/IXI-T2.tar", 0.25),
    ),
    _raw(
        "archive truncated between",
        "an archive truncated between two files",
        ("scans/IXI-T2.tar", "end mark", "download"),
        archives(),
        truncate("scans/IXI-T2.tar", 0.3),
    ),
    _raw(
        "archive text",
        "text named .tar",
        ("scans/IXI-T2.tar", "neither tar nor zip", "download"),
        archives(),
        text("scans/IXI-T2.tar"),
    ),
    _raw(
        "archive escape",
        "an archive with a name that leads out of it",
        ("scans/IXI-T2.tar", "outside", "unsafe"),
        archives(("../../IXI001-Guys-0001-T2.nii",)),
    ),
    _raw(
        "archive link", "an archive that holds a link", ("scans/IXI-T2.tar", "link", "unsafe"), archives(), _link_member
    ),
    _raw(
        "archive content",
        "an archive of other things",
        ("scans/IXI-T2.tar", "holds no scan", "T2.nii.gz"),
        archives(("readme.txt",)),
    ),
    Wrong(
        "raw absent", "raw data that were not made yet", PREPARE, ("data/raw/ixi/source.json", "not found", "dvc repro")
    ),
    _prepare(
        "raw damaged",
        "a damaged description of the raw data",
        ("data/raw/ixi/source.json", "not valid JSON"),
        truncate("data/raw/ixi/source.json"),
    ),
    _prepare(
        "raw layout",
        "raw data of another layout",
        ("data/raw/ixi/source.json", "'coco'", "'ixi'"),
        change_json("data/raw/ixi/source.json", "layout", "coco"),
    ),
    _prepare(
        "archives moved", "archives that were moved away", ("IXI-T1.tar", "not found"), remove("scans/IXI-T1.tar")
    ),
    _prepare(
        "scans damaged",
        "archives of scans that cannot be read",
        ("data/raw/ixi", "IXI001-Guys-0001", "cannot be read"),
        remove("scans"),
        archives(scan=b"no scan"),
    ),
    _prepare(
        "preparation key",
        "an unknown key of the preparation",
        ("datasets.ixi.preparation", "biascorrection", "bias_correction"),
        change("datasets/ixi/preparation/biascorrection", True),
    ),
    # splits
    _prepare(
        "splits absent",
        "no splits where the source has none",
        ("datasets.ixi.preparation.splits", "train, validate and test"),
        change(SPLITS, None),
    ),
    _prepare(
        "splits empty",
        "an empty split",
        ("'train'", "no case is listed"),
        change(f"{SPLITS}/train", []),
    ),
    _prepare("splits lack one", "a split is missing", ("splits", "test", "missing"), change(f"{SPLITS}/test", REMOVED)),
    _prepare(
        "splits twice",
        "a case in two splits",
        ("splits", NAMES[0], "'train'", "'test'", "take one out"),
        change(f"{SPLITS}/test", [NAMES[0]]),
    ),
    _prepare(
        "splits unknown",
        "a split of a case that does not exist",
        ("'train'", "IXI999", "scan", "splits"),
        change(f"{SPLITS}/train", ["IXI999"]),
    ),
    _prepare(
        "splits fractions",
        "fractions that leave nothing to train on",
        ("splits", "3 cases", "smaller fractions"),
        change(SPLITS, {"validate": 0.5, "test": 0.5}),
    ),
    _prepare(
        "splits two cases",
        "fractions of two cases",
        ("splits", "2 cases", "leave 0 to train", "at least 3", "CSV table"),
        remove("scans"),
        archives([f"{name}-T2.nii" for name in NAMES[:2]]),
        change(SPLITS, {"validate": 0.2, "test": 0.2}),
    ),
    _prepare(
        "splits short name",
        "a case in two splits, once by its short name",
        ("splits", NAMES[0], "'IXI001'", "'train'", "'test'", "take one out"),
        change(f"{SPLITS}/test", ["IXI001"]),
    ),
    # prepared datasets
    _train("prepared absent", "no prepared dataset", (DATASET, "not found", "dvc repro"), remove("data"), records=()),
    _train("prepared damaged", "a truncated dataset.json", (DATASET, "not valid JSON"), truncate(DATASET), records=()),
    _train(
        "prepared changed",
        "an unknown key in dataset.json",
        (DATASET, "colour", "prepare"),
        change_json(DATASET, "colour", "red"),
        records=(),
    ),
    _train(
        "prepared case twice",
        "dataset.json names a case twice",
        (DATASET, "splits", "'a'", "one split"),
        change_json(DATASET, "splits/test", ["a"]),
        records=(),
    ),
    _train(
        "prepared elsewhere",
        "a dataset prepared at another voxel size",
        (PREPARED, "voxel_size", "(2.0, 2.0, 2.0)", "(3.0, 3.0, 3.0)"),
        change("scales/demo/ixi/data/voxel_size", [3, 3, 3]),
    ),
    _train(
        "case file absent",
        "a file of a case is missing",
        (f"{CASE}/label.nii", "not found", "prepare"),
        remove(f"{CASE}/label.nii"),
        records=(),
    ),
    _train(
        "case file truncated",
        "a truncated file of a case",
        (f"{CASE}/label.nii", "Expected 6912 bytes", "prepare"),
        truncate(f"{CASE}/label.nii"),
    ),
    _train(
        "case file empty",
        "an empty file of a case",
        (f"{CASE}/input.nii", "NIfTI", "prepare"),
        text(f"{CASE}/input.nii", ""),
    ),
    _train(
        "case file shape",
        "a label of another shape than its input",
        (f"{CASE}/label.nii", "(12, 12, 6)", "(12, 12, 12)"),
        image(f"{CASE}/label.nii", lambda: values()[..., :6]),
    ),
    _train(
        "case file type",
        "a case of 16-bit numbers",
        (f"{CASE}/input.nii", "int16", "float32"),
        image(f"{CASE}/input.nii", lambda: values().astype(np.int16)),
    ),
    _train(
        "case file NaN",
        "a case with NaN",
        ("ixi, case a: input", "not finite", "prepare"),
        lambda folder: [image(f"{PREPARED}/cases/{case}/input.nii", single(700, np.nan))(folder) for case in "ab"],
    ),
    _train(
        "case mask values",
        "masks of cases with other values than 0 and 1",
        ("ixi, case", "label_mask", "0 and 1", "prepare"),
        lambda folder: [
            image(f"{PREPARED}/cases/{case}/label_mask.nii", lambda: np.full(SHAPE, 255, np.uint8))(folder)
            for case in "ab"
        ],
    ),
    _train(
        "registration missing",
        "a method without the widths of one of its networks",
        ("features", "expected also rigid_reg"),
        change("scales/demo/ixi/training/features/rigid_reg", None),
    ),
    Wrong(
        "NaN in a loading process",
        "a case with NaN, found by a process that loads patches",
        f"{TRAIN} --workers 1",
        ("ixi, case", "input", "not finite", "prepare"),
        lambda folder: [image(f"{PREPARED}/cases/{case}/input.nii", single(700, np.nan))(folder) for case in "ab"],
        database=True,
        records=("mlflow.db",),
    ),
    Wrong(
        "precision", "an unknown precision", f"{TRAIN} --precision half", ("--precision", "half", "bf16"), database=True
    ),
    # evaluation
    Wrong(
        "no predictions",
        "evaluation before prediction",
        f"evaluate {EXPERIMENT}",
        (f"predictions/{EXPERIMENT}/validate/c.nii", "not found", "dvc repro"),
        nothing,
    ),
    Wrong(
        "damaged prediction",
        "a truncated prediction",
        f"evaluate {EXPERIMENT}",
        (f"predictions/{EXPERIMENT}/validate/c.nii", "cannot be read", "predict"),
        text(f"predictions/{EXPERIMENT}/validate/c.nii"),
    ),
    Wrong(
        "evaluation split",
        "an unknown split to evaluate",
        f"evaluate {EXPERIMENT}",
        ("evaluation.split", "'all'", "'test'"),
        change("evaluation/split", "all"),
    ),
    Wrong(
        "not evaluated",
        "registration before evaluation",
        f"register {EXPERIMENT}",
        (f"reports/metrics/{EXPERIMENT}.json", "not found", "dvc repro"),
        database=True,
        records=("mlflow.db",),
    ),
)
