"""Many calls of one function in processes of their own, of which each begins with a costly start.

A process that is killed (mostly: no memory left) costs the calls that were being made, no others; all processes end
with the one that started them, whatever ends that. joblib does neither, and is no base dependency.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Workers(Generic[Argument, Result]):
    """Processes that compute.

    Args:
        function: of one argument; of a module, so that the processes find it.
        jobs: how many.
        start: called once in each, with ``options``.
    """

    def __init__(
        self, function: Callable[[Argument], Result], jobs: int, start: Callable[..., None], options: Sequence[Any]
    ) -> None:
        self._function, self._jobs, self._start, self._options = function, jobs, start, tuple(options)

    def map(self, arguments: Sequence[Argument], lost: Callable[[Argument], Result]) -> Iterator[Result]:
        """Results in the order in which they are ready.

        Args:
            lost: the result of an argument whose process was killed.
        """
        waiting = list(arguments)[::-1]
        while waiting:
            yield from self._until_broken(waiting, lost)

    def _until_broken(self, waiting: list[Argument], lost: Callable[[Argument], Result]) -> Iterator[Result]:
        """Takes arguments off the end of the list until none is left, or a process was killed."""
        context = multiprocessing.get_context("spawn")  # a forked process must not use torch's threads
        broken, others = False, multiprocessing.active_children()
        with ProcessPoolExecutor(self._jobs, context, _begin, (self._start, self._options)) as pool:
            running: dict[Future[Result], Argument] = {}
            try:
                while running or (waiting and not broken):
                    while waiting and not broken and len(running) < self._jobs:
                        try:
                            running[pool.submit(self._function, waiting[-1])] = waiting[-1]
                        except BrokenProcessPool:
                            broken = True
                            break
                        waiting.pop()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        argument = running.pop(future)
                        try:
                            result = future.result()
                        except BrokenProcessPool:
                            broken, result = True, lost(argument)
                        yield result
            except BaseException:  # Ctrl-C, or nobody wants more: do not wait for cases that take hours
                for process in multiprocessing.active_children():
                    if process not in others:
                        process.terminate()
                raise


def _begin(start: Callable[..., None], options: tuple[Any, ...]) -> None:
    """In each process, first: Ctrl-C is the parent's to handle, and nobody is left behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*options)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
