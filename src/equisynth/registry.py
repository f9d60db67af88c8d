"""The model registry: one registered model per task, versions without pickles, alias ``champion``, pulling by name."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equisynth import store
from equisynth.champion import Candidate, RegistrySettings, choose_champion, not_possible
from equisynth.config import Settings
from equisynth.errors import UserError, one_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


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


@dataclass(frozen=True)
class Pulled:
    """A model on this machine and where it came from.

    Attributes:
        folder: holds ``model.safetensors`` and ``model.json``.
        name, version, run_id: of a registered model; None for a folder.
        alias: that it was asked for by, if it was.
    """

    folder: Path
    name: str | None = None
    version: int | None = None
    run_id: str | None = None
    alias: str | None = None


def register(
    folder: Path,
    settings: Settings,
    run_id: str,
    candidate: Candidate,
    evaluation: dict[str, Any],
    options: RegistrySettings,
    force: bool = False,
    evaluate: Callable[[Path], float] | None = None,
) -> Registered:
    """Registers the model of a folder under its task's name, once per weights, and moves the alias if it deserves it.

    Args:
        folder: holds ``model.safetensors`` and ``model.json``.
        run_id: the training's run.
        evaluation: (nested) numbers that become the version's tags.
        evaluate: folder of another model -> its measure, as the candidate was measured; for a champion of which that is
            not known. The result becomes a tag of the champion.
    """
    client, name = store.open_store(), settings.dataset
    with store.alone("registry"):  # two processes that compare with the same champion could leave the worse one
        version = find_version(client, name, candidate.model_sha256)
        if version is None:
            version = _create_version(client, folder, settings, run_id, candidate.model_sha256)
        tags = {
            "experiment": settings.experiment,
            "scale": settings.scale,
            "licence": settings.data.licence,
            "dataset_version": candidate.dataset_version,
            "measure": candidate.measure,
            **{key: _text(value) for key, value in store.flatten(evaluation).items() if value is not None},
        }
        if candidate.value is not None:
            tags[_measured_tag(candidate)] = repr(candidate.value)  # compared later: to the last digit
        _tag(client, version, tags)
        old = _champion(client, name, options.alias)

        def evaluate_champion() -> float:
            if old is None or evaluate is None:
                return not_possible()
            value = evaluate(_files(client, old, f"models:/{name}@{options.alias}"))
            _tag(client, old, {_measured_tag(candidate): repr(value)})
            return value

        champion = _candidate(old, candidate) if old else None
        decision = choose_champion(candidate, champion, force, evaluate_champion)
        if decision.promote:
            client.set_registered_model_alias(name, options.alias, version.version)
            forced = {"forced": decision.reason} if decision.forced else {}
            _tag(client, version, {"promotion": decision.reason, **forced})
    champion_now = decision.promote or (old is not None and old.version == version.version)
    return Registered(name, int(version.version), options.alias, champion_now, decision.reason, decision.forced)


def pull(uri: str) -> Path:
    """The folder with ``model.safetensors`` and ``model.json`` of a registered model; see `resolve`."""
    return resolve(uri).folder


def resolve(uri: str) -> Pulled:
    """A registered model, or a folder on disk, with its files at hand.

    Args:
        uri: ``models:/ixi@champion``, ``models:/ixi/3`` or a folder.

    Raises:
        UserError: no such model, version, alias or folder, or no database to look it up in.
    """
    if not uri.startswith("models:"):
        return Pulled(_complete(Path(uri), f"model {uri}"))
    match = _URI.fullmatch(uri)
    if match is None:
        raise UserError(f"model {uri!r}: expected models:/NAME@ALIAS, models:/NAME/VERSION or a folder")
    client = store.open_store()
    version = _look_up(client, uri, **match.groupdict())
    return Pulled(_files(client, version, uri), version.name, int(version.version), version.run_id, match["alias"])


def find_version(client: MlflowClient, name: str, model_sha256: str) -> ModelVersion | None:
    """The version of a registered model that holds these weights."""
    found = client.search_model_versions(f"name = '{name}' and tags.model_sha256 = '{model_sha256}'")
    return found[0] if found else None


def version_numbers(name: str) -> set[int]:
    """The versions of a registered model; none where there is no such model."""
    return {int(found.version) for found in store.open_store().search_model_versions(f"name = '{name}'")}


def _create_version(
    client: MlflowClient, folder: Path, settings: Settings, run_id: str, model_sha256: str
) -> ModelVersion:
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
    tags = {"model_sha256": model_sha256}  # with the version: one that is found again whatever ends the process
    return client.create_model_version(name, f"models:/{model.model_id}", run_id, tags, model_id=model.model_id)


def _save_pyfunc(path: Path, folder: Path, settings: Settings, run_id: str, model_id: str) -> None:
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
            pip_requirements=_requirements(),
            metadata={"experiment": settings.experiment, "scale": settings.scale, "licence": data.licence},
        )
    written = Model.load(str(path))  # MLflow notes where on this machine its copy of the code came from, and reads
    function = written.flavors["python_function"]  # no more of that than the name
    function["model_code_path"] = Path(function["model_code_path"]).name
    written.save(str(path / "MLmodel"))


def _requirements() -> list[str]:
    """The versions at hand of what applying a model needs: the program's dependencies without extras, and MLflow."""
    from importlib.metadata import requires, version

    stated = [line for line in requires("equisynth") or () if "extra ==" not in line]
    packages = [re.split(r"[^\w.-]", line)[0] for line in stated]
    return [f"{package}=={version(package).split('+')[0]}" for package in [*packages, "mlflow"]]


def _champion(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _candidate(version: ModelVersion, like: Candidate) -> Candidate:
    """A version as it was measured like another one; without a value where it was not."""
    tags = version.tags
    value = tags.get(_measured_tag(like))
    return replace(
        like,
        model_sha256=tags.get("model_sha256", "unknown"),
        scale=tags.get("scale", "unknown"),
        value=None if value is None else float(value),
    )


def _measured_tag(candidate: Candidate) -> str:
    """Values under several dataset versions stand side by side: each has its own key."""
    return f"measured/{candidate.dataset_version}/{candidate.measure}"


def _tag(client: MlflowClient, version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Sets the tags that are new or differ."""
    for key, value in tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(version.name, version.version, key, value)


def _files(client: MlflowClient, version: ModelVersion, what: str) -> Path:
    location = client.get_model_version_download_uri(version.name, version.version)
    database = store.database_path()
    if database is not None and "://" not in location:  # relative roots are relative to the database's folder
        return _complete(database.parent / location, what)
    from mlflow.artifacts import download_artifacts

    return _complete(Path(download_artifacts(location)), what)


def _look_up(client: MlflowClient, uri: str, name: str, alias: str | None, version: str | None) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    known = [model.name for model in client.search_registered_models()]
    if name not in known:
        raise UserError(f"{uri}: no registered model '{name}'; registered: {one_of(name, known) or 'none'}")
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
