"""What can be wrong in raw data, layout by layout: one clear line that names the file, and all good cases are kept.

`EXPECTED` is the table: every damage in every layout is skipped (that case alone), refused (the archive, before
anything is made of it), or cannot be, for the reason given. Scans are a few voxels small, and what takes long
(registration, white matter) is left out, for here it is reading that counts.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from equisynth.datasets import cermep, ixi, staining
from equisynth.datasets.prepared import PreparedDataset
from equisynth.errors import UserError
from equisynth.stages import prepare, raw
from light_preparation import lighten
from own_data import data

SHAPE = (8, 9, 7)
DAMAGED = 1
"""Which case is damaged: the second one that trains."""


@dataclass(frozen=True)
class File:
    """One file of a case, in an archive or, where ``archive`` is empty, in a folder."""

    archive: str
    name: str
    content: bytes


# --- contents


def values(kind: str) -> np.ndarray:
    """(*S) float32."""
    content = np.random.RandomState(0).rand(*SHAPE).astype(np.float32) + 1
    if kind == "zero":
        content[:] = 0
    if kind == "NaN":
        content[2, 3, 4] = np.nan
    return content


def volume(kind: str) -> bytes:
    return gzip.compress(nibabel.Nifti1Image(values(kind), np.eye(4)).to_bytes(), mtime=0)


def slide(kind: str) -> bytes:
    picture = np.random.RandomState(0).randint(1, 256, (64, 64, 3)).astype(np.float32 if kind == "NaN" else np.uint8)
    if kind == "zero":
        picture[:] = 0
    if kind == "NaN":
        picture[3] = np.nan
    file = io.BytesIO()
    tifffile.imwrite(file, picture, photometric="rgb", tile=(32, 32), compression="adobe_deflate")
    return file.getvalue()


def photograph(kind: str) -> bytes:
    picture = np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture * (kind != "zero")).save(file, "JPEG", quality=95)
    return file.getvalue()


# --- layouts


@dataclass(frozen=True)
class Kind:
    """Raw data of a layout: names of its four cases (two to train, one to validate, one to test) and their files."""

    layout: str
    cases: tuple[str, str, str, str]
    archives: tuple[str, ...]
    make: Callable[[str], bytes]
    names: Callable[[str], list[tuple[str, str]]]  # of a case: (archive, name in it)
    path: str  # of the source, below the folder of raw data

    def files(self) -> list[list[File]]:
        """Per case."""
        return [[File(*place, self.make("good")) for place in self.names(case)] for case in self.cases]

    @property
    def splits(self) -> dict[str, list[str]]:
        first, second, third, fourth = self.cases
        return {"train": [first, second], "validate": [third], "test": [fourth]}


COREGISTRATION = cermep.MEMBERS
FOLDER = ("good", "hurt", "valid", "tested")
KINDS = {
    "ixi": Kind(
        "ixi", tuple(f"IXI{n:03d}-Guys-{n:04d}" for n in (1, 2, 3, 4)), tuple(f"IXI-{m}.tar" for m in ixi.MODALITIES),
        volume, lambda case: [(f"IXI-{m}.tar", f"{case}-{m}.nii.gz") for m in ixi.MODALITIES], "",
    ),
    "coco": Kind(
        "coco", tuple(f"{n:012d}" for n in (1, 2, 3, 4)), ("unlabeled2017.zip",), photograph,
        lambda case: [("unlabeled2017.zip", f"unlabeled2017/{case}.jpg")], "unlabeled2017.zip",
    ),
    "staining": Kind(
        "staining", tuple(f"sample_{n}" for n in (1, 2, 3, 4)), (staining.ARCHIVE,), slide,
        lambda case: [(staining.ARCHIVE, f"data/{case}/{case}_{kind}.tif") for kind in staining.KINDS],
        staining.ARCHIVE,
    ),
    "cermep": Kind(
        "cermep", tuple(f"sub-{n:04d}" for n in (1, 2, 3, 4)), (cermep.ARCHIVE,), volume,
        lambda case: [
            (cermep.ARCHIVE, f"{COREGISTRATION}/{case}/{case}_space-pet_{m}.nii.gz") for m in cermep.MODALITIES
        ],
        cermep.ARCHIVE,
    ),
    "folder": Kind(
        "folder", FOLDER, (), volume,
        lambda case: [("", f"{case}/{case}_{role}.nii.gz") for role in ("input", "label", "label_mask")], "",
    ),
    "table": Kind(
        "folder", FOLDER, (), volume,
        lambda case: [("", f"{case}_{role}.nii.gz") for role in ("input", "label", "label_mask")], "cases.csv",
    ),
}  # fmt: skip


# --- damages: what becomes of the files of one case


def changed(content: Callable[[File, Kind], bytes]) -> Callable[[list[File], Kind], Iterator[tuple[str, list[File]]]]:
    """Each file of the case in turn, with the others as they are; the name of the file that is damaged."""

    def damage(files: list[File], kind: Kind) -> Iterator[tuple[str, list[File]]]:
        for number, file in enumerate(files):
            if file.name.endswith("_mask.nii.gz"):  # of own data: a row of its own
                continue
            yield file.name, [*files[:number], replace(file, content=content(file, kind)), *files[number + 1 :]]

    return damage


def added(name: Callable[[str], str]) -> Callable[[list[File], Kind], Iterator[tuple[str, list[File]]]]:
    """A second file beside each one in turn."""

    def damage(files: list[File], kind: Kind) -> Iterator[tuple[str, list[File]]]:
        for file in files:
            yield file.name, [*files, replace(file, name=name(file.name))]

    return damage


def hurt(file: File, kind: Kind) -> bytes:
    """Twenty zeros in the middle of what is compressed; of a photograph, which has no checksum, half."""
    if kind.layout == "coco":
        return file.content[: len(file.content) // 2]
    content = bytearray(file.content)
    content[len(content) // 2 : len(content) // 2 + 20] = bytes(20)
    return bytes(content)


def without_mask(files: list[File], kind: Kind) -> Iterator[tuple[str, list[File]]]:
    (mask,) = (file for file in files if file.name.endswith(("_mask.nii.gz", "_mask.tif")))
    yield mask.name, [file for file in files if file is not mask]


def renamed(old: str, new: str) -> Callable[[str], str]:
    return lambda name: re.sub(rf"{old}(?=[^/]*$)", new, name)


def in_another_case(files: list[File], kind: Kind) -> Iterator[tuple[str, list[File]]]:
    """Only upper and lower case of the case's name, or of the ending, are other."""
    spelled = {"ixi": "IXI", "coco": "jpg", "staining": "sample", "folder": "hurt"}[kind.layout]
    others = [replace(file, name=file.name.replace(spelled, spelled.swapcase())) for file in files]
    yield files[0].name, [*files, *others]


def twice(files: list[File], kind: Kind) -> Iterator[tuple[str, list[File]]]:
    yield files[0].name, files * 2


DAMAGES: dict[str, Callable[[list[File], Kind], Iterator[tuple[str, list[File]]]]] = {
    "corrupt gzip member": changed(hurt),
    "missing mask": without_mask,
    "all-zero volume": changed(lambda file, kind: kind.make("zero")),
    "NaN voxels": changed(lambda file, kind: kind.make("NaN")),
    "one name twice in a tar": added(lambda name: name),
    "one name twice in a zip": added(lambda name: name),
    "one name in two folders": added(lambda name: f"again/{name}"),
    "one name with two endings": added(renamed(r"\.gz|f$|\.jpg", "")),
    "names that differ in upper and lower case": in_another_case,
    "one name in two rows": twice,
}
PACKED = ("truncated archive", "zip with a path escape")  # damages of whole archives


# --- what is expected


@dataclass(frozen=True)
class Skipped:
    """This case alone; the others are as they would be without the damage. NAME is that of the damaged file."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """The archive; nothing is made of it, and what was made before stays. ARCHIVE is its file's name."""

    reason: str


@dataclass(frozen=True)
class Never:
    """This layout cannot have the damage."""

    because: str


UNSAFE = Refused(r"ARCHIVE: member '\.\./escaped\.txt' points outside of the archive; the file is unsafe")
CUT = Refused(r"ARCHIVE: damaged")
TWICE = Skipped(r"ARCHIVE: holds it 2 times \(NAME, all of one name\); keep one")
APART = Skipped(r"ARCHIVE: holds it 2 times \(.*NAME.*\); keep one")
NO_ARCHIVE = Never("own data lie in no archive; files that are cut off: corrupt gzip member")
NO_MASK = Never("these data come without masks")
ONE_FILE = Never("a folder holds no two files of one name")
IN_ROWS = Never("a table names its files: two rows")
NO_ROWS = Never("no table")
ZERO, NAN = Skipped(r"NAME: every value is 0"), Skipped(r"NAME: holds values that are not finite")
HURT = Skipped(r"NAME: (cannot be read|cannot be unpacked|is truncated)")
OWN_NAN = Skipped(r"NAME: 1 of 504 values are not finite \(NaN or infinity\)")
ALIKE = Skipped(r"cases 'HURT' and 'hurt' differ in upper and lower case only; rename one")

EXPECTED: dict[str, dict[str, Skipped | Refused | Never]] = {
    "truncated archive": {
        "ixi": CUT, "coco": CUT, "staining": CUT, "cermep": CUT, "folder": NO_ARCHIVE, "table": NO_ARCHIVE,
    },
    "zip with a path escape": {
        "ixi": UNSAFE, "coco": UNSAFE, "staining": UNSAFE, "cermep": UNSAFE, "folder": NO_ARCHIVE, "table": NO_ARCHIVE,
    },
    "corrupt gzip member": {
        "ixi": HURT, "coco": Skipped(r"NAME: is no whole JPEG picture"), "cermep": HURT, "folder": HURT, "table": HURT,
        "staining": Skipped(r"NAME: cannot be read \(.*\); the file is damaged, get it again"),
    },
    "missing mask": {
        "ixi": NO_MASK, "coco": NO_MASK, "staining": Skipped(r"no mask slide in the archive"),
        "cermep": Never("masks of invalid regions are optional"), "folder": Never("masks are optional: none is valid"),
        "table": Skipped(r"NAME: not found"),
    },
    "all-zero volume": {
        "ixi": ZERO, "coco": Skipped(r"NAME: every pixel is \(0, 0, 0\)"), "cermep": ZERO, "folder": ZERO,
        "table": ZERO, "staining": Skipped(r"NAME: (every pixel is 0|the mask is zero everywhere)"),
    },
    "NaN voxels": {
        "ixi": NAN, "coco": Never("JPEG holds whole numbers"), "cermep": NAN, "folder": OWN_NAN, "table": OWN_NAN,
        "staining": Skipped(r"NAME: holds float32 \(RGB\), expected 8 or 16-bit RGB or grey"),
    },
    "one name twice in a tar": {
        "ixi": TWICE, "coco": TWICE, "staining": TWICE, "cermep": TWICE, "folder": ONE_FILE, "table": IN_ROWS,
    },
    "one name twice in a zip": {
        "ixi": TWICE, "coco": TWICE, "staining": TWICE, "cermep": TWICE, "folder": ONE_FILE, "table": IN_ROWS,
    },
    "one name in two folders": {
        "ixi": APART, "coco": APART, "staining": APART, "cermep": APART,
        "folder": Never("the folder is the case"), "table": IN_ROWS,
    },
    "one name with two endings": {
        "ixi": APART, "coco": Never("one ending, .jpg, and .jpeg as below"), "staining": Never("one ending"),
        "cermep": APART, "folder": Skipped(r"NAME: a second (input|label|label_mask) beside "), "table": IN_ROWS,
    },
    "names that differ in upper and lower case": {
        "ixi": APART, "coco": APART, "staining": APART,
        "cermep": Never("names are sub-<4 digits>; others are not looked at"), "folder": ALIKE, "table": ALIKE,
    },
    "one name in two rows": {
        "ixi": NO_ROWS, "coco": NO_ROWS, "staining": NO_ROWS, "cermep": NO_ROWS, "folder": NO_ROWS,
        "table": Skipped(r"cases\.csv: case 'hurt' stands 2 times; give each row its own name"),
    },
}  # fmt: skip


def test_the_table_is_complete() -> None:
    assert set(EXPECTED) == {*DAMAGES, *PACKED}
    for damage, row in EXPECTED.items():
        assert set(row) == set(KINDS), damage


# --- writing


def write(top: Path, kind: Kind, cases: list[list[File]], as_zip: bool = False, escape: bool = False) -> None:
    """Raw data as the user has them, below ``top``."""
    top.mkdir(parents=True)
    for archive in kind.archives:
        files = [file for case in cases for file in case if file.archive == archive]
        if as_zip or archive.endswith(".zip"):
            if escape:
                files.append(File(archive, "../escaped.txt", b"x"))
            with zipfile.ZipFile(top / archive, "w") as packed, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of names that stand twice: they are meant to
                for file in files:
                    packed.writestr(file.name, file.content)
        else:
            with tarfile.open(top / archive, "w:gz" if archive.endswith(".gz") else "w") as tar:
                for file in files:
                    member = tarfile.TarInfo(file.name)
                    member.size = len(file.content)
                    tar.addfile(member, io.BytesIO(file.content))
    if not kind.archives:
        for file in (file for case in cases for file in case):
            (top / file.name).parent.mkdir(parents=True, exist_ok=True)
            content = gzip.decompress(file.content) if file.name.endswith(".nii") else file.content
            (top / file.name).write_bytes(content)
    if kind.path.endswith(".csv"):
        write_table(top / kind.path, [file.name for case in cases for file in case])


def write_table(path: Path, names: list[str]) -> None:
    """A row for each case, and one more for a case whose files are named again."""
    rows, seen = [], set()
    for name in (name for name in names if name.endswith("_input.nii.gz")):
        case = name.removesuffix("_input.nii.gz")
        rows.append(",".join([case, *(f"{case}_{role}.nii.gz" for role in ("input", "label", "label_mask"))]))
        seen.add(case)
    path.write_text("\n".join(["case,input,label,label_mask", *rows]) + "\n", encoding="utf-8")


# --- running


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    lighten(monkeypatch.setattr)


def run_raw(kind: Kind, folder: Path) -> None:
    source = {"kind": "path", "path": str(folder / "scans" / kind.path)}
    raw.run(source, "mine", folder / "raw", layout_name=kind.layout)


def stage_arguments(kind: Kind, folder: Path) -> dict[str, Any]:
    """Of the stage ``prepare``."""
    flat = kind.layout in ("coco", "staining")
    return {
        "preparation": {"splits": kind.splits},
        "data": data(2, 3) if flat else data(3, voxel_size=(1.0, 1.0, 1.0)),
        "name": "mine",
        "raw": folder / "raw",
        "out": folder / "out",
        "work": folder / "work",
        "sheets": folder,
        "layout_name": kind.layout,
    }


def run_prepare(kind: Kind, folder: Path) -> dict[str, bytes]:
    """The files of all prepared cases."""
    prepare.run(**stage_arguments(kind, folder))
    PreparedDataset.open(folder / "out").verify()
    return made(folder)


def made(folder: Path) -> dict[str, bytes]:
    top = folder / "out" / "cases"
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in sorted(top.rglob("*.*"))}


def pattern(expected: Skipped | Refused, kind: Kind, name: str) -> str:
    archive = "|".join(re.escape(archive) for archive in kind.archives)
    text = expected.reason.replace("ARCHIVE", rf"({archive})")
    # Slides are unpacked before they are read, under their own names.
    return text.replace("NAME", f"({re.escape(name)}|{re.escape(Path(name).name)})")


CELLS = [
    pytest.param(damage, layout, id=f"{damage}-{layout}")
    for damage, row in EXPECTED.items()
    for layout, cell in row.items()
    if not isinstance(cell, Never)
]


@pytest.mark.parametrize("damage, layout", CELLS)
def test_one_line_names_the_file_and_good_cases_are_kept(
    damage: str, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, expected = KINDS[layout], EXPECTED[damage][layout]
    cases = kind.files()
    whole = tmp_path / "whole"
    write(whole / "scans", kind, cases)
    run_raw(kind, whole)
    good = run_prepare(kind, whole)
    assert {Path(name).parts[0] for name in good} == set(kind.cases)
    if isinstance(expected, Refused):
        refused(damage, kind, expected, whole, good)
        return
    for number, (name, files) in enumerate(DAMAGES[damage](cases[DAMAGED], kind)):
        folder = tmp_path / str(number)
        is_zip = damage == "one name twice in a zip"
        as_tar = replace(kind, archives=("pictures.tar",)) if damage.endswith("a tar") and layout == "coco" else kind
        damaged = [*cases[:DAMAGED], files, *cases[DAMAGED + 1 :]]
        if as_tar is not kind:
            as_tar = replace(as_tar, path="pictures.tar")
            damaged = [[replace(file, archive="pictures.tar") for file in case] for case in damaged]
        write(folder / "scans", as_tar, damaged, as_zip=is_zip)
        run_raw(as_tar, folder)
        capsys.readouterr()
        assert isinstance(expected, Skipped)
        found = run_prepare(as_tar, folder)
        lines = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
        assert len(lines) == 1
        assert lines[0].startswith(f"equisynth: skipped {kind.cases[DAMAGED]}: ")
        assert re.search(pattern(expected, as_tar, name), lines[0]), lines[0]
        assert found == {path: content for path, content in good.items() if not path.startswith(kind.cases[DAMAGED])}
        info = PreparedDataset.open(folder / "out").info
        reason = lines[0].split(": ", 2)[2]
        assert [(case.case, case.reason) for case in info.skipped] == [(kind.cases[DAMAGED], reason)]


def refused(damage: str, kind: Kind, expected: Refused, folder: Path, good: dict[str, bytes]) -> None:
    """An archive that is damaged after its cases were prepared; each of the layout's archives in turn."""
    for archive in kind.archives:
        path = folder / "scans" / archive
        before = path.read_bytes()
        if damage == "truncated archive":
            path.write_bytes(before[: int(0.3 * len(before))])
        else:
            scratch = folder / f"scratch-{archive}"
            write(scratch, kind, kind.files(), as_zip=True, escape=True)
            path.write_bytes((scratch / archive).read_bytes())
        for stage in (run_raw, run_prepare):
            with pytest.raises(UserError) as error:
                stage(kind, folder)
            assert re.search(pattern(expected, replace(kind, archives=(archive,)), ""), str(error.value))
            assert "\n" not in str(error.value)
            assert made(folder) == good
        assert not list(folder.rglob("escaped.txt"))
        assert not (folder.parent / "escaped.txt").exists()
        path.write_bytes(before)
        run_raw(kind, folder)
        assert run_prepare(kind, folder) == good


def test_a_case_name_that_leads_elsewhere_is_skipped_and_nothing_is_written_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = KINDS["table"]
    write(tmp_path / "scans", kind, kind.files())
    with (tmp_path / "scans" / kind.path).open("a") as table:
        table.write("../../../escaped,good_input.nii.gz,good_label.nii.gz,\n")
    run_raw(kind, tmp_path)
    arguments = stage_arguments(kind, tmp_path) | {"preparation": {"splits": {"validate": 0.25, "test": 0.25}}}
    prepare.run(**arguments)
    said = capsys.readouterr().err
    assert "skipped ../../../escaped: case name '../../../escaped': expected letters, digits" in said
    assert {Path(name).parts[0] for name in made(tmp_path)} == set(kind.cases)
    assert [path for path in tmp_path.rglob("*escaped*") if "facts" not in path.parts] == []
