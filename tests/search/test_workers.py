"""Searches in several real processes: what is killed, interrupted or run twice is neither lost nor counted twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from equisynth import store
from equisynth.files import read_json
from equisynth.search.run import STUDY, run
from search_workplace import BEGUN, DEAD, EXPERIMENT, ROOT, change, formula

pytest_plugins = ["mlflow_repository", "search_workplace"]
STATES = dict[str, int]
COMMAND = (
    "import sys\n"
    "import search_workplace as w\n"
    "from equisynth.search.run import run\n"
    "if __name__ == '__main__':\n"
    "    try: run(w.EXPERIMENT, jobs=int(sys.argv[2]), train_trial=getattr(w, sys.argv[1]))\n"
    "    except KeyboardInterrupt: sys.exit(130)\n"
)


def start(train_trial: str, jobs: int = 2) -> subprocess.Popen[str]:
    """The search as a program of its own, leader of its own group as a terminal's programs are."""
    Path("search_program.py").write_text(COMMAND)
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "search_program.py", train_trial, str(jobs)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def begun() -> list[list[str]]:
    """Process and weight of each training that began."""
    return [line.split() for line in Path(BEGUN).read_text().splitlines()] if Path(BEGUN).exists() else []


def wait_for(count: int) -> None:
    """Until so many trainings have begun."""
    deadline = time.monotonic() + 120
    while len(begun()) < count:
        assert time.monotonic() < deadline, begun()
        time.sleep(0.05)


def states(summary: dict[str, Any]) -> STATES:
    found = [trial["state"] for trial in summary["trials"]]
    return {state: found.count(state) for state in set(found)}


def test_a_killed_worker_costs_its_own_trial_only(parameters: Path) -> None:
    """One of two workers is killed in the middle of its second trial; the other one repeats it and does the rest."""
    change(trials=6, pruner="none")
    program = start("killed_once")
    output, _ = program.communicate(timeout=300)
    assert program.returncode == 0, output
    assert Path(DEAD).exists()
    assert "ended early (signal 9)" in output
    summary = read_json(f"reports/search/{EXPERIMENT}.json")
    assert states(summary) == {"complete": 6, "fail": 1}
    dead = next(trial for trial in summary["trials"] if trial["state"] == "fail")
    repeats = [trial for trial in summary["trials"] if trial["repeats"] == dead["number"]]
    assert [trial["parameters"] for trial in repeats] == [dead["parameters"]]
    complete = [trial["parameters"]["loss.commutation"] for trial in summary["trials"] if trial["state"] == "complete"]
    assert len(set(complete)) == 6
    assert len(begun()) == 7
    client = store.open_store()
    parent = client.search_runs(["1"], f"tags.`{STUDY}` != ''")[0]
    runs = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    ended = [run.info.status for run in runs]
    assert (ended.count("FINISHED"), ended.count("KILLED"), len(ended)) == (6, 1, 7), "no checkpoint to continue from"


@pytest.mark.parametrize("group", [False, True], ids=["to the program", "to the terminal's group"])
def test_ctrl_c_ends_all_workers_and_the_study_continues(parameters: Path, group: bool) -> None:
    change(trials=4, epochs=50, pruner="none")
    program = start("slow")
    wait_for(2)
    (os.killpg if group else os.kill)(program.pid, signal.SIGINT)
    asked = time.monotonic()
    output, _ = program.communicate(timeout=120)
    assert program.returncode == 130, output
    assert "Traceback" not in output
    assert time.monotonic() - asked < 30
    workers = {int(process) for process, _ in begun()}
    assert len(workers) == 2
    assert not any(Path(f"/proc/{process}").exists() for process in workers)
    interrupted = {weight for _, weight in begun()}
    change(trials=4, epochs=50, pruner="none")
    summary = run(EXPERIMENT, train_trial=formula)
    assert states(summary) == {"fail": len(begun()), "complete": 4}
    assert interrupted <= {str(t["parameters"]["loss.commutation"]) for t in summary["trials"] if t["state"] != "fail"}


def test_two_searches_share_a_study(parameters: Path) -> None:
    """As two terminals, or two machines with one folder: together they do what one would have done."""
    change(trials=5, epochs=1)
    programs = [start("slow", 1), start("slow", 1)]
    outputs = [program.communicate(timeout=300)[0] for program in programs]
    assert [program.returncode for program in programs] == [0, 0], outputs
    assert states(read_json(f"reports/search/{EXPERIMENT}.json")) == {"complete": 5}
    assert len(begun()) == 5
    assert len({weight for _, weight in begun()}) == 5
    parents = store.open_store().search_runs(["1"], f"tags.`{STUDY}` != ''")
    assert len(parents) == 1
