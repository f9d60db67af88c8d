"""What the trials of a study come to: slots, each of which exactly one trial fills.

A trial that was interrupted or killed leaves its slot open; the trial that repeats it names the slot. Everything
follows from the trials that the storage holds, so that any number of processes come to the same conclusions.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SLOT, LEASE, REASON, SURPLUS = "slot", "lease", "reason", "surplus"
"""Attributes of trials: what it fills; who is at it; why it failed by its own parameters; that another one did it."""


class Next(Enum):
    """What a process does next for a study."""

    TAKE = "a trial waits, or a new one may be drawn"
    WAIT = "others are at all that is left"
    STOP = "all slots are filled"


def slot_of(trial: FrozenTrial) -> str:
    """The slot that a trial fills or would have filled."""
    return str(trial.user_attrs.get(SLOT, trial.number))


def counts(trial: FrozenTrial) -> bool:
    """Finished, pruned, or failed for a reason that lies in its parameters."""
    return trial.state.name in ("COMPLETE", "PRUNED") or REASON in trial.user_attrs


def is_open(trial: FrozenTrial) -> bool:
    """Waiting or running."""
    return not trial.state.is_finished()


def slots(trials: Sequence[FrozenTrial]) -> list[str]:
    """All slots in the order in which they came up."""
    return list(dict.fromkeys(slot_of(trial) for trial in trials if SURPLUS not in trial.user_attrs))


def filled(trials: Sequence[FrozenTrial]) -> set[str]:
    """Slots that a trial has filled."""
    return {slot_of(trial) for trial in trials if counts(trial)}


def lost(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The last trial of each slot that none has filled and none is about to fill."""
    cared_for = {slot_of(trial) for trial in trials if counts(trial) or is_open(trial)}
    left = {slot_of(trial): trial for trial in trials if SURPLUS not in trial.user_attrs}
    return [trial for slot, trial in left.items() if slot not in cared_for]


def next_step(trials: Sequence[FrozenTrial], total: int | None) -> Next:
    """What is to be done now.

    Args:
        trials: in the order of their numbers.
        total: number of slots; None: those that are there.
    """
    known = slots(trials)
    wanted = known[:total]
    done = filled(trials)
    if all(slot in done for slot in wanted) and (total is None or len(known) >= total):
        return Next.STOP
    waiting = any(trial.state.name == "WAITING" and slot_of(trial) in wanted for trial in trials)
    return Next.TAKE if waiting or (total is not None and len(known) < total) else Next.WAIT


def is_surplus(trials: Sequence[FrozenTrial], number: int, total: int | None) -> bool:
    """Whether a trial that was just begun is not needed: two machines may begin the last one at the same time.

    All judge alike, because an earlier trial always goes first.
    """
    own = slot_of(trials[number])
    rivals = (trial for trial in trials if trial.number != number and slot_of(trial) == own)
    doubled = any(counts(trial) or (is_open(trial) and trial.number < number) for trial in rivals)
    return doubled or own not in slots(trials)[:total]
