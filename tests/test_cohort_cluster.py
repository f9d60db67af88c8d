"""Cohorts on a dask cluster: as here, also where a case fails, a worker is killed, or the cluster goes away."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from distributed import LocalCluster

import cohort_work
from equisynth import cli, cohort_cluster, cohort_run
from equisynth.cohort_cluster import Cluster
from equisynth.errors import UserError
from test_cohort_run import run, statuses, summary, tree, write_model, write_scan

NAMES = [f"sub-{number}/anat/sub-{number}_desc-synthesised_PDw.nii.gz" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def local() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what calls leave; the current folder is another one, so that no message names it."""
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    return Path("notes")


def numbers(address: str, function: Any, notes: Path, **options: Any) -> Cluster[Any, Any]:
    return Cluster(address, function, cohort_work.start, (notes, 3), **options)


@contextmanager
def when(condition: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """Does something while the block runs."""
    thread = threading.Thread(target=lambda: (_until(condition), act()))
    thread.start()
    yield
    thread.join()


def _until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_same_images_and_summary_as_here(
    local: LocalCluster, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With relative paths, a case that fails among others, by the command line; and the repeat that mends it."""
    monkeypatch.chdir(tmp_path)
    tree(Path("in"))
    bad = Path("in/sub-2/anat/sub-2_T2w.nii.gz")
    bad.write_bytes(bad.read_bytes()[:-40])
    assert run(Path("in"), model, Path("here")) == cohort_run.FAILED
    here = capsys.readouterr()
    command = ["predict", "in", "--model", os.path.relpath(model), "--output", "there", "--device", "cpu"]
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--scheduler", local.scheduler_address])
    assert caught.value.code == cohort_run.FAILED
    there = capsys.readouterr()
    assert sorted(there.out.splitlines()) == [f"there/{name}" for name in (NAMES[0], NAMES[2])]
    said = [sorted(said.err.splitlines()) for said in (here, there)]
    assert [line.replace("there/", "here/") for line in said[1]] == said[0]
    own = [[(c["case"], c["status"], c["reason"]) for c in summary(Path(out))["cases"]] for out in ("here", "there")]
    assert own[0] == own[1]
    assert (summary(Path("there"))["jobs"], summary(Path("there"))["batch"]) == (2, None)
    assert Path("there/dataset_description.json").is_file()
    for name in (NAMES[0], NAMES[2]):
        one, two = (nibabel.load(Path(out) / name).get_fdata() for out in ("here", "there"))
        assert np.allclose(one, two, atol=1e-6)
    write_scan(bad)
    monkeypatch.setenv("EQUISYNTH_SCHEDULER", local.scheduler_address)
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    assert caught.value.code == 0
    assert statuses(Path("there")) == ["skipped", "done", "skipped"]


def test_what_is_wrong_with_every_case_is_told_before_anything_is_written(
    local: LocalCluster, model: str, tmp_path: Path
) -> None:
    given, output = tree(tmp_path / "in"), tmp_path / "out"
    for options, message in (
        ({"precision": "half"}, "--precision: found 'half'"),
        ({"flips": "trained"}, "--flips trained"),
        ({"device": "tpu"}, "--device tpu: cannot be used here"),
        ({"jobs": 2}, "--jobs 2: as many cases at once as the cluster .* has workers"),
    ):
        with pytest.raises(UserError, match=message):
            run(given, model, output, scheduler=local.scheduler_address, **options)
        assert not output.exists()


def test_a_killed_worker_costs_the_case_that_kills_it(local: LocalCluster, notes: Path) -> None:
    local.scheduler.allowed_failures, before = 0, local.scheduler.allowed_failures
    try:
        with numbers(local.scheduler_address, cohort_work.work, notes) as cluster:
            killed = list(cluster.results([cohort_work.KILLED], lambda number, reason: (number, reason)))
            others = list(cluster.results([4, 5], lambda number, reason: (number, reason)))
    finally:
        local.scheduler.allowed_failures = before
    assert len(killed) == 1
    assert "was killed, perhaps for lack of memory" in killed[0][1]
    assert sorted(others) == [(4, 12), (5, 15)]


def test_each_worker_starts_once_for_a_command(local: LocalCluster, notes: Path) -> None:
    for folder in (notes / "first", notes / "second"):
        folder.mkdir()
        with numbers(local.scheduler_address, cohort_work.work, folder) as cluster:
            assert sorted(cluster.results(range(10, 18), lambda *_: None)) == [(n, 3 * n) for n in range(10, 18)]
        assert 1 <= len(list(folder.iterdir())) <= 2


def test_who_is_interrupted_leaves_the_workers_free(local: LocalCluster, notes: Path) -> None:
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes of pytest-xdist ignore it
    with (
        when(lambda: len(list(notes.glob("*.begun"))) == 2, partial(os.kill, os.getpid(), signal.SIGINT)),
        pytest.raises(KeyboardInterrupt),
        numbers(local.scheduler_address, cohort_work.until_unwanted, notes) as cluster,
    ):
        list(cluster.results(["a", "b", "c"], lambda *_: None))
    _until(lambda: len(list(notes.glob("*.left"))) == 2)
    assert len(list(notes.glob("*.begun"))) == 2
    signal.signal(signal.SIGINT, usual)


def test_a_worker_must_see_the_folders_and_have_this_version(
    local: LocalCluster, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = numbers(local.scheduler_address, cohort_work.work, notes, folders=[Path("absent")])
    with pytest.raises(UserError, match="the worker tcp://.* does not see the folder .*/absent; put it on a file syst"):
        absent.__enter__()
    monkeypatch.setattr(cohort_cluster, "version", lambda name: "99")
    with pytest.raises(UserError, match=r"the worker tcp://.* has equisynth .*, expected 99"):
        numbers(local.scheduler_address, cohort_work.work, notes).__enter__()


def test_a_worker_that_cannot_load_the_program_is_named(notes: Path) -> None:
    cluster = numbers("tcp://a:1", cohort_work.work, notes)
    answers = {"tcp://b:2": None, "tcp://c:3": ModuleNotFoundError("No module named 'equisynth'")}
    cluster._client = SimpleNamespace(run=lambda *_, **options: answers)
    with pytest.raises(
        UserError, match=r"tcp://a:1: the worker tcp://c:3 cannot load this program \(No module named 'eq"
    ):
        cluster._check()


def test_a_cluster_that_goes_away_is_told(notes: Path) -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1") as short,
        when(lambda: (notes / "a.begun").exists(), short.close),
        pytest.raises(UserError, match=r"--scheduler tcp://.*: does not answer any more; start it"),
        numbers(short.scheduler_address, cohort_work.until_unwanted, notes) as cluster,
    ):
        list(cluster.results(["a"], lambda *_: None))


def test_no_cluster_ends_in_one_line(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tree(tmp_path / "in")
    with pytest.raises(UserError, match="--scheduler http://127.0.0.1:8786: does not answer as a dask scheduler"):
        run(given, model, tmp_path / "out", scheduler="http://127.0.0.1:8786")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"dask is not installed; pip install '\.\[cluster\]'"):
        run(given, model, tmp_path / "out", scheduler="tcp://127.0.0.1:8786")
    assert not (tmp_path / "out").exists()
