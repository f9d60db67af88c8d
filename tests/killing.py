"""Kills at chosen instants: SIGKILL just before or after a file gets its final name."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline_repository import Repository

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
