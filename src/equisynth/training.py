"""The loop: epochs, checkpoints, resume, validation, best epoch. It knows the method interface only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from equisynth.config import Settings
from equisynth.errors import UserError
from equisynth.files import atomic_path
from equisynth.geometry.transforms import Affine, Image
from equisynth.methods.base import SELECTION, Batch, Method
from equisynth.model import network_states, read_weights, save_weights

KEPT_EPOCHS = 6
"""The best of the last six epochs is evaluated (method.md, best epoch); their weights are kept."""
STATE = "state.pt"
LOG_INTERVAL = 10  # optimiser steps between two readings of the losses (each reading waits for the device)

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

    Args:
        method: networks and optimisers; wrapped here for device and processes.
        samples, validation_samples: patches.
        folder: checkpoints, made if absent. Belongs to one configuration: the caller names it by the settings' hash.
        workers: processes that load patches; 0 loads in this one.
        precision: ``no``, ``bf16`` or ``fp16`` for the networks; geometry and losses stay in float32.
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
    ) -> None:
        self.method, self.settings, self.folder = method, settings, folder
        self.samples, self.validation_samples, self.workers = samples, validation_samples, workers
        self.accelerator = Accelerator(mixed_precision=precision)
        if len(samples) < settings.batch_size:
            raise UserError(
                f"batch_size is {settings.batch_size}, but an epoch has only {len(samples)} training patches; "
                "lower batch_size or training_stride, or add cases"
            )
        self.raw_networks = dict(method.networks)
        for name, network in method.networks.items():
            method.networks[name] = self.accelerator.prepare_model(network)
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
            UserError: a loss became NaN or infinite; the last good checkpoint stays.
        """
        for epoch in range(self.state.epoch + 1, self.settings.epochs + 1):
            start = time.perf_counter()
            losses = self._train_epoch(epoch, progress)
            validation = self._validate()
            record = {"epoch": float(epoch), **losses, **validation}
            self.state.epoch = epoch
            self.state.history.append(record)
            self._save()
            if report is not None and self.accelerator.is_main_process:
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
        self.method.train()
        sums: dict[str, Tensor] = {}
        steps = len(self.samples) // self.settings.batch_size
        for step, batch in enumerate(self._batches(self.samples, drop_last=True), start=1):
            log: dict[str, Tensor] = {}
            for update in self.method.updates(batch):
                optimiser = self.method.optimisers[update.optimiser]
                optimiser.zero_grad(set_to_none=True)
                self.accelerator.backward(update.loss)
                optimiser.step()
                log |= update.log
            for name, value in log.items():
                sums[name] = sums[name] + value if name in sums else value
            if step % LOG_INTERVAL == 0 or step == steps:
                means = _means(sums, step)
                self._check_finite(means, epoch, step)
                if progress is not None:
                    progress(step, steps, means)
        return {f"train/{name}": value for name, value in _means(sums, steps).items()}

    @torch.no_grad()
    def _validate(self) -> Record:
        self.method.train(False)
        sums: dict[str, Tensor] = {}
        for batch in self._batches(self.validation_samples, drop_last=False):
            for name, value in self.method.validation(batch).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * len(batch)
        means = _means(sums, len(self.validation_samples))
        self._check_finite(means, self.state.epoch + 1, 0)
        return {f"validation/{name}": value for name, value in means.items()}

    def _batches(self, samples: Samples, drop_last: bool) -> Iterator[Batch]:
        # The view hides set_epoch from accelerate, which would call it with a count of its own.
        dataset = Subset(cast("Dataset[dict[str, Tensor]]", samples), range(len(samples)))
        loader: Iterable[dict[str, Tensor]] = DataLoader(
            dataset, batch_size=self.settings.batch_size, drop_last=drop_last, num_workers=self.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )  # fmt: skip
        for sample in self.accelerator.prepare_data_loader(loader):
            yield to_batch(sample, self.settings.data.voxel_size)

    def _check_finite(self, means: Record, epoch: int, step: int) -> None:
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            kept = f"the checkpoint of epoch {self.state.epoch} is kept" if self.state.epoch else "no checkpoint yet"
            raise UserError(
                f"training diverged: {', '.join(bad)} not finite in epoch {epoch}, step {step}; {kept}; "
                "lower learning_rate or check the data's intensities"
            )

    def _weights_path(self, epoch: int) -> Path:
        return self.folder / f"epoch_{epoch:04d}.safetensors"

    def _save(self) -> None:
        """Weights first, then the state that refers to them: a kill between the two repeats one epoch."""
        if not self.accelerator.is_main_process:
            return
        epoch = self.state.epoch
        save_weights(self._weights_path(epoch), network_states(self.raw_networks))
        content: dict[str, Any] = {
            "epoch": epoch,
            "history": self.state.history,
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.method.optimisers.items()},
            "random_state": torch.get_rng_state(),
        }
        with atomic_path(self.folder / STATE) as temporary:
            torch.save(content, temporary)
        for path in self.folder.glob("epoch_*.safetensors"):
            if int(path.stem.split("_")[1]) <= epoch - KEPT_EPOCHS:
                path.unlink()

    def _resume(self) -> None:
        path = self.folder / STATE
        if not path.exists():
            return
        content = torch.load(path, map_location="cpu", weights_only=True)
        self.state = State(content["epoch"], content["history"])
        weights = self.weights_of(self.state.epoch)
        for name, network in self.raw_networks.items():
            prefix = f"{name}."
            network.load_state_dict(
                {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
            )
        for name, optimiser in self.method.optimisers.items():
            optimiser.load_state_dict(content["optimisers"][name])
        torch.set_rng_state(content["random_state"])


def to_batch(sample: dict[str, Tensor], voxel_size: tuple[float, ...]) -> Batch:
    """Collated patches -> the images and the voxel-unit transformation that methods take."""
    return Batch(
        input=Image(sample["input"], sample["input_mask"]),
        label=Image(sample["label"], sample["label_mask"]),
        random=Affine.from_world(sample["random_affine"], voxel_size),
    )


def _means(sums: dict[str, Tensor], count: int) -> Record:
    """One device read for all values."""
    if not sums:
        return {}
    values = torch.stack([value.detach().float().reshape(()) for value in sums.values()]) / count
    return dict(zip(sums, values.tolist(), strict=True))
