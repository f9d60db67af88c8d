"""Where studies are kept: a real PostgreSQL that processes share, and the journal as Optuna's dashboard reads it."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from equisynth.errors import UserError
from equisynth.files import read_json
from equisynth.search.run import run
from postgresql import server
from search_workplace import BEGUN, EXPERIMENT, ROOT, change, formula

pytest_plugins = ["mlflow_repository", "search_workplace"]
COMMAND = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "import search_workplace as w\n"
    "from equisynth.search.run import run\n"
    "run(w.EXPERIMENT, train_trial=w.slow)\n"
)


def test_two_searches_share_a_postgresql(parameters: Path) -> None:
    """On an empty database, both at once; each makes the tables if the other has not."""
    with server() as url:
        change(storage=url, trials=4, epochs=1)
        command = [sys.executable, "-c", COMMAND, str(ROOT / "tests")]
        programs = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)
        ]
        outputs = [program.communicate(timeout=300)[0] for program in programs]
        assert [program.returncode for program in programs] == [0, 0], outputs
        summary = read_json(f"reports/search/{EXPERIMENT}.json")
        assert [trial["state"] for trial in summary["trials"]] == 4 * ["complete"]
        begun = [line.split() for line in Path(BEGUN).read_text().splitlines()]
        assert len(begun) == len({weight for _, weight in begun}) == 4
        _continues_after_a_kill(summary["study"])
    with pytest.raises(UserError, match=r"search\.storage.*cannot be opened"):
        run(EXPERIMENT, trials=6, train_trial=formula)
    assert not Path(".equisynth/search").joinpath(f"{EXPERIMENT}.journal").exists()


def _continues_after_a_kill(study: str) -> None:
    """In the same database: a fifth trial is killed, and comes again with its parameters."""
    code = COMMAND.replace("w.slow", "lambda s, f, r: __import__('os').kill(__import__('os').getpid(), 9)")
    change(trials=5)
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "tests")], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stdout + done.stderr
    summary = run(EXPERIMENT, train_trial=formula)
    assert summary["study"] == study
    assert [trial["state"] for trial in summary["trials"]] == [*4 * ["complete"], "fail", "complete"]
    assert summary["trials"][5]["parameters"] == summary["trials"][4]["parameters"]


def test_the_dashboard_shows_the_journal(parameters: Path) -> None:
    if importlib.util.find_spec("optuna_dashboard") is None:
        pytest.skip("needs the extra `search`")
    change(space={"loss.commutation": [0.01, 10.0]})
    study = run(EXPERIMENT, train_trial=formula)["study"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "optuna-dashboard"), f".equisynth/search/{EXPERIMENT}.journal"]
    program = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        page = _fetched(f"{address}/dashboard", program)
        assert b"<html" in page.lower()
        studies: list[dict[str, Any]] = json.loads(_fetched(f"{address}/api/studies", program))["study_summaries"]
        assert [entry["study_name"] for entry in studies] == [study]
        details = json.loads(_fetched(f"{address}/api/studies/{studies[0]['study_id']}?after=0", program))
        assert len(details["trials"]) == 3
    finally:
        program.terminate()
        program.wait(30)


def _fetched(address: str, program: subprocess.Popen[bytes]) -> bytes:
    """What a server answers, which may take its time to start."""
    deadline = time.monotonic() + 90
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            return bytes(opener.open(address, timeout=30).read())
        except OSError:
            assert program.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_password_is_not_shown(parameters: Path) -> None:
    pytest.importorskip("psycopg")
    change(storage="postgresql+psycopg://someone:secret@127.0.0.1:1/none")
    with pytest.raises(UserError, match="someone") as raised:
        run(EXPERIMENT, train_trial=formula)
    assert "secret" not in str(raised.value)
