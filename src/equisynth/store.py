"""Where MLflow keeps its things: a database made once, opened with clear errors, and movable with the repository.

MLflow's own defaults are used (``mlflow.db`` and ``mlruns/`` in the working directory), so that ``mlflow ui`` typed
bare in the repository shows everything; ``MLFLOW_TRACKING_URI`` is respected. Artifact roots are stored relative to
the repository.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from equisynth.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 100
"""MLflow takes at most this many parameters in one request."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Makes the user interface offer what fits trained models, not conversations."""


def flatten(tree: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> one mapping of joined keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, separator, f"{prefix}{key}{separator}")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def log_metrics(client: MlflowClient, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
    """Logs finite numbers in as few requests as MLflow allows."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(key, float(value), now, step) for key, value in values.items() if math.isfinite(value)]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])


def open_store(create: bool = False) -> MlflowClient:
    """MLflow's client on a store that exists.

    Args:
        create: make the database if there is none. Reading must not: an empty database would hide the mistake.

    Raises:
        UserError: no database, or one that cannot be read.
    """
    database = database_path()
    absent = database is not None and (not database.is_file() or not database.stat().st_size)
    if absent and database is not None and not create:
        raise UserError(
            f"{database.name}: not found, or empty, in {database.parent}; run in the repository (after dvc repro), "
            "or set MLFLOW_TRACKING_URI"
        )
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    where = database or os.environ["MLFLOW_TRACKING_URI"]
    try:
        # processes that meet on a fresh database race in its schema migration
        with _alone(database.parent) if create and database is not None else nullcontext():
            client = MlflowClient()
            client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{where}: MLflow cannot open it ({reason:.160}); free, mend or remove it") from None
    return client


def database_path() -> Path | None:
    """MLflow's SQLite file, absolute; None where a server or another database keeps the runs."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return Path.cwd() / "mlflow.db"
    return Path(unquote(uri.removeprefix("sqlite:///"))).absolute() if uri.startswith("sqlite:///") else None


def experiment_id(client: MlflowClient, name: str) -> str:
    """MLflow's experiment of a task (``ixi``), made or restored if need be."""
    found = client.get_experiment_by_name(name)
    if found is None:
        created: str = client.create_experiment(name, tags=KIND)
        _relative_roots()
        return created
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _relative_roots() -> None:
    """Stores artifact roots relative to the repository; MLflow makes them absolute and then loses them in a move."""
    import sqlite3

    database = database_path()
    if database is None or database.parent != Path.cwd():
        return
    root = f"{database.parent.as_posix()}/"
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = substr(artifact_location, ?) "
            "WHERE substr(artifact_location, 1, ?) = ?",
            (len(root) + 1, len(root), root),
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    import fcntl

    lock = folder / ".equisynth" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
