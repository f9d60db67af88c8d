"""One trial: trained under a run of its own, reported by epoch, told to the study whatever ends it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from equisynth.errors import Diverged
from equisynth.files import hash_json, remove
from equisynth.search import leases
from equisynth.search.interrupts import Interrupts
from equisynth.search.plan import Plan, TrainTrial
from equisynth.search.slots import REASON, slot_of
from equisynth.store import log_metrics, open_store
from equisynth.tracking import TrainingRun

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import TrialState

PRUNED_BY = "validation/selection"
"""What the pruner compares after each epoch: similarity to the label after registration, no term of the loss."""
FOLDED = "folded_share"
RUN, STATE_TAG = "run", "equisynth.trial"


def run_trial(
    plan: Plan, study: Study, trial: Trial, train_trial: TrainTrial, interrupts: Interrupts, parent: int | None = None
) -> None:
    """Trains one trial. What is not a result (an interrupt, a full disk) leaves its slot open and is raised.

    Args:
        trial: with all parameters drawn and this process's lease.
        parent: see `leases.renewed`.
    """
    from optuna.exceptions import UpdateFinishedTrialError

    slot = slot_of(study.get_trials(deepcopy=False)[trial.number])
    again = "" if slot == str(trial.number) or plan.confirms else f" (repeats trial {slot})"
    try:
        with leases.renewed(trial, parent):
            outcome = _trained(plan, study, trial, slot, train_trial, interrupts)
    except UpdateFinishedTrialError:  # the lease had expired, as when a machine sleeps: the run is another one's, too
        outcome = "was taken over by another process"
    else:
        remove(plan.folder(slot))
    print(f"trial {trial.number}{again}: {outcome}", flush=True)


def _trained(plan: Plan, study: Study, trial: Trial, slot: str, train_trial: TrainTrial, interrupts: Interrupts) -> str:
    """What came out, in words.

    Raises:
        UpdateFinishedTrialError: another process has taken the trial over.
    """
    import optuna
    from optuna.trial import TrialState

    settings = plan.settings(trial.params)
    name = f"trial {slot}" if not plan.confirms else f"confirm trial {slot.replace('/', ' seed ')}"
    configuration = hash_json([settings.model_dump(mode="json"), plan.version, plan.name, slot])
    tracked = TrainingRun.start(settings, configuration, plan.version, name, plan.parent)
    trial.set_user_attr(RUN, tracked.run_id)

    def report(epoch: int, values: dict[str, float]) -> None:
        with interrupts.allowed(False):
            tracked.log_epoch(epoch, values)
            if PRUNED_BY in values:
                trial.report(values[PRUNED_BY], epoch)
            if not plan.confirms and trial.should_prune():
                raise optuna.TrialPruned

    state, status, value, outcome = TrialState.COMPLETE, "FINISHED", None, "pruned"
    try:
        with interrupts.allowed():
            result = train_trial(settings, plan.folder(slot), report)
        value = _value(plan, result)
        _record(plan, trial, tracked, settings.epochs, result)
        outcome = f"{plan.objective} {value:.6g}"
    except optuna.TrialPruned:
        state, status = TrialState.PRUNED, "KILLED"
    except BaseException as error:
        state, outcome = TrialState.FAIL, str(error)
        if isinstance(error, Diverged):  # says something of the parameters that were tried; other mistakes do not
            status = "FAILED"
            trial.set_user_attr(REASON, outcome)
        else:  # interrupted or broken: the slot stays open, and a trial with the same parameters fills it
            if leases.end(study, trial.number, state):
                _end_run(tracked, state, "KILLED")
            raise
    if not leases.end(study, trial.number, state, value):
        raise optuna.exceptions.UpdateFinishedTrialError
    _end_run(tracked, state, status)
    return outcome


def _end_run(tracked: TrainingRun, state: TrialState, status: str) -> None:
    tracked.end(status)
    open_store().set_tag(tracked.run_id, STATE_TAG, state.name.lower())


def _value(plan: Plan, result: Mapping[str, Any]) -> float:
    value = float(result[plan.objective])
    if not math.isfinite(value):
        raise Diverged(f"training diverged: {plan.objective} is not finite")
    return value


def _record(plan: Plan, trial: Trial, tracked: TrainingRun, epochs: int, result: Mapping[str, Any]) -> None:
    """Constraint, metrics of trial and parent, and the model's hash, before the trial is told to have ended."""
    client, value = open_store(), float(result[plan.objective])
    values = {f"objective/{plan.objective}": value}
    if plan.limit is not None and result.get(FOLDED) is not None:
        trial.set_constraint(FOLDED, float(result[FOLDED]) - plan.limit)
        trial.set_user_attr(FOLDED, float(result[FOLDED]))
        values[f"objective/{FOLDED}"] = float(result[FOLDED])
    log_metrics(client, tracked.run_id, values, epochs)
    prefix = "confirm/" if plan.confirms else ""
    log_metrics(client, plan.parent, {f"{prefix}{key}": found for key, found in values.items()}, trial.number)
    trial.set_user_attr(RUN, tracked.run_id)
    if "model_sha256" in result:
        tracked.finish(str(result["model_sha256"]))
