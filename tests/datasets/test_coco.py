"""COCO: the archive's pictures, what is wrong with some of them, and where the archive comes from."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from equisynth.config import Data, Intensity
from equisynth.datasets import coco, download
from equisynth.datasets.archives import CaseSkipped
from equisynth.datasets.coco import CocoArchives, CocoDownload, CocoPath, CocoPreparation
from equisynth.datasets.photographs import PhotographSource
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case
from equisynth.datasets.splits import split_cases
from equisynth.errors import UserError

COLOURS = Intensity(
    modality="photograph", channels=3, mean=(110.0,) * 3, std=(70.0,) * 3, signal_range=255, unit="8 bit"
)
DATA = Data(n_dims=2, voxel_size=(1.0, 1.0), input=COLOURS, label=COLOURS, licence="CC BY 4.0")


def jpeg(values: np.ndarray, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, "JPEG", quality=95, **options)
    return content.getvalue()


def picture(shape: tuple[int, ...] = (20, 30, 3)) -> np.ndarray:
    rows = np.arange(shape[0])[:, None] * 10
    return np.broadcast_to((rows if len(shape) == 2 else rows[..., None]), shape).astype(np.uint8)


MEMBERS = {
    "unlabeled2017/000000000008.jpg": jpeg(picture()),
    "unlabeled2017/000000000031.jpg": jpeg(picture((24, 16))),
    "unlabeled2017/000000000054.jpg": jpeg(picture())[:-300],
    "unlabeled2017/000000000077.jpg": b"GIF89a",
    "unlabeled2017/000000000100.jpg": jpeg(picture()),
    "more/000000000100.jpg": jpeg(picture()),
    "unlabeled2017/readme.txt": b"",
    "__MACOSX/unlabeled2017/._000000000008.jpg": b"",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "unlabeled2017.zip", MEMBERS)


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def test_pictures_of_the_archive(archive: Path) -> None:
    with CocoArchives({"pictures": archive}) as opened:
        assert opened.cases() == [f"{n:012d}" for n in (8, 31, 54, 77)]
        assert opened.incomplete_cases() == [f"{100:012d}"]
        colour, grey = opened.read("000000000008"), opened.read("000000000031")
    assert colour.shape == (20, 30, 3)
    assert np.abs(colour.astype(int) - picture()).max() < 8  # rows stay rows
    assert grey.shape == (24, 16, 3)
    assert (grey == grey[..., :1]).all()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("000000000054", r"unlabeled2017/000000000054\.jpg: is no whole JPEG"),
        ("000000000077", r"unlabeled2017/000000000077\.jpg: is no whole JPEG"),
        ("000000000100", r"2017\.zip: holds it 2 times \(more/000000000100\.jpg, unlabeled2017/000000000100\.jpg\)"),
        ("000000000009", r"no 000000000009\.jpg in the archive"),
    ],
)
def test_wrong_pictures_are_skipped_by_name(archive: Path, case: str, reason: str) -> None:
    with CocoArchives({"pictures": archive}) as opened, pytest.raises(CaseSkipped, match=reason):
        opened.read(case)


def test_a_damaged_member_is_skipped_and_others_are_kept(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[content.index(b"\xff\xd8") + 40] ^= 0xFF  # in the first picture: its checksum is wrong now
    archive.write_bytes(content)
    with CocoArchives({"pictures": archive}) as opened:
        with pytest.raises(CaseSkipped, match="000000000008.*cannot be unpacked"):
            opened.read("000000000008")
        assert opened.read("000000000031").shape == (24, 16, 3)


@pytest.mark.parametrize("limit", ["PIXEL_LIMIT", "MEMBER_LIMIT"])
def test_a_picture_that_is_too_large_is_skipped(archive: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(coco, limit, 500)
    with (
        CocoArchives({"pictures": archive}) as opened,
        pytest.raises(CaseSkipped, match="600|20 x 30|30 x 20|larger than 500"),
    ):
        opened.read("000000000008")


def test_a_picture_longer_than_its_file_may_be_is_skipped() -> None:
    with pytest.raises(CaseSkipped, match=r"long\.jpg: 32768 x 8 pixels, expected sides up to 32767"):
        coco.decode(jpeg(picture((8, 32_768))), "long.jpg")


@pytest.mark.parametrize("given", ["8", "000000000008", "000000000008.jpg"])
def test_full_names(archive: Path, given: str) -> None:
    with CocoArchives({"pictures": archive}) as opened:
        assert opened.full_name(given) == "000000000008"
        assert opened.full_name("cat") == "cat"


def test_no_pictures(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "other.zip", {"a.txt": b""})
    with pytest.raises(UserError, match=r"other\.zip: holds no picture named <12 digits>\.jpg \(1 other"):
        CocoArchives({"pictures": path}).__enter__()


def test_prepared_case_is_the_picture(archive: Path, tmp_path: Path) -> None:
    with CocoArchives({"pictures": archive}) as opened:
        raw = opened.read("000000000031")
    arrays, facts = coco.prepare_case(raw, "000000000031", CocoPreparation(), DATA)
    assert list(arrays) == ["input"]
    assert facts == {"size": [24, 16], "grey": True}
    write_case(tmp_path, "000000000031", arrays, np.eye(4), n_dims=2)
    splits = {"train": ("000000000031",), "validate": ("v",), "test": ("t",)}
    info = DatasetInfo(
        **DATA.model_dump(), name="coco", splits=splits, preparation=coco.constants(CocoPreparation(seed=5))
    )
    stored = PreparedDataset(tmp_path, info).image("000000000031", "input")
    assert stored.dtype == np.uint8
    assert np.array_equal(stored, raw)
    assert info.preparation["seed"] == 5


# --- sources


def test_phantoms_go_through_the_same_door(tmp_path: Path) -> None:
    source = PhotographSource(cases={"train": 3, "validate": 1, "test": 1}, longer_side=40)
    with CocoArchives(coco.make_phantoms(source, tmp_path)) as opened:
        listed = json.loads((tmp_path / "splits.json").read_text())
        settings = CocoPreparation.model_validate({"splits": listed})
        assert settings.splits is not None
        assert sorted(sum(split_cases(settings.splits, opened.cases()).values(), [])) == opened.cases()
        assert {max(opened.read(case).shape) for case in opened.cases()} == {40}


def test_locates_an_archive_or_a_folder(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "unlabeled2017"
    folder.mkdir(parents=True)
    (folder / "000000000008.jpg").write_bytes(MEMBERS["unlabeled2017/000000000008.jpg"])
    for path, found in [(archive, archive), (tmp_path, archive), (folder, folder), (folder.parent, folder.parent)]:
        assert coco.locate(CocoPath(kind="path", path=path)) == {"pictures": found}
    with pytest.raises(UserError, match="nowhere: not found"):
        coco.locate(CocoPath(kind="path", path=tmp_path / "nowhere"))


def test_download_needs_the_licence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sources\.coco\.licence_accepted: found false.*cocodataset\.org/#termsofuse"):
        coco.download(CocoDownload(kind="download"), tmp_path)


def test_published_lists_are_checked() -> None:
    settings = CocoDownload(kind="download")
    assert settings.pictures.url.endswith("/unlabeled2017.zip")
    assert settings.splits is not None
    assert set(settings.splits) == {"train", "validate", "test"}
    assert all(file.sha256 and f"{split}_cases.json" in file.url for split, file in settings.splits.items())


def test_download_of_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"train": [8, "000000000031.jpg"], "validate": ["54"], "test": {"not": "a list"}}

    def fetch(file: download.RemoteFile, folder: Path) -> Path:
        path = folder / Path(file.url).name
        path.write_text(json.dumps(content[path.stem.removesuffix("_cases")]))
        return path

    monkeypatch.setattr(download, "fetch", fetch)
    with pytest.raises(UserError, match=r"test_cases\.json: is no JSON list"):
        coco.download_splits(CocoDownload(kind="download"), tmp_path)
    content["test"] = []  # type: ignore[assignment]
    lists = coco.download_splits(CocoDownload(kind="download"), tmp_path)
    assert lists == {"train": ["8", "000000000031.jpg"], "validate": ["54"], "test": []}
    assert coco.download_splits(CocoDownload(kind="download", splits=None), tmp_path) is None
