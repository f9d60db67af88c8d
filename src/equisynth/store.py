"""Where MLflow keeps its things: a database made once, opened with clear errors, and movable with the repository.

MLflow's own defaults are used (``mlflow.db`` and ``mlruns/`` in the working directory), so that ``mlflow ui`` typed
bare in the repository shows everything; ``MLFLOW_TRACKING_URI`` is respected. Places of artifacts are stored relative
to the repository.
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
WAIT = 20.0
"""Seconds to wait for a database that another process has locked; MLflow's own statements wait as long."""
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's tables that say where files lie."""
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
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):  # after the import, which sets levels of its own
        logging.getLogger(name).setLevel(logging.ERROR)
    where = database or os.environ["MLFLOW_TRACKING_URI"]
    try:
        # processes that meet on a fresh database race in its schema migration
        with alone("mlflow", database.parent) if create and database is not None else nullcontext():
            if database is not None and not absent:
                _relative_places(database)
            client = MlflowClient()
            client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(f"{where}: MLflow cannot open it ({_reason(error)}); free, mend or remove it") from None
    if database is not None and absent:
        _relative_places(database)
    return client


def database_path() -> Path | None:
    """MLflow's SQLite file, absolute; None where a server or another database keeps the runs."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return Path.cwd() / "mlflow.db"
    return Path(unquote(uri.removeprefix("sqlite:///"))).absolute() if uri.startswith("sqlite:///") else None


def experiment_id(client: MlflowClient, name: str) -> str:
    """MLflow's experiment of a task (``ixi``), made or restored if need be."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            created: str = client.create_experiment(name, tags=KIND)
        except MlflowException:  # another process may have made it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)
        database = database_path()
        if database is not None:
            _relative_places(database)
        return created
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


@contextmanager
def alone(task: str, folder: Path | None = None) -> Iterator[None]:
    """No two processes do a task at once in a folder (by default the working directory); the second one waits."""
    import fcntl

    lock = (folder or Path()) / ".equisynth" / f"{task}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _relative_places(database: Path) -> None:
    """Makes absolute places of artifacts relative to the repository, so that they are found after it has moved.

    MLflow stores the working directory with new experiments. Changed are places below this repository, and places that
    are gone where this repository holds the same ``mlruns/...``.

    Raises:
        UserError: the database is locked, or is none.
    """
    import sqlite3

    root = Path.cwd()
    try:
        with closing(sqlite3.connect(database, timeout=WAIT)) as connection, connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if database.parent != root:
                return
            for table, column in PLACES:
                if table not in tables:  # a database that MLflow has yet to fill or to migrate
                    continue
                query = f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE '/%' OR {column} LIKE 'file:%'"
                for (place,) in connection.execute(query).fetchall():
                    relative = _relative_place(place, root)
                    if relative is not None:
                        change = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"
                        connection.execute(change, (relative, place))
    except sqlite3.Error as error:
        wait = f"another program holds it, waited {WAIT:g} s; stop that one"
        advice = wait if "locked" in str(error) else "mend or remove it"
        raise UserError(f"{database}: MLflow cannot open it ({error}); {advice}") from None


def _relative_place(place: str, root: Path) -> str | None:
    path = Path(unquote(place.removeprefix("file://")))
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    if path.exists() or "mlruns" not in path.parts:
        return None
    tail = Path(*path.parts[path.parts.index("mlruns") :])
    return tail.as_posix() if (root / tail).exists() else None


def _reason(error: Exception) -> str:
    return f"{str(error).strip().splitlines()[0]:.160}"
