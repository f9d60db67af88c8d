"""Fetches public files: a broken download continues where it stopped, what arrives is checked, whole or not at all.

Beside the file ``<name>`` lie ``<name>.part`` while it is incomplete, and ``<name>.json``: where it came from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPMessage
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from pydantic import AfterValidator, Field

from equisynth.config import Count, Strict
from equisynth.errors import UserError
from equisynth.files import read_json, sha256, write_json

FOLDER = Path(".equisynth/downloads")
"""Outside of every stage's outputs, so that a repeat finds what it has."""
ATTEMPTS = 5  # without one more byte
PASSING = (408, 425, 429, 500, 502, 503, 504)  # what a server says that may answer later
SILENCE = 60.0  # seconds without a byte
BLOCK = 1 << 18

Report = Callable[[int, "int | None"], None]
"""Called with the bytes that are there and the bytes of the whole file, if known."""


def _web_address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or not _name(url):
        raise ValueError("expected http://... or https://... that ends with a file's name")
    return url


def _name(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name


class RemoteFile(Strict):
    """A file on a server; ``size`` (bytes) and ``sha256`` are checked where given."""

    url: Annotated[str, AfterValidator(_web_address)]  # address
    size: Count | None = None  # bytes; checked where given
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # checked where given


class _Broken(Exception):
    """The transfer ended early; another attempt may go on."""


def require_licence(accepted: bool, key: str, licence: str, terms: str) -> None:
    """Refuses to download before the user has accepted the terms by a parameter.

    Raises:
        UserError: not accepted; names the parameter and the terms' address.
    """
    if not accepted:
        raise UserError(f"{key}: found false; the data come under {licence}, see {terms}; accept by setting it to true")


def fetch(file: RemoteFile, folder: Path = FOLDER, wait: float = 1.0) -> Path:
    """The file, complete and checked, in ``folder``; downloads what is missing of it.

    Args:
        file: where it is, and what is known of it.
        folder: keeps the file and, if broken off, its part.
        wait: seconds before the second attempt; doubles with each one that brings nothing.

    Raises:
        UserError: it cannot be had, or is not what was expected. What came stays for the next run if it may be right.
    """
    target = folder / _name(file.url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose a folder you can write to") from None
    if _is_there(target, file):
        return target
    part = _beside(target, ".part")
    with _Bar(target.name) as bar:
        _persist(file, part, _beside(target, ".json"), bar.report, wait)
    _check(file, part)
    os.replace(part, target)
    write_json(_beside(target, ".json"), {"url": file.url, "size": _size(target), "sha256": file.sha256})
    return target


def fetch_case_lists(files: Mapping[Any, RemoteFile], folder: Path = FOLDER) -> dict[str, list[str]]:
    """The case names of each split, from JSON lists of names or numbers.

    Raises:
        UserError: one cannot be had or is no such list.
    """
    found: dict[str, list[str]] = {}
    for split, file in files.items():
        path = fetch(file, folder)
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
            raise UserError(f"{path}: is no JSON list of case names; check {file.url}, or give the splits yourself")
        found[split] = [str(name) for name in names]
    return found


def _is_there(target: Path, file: RemoteFile) -> bool:
    """Whether an earlier run brought this very file."""
    record = _record(_beside(target, ".json"))
    size = _size(target)
    if not size or record.get("url") != file.url or record.get("size") != size or file.size not in (None, size):
        return False
    return file.sha256 in (None, record.get("sha256")) or file.sha256 == sha256(target)


def _persist(file: RemoteFile, part: Path, record: Path, report: Report, wait: float) -> None:
    """Transfers until all is there; gives up where some attempts in a row bring no byte more than the best one."""
    failures, furthest = 0, _size(part)
    while True:
        try:
            return _transfer(file, part, record, report)
        except _Broken as error:
            reason = str(error)
        failures = 0 if _size(part) > furthest else failures + 1
        furthest = max(furthest, _size(part))
        if failures >= ATTEMPTS:
            raise UserError(
                f"{file.url}: broke off {ATTEMPTS} times after {_size(part)} bytes ({reason}); check the connection "
                "and run again: it continues where it stopped"
            )
        time.sleep(wait * 2**failures)


def _transfer(file: RemoteFile, part: Path, record: Path, report: Report) -> None:
    """One request: from where the part ends if the server can, else from the start.

    Raises:
        _Broken: the connection failed or ended early.
        UserError: the server has no such file, or another one, or the disk is full.
    """
    known = _record(record)
    if known.get("url") != file.url:
        part.unlink(missing_ok=True)
        known = {}
    start = _size(part)
    headers = {"User-Agent": "equisynth", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if known.get("version"):
            headers["If-Range"] = known["version"]  # another version of the file comes whole
    try:
        with urlopen(Request(file.url, headers=headers), timeout=SILENCE) as answer:
            start, total = _extent(answer.status, answer.headers, start, known, part)
            if file.size is not None and total not in (None, file.size):
                raise UserError(f"{file.url}: the server has {total} bytes, expected {file.size}; check the address")
            limit = total if total is not None else file.size
            _check_space(part, None if limit is None else limit - start)
            write_json(record, {"url": file.url, "version": _version(answer.headers), "total": total})
            _receive(answer, file, part, start, limit, report)
    except HTTPError as error:
        _refused(error, file, part)
        return
    except (URLError, HTTPException, OSError) as error:
        raise _Broken(str(getattr(error, "reason", None) or error or type(error).__name__)) from None
    if total is not None and _size(part) < total:
        raise _Broken(f"the connection ended, {total} bytes were announced")


def _extent(status: int, headers: HTTPMessage, start: int, known: dict[str, Any], part: Path) -> tuple[int, int | None]:
    """First byte that comes, and bytes of the whole file."""
    length = headers.get("Content-Length")
    if status != 206:  # the server does not know ranges, or the file has changed
        return 0, int(length) if length and length.isdigit() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    total = int(found[2]) if found and found[2] != "*" else None
    if found is None or int(found[1]) != start or known.get("total") not in (None, total):
        part.unlink()
        raise _Broken("the server answered with another range than asked for")
    return start, total


def _receive(answer: Any, file: RemoteFile, part: Path, start: int, limit: int | None, report: Report) -> None:
    with _open_part(part, start) as stream:
        done = start
        report(done, limit)
        while block := answer.read1(BLOCK):
            done += len(block)
            if limit is not None and done > limit:
                raise UserError(f"{file.url}: sends more than {limit} bytes; check the address and the size expected")
            try:
                written = stream.write(block)
            except OSError as error:
                raise UserError(f"{part}: cannot be written ({error.strerror}); make room and run again") from None
            if written < len(block):
                raise UserError(f"{part}: cannot be written (the disk is full); make room and run again")
            report(done, limit)


def _open_part(part: Path, start: int) -> Any:
    try:
        stream = open(part, "r+b" if start else "wb", buffering=0)  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise UserError(f"{part}: cannot be written ({error.strerror}); choose a folder you can write to") from None
    stream.seek(start)
    return stream


def _refused(error: HTTPError, file: RemoteFile, part: Path) -> None:
    """Returns where the part is complete already."""
    if error.code == 416:  # nothing lies beyond the part
        if error.headers.get("Content-Range") == f"bytes */{_size(part)}":
            return
        part.unlink(missing_ok=True)
        raise _Broken("the server's file is shorter than what came before")
    if error.code in PASSING:
        raise _Broken(f"the server says {error.code} {error.reason}")
    raise UserError(
        f"{file.url}: the server says {error.code} {error.reason}; check the address, or get the file by other means "
        "and give its path (kind: path)"
    )


def _check(file: RemoteFile, part: Path) -> None:
    """Removes what is wrong: to continue it would not mend it."""
    measures: list[tuple[str, Any, Callable[[Path], Any]]] = [
        ("size", file.size, _size), ("sha256", file.sha256, sha256),
    ]  # fmt: skip
    for key, wanted, measure in measures:
        if wanted is not None and (found := measure(part)) != wanted:
            part.unlink()
            raise UserError(
                f"{file.url}: {key} is {found}, expected {wanted}; what came was removed: the file was damaged on its "
                "way (run again) or has changed on the server"
            )


def _check_space(part: Path, missing: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if missing is not None and missing > free:
        raise UserError(f"{part.parent}: {missing} bytes are to come and {free} are free; make room and run again")


def _version(headers: HTTPMessage) -> str | None:
    """What tells this version of the file from others; weak tags do not."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _record(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


class _Bar:
    """A progress bar on a terminal's standard error; elsewhere one line."""

    def __init__(self, name: str) -> None:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_terminal:
            console.print(f"Downloading {name}", highlight=False)
        columns = (
            progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn(),
            progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
        )  # fmt: skip
        self._progress = progress.Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(f"Downloading {name}", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def report(self, done: int, total: int | None) -> None:
        self._progress.update(self._task, completed=done, total=total)
