"""Runs, versions and weights on an MLflow server of another folder, which serves the artifacts too."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from equisynth import store, tracking
from equisynth.champion import Candidate, RegistrySettings
from equisynth.errors import UserError
from equisynth.files import sha256
from equisynth.model import load_model
from equisynth.registry import register, resolve
from mlflow_repository import make_history, make_metrics, make_settings, write_model

pytest_plugins = ["mlflow_repository"]


@pytest.fixture
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the documented server; its files lie in a folder that clients know nothing of."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes((repository / "mlflow.db").read_bytes())
    (repository / "mlflow.db").unlink()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = f"mlflow server --host 127.0.0.1 --port {port} --workers 1 --backend-store-uri sqlite:///mlflow.db "
    words += "--serve-artifacts --artifacts-destination ./artifacts"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes less
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            words.split(), cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.slow
def test_a_run_its_version_and_its_weights_live_on_a_server(
    server: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    settings = make_settings()
    folder = Path("models") / settings.experiment
    write_model(folder, settings, seed=1)
    weights = sha256(folder / "model.safetensors")
    with tracking.TrainingRun.start(settings, "configuration", "d1") as run:
        for record in make_history(3):
            run.log_epoch(int(record["epoch"]), {"train/similarity": record["train/similarity"]})
        run.finish(weights)
    assert tracking.find_run(settings.experiment, weights) == run.run_id
    tracking.log_evaluation(run.run_id, make_metrics(0.2))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "picture.png").write_bytes(b"a picture")
    assert tracking.log_files(run.run_id, pictures) == 1
    assert tracking.log_files(run.run_id, pictures, missing_only=True) == 0
    candidate = Candidate(weights, "demo", "d1", "validate.mae", 0.2)
    registered = register(folder, settings, run.run_id, candidate, make_metrics(0.2), RegistrySettings())
    assert (registered.version, registered.champion) == (1, True)
    assert not (repository / "mlflow.db").exists()
    assert not (repository / "mlruns").exists(), "everything went to the server"

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    pulled = resolve("models:/ixi@champion")
    assert (pulled.version, pulled.run_id) == (1, run.run_id)
    assert (pulled.folder / "model.safetensors").read_bytes() == (
        repository / folder / "model.safetensors"
    ).read_bytes()
    load_model(pulled.folder)
    found = store.open_store().get_run(run.run_id)
    assert found.data.metrics["validate/mae"] == 0.2
    assert len(store.open_store().get_metric_history(run.run_id, "train/similarity")) == 3
    assert Path(store.open_store().download_artifacts(run.run_id, "pictures/picture.png")).read_bytes() == b"a picture"
    with pytest.raises(UserError, match="no registered model 'brain'; registered: ixi"):
        resolve("models:/brain@champion")


def test_a_server_that_does_not_answer_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9") as caught:
        resolve("models:/ixi@champion")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
