"""Command ``search``: one study per experiment, its trials as MLflow child runs, its best values for params.yaml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equisynth.config import Settings
from equisynth.dataset_versions import dataset_version
from equisynth.errors import UserError
from equisynth.files import hash_json, write_json
from equisynth.params import read
from equisynth.runs import create_run
from equisynth.search import confirm as confirming
from equisynth.search import results
from equisynth.search.apply import apply as apply_values
from equisynth.search.objectives import OwnTraining, chosen_objective
from equisynth.search.plan import Plan, TrainTrial
from equisynth.search.plots import draw
from equisynth.search.settings import REGISTERED, Choices, SearchSettings
from equisynth.search.space import effective_space, trial_settings
from equisynth.search.study import alone, open_study
from equisynth.search.workers import run_workers
from equisynth.store import log_metrics, open_store
from equisynth.tracking import log_files
from equisynth.validation import FILE, validate

if TYPE_CHECKING:
    from optuna import Study

STUDY = "equisynth.study"
"""Tag of the MLflow run that a study's trials are children of."""
REPORTS = Path("reports/search")


def run(
    experiment: str,
    trials: int | None = None,
    jobs: int = 1,
    confirm: int = 0,
    apply: bool = False,
    train_trial: TrainTrial | None = None,
) -> dict[str, Any]:
    """Runs or continues the study of an experiment up to its number of trials.

    Writes reports/search/<experiment>.json and reports/search/<experiment>/, pictures that the parent run gets too.

    Args:
        trials: total number, instead of the parameters'.
        jobs: processes on this machine.
        confirm: how many of the best trials are repeated with fresh seeds.
        apply: write the best values into params.yaml.
        train_trial: by default the program's own training and evaluation.

    Raises:
        UserError: wrong parameters, or no trial could be finished, or none within the constraint.
    """
    plan, base = _plan(experiment, trials)
    prepared = Path("data/prepared") / base.dataset
    train_trial = train_trial or OwnTraining(prepared, plan.objective, plan.limit is not None)
    study = open_study(plan.name, experiment, plan.options)
    assert study is not None
    plan = replace(plan, parent=_parent_run(plan, base))
    done = results.spent(study.get_trials(deepcopy=False))
    print(f"search {plan.name}: {done} of {plan.total} trials done, objective {plan.label}", flush=True)
    try:
        run_workers(plan, train_trial, jobs)
        if confirm:
            repeats = confirming.confirmation(plan)
            best = results.ranking(results.summary(plan, study.get_trials())["trials"])[:confirm]
            confirming.queue(repeats, best)
            run_workers(repeats, train_trial, jobs)
    except BaseException:
        open_store().set_terminated(plan.parent, status="KILLED")
        raise
    with alone(plan.name):  # a second search of the study may end at the same time
        return _finish(plan, study, apply)


def _finish(plan: Plan, study: Study, apply: bool) -> dict[str, Any]:
    """Writes, logs and tells what came of a study.

    Raises:
        UserError: no trial was finished, or none within the constraint.
    """
    client = open_store()
    found = results.summary(plan, study.get_trials(), confirming.confirmations(confirming.confirmation(plan)))
    write_json(REPORTS / f"{plan.experiment}.json", found)
    draw(study, REPORTS / plan.experiment, plan.short_label)
    log_files(plan.parent, REPORTS / plan.experiment, "search")
    best_entry = results.chosen(found)
    if best_entry is None:
        client.set_terminated(plan.parent, status="FAILED")
        raise UserError(_nothing(plan, found))
    log_metrics(client, plan.parent, {f"best/{plan.objective}": results.value_of(best_entry)})
    client.set_terminated(plan.parent)
    print("\n".join(results.words(plan, found)))
    if apply:
        changed = apply_values(plan.experiment, best_entry["parameters"])
        print(changed or f"{FILE}: holds these values already")
    return found


def _plan(experiment: str, trials: int | None) -> tuple[Plan, Settings]:
    """What is searched, and the settings without any trial's values. The name says which trials may be compared."""
    tree = read()
    options = validate(SearchSettings, tree["search"], "search")
    base = trial_settings(tree, experiment, options, {})
    space = effective_space(tree, experiment, options)
    prepared = Path("data/prepared") / base.dataset
    version = dataset_version(prepared)
    objective = chosen_objective(options.objective, prepared, base)
    limit = options.max_folded_share if objective == REGISTERED else None
    searched = {key: values.model_dump() for key, values in space.items()}
    ends = {key: values.choices[0] if isinstance(values, Choices) else values.low for key, values in space.items()}
    fixed = trial_settings(tree, experiment, options, ends)  # applying the best values leaves the study what it is
    identity = [fixed.model_dump(mode="json"), searched, objective, limit, version]
    name = f"{experiment}-{hash_json(identity, 8)}"
    total = trials or options.trials
    return Plan(name, tree, experiment, options, space, objective, limit, version, "", total), base


def _parent_run(plan: Plan, base: Settings) -> str:
    """The MLflow run of a study, made if this is its first time here."""
    client = open_store(create=True)
    with alone(plan.name):
        experiments = [found.experiment_id for found in client.search_experiments()]
        found = client.search_runs(experiments, f"tags.`{STUDY}` = '{plan.name}'") if experiments else []
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        note = f"Optuna study {plan.name}: {plan.label}. Its trials are the runs below."
        tags = {STUDY: plan.name, "equisynth.dataset_version": plan.version, "mlflow.note.content": note}
        parameters = {"search": plan.options.model_dump(mode="json", exclude={"storage"})}
        run = create_run(client, base.dataset, f"search {base.experiment} ({base.scale})", tags, parameters)
        return str(run.info.run_id)


def _nothing(plan: Plan, found: dict[str, Any]) -> str:
    where = REPORTS / f"{plan.experiment}.json"
    shares = [entry["folded_share"] for entry in found["trials"] if entry["state"] == "complete"]
    folded = [share for share in shares if share is not None]
    if not folded:
        return f"search {plan.name}: no trial was finished; see {where} for the reasons"
    return (
        f"search {plan.name}: no trial folds at most {plan.limit:g} of the voxels (the least: {min(folded):.3g}); move "
        f"search.space towards stronger regularisation, or raise search.max_folded_share; see {where}"
    )
