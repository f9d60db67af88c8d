"""Times one workload and prints one JSON line."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def report(benchmark: str, work: Callable[[], object], repeats: int = 5, **more: Any) -> None:
    """Prints ``{"benchmark", "seconds", "peak_memory_mib", ...}`` for a workload.

    ``seconds`` is the median over ``repeats`` runs after one that warms up; ``peak_memory_mib`` how far the memory of
    the process (of the GPU, where one is used) rose above what was held before. ``more`` is printed as given.
    """
    torch = sys.modules.get("torch")  # only a workload that uses torch has imported it
    gpu = torch is not None and torch.cuda.is_available() and torch.cuda.memory_allocated() > 0
    before = torch.cuda.memory_allocated() if gpu else _resident()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        _reset_peak()
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if gpu else _peak()
    line = {
        "benchmark": benchmark,
        "seconds": round(statistics.median(seconds), 5),
        "peak_memory_mib": round((peak - before) / 2**20, 1),
        "repeats": repeats,
        "threads": torch.get_num_threads() if torch is not None else 1,
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
    }
    print(json.dumps(line | more))


def compare(
    benchmark: str, ours: Callable[[], object], plain: Callable[[], object], pairs: int = 7, **more: Any
) -> None:
    """Prints ``{"benchmark", "seconds", "plain_seconds", "ratio", ...}`` for the same work done in two ways.

    Both are warmed up, then timed in turn, ours as often in one go as takes about a tenth of a second; medians of the
    ``pairs``, and the median of their ratios.
    """
    ours()
    plain()
    start = time.perf_counter()
    ours()
    often = max(1, round(0.1 / max(time.perf_counter() - start, 1e-7)))
    timed = [(_seconds(ours, often), _seconds(plain, 1)) for _ in range(pairs)]
    line = {
        "benchmark": benchmark,
        "seconds": float(f"{statistics.median(own for own, _ in timed):.3g}"),
        "plain_seconds": float(f"{statistics.median(other for _, other in timed):.3g}"),
        "ratio": round(statistics.median(other / own for own, other in timed), 1),
        "pairs": pairs,
    }
    print(json.dumps(line | more))


def peak_memory(work: Callable[[], object]) -> float:
    """How far, in MiB, the memory of the process rises above what it holds before while it works."""
    before = _resident()
    _reset_peak()
    work()
    return round((_peak() - before) / 2**20, 1)


def _seconds(work: Callable[[], object], often: int) -> float:
    """Of one of several runs in a row."""
    start = time.perf_counter()
    for _ in range(often):
        work()
    return (time.perf_counter() - start) / often


def _resident() -> int:
    """Bytes of memory that the process holds now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the peak so far
        return _peak()


def _reset_peak() -> None:
    """Lets the peak start anew from what is held now, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    """Largest number of bytes that the process held since the start or the last reset."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
