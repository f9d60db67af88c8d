"""Who is at a trial: a lease in its attributes, renewed while it runs, and trials whose lease has expired.

Optuna's journal has no heartbeat, and that of its databases ends a trial only while another one runs. A killed process
thus costs its own unfinished trial, which is repeated with the same parameters.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from equisynth.process_identity import is_alive, this_process
from equisynth.search.slots import LEASE, SLOT, lost, slot_of

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial, TrialState

RENEWAL, LEASE_SECONDS = 15.0, 120.0
"""A lease is renewed as often, and has expired after as long, in seconds; clocks of machines must agree to a minute."""


def take(trial: Trial) -> None:
    """Writes this process's lease."""
    trial.set_user_attr(LEASE, {"process": this_process(), "renewed": time.time()})


@contextmanager
def renewed(trial: Trial, parent: int | None = None) -> Iterator[None]:
    """Renews the lease while the block runs.

    Args:
        parent: process without which this one is to stop.
    """
    stop = threading.Event()

    def renew() -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        while not stop.wait(RENEWAL):
            if parent is not None and os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            try:
                take(trial)
            except UpdateFinishedTrialError:
                return
            except Exception as error:  # the storage may come back before the lease expires
                print(f"trial {trial.number}: lease not renewed ({type(error).__name__})", flush=True)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def end(study: Study, number: int, state: TrialState, value: float | None = None) -> bool:
    """Tells how a trial ended; False if another process has closed it meanwhile (this one's lease had expired)."""
    from optuna.exceptions import UpdateFinishedTrialError

    try:
        study.tell(number, value, state)
    except UpdateFinishedTrialError:
        return False
    except ValueError as error:
        if "Cannot tell a" not in str(error):
            raise
        return False
    return True


def requeue(study: Study) -> None:
    """Closes running trials whose lease has expired, and queues what none is going to finish."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if has_expired(trial, time.time()) and end(study, trial.number, TrialState.FAIL):
            print(f"trial {trial.number}: its process is gone; it is repeated", flush=True)
    for trial in lost(study.get_trials(deepcopy=False)):
        study.enqueue_trial(parameters(trial), user_attrs={SLOT: slot_of(trial)})


def parameters(trial: FrozenTrial) -> dict[str, object]:
    """What was drawn for a trial, or queued for it if it was not begun."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def has_expired(trial: FrozenTrial, now: float) -> bool:
    """Whether nobody is at a running trial any more.

    A process of this machine is asked for; one elsewhere is believed as long as it renews its lease.
    """
    lease = trial.user_attrs.get(LEASE)
    if lease is not None:
        alive = is_alive(str(lease["process"]))
        if alive is not None:
            return not alive
        return now - float(lease["renewed"]) > LEASE_SECONDS
    begun = trial.datetime_start
    return begun is None or now - begun.timestamp() > LEASE_SECONDS  # killed before it wrote its lease
