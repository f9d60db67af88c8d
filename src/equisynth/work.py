"""What a stage has finished so far, kept where its repeat finds it after a kill.

DVC deletes a stage's outputs before it runs, so this lies outside of them, in ``.equisynth/<stage>/<name>/<key>/``. The
key holds everything that the content depends on, the code included: what another configuration left is never continued.
A finished stage's folder stays until DVC has written ``dvc.lock``, for a kill while DVC stores the outputs makes it run
the stage again.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from equisynth.errors import UserError
from equisynth.files import atomic_path, hash_json, remove, sha256

LOCK, FINISHED = "lock", "finished"
DVC_LOCK = Path("dvc.lock")
PACKAGE = __name__.partition(".")[0]
NO_RESULT = {
    f"{PACKAGE}.{name}"
    for name in (
        "cli",
        "commands",
        "commands.options",
        "commands.proof",
        "commands.stages",
        "commands.tasks",
        "timing",
        "failures",
        "experiment_copies",
        "process_identity",
        "store",
        "runs",
        "tracking",
    )  # fmt: skip
}
"""Modules that parse arguments, measure time, word errors and record runs: changing them changes no result."""

Arrays = dict[str, np.ndarray]
Remember = Callable[[str, Callable[[], Arrays]], Arrays]
"""(name, computation) -> its result, computed now or taken from an interrupted run."""


@contextmanager
def resumable(root: Path, name: str, key: Any) -> Iterator[Path]:
    """The folder of a stage's finished parts, for this process alone while the block runs.

    Args:
        root: ``.equisynth/<stage>``.
        name: of the dataset or experiment.
        key: JSON-like, everything but the code that the parts depend on.
    """
    with alone(root / name / LOCK, f"{root.name}@{name}"):
        discard_committed(root.parent)
        folder = root / name / hash_json([key, code_version()])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FINISHED).unlink(missing_ok=True)  # in use: nobody discards it now
        yield folder
        (folder / FINISHED).touch()
        for other in (root / name).iterdir():  # abandoned configurations
            if other.is_dir() and other != folder:
                remove(other)


def discard_committed(top: Path) -> None:
    """Removes the parts of finished stages whose outputs DVC has in its lock file."""
    if not DVC_LOCK.is_file():
        return
    committed = DVC_LOCK.stat().st_mtime_ns
    for mark in list(top.glob(f"*/*/*/{FINISHED}")):
        if mark.stat().st_mtime_ns < committed:
            remove(mark.parent)


@contextmanager
def alone(path: Path, who: str) -> Iterator[None]:
    """Waits until no other process is in a block of the same lock file; the lock ends with its process.

    A killed ``dvc repro`` leaves its stage running: the next one waits for it here and then finds its work.

    Args:
        who: begins the line that says so.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)  # what a full disk refuses is refused here, not when it is closed
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose a folder you can write to") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            print(f"{who}: waiting for process {file.read().decode()}, which is at it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); make room on this disk") from error
        yield


def say_continuing(stage: str, name: str, done: int, total: int | None = None) -> None:
    """One line on stderr where an interrupted run left something.

    Args:
        done, total: cases, or parts of an unknown number.
    """
    if done:
        found = f"{done} parts" if total is None else f"{done} of {total} cases"
        print(f"{stage}@{name}: continuing, {found} are there", file=sys.stderr)


def anew(name: str, compute: Callable[[], Arrays]) -> Arrays:
    """A `Remember` that does not."""
    return compute()


def count_remembered(folder: Path) -> int:
    """How many results `remembered` has kept in a folder."""
    return sum(not path.name.startswith(".") for path in folder.rglob("*.npz"))


def remembered(folder: Path) -> Remember:
    """A `Remember` that keeps arrays in ``<folder>/<name>.npz``."""

    def remember(name: str, compute: Callable[[], Arrays]) -> Arrays:
        path = folder / f"{name}.npz"
        if not path.is_file():
            found = compute()
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **found)  # type: ignore[arg-type]
        with np.load(path, allow_pickle=False) as stored:  # also what was just computed: one path, the same bits
            return dict(stored)

    return remember


def fingerprint(top: Path) -> str:
    """Hash of the names, sizes and modification times of all files of a folder (or of one file): cheap at any size."""
    files = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
    stats = [(path.relative_to(top).as_posix(), path.stat()) for path in files if path.exists()]
    return hash_json([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def code_version() -> str:
    """Hash of the modules of this package that the process has loaded: what the running command is made of."""
    modules = {
        name: module.__file__
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] == PACKAGE and name not in NO_RESULT
    }
    return hash_json({name: sha256(file) for name, file in modules.items() if file})
