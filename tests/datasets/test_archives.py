"""Archives are read member by member and never trusted."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from equisynth.datasets.archives import extract_all, extract_member, open_archive, read_member
from equisynth.errors import UserError

FILES = {"b/two.txt": b"two", "one.txt": b"one" * 1000}


def make_tar(path: Path, mode: str = "w", *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def make_zip(path: Path, **extra: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.mkdir("b")
        for name, content in {**FILES, **extra}.items():
            opened.writestr(name, content)
    return path


def make_folder(path: Path) -> Path:
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture(params=["tar", "tar.gz", "zip", "folder"])
def archive_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "folder":
        return make_folder(tmp_path / "archive")
    path = tmp_path / f"archive.{request.param}"
    return make_zip(path) if request.param == "zip" else make_tar(path, "w:gz" if path.suffix == ".gz" else "w")


def test_reads_and_extracts(archive_path: Path, tmp_path: Path) -> None:
    with open_archive(archive_path) as archive:
        assert archive.names() == ["b/two.txt", "one.txt"]
        assert {name: read_member(archive, name) for name in archive.names()} == FILES
        extract_all(archive, archive.names(), tmp_path / "out")
        extract_member(archive, "one.txt", tmp_path / "elsewhere" / "renamed")
    assert {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.txt")
    } == FILES
    assert (tmp_path / "elsewhere" / "renamed").read_bytes() == FILES["one.txt"]


def test_missing_member(archive_path: Path) -> None:
    with open_archive(archive_path) as archive, pytest.raises(UserError, match=r"three\.txt"):
        read_member(archive, "three.txt")


def test_size_limit_leaves_nothing(archive_path: Path, tmp_path: Path) -> None:
    with open_archive(archive_path) as archive:
        with pytest.raises(UserError, match=r"one\.txt is larger than 100 bytes"):
            read_member(archive, "one.txt", limit=100)
        with pytest.raises(UserError, match="larger"):
            extract_all(archive, archive.names(), tmp_path / "out", limit=100)
    assert not (tmp_path / "out").exists()


def unsafe(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    "member",
    [
        unsafe("../escaped"),
        unsafe("b/../../escaped"),
        unsafe("/escaped"),
        unsafe("C:\\escaped"),
        unsafe("..\\escaped"),
        unsafe("link", tarfile.SYMTYPE, "/etc/passwd"),
        unsafe("hard", tarfile.LNKTYPE, "one.txt"),
        unsafe("device", tarfile.CHRTYPE),
        unsafe("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda member: member.name,
)
def test_unsafe_tar_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    path = make_tar(tmp_path / "bad.tar", "w", member)
    with pytest.raises(UserError, match=r"bad\.tar: member .*unsafe"), open_archive(path):
        pass
    assert os.listdir(tmp_path) == ["bad.tar"]


def test_unsafe_zip_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "bad.zip", **{"../escaped": b"x"})
    with pytest.raises(UserError, match=r"bad\.zip: member '../escaped' points outside"), open_archive(path):
        pass
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as opened:
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="is a link or a device"), open_archive(tmp_path / "link.zip"):
        pass


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 100])
def test_wrong_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "IXI-T1.tar").write_bytes(content)
    with (
        pytest.raises(UserError, match=r"IXI-T1\.tar: damaged, or neither tar nor zip"),
        open_archive(tmp_path / "IXI-T1.tar"),
    ):
        pass


def test_truncated_archive(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "cut.tar.gz", "w:gz")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"cut\.tar\.gz: damaged"), open_archive(path):
        pass


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"), open_archive(tmp_path / "nothing.tar"):
        pass
