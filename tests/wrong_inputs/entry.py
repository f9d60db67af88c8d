"""What one wrong input is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Arrange = Callable[[Path], Any]
"""Makes the mistake in a small working directory."""


def nothing(folder: Path) -> None:
    """The mistake is in the command line."""


def no_one(folder: Path) -> AbstractContextManager[Any]:
    """Nothing else happens meanwhile."""
    return nullcontext()


@dataclass(frozen=True)
class Wrong:
    """One wrong input.

    Attributes:
        name: of the test.
        what: what is wrong, for the table.
        command: words after ``equisynth``.
        words: what the one line must hold: the file or key, what was found, what was expected or is to be done.
        arrange: makes the mistake.
        meanwhile: what another process does during the command.
        database: whether an MLflow database lies in the working directory.
        small_disk: folder that becomes a disk of a few kilobytes.
        disk_kib: size of that disk.
        read_only: folders that cannot be written to.
        records: files that may change although the command fails (the record of a run that failed).
        program: whether to start the installed program instead of a process that has its libraries loaded.
        progress: lines that the command says on stderr before it fails.
        pending: why this entry is known to fail still.
    """

    name: str
    what: str
    command: str
    words: tuple[str, ...]
    arrange: Arrange = nothing
    meanwhile: Callable[[Path], AbstractContextManager[Any]] = no_one
    database: bool = False
    small_disk: str = ""
    disk_kib: int = 4
    read_only: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    program: bool = False
    progress: int = 0
    pending: str = ""


def together(*steps: Arrange) -> Arrange:
    """Several steps, one after the other."""

    def arrange(folder: Path) -> None:
        for step in steps:
            step(folder)

    return arrange


def walk(folder: Path) -> Iterator[Path]:
    """Files and folders below a folder, except caches that the documentation names."""
    for path in sorted(folder.iterdir()):
        if path.name == ".equisynth":
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from walk(path)
