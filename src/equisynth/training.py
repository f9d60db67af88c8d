"""The loop: epochs, checkpoints, resume, validation, best epoch. It knows the method interface only."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from equisynth.config import Settings
from equisynth.datasets.randomness import named_random_state
from equisynth.errors import Diverged, UserError
from equisynth.files import atomic_path
from equisynth.geometry.transforms import Affine, Image
from equisynth.methods.base import SELECTION, Batch, Method
from equisynth.model import network_state, network_states, read_weights, save_weights
from equisynth.processes import Processes, launched

KEPT_EPOCHS = 6
"""The best of the last six epochs is evaluated (method.md, best epoch); their weights are kept."""
STATE = "state.pt"
LOG_INTERVAL = 10  # optimiser steps between two readings of the losses (each reading waits for the device)
PRECISIONS = ("no", "bf16", "fp16")
DAMAGE = (UserError, UnpicklingError, EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError)
"""What reading a damaged checkpoint raises."""

Record = dict[str, float]
Report = Callable[[Record, float], None]
"""Called after each epoch with its record (epoch, losses, validation) and the seconds it took."""


class Samples(Protocol):
    """A dataset of patches whose sample i depends on (seed, epoch, i) alone."""

    def set_epoch(self, epoch: int) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Mapping[str, np.ndarray | Tensor]: ...


@dataclass
class State:
    """What a resumed run needs besides weights: finished epochs and their records."""

    epoch: int = 0
    history: list[Record] = field(default_factory=list)


class Trainer:
    """Trains a method; resumes from the checkpoints in ``folder`` where there are any.

    With several processes each takes its share of every batch and gradients are averaged, so that they train as one
    would on the joined batches of ``settings.batch_size``. Checkpoints say nothing of their number: a training may be
    resumed with another.

    Args:
        method: networks and optimisers; brought to the device here.
        samples, validation_samples: patches.
        folder: checkpoints, made if absent. Belongs to one configuration: the caller names it by the settings' hash.
        workers: processes that load patches; 0 loads in this one.
        precision: ``no``, ``bf16`` or ``fp16`` for the networks; geometry and losses stay in float32.
        processes: those that train together; by default this one alone.

    Raises:
        UserError: batch_size does not fit the patches or the processes, the device cannot compute in this precision,
            or a checkpoint is damaged.
    """

    def __init__(
        self,
        method: Method,
        settings: Settings,
        samples: Samples,
        validation_samples: Samples,
        folder: Path,
        workers: int = 0,
        precision: str = "no",
        processes: Processes | None = None,
    ) -> None:
        self.method, self.settings, self.folder = method, settings, folder
        self.samples, self.validation_samples, self.workers = samples, validation_samples, workers
        self.processes = processes or Processes()
        if launched() and self.processes.count == 1:
            raise UserError("several processes were started for what one does; only `equisynth train` uses more")
        if self.processes.count > 1 and method.memory():
            raise UserError(
                f"{settings.experiment}: found {self.processes.count} processes, expected one: what method "
                f"'{settings.method}' remembers between steps ({', '.join(method.memory())}) is each process's own, "
                "and only one could continue an interrupted training; start `equisynth train` without torchrun"
            )
        self.share = self.processes.share(settings.batch_size, method.adversary)
        check_precision(precision)
        self.accelerator = Accelerator(mixed_precision=precision)
        if len(samples) < settings.batch_size:
            raise UserError(
                f"batch_size is {settings.batch_size}, but an epoch has only {len(samples)} training patches; "
                "lower batch_size or training_stride, or add cases"
            )
        for name, network in method.networks.items():
            # evaluation_mode: to the device and under autocast, float32 out; nothing that exchanges gradients
            method.networks[name] = self.accelerator.prepare_model(network, evaluation_mode=True)
        for name, optimiser in method.optimisers.items():
            method.optimisers[name] = self.accelerator.prepare_optimizer(optimiser)
        self.state = State()
        self._resume()

    def fit(self, report: Report | None = None, progress: Callable[[int, int, Record], None] | None = None) -> State:
        """Trains the epochs that are left.

        Args:
            report: called after every epoch on the main process.
            progress: called at every reading of the losses with (step, steps, losses).

        Raises:
            Diverged: a loss or a weight became NaN or infinite; the last good checkpoint stays.
        """
        for epoch in range(self.state.epoch + 1, self.settings.epochs + 1):
            start = time.perf_counter()
            losses = self._train_epoch(epoch, progress)
            validation = self._validate()
            self._check_weights(epoch)
            record = {"epoch": float(epoch), **losses, **validation}
            self.state.epoch = epoch
            self.state.history.append(record)
            self._save()
            if report is not None and self.processes.is_main:
                report(record, time.perf_counter() - start)
        return self.state

    def best_epoch(self) -> int:
        """Of the last six epochs the one with the lowest validation measure."""
        last = self.state.history[-KEPT_EPOCHS:]
        return int(min(last, key=lambda record: record[f"validation/{SELECTION}"])["epoch"])

    def weights_of(self, epoch: int) -> dict[str, Tensor]:
        """All networks' tensors after an epoch that is still kept."""
        return read_weights(self._weights_path(epoch))

    def _train_epoch(self, epoch: int, progress: Callable[[int, int, Record], None] | None) -> Record:
        self.samples.set_epoch(epoch)
        self.method.start_epoch(epoch)
        self.method.train()
        # Fixed by the epoch, so that a resumed training draws as an undisturbed one, should a network ever draw.
        state = named_random_state(self.settings.seed, "training", str(epoch), str(self.processes.rank))
        torch.manual_seed(int(state.randint(2**31)))
        sums: dict[str, Tensor] = {}
        size = self.settings.batch_size
        steps = len(self.samples) // size
        places = [[step * size + position for position in self.share] for step in range(steps)]
        for step, batch in enumerate(self._batches(self.samples, places), start=1):
            log: dict[str, Tensor] = {}
            for update in self.method.updates(batch):
                optimiser = self.method.optimisers[update.optimiser]
                optimiser.zero_grad(set_to_none=True)
                self.accelerator.backward(update.loss)
                self.processes.average(gradients(optimiser))
                optimiser.step()
                log |= update.log
            for name, value in log.items():
                sums[name] = sums[name] + value if name in sums else value
            if step % LOG_INTERVAL == 0 or step == steps:
                means = self._means(sums, step * self.processes.count)
                self._check_finite(means, f"epoch {epoch}, step {step}")
                if progress is not None:
                    progress(step, steps, means)
        return {f"train/{name}": value for name, value in means.items()}

    @torch.no_grad()
    def _validate(self) -> Record:
        self.method.train(False)
        sums: dict[str, Tensor] = {}
        count, size = len(self.validation_samples), self.settings.batch_size
        places = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
        for batch in self._batches(self.validation_samples, places[self.processes.rank :: self.processes.count]):
            for name, value in self.method.validation(batch).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * len(batch)
        means = self._means(sums, count)
        self._check_finite(means, f"epoch {self.state.epoch + 1}, validation")
        return {f"validation/{name}": value for name, value in means.items()}

    def _batches(self, samples: Samples, places: list[list[int]]) -> Iterator[Batch]:
        """The batches at given places of an epoch, on the device."""
        device = self.accelerator.device
        loader: DataLoader[dict[str, Tensor]] = DataLoader(
            cast("Dataset[dict[str, Tensor]]", samples), batch_sampler=places, num_workers=self.workers,
            pin_memory=device.type == "cuda",
        )  # fmt: skip
        for sample in loader:
            moved = {name: value.to(device, non_blocking=True) for name, value in sample.items()}
            yield to_batch(moved, self.settings)

    def _means(self, sums: dict[str, Tensor], count: int) -> Record:
        """Sums over this process's batches -> means over all processes' ``count``; the device is read once."""
        if sums:
            values = torch.stack([value.detach().float().reshape(()) for value in sums.values()]) / count
            return self.processes.total(dict(zip(sums, values.tolist(), strict=True)))
        return self.processes.total({})

    def _check_weights(self, epoch: int) -> None:
        """Also what the validation does not use is finite, or the checkpoint would not be a good one."""
        sums = {
            f"weights of {name}": float(sum(value.float().sum() for value in network.state_dict().values()))
            for name, network in self.method.networks.items()
        }
        self._check_finite(sums, f"epoch {epoch}, last step")

    def _check_finite(self, values: Record, where: str) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            kept = f"the checkpoint of epoch {self.state.epoch} is kept" if self.state.epoch else "no checkpoint yet"
            raise Diverged(
                f"training diverged: {', '.join(bad)} not finite in {where}; {kept}; "
                "lower learning_rate or check the data's intensities"
            )

    def _weights_path(self, epoch: int) -> Path:
        return self.folder / f"epoch_{epoch:04d}.safetensors"

    def _save(self) -> None:
        """Weights first, then the state that refers to them: a kill between the two repeats one epoch."""
        if not self.processes.is_main:
            return
        epoch, scaler = self.state.epoch, self.accelerator.scaler
        save_weights(self._weights_path(epoch), network_states(self.method.networks))
        content: dict[str, Any] = {
            "epoch": epoch,
            "history": self.state.history,
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.method.optimisers.items()},
            "scaler": scaler.state_dict() if scaler is not None else {},
            "memory": self.method.memory(),
        }
        buffer = io.BytesIO()  # torch hides it where it cannot write to a file because the disk is full
        torch.save(content, buffer)
        with atomic_path(self.folder / STATE) as temporary:
            temporary.write_bytes(buffer.getbuffer())
        for path in self.folder.glob("epoch_*.safetensors"):
            if int(path.stem.split("_")[1]) <= epoch - KEPT_EPOCHS:
                path.unlink()

    def _resume(self) -> None:
        path = self.folder / STATE
        if path.exists():
            try:
                self._load(path)
            except DAMAGE as error:
                reason = " ".join(str(error).split()).split(". ")[0][:120]
                raise UserError(
                    f"{path}: this checkpoint cannot be continued ({reason}); delete the folder {self.folder} to start "
                    "the training again"
                ) from None
        epochs = self.processes.total({"epoch": self.state.epoch})["epoch"]
        if epochs != self.state.epoch * self.processes.count:
            raise UserError(f"{self.folder}: the processes see different checkpoints; expected a folder that all share")

    def _load(self, path: Path) -> None:
        content = torch.load(path, map_location="cpu", weights_only=True)
        self.state = State(content["epoch"], content["history"])
        weights = self.weights_of(self.state.epoch)
        for name, network in self.method.networks.items():
            network.load_state_dict(network_state(weights, name))
        for name, optimiser in self.method.optimisers.items():
            optimiser.load_state_dict(content["optimisers"][name])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        self.method.recall(content["memory"])


def to_batch(sample: dict[str, Tensor], settings: Settings) -> Batch:
    """Collated patches -> the images and the voxel-unit transformations that methods take."""
    voxel_size, world = settings.data.voxel_size, sample["random_affine"]
    own = settings.transformations_per_sample > 1 and world.ndim == 4  # (B, k, n+1, n+1): the label has its own
    batch = Batch(
        input=Image(sample["input"], sample["input_mask"]),
        label=Image(sample["label"], sample["label_mask"]),
        random=Affine.from_world(world[:, 0] if own else world, voxel_size),
        label_random=Affine.from_world(world[:, 1], voxel_size) if own else None,
    )
    return batch.flattened() if settings.slices else batch


def check_precision(precision: str) -> None:
    """Raises ``UserError`` unless this machine can train in it."""
    if precision not in PRECISIONS:
        raise UserError(f"--precision: found '{precision}', expected one of: {', '.join(PRECISIONS)}")
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--precision fp16 needs a GPU, found none; choose bf16 or no")
    if precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise UserError("--precision bf16: this GPU cannot compute in it; choose fp16 or no")


def gradients(optimiser: Optimizer) -> list[Tensor]:
    """The gradients that an optimiser's next step uses, in the order of its parameters."""
    parameters = (parameter for group in optimiser.param_groups for parameter in group["params"])
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
