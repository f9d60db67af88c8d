"""Files appear whole or not at all: everything is written beside its place and then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from equisynth.errors import UserError

MARK = ".equisynth-"
"""In the names of temporaries, so that nobody else's hidden file is taken for one."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary sibling of ``path`` (same suffixes) that takes its place when the block ends without an error."""
    path = Path(path)
    with _sibling(path, "".join(path.suffixes[-2:]), _make_file) as temporary:
        yield temporary
        _give_usual_mode(temporary, 0o666)  # mkstemp makes private files
        os.replace(temporary, path)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A temporary sibling folder that replaces ``path`` (and what it held) when the block ends without an error."""
    path = Path(path)
    with _sibling(path, "", _make_folder) as temporary:
        yield temporary
        _give_usual_mode(temporary, 0o777)
        old = _set_aside(path)
        os.replace(temporary, path)
        _remove(old)


def remove(path: Path) -> None:
    """Removes a file or folder, if there is one; a kill on the way leaves all of it or nothing under its name."""
    _remove(_set_aside(path))


def link(source: Path, target: Path) -> None:
    """Gives a finished file a second name, without a second copy where the file system has hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path | str, content: Any) -> None:
    """Writes indented JSON; NaN and infinity are refused because JSON has no word for them."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Reads JSON.

    Raises:
        UserError: the file is absent or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run the stage that makes it (dvc repro)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}); delete it and make it again") from None


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(content: Any, length: int = 12) -> str:
    """A short name for a JSON-like value: equal values, equal names."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@contextmanager
def _sibling(path: Path, suffix: str, make: Callable[[str, str, Path], Path]) -> Iterator[Path]:
    """A hidden sibling of ``path`` that is gone after the block, and after a kill when ``path`` is next written.

    Its lock ends with the process, however that dies, and tells the leftovers of a killed one from the work of a living
    one. A process number in the name would not: numbers are used again, and differ between containers.
    """
    prefix = f".{path.name.removesuffix(suffix)}{MARK}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent, prefix, suffix)
        temporary, lock = _make_locked(prefix, suffix, path.parent, make)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose a folder you can write to") from error
    try:
        yield temporary
    except OSError as error:
        if error.errno not in FULL:
            raise
        reason = f"cannot be written ({error.strerror}); make room on this disk, then run the same command again"
        raise UserError(f"{path}: {reason}") from error
    finally:
        _remove(temporary)
        if lock is not None:
            os.close(lock)


def _make_file(prefix: str, suffix: str, folder: Path) -> Path:
    handle, name = tempfile.mkstemp(suffix, prefix, folder)
    os.close(handle)
    return Path(name)


def _make_folder(prefix: str, suffix: str, folder: Path) -> Path:
    return Path(tempfile.mkdtemp(suffix, prefix, folder))


def _make_locked(
    prefix: str, suffix: str, folder: Path, make: Callable[[str, str, Path], Path]
) -> tuple[Path, int | None]:
    while True:
        temporary = make(prefix, suffix, folder)
        try:
            lock = _lock(temporary)
        except (BlockingIOError, FileNotFoundError):
            continue  # taken for a leftover in the instant before it was locked
        if temporary.exists():
            return temporary, lock
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """A handle that locks a file or folder until it is closed or the process ends; None: no locks in this place.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


def _remove_stale(folder: Path, prefix: str, suffix: str) -> None:
    name = re.compile(f"{re.escape(prefix)}[a-z0-9_]{{8}}{re.escape(suffix)}")
    for stale in [Path(entry.path) for entry in os.scandir(folder) if name.fullmatch(entry.name)]:
        try:
            lock = _lock(stale)
        except (BlockingIOError, FileNotFoundError, PermissionError):
            continue
        if lock is not None:
            _remove(stale)
            os.close(lock)


def _set_aside(path: Path) -> Path:
    """Renames what is to be removed to the name of a leftover."""
    aside = path.with_name(f".{path.name}{MARK}{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
    return aside


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _give_usual_mode(path: Path, mode: int) -> None:
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, mode & ~umask)
