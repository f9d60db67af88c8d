"""Stage ``register``: a model and its evaluation -> MLflow's registry and reports/registry/<experiment>.json."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from equisynth.files import read_json, sha256, write_json
from equisynth.model import WEIGHTS, read_description
from equisynth.params import read, validate
from equisynth.registry import Candidate, Registered, RegistrySettings, register
from equisynth.store import flatten
from equisynth.tracking import dataset_version_of, log_evaluation, run_of


def run(experiment: str, force: bool = False) -> None:
    """Logs the evaluation to the training's run, registers the model and promotes it if it is better.

    Args:
        experiment: its outputs lie in ``models/`` and ``reports/metrics/``.
        force: promote even where the comparison says no, or says nothing (recorded).
    """
    options = validate(RegistrySettings, read()["registry"], "registry")
    folder, metrics = Path("models") / experiment, read_json(Path("reports/metrics") / f"{experiment}.json")
    settings, model_sha256 = read_description(folder).settings, sha256(folder / WEIGHTS)
    run_id = run_of(experiment)
    log_evaluation(run_id, metrics)
    value = flatten(metrics).get(options.measure)
    version = dataset_version_of(run_id)
    candidate = Candidate(model_sha256, settings.scale, version, options.measure, value)
    result = register(folder, settings, run_id, candidate, metrics, options, force)
    write_json(Path("reports/registry") / f"{experiment}.json", asdict(result) | {"uri": result.uri, "run": run_id})
    _say(result)


def _say(result: Registered) -> None:
    state = f"{'is' if result.champion else 'is not'} models:/{result.name}@{result.alias}"
    print(f"{result.uri} {state} ({result.reason})")
