"""Processes that fill the slots of a study, here and on other machines, until all are filled."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from equisynth.errors import UserError
from equisynth.search import leases
from equisynth.search.interrupts import Interrupts
from equisynth.search.plan import Plan, TrainTrial
from equisynth.search.slots import SURPLUS, Next, is_surplus, next_step
from equisynth.search.study import alone, distributions, open_study, set_sampler
from equisynth.search.trials import run_trial

if TYPE_CHECKING:
    from optuna import Study, Trial

POLL = 1.0
"""Seconds between two looks at trials that others are at."""


def run_workers(plan: Plan, train_trial: TrainTrial, jobs: int = 1) -> None:
    """Fills the study's slots in this process, or in ``jobs`` processes.

    A worker that is killed costs its own unfinished trial, which another one repeats.

    Raises:
        UserError: all workers ended before the study did.
        KeyboardInterrupt: after all workers have left their trials in order.
    """
    with Interrupts() as interrupts:
        if jobs == 1:
            work(plan, train_trial, interrupts)
            return
        context = multiprocessing.get_context("spawn")
        arguments = (plan, train_trial, jobs, os.getpid())
        workers = [context.Process(target=_worker, args=arguments, name=f"worker {k + 1}") for k in range(jobs)]
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C goes to this process alone
        for worker in workers:
            worker.start()
        signal.signal(signal.SIGINT, heard)
        try:
            with interrupts.allowed():
                for worker in workers:
                    worker.join()
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.terminate()  # asks it to stop, see `Interrupts`
            for worker in workers:
                worker.join()
    ended = [worker for worker in workers if worker.exitcode]
    for worker in ended:
        print(f"search: {worker.name} ended early ({_how(worker.exitcode or 0)})", file=sys.stderr)
    if len(ended) == jobs:
        raise UserError(f"search {plan.name}: all {jobs} workers ended early, see above; run it again to continue")


def work(plan: Plan, train_trial: TrainTrial, interrupts: Interrupts, parent: int | None = None) -> None:
    """Takes one trial after the other until all slots are filled; waits where others are at the last ones."""
    study = open_study(plan.name, plan.experiment, plan.options)
    assert study is not None
    while True:
        interrupts.check()
        with alone(plan.name):
            leases.requeue(study)
            step = next_step(study.get_trials(deepcopy=False), plan.total)
            trial = _take(plan, study) if step is Next.TAKE else None
        if step is Next.STOP:
            return
        if trial is not None:
            run_trial(plan, study, trial, train_trial, interrupts, parent)
        elif step is Next.WAIT:
            with interrupts.allowed():
                time.sleep(POLL)


def _take(plan: Plan, study: Study) -> Trial | None:
    """The next trial with its parameters drawn; None if another machine has begun it at the same time."""
    from optuna.trial import TrialState

    set_sampler(study, plan.options)
    trial = study.ask(distributions(plan.space, plan.confirms))
    leases.take(trial)
    if is_surplus(study.get_trials(deepcopy=False), trial.number, plan.total):
        trial.set_user_attr(SURPLUS, True)
        leases.end(study, trial.number, TrialState.FAIL)
        return None
    return trial


def _worker(plan: Plan, train_trial: TrainTrial, jobs: int, parent: int) -> None:
    """In a process of its own."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))  # more would fight for the cores
    with Interrupts(from_parent=True) as interrupts:
        try:
            work(plan, train_trial, interrupts, parent)
        except UserError as error:
            print(f"equisynth: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
