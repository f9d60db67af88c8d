"""The command line itself: help, version, usage errors and what the machine refuses, each in one line."""

from __future__ import annotations

import errno
import resource
import sqlite3
import subprocess
import sys
from importlib.metadata import version

import pytest

from equisynth import cli, failures
from equisynth.errors import UserError
from equisynth.files import MARK


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | None, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes `equisynth resolve` fail with an error."""

    def read() -> None:
        raise error

    monkeypatch.setattr("equisynth.params.read", read)


def test_version_answers_at_once() -> None:
    """In seconds of the processor, because other work on the machine adds to others."""

    def seconds() -> float:
        start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run(
            [sys.executable, "-m", "equisynth", "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"equisynth {version('equisynth')}\n"
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("arguments", [(), ("--help",), ("train", "--help")])
def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *arguments)
    assert not code
    assert "Usage: equisynth" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), ("trian", "Did you mean 'train'", "equisynth --help")),
        (("train",), ("experiment", "equisynth train --help")),
        (("train", "a", "b"), ("unexpected", "equisynth train --help")),
        (("train", "a", "--workers", "-1"), ("--workers", "0", "equisynth train --help")),
        (("predict", "--modell", "x"), ("--modell", "equisynth predict --help")),
    ],
)
def test_usage_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("equisynth: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def test_a_loading_process_s_traceback_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\n  File x\n"
    raising(monkeypatch, UserError(f"{inside}equisynth.errors.UserError: a.nii: is damaged; prepare it again\n"))
    assert run(capsys, "resolve", "a") == (2, "", "equisynth: a.nii: is damaged; prepare it again\n")


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    code, _, err = run(capsys, "resolve", "a")
    assert code == 130
    assert "run the same command again" in err


def _wrapped(cause: Exception) -> Exception:
    """As libraries do: their own exception, raised while that of the system was handled."""
    try:
        try:
            raise cause
        except Exception as error:
            raise RuntimeError("a library's words") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("wrap", [lambda error: error, _wrapped])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.nii"), ("out.nii: No space", "make room")),
        (OSError(errno.EROFS, "Read-only file system", "out.nii"), ("out.nii", "Read-only", "choose a folder")),
        (PermissionError(errno.EACCES, "Permission denied", "in.nii"), ("in.nii", "Permission denied")),
        (OSError(errno.EISDIR, "Is a directory", "a", None, "b"), ("b: Is a directory", "choose another name")),
        (sqlite3.OperationalError("database is locked"), ("database is locked", "another process", "wait")),
        (sqlite3.OperationalError("database or disk is full"), ("disk is full", "make room")),
        (ValueError("I/O error: No space left on device (os error 28)"), ("No space left", "make room")),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    wrap: object,
    error: Exception,
    words: tuple[str, ...],
) -> None:
    raising(monkeypatch, wrap(error))  # type: ignore[operator]
    code, _, err = run(capsys, "resolve", "a")
    assert code == 2
    assert err.startswith("equisynth: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


@pytest.mark.parametrize("error", [ValueError("shape"), FileNotFoundError(errno.ENOENT, "none", "x"), KeyError("a")])
def test_mistakes_of_the_program_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    raising(monkeypatch, error)
    with pytest.raises(type(error)):
        cli.main(["resolve", "a"])


def test_temporaries_are_named_as_what_they_were_to_become() -> None:
    temporary = f"models/.a.b{MARK}ab_12xyz/epochs/.epoch_1{MARK}aaaa1111.safetensors: cannot be written"
    assert failures.with_final_names(temporary) == "models/a.b/epochs/epoch_1.safetensors: cannot be written"
    assert failures.with_final_names("data/.hidden/x.y: not found") == "data/.hidden/x.y: not found"
