"""What an interrupted stage leaves is continued by the same stage on the same things, and by nobody else."""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from equisynth.work import (
    FINISHED,
    Arrays,
    alone,
    code_version,
    count_remembered,
    discard_committed,
    fingerprint,
    remembered,
    resumable,
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(".equisynth/stage")


def test_the_same_key_finds_the_same_folder(root: Path) -> None:
    with resumable(root, "name", {"a": 1}) as first:
        (first / "part").touch()
    with resumable(root, "name", {"a": 1}) as again:
        assert again == first
        assert (again / "part").exists()
        assert not (again / FINISHED).exists()  # in use
    with resumable(root, "name", {"a": 2}) as other:
        assert other != first
        assert first.exists()  # until the other one is finished
    assert not first.exists()


def test_an_error_keeps_what_is_there(root: Path) -> None:
    with pytest.raises(KeyError), resumable(root, "name", 1) as folder:
        raise KeyError
    assert folder.exists()
    assert not (folder / FINISHED).exists()


def test_another_stage_and_another_name_are_left_alone(root: Path) -> None:
    with (
        resumable(root, "ixi", 1) as a,
        resumable(root, "ixi-b", 1) as b,
        resumable(root.with_name("x"), "ixi", 1) as c,
    ):
        pass
    assert a.exists()
    assert b.exists()
    assert c.exists()


def test_work_of_a_finished_stage_goes_when_dvc_has_its_outputs(root: Path) -> None:
    with resumable(root, "finished", 1) as finished:
        pass
    with pytest.raises(KeyError), resumable(root, "half", 1) as half:
        raise KeyError
    lock = Path("dvc.lock")
    lock.touch()
    mark = (finished / FINISHED).stat().st_mtime_ns
    os.utime(lock, ns=(mark - 1, mark - 1))  # of an earlier stage
    discard_committed(root.parent)
    assert finished.exists()
    os.utime(lock, ns=(mark + 1, mark + 1))
    discard_committed(root.parent)
    assert not finished.exists()
    assert half.exists()


def test_other_code_starts_anew(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("equisynth.invented")
    module.__file__ = str(tmp_path / "invented.py")
    monkeypatch.setitem(sys.modules, "equisynth.invented", module)
    versions = set()
    for content in ("a = 1", "a = 2", "a = 2"):
        Path(module.__file__).write_text(content)
        versions.add(code_version())
    assert len(versions) == 2
    monkeypatch.setitem(sys.modules, "equisynth.cli", module)  # changes no result
    assert code_version() in versions


def test_a_second_process_waits_for_the_first(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An orphan of a killed ``dvc repro`` finishes; its lock ends with it even if it is killed."""
    lock, order = tmp_path / "name" / "lock", tmp_path / "order"
    child = os.fork()
    if child == 0:
        with alone(lock, "predict@x"):
            (tmp_path / "inside").touch()
            time.sleep(0.3)
            order.write_text("first ")
            os.kill(os.getpid(), signal.SIGKILL)
    while not (tmp_path / "inside").exists():
        time.sleep(0.01)
    with alone(lock, "predict@x"), order.open("a") as file:
        file.write("second")
    os.waitpid(child, 0)
    assert order.read_text() == "first second"
    assert f"predict@x: waiting for process {child}, which is at it" in capfd.readouterr().err
    assert lock.read_text() == str(os.getpid())


def test_results_are_computed_once_and_come_back_whole(tmp_path: Path) -> None:
    calls = []

    def compute() -> Arrays:
        calls.append(1)
        return {"features": np.asfortranarray(np.random.RandomState(0).rand(3, 4)), "sum": np.array(0.1)}

    remember = remembered(tmp_path)
    first, second = (remember("fid/case.a-1", compute) for _ in range(2))
    assert len(calls) == 1
    for name, values in compute().items():
        for found in (first[name], second[name]):
            assert found.tobytes() == values.tobytes()
            assert found.dtype == values.dtype
    assert first["features"].strides == second["features"].strides
    assert count_remembered(tmp_path) == 1


def test_fingerprint_tells_that_a_file_was_touched(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    file = tmp_path / "a" / "b" / "c"
    file.write_text("content")
    prints = [fingerprint(tmp_path / "a"), fingerprint(file)]
    assert [fingerprint(tmp_path / "a"), fingerprint(file)] == prints
    time.sleep(0.02)
    file.write_text("CONTENT")
    assert not {fingerprint(tmp_path / "a"), fingerprint(file)} & set(prints)
    assert fingerprint(tmp_path / "absent") == fingerprint(tmp_path / "absent")
