"""Runs in MLflow: one per training, with parameters, curves, evaluation, pictures and the version of its dataset.

Stages pass only files: a later stage finds the run of a model by the hash of its weights (`find_run`).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from equisynth.config import Settings
from equisynth.files import hash_json, read_json, sha256
from equisynth.store import BATCH, experiment_id, flatten, log_metrics, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT, SCALE, CONFIGURATION, MODEL, DATASET_VERSION = (
    f"equisynth.{key}" for key in ("experiment", "scale", "configuration", "model_sha256", "dataset_version")
)
"""Tags by which runs are found."""
PICTURES = "pictures"
"""Folder of a run's artifacts that holds its pictures."""


class TrainingRun:
    """The MLflow run of one training; ``with TrainingRun.start(...) as run`` marks it failed when the block raises.

    Attributes:
        run_id: MLflow's identifier.
    """

    def __init__(self, client: MlflowClient, run: Run, new_run: Callable[[], Run]) -> None:
        self._client, self._new_run = client, new_run
        self.run_id: str = run.info.run_id
        self._epochs = _logged_steps(client, run)
        self._continued = bool(self._epochs)

    @classmethod
    def start(
        cls,
        settings: Settings,
        configuration: str,
        dataset_version: str,
        name: str | None = None,
        parent: str | None = None,
    ) -> TrainingRun:
        """Continues the unfinished run of the same configuration where there is one, else begins a new one.

        Args:
            settings: become the run's flat parameters.
            configuration: hash of everything that determines the training's result.
            dataset_version: see `dataset_version`.
            name: what the table of runs shows; by default experiment and scale.
            parent: run this one is a child of (trials of a search).
        """
        client = open_store(create=True)
        name = name or f"{settings.experiment} ({settings.scale})"
        new_run = partial(_create_run, client, settings, configuration, dataset_version, name, parent)
        run = _unfinished(client, settings, configuration, parent)
        if run is None:
            run = new_run()
        else:
            client.update_run(run.info.run_id, status="RUNNING")
        return cls(client, run, new_run)

    def log_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """Adds a point to every curve; an epoch that the run has already is not logged again."""
        if self._continued and epoch <= max(self._epochs):  # the checkpoints are gone: this is a training of its own
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
    version = dataset_version(Path("data/prepared") / settings.dataset)
    return rebuild_run(settings, version, model_sha256, read_json(history) if history.is_file() else ())


def find_run(experiment: str, model_sha256: str) -> str | None:
    """The latest run of an experiment whose training ended in this model; None if there is none."""
    client = open_store(create=True)
    found = _search(client, f"tags.`{EXPERIMENT}` = '{experiment}' and tags.`{MODEL}` = '{model_sha256}'")
    return found[0].info.run_id if found else None


def rebuild_run(
    settings: Settings, dataset_version: str, model_sha256: str, history: Iterable[Mapping[str, float]]
) -> str:
    """A run made from a training's outputs."""
    configuration = hash_json([settings.model_dump(mode="json"), dataset_version])
    with TrainingRun.start(settings, configuration, dataset_version) as run:
        run.finish(model_sha256, history)
    open_store().set_tag(run.run_id, "equisynth.rebuilt", "true")
    return run.run_id


def dataset_version_of(run_id: str) -> str:
    """Version of the dataset that a run trained on."""
    return str(open_store().get_run(run_id).data.tags[DATASET_VERSION])


def log_evaluation(run_id: str, evaluation: Mapping[str, Any]) -> None:
    """Logs numbers of a nested evaluation as metrics (``test/mae``), words and truth values (FID's absence) as tags."""
    client, flat = open_store(), flatten(evaluation, "/")
    old = client.get_run(run_id).data.metrics
    numbers = {key: value for key, value in flat.items() if type(value) in (int, float)}
    log_metrics(client, run_id, {key: value for key, value in numbers.items() if old.get(key) != value})
    for key, value in flat.items():
        if value is not None and key not in numbers:
            client.set_tag(run_id, key, value if isinstance(value, str) else json.dumps(value))


def log_files(run_id: str, folder: Path, into: str = PICTURES) -> None:
    """Copies the files of a folder to the run's artifacts, in the order of their names."""
    client = open_store()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            client.log_artifact(run_id, str(path), into)


def dataset_version(prepared: Path | str) -> str:
    """DVC's hash of a prepared dataset from ``dvc.lock``; without it a hash of its description."""
    import yaml

    prepared, lock = Path(prepared), Path("dvc.lock")
    if lock.is_file():
        stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages") or {}
        for stage in stages.values():
            for out in stage.get("outs", ()):
                if Path(out["path"]) == prepared and "md5" in out:
                    return str(out["md5"])
    return f"json-{sha256(prepared / 'dataset.json')[:24]}"


def create_run(
    client: MlflowClient, task: str, name: str, tags: Mapping[str, str], parameters: Mapping[str, Any]
) -> Run:
    """A run with its tags and flat parameters; those that are none are left out."""
    from mlflow.entities import Param

    tags = {"mlflow.source.name": "equisynth", "mlflow.source.type": "LOCAL", **_user(), **_git(), **tags}
    run = client.create_run(experiment_id(client, task), tags=tags, run_name=name)
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in flatten(parameters).items()
        if value is not None
    }
    entities = [Param(key, value) for key, value in texts.items()]
    for start in range(0, len(entities), BATCH):
        client.log_batch(run.info.run_id, params=entities[start : start + BATCH])
    return run


def _create_run(
    client: MlflowClient, settings: Settings, configuration: str, version: str, name: str, parent: str | None
) -> Run:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = settings.data
    note = f"{data.input.modality} → {data.label.modality}, {settings.method} method, {settings.scale} scale."
    tags = {
        EXPERIMENT: settings.experiment,
        SCALE: settings.scale,
        CONFIGURATION: configuration,
        DATASET_VERSION: version,
        "mlflow.note.content": f"{note} Dataset {settings.dataset} at version {version}.",
    }
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    run = create_run(client, settings.dataset, name, tags, settings.model_dump(mode="json"))
    source = json.dumps({"uri": f"data/prepared/{settings.dataset}"})
    dataset = Dataset(settings.dataset, version[:36], "local", source)
    client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    return run


def _unfinished(client: MlflowClient, settings: Settings, configuration: str, parent: str | None) -> Run | None:
    query = f"tags.`{EXPERIMENT}` = '{settings.experiment}' and tags.`{CONFIGURATION}` = '{configuration}'"
    if parent is not None:
        query += f" and tags.`mlflow.parentRunId` = '{parent}'"
    found = _search(client, f"{query} and attributes.status != 'FINISHED'", [settings.dataset])
    return next((run for run in found if (run.data.tags.get("mlflow.parentRunId") == parent)), None)


def _search(client: MlflowClient, query: str, tasks: list[str] | None = None) -> list[Run]:
    """Runs that match, latest first."""
    experiments = client.search_experiments()
    ids = [found.experiment_id for found in experiments if tasks is None or found.name in tasks]
    return list(client.search_runs(ids, query, order_by=["attributes.start_time DESC"])) if ids else []


def _logged_steps(client: MlflowClient, run: Run) -> set[int]:
    curves = [key for key in run.data.metrics if key.startswith(("train/", "validation/"))]
    return {point.step for point in client.get_metric_history(run.info.run_id, curves[0])} if curves else set()


def _user() -> dict[str, str]:
    import getpass

    try:
        return {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):
        return {}


def _git() -> dict[str, str]:
    """Commit, and whether tracked files differ from it; ``dvc.lock`` differs in every reproduction: not counted."""

    def output(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        commit = output("rev-parse", "--verify", "HEAD")
        changes = output("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "equisynth.git_dirty": str(bool(changes)).lower()}
