"""The repository moved to another folder, and the copies of it in which DVC runs experiments."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equisynth import store, tracking
from equisynth.experiment_copies import link_main_repository, main_repository
from equisynth.registry import resolve
from small_repository import EXPERIMENT, ROOT, environment, make_repository, run

pytest_plugins = ["mlflow_repository"]


@pytest.fixture(scope="module")
def after_experiment(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Path:
    """A repository in which one experiment has run, in DVC's temporary copy."""
    folder = make_repository(tmp_path_factory.mktemp("moves") / "repository", migrated_database)
    done = run(folder, "dvc", "exp", "run", "--temp", "--name", "first", "-S", "seed=7")
    assert "untracked" not in done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def moved(after_experiment: Path) -> Path:
    """The same with the experiment's results applied, in another folder; nothing is left in the old one."""
    run(after_experiment, "dvc", "exp", "apply", "first")
    return after_experiment.rename(after_experiment.with_name("moved"))


def runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.chdir(folder)
    client = store.open_store()
    return list(client.search_runs([client.get_experiment_by_name("ixi").experiment_id]))


def test_an_experiment_in_a_temporary_copy_leaves_its_run_model_and_checkpoints_in_the_main_repository(
    after_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = runs(after_experiment, monkeypatch)
    assert found.info.status == "FINISHED"
    assert found.data.params["seed"] == "7"
    assert found.data.metrics["validate/mae"] > 0
    assert not list(after_experiment.glob(".dvc/tmp/exps/**/params.yaml")), "DVC deletes its copy"
    pulled = resolve("models:/ixi@champion")
    assert pulled.run_id == found.info.run_id
    assert pulled.folder.resolve().is_relative_to(after_experiment / "mlruns")
    assert list(after_experiment.glob(f".equisynth/checkpoints/{EXPERIMENT}*"))
    assert (after_experiment / "weights/inception.pth").read_bytes() == b"weights"
    assert not any(path.is_symlink() for path in (after_experiment, *after_experiment.iterdir()))


def test_nothing_that_mlflow_keeps_holds_the_repositorys_place(after_experiment: Path) -> None:
    place = str(after_experiment)
    with closing(sqlite3.connect(after_experiment / "mlflow.db")) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert set(dict(store.PLACES)) <= set(tables)
        for table in tables:
            for row in connection.execute(f"SELECT * FROM {table}"):
                assert not any(isinstance(value, str) and place in value for value in row), (table, row)
    for path in after_experiment.glob("mlruns/**/*"):
        assert not path.is_file() or place.encode() not in path.read_bytes(), path


def test_after_a_move_models_and_artifacts_are_found_and_the_pipeline_is_up_to_date(
    moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from equisynth.model import load_model

    (found,) = runs(moved, monkeypatch)
    pulled = resolve("models:/ixi@champion")
    assert pulled.folder.is_relative_to(moved)
    load_model(pulled.folder)
    import mlflow

    image = np.zeros((16, 16), np.float32)
    assert mlflow.pyfunc.load_model("models:/ixi@champion").predict(image).shape == (16, 16)
    tracking.log_files(found.info.run_id, moved / f"reports/pictures/{EXPERIMENT}")
    picture = store.open_store().download_artifacts(found.info.run_id, "pictures/picture.png")
    assert Path(picture).read_bytes() == b"a picture"
    assert "Running stage" not in run(moved, "dvc", "repro").stdout
    assert not moved.with_name("repository").exists()


def test_places_from_before_a_move_are_mended_when_the_database_is_opened(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MLflow itself writes them, and as they come from another folder."""
    client = store.open_store()
    own = client.create_experiment("own")
    other = client.create_experiment("other", artifact_location="/nowhere/mlruns/other")
    lost = client.create_experiment("lost", artifact_location="/nowhere/mlruns/lost")
    (repository / "mlruns/other").mkdir(parents=True)
    client = store.open_store()
    assert client.get_experiment(own).artifact_location == f"mlruns/{own}"
    assert client.get_experiment(other).artifact_location == "mlruns/other"
    assert client.get_experiment(lost).artifact_location == "/nowhere/mlruns/lost"  # nothing here says better


def test_only_dvcs_copies_are_linked_to_their_main_repository(tmp_path: Path) -> None:
    main = tmp_path / "main"
    copy = main / ".dvc/tmp/exps/standalone/tmpabc"
    for folder in (main, copy):
        (folder / ".dvc").mkdir(parents=True, exist_ok=True)
        (folder / "weights").mkdir()
    (main / "weights/inception.pth").write_bytes(b"weights")
    assert main_repository(copy) == main
    assert main_repository(main) is None
    assert main_repository(copy.parent) is None
    link_main_repository(main)
    assert sorted(path.name for path in main.iterdir()) == [".dvc", "weights"]
    for _ in range(2):
        link_main_repository(copy)
    (copy / "mlflow.db").write_bytes(b"through the link")
    (copy / "mlruns/1").mkdir()
    shutil.rmtree(copy)
    assert (main / "mlflow.db").read_bytes() == b"through the link"
    assert (main / "mlruns/1").is_dir()
    assert (main / "weights/inception.pth").read_bytes() == b"weights"


def test_a_copys_stages_run_the_main_repositorys_program_with_the_copys_code(tmp_path: Path) -> None:
    program, copy = tmp_path / ".venv/bin/equisynth", tmp_path / ".dvc/tmp/exps/tmpabc"
    for folder in (tmp_path, copy):
        (folder / "bin").mkdir(parents=True)
        shutil.copy(ROOT / "bin/equisynth", folder / "bin/equisynth")
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$1 $PYTHONPATH"\n')
    program.chmod(0o755)
    shown = {}
    for folder in (tmp_path, copy):
        command = [folder / "bin/equisynth", "train"]
        done = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True)
        shown[folder] = done.stdout.strip()
    assert shown == {tmp_path: "train", copy: f"train {copy}/bin/../src"}


@pytest.mark.slow
def test_a_clone_that_pulled_the_outputs_restores_runs_and_versions(
    moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(moved, "dvc", "remote", "add", "-d", "storage", str(tmp_path / "storage"))
    run(moved, "dvc", "push")
    run(moved, "git", "add", "-A")
    run(moved, "git", "commit", "-qm", "outputs")
    run(tmp_path, "git", "clone", "-q", str(moved), "clone")
    clone = tmp_path / "clone"
    missing = run(clone, "bin/equisynth", "restore-runs", EXPERIMENT, expect=2).stderr
    assert f"models/{EXPERIMENT}/model.safetensors" in missing
    run(clone, "dvc", "pull")
    shutil.rmtree(clone / "data")  # dvc.lock knows its version
    first = run(clone, "bin/equisynth", "restore-runs").stdout
    assert "run rebuilt" in first
    assert "version 1 registered" in first
    assert "is models:/ixi@champion" in first
    assert "nothing to do" in run(clone, "bin/equisynth", "restore-runs").stdout
    (old,), (new,) = runs(moved, monkeypatch), runs(clone, monkeypatch)
    assert new.data.tags["equisynth.rebuilt"] == "true"
    same = ("equisynth.dataset_version", "equisynth.model_sha256", "equisynth.experiment", "equisynth.scale")
    assert {key: new.data.tags[key] for key in same} == {key: old.data.tags[key] for key in same}
    assert new.data.metrics == {key: value for key, value in old.data.metrics.items() if key != "seconds"}
    assert new.data.params.items() <= old.data.params.items()
    assert (resolve("models:/ixi@champion").folder / "model.safetensors").read_bytes()
    run(clone, "dvc", "checkout")
    assert "Running stage" not in run(clone, "dvc", "repro").stdout


@pytest.mark.slow
def test_after_a_move_mlflow_ui_shows_artifacts_and_models(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = runs(moved, monkeypatch)
    tracking.log_files(found.info.run_id, moved / f"reports/pictures/{EXPERIMENT}")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ("mlflow", "ui", "--port", str(port), "--workers", "1")
    with subprocess.Popen(
        command, cwd=moved, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    ) as server:
        try:
            picture = read_url(
                f"http://127.0.0.1:{port}/get-artifact?path=pictures/picture.png&run_uuid={found.info.run_id}"
            )
            model = read_url(
                f"http://127.0.0.1:{port}/model-versions/get-artifact?path=artifacts/model.json&name=ixi&version=1"
            )
        finally:
            os.killpg(server.pid, signal.SIGTERM)
    assert picture == b"a picture"
    assert model == (moved / f"models/{EXPERIMENT}/model.json").read_bytes()


def read_url(address: str, patience: float = 180) -> bytes:
    """What a server answers once it has started."""
    end = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


@pytest.mark.slow
def test_queued_experiments_land_in_the_main_repository(
    tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_repository(tmp_path / "repository", migrated_database)
    for seed in (1, 2):
        run(folder, "dvc", "exp", "run", "--queue", "--name", f"seed{seed}", "-S", f"seed={seed}")
    run(folder, "dvc", "queue", "start", "--jobs", "2")
    try:
        for _ in range(120):
            status = run(folder, "dvc", "queue", "status").stdout
            if status.count("Success") == 2:
                break
            assert "Failed" not in status, run(folder, "dvc", "queue", "logs", "seed1").stdout
            time.sleep(2)
        else:
            pytest.fail(status)
    finally:
        run(folder, "dvc", "queue", "stop", "--kill")
    found = runs(folder, monkeypatch)
    assert {one.data.params["seed"] for one in found} == {"1", "2"}
    assert {one.info.status for one in found} == {"FINISHED"}
    best = min(found, key=lambda one: one.data.metrics["validate/mae"])
    assert resolve("models:/ixi@champion").run_id == best.info.run_id
    for version in (1, 2):
        assert (resolve(f"models:/ixi/{version}").folder / "model.safetensors").is_file()
    assert not list(folder.glob(".dvc/tmp/exps/tmp*/params.yaml"))
