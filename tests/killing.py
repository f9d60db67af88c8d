"""Kills at chosen instants: SIGKILL just before or after a file gets its final name."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline_repository import Repository
from wrong_inputs.runner import start_server

# Runs when Python starts: every process of the command watches its own renames.
_SITE = """
import os, re, signal

pattern, moment, left = re.compile(os.environ["KILL_PATTERN"]), os.environ["KILL_MOMENT"], int(os.environ["KILL_COUNT"])
replace = os.replace

def watched(source, target, **options):
    global left
    left -= pattern.search(os.fsdecode(target)) is not None
    if left == 0 and moment == "before":
        os.killpg(0, signal.SIGKILL)
    replace(source, target, **options)
    if left == 0:
        os.killpg(0, signal.SIGKILL)

os.replace = watched
"""


def run_until_killed(
    repository: Repository, folder: Path, *command: str, moment: str, pattern: str, count: int = 1
) -> str:
    """Runs a command whose whole process group is killed before or after the count-th rename to such a path.

    Returns:
        What it had written to stdout and stderr.
    """
    (folder / "sitecustomize.py").write_text(_SITE)
    path = f"{folder}{os.pathsep}{repository.environment.get('PYTHONPATH', '')}"
    environment = repository.environment | {
        "PYTHONPATH": path, "KILL_PATTERN": pattern, "KILL_MOMENT": moment, "KILL_COUNT": str(count)
    }  # fmt: skip
    log = folder / "log"
    with log.open("w") as file:  # no pipe: an orphan would keep it open
        done = subprocess.run(
            command, cwd=repository.folder, env=environment, stdout=file, stderr=file, start_new_session=True,
            check=False, timeout=500,
        )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, log.read_text()
    return log.read_text()


def prepare_until_killed(arguments: dict[str, Any], log: Path, kill_at: int = 0, light: bool = False) -> bool:
    """Runs the stage ``prepare`` in a process that kills itself before it marks its ``kill_at``-th case as finished.

    The process is forked from one in which no library has started threads, whatever the tests have done before.

    Args:
        arguments: of the stage.
        log: gets a line for each case that was prepared.
        kill_at: 0: it is not killed.
        light: without what takes long, see `light_preparation`.

    Returns:
        whether it was killed.
    """
    start_server()
    process = multiprocessing.get_context("forkserver").Process(target=_prepare, args=(arguments, log, kill_at, light))
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode == (-signal.SIGKILL if kill_at else 0)
    return process.exitcode != 0


def _prepare(arguments: dict[str, Any], log: Path, kill_at: int, light: bool) -> None:
    from equisynth.stages import prepare
    from light_preparation import lighten

    replace, left = os.replace, kill_at

    def watched(source: Any, target: Any) -> None:
        nonlocal left
        top = Path(target).parent.name
        if top == "cases":
            with log.open("a") as file:
                print(Path(target).name, file=file)
        left -= top == "facts"
        if top == "facts" and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = watched  # type: ignore[assignment]
    if light:
        lighten()
    prepare.run(**arguments)


def kill_in_child(work: Callable[[], Any], step: int) -> bool:
    """Does the work in a forked process that kills itself before its step-th rename, link or removal of a folder.

    Returns:
        whether it was killed; if not, the work takes fewer steps and was done.
    """
    child = os.fork()
    if child == 0:  # pragma: no cover
        code = 1
        try:
            signal.alarm(120)
            left = step

            def counting(function: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any, **options: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*arguments, **options)

                return call

            for name in ("replace", "rename", "link", "rmdir"):
                setattr(os, name, counting(getattr(os, name)))
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False
