"""Runs one wrong input in a process of its own, on the machine it asks for, and tells what came of it.

Processes are forked from a server that has the libraries loaded, because loading them takes seconds; what a process
does to itself (another working directory, a small disk, lost rights) ends with it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from wrong_inputs.entry import Wrong, walk

PRELOADED = "wrong_inputs.libraries"
NEW_NAMESPACES, NEW_USER = 0x00020000, 0x10000000
PRIVATE = 0x44000  # recursive and private: a mount here is not seen elsewhere
SECONDS = 120
FILLER_KIB = 4  # a disk cannot be made without any room; this much of it is full
Tree = dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: exit code; None: the machine does not let a test do this.
        lines: on stderr.
        before, after: names and hashes of all files.
    """

    code: int | None
    lines: tuple[str, ...]
    before: Tree
    after: Tree


def attempt(wrong: Wrong, folder: Path, notes: Path) -> Outcome:
    """Runs the command in ``folder``, where everything else is right; ``notes`` is a folder for what it says."""
    wrong.arrange(folder)
    with wrong.meanwhile(folder):
        code = _program(wrong, folder, notes) if wrong.program else _process(wrong, folder, notes)
    if (notes / "impossible").exists():
        return Outcome(None, (), {}, {})
    trees = json.loads((notes / "trees.json").read_text()) if not wrong.program else {}
    lines = (notes / "stderr").read_text(encoding="utf-8").replace(f"{folder}/", "").replace(str(folder), ".")
    return Outcome(code, tuple(lines.splitlines()), trees.get("before", {}), trees.get("after", {}))


def contents(folder: Path) -> Tree:
    """Names and hashes; folders end with '/'."""
    found = {}
    for path in walk(folder):
        name = path.relative_to(folder).as_posix()
        found[name if path.is_file() else f"{name}/"] = (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        )
    return found


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "DVC_"))}


def _program(wrong: Wrong, folder: Path, notes: Path) -> int:
    trees = {"before": contents(folder)}
    command = [sys.executable, "-m", "equisynth", *shlex.split(wrong.command)]
    with open(notes / "stderr", "wb") as errors:
        code = subprocess.run(
            command,
            cwd=folder,
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            timeout=SECONDS,
            check=False,
        ).returncode
    trees["after"] = contents(folder)
    (notes / "trees.json").write_text(json.dumps(trees))
    return code


def _process(wrong: Wrong, folder: Path, notes: Path) -> int:
    context = multiprocessing.get_context("forkserver")
    start_server()
    machine = {"small_disk": wrong.small_disk, "disk_kib": wrong.disk_kib, "read_only": wrong.read_only}
    process = context.Process(target=_run, args=(shlex.split(wrong.command), folder, notes, machine))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def start_server() -> None:
    """Starts the server that processes are forked from; it looks for modules in the environment's path only."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([PRELOADED])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *([path] if path else [])])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if path is not None:
            os.environ["PYTHONPATH"] = path


def _run(arguments: list[str], folder: Path, notes: Path, machine: dict[str, Any]) -> None:
    """In the process: prepares the machine, then becomes the program."""
    from equisynth import cli

    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with open(notes / "stderr", "wb") as errors, open(os.devnull, "wb") as nowhere:
        os.dup2(errors.fileno(), 2)
        os.dup2(nowhere.fileno(), 1)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - for the process
    results = open(notes / "trees.json", "w")  # noqa: SIM115 - opened while there is the right to
    if machine["small_disk"] and not _possible(_small_disk, notes, folder / machine["small_disk"], machine["disk_kib"]):
        return
    before = contents(folder)
    for name in machine["read_only"]:
        (folder / name).chmod(0o555)
    if machine["read_only"]:
        _give_up_rights()
    try:
        cli.main(arguments)
    finally:
        for name in machine["read_only"]:
            (folder / name).chmod(0o755)
        json.dump({"before": before, "after": contents(folder)}, results)
        results.close()


def _possible(step: Callable[..., None], notes: Path, *arguments: Any) -> bool:
    try:
        step(*arguments)
    except (OSError, AttributeError) as error:  # no right, or no such thing on this system
        (notes / "impossible").write_text(str(error))
        return False
    return True


def _small_disk(folder: Path, kib: int) -> None:
    """A disk in memory that only this process sees; needs root, or user namespaces."""
    user, group = os.getuid(), os.getgid()
    if user == 0:
        _call("unshare", NEW_NAMESPACES)
    else:
        _call("unshare", NEW_NAMESPACES | NEW_USER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _call("mount", b"none", b"/", None, PRIVATE, None)
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", b"none", os.fsencode(folder), b"tmpfs", 0, f"size={kib + FILLER_KIB}k".encode())
    (folder / "filler").write_bytes(bytes(FILLER_KIB * 1024))


def _give_up_rights() -> None:
    """Root may write anywhere: takes all its capabilities away, so that the permissions of files count."""
    if os.getuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        _call("capset", header, (ctypes.c_uint32 * 6)())


def _call(name: str, *arguments: Any) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
