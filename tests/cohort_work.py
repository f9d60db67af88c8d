"""What the processes of test_cohort_workers.py and test_cohort_cluster.py do; a module, so that they find it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from equisynth.cohort_cluster import stop_if_unwanted

KILLED = 3
"""The number whose process is killed."""
_factor: list[int] = []
_folder: list[Path] = []


def start(folder: Path, factor: int) -> None:
    (folder / str(os.getpid())).touch()
    _factor[:], _folder[:] = [factor], [folder.absolute()]


def work(number: int) -> tuple[int, object]:
    if number == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    return number, _factor[0] * number


def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def until_unwanted(name: str, seconds: float = 60.0) -> None:
    """Only on a cluster."""
    (_folder[0] / f"{name}.begun").touch()
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            stop_if_unwanted(0, 1)
            time.sleep(0.02)
    except InterruptedError:
        (_folder[0] / f"{name}.left").touch()
        raise
