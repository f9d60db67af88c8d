"""What came of a study: the trials, the best of them, and its confirmation, for JSON and for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from equisynth.search.leases import parameters
from equisynth.search.plan import Plan
from equisynth.search.settings import ALIGNED
from equisynth.search.slots import REASON, SURPLUS, counts, filled, slot_of
from equisynth.search.space import SEED, shown
from equisynth.search.trials import FOLDED, RUN

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Entry = dict[str, Any]


def summary(plan: Plan, trials: Sequence[FrozenTrial], confirmations: Sequence[FrozenTrial] = ()) -> Entry:
    """``{"experiment", "study", "objective", "oracle", "best", "trials", "confirmed"}``.

    ``best`` is the trial of the lowest value among those that keep within the constraint; ``confirmed`` holds those
    that were repeated with fresh seeds, the lowest mean first.
    """
    entries = [_entry(plan, trial) for trial in trials if trial.state.is_finished() and SURPLUS not in trial.user_attrs]
    ranked = ranking(entries)
    return {
        "experiment": plan.experiment,
        "scale": plan.tree["scale"],
        "study": plan.name,
        "objective": plan.objective,
        "oracle": plan.objective == ALIGNED,
        "max_folded_share": plan.limit,
        "best": ranked[0] if ranked else None,
        "confirmed": confirmed(plan, entries, confirmations),
        "trials": entries,
    }


def ranking(entries: Sequence[Entry]) -> list[Entry]:
    """The finished trials that keep within the constraint, the best one first."""
    complete = [entry for entry in entries if entry["state"] == "complete" and entry["feasible"]]
    return sorted(complete, key=lambda entry: entry["value"])


def confirmed(plan: Plan, entries: Sequence[Entry], confirmations: Sequence[FrozenTrial]) -> list[Entry]:
    """Trials with the values that they reached with fresh seeds, the lowest mean first; those that failed last."""
    found: dict[int, dict[str, float | None]] = {}
    folding: set[int] = set()
    for trial in confirmations:
        if counts(trial):
            of, _, seed = slot_of(trial).partition("/")
            complete = trial.state.name == "COMPLETE"
            found.setdefault(int(of), {})[seed] = trial.value if complete else None
            if complete and not is_feasible(plan, trial):
                folding.add(int(of))
    by_number = {entry["number"]: entry for entry in entries}
    result = []
    for number, values in found.items():
        numbers = [value for value in values.values() if value is not None]
        whole = len(numbers) == len(values)
        result.append(
            {
                "number": number,
                "parameters": by_number[number]["parameters"],
                "searched_value": by_number[number]["value"],
                "values": dict(sorted(values.items())),
                "mean": statistics.fmean(numbers) if whole else None,
                "spread": statistics.stdev(numbers) if whole and len(numbers) > 1 else None,
                "feasible": number not in folding,
            }
        )
    return sorted(result, key=lambda entry: (not _usable(entry), entry["mean"] or 0.0))


def chosen(found: Entry) -> Entry | None:
    """What is to be taken: the best one of the confirmed, else the best trial."""
    usable = [entry for entry in found["confirmed"] if _usable(entry)]
    best: Entry | None = usable[0] if usable else found["best"]
    return best


def value_of(entry: Entry) -> float:
    """The mean of a confirmed trial, the value of another one."""
    return float(entry["mean"] if "mean" in entry else entry["value"])


def is_feasible(plan: Plan, trial: FrozenTrial) -> bool:
    """Whether a trial keeps within the constraint, if there is one; a method that deforms nothing does."""
    return plan.limit is None or float(trial.user_attrs.get(FOLDED, 0.0)) <= plan.limit


def spent(trials: Sequence[FrozenTrial]) -> int:
    """How many slots are filled."""
    return len(filled(trials))


def words(plan: Plan, found: Entry) -> list[str]:
    """Lines that say what came out."""
    lines = []
    for entry in found["confirmed"]:
        seeds = f"{len(entry['values'])} fresh seeds"
        if entry["mean"] is None:
            lines.append(f"confirmed: trial {entry['number']} failed with one of {seeds}")
            continue
        spread = "" if entry["spread"] is None else f", spread {entry['spread']:.3g}"
        folds = "" if entry["feasible"] else "; folds too much"
        mean = f"{plan.short_label} {entry['mean']:.6g} over {seeds}{spread}"
        lines.append(f"confirmed: trial {entry['number']}, {mean} (searched: {entry['searched_value']:.6g}){folds}")
    best = chosen(found)
    if best is not None:
        lines.append(f"best: trial {best['number']}, {plan.short_label} {value_of(best):.6g}")
        lines += [f"  {key}: {shown(value)}" for key, value in best["parameters"].items()]
    return lines


def _usable(entry: Entry) -> bool:
    return entry["mean"] is not None and entry["feasible"]


def _entry(plan: Plan, trial: FrozenTrial) -> Entry:
    slot = slot_of(trial)
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if trial.state.name == "COMPLETE" else None,
        "parameters": {key: value for key, value in parameters(trial).items() if key != SEED},
        "folded_share": trial.user_attrs.get(FOLDED),
        "feasible": is_feasible(plan, trial),
        "epochs": trial.last_step or 0,
        "repeats": None if slot == str(trial.number) else int(slot),
        "run": trial.user_attrs.get(RUN),
        "reason": trial.user_attrs.get(REASON),
    }
