"""Archives are read member by member and never trusted."""

from __future__ import annotations

import errno
import io
import os
import random
import tarfile
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from equisynth.datasets import archives
from equisynth.datasets.archives import (
    BadMember,
    CaseSkipped,
    extract_all,
    extract_member,
    open_archive,
    read_member,
    skipping_damage,
)
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


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("name", ["one.txt", "./one.txt"])
def test_a_name_that_stands_twice_is_listed_twice_and_never_chosen_from(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / f"twice.{kind}"
    if kind == "zip":
        warns = pytest.warns(UserWarning, match="Duplicate") if name == "one.txt" else nullcontext()
        with warns, zipfile.ZipFile(path, "w") as opened:
            for member in ("one.txt", name, "two.txt"):
                opened.writestr(member, member)
    else:
        members = [tarfile.TarInfo(name), tarfile.TarInfo("two.txt")]
        make_tar(path, "w:gz" if kind == "tar.gz" else "w", *members)
    with open_archive(path) as archive:
        assert [found for found in archive.names() if found == "one.txt"] == ["one.txt"] * 2
        with pytest.raises(BadMember, match=r"twice\.\S+: has 2 members named one\.txt; pack it anew"):
            read_member(archive, "one.txt")
        with pytest.raises(CaseSkipped, match="has 2 members named one"), skipping_damage("one.txt"):
            extract_member(archive, "one.txt", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        read_member(archive, "two.txt")


def test_a_full_disk_is_no_reason_to_skip_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = make_tar(tmp_path / "good.tar")
    with open_archive(path) as archive:
        monkeypatch.setattr("equisynth.files.os.replace", full)
        with pytest.raises(UserError, match="No space left"), skipping_damage("one.txt"):
            extract_member(archive, "one.txt", tmp_path / "out")


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


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / f"many.{kind}"
    make_zip(path) if kind == "zip" else make_tar(path, "w:gz" if kind == "tar.gz" else "w")
    monkeypatch.setattr(archives, "COUNT_LIMIT", 1)
    with pytest.raises(UserError, match=r"many\.\S+: holds more than 1 files"), open_archive(path):
        pass


def test_a_total_that_is_too_large_leaves_nothing(archive_path: Path, tmp_path: Path) -> None:
    with open_archive(archive_path) as archive:
        with pytest.raises(UserError, match=r"one\.txt is larger than 2999 bytes"):
            extract_all(archive, archive.names(), tmp_path / "out", total_limit=3002)
        assert not (tmp_path / "out").exists()
        assert len(extract_all(archive, archive.names(), tmp_path / "out", total_limit=3003)) == 2


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_bomb_is_refused_without_being_unpacked(tmp_path: Path, kind: str) -> None:
    """A member a thousand times larger than the archive, whatever its header says."""
    bomb, content = tmp_path / f"bomb.{kind}", bytes(20_000_000)
    if kind == "zip":
        path = make_zip(bomb, bomb=content)
        lied = path.read_bytes().replace((20_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
        path.write_bytes(lied)
    else:
        with tarfile.open(bomb, "w:gz") as tar:
            member = tarfile.TarInfo("bomb")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert bomb.stat().st_size < len(content) / 500
    with pytest.raises(UserError, match="bomb"), open_archive(bomb) as archive:
        extract_member(archive, "bomb", tmp_path / "out", limit=1000)
    assert os.listdir(tmp_path) == [bomb.name]


def test_an_encrypted_member(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "locked.zip")
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # in each header of every member
        place = content.find(signature)
        while place >= 0:
            content[place + flags] |= 1
            place = content.find(signature, place + 4)
    path.write_bytes(content)
    with (
        pytest.raises(UserError, match=r"locked\.zip: member one\.txt cannot be unpacked"),
        open_archive(path) as archive,
    ):
        read_member(archive, "one.txt")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_damage_in_the_middle(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"hurt.tar.{kind}"
    with tarfile.open(path, f"w:{kind}") as tar:
        for name in ("one.txt", "two.txt"):
            member = tarfile.TarInfo(name)
            member.size = 1_000_000
            tar.addfile(member, io.BytesIO(random.Random(name).randbytes(member.size)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"hurt\.tar\.{kind}: damaged"), open_archive(path) as archive:
        for name in archive.names():
            read_member(archive, name)
