"""The study: drawing, pruning, continuing, what it leaves behind. Training is replaced by a formula."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from equisynth import search, store
from equisynth.config import Settings
from equisynth.datasets.prepared import DatasetInfo, write_case, write_info
from equisynth.errors import UserError
from equisynth.files import read_json
from equisynth.params import data_settings
from equisynth.search_space import override

pytest_plugins = ["mlflow_repository"]
EXPERIMENT = "ixi-eqsim_com_eqadv"
Train = Callable[[Settings, search.Report], dict[str, Any]]


@pytest.fixture
def parameters(repository: Path) -> Path:
    """The project's own params.yaml with a small search."""
    tree = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    space = {"loss.commutation": [0.01, 10.0], "learning_rate.generator": {"low": 1e-4, "high": 1e-2}}
    tree["search"] = {"space": space, "trials": 3, "epochs": 2, "seed": 1}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    return repository


def change(**values: Any) -> None:
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["search"] |= values
    Path("params.yaml").write_text(yaml.safe_dump(tree))


def formula(settings: Settings, report: search.Report) -> dict[str, Any]:
    """Best at a commutation weight of 1; curves that tell early."""
    value = abs(math.log10(settings.loss.commutation or 1e-9))
    for epoch in range(1, settings.epochs + 1):
        report(epoch, {"train/x": 1.0, "validation/selection": value + 1 / epoch})
    return {"aligned_mae": value, "model_sha256": f"{value}"}


def test_trials_become_child_runs_and_the_best_is_reported(parameters: Path) -> None:
    seen: list[Settings] = []
    summary = search.run(EXPERIMENT, train_trial=lambda s, r: (seen.append(s), formula(s, r))[1])
    assert len(seen) == 3
    assert all(0.01 <= s.loss.commutation <= 10 and s.epochs == 2 for s in seen)
    assert len({s.learning_rate.generator for s in seen}) == 3
    best = min(seen, key=lambda s: abs(math.log10(s.loss.commutation)))
    assert summary["best"]["parameters"]["loss.commutation"] == best.loss.commutation
    assert summary["oracle"] is True
    assert read_json(f"reports/search/{EXPERIMENT}.json") == summary
    client = store.open_store()
    runs = client.search_runs(["1"])
    parents = [run for run in runs if search.STUDY in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.info.run_name for run in children} == {"trial 0", "trial 1", "trial 2"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(len(client.get_metric_history(run.info.run_id, "validation/selection")) == 2 for run in children)
    assert all("objective/aligned_mae" in run.data.metrics for run in children)


def test_a_finished_study_does_nothing_and_a_larger_one_goes_on(parameters: Path) -> None:
    first = search.run(EXPERIMENT, train_trial=formula)
    assert search.run(EXPERIMENT, train_trial=None)["trials"] == first["trials"]
    more = search.run(EXPERIMENT, trials=4, train_trial=formula)
    assert [trial["number"] for trial in more["trials"]] == [0, 1, 2, 3]
    drawn = [trial["parameters"]["loss.commutation"] for trial in more["trials"]]
    assert len(set(drawn)) == 4


def test_an_interrupted_trial_is_repeated_with_its_parameters_and_not_counted(parameters: Path) -> None:
    interrupted: list[Settings] = []

    def interrupt(settings: Settings, report: search.Report) -> dict[str, Any]:
        interrupted.append(settings)
        report(1, {"validation/selection": 1.0})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.run(EXPERIMENT, train_trial=interrupt)
    seen: list[Settings] = []
    summary = search.run(EXPERIMENT, train_trial=lambda s, r: (seen.append(s), formula(s, r))[1])
    assert seen[0] == interrupted[0]
    assert len(seen) == 3
    assert [trial["state"] for trial in summary["trials"]] == ["fail", "complete", "complete", "complete"]


def test_a_killed_process_costs_its_own_trial_only(parameters: Path) -> None:
    """The first process is killed in its second trial; the next run repeats that one and adds the third."""
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); import test_search as t\n"
        "from equisynth import search\n"
        "calls = []\n"
        "def train(settings, report):\n"
        "    calls.append(settings)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return t.formula(settings, report)\n"
        "search.run(t.EXPERIMENT, train_trial=train)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    summary = search.run(EXPERIMENT, train_trial=formula)
    states = [trial["state"] for trial in summary["trials"]]
    assert states == ["complete", "fail", "complete", "complete"]
    assert summary["trials"][2]["parameters"] == summary["trials"][1]["parameters"]


def test_hopeless_trials_are_pruned_and_marked(parameters: Path) -> None:
    change(trials=4, startup_trials=1, epochs=3)
    calls: list[int] = []

    def worse_and_worse(settings: Settings, report: search.Report) -> dict[str, Any]:
        calls.append(0)
        for epoch in (1, 2, 3):
            report(epoch, {"validation/selection": float(len(calls))})
        return {"aligned_mae": float(len(calls))}

    summary = search.run(EXPERIMENT, train_trial=worse_and_worse)
    assert [trial["state"] for trial in summary["trials"]] == ["complete", "pruned", "pruned", "pruned"]
    assert all(trial["epochs"] < 3 for trial in summary["trials"][1:])
    run = store.open_store().get_run(summary["trials"][1]["run"])
    assert run.data.tags["equisynth.trial"] == "pruned"


def test_a_diverged_trial_counts_and_says_why(parameters: Path) -> None:
    calls: list[int] = []

    def diverge_once(settings: Settings, report: search.Report) -> dict[str, Any]:
        calls.append(0)
        if len(calls) == 1:
            raise UserError("training diverged")
        return formula(settings, report)

    summary = search.run(EXPERIMENT, train_trial=diverge_once)
    assert len(calls) == 3
    assert summary["trials"][0]["reason"] == "training diverged"


def test_keys_that_a_method_lacks_are_left_out_and_wrong_ones_named(
    parameters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = search.run("ixi-noreg", trials=1, train_trial=formula_of_rate)
    assert set(summary["best"]["parameters"]) == {"learning_rate.generator"}
    assert "loss.commutation has no effect on ixi-noreg" in capsys.readouterr().out
    change(space={"loss.comutation": [0.1, 1.0]})
    with pytest.raises(UserError, match="comutation"):
        search.run(EXPERIMENT, train_trial=formula)
    change(space={"loss.commutation": [1.0, 0.1]})
    with pytest.raises(UserError, match="low < high"):
        search.run(EXPERIMENT, train_trial=formula)
    change(space={"loss.commutation": [0.1, 1.0]}, storage="no url")
    with pytest.raises(UserError, match=r"search\.storage"):
        search.run(EXPERIMENT, train_trial=formula)


def formula_of_rate(settings: Settings, report: search.Report) -> dict[str, Any]:
    return {"aligned_mae": settings.learning_rate.generator}


def test_another_space_is_another_study(parameters: Path) -> None:
    first = search.run(EXPERIMENT, trials=1, train_trial=formula)
    change(space={"loss.commutation": {"choices": [0.5, 2.0]}})
    second = search.run(EXPERIMENT, trials=1, train_trial=formula)
    assert second["study"] != first["study"]
    assert second["best"]["parameters"]["loss.commutation"] in (0.5, 2.0)


def test_overrides_leave_the_tree_alone() -> None:
    tree = {"pipeline": {"a-b": {"dataset": "a", "method": "b", "overrides": {"loss": {"x": 1}}}}}
    changed = override(tree, "a-b", {"loss.y": 2, "epochs": 3})
    assert changed["pipeline"]["a-b"]["overrides"] == {"loss": {"x": 1, "y": 2}, "epochs": 3}
    assert tree["pipeline"]["a-b"]["overrides"] == {"loss": {"x": 1}}


def test_the_programs_own_training_is_searched(parameters: Path) -> None:
    """Two trials of a tiny network on four random cases, through training, prediction and evaluation."""
    tree = yaml.safe_load(Path("params.yaml").read_text())
    overrides = {"patch_size": [8] * 3, "training_stride": [8] * 3, "inference_stride": [8] * 3, "batch_size": 1}
    overrides |= {"features": {"i2i": [16, 16]}, "fusing_mask_smoothing": 1.0}
    tree["pipeline"] = {
        "ixi-noreg": {"dataset": "ixi", "method": "noreg", "code": "supervised", "overrides": overrides}
    }
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    data, folder, random = data_settings(tree, "ixi"), Path("data/prepared/ixi"), np.random.RandomState(0)
    splits = {"train": ("a", "b"), "validate": ("c",), "test": ("d",)}
    write_info(folder, DatasetInfo(name="ixi", splits=splits, **data.model_dump()))
    for case in "abcd":
        images = {role: random.rand(16, 16, 16) for role in ("input", "label", "label_aligned")}
        write_case(folder, case, images, np.diag([3.0, 3.0, 3.6, 1.0]))
    summary = search.run("ixi-noreg", trials=2)
    assert [trial["state"] for trial in summary["trials"]] == ["complete", "complete"]
    assert summary["best"]["value"] > 0
    assert store.open_store().get_run(summary["best"]["run"]).data.tags["equisynth.model_sha256"]


def test_nothing_of_optuna_is_imported_before_it_is_needed() -> None:
    code = "import sys, equisynth.search; sys.exit('optuna' in sys.modules or 'mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
