"""The model registry: one registered model per task, versions without pickles, alias ``champion``, pulling by name."""

from __future__ import annotations

import math
import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equisynth import store
from equisynth.config import Settings, Strict
from equisynth.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
PUBLISHED_SCALE = "paper"
REQUIREMENTS = ("torch", "numpy", "nibabel", "safetensors", "pydantic", "mlflow")
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


class RegistrySettings(Strict):
    """Section ``registry`` of params.yaml.

    Attributes:
        alias: of the version that users pull.
        measure: key in reports/metrics/<experiment>.json by which versions are compared; lower is better.
    """

    alias: str = "champion"
    measure: str = "validate.mae"


@dataclass(frozen=True)
class Candidate:
    """What the choice of the champion looks at; ``value`` of the measure: lower is better."""

    model_sha256: str
    scale: str
    dataset_version: str
    measure: str
    value: float | None


@dataclass(frozen=True)
class Decision:
    """Whether the new version becomes champion, why, and whether that took force."""

    promote: bool
    reason: str
    forced: bool = False


@dataclass(frozen=True)
class Registered:
    """A registered version and what became of it."""

    name: str
    version: int
    alias: str
    champion: bool
    reason: str
    forced: bool

    @property
    def uri(self) -> str:
        """How to pull exactly this version."""
        return f"models:/{self.name}/{self.version}"


def choose_champion(new: Candidate, champion: Candidate | None, force: bool = False) -> Decision:
    """The rule by which the alias moves: better on the same measure over the same prepared validation split.

    Force waives the comparison, recorded as such; two things it cannot do: a smaller scale never replaces the published
    one, and a model that was not measured is never promoted.
    """
    if new.value is None or not math.isfinite(new.value):
        return Decision(False, f"{new.measure} was not measured")
    if champion is None:
        return Decision(True, f"first version with {new.measure} {new.value:.6g}")
    if new.model_sha256 == champion.model_sha256:
        return Decision(False, "is the champion already")
    if champion.scale == PUBLISHED_SCALE and new.scale != PUBLISHED_SCALE:
        return Decision(False, f"scale '{new.scale}' never replaces a champion of the published scale")
    if new.dataset_version != champion.dataset_version:
        found = f"dataset version {new.dataset_version} is not the champion's {champion.dataset_version}"
        hint = "evaluate the champion on it, or register with --force"
        return Decision(force, f"{found}; forced" if force else f"{found}: not comparable; {hint}", forced=force)
    if new.measure != champion.measure or champion.value is None:
        found = f"measure {new.measure} is not the champion's {champion.measure}"
        return Decision(force, f"{found}; forced" if force else f"{found}: not comparable", forced=force)
    comparison = f"{new.measure} {new.value:.6g} against the champion's {champion.value:.6g}"
    if new.value < champion.value:
        return Decision(True, f"better: {comparison}")
    return Decision(force, f"not better: {comparison}{'; forced' if force else ''}", forced=force)


def register(
    folder: Path,
    settings: Settings,
    run_id: str,
    candidate: Candidate,
    evaluation: dict[str, Any],
    options: RegistrySettings,
    force: bool = False,
) -> Registered:
    """Registers the model of a folder under its task's name, once per weights, and moves the alias if it deserves it.

    Args:
        folder: holds ``model.safetensors`` and ``model.json``.
        run_id: the training's run.
        evaluation: (nested) numbers that become the version's tags.
    """
    client, name = store.open_store(), settings.dataset
    version = find_version(client, name, candidate.model_sha256)
    if version is None:
        version = _create_version(client, folder, settings, run_id)
    tags = {
        "experiment": settings.experiment,
        "scale": settings.scale,
        "licence": settings.data.licence,
        "model_sha256": candidate.model_sha256,
        "dataset_version": candidate.dataset_version,
        "measure": candidate.measure,
        **{key: _text(value) for key, value in store.flatten(evaluation).items() if value is not None},
    }
    if candidate.value is not None:
        tags[candidate.measure] = repr(candidate.value)  # compared later: to the last digit
    for key, value in tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    old = _champion(client, name, options.alias)
    decision = choose_champion(candidate, _candidate(old) if old else None, force)
    if decision.promote:
        client.set_registered_model_alias(name, options.alias, version.version)
        client.set_model_version_tag(name, version.version, "promotion", decision.reason)
    champion = decision.promote or (old is not None and old.version == version.version)
    return Registered(name, int(version.version), options.alias, champion, decision.reason, decision.forced)


def pull(uri: str) -> Path:
    """The folder with ``model.safetensors`` and ``model.json`` of a registered model, or of a folder on disk.

    Args:
        uri: ``models:/ixi@champion``, ``models:/ixi/3`` or a folder.

    Raises:
        UserError: no such model, version, alias or folder, or no database to look it up in.
    """
    if not uri.startswith("models:"):
        return _complete(Path(uri), f"model {uri}")
    match = _URI.fullmatch(uri)
    if match is None:
        raise UserError(f"model {uri!r}: expected models:/NAME@ALIAS, models:/NAME/VERSION or a folder")
    version = _look_up(store.open_store(), uri, **match.groupdict())
    from mlflow import MlflowClient

    location = MlflowClient().get_model_version_download_uri(version.name, version.version)
    database = store.database_path()
    if database is not None and "://" not in location:  # relative roots are relative to the database's folder
        return _complete(database.parent / location, uri)
    from mlflow.artifacts import download_artifacts

    return _complete(Path(download_artifacts(location)), uri)


def find_version(client: MlflowClient, name: str, model_sha256: str) -> ModelVersion | None:
    """The version of a registered model that holds these weights."""
    found = client.search_model_versions(f"name = '{name}' and tags.model_sha256 = '{model_sha256}'")
    return found[0] if found else None


def _create_version(client: MlflowClient, folder: Path, settings: Settings, run_id: str) -> ModelVersion:
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    name = settings.dataset
    try:
        client.get_registered_model(name)
    except MlflowException:
        data = settings.data
        client.create_registered_model(name, description=f"{data.input.modality} → {data.label.modality} ({name})")
    run = client.get_run(run_id)
    model = client.create_logged_model(run.info.experiment_id, settings.experiment, run_id, model_type="translator")
    with tempfile.TemporaryDirectory() as temporary:
        saved = Path(temporary) / "model"
        _save_pyfunc(saved, folder, settings, run_id, model.model_id)
        client.log_model_artifacts(model.model_id, str(saved))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=settings.epochs)])
    return client.create_model_version(name, f"models:/{model.model_id}", run_id, model_id=model.model_id)


def _save_pyfunc(path: Path, folder: Path, settings: Settings, run_id: str, model_id: str) -> None:
    from importlib.metadata import version

    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    def image(channels: int) -> Schema:
        shape = (-1,) * settings.data.n_dims + ((channels,) if channels > 1 else ())
        return Schema([TensorSpec(np.dtype(np.float32), shape)])

    data = settings.data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is no input example: it would store a volume
        pyfunc.save_model(
            str(path),
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"weights": str(folder / WEIGHTS), "description": str(folder / DESCRIPTION)},
            signature=ModelSignature(image(data.input.channels), image(data.label.channels)),
            pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in REQUIREMENTS],
            metadata={"experiment": settings.experiment, "scale": settings.scale, "licence": data.licence},
        )


def _champion(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _candidate(version: ModelVersion) -> Candidate:
    """The comparison's facts from a version's tags."""
    tags = version.tags
    model, scale, dataset = (tags.get(key, "unknown") for key in ("model_sha256", "scale", "dataset_version"))
    measure = tags.get("measure", "unknown")
    return Candidate(model, scale, dataset, measure, float(tags[measure]) if measure in tags else None)


def _look_up(client: MlflowClient, uri: str, name: str, alias: str | None, version: str | None) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    known = [model.name for model in client.search_registered_models()]
    if name not in known:
        raise UserError(f"{uri}: no registered model '{name}'; registered: {', '.join(known) or 'none'}")
    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, version)
    except MlflowException:
        versions = sorted(int(found.version) for found in client.search_model_versions(f"name = '{name}'"))
        aliases = ", ".join(client.get_registered_model(name).aliases) or "none"
        raise UserError(
            f"{uri}: '{name}' has versions {', '.join(map(str, versions)) or 'none'} and aliases {aliases}; choose one"
        ) from None


def _complete(folder: Path, what: str) -> Path:
    """The folder that holds both files: the given one or its ``artifacts``."""
    for candidate in (folder, folder / "artifacts"):
        if (candidate / WEIGHTS).is_file() and (candidate / DESCRIPTION).is_file():
            return candidate
    state = f"holds no {WEIGHTS} and {DESCRIPTION}" if folder.is_dir() else "not found"
    raise UserError(f"{what}: {folder} {state}; train it (dvc repro), pull it (dvc pull) or register it again")
