"""Several processes that train one method together, as ``torchrun`` starts them: shares, sums, and one last word."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from equisynth.errors import UserError

MAIN_SPEAKS_FIRST = 5.0
"""Seconds that a process with an error waits: if all found the same mistake, the main one ends its run and says it."""
LAST_WORD = "last word"  # key of the store: how many processes had something to say


class Lost(UserError):
    """Another process ended; if it could, it said why before."""


class Processes:
    """The processes of one training, and this one's place among them. One alone has nothing to wait for.

    What exchanges something must be called by all of them, in the same order.

    Attributes:
        rank: 0 is the main process: it alone writes and prints.
        count: number of processes.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors by their means over the processes, in one exchange.

        For gradients this stands in for DistributedDataParallel, whose hooks expect that a backward pass reaches all
        that the forward passes used: here a step calls networks several times, detached, frozen or not at all. One
        flat sum after the whole backward pass is exact for any graph, and leaves networks and their buffers alone.
        """
        tensors = list(tensors)
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _speaking_of_others():
            dist.all_reduce(flat)
        flat /= self.count
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def meet(self) -> None:
        """Waits until all processes have come here."""
        self.total({})

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Named numbers added up over the processes; one that lacks a name adds nothing to it."""
        if self.count == 1:
            return dict(values)
        parts: list[dict[str, float]] = [{}] * self.count
        with _speaking_of_others():
            dist.all_gather_object(parts, dict(values))
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: sum(part.get(name, 0.0) for part in parts) for name in names}

    def share(self, batch_size: int, halved: bool) -> list[int]:
        """Positions in a joined batch that this process takes: its part of the whole, or of each half.

        Args:
            batch_size: of all processes together.
            halved: the two halves of a batch are used apart (``Batch.halves``), so each is shared on its own.

        Raises:
            UserError: the parts would differ in size; a mean of the processes' means would not be that of the batch.
        """
        middle = batch_size // 2 if halved else 0
        halves = range(middle), range(middle, batch_size)
        if any(len(half) % self.count for half in halves):
            parts = 2 * self.count if halved else self.count
            each = ", each half of it on its own (discriminator and generator)" if halved else ""
            raise UserError(
                f"batch_size is {batch_size}, expected a multiple of {parts}: {self.count} processes share it"
                f"{each}; start another number of processes or change batch_size"
            )
        return [
            position
            for half in halves
            for position in half[self.rank * len(half) // self.count : (self.rank + 1) * len(half) // self.count]
        ]


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that a launcher started (``torchrun`` and all that set its variables); alone without one.

    They end together: all wait for the last, and an error in one ends the others, of which none says a second thing.
    """
    if not launched():
        yield Processes()
        return
    store = _start()
    processes = Processes(dist.get_rank(), dist.get_world_size())
    try:
        yield processes
        processes.meet()
    except BaseException as error:
        wait = not processes.is_main and not isinstance(error, Lost)
        if not _may_speak(store, processes, MAIN_SPEAKS_FIRST if wait else 0.0):
            raise SystemExit(1) from None
        raise
    dist.destroy_process_group()


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _start() -> dist.Store:
    """Starts the exchange; returns the store that all processes see."""
    here, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if 0 < devices < here:
        raise UserError(
            f"{here} processes on a machine with {devices} GPU(s), expected at most one per GPU; start fewer, "
            "or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    try:
        PartialState()
        return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the processes cannot reach each other ({reason}); start them with torchrun") from None


def _may_speak(store: dist.Store, processes: Processes, wait: float) -> bool:
    """Whether no process has said within some seconds why the training ends."""
    try:
        end = time.monotonic() + wait
        while time.monotonic() < end and not store.check([LAST_WORD]):
            time.sleep(0.05)
        return store.add(LAST_WORD, 1) == 1
    except RuntimeError:  # the process that kept the store is gone
        return processes.rank == 1


@contextmanager
def _speaking_of_others() -> Iterator[None]:
    """Within the block a failed exchange is a process that ended."""
    try:
        yield
    except RuntimeError:
        raise Lost(
            "another process of this training ended (killed, or out of memory); run the same command again to continue"
        ) from None
