"""Stage prepare on a dask cluster: the same bytes as here, and one clear line where there is no such cluster."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster

from equisynth.config import Data, Intensity
from equisynth.errors import UserError
from equisynth.parallel import Workers
from equisynth.stages import prepare, raw

SOURCE: dict[str, Any] = {
    "kind": "phantom",
    "cases": {"train": 4, "validate": 1, "test": 1},
    "longer_side": 64,
}
COLOURS = Intensity(modality="a", channels=3, mean=(0.0,) * 3, std=(1.0,) * 3, signal_range=255, unit="8 bit")
DATA = Data(n_dims=2, voxel_size=(1.0, 1.0), input=COLOURS, label=COLOURS, licence="CC BY 4.0")


def cluster(workers: int, threads: int = 1) -> LocalCluster:
    return LocalCluster(n_workers=workers, threads_per_worker=threads, dashboard_address=":0", host="127.0.0.1")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with cluster(2) as local:
        yield local.scheduler_address


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


def test_same_bytes_as_here(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With relative paths, which workers started elsewhere must understand."""
    monkeypatch.chdir(tmp_path)
    archives = Path("raw/coco")
    raw.run(SOURCE, "coco", archives)
    prepare.run({}, DATA, "coco", archives, Path("here"), work=Path("work/here"))
    prepare.run({}, DATA, "coco", archives, Path("there"), work=Path("work/there"), scheduler=address)
    assert contents(Path("there")) == contents(Path("here"))
    assert len(contents(Path("here"))) > 6


def test_cluster_computes(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Workers(1, address) as workers:
        assert workers.count == 2
        results = list(workers.map(os.path.abspath, ["a", "b", "c"]))
        processes = set(workers.map(os.path.realpath, ["/proc/self"] * 8))
    assert sorted(results) == [str(tmp_path / name) for name in "abc"]
    assert os.path.realpath("/proc/self") not in processes


def test_errors_of_cases_come_back_as_they_are(address: str) -> None:
    with Workers(1, address) as workers, pytest.raises(ValueError, match="invalid literal for int"):
        list(workers.map(int, ["1", "x"]))


def test_who_is_left_without_workers_says_so_and_waits(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("equisynth.parallel.SECONDS", 5)
    with cluster(1) as local, Workers(1, local.scheduler_address) as workers:
        monkeypatch.setattr("equisynth.parallel.SECONDS", 0.5)
        local.scale(0)
        while workers.count:
            time.sleep(0.1)
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(lambda: sorted(workers.map(int, ["1", "2"])))
            said, deadline = "", time.monotonic() + 30
            while "no worker is left" not in said and time.monotonic() < deadline:
                time.sleep(0.2)
                said += capfd.readouterr().err
            local.scale(1)
            assert found.result(timeout=60) == [1, 2]
    assert f"no worker is left; waiting for one: dask worker {local.scheduler_address}" in said


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equisynth.parallel.SECONDS", 1)
    for wrong in ("tcp://127.0.0.1:9", "nowhere", "http://127.0.0.1:9"):
        with pytest.raises(UserError, match=r"does not answer as a dask scheduler .*tcp://127.0.0.1:8786") as caught:
            Workers(1, wrong).__enter__()
        assert "\n" not in str(caught.value)


def test_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equisynth.parallel.SECONDS", 1)
    with cluster(0) as local, pytest.raises(UserError, match="has no worker; start some"):
        Workers(1, local.scheduler_address).__enter__()


def test_workers_of_several_threads() -> None:
    with cluster(1, threads=3) as local, pytest.raises(UserError, match="a worker of 3 threads"):
        Workers(1, local.scheduler_address).__enter__()


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"dask is not installed; pip install '\.\[cluster\]'"):
        Workers(1, "tcp://127.0.0.1:8786").__enter__()
