"""Stage ``train``: a prepared dataset -> models/<experiment>/ and reports/history/<experiment>.json."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from equisynth.config import Settings
from equisynth.dataset_versions import dataset_version
from equisynth.datasets.opened import open_dataset
from equisynth.datasets.patches import TrainingPatches, ValidationPatches
from equisynth.datasets.prepared import PreparedDataset
from equisynth.description import FORMAT, Description, write_description
from equisynth.files import atomic_folder, atomic_path, hash_json, remove, sha256, write_json
from equisynth.methods.base import SELECTION, build_method, method_class, method_options
from equisynth.model import WEIGHTS, save_weights
from equisynth.params import read, resolve
from equisynth.processes import Processes
from equisynth.tracking import TrainingRun
from equisynth.training import KEPT_EPOCHS, Record, Trainer, check_precision
from equisynth.work import code_version, discard_committed

OnEpoch = Callable[[int, dict[str, float]], None]
HISTORY = Path("reports/history")
CHECKPOINTS = Path(".equisynth/checkpoints")
CODE = "code"
"""File beside checkpoints: hash of the program's files that wrote them."""


def run(
    experiment: str,
    prepared: Path,
    out: Path,
    workers: int = 0,
    precision: str = "no",
    processes: Processes | None = None,
) -> None:
    """Trains an experiment of ``params.yaml``, resuming an interrupted training of the same configuration.

    Of several processes all train; the main one alone writes, tracks and prints.
    """
    settings = resolve(read(), experiment, options=method_options)
    check_precision(precision)
    dataset = open_dataset(prepared, settings)
    version = dataset_version(prepared)
    configuration = hash_json([settings.model_dump(mode="json"), version, precision])
    checkpoints = CHECKPOINTS / f"{experiment}-{configuration}"
    processes = processes or Processes()
    method_class(settings.method)  # its file is part of the code
    if processes.is_main:
        discard_committed(CHECKPOINTS.parent)
        discard_outdated(checkpoints, experiment)
    processes.meet()
    trainer = build_trainer(settings, dataset, checkpoints, workers, precision, processes)  # or says what is wrong
    if not processes.is_main:
        processes.meet()
        fit(trainer, lambda epoch, values: None)
        return
    complete = trainer.state.epoch >= settings.epochs
    with TrainingRun.start(
        settings, configuration, version, further={"precision": precision}, complete=complete
    ) as tracked:
        processes.meet()
        history = fit(trainer, tracked.log_epoch)
        write_model(trainer, dataset, out)
        write_json(HISTORY / f"{experiment}.json", history)
        tracked.finish(sha256(out / WEIGHTS), history)


def discard_outdated(checkpoints: Path, experiment: str) -> None:
    """Removes checkpoints that other code wrote: a training is of one piece, and DVC runs it again for that reason."""
    mark, version = checkpoints / CODE, code_version()
    if mark.is_file() and mark.read_text(encoding="utf-8") != version:
        print(f"{experiment}: the program changed since its checkpoints were written: starting again", file=sys.stderr)
        remove(checkpoints)
    with atomic_path(mark) as temporary:
        temporary.write_text(version, encoding="utf-8")


def train_once(
    settings: Settings,
    dataset: PreparedDataset,
    folder: Path,
    on_epoch: OnEpoch,
    checkpoints: Path | None = None,
) -> list[Record]:
    """Trains one configuration in this process and writes its model.

    Args:
        folder: gets what `write_model` writes.
        on_epoch: see `fit`.
        checkpoints: where the resume state is kept; by default beside ``folder``.

    Returns:
        One record per epoch.
    """
    trainer = build_trainer(settings, dataset, checkpoints or folder.with_name(f"{folder.name}-checkpoints"))
    history = fit(trainer, on_epoch)
    write_model(trainer, dataset, folder)
    return history


def build_trainer(
    settings: Settings,
    dataset: PreparedDataset,
    checkpoints: Path,
    workers: int = 0,
    precision: str = "no",
    processes: Processes | None = None,
) -> Trainer:
    """A trainer of the method of ``settings`` on a dataset, continuing from ``checkpoints``.

    Raises:
        UserError: the dataset is not what the settings say, or see `Trainer`.
    """
    dataset.require(settings.data, f"the parameters of '{settings.dataset}' at scale '{settings.scale}' say")
    return Trainer(
        build_method(settings),
        settings,
        TrainingPatches(dataset, settings, "train", settings.seed),
        ValidationPatches(dataset, settings, "validate", settings.seed),
        checkpoints,
        workers,
        precision,
        processes,
    )


def fit(trainer: Trainer, on_epoch: OnEpoch) -> list[Record]:
    """Trains the epochs that are left, with a progress bar.

    Args:
        on_epoch: called with the epoch and its values, ``seconds`` among them; may raise to stop.
    """
    settings = trainer.settings
    console = Console(file=sys.stderr, quiet=not trainer.processes.is_main)
    if trainer.state.epoch:
        console.print(f"{settings.experiment}: continuing after epoch {trainer.state.epoch}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console.quiet or not console.is_terminal) as bar:
        task = bar.add_task("")

        def progress(step: int, steps: int, losses: Record) -> None:
            epoch = f"epoch {trainer.state.epoch + 1}/{settings.epochs}"
            values = " ".join(f"{name} {value:.3g}" for name, value in sorted(losses.items()))
            bar.update(task, description=f"{epoch} {values:.90}", completed=step, total=steps)

        def report(record: Record, seconds: float) -> None:
            measure = record[f"validation/{SELECTION}"]
            console.print(f"epoch {record['epoch']:.0f}/{settings.epochs}  validation {measure:.4f}  {seconds:.1f} s")
            values = {key: value for key, value in record.items() if key != "epoch"}
            on_epoch(int(record["epoch"]), values | {"seconds": seconds})

        return trainer.fit(report, progress).history


def write_model(trainer: Trainer, dataset: PreparedDataset, folder: Path) -> None:
    """Writes model.safetensors and model.json of the best epoch and epochs/ (the last six), all or nothing."""
    best = trainer.best_epoch()
    history = trainer.state.history
    with atomic_folder(folder) as temporary:
        for record in history[-KEPT_EPOCHS:]:
            epoch = int(record["epoch"])
            path = temporary / "epochs" / f"epoch_{epoch:04d}.safetensors"
            save_weights(path, trainer.weights_of(epoch))
        save_weights(temporary / WEIGHTS, trainer.weights_of(best))
        selection = history[best - 1][f"validation/{SELECTION}"]
        description = Description(
            format=FORMAT,
            settings=trainer.settings,
            preparation=dataset.info.preparation,
            best_epoch=best,
            selection=selection,
        )
        write_description(temporary, description)
