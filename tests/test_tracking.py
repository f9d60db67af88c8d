"""Runs: parameters, curves, evaluation, what a resumed training does, moves of the repository."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from equisynth import process_identity, store, tracking
from equisynth.dataset_versions import dataset_version, trained_on
from equisynth.errors import UserError
from equisynth.files import sha256
from equisynth.process_identity import this_process
from mlflow_repository import make_history, make_metrics, make_settings, write_model

pytest_plugins = ["mlflow_repository"]
SETTINGS = make_settings()


def train(epochs: int = 3, sha: str = "abc", configuration: str = "c1") -> str:
    with tracking.TrainingRun.start(SETTINGS, configuration, "d1.dir") as run:
        for record in make_history(epochs):
            run.log_epoch(int(record["epoch"]), {key: value for key, value in record.items() if key != "epoch"})
        run.finish(sha)
    return run.run_id


def curve(run_id: str, key: str = "validation/selection") -> list[tuple[int, float]]:
    history = store.open_store().get_metric_history(run_id, key)
    return [(point.step, point.value) for point in history]


def test_a_run_holds_flat_parameters_curves_dataset_and_tags(repository: Path) -> None:
    run = store.open_store().get_run(train())
    assert run.info.run_name == "ixi-noreg (demo)"
    assert run.info.status == "FINISHED"
    assert run.data.params["loss.similarity"] == "mae"
    assert run.data.params["data.input.modality"] == "T2"
    assert run.data.params["patch_size"] == "[8, 8]"
    assert not any(value == "null" for value in run.data.params.values())
    assert run.data.tags[tracking.MODEL] == "abc"
    assert run.inputs.dataset_inputs[0].dataset.digest == "d1.dir"
    assert curve(run.info.run_id) == [(1, 0.5), (2, 0.25), (3, pytest.approx(0.5 / 3))]


def test_a_failed_training_is_marked_and_its_continuation_stays_one_run(repository: Path) -> None:
    first = tracking.TrainingRun.start(SETTINGS, "c1", "d1")
    with pytest.raises(RuntimeError), first:
        first.log_epoch(1, {"validation/selection": 0.5})
        raise RuntimeError
    assert store.open_store().get_run(first.run_id).info.status == "FAILED"
    with tracking.TrainingRun.start(SETTINGS, "c1", "d1") as second:
        second.log_epoch(2, {"validation/selection": 0.25})
        second.finish("abc", make_history(3))  # epoch 3 was trained, but its process was killed before logging
    assert second.run_id == first.run_id
    assert curve(first.run_id) == [(1, 0.5), (2, 0.25), (3, pytest.approx(0.5 / 3))]


def test_another_configuration_or_a_finished_one_starts_a_new_run(repository: Path) -> None:
    unfinished = tracking.TrainingRun.start(SETTINGS, "c1", "d1").run_id
    assert tracking.TrainingRun.start(SETTINGS, "c2", "d1").run_id != unfinished
    finished = train(configuration="c3")
    assert train(configuration="c3") != finished


def test_a_training_that_starts_over_does_not_mix_its_curves_with_the_old_ones(repository: Path) -> None:
    old = tracking.TrainingRun.start(SETTINGS, "c1", "d1")
    old.log_epoch(1, {"validation/selection": 0.5})
    new = tracking.TrainingRun.start(SETTINGS, "c1", "d1")
    new.log_epoch(1, {"validation/selection": 0.4})
    new.log_epoch(2, {"validation/selection": 0.3})
    assert store.open_store().get_run(old.run_id).info.status == "KILLED"
    assert curve(old.run_id) == [(1, 0.5)]
    assert curve(new.run_id) == [(1, 0.4), (2, 0.3)]


def test_it_says_which_run_is_continued_or_what_changed(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tracking.TrainingRun.start(SETTINGS, "c1", "d1")
    assert capsys.readouterr().err == ""
    tracking.TrainingRun.start(SETTINGS, "c1", "d1")
    assert capsys.readouterr().err == f"continuing MLflow run ixi-noreg (demo) ({first.run_id})\n"
    store.open_store().log_param(first.run_id, "precision", "no")  # a stage's own, no part of the comparison
    changed = make_settings(epochs=4, learning_rate={"generator": 2e-3})
    tracking.TrainingRun.start(changed, "c2", "d2")
    assert capsys.readouterr().err == (
        "configuration changed (dataset version: d1 -> d2, epochs: 3 -> 4, learning_rate.generator: 0.001 -> 0.002): "
        "starting a new run\n"
    )
    many = make_settings(epochs=5, seed=1, batch_size=2, normalization_groups=2)
    tracking.TrainingRun.start(many, "c3", "d2").end("FINISHED")
    assert "batch_size: 1 -> 2, epochs: 4 -> 5, learning_rate.generator: 0.002 -> 0.001, and 2 more)" in (
        capsys.readouterr().err
    )
    tracking.TrainingRun.start(many, "c3", "d2")
    assert "is finished: starting a new run" in capsys.readouterr().err
    tracking.TrainingRun.start(many, "c4", "d2")
    assert "--precision" in capsys.readouterr().err


def test_runs_of_dead_processes_are_closed_and_those_of_living_ones_left_alone(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = this_process().split("/")[0]
    left = {
        f"{host}/{dead.pid}/123": "KILLED",
        f"{host}/{os.getppid()}/0": "KILLED",  # that number belongs to another process now
        f"elsewhere/{dead.pid}/123": "RUNNING",
        this_process(): "RUNNING",
    }
    runs = {}
    for number, process in enumerate(left):
        runs[process] = tracking.TrainingRun.start(SETTINGS, f"c{number}", "d1").run_id
        store.open_store().set_tag(runs[process], tracking.PROCESS, process)
    tracking.TrainingRun.start(SETTINGS, "new", "d1")
    for process, status in left.items():
        assert store.open_store().get_run(runs[process]).info.status == status, process
    assert capsys.readouterr().err.count("its process is gone, marked KILLED") == 2


def test_a_second_process_waits_for_the_one_that_trains_the_same_configuration(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = tracking.TrainingRun.start(SETTINGS, "c1", "d1").run_id
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        identity = f"{this_process().split('/')[0]}/{other.pid}/{process_identity._start(other.pid)}"
        store.open_store().set_tag(run_id, tracking.PROCESS, identity)

        def stop_it(seconds: float) -> None:
            assert process_identity.is_alive(identity)
            other.kill()
            other.wait()

        monkeypatch.setattr(tracking.time, "sleep", stop_it)
        assert tracking.TrainingRun.start(SETTINGS, "c1", "d1").run_id == run_id
    assert f"waiting for process {other.pid}, which is training it\n" in capsys.readouterr().err
    assert store.open_store().get_run(run_id).data.tags[tracking.PROCESS] == this_process()


def test_a_run_is_found_by_its_model_and_the_latest_counts(repository: Path) -> None:
    train(sha="abc")
    latest = train(sha="abc", configuration="c2")
    train(sha="other", configuration="c3")
    assert tracking.find_run("ixi-noreg", "abc") == latest
    assert tracking.find_run("ixi-noreg", "nothing") is None


def test_lost_runs_are_made_again_once(repository: Path) -> None:
    write_model(repository / "models/ixi-noreg", SETTINGS)
    run_id = tracking.run_of("ixi-noreg")
    assert tracking.run_of("ixi-noreg") == run_id
    run = store.open_store().get_run(run_id)
    assert run.data.tags["equisynth.rebuilt"] == "true"
    assert run.data.tags[tracking.MODEL] == sha256(repository / "models/ixi-noreg/model.safetensors")
    assert [step for step, _ in curve(run_id)] == [1, 2, 3]


def test_evaluation_becomes_metrics_and_the_reason_of_an_absent_fid_a_tag(repository: Path) -> None:
    run_id = train()
    for _ in range(2):
        tracking.log_evaluation(run_id, make_metrics())
    data = store.open_store().get_run(run_id).data
    assert data.metrics["validate/mae"] == 0.1
    assert len(curve(run_id, "validate/mae")) == 1
    assert data.tags["fid/reason"] == "no weights: give --fid-weights"
    assert data.tags["fid/computed"] == "false"


def test_runs_and_pictures_survive_a_move(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "pictures").mkdir()
    (repository / "pictures/a.png").write_bytes(b"picture")
    run_id = train()
    tracking.log_files(run_id, repository / "pictures")
    monkeypatch.chdir(repository.parent)
    moved = repository.rename(repository.parent / "moved")
    monkeypatch.chdir(moved)
    client = store.open_store()
    assert Path(client.download_artifacts(run_id, "pictures/a.png")).read_bytes() == b"picture"
    assert not repository.exists()
    shutil.rmtree(moved)


def test_nothing_is_written_outside_mlruns_and_the_database(repository: Path) -> None:
    train()
    assert {path.name for path in repository.iterdir()} <= {"mlflow.db", "mlruns", ".equisynth", "data"}
    with sqlite3.connect("mlflow.db") as connection:
        roots = [row[0] for row in connection.execute("SELECT artifact_location FROM experiments WHERE name = 'ixi'")]
    assert roots == ["mlruns/1"]


def test_reading_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"mlflow\.db: not found"):
        store.open_store()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"no database at all " * 100, b"SQLite format 3\0" + bytes(5000), b""])
def test_a_damaged_or_empty_database_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"mlflow\.db: (MLflow cannot open it|not found, or empty)") as caught:
        store.open_store()
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 30, "MLflow would try ten times"
    assert (tmp_path / "mlflow.db").read_bytes() == content


def test_an_empty_database_is_filled_where_runs_are_made(repository: Path) -> None:
    Path("mlflow.db").write_bytes(b"")
    assert store.open_store(create=True).search_experiments()


def test_a_locked_database_is_one_clear_line_after_a_bounded_wait(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "WAIT", 0.5)
    with closing(sqlite3.connect("mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        for create in (False, True):
            start = time.monotonic()
            with pytest.raises(UserError, match=r"mlflow\.db: .*database is locked.* waited 0\.5 s") as caught:
                store.open_store(create)
            assert "\n" not in str(caught.value)
            assert time.monotonic() - start < 30
    store.open_store()


def test_the_tracking_uri_of_the_environment_is_respected(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = repository / "elsewhere.db"
    shutil.copy("mlflow.db", other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    run_id = train()
    assert store.open_store().get_run(run_id).info.status == "FINISHED"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.find_run("ixi-noreg", "abc") is None


def test_the_dataset_version_is_dvcs_hash_or_one_of_the_description(repository: Path) -> None:
    def lock(**stages: object) -> None:
        Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))

    described = dataset_version("data/prepared/ixi")
    assert described.startswith("json-")
    train = {
        "deps": [{"path": "data/prepared/ixi", "md5": "trained.dir"}],
        "outs": [{"path": "models/ixi-noreg", "md5": "m.dir"}],
    }
    lock(train=train)
    assert trained_on("ixi-noreg", "ixi") == described, "DVC's hash of data that DVC does not make is not their version"
    lock(prepare={"outs": [{"path": "data/prepared/ixi", "md5": "now.dir"}]}, train=train)
    assert dataset_version("data/prepared/ixi") == "now.dir"
    assert trained_on("ixi-noreg", "ixi") == "trained.dir"
    assert trained_on("ixi-other", "ixi") == "now.dir"
    with pytest.raises(UserError, match=r"dataset\.json: not found, and dvc\.lock does not say"):
        dataset_version("data/prepared/other")


def test_the_git_commit_and_changes_are_tags(repository: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    Path("params.yaml").write_text("a: 1\n")
    git("add", "params.yaml")
    git("commit", "-m", "first")
    Path("params.yaml").write_text("a: 2\n")
    tags = store.open_store().get_run(train()).data.tags
    assert tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert tags["equisynth.git_dirty"] == "true"


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = "import sys, equisynth.tracking, equisynth.registry; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
