"""Search for settings with Optuna: one study per experiment, resumable, its trials as MLflow child runs."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equisynth.config import Settings
from equisynth.dataset_versions import dataset_version
from equisynth.errors import UserError
from equisynth.files import hash_json, sha256, write_json
from equisynth.params import read
from equisynth.search_space import SearchSettings, effective_space, suggest, trial_settings
from equisynth.store import log_metrics, open_store
from equisynth.tracking import TrainingRun, create_run
from equisynth.validation import validate

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import BaseStorage

FOLDER = Path(".equisynth/search")
STUDY = "equisynth.study"
PRUNED_BY = "validation/selection"
"""What the pruner compares after each epoch: similarity to the label after registration, no term of the loss."""

Report = Callable[[int, dict[str, float]], None]
TrainTrial = Callable[[Settings, Report], Mapping[str, Any]]
"""Trains and measures one configuration: calls the report after each epoch (it may raise to stop) and returns the
objective's value under its name, and ``model_sha256`` if there is a model."""


def run(experiment: str, trials: int | None = None, train_trial: TrainTrial | None = None) -> dict[str, Any]:
    """Runs or continues the study of an experiment up to its number of trials; writes reports/search/<experiment>.json.

    Args:
        trials: total number, instead of the parameters'.
        train_trial: by default the program's own training and evaluation.

    Raises:
        UserError: wrong parameters, or no trial could be finished.
    """
    tree = read()
    options = validate(SearchSettings, tree["search"], "search")
    base = trial_settings(tree, experiment, options, {})
    space = effective_space(tree, experiment, options)
    prepared = Path("data/prepared") / base.dataset
    version = dataset_version(prepared)
    searched = {key: values.model_dump() for key, values in space.items()}
    identity = [base.model_dump(mode="json", exclude={"seed"}), searched, options.objective, version]
    name = f"{experiment}-{hash_json(identity, 8)}"
    study = _open_study(name, experiment, options)
    _requeue_abandoned(study)
    parent = _parent_run(name, base, options, version)
    train_trial = train_trial or _own_training(prepared, FOLDER / name, options.objective)
    total = trials or options.trials
    print(
        f"search {name}: {_spent(study)} of {total} trials done, objective {options.objective}{_oracle(options)}",
        flush=True,
    )
    while _spent(study) < total:
        trial = study.ask()
        overrides = {key: suggest(trial, key, values) for key, values in space.items()}
        settings = trial_settings(tree, experiment, options, overrides)
        _run_trial(study, trial, settings, version, parent, options.objective, train_trial)
    summary = _summary(study, experiment, options)
    write_json(Path("reports/search") / f"{experiment}.json", summary)
    if summary["best"] is None:
        raise UserError(f"search {name}: no trial was finished; see reports/search/{experiment}.json for the reasons")
    open_store().set_terminated(parent)
    print(f"best: trial {summary['best']['number']}, {options.objective} {summary['best']['value']:.6g}")
    for key, value in summary["best"]["parameters"].items():
        print(f"  {key}: {value:.4g}" if isinstance(value, float) else f"  {key}: {value}")
    return summary


def _run_trial(
    study: Study,
    trial: Trial,
    settings: Settings,
    version: str,
    parent: str,
    objective: str,
    train_trial: TrainTrial,
) -> None:
    """Trains one trial under its own run and tells the study how it ended, whatever ends it."""
    import optuna
    from optuna.trial import TrialState

    trial.set_user_attr("host", socket.gethostname())
    trial.set_user_attr("process", os.getpid())
    configuration = hash_json([settings.model_dump(mode="json"), version])
    tracked = TrainingRun.start(settings, configuration, version, f"trial {trial.number}", parent)
    trial.set_user_attr("run", tracked.run_id)
    client = open_store()

    def report(epoch: int, values: dict[str, float]) -> None:
        tracked.log_epoch(epoch, values)
        if PRUNED_BY in values:
            trial.report(values[PRUNED_BY], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

    def end(state: TrialState, status: str, value: float | None = None) -> None:
        study.tell(trial, value, state)
        client.set_tag(tracked.run_id, "equisynth.trial", state.name.lower())
        tracked.end(status)

    try:
        result = train_trial(settings, report)
        value = float(result[objective])
        log_metrics(client, tracked.run_id, {f"objective/{objective}": value}, settings.epochs)
        log_metrics(client, parent, {f"objective/{objective}": value}, trial.number)
        if "model_sha256" in result:
            tracked.finish(result["model_sha256"])
        end(TrialState.COMPLETE, "FINISHED", value)
        print(f"trial {trial.number}: {objective} {value:.6g}")
    except optuna.TrialPruned:
        end(TrialState.PRUNED, "KILLED")
        print(f"trial {trial.number}: pruned")
    except UserError as error:  # diverged: a result too
        trial.set_user_attr("reason", str(error))
        end(TrialState.FAIL, "FAILED")
        print(f"trial {trial.number}: {error}")
    except BaseException:  # interrupted or broken: the same parameters come first when the study continues
        end(TrialState.FAIL, "KILLED")
        study.enqueue_trial(trial.params)
        raise


def _own_training(prepared: Path, folder: Path, objective: str) -> TrainTrial:
    def train_trial(settings: Settings, report: Report) -> dict[str, Any]:
        from equisynth.datasets.opened import open_dataset
        from equisynth.evaluation.aligned import evaluate_split
        from equisynth.model import load_model
        from equisynth.stages.predict import translate_case
        from equisynth.stages.train import train_once

        dataset = open_dataset(prepared, settings)
        out = folder / hash_json(settings.model_dump(mode="json"))  # the same parameters continue their checkpoints
        train_once(settings, dataset, out, report)
        model = load_model(out)
        result = {"registered": model.description.selection, "model_sha256": sha256(out / "model.safetensors")}
        if objective == "aligned_mae":
            found = evaluate_split(dataset, "validate", lambda case: translate_case(model, dataset, case))
            if "pooled" not in found:
                raise UserError(f"search.objective: aligned_mae: {found['reason']}; choose objective: registered")
            result["aligned_mae"] = found["pooled"]["mae"]
        return result

    return train_trial


def _open_study(name: str, experiment: str, options: SearchSettings) -> Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=_storage(experiment, options), study_name=name, load_if_exists=True, direction="minimize"
        )
    startup, seed = options.startup_trials, options.seed + len(study.trials)  # a continued study draws on
    tpe = optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed)
    study.sampler = tpe if options.sampler == "tpe" else optuna.samplers.RandomSampler(seed)
    median = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=1)
    study.pruner = median if options.pruner == "median" else optuna.pruners.NopPruner()
    return study


def _storage(experiment: str, options: SearchSettings) -> BaseStorage:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if options.storage is None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(FOLDER / f"{experiment}.journal")))
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        return RDBStorage(options.storage)
    except (ArgumentError, SQLAlchemyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"params.yaml: search.storage: {options.storage!r} cannot be opened ({reason:.160})") from None


def _requeue_abandoned(study: Study) -> None:
    """Trials whose process on this machine is gone are closed, and their parameters come first again."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        host, process = trial.user_attrs.get("host"), trial.user_attrs.get("process")
        if host == socket.gethostname() and process is not None and not _alive(process):
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _spent(study: Study) -> int:
    """Trials that count: finished, pruned, or failed for a reason that lies in their parameters."""
    from optuna.trial import TrialState

    done = (TrialState.COMPLETE, TrialState.PRUNED)
    return sum(trial.state in done or "reason" in trial.user_attrs for trial in study.trials)


def _parent_run(study: str, base: Settings, options: SearchSettings, version: str) -> str:
    client = open_store(create=True)
    experiments = [found.experiment_id for found in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{STUDY}` = '{study}'")
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)
    note = f"Optuna study {study}: {options.objective}{_oracle(options)}. Its trials are the runs below."
    tags = {STUDY: study, "equisynth.dataset_version": version, "mlflow.note.content": note}
    parameters = {"search": options.model_dump(mode="json", exclude={"storage"})}
    run = create_run(client, base.dataset, f"search {base.experiment} ({base.scale})", tags, parameters)
    return str(run.info.run_id)


def _summary(study: Study, experiment: str, options: SearchSettings) -> dict[str, Any]:
    from optuna.trial import TrialState

    trials = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value,
            "parameters": trial.params,
            "epochs": len(trial.intermediate_values),
            "run": trial.user_attrs.get("run"),
            "reason": trial.user_attrs.get("reason"),
        }
        for trial in study.trials
        if trial.state.is_finished()
    ]
    complete = [trial for trial in trials if trial["state"] == TrialState.COMPLETE.name.lower()]
    return {
        "experiment": experiment,
        "study": study.study_name,
        "objective": options.objective,
        "oracle": options.objective == "aligned_mae",
        "best": min(complete, key=lambda trial: trial["value"], default=None),
        "trials": trials,
    }


def _oracle(options: SearchSettings) -> str:
    return " (oracle: uses the aligned label)" if options.objective == "aligned_mae" else ""
