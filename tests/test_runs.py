"""Runs that several processes make at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from equisynth.store import open_store

pytest_plugins = ["mlflow_repository"]
PROCESSES = 4
AT_ONCE = f"""
import multiprocessing, sys
from equisynth import runs, store

def begin(barrier):
    client = store.open_store()
    barrier.wait(30)
    run = runs.create_run(client, "ixi", "trial", {{}}, {{"epochs": 1}})
    barrier.wait(30)
    runs.log_dataset(client, run, "ixi", "0123abcd")

if __name__ == "__main__":
    store.open_store(create=True)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier({PROCESSES})
    processes = [context.Process(target=begin, args=(barrier,)) for _ in range({PROCESSES})]
    for process in processes: process.start()
    for process in processes: process.join()
    sys.exit(sum(process.exitcode != 0 for process in processes))
"""


def test_processes_that_begin_at_once_share_experiment_and_dataset(repository: Path) -> None:
    """As the first trials of a search with several jobs: MLflow looks first and inserts then, so all but one fail."""
    program = repository / "at_once.py"
    program.write_text(AT_ONCE)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    client = open_store()
    experiments = [found for found in client.search_experiments() if found.name == "ixi"]
    runs = client.search_runs([found.experiment_id for found in experiments])
    assert (len(experiments), len(runs)) == (1, PROCESSES)
    assert [[(found.dataset.name, found.dataset.digest) for found in run.inputs.dataset_inputs] for run in runs] == [
        [("ixi", "0123abcd")]
    ] * PROCESSES
