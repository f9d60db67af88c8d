"""A search in one process: drawing, pruning, continuing, what it leaves behind. Training is replaced by a formula."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from equisynth import store
from equisynth.config import Settings
from equisynth.errors import Diverged, UserError
from equisynth.files import read_json
from equisynth.search import leases
from equisynth.search import run as search_run
from equisynth.search.plan import Report
from equisynth.search.run import STUDY, run
from search_workplace import EXPERIMENT, ROOT, change, formula, write_dataset

pytest_plugins = ["mlflow_repository", "search_workplace"]


@pytest.fixture(autouse=True)
def few_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest: one test looks at pictures."""
    if "pictures" not in request.node.name:
        monkeypatch.setattr(search_run, "draw", lambda study, folder, objective: folder.mkdir(exist_ok=True))


class Seen:
    """The formula, with a memory."""

    def __init__(self) -> None:
        self.settings: list[Settings] = []

    def __call__(self, settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        self.settings.append(settings)
        return formula(settings, folder, report)


def never(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
    raise AssertionError("there is nothing left to train")


def test_trials_become_child_runs_and_the_best_is_reported(parameters: Path) -> None:
    seen = Seen()
    summary = run(EXPERIMENT, train_trial=seen)
    assert len(seen.settings) == 3
    assert all(0.01 <= s.loss.commutation <= 10 and s.epochs == 2 for s in seen.settings)
    assert len({s.learning_rate.generator for s in seen.settings}) == 3
    best = min(seen.settings, key=lambda s: abs(math.log10(s.loss.commutation)))
    assert summary["best"]["parameters"]["loss.commutation"] == best.loss.commutation
    assert summary["oracle"] is True
    assert read_json(f"reports/search/{EXPERIMENT}.json") == summary
    client = store.open_store()
    runs = client.search_runs(["1"])
    parents = [run for run in runs if STUDY in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert "oracle" in parents[0].data.tags["mlflow.note.content"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.info.run_name for run in children} == {"trial 0", "trial 1", "trial 2"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(len(client.get_metric_history(run.info.run_id, "validation/selection")) == 2 for run in children)
    assert all("objective/aligned_mae" in run.data.metrics for run in children)


def test_pictures_lie_beside_the_report_and_in_the_parent_run(parameters: Path) -> None:
    run(EXPERIMENT, train_trial=formula)
    names = {"history.png", "slices.png", "importances.png"}
    pictures = {path.name: path.read_bytes() for path in Path(f"reports/search/{EXPERIMENT}").iterdir()}
    assert pictures.keys() == names
    assert all(content.startswith(b"\x89PNG") and len(content) > 3000 for content in pictures.values())
    client = store.open_store()
    parent = client.search_runs(["1"], f"tags.`{STUDY}` != ''")[0]
    assert {Path(item.path).name for item in client.list_artifacts(parent.info.run_id, "search")} == names


def test_a_finished_study_does_nothing_and_a_larger_one_goes_on(parameters: Path) -> None:
    first = run(EXPERIMENT, train_trial=formula)
    assert run(EXPERIMENT, train_trial=never)["trials"] == first["trials"]
    more = run(EXPERIMENT, trials=4, train_trial=formula)
    assert [trial["number"] for trial in more["trials"]] == [0, 1, 2, 3]
    drawn = [trial["parameters"]["loss.commutation"] for trial in more["trials"]]
    assert len(set(drawn)) == 4


def test_the_same_seed_draws_the_same_trials(parameters: Path) -> None:
    first = run(EXPERIMENT, train_trial=formula)
    for path in Path(".equisynth/search").iterdir():
        path.unlink() if path.is_file() else None
    second = run(EXPERIMENT, train_trial=formula)
    assert [trial["parameters"] for trial in second["trials"]] == [trial["parameters"] for trial in first["trials"]]


def test_an_interrupted_trial_is_repeated_with_its_parameters_and_not_counted(parameters: Path) -> None:
    interrupted: list[Settings] = []

    def interrupt(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        interrupted.append(settings)
        report(1, {"validation/selection": 1.0})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(EXPERIMENT, train_trial=interrupt)
    seen = Seen()
    summary = run(EXPERIMENT, train_trial=seen)
    assert seen.settings[0] == interrupted[0]
    assert len(seen.settings) == 3
    assert [trial["state"] for trial in summary["trials"]] == ["fail", "complete", "complete", "complete"]
    assert summary["trials"][1]["repeats"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_and_leaves_no_trial_open(parameters: Path, number: signal.Signals) -> None:
    """It comes while a curve is being logged: the log is finished first, then the training stops."""
    logged: list[int] = []

    def long(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        for epoch in range(1, 500):
            time.sleep(0.02)
            report(epoch, {"validation/selection": 1.0})
            logged.append(epoch)
        raise AssertionError("was not interrupted")

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run(EXPERIMENT, train_trial=long)
    assert signal.getsignal(number) is before
    assert len(logged) < 400
    runs = store.open_store().search_runs(["1"])
    assert {run.info.status for run in runs} == {"KILLED"}
    assert [trial["state"] for trial in run(EXPERIMENT, train_trial=formula)["trials"]] == ["fail"] + 3 * ["complete"]


def test_hopeless_trials_are_pruned_and_marked(parameters: Path) -> None:
    change(trials=4, startup_trials=1, epochs=3)
    calls: list[int] = []

    def worse_and_worse(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        calls.append(0)
        for epoch in (1, 2, 3):
            report(epoch, {"validation/selection": float(len(calls))})
        return {"aligned_mae": float(len(calls))}

    summary = run(EXPERIMENT, train_trial=worse_and_worse)
    assert [trial["state"] for trial in summary["trials"]] == ["complete", "pruned", "pruned", "pruned"]
    assert all(trial["epochs"] < 3 for trial in summary["trials"][1:])
    pruned = store.open_store().get_run(summary["trials"][1]["run"])
    assert pruned.data.tags["equisynth.trial"] == "pruned"


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
@pytest.mark.parametrize("pruner", ["halving", "none"])
def test_every_sampler_draws_within_the_space(parameters: Path, sampler: str, pruner: str) -> None:
    space = {"loss.commutation": [0.5, 2.0], "batch_size": {"choices": [2, 4]}}
    change(sampler=sampler, pruner=pruner, startup_trials=2, trials=5, space=space)
    seen = Seen()
    run(EXPERIMENT, train_trial=seen)
    assert len(seen.settings) == 5
    assert all(0.5 <= s.loss.commutation <= 2 and s.batch_size in (2, 4) for s in seen.settings)


def test_a_diverged_trial_counts_and_says_why(parameters: Path) -> None:
    calls: list[int] = []

    def diverge_once(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        calls.append(0)
        if len(calls) == 1:
            raise Diverged("loss not finite")
        return formula(settings, folder, report)

    summary = run(EXPERIMENT, train_trial=diverge_once)
    assert len(calls) == 3
    assert summary["trials"][0]["reason"] == "loss not finite"


def test_a_trial_whose_measure_is_not_finite_counts(parameters: Path) -> None:
    calls: list[int] = []

    def nothing_once(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        calls.append(0)
        found = formula(settings, folder, report)
        return found | {"aligned_mae": math.nan} if len(calls) == 1 else found

    summary = run(EXPERIMENT, train_trial=nothing_once)
    assert len(calls) == 3
    assert summary["trials"][0]["reason"] == "training diverged: aligned_mae is not finite"


def test_another_mistake_ends_the_search_and_is_no_result(parameters: Path) -> None:
    def refuse(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        raise UserError("somewhere: cannot be written (No space left on device)")

    with pytest.raises(UserError, match="No space left"):
        run(EXPERIMENT, train_trial=refuse)
    summary = run(EXPERIMENT, train_trial=formula)
    assert [trial["state"] for trial in summary["trials"]] == ["fail", "complete", "complete", "complete"]
    assert summary["trials"][1]["parameters"] == summary["trials"][0]["parameters"]


def test_keys_that_a_method_lacks_are_left_out_and_wrong_ones_named(
    parameters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run("ixi-noreg", trials=1, train_trial=_rate)
    assert set(summary["best"]["parameters"]) == {"learning_rate.generator"}
    assert "loss.commutation has no effect on ixi-noreg" in capsys.readouterr().out
    change(space={"loss.comutation": [0.1, 1.0]})
    with pytest.raises(UserError, match="comutation"):
        run(EXPERIMENT, train_trial=formula)
    change(space={"loss.commutation": [1.0, 0.1]})
    with pytest.raises(UserError, match="low < high"):
        run(EXPERIMENT, train_trial=formula)
    change(space={"loss.commutation": [0.1, 1.0]}, storage="no url")
    with pytest.raises(UserError, match=r"search\.storage"):
        run(EXPERIMENT, train_trial=formula)


def _rate(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
    return {"aligned_mae": settings.learning_rate.generator}


def test_another_space_is_another_study(parameters: Path) -> None:
    first = run(EXPERIMENT, trials=1, train_trial=formula)
    change(space={"loss.commutation": {"choices": [0.5, 2.0]}})
    second = run(EXPERIMENT, trials=1, train_trial=formula)
    assert second["study"] != first["study"]
    assert second["best"]["parameters"]["loss.commutation"] in (0.5, 2.0)


def test_trials_that_fold_are_not_the_best(parameters: Path) -> None:
    change(objective="registered", max_folded_share=0.01, trials=4)

    def weak_is_low(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        weight = settings.loss.commutation
        return {"registered": weight, "folded_share": 0.0 if weight > 0.5 else 0.2}

    summary = run(EXPERIMENT, train_trial=weak_is_low)
    values = [trial["value"] for trial in summary["trials"]]
    assert min(values) < 0.5 < max(values)
    assert summary["best"]["value"] == min(value for value in values if value > 0.5)
    assert summary["oracle"] is False
    change(max_folded_share=0.001)  # another study

    def folding(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        return {"registered": 0.1, "folded_share": 0.02}

    with pytest.raises(UserError, match=r"no trial folds at most 0\.001 of the voxels \(the least: 0\.02\)"):
        run(EXPERIMENT, train_trial=folding)
    change(max_folded_share=None)
    assert run(EXPERIMENT, train_trial=folding)["best"]["value"] == 0.1


def test_without_an_aligned_label_the_objective_is_the_registered_one(parameters: Path) -> None:
    write_dataset(yaml.safe_load(Path("params.yaml").read_text()), roles=("input", "label"))

    def registered(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        return {"registered": 0.5, "folded_share": 0.0}

    assert run(EXPERIMENT, trials=1, train_trial=registered)["objective"] == "registered"
    change(objective="aligned_mae")
    with pytest.raises(UserError, match=r"search\.objective.*no validation case of ixi has an aligned label"):
        run(EXPERIMENT, train_trial=formula)


def test_the_best_are_confirmed_with_fresh_seeds(parameters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(trials=4, confirm_seeds=2)
    seen = Seen()
    summary = run(EXPERIMENT, confirm=2, train_trial=seen)
    assert len(seen.settings) == 4 + 2 * 2
    assert {s.seed for s in seen.settings[:4]} == {0}
    assert {s.seed for s in seen.settings[4:]} == {1, 2}
    ranked = sorted((trial for trial in summary["trials"]), key=lambda trial: trial["value"])[:2]
    assert [entry["number"] for entry in summary["confirmed"]] == [trial["number"] for trial in ranked]
    for entry, trial in zip(summary["confirmed"], ranked, strict=True):
        values = [trial["value"] + 0.01, trial["value"] + 0.02]
        assert entry["values"] == pytest.approx({"1": values[0], "2": values[1]})
        assert entry["mean"] == pytest.approx(sum(values) / 2)
        assert entry["spread"] == pytest.approx(0.01 / math.sqrt(2))
    assert "over 2 fresh seeds, spread" in capsys.readouterr().out
    assert run(EXPERIMENT, confirm=2, train_trial=never)["confirmed"] == summary["confirmed"]
    names = {run.info.run_name for run in store.open_store().search_runs(["1"])}
    assert f"confirm trial {ranked[0]['number']} seed 1" in names


def test_a_confirmation_may_change_what_is_best(parameters: Path) -> None:
    def lucky(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        high = settings.loss.commutation > 1
        return {"aligned_mae": (0.1 if settings.seed == 0 else 0.9) if high else 0.5}

    change(space={"loss.commutation": {"choices": [0.5, 2.0]}}, trials=6)
    before = Path("params.yaml").read_text()
    summary = run(EXPERIMENT, confirm=6, apply=True, train_trial=lucky)
    assert summary["best"]["parameters"]["loss.commutation"] == 2.0
    assert summary["confirmed"][0]["parameters"]["loss.commutation"] == 0.5
    applied = yaml.safe_load(Path("params.yaml").read_text())["pipeline"][EXPERIMENT]["overrides"]
    assert applied["loss"] == {"commutation": 0.5}
    assert Path("params.yaml").read_text() != before
    assert run(EXPERIMENT, train_trial=never)["study"] == summary["study"], "applying leaves the study what it is"


def test_a_trial_that_another_process_took_over_is_dropped(parameters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a machine sleeps and wakes: its lease has expired, the trial was repeated, its result comes too late."""
    rival: list[dict[str, Any]] = []

    def overtaken(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
        if not rival:
            rival.append({})
            with monkeypatch.context() as patch:
                patch.setattr(leases, "has_expired", lambda trial, now: True)
                rival[0] = run(EXPERIMENT, train_trial=formula)
        return formula(settings, folder, report)

    summary = run(EXPERIMENT, train_trial=overtaken)
    assert summary == rival[0]
    assert [trial["state"] for trial in summary["trials"]] == ["fail", "complete", "complete", "complete"]


def test_the_programs_own_training_is_searched(parameters: Path) -> None:
    """Two trials of tiny networks on four random cases, through training, prediction and evaluation."""
    tree = _tiny()
    assert tree["pipeline"]
    summary = run("ixi-noreg", trials=2)
    assert [trial["state"] for trial in summary["trials"]] == ["complete", "complete"]
    assert summary["best"]["value"] > 0
    assert store.open_store().get_run(summary["best"]["run"]).data.tags["equisynth.model_sha256"]
    assert not list(Path(".equisynth/search").glob("*/trial-*")), "what a trial leaves is in its run"


def test_the_share_of_folded_voxels_comes_from_the_programs_own_training(parameters: Path) -> None:
    _tiny()
    change(objective="registered", max_folded_share=1.0)
    summary = run(EXPERIMENT, trials=1)
    assert 0 <= summary["best"]["folded_share"] <= 1
    assert run("ixi-noreg", trials=1)["best"]["folded_share"] is None, "nothing deforms there"


def _tiny() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(Path("params.yaml").read_text())
    names = ("i2i", "discriminator", "cross_modality_reg", "intra_modality_reg", "rigid_reg")
    common = {"patch_size": [8] * 3, "training_stride": [8] * 3, "inference_stride": [8] * 3, "batch_size": 2}
    common |= {"fusing_mask_smoothing": 1.0, "normalization_groups": 2, "epoch_steps": 1}
    tree["pipeline"] = {
        f"ixi-{method}": {
            "dataset": "ixi",
            "method": method,
            "code": code,
            "overrides": common | {"features": {name: [2, 4] for name in kept}},
        }
        for method, code, kept in (("noreg", "supervised", names[:1]), ("eqsim_com_eqadv", "equivariant", names))
    }
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    return tree


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = "import sys, equisynth.search.run; sys.exit(bool({'optuna', 'mlflow', 'matplotlib'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, cwd=ROOT)
