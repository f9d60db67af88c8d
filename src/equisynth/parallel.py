"""One function over many arguments, in processes of this computer or on a dask cluster; results as they come."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, chdir
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from equisynth.errors import UserError

Argument = TypeVar("Argument")
Result = TypeVar("Result")
SECONDS = 10
"""How long a scheduler and its first worker may take to answer."""
POLL = 0.1
"""Seconds between two looks at what is ready."""


class Workers:
    """Processes that compute: ``jobs`` of them here (-1: one per core), or those of a dask ``scheduler``.

    joblib's own dask backend returns nothing before all is done, hence no progress; so the cluster is asked directly.
    """

    def __init__(self, jobs: int = 1, scheduler: str | None = None) -> None:
        self._jobs, self._scheduler, self._stack = jobs, scheduler, ExitStack()
        self._client: Any = None

    def __enter__(self) -> Self:
        """Joins the cluster, if there is one.

        Raises:
            UserError: dask is not installed, nothing answers, or its workers compute in several threads.
        """
        if self._scheduler is not None:
            self._client = self._stack.enter_context(_join(self._scheduler))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def count(self) -> int:
        """How many compute at once."""
        if self._client is not None:
            return len(self._client.nthreads())
        from joblib import effective_n_jobs

        return max(1, effective_n_jobs(self._jobs))

    def map(self, function: Callable[[Argument], Result], arguments: Sequence[Argument]) -> Iterator[Result]:
        """Results in the order in which they are ready.

        Raises:
            UserError: the cluster's workers do not see this folder; else what ``function`` raises.
        """
        here = Path.cwd()  # workers keep the folder that they were started in, here and on a cluster
        if self._client is None:
            from joblib import Parallel, delayed

            # joblib replaces a worker whose memory has grown and calls it stopped
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            parallel = Parallel(n_jobs=self._jobs, return_as="generator_unordered")
            yield from parallel(delayed(_from_folder)(here, function, argument) for argument in arguments)
            return
        # pure: the same call twice is computed twice, whatever the cluster remembers
        futures = [self._client.submit(_from_folder, here, function, argument, pure=False) for argument in arguments]
        for future in self._as_ready(futures):
            yield future.result()

    def _as_ready(self, futures: Iterable[Any]) -> Iterator[Any]:
        """The cluster's futures as they are ready. It says on stderr when no worker is left: the work waits for one."""
        from distributed import as_completed

        ready, told, looked = as_completed(futures, loop=self._client.loop), False, time.monotonic()
        del futures  # what is not kept, the cluster forgets
        while not ready.is_empty():
            if ready.has_ready():
                yield next(ready)
                continue
            time.sleep(POLL)
            if not told and time.monotonic() - looked > SECONDS:
                told, looked = self._told_if_deserted(), time.monotonic()

    def _told_if_deserted(self) -> bool:
        try:
            deserted = not self._client.nthreads()
        except OSError:  # the scheduler is gone, too: its futures say so
            return True
        if deserted:
            command = f"dask worker {self._scheduler} --nthreads 1"
            print(f"--scheduler {self._scheduler}: no worker is left; waiting for one: {command}", file=sys.stderr)
        return deserted


def _from_folder(folder: Path, function: Callable[[Argument], Result], argument: Argument) -> Result:
    """On a worker: with relative paths as they are meant here. Workers have one thread, so the folder is theirs."""
    if not folder.is_dir():
        raise UserError(f"{folder}: the cluster's workers do not see this folder; it must lie on a shared file system")
    with chdir(folder):
        return function(argument)


def _join(scheduler: str) -> Any:
    """A client of the cluster, with one worker or more of one thread each."""
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise UserError(
            f"--scheduler {scheduler}: dask is not installed; pip install '.[cluster]' in the repository, or leave it "
            "out"
        ) from None
    try:
        client = Client(scheduler, timeout=SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # TimeoutError is an OSError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--scheduler {scheduler}: does not answer as a dask scheduler ({reason:.160}); expected an address such "
            "as tcp://127.0.0.1:8786"
        ) from None
    try:
        client.wait_for_workers(1, timeout=SECONDS)
    except TimeoutError:
        client.close()
        raise UserError(
            f"--scheduler {scheduler}: has no worker; start some: dask worker {scheduler} --nthreads 1"
        ) from None
    threads = max(client.nthreads().values())
    if threads > 1:
        client.close()
        raise UserError(
            f"--scheduler {scheduler}: has a worker of {threads} threads, expected 1, so that results are the same "
            f"everywhere; start them so: dask worker {scheduler} --nworkers {threads} --nthreads 1"
        )
    return client
