"""What the processes of test_cohort_workers.py do; a module, so that they find it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

KILLED = 3
"""The number whose process is killed."""
_factor: list[int] = []


def start(folder: Path, factor: int) -> None:
    (folder / str(os.getpid())).touch()
    _factor.append(factor)


def work(number: int) -> tuple[int, object]:
    if number == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    return number, _factor[0] * number


def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds
