"""Stage ``train``: a prepared dataset -> models/<experiment>/ and reports/history/<experiment>.json."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from equisynth.config import Settings
from equisynth.datasets.patches import TrainingPatches, ValidationPatches
from equisynth.datasets.prepared import PreparedDataset
from equisynth.files import atomic_folder, hash_json, sha256, write_json
from equisynth.methods.base import SELECTION, build_method
from equisynth.model import FORMAT, WEIGHTS, Description, save_weights, write_description
from equisynth.params import read, resolve
from equisynth.tracking import TrainingRun, dataset_version
from equisynth.training import KEPT_EPOCHS, Record, Trainer

HISTORY = Path("reports/history")
CHECKPOINTS = Path(".equisynth/checkpoints")


def run(experiment: str, prepared: Path, out: Path, workers: int = 0, precision: str = "no") -> None:
    """Trains an experiment of ``params.yaml``, resuming an interrupted training of the same configuration."""
    settings = resolve(read(), experiment)
    dataset = PreparedDataset.open(prepared)
    version = dataset_version(prepared)
    configuration = hash_json([settings.model_dump(mode="json"), version, precision])
    checkpoints = CHECKPOINTS / f"{experiment}-{configuration}"
    with TrainingRun.start(settings, configuration, version) as tracked:
        history = train_once(settings, dataset, out, tracked.log_epoch, checkpoints, workers, precision)
        write_json(HISTORY / f"{experiment}.json", history)
        tracked.finish(sha256(out / WEIGHTS), history)


def train_once(
    settings: Settings,
    dataset: PreparedDataset,
    folder: Path,
    on_epoch: Callable[[int, dict[str, float]], None],
    checkpoints: Path | None = None,
    workers: int = 0,
    precision: str = "no",
) -> list[Record]:
    """Trains one configuration and writes its model.

    Args:
        folder: gets model.safetensors, model.json and epochs/ (the last six), whole or not at all.
        on_epoch: called with the epoch and its values, ``seconds`` among them; may raise to stop.
        checkpoints: where the resume state is kept; by default beside ``folder``.

    Returns:
        One record per epoch.
    """
    dataset.require(settings.data, f"the parameters of '{settings.dataset}' at scale '{settings.scale}' say")
    checkpoints = checkpoints or folder.with_name(f"{folder.name}-checkpoints")
    trainer = Trainer(
        build_method(settings),
        settings,
        TrainingPatches(dataset, settings, "train", settings.seed),
        ValidationPatches(dataset, settings, "validate", settings.seed),
        checkpoints,
        workers,
        precision,
    )
    console = Console(file=sys.stderr)
    if trainer.state.epoch:
        console.print(f"{settings.experiment}: continuing after epoch {trainer.state.epoch}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
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

        state = trainer.fit(report, progress)
    if trainer.accelerator.is_main_process:
        _write(settings, dataset, trainer, folder)
    return state.history


def _write(settings: Settings, dataset: PreparedDataset, trainer: Trainer, folder: Path) -> None:
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
            settings=settings,
            preparation=dataset.info.preparation,
            best_epoch=best,
            selection=selection,
        )
        write_description(temporary, description)
