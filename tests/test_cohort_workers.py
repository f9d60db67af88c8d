"""Processes that compute: all arguments once, also where one is killed; nobody is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cohort_work
from equisynth.cohort_workers import Workers


def test_a_killed_process_costs_its_own_call_only(tmp_path: Path) -> None:
    workers = Workers(cohort_work.work, 2, cohort_work.start, (tmp_path, 3))
    numbers = [1, 2, cohort_work.KILLED, 4, 5, 6]
    found = sorted(workers.map(numbers, lambda number: (number, "lost")))
    lost = {number for number, result in found if result == "lost"}
    assert [number for number, _ in found] == sorted(numbers)
    assert cohort_work.KILLED in lost
    assert len(lost) <= 2  # and what the other process was at, which ends with it
    assert all(result == 3 * number for number, result in found if number not in lost)
    assert 2 <= len(list(tmp_path.iterdir())) <= 4  # started once per process, not per call


def test_who_takes_no_more_waits_for_none(tmp_path: Path) -> None:
    others = set(multiprocessing.active_children())  # joblib keeps those of earlier tests
    workers = Workers(cohort_work.slow, 2, cohort_work.start, (tmp_path, 1))
    results = workers.map([0.0, 60.0, 60.0], lambda number: number)
    assert next(results) == 0.0
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 20
    assert set(multiprocessing.active_children()) <= others


PARENT = """
import sys
sys.path[:0] = sys.argv[2:]
import cohort_work
from pathlib import Path
from equisynth.cohort_workers import Workers
if __name__ == "__main__":
    list(Workers(cohort_work.slow, 2, cohort_work.start, (Path(sys.argv[1]), 1)).map([60.0] * 2, lambda number: number))
"""


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "notes"), *sys.path], stderr=subprocess.DEVNULL
    )
    try:
        _until(lambda: len(list((tmp_path / "notes").iterdir())) == 2)
    finally:
        parent.kill()
        parent.wait()
    children = [int(path.name) for path in (tmp_path / "notes").iterdir()]
    _until(lambda: not any(_lives(child) for child in children))


def _until(condition: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def _lives(process: int) -> bool:
    try:
        os.kill(process, signal.SIG_DFL)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
