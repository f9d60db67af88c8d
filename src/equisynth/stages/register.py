"""Stage ``register``: a model and its evaluation -> MLflow's registry and reports/registry/<experiment>.json."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from equisynth.config import Settings
from equisynth.dataset_versions import dataset_version
from equisynth.datasets.opened import open_dataset
from equisynth.datasets.prepared import PreparedDataset
from equisynth.description import read_description
from equisynth.errors import UserError
from equisynth.evaluation.aligned import evaluate_split
from equisynth.evaluation.kinds import Translated, measure
from equisynth.evaluation.names import kind_of
from equisynth.evaluation.settings import CACHE, read_settings
from equisynth.evaluation.summary import split_measures
from equisynth.files import read_json, sha256, write_json
from equisynth.model import WEIGHTS, load_model
from equisynth.params import read
from equisynth.registry import Candidate, Registered, RegistrySettings, register
from equisynth.stages.predict import translate_case
from equisynth.tracking import dataset_version_of, log_evaluation, run_of
from equisynth.validation import validate

SPLIT = "validate"


def run(experiment: str, force: bool = False) -> None:
    """Logs the evaluation to the training's run, registers the model and promotes it if it is better.

    Args:
        experiment: its outputs lie in ``models/`` and ``reports/metrics/``.
        force: promote even where the comparison says no, or says nothing (recorded).
    """
    _options(), read_json(_metrics_path(experiment))  # says what is wrong before anything is made
    run_id = run_of(experiment)
    result = enrol(experiment, run_id, force)
    write_json(Path("reports/registry") / f"{experiment}.json", asdict(result) | {"uri": result.uri, "run": run_id})
    print(describe(result))


def enrol(experiment: str, run_id: str, force: bool = False) -> Registered:
    """Gives an experiment's evaluation to its run and its model to the registry; repeating it changes nothing."""
    options, folder, metrics = _options(), Path("models") / experiment, read_json(_metrics_path(experiment))
    settings = read_description(folder).settings
    log_evaluation(run_id, metrics)
    measure, value = options.choose(metrics)
    candidate = Candidate(sha256(folder / WEIGHTS), settings.scale, dataset_version_of(run_id), measure, value)
    evaluate = partial(evaluate_like, candidate, Path("data/prepared") / settings.dataset, settings)
    result = register(folder, settings, run_id, candidate, metrics, options, force, evaluate)
    if value is None and not result.champion:
        return replace(result, reason=not_comparable(result, options, metrics))
    return result


def evaluate_like(candidate: Candidate, prepared: Path, settings: Settings, folder: Path) -> float:
    """Measures another model as a candidate was measured.

    Args:
        candidate: says the measure and the version of the dataset.
        prepared: folder of the prepared dataset.
        settings: of the candidate, whose pairs the other model is measured on.
        folder: of the other model.

    Raises:
        UserError: the data are not there or are another version; the model does not fit them; no such measure.
    """
    found = dataset_version(prepared)
    if found != candidate.dataset_version:
        raise UserError(f"{prepared} is at version {found}; dvc repro, or dvc checkout")
    model = load_model(folder)
    dataset = open_dataset(prepared, settings)
    dataset.require(model.description.settings.data, "the champion was trained on")
    print(f"evaluating the champion on {len(dataset.cases(SPLIT))} cases of version {found}", file=sys.stderr)
    wanted, prediction = candidate.measure.removeprefix(f"{SPLIT}."), partial(translate_case, model, dataset)
    value = split_measures(_measured(dataset, prediction, wanted), SPLIT).get(wanted)
    if value is None:
        raise UserError(f"{candidate.measure} of {prepared} cannot be measured")
    return float(value)


def _measured(dataset: PreparedDataset, prediction: Callable[[str], np.ndarray], wanted: str) -> dict[str, Any]:
    """The evaluation that a measure comes from, as stage ``evaluate`` makes it; in one process, with one network."""
    kind = kind_of(wanted)
    if kind is None:
        return {SPLIT: evaluate_split(dataset, SPLIT, prediction)}
    translated = Translated(dataset, SPLIT, prediction, read_settings(read()), CACHE / dataset.info.name)
    return {SPLIT: {}, kind: {SPLIT: measure(kind, translated)}}


def _options() -> RegistrySettings:
    return validate(RegistrySettings, read()["registry"], "registry")


def _metrics_path(experiment: str) -> Path:
    return Path("reports/metrics") / f"{experiment}.json"


def not_comparable(result: Registered, options: RegistrySettings, metrics: Mapping[str, Any]) -> str:
    """Why a version whose evaluation holds none of the measures was not chosen, and what to do."""
    possible = options.possible(metrics)
    if possible:
        return f"its evaluation holds none of registry.measure in params.yaml; it holds {', '.join(possible)}: list one"
    name, alias, version = result.name, result.alias, result.version
    by_hand = f"import mlflow; mlflow.MlflowClient().set_registered_model_alias('{name}', '{alias}', {version})"
    return (
        "its evaluation holds no error on the validation cases; give each of them a label_aligned, or choose this "
        f'version by hand: python -c "{by_hand}"'
    )


def describe(result: Registered) -> str:
    """One line."""
    state = f"{'is' if result.champion else 'is not'} models:/{result.name}@{result.alias}"
    return f"{result.uri} {state} ({result.reason})"
