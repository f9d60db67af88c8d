"""What follows from the trials that a storage holds; and when a lease has expired."""

from __future__ import annotations

import socket
import time
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from equisynth.process_identity import this_process
from equisynth.search import leases
from equisynth.search.slots import LEASE, REASON, SLOT, SURPLUS, Next, is_surplus, lost, next_step, slots

optuna.logging.set_verbosity(optuna.logging.WARNING)


def trials(*states: str | tuple[str, dict[str, Any]]) -> list[FrozenTrial]:
    """Trials by their states: done, run, wait, fail, or such with attributes."""
    names = {"done": "COMPLETE", "run": "RUNNING", "wait": "WAITING", "fail": "FAIL", "pruned": "PRUNED"}
    study = optuna.create_study()
    for given in states:
        state, attributes = given if isinstance(given, tuple) else (given, {})
        value = 1.0 if state == "done" else None
        trial = optuna.create_trial(state=TrialState[names[state]], value=value, user_attrs=attributes)
        study.add_trial(trial)
    return study.trials


REPEAT = {SLOT: "0"}
DIVERGED = ("fail", {REASON: "training diverged"})


@pytest.mark.parametrize(
    "total, states, expected",
    [
        (2, [], Next.TAKE),
        (2, ["done"], Next.TAKE),
        (2, ["done", "run"], Next.WAIT),
        (2, ["done", "pruned"], Next.STOP),
        (2, ["done", DIVERGED], Next.STOP),
        (2, ["done", "fail"], Next.WAIT),  # not before it was queued again
        (2, ["fail", "done", ("wait", REPEAT)], Next.TAKE),
        (2, ["fail", "done", ("run", REPEAT)], Next.WAIT),
        (2, ["fail", "done", ("done", REPEAT)], Next.STOP),
        (2, ["done", "done", "run"], Next.STOP),  # of a time when more were asked for
        (2, ["done", ("fail", {SURPLUS: True})], Next.TAKE),
        (None, [("wait", {SLOT: "3/1"})], Next.TAKE),
        (None, [("done", {SLOT: "3/1"}), ("run", {SLOT: "3/2"})], Next.WAIT),
        (None, [("done", {SLOT: "3/1"})], Next.STOP),
        (None, [], Next.STOP),
    ],
)
def test_what_is_done_next(total: int | None, states: list[Any], expected: Next) -> None:
    assert next_step(trials(*states), total) is expected


def test_a_lost_trial_is_found_once() -> None:
    assert [trial.number for trial in lost(trials("fail", "done", "fail", ("fail", REPEAT)))] == [3, 2]
    assert lost(trials("fail", ("wait", REPEAT), DIVERGED, ("fail", {SURPLUS: True}), "run")) == []
    assert slots(trials("fail", ("done", REPEAT), "run", ("fail", {SURPLUS: True}))) == ["0", "2"]


def test_of_two_that_begin_the_same_one_goes_on() -> None:
    last = trials("done", "run", "run")
    assert [is_surplus(last, number, 2) for number in (1, 2)] == [False, True]
    repeats = trials("fail", ("run", REPEAT), ("run", REPEAT))
    assert [is_surplus(repeats, number, 3) for number in (1, 2)] == [False, True]
    assert is_surplus(trials("fail", ("run", REPEAT), ("done", REPEAT)), 1, 3)


def lease(process: str, age: float = 0.0) -> FrozenTrial:
    return trials(("run", {LEASE: {"process": process, "renewed": time.time() - age}}))[0]


def test_a_process_here_is_asked_for_and_one_elsewhere_is_believed_for_a_while() -> None:
    now, host = time.time(), socket.gethostname()
    assert not leases.has_expired(lease(this_process(), 1e6), now)
    assert leases.has_expired(lease(f"{host}/{2**22 + 1}/1"), now)
    assert not leases.has_expired(lease("elsewhere/1/1", leases.LEASE_SECONDS - 5), now)
    assert leases.has_expired(lease("elsewhere/1/1", leases.LEASE_SECONDS + 5), now)
    bare = trials("run")[0]
    assert bare.datetime_start is not None
    assert not leases.has_expired(bare, bare.datetime_start.timestamp() + 1)
    assert leases.has_expired(bare, bare.datetime_start.timestamp() + leases.LEASE_SECONDS + 1)


def test_a_lease_is_renewed_while_the_trial_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL", 0.02)
    study = optuna.create_study()
    trial = study.ask()
    leases.take(trial)
    first = study.trials[0].user_attrs[LEASE]["renewed"]
    with leases.renewed(trial):
        time.sleep(0.3)
        assert study.trials[0].user_attrs[LEASE]["renewed"] > first
    last = study.trials[0].user_attrs[LEASE]["renewed"]
    time.sleep(0.1)
    assert study.trials[0].user_attrs[LEASE]["renewed"] == last
    assert leases.end(study, 0, TrialState.COMPLETE, 1.0)
    assert not leases.end(study, 0, TrialState.FAIL)


def test_what_was_drawn_for_a_killed_trial_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the repeat is killed before it has read its parameters."""
    study = optuna.create_study()
    first = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    first.set_user_attr(LEASE, {"process": f"{socket.gethostname()}/{2**22 + 1}/1", "renewed": time.time()})
    leases.requeue(study)
    leases.requeue(study)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]
    study.ask().set_user_attr(LEASE, {"process": "elsewhere/1/1", "renewed": 0.0})
    leases.requeue(study)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL", "WAITING"]
    assert study.ask().suggest_float("x", 0, 1) == first.params["x"]
