"""What ``cohort_workers.py`` does, on a dask cluster: processes that others started and that stay make the calls.

Only arguments and results travel: all machines share the file system. A call whose worker is killed is made again by
others until dask gives it up. A call whose result nobody waits for any more ends when it next tells its progress.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import chdir
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from equisynth import parallel
from equisynth.errors import UserError

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_begun: list[str] = []
"""In a worker: the command that it has started for."""


@dataclass(frozen=True)
class _Call(Generic[Argument, Result]):
    """What workers do for a command.

    Attributes:
        command: tells it from other commands of the same cluster.
        folder: in which relative paths are meant.
    """

    command: str
    folder: Path
    function: Callable[[Argument], Result]
    start: Callable[..., None]
    options: tuple[Any, ...]

    def begin(self) -> None:
        """Once in each worker."""
        if _begun == [self.command]:
            return
        _begun.clear()
        with chdir(self.folder):
            self.start(*self.options)
        _begun.append(self.command)

    def make(self, argument: Argument) -> Result:
        """Workers have one thread, so the current folder is this call's."""
        self.begin()
        with chdir(self.folder):
            return self.function(argument)


class Cluster(parallel.Workers, Generic[Argument, Result]):
    """The workers of a dask cluster.

    Args:
        function: of one argument; of a module, so that the workers find it.
        start: called with ``options`` in each worker before its first call.
        folders: what the workers must see under the same path, beside the current folder.
    """

    def __init__(
        self,
        scheduler: str,
        function: Callable[[Argument], Result],
        start: Callable[..., None],
        options: Sequence[Any],
        folders: Sequence[Path] = (),
    ) -> None:
        super().__init__(scheduler=scheduler)
        here = Path.cwd()
        self._call = _Call(uuid.uuid4().hex, here, function, start, tuple(options))
        self._folders = list(dict.fromkeys([str(here), *(os.path.abspath(folder) for folder in folders)]))

    def __enter__(self) -> Self:
        """Joins the cluster and starts one worker, which says what would be wrong with every call.

        Raises:
            UserError: see ``parallel.Workers``; a worker is of another version, or does not see a folder; else what
                ``start`` raises.
        """
        super().__enter__()
        try:
            self._check()
            self._result(self._client.submit(self._call.begin, pure=False))
        except BaseException:
            self._stack.close()
            raise
        return self

    def results(self, arguments: Sequence[Argument], failed: Callable[[Argument, str], Result]) -> Iterator[Result]:
        """Results in the order in which they are ready.

        Args:
            failed: the result of an argument for which there is none, and why.

        Raises:
            UserError: the scheduler is gone.
        """
        calls = {self._client.submit(self._call.make, argument, pure=False): argument for argument in arguments}
        for future in self._as_ready(list(calls)):
            argument = calls.pop(future)  # what is not kept, the cluster forgets
            try:
                result = self._result(future)
            except _Gone:
                raise
            except Exception as error:
                own = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                result = failed(argument, " ".join(own.split())[:500])
            yield result

    def _check(self) -> None:
        """Raises where a worker could not do what this process can."""
        found = self._client.run(_complaint, self._folders, version("equisynth"), on_error="return")
        for address, complaint in found.items():
            if isinstance(complaint, Exception):
                complaint = f"cannot load this program ({' '.join(str(complaint).split()):.120}); start it where it can"
            if complaint is not None:
                raise UserError(f"--scheduler {self._scheduler}: the worker {address} {complaint}")

    def _result(self, future: Any) -> Any:
        from distributed.scheduler import KilledWorker

        try:
            return future.result()
        except KilledWorker:
            raise UserError(
                "every worker that tried was killed, perhaps for lack of memory; start fewer workers per machine, "
                "then run the same command again"
            ) from None
        except CancelledError:
            raise _Gone(
                f"--scheduler {self._scheduler}: does not answer any more; start it, then run the same command again "
                "to continue"
            ) from None


class _Gone(UserError):
    """There is no cluster any more."""


def stop_if_unwanted(done: int, total: int) -> None:
    """In a worker, as a call's progress: ends the call where whoever asked for it has been stopped or has died."""
    from distributed import get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    if task is None or task.state == "cancelled":
        raise InterruptedError("nobody waits for the result")


def _complaint(folders: Sequence[str], expected: str) -> str | None:
    """In a worker: what it lacks."""
    found = version("equisynth")
    if found != expected:
        return f"has equisynth {found}, expected {expected}; start workers of the same version"
    for folder in folders:
        if not Path(folder).is_dir():
            return f"does not see the folder {folder}; put it on a file system that all machines share"
    return None
