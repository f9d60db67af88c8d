"""Reads tar and zip archives, and folders, without trusting them.

Members are read one by one; nothing is unpacked that is not asked for. An archive that tries to reach outside of itself
(absolute names, ``..``, links, devices) is refused as a whole, and so are bombs: too many members, or too large ones.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, TypeVar

from equisynth.errors import UserError
from equisynth.files import atomic_path

Member = TypeVar("Member", tarfile.TarInfo, zipfile.ZipInfo)

MEMBER_LIMIT = 1 << 36
"""Largest member in bytes (64 GiB): beyond any slide or volume."""
TOTAL_LIMIT = 1 << 40
"""Most bytes (1 TiB) that are unpacked from one archive at once."""
COUNT_LIMIT = 1_000_000
"""Most members: eight times the largest public archive's."""


DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError)
"""What unpackers raise of bad content; an `OSError` with a number is the disk's."""


class CaseSkipped(Exception):
    """This case cannot be prepared; the message says why. Others can."""


class BadMember(UserError):
    """One member cannot be had, or not be told from another of its name; the rest of the archive can."""


class Archive(Protocol):
    """Names and contents of regular files."""

    path: Path

    def names(self) -> list[str]:
        """Sorted names, '/' between folders; a name that several members have stands there as often."""
        ...

    def stream(self, name: str) -> IO[bytes]:
        """A member's bytes, to be closed by the caller.

        Raises:
            BadMember: there is no such member, or several, or it cannot be unpacked.
        """
        ...


@contextmanager
def open_archive(path: Path | str) -> Iterator[Archive]:
    """Opens a ``.tar`` (also compressed), a ``.zip`` or a folder.

    Raises:
        UserError: not found, no such archive, damaged, or unsafe; the message names the file.
    """
    path = Path(path)
    if path.is_dir():
        yield _Folder(path)
        return
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a tar or zip archive or a folder")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as opened:
                yield _Zip(path, opened)
        else:
            with _opened_tar(path) as tar:
                yield _Tar(path, tar)
    except DAMAGE as error:
        if _is_of_the_disk(error):
            raise
        raise UserError(f"{path}: damaged, or neither tar nor zip ({error}); download it again") from None


@contextmanager
def skipping_damage(name: str) -> Iterator[None]:
    """Takes what is wrong with a member for a reason to skip its case, and nothing else: a full disk is none.

    Raises:
        CaseSkipped: the member cannot be unpacked.
    """
    try:
        yield
    except BadMember as error:
        raise CaseSkipped(str(error)) from None
    except DAMAGE as error:
        if _is_of_the_disk(error):
            raise
        raise CaseSkipped(f"{name}: cannot be unpacked ({error})") from None


def read_member(archive: Archive, name: str, limit: int = MEMBER_LIMIT) -> bytes:
    """A member's bytes.

    Raises:
        BadMember: no such member, or more than ``limit`` bytes.
    """
    content = bytearray()
    with archive.stream(name) as stream:
        for block in _blocks(archive, name, stream, limit):
            content += block
    return bytes(content)


def extract_member(archive: Archive, name: str, target: Path | str, limit: int = MEMBER_LIMIT) -> None:
    """Copies one member to ``target`` (the caller's choice, never the archive's), whole or not at all."""
    with archive.stream(name) as stream, atomic_path(target) as temporary, open(temporary, "wb") as file:
        for block in _blocks(archive, name, stream, limit):
            file.write(block)


def extract_all(
    archive: Archive,
    names: list[str],
    folder: Path | str,
    limit: int = MEMBER_LIMIT,
    total_limit: int = TOTAL_LIMIT,
) -> list[Path]:
    """Copies members below ``folder`` under their own (checked) names; removes what it wrote if one fails."""
    folder, targets, left = Path(folder), [], total_limit
    existed = folder.exists()
    try:
        for name in names:
            targets.append(folder / checked_name(archive.path, name))
            extract_member(archive, name, targets[-1], min(limit, left))
            left -= targets[-1].stat().st_size
    except BaseException:
        for target in targets:
            target.unlink(missing_ok=True)
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return targets


def checked_name(path: Path, name: str) -> PurePosixPath:
    """A member's name as a path that stays inside the folder it is joined to.

    Raises:
        UserError: it is absolute, holds ``..`` or a drive, or is empty.
    """
    member = PurePosixPath(name.replace("\\", "/"))
    if not member.parts or member.is_absolute() or ".." in member.parts or ":" in member.parts[0] or "\0" in name:
        raise UserError(f"{path}: member {name!r} points outside of the archive; the file is unsafe, do not use it")
    return member


def _opened_tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:*")
    except tarfile.ReadError:  # its text lists all compressions that were tried
        raise UserError(f"{path}: damaged, or neither tar nor zip; download it again") from None


def _is_of_the_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno is not None


def _the_only(path: Path, members: list[Member], name: str) -> Member:
    """The member of a name.

    Raises:
        BadMember: there is none, or more than one.
    """
    if not members:
        raise BadMember(f"{path}: has no member {name}; is this the right archive?")
    if len(members) > 1:
        raise BadMember(f"{path}: has {len(members)} members named {name}; pack it anew with one of them")
    return members[0]


def _check_count(path: Path, count: int) -> None:
    if count > COUNT_LIMIT:
        raise UserError(f"{path}: holds more than {COUNT_LIMIT} files; is this the right archive?")


def _blocks(archive: Archive, name: str, stream: IO[bytes], limit: int) -> Iterator[bytes]:
    total = 0
    while block := stream.read(1 << 20):  # what a header says of the size is not trusted
        total += len(block)
        if total > limit:
            raise BadMember(f"{archive.path}: member {name} is larger than {limit} bytes; is this the right archive?")
        yield block


class _Tar:
    def __init__(self, path: Path, tar: tarfile.TarFile) -> None:
        self.path, self._tar = path, tar
        self._members: defaultdict[str, list[tarfile.TarInfo]] = defaultdict(list)
        for count, member in enumerate(tar):
            _check_count(path, count + 1)
            if member.isdir():
                continue
            name = str(checked_name(path, member.name))
            if not member.isreg():
                kind = "a link" if member.islnk() or member.issym() else "a device"
                raise UserError(f"{path}: member {name} is {kind}; the file is unsafe, do not use it")
            self._members[name].append(member)
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if not tar.fileobj.read(1):  # cut off between two members, which tarfile takes for the end
            raise tarfile.ReadError("it ends without its end mark")
        while tar.fileobj.read(1 << 20):
            pass  # a checksum stands behind the last member

    def names(self) -> list[str]:
        return sorted(name for name, members in self._members.items() for _ in members)

    def stream(self, name: str) -> IO[bytes]:
        stream = self._tar.extractfile(_the_only(self.path, self._members.get(name, []), name))
        assert stream is not None  # only regular files are kept
        return stream


class _Zip:
    def __init__(self, path: Path, opened: zipfile.ZipFile) -> None:
        self.path, self._zip = path, opened
        self._members: defaultdict[str, list[zipfile.ZipInfo]] = defaultdict(list)
        _check_count(path, len(opened.infolist()))
        for member in opened.infolist():
            if member.is_dir():
                continue
            name = str(checked_name(path, member.filename))
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise UserError(f"{path}: member {name} is a link or a device; the file is unsafe, do not use it")
            self._members[name].append(member)

    def names(self) -> list[str]:
        return sorted(name for name, members in self._members.items() for _ in members)

    def stream(self, name: str) -> IO[bytes]:
        member = _the_only(self.path, self._members.get(name, []), name)
        try:
            return self._zip.open(member)
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in a rare way
            raise BadMember(f"{self.path}: member {name} cannot be unpacked ({error}); pack the archive anew") from None


class _Folder:
    """The user's own folder: links are followed, since the user made them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        return sorted(p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())

    def stream(self, name: str) -> IO[bytes]:
        path = self.path / checked_name(self.path, name)
        if not path.is_file():
            raise BadMember(f"{path}: not found; is this the right folder?")
        return open(path, "rb")
