"""MLflow's runs as the program makes and finds them: tags, flat parameters, commit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from equisynth.store import BATCH, experiment_id, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT, SCALE, CONFIGURATION, MODEL, DATASET_VERSION, PROCESS, REBUILT = (
    f"equisynth.{key}"
    for key in ("experiment", "scale", "configuration", "model_sha256", "dataset_version", "process", "rebuilt")
)
"""Tags by which runs are found and told apart."""
PARENT = "mlflow.parentRunId"
CHANGES = 3
"""At most so many changed parameters are told."""


def create_run(
    client: MlflowClient, task: str, name: str, tags: Mapping[str, str], parameters: Mapping[str, Any]
) -> Run:
    """A run with its tags and flat parameters; those that are none are left out."""
    tags = {"mlflow.source.name": "equisynth", "mlflow.source.type": "LOCAL", **_user(), **_git(), **tags}
    run = client.create_run(experiment_id(client, task), tags=tags, run_name=name)
    log_parameters(client, run, parameters)
    return run


def log_parameters(client: MlflowClient, run: Run, parameters: Mapping[str, Any]) -> None:
    """Gives a run the flat parameters that it lacks: all, or what a killed process did not get to."""
    from mlflow.entities import Param

    entities = [Param(key, value) for key, value in texts(parameters).items() if key not in run.data.params]
    for start in range(0, len(entities), BATCH):
        client.log_batch(run.info.run_id, params=entities[start : start + BATCH])


def log_dataset(client: MlflowClient, run: Run, name: str, version: str) -> None:
    """Says that a run trains on a dataset, in the table's column of datasets."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    dataset = Dataset(name, version[:36], "local", json.dumps({"uri": f"data/prepared/{name}"}))
    inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
    try:
        client.log_inputs(run.info.run_id, inputs)
    except MlflowException:
        # MLflow looks for the dataset, then inserts it: of processes that begin at once only the first one may
        client.log_inputs(run.info.run_id, inputs)


def texts(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Flat parameters as MLflow keeps them."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in flatten(parameters).items()
        if value is not None
    }


def changes(run: Run, parameters: Mapping[str, Any], version: str) -> str:
    """The first parameters, or version of the dataset, in which a new run differs from an old one, in words."""
    dataset_key = "dataset version"
    # parameters that a stage adds of its own are not compared: the new run has none yet
    old = {key: value for key, value in run.data.params.items() if key.partition(".")[0] in parameters}
    old |= {dataset_key: run.data.tags.get(DATASET_VERSION, "unknown")}
    new = texts(parameters) | {dataset_key: version}
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    shown = [f"{key}: {old.get(key, 'none')} -> {new.get(key, 'none')}" for key in keys[:CHANGES]]
    more = f", and {len(keys) - CHANGES} more" if len(keys) > CHANGES else ""
    return ", ".join(shown) + more if keys else "in more than its parameters, such as --precision"


def search(client: MlflowClient, query: str, tasks: list[str] | None = None) -> list[Run]:
    """Runs that match, latest first."""
    experiments = client.search_experiments()
    ids = [found.experiment_id for found in experiments if tasks is None or found.name in tasks]
    return list(client.search_runs(ids, query, order_by=["attributes.start_time DESC"])) if ids else []


def logged_steps(client: MlflowClient, run: Run) -> set[int]:
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
