"""The registered model as a service: the documented requests, and what wrong ones are answered.

The table in docs/how-to/serve.md is made by ``WRITE_WRONG_INPUTS=1 pytest tests/test_served_model.py``.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from equisynth import service, store
from equisynth.champion import Candidate, RegistrySettings
from equisynth.files import sha256
from equisynth.inference import translate_volume
from equisynth.model import load_model
from equisynth.registry import pull, register
from equisynth.tracking import run_of
from mlflow_repository import make_metrics, make_settings, write_model

pytest_plugins = ["mlflow_repository"]
PAGE = Path(__file__).parents[1] / "docs/how-to/serve.md"
ADDRESS = "http://127.0.0.1:5001"
JSON = "application/json"
DATA = make_settings().data.model_dump() | {"n_dims": 3, "voxel_size": (1.0, 1.0, 1.0)}
SIZES = {"patch_size": (8, 8, 8), "training_stride": (8, 8, 8), "inference_stride": (4, 4, 4)}
IMAGE = np.random.RandomState(0).rand(9, 12, 5).astype(np.float32)
SMALL = np.ones((2, 2, 2), np.float32)


def inputs(content: Any) -> bytes:
    return json.dumps({"inputs": content}).encode()


WRONG = {
    "an empty body": (b"", JSON),
    "not JSON": (b"PD, please", JSON),
    "an image file": (b"\x5c\x01\x00\x00\xff\xfe", JSON),
    "lists nested 200,000 deep": (b"[" * 200_000, JSON),
    "a number of 5,000 digits": (b'{"inputs": [' + b"1" * 5000 + b"]}", JSON),
    "a list": (json.dumps(SMALL.tolist()).encode(), JSON),
    "no image": (b"{}", JSON),
    "another key": (json.dumps({"instances": SMALL.tolist()}).encode(), JSON),
    "a table": (b'{"dataframe_split": {"columns": ["a"], "data": [[1]]}}', JSON),
    "a parameter that nobody knows": (json.dumps({"inputs": SMALL.tolist(), "params": {"flips": 8}}).encode(), JSON),
    "a number": (inputs(1.5), JSON),
    "null": (inputs(None), JSON),
    "text": (inputs("data/input.nii"), JSON),
    "text for numbers": (inputs([[["1", "2"]]]), JSON),
    "true for a number": (inputs([[[True]]]), JSON),
    "null for a number": (inputs([[[1, None]]]), JSON),
    "an image by name": (inputs({"T2": SMALL.tolist()}), JSON),
    "rows of different lengths": (inputs([[[1, 2], [3]]]), JSON),
    "an empty list": (inputs([]), JSON),
    "an image without slices": (inputs([[[]]]), JSON),
    "a slice": (inputs(SMALL[0].tolist()), JSON),
    "a batch of images": (inputs(SMALL[None].tolist()), JSON),
    "NaN": (inputs([[[1.0, float("nan")]]]), JSON),
    "infinity": (inputs([[[1.0, float("inf")]]]), JSON),
    "a number that is too large": (inputs([[[1e300]]]), JSON),
    "no Content-Type": (inputs(SMALL.tolist()), None),
    "another Content-Type": (inputs(SMALL.tolist()), "text/csv"),
    "Parquet that is none": (b"PAR1", "application/vnd.apache.parquet"),
}


def enrol() -> Path:
    """A tiny model of 3D images in the registry of the working directory; its folder."""
    settings = make_settings(data=DATA, **SIZES)
    folder = Path("models") / settings.experiment
    write_model(folder, settings, seed=1)
    candidate = Candidate(sha256(folder / "model.safetensors"), "demo", "d1", "validate.mae", 0.2)
    register(folder, settings, run_of(settings.experiment), candidate, make_metrics(0.2), RegistrySettings())
    return folder


def expected(folder: Path, image: np.ndarray) -> np.ndarray:
    model = load_model(folder)
    return translate_volume(model.predict, image, None, model.description)


@pytest.fixture
def client(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's application, made as its server makes it, without the server."""
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    enrol()
    monkeypatch.setenv("__pyfunc_model_path__", str(pull("models:/ixi@champion").parent.absolute()))
    monkeypatch.setenv("__MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    monkeypatch.setattr(scoring_server, "invocations", scoring_server.invocations)
    monkeypatch.delitem(sys.modules, service.APPLICATION, raising=False)
    application = importlib.import_module(service.APPLICATION).app
    yield TestClient(application, raise_server_exceptions=False)
    sys.modules.pop(service.APPLICATION)


def send(client: Any, body: bytes, content_type: str | None = JSON) -> Any:
    return client.post("/invocations", content=body, headers={"Content-Type": content_type} if content_type else {})


def check_refusal(status: int, text: str) -> str:
    """The message of an answer to a wrong request."""
    answer = json.loads(text)
    assert status == 400, text
    assert answer["error_code"] == "INVALID_PARAMETER_VALUE"
    assert "Traceback" not in text
    assert "stack_trace" not in answer
    message = str(answer["message"])
    assert 10 < len(message) < 400
    assert message.isprintable()
    return message


def test_documented_requests_are_answered(client: Any, repository: Path) -> None:
    for image in (IMAGE, SMALL, IMAGE.astype(np.float64)):
        answer = send(client, inputs(image.tolist()))
        assert answer.status_code == 200, answer.text
        found = np.array(answer.json()["predictions"], dtype=np.float32)
        np.testing.assert_array_equal(found, expected(repository / "models/ixi-noreg", image.astype(np.float32)))
    whole_numbers = inputs(np.arange(8).reshape(2, 2, 2).tolist())
    assert send(client, whole_numbers, "application/json; charset=utf-8").status_code == 200


def test_wrong_requests_are_refused_in_one_line_and_the_service_goes_on(client: Any) -> None:
    messages: dict[str, str] = {}
    for _ in range(-(-200 // len(WRONG))):
        for what, (body, content_type) in WRONG.items():
            answer = send(client, body, content_type)
            message = check_refusal(answer.status_code, answer.text)
            assert messages.setdefault(what, message) == message
    assert send(client, inputs(SMALL.tolist())).status_code == 200
    check_table(messages)


def check_table(messages: dict[str, str]) -> None:
    rows = "".join(f"| {what} | {message.replace('|', chr(92) + '|')} |\n" for what, message in messages.items())
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split("| request | message |\n|---|---|\n")
    table, after = rest[: rest.index("\nLimits:")], rest[rest.index("\nLimits:") :]
    if os.environ.get("WRITE_WRONG_INPUTS"):
        PAGE.write_text(f"{before}| request | message |\n|---|---|\n{rows}{after}", encoding="utf-8")
    else:
        assert table == rows, "docs/how-to/serve.md: see this module's docstring"


def test_too_large_images_are_refused(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"Limits: {service.LARGEST} values" in PAGE.read_text(encoding="utf-8")
    assert service.LARGEST_BODY == 2**30
    monkeypatch.setattr(service, "LARGEST", 7)
    assert "8 values; expected 1 to 7" in send(client, inputs(SMALL.tolist())).json()["message"]
    assert send(client, inputs([[[1.0] * 7]])).status_code == 200
    monkeypatch.setattr(service, "LARGEST_BODY", 20)
    answer = send(client, inputs(SMALL.tolist()))
    assert "at most 20" in check_refusal(answer.status_code, answer.text)


def test_a_failure_of_the_model_is_told_without_a_trace(
    client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("3 GiB")

    monkeypatch.setattr(service.Translator, "predict", fail)
    answer = send(client, inputs(SMALL.tolist()))
    assert answer.status_code == 500
    assert answer.json()["message"] == "the model failed (MemoryError); the server's log says where"
    assert "Traceback" not in answer.text
    assert "3 GiB" in caplog.text


def test_the_servers_handler_stays_mlflows_elsewhere(repository: Path) -> None:
    from mlflow import pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import scoring_server

    before = scoring_server.invocations
    enrol()
    model = pyfunc.load_model("models:/ixi@champion")
    assert scoring_server.invocations is before
    with pytest.raises(MlflowException, match="NaN"):
        model.predict(SMALL * np.nan)
    with pytest.raises(MlflowException, match="shape"):
        model.predict(SMALL[0])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


@pytest.fixture
def server(repository: Path) -> Iterator[str]:
    """Address of the documented command, on another port."""
    enrol()
    port = free_port()
    (command,) = re.findall(r"^(mlflow models serve .+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    words = command.replace("5001", str(port)).split()
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    log = repository / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(words, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        until_it_answers(f"http://127.0.0.1:{port}/ping", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.slow
def test_the_documented_command_and_clients_with_200_wrong_requests(server: str, repository: Path) -> None:
    blocks = dict(re.findall(r"^```(sh|python)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
    for count in range(200):
        body, content_type = list(WRONG.values())[count % len(WRONG)]
        headers = {"Content-Type": content_type} if content_type else {"Content-Type": ""}
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{server}/invocations", body, headers), timeout=60)
        check_refusal(refused.value.code, refused.value.read().decode())
    path = repository / re.findall(r'load\("(.+?)"\)', blocks["python"])[0]
    path.parent.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(IMAGE, np.diag([2.0, 2, 2, 1])), path)
    subprocess.run([sys.executable, "-c", blocks["python"].replace(ADDRESS, server)], check=True)
    found = nibabel.load("PD.nii")
    np.testing.assert_array_equal(found.get_fdata(dtype=np.float32), expected(Path("models/ixi-noreg"), IMAGE))
    np.testing.assert_array_equal(found.affine, np.diag([2.0, 2, 2, 1]))
    done = subprocess.run(
        ["sh", "-ec", blocks["sh"].replace(ADDRESS, server)], check=True, capture_output=True, text=True
    )
    assert np.shape(json.loads(done.stdout)["predictions"]) == (2, 2, 2)
    assert store.database_path() == repository / "mlflow.db"
