"""Runs in MLflow: one per training, with parameters, curves, evaluation, pictures and the version of its dataset.

Stages pass only files: a later stage finds the run of a model by the hash of its weights (`find_run`).
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from equisynth.config import Settings
from equisynth.dataset_versions import trained_on
from equisynth.files import hash_json, read_json, sha256
from equisynth.process_identity import is_alive, this_process
from equisynth.runs import (
    CONFIGURATION,
    DATASET_VERSION,
    EXPERIMENT,
    MODEL,
    PARENT,
    PROCESS,
    REBUILT,
    SCALE,
    changes,
    create_run,
    log_dataset,
    log_parameters,
    logged_steps,
    search,
)  # fmt: skip
from equisynth.store import flatten, log_metrics, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

POLL = 1.0
"""Seconds between two looks at another process."""
PICTURES = "pictures"
"""Folder of a run's artifacts that holds its pictures."""
DETAILS = "evaluation"
"""Folder of a run's artifacts that holds its evaluation as JSON, pooled and per case."""


class TrainingRun:
    """The MLflow run of one training; ``with TrainingRun.start(...) as run`` marks it failed when the block raises.

    Attributes:
        run_id: MLflow's identifier.
    """

    def __init__(self, client: MlflowClient, run: Run, new_run: Callable[[], Run]) -> None:
        self._client, self._new_run = client, new_run
        self.run_id: str = run.info.run_id
        self._epochs = logged_steps(client, run)
        self._continued = bool(self._epochs)

    @classmethod
    def start(
        cls,
        settings: Settings,
        configuration: str,
        dataset_version: str,
        name: str | None = None,
        parent: str | None = None,
        further: Mapping[str, Any] | None = None,
        complete: bool = False,
    ) -> TrainingRun:
        """Continues the unfinished run of the same configuration where there is one, else begins a new one.

        Says on stderr which, and in what the configuration differs from the last run's. Runs that a killed process
        left as running are marked as killed. Where another process of this machine trains the same configuration (a
        killed ``dvc repro`` leaves its stage running), it waits for its end and continues that run.

        Args:
            settings: become the run's flat parameters.
            configuration: hash of everything that determines the training's result.
            dataset_version: see `dataset_version`.
            name: what the table of runs shows; by default experiment and scale.
            parent: run this one is a child of (trials of a search).
            further: parameters beside the settings.
            complete: no epoch is left to train (a kill after the last one): a finished run is continued as well.
        """
        client = open_store(create=True)
        name = name or f"{settings.experiment} ({settings.scale})"
        parameters = settings.model_dump(mode="json") | dict(further or {})
        new_run = partial(_create_run, client, settings, configuration, dataset_version, name, parent, parameters)
        run = _to_continue(client, settings, configuration, parent, complete)
        if run is not None:
            _wait_for_another_process(run)
        if parent is None:
            others = _other_runs(client, settings, run)
            _close_abandoned(client, others)
            _say(settings, configuration, dataset_version, run, others)
        if run is None:
            run = new_run()
        else:
            client.update_run(run.info.run_id, status="RUNNING")
            client.set_tag(run.info.run_id, PROCESS, this_process())
            log_parameters(client, run, parameters)
        return cls(client, run, new_run)

    def log_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """Adds a point to every curve; an epoch that the run has already is not logged again."""
        if self._continued and epoch <= max(self._epochs):  # the checkpoints are gone: this is a training of its own
            print("its checkpoints are gone: starting a new MLflow run", file=sys.stderr)
            self._client.set_terminated(self.run_id, status="KILLED")
            self.run_id = self._new_run().info.run_id
            self._epochs = set()
        self._continued = False
        self._log(epoch, values)

    def finish(self, model_sha256: str, history: Iterable[Mapping[str, float]] = ()) -> None:
        """Ends the run and names the model that came of it.

        Args:
            model_sha256: of the weights file.
            history: records with ``epoch``; those that a killed process did not get to log are added.
        """
        for record in history:
            self._log(int(record["epoch"]), {key: value for key, value in record.items() if key != "epoch"})
        self._client.set_tag(self.run_id, MODEL, model_sha256)
        self._client.set_terminated(self.run_id)

    def end(self, status: str) -> None:
        """Ends the run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self._client.set_terminated(self.run_id, status=status)

    def _log(self, epoch: int, values: Mapping[str, float]) -> None:
        if epoch not in self._epochs:
            log_metrics(self._client, self.run_id, values, epoch)
            self._epochs.add(epoch)

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.end("FAILED" if issubclass(kind, Exception) else "KILLED")


def run_of(experiment: str) -> str:
    """The run of the training that wrote ``models/<experiment>``.

    Outputs that came without runs (``dvc pull``, a lost database) get a run made from them, with the curves of
    ``reports/history/<experiment>.json``.
    """
    folder, history = Path("models") / experiment, Path("reports/history") / f"{experiment}.json"
    settings = Settings.model_validate(read_json(folder / "model.json")["settings"])
    model_sha256 = sha256(folder / "model.safetensors")
    found = find_run(experiment, model_sha256)
    if found is not None:
        return found
    version = trained_on(experiment, settings.dataset)
    return rebuild_run(settings, version, model_sha256, read_json(history) if history.is_file() else ())


def find_run(experiment: str, model_sha256: str) -> str | None:
    """The latest run of an experiment whose training ended in this model; None if there is none."""
    client = open_store(create=True)
    found = search(client, f"tags.`{EXPERIMENT}` = '{experiment}' and tags.`{MODEL}` = '{model_sha256}'")
    return found[0].info.run_id if found else None


def rebuild_run(
    settings: Settings, dataset_version: str, model_sha256: str, history: Iterable[Mapping[str, float]]
) -> str:
    """A run made from a training's outputs."""
    client = open_store(create=True)
    configuration = hash_json([settings.model_dump(mode="json"), dataset_version])
    name, parameters = f"{settings.experiment} ({settings.scale})", settings.model_dump(mode="json")
    new_run = partial(_create_run, client, settings, configuration, dataset_version, name, None, parameters)
    run = _to_continue(client, settings, configuration, None) or new_run()
    client.set_tag(run.info.run_id, REBUILT, "true")
    TrainingRun(client, run, new_run).finish(model_sha256, history)
    return str(run.info.run_id)


def dataset_version_of(run_id: str) -> str:
    """Version of the dataset that a run trained on."""
    return str(open_store().get_run(run_id).data.tags[DATASET_VERSION])


def log_evaluation(run_id: str, evaluation: Mapping[str, Any]) -> int:
    """Logs numbers of a nested evaluation as metrics (``test/mae``), words and truth values (FID's absence) as tags.

    Returns:
        How many of them the run did not have.
    """
    client, flat = open_store(), flatten(evaluation, "/")
    data = client.get_run(run_id).data
    numbers = {key: value for key, value in flat.items() if type(value) in (int, float)}
    numbers = {key: value for key, value in numbers.items() if math.isfinite(value)}
    new = {key: value for key, value in numbers.items() if data.metrics.get(key) != value}
    words = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in flat.items()
        if value is not None and type(value) not in (int, float)
    }
    changed = {key: text for key, text in words.items() if data.tags.get(key) != text}
    log_metrics(client, run_id, new)
    for key, text in changed.items():
        client.set_tag(run_id, key, text)
    return len(new) + len(changed)


def log_details(run_id: str, experiment: str) -> None:
    """Copies an experiment's evaluation, pooled and per case, to the run's artifacts."""
    open_store().log_artifact(run_id, str(Path("reports/evaluation") / f"{experiment}.json"), DETAILS)


def log_files(run_id: str, folder: Path, into: str = PICTURES, missing_only: bool = False) -> int:
    """Copies the files of a folder to the run's artifacts, in the order of their names.

    Args:
        missing_only: leave files alone that the run has under their names.

    Returns:
        How many were copied.
    """
    client = open_store()
    present = {Path(item.path).name for item in client.list_artifacts(run_id, into)} if missing_only else set()
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in present]
    for path in paths:
        client.log_artifact(run_id, str(path), into)
    return len(paths)


def _create_run(
    client: MlflowClient,
    settings: Settings,
    configuration: str,
    version: str,
    name: str,
    parent: str | None,
    parameters: Mapping[str, Any],
) -> Run:
    data = settings.data
    note = f"{data.input.modality} → {data.label.modality}, {settings.method} method, {settings.scale} scale."
    tags = {
        EXPERIMENT: settings.experiment,
        SCALE: settings.scale,
        CONFIGURATION: configuration,
        DATASET_VERSION: version,
        PROCESS: this_process(),
        "mlflow.note.content": f"{note} Dataset {settings.dataset} at version {version}.",
    }
    if parent is not None:
        tags[PARENT] = parent
    run = create_run(client, settings.dataset, name, tags, parameters)
    log_dataset(client, run, settings.dataset, version)
    return run


def _to_continue(
    client: MlflowClient, settings: Settings, configuration: str, parent: str | None, complete: bool = False
) -> Run | None:
    """The latest run of a configuration that is not finished; where the training is complete, also a finished one."""
    query = f"tags.`{EXPERIMENT}` = '{settings.experiment}' and tags.`{CONFIGURATION}` = '{configuration}'"
    if parent is not None:
        query += f" and tags.`{PARENT}` = '{parent}'"
    if not complete:
        query += " and attributes.status != 'FINISHED'"
    found = search(client, query, [settings.dataset])
    return next((run for run in found if (run.data.tags.get(PARENT) == parent)), None)


def _other_runs(client: MlflowClient, settings: Settings, run: Run | None) -> list[Run]:
    """Trainings of an experiment, trials of searches and the given one left out; latest first."""
    found = search(client, f"tags.`{EXPERIMENT}` = '{settings.experiment}'", [settings.dataset])
    own = run.info.run_id if run else None
    return [other for other in found if PARENT not in other.data.tags and other.info.run_id != own]


def _wait_for_another_process(run: Run) -> None:
    process = run.data.tags.get(PROCESS, "")
    if run.info.status != "RUNNING" or process == this_process() or not is_alive(process):
        return
    what = f"MLflow run {run.info.run_name} ({run.info.run_id})"
    print(f"{what}: waiting for process {process.split('/')[1]}, which is training it", file=sys.stderr)
    while is_alive(process):
        time.sleep(POLL)


def _close_abandoned(client: MlflowClient, runs: Iterable[Run]) -> None:
    """Runs that still count as running though their process on this machine is gone."""
    for run in runs:
        if run.info.status == "RUNNING" and is_alive(run.data.tags.get(PROCESS, "")) is False:
            client.set_terminated(run.info.run_id, status="KILLED")
            print(
                f"MLflow run {run.info.run_name} ({run.info.run_id}): its process is gone, marked KILLED",
                file=sys.stderr,
            )


def _say(settings: Settings, configuration: str, version: str, run: Run | None, others: list[Run]) -> None:
    """Whether a run is continued, or why a new one begins."""
    if run is not None:
        print(f"continuing MLflow run {run.info.run_name} ({run.info.run_id})", file=sys.stderr)
    elif any(other.data.tags.get(CONFIGURATION) == configuration for other in others):
        print("this configuration's MLflow run is finished: starting a new run", file=sys.stderr)
    elif others:
        what = changes(others[0], settings.model_dump(mode="json"), version)
        print(f"configuration changed ({what}): starting a new run", file=sys.stderr)
