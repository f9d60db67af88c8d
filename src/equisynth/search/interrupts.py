"""Ctrl-C, and what schedulers send: it ends a training at once, and never what must be done whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Signals raise ``KeyboardInterrupt`` within ``allowed()`` only; elsewhere they are kept for the next chance.

    A second signal changes nothing: what the first one began is short.

    Args:
        from_parent: this process is a worker, and its parent alone hears Ctrl-C (which goes to both).
    """

    def __init__(self, from_parent: bool = False) -> None:
        self.asked = self._allowed = False
        self._from_parent = from_parent
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                ignored = self._from_parent and number == signal.SIGINT
                self._before[number] = signal.signal(number, signal.SIG_IGN if ignored else self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises what was kept."""
        if self.asked:
            raise KeyboardInterrupt

    @contextmanager
    def allowed(self, value: bool = True) -> Iterator[None]:
        """In the block signals raise at once, or (``value`` false) are kept to its end, if they were allowed before."""
        before, self._allowed = self._allowed, value
        try:
            if value:
                self.check()
            yield
        finally:
            self._allowed = before
        if before:
            self.check()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if first and self._allowed:
            raise KeyboardInterrupt
