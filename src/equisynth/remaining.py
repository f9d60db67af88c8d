"""How far a long task is and how long it still takes: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Show = Callable[[int, int], None]
"""Called with the number of parts done and of all parts."""
SECONDS = 15.0
"""Between two lines of a log, and before the first: what is faster leaves none."""
MEMORY = 600.0
"""Seconds over which the bar's speed is taken: a tile of a large network takes many on a CPU."""


@dataclass
class Display:
    """What is shown of several tasks at once.

    Attributes:
        bars: on a terminal.
        log: elsewhere; gets lines.
    """

    bars: Progress | None
    log: IO[str]
    now: Callable[[], float] = time.monotonic
    _tasks: dict[str, TaskID] = field(default_factory=dict)

    def show(self, name: str, parts: str) -> Show:
        """What a task calls after each of its parts; it begins now, in place of one of the same kind.

        Args:
            name: of the task, e.g. a file.
            parts: what is counted, e.g. ``tiles``.
        """
        if self.bars is not None:
            return self._bar(self.bars, name, parts)
        return self._lines(name, parts)

    def _bar(self, bars: Progress, name: str, parts: str) -> Show:
        if parts in self._tasks:
            bars.remove_task(self._tasks[parts])
        task = self._tasks[parts] = bars.add_task(name, total=None, parts=parts)
        return lambda done, total: bars.update(task, completed=done, total=total)

    def _lines(self, name: str, parts: str) -> Show:
        started = said = self.now()

        def line(done: int, total: int) -> None:
            nonlocal said
            now = self.now()
            if now - said >= SECONDS and 0 < done < total:
                said = now
                left = (now - started) / done * (total - done)
                print(f"{name}: {done} of {total} {parts}, about {in_words(left)} left", file=self.log, flush=True)

        return line


@contextmanager
def display(log: IO[str] | None = None) -> Iterator[Display]:
    """Shows tasks while the block runs.

    Args:
        log: by default stderr.
    """
    console = Console(file=log or sys.stderr)
    if not console.is_terminal:
        yield Display(None, console.file)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[parts]}"),
        TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, speed_estimate_period=MEMORY) as bars:
        yield Display(bars, console.file)


def in_words(seconds: float) -> str:
    """A duration for people: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
