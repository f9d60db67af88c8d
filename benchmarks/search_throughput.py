"""Trials per second of a search with one process and with two: twenty short trainings, one torch thread a process.

    python benchmarks/search_throughput.py [--trials 20] [--jobs 2]

The time runs from the first trial's start to the last one's end, so that starting processes does not count. Trials are
the program's own trainings of a tiny network on noise, in a repository of its own below the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before torch is imported here and in the workers
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import optuna  # noqa: E402 - the variables are read when torch is first imported
import yaml  # noqa: E402

from equisynth.search.run import run  # noqa: E402
from search_workplace import ROOT, write_dataset  # noqa: E402

EXPERIMENT = "ixi-noreg"
OVERRIDES = {
    "patch_size": [16] * 3, "training_stride": [4] * 3, "inference_stride": [8] * 3, "batch_size": 2,
    "fusing_mask_smoothing": 1.0, "normalization_groups": 8, "features": {"i2i": [16, 32]},
}  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """What this process and its workers say goes to a file."""
    kept = [os.dup(number) for number in (1, 2)]
    with open("log", "w") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            for number, handle in zip((1, 2), kept, strict=True):
                os.dup2(handle, number)
                os.close(handle)


def seconds(trials: int, jobs: int, steps: int) -> float:
    """From the first trial's start to the last one's end, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        space = {"learning_rate.generator": [1e-4, 1e-2]}
        tree["search"] = {"space": space, "trials": trials, "epochs": 1, "epoch_steps": steps, "pruner": "none"}
        entry = {"dataset": "ixi", "method": "noreg", "code": "supervised", "overrides": OVERRIDES}
        tree["pipeline"] = {EXPERIMENT: entry}
        Path("params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        write_dataset(tree)
        with quiet():
            run(EXPERIMENT, jobs=jobs)
        backend = optuna.storages.journal.JournalFileBackend(f".equisynth/search/{EXPERIMENT}.journal")
        storage = optuna.storages.JournalStorage(backend)
        (summary,) = optuna.get_all_study_summaries(storage)
        found = optuna.load_study(study_name=summary.study_name, storage=storage).trials
        assert [trial.state.name for trial in found] == trials * ["COMPLETE"], "a trial was lost or doubled"
        begun, ended = (
            [getattr(trial, f"datetime_{which}").timestamp() for trial in found] for which in ("start", "complete")
        )
        first: dict[str, float] = {}
        for trial, time in zip(found, begun, strict=True):
            first.setdefault(trial.user_attrs["lease"]["process"], time)
        alone = sum(time - min(begun) for time in first.values())  # of processes that had not started yet
        return max(ended) - min(begun) - alone / jobs


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps of a trial")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    one, several = (seconds(given.trials, jobs, given.steps) for jobs in (1, given.jobs))
    line = {
        "benchmark": "search_throughput", "trials": given.trials, "jobs": given.jobs, "seconds_1": round(one, 2),
        f"seconds_{given.jobs}": round(several, 2), "ratio": round(one / several, 2), "cores": os.cpu_count(),
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
