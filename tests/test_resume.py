"""A killed pipeline ends where an undisturbed one does, to the last bit, and does at most one epoch or case twice."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from inception import write_inception
from killing import run_until_killed
from pipeline_repository import EXPERIMENT, Repository

pytest_plugins = ["mlflow_repository"]

EPOCHS = 3
CHANGES: dict[str, Any] = {
    "scales": {"demo": {"ixi": {
        "phantom": {"cases": {"train": 2, "validate": 1, "test": 2}, "shape": [36, 44, 24]},
        "training": {"epochs": EPOCHS},
    }}},
    "evaluation": {"fid": {"axes": [2]}},
}  # fmt: skip
OUTPUTS = {
    "prepare": ["data/prepared/ixi"],
    "train": [f"models/{EXPERIMENT}", f"reports/history/{EXPERIMENT}.json"],
    "predict": [f"predictions/{EXPERIMENT}"],
    "evaluate": [f"reports/evaluation/{EXPERIMENT}.json", f"reports/metrics/{EXPERIMENT}.json"],
}
# All of it in one process that nothing interrupts.
UNDISTURBED = f"""
from pathlib import Path
from equisynth import params
from equisynth.datasets.prepared import PreparedDataset
from equisynth.files import write_json
from equisynth.stages import evaluate, predict, prepare, raw, train

name = "{EXPERIMENT}"
archives, prepared = Path("data/raw/ixi"), Path("data/prepared/ixi")
model, predictions = Path("models") / name, Path("predictions") / name
tree = params.read()
raw.run(params.source(tree, "ixi"), "ixi", archives)
prepare.run(params.preparation(tree, "ixi"), params.data_settings(tree, "ixi"), "ixi", archives, prepared)
dataset, settings = PreparedDataset.open(prepared), params.resolve(tree, name)
history = train.train_once(settings, dataset, model, lambda *_: None, Path("checkpoints"))
write_json(Path("reports/history") / (name + ".json"), history)
predict.run(model, prepared, predictions)
evaluate.run(name, prepared, predictions)
"""


def make_repository(folder: Path) -> Repository:
    repository = Repository.make(folder)
    repository.parameters(CHANGES)
    repository.environment["OMP_NUM_THREADS"] = "1"
    repository.environment["PYTHONUNBUFFERED"] = "1"
    repository.environment["https_proxy"] = "http://127.0.0.1:9"  # no download of FID's weights
    return repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Repository:
    """Holds the outputs of an undisturbed run, and nothing that a stage could continue from."""
    repository = make_repository(tmp_path_factory.mktemp("resume") / "repository")
    shutil.copy(migrated_database, repository.folder / "mlflow.db")
    repository.run(sys.executable, "-c", UNDISTURBED)
    shutil.rmtree(repository.folder / ".equisynth")
    return repository


@pytest.fixture(scope="module")
def expected(repository: Repository) -> dict[str, dict[str, str]]:
    """Hashes of each stage's undisturbed outputs."""
    return {stage: hashes(repository, stage) for stage in OUTPUTS}


def hashes(repository: Repository, stage: str) -> dict[str, str]:
    tops = [repository.folder / name for name in OUTPUTS[stage]]
    files = [path for top in tops for path in ([top] if top.is_file() else sorted(top.rglob("*"))) if path.is_file()]
    return {
        path.relative_to(repository.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def remove_outputs(repository: Repository, stage: str) -> None:
    """As DVC does before it runs a stage."""
    for name in OUTPUTS[stage]:
        path = repository.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def parts(repository: Repository) -> dict[str, tuple[int, int]]:
    """What stages have finished, and when it was made."""
    top = repository.folder / ".equisynth"
    files = [path for path in top.glob("*/*/*/**/*") if path.is_file() and not path.name.startswith(".")]
    return {
        path.relative_to(top).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in files
        if path.name != "finished" and not any(part.startswith(".") for part in path.relative_to(top).parts)
    }


def epochs(text: str) -> list[int]:
    """Epochs that a training finished, as it says on stderr."""
    return [int(number) for number in re.findall(rf"epoch (\d+)/{EPOCHS} +validation", text)]


def runs(repository: Repository) -> list[str]:
    """Status of MLflow's runs; fails where a metric has two values for one epoch."""
    with closing(sqlite3.connect(repository.folder / "mlflow.db")) as database:
        twice = database.execute("SELECT key FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1").fetchall()
        assert twice == []
        return [status for (status,) in database.execute("SELECT status FROM runs")]


def test_prepare(repository: Repository, expected: dict[str, Any], tmp_path: Path) -> None:
    """Killed when the second case's images were there, but not yet the facts that mark it as finished."""
    remove_outputs(repository, "prepare")
    command = ("equisynth", "prepare", "ixi", "--jobs", "1")
    run_until_killed(repository, tmp_path, *command, moment="before", pattern="/facts/", count=2)
    assert hashes(repository, "prepare") == {}
    before = parts(repository)
    assert len([name for name in before if "/facts/" in name]) == 1
    said = repository.run(*command).stderr
    assert "prepare@ixi: continuing, 1 of 5 cases are there" in said
    assert hashes(repository, "prepare") == expected["prepare"]
    after = parts(repository)
    case = next(Path(name).stem for name in before if "/facts/" in name)
    assert {name: after[name] for name in before if case in name} == {n: v for n, v in before.items() if case in n}


def test_train(repository: Repository, expected: dict[str, Any], tmp_path: Path) -> None:
    """Killed when the second epoch's weights were there, but not yet the state that refers to them."""
    remove_outputs(repository, "train")
    command = ("equisynth", "train", EXPERIMENT)
    said = run_until_killed(repository, tmp_path, *command, moment="before", pattern=r"state\.pt$", count=2)
    assert epochs(said) == [1]
    assert hashes(repository, "train") == {}
    assert runs(repository) == ["RUNNING"]

    (weights,) = repository.folder.glob(".equisynth/checkpoints/*/epoch_0001.safetensors")
    good, state = weights.read_bytes(), weights.with_name("state.pt").read_bytes()
    save_file({name: value * float("nan") for name, value in load_file(weights).items()}, weights)
    error = repository.run(*command, expect=2).stderr
    assert "the checkpoint of epoch 1 is kept" in error.splitlines()[-1]
    assert "Traceback" not in error
    assert weights.with_name("state.pt").read_bytes() == state
    assert runs(repository) == ["FAILED"]
    assert hashes(repository, "train") == {}

    weights.write_bytes(good)
    said = repository.run(*command).stderr
    assert f"{EXPERIMENT}: continuing after epoch 1" in said
    assert epochs(said) == [2, 3]  # of four epochs trained, one twice
    assert hashes(repository, "train") == expected["train"]
    assert runs(repository) == ["FINISHED"]


def test_predict_in_dvc(repository: Repository, expected: dict[str, Any], tmp_path: Path) -> None:
    """Killed with DVC, first after a case, then when all was done but DVC had not stored it."""
    remove_outputs(repository, "predict")
    repository.run("dvc", "repro", "-q", "code")
    repository.run("dvc", "commit", "-f", "raw@ixi", "prepare@ixi", f"train@{EXPERIMENT}")
    command = ("dvc", "repro", "-s", f"predict@{EXPERIMENT}")
    run_until_killed(repository, tmp_path, *command, moment="before", pattern=r"\.nii$", count=2)
    assert hashes(repository, "predict") == {}
    first = parts(repository)
    said = run_until_killed(repository, tmp_path, *command, moment="after", pattern=f"predictions/{EXPERIMENT}$")
    assert "continuing, 1 of 3 cases are there" in said
    assert hashes(repository, "predict") == expected["predict"]
    second = parts(repository)
    done = repository.run(*command)
    assert "continuing, 3 of 3 cases are there" in done.stderr
    assert hashes(repository, "predict") == expected["predict"]
    names = [name for name in second if name.endswith(".nii") and name.startswith("predict/")]
    assert len(names) == 3
    assert sum(first.get(name) == second[name] for name in names) == 1
    assert not [name for name in repository.changed() if name.startswith("predict@")]


def test_evaluate(repository: Repository, expected: dict[str, Any], tmp_path: Path) -> None:
    """Killed within the last of the references."""
    remove_outputs(repository, "evaluate")
    command = ("equisynth", "evaluate", EXPERIMENT)
    run_until_killed(repository, tmp_path, *command, moment="before", pattern="/lookup_table/", count=2)
    assert hashes(repository, "evaluate") == {}
    before = {name: made for name, made in parts(repository).items() if name.startswith("evaluate/")}
    said = repository.run(*command).stderr
    assert f"evaluate@{EXPERIMENT}: continuing, {len(before)} parts are there" in said
    assert hashes(repository, "evaluate") == expected["evaluate"]
    after = {name: made for name, made in parts(repository).items() if name.startswith("evaluate/")}
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_times(tmp_path: Path) -> None:
    """Spread over the whole of ``dvc repro``, DVC's own work included; each kills DVC and the stage it runs."""
    undisturbed, killed = (make_repository(tmp_path / name) for name in ("undisturbed", "killed"))
    weights = tmp_path / "weights.pth"
    write_inception(weights)
    for repository in (undisturbed, killed):
        shutil.copy(weights, repository.folder / "weights/fid_inception.pth")
    times = stage_times(undisturbed, tmp_path / "undisturbed.log")
    said, kills = "", 0
    seen: dict[str, tuple[int, int]] = {}
    gone: set[str] = set()
    for number, (stage, share) in enumerate(random_instants(times, 10)):
        was_killed, log = kill_in_stage(killed, tmp_path / f"{number}.log", times, stage, share)
        said, kills = said + log, kills + was_killed
        found = parts(killed)
        again = {name for name in found if name in gone or seen.get(name, found[name]) != found[name]}
        assert again == set(), f"made twice: {again}"
        gone |= set(seen) - set(found)
        seen |= found
    assert kills >= 5  # the others came when all was done
    done = killed.run("dvc", "repro")
    said += done.stdout + done.stderr
    for stage in OUTPUTS:
        assert hashes(killed, stage) == hashes(undisturbed, stage), stage
    assert len(epochs(said)) == len(set(epochs(said))), said  # an epoch that was saved is not trained again
    assert runs(killed) == ["FINISHED"]
    assert killed.changed() == {}


def stage_times(repository: Repository, log: Path) -> dict[str, float]:
    """Seconds of each stage in ``dvc repro``, from its start to the next one's."""
    starts: dict[str, float] = {}
    with log.open("w") as file:
        process = subprocess.Popen(
            ["dvc", "repro"], cwd=repository.folder, env=repository.environment, stdout=file, stderr=file
        )
        while process.poll() is None:
            for stage in running(log):
                starts.setdefault(stage, time.monotonic())
            time.sleep(0.02)
    assert process.returncode == 0, log.read_text()
    ends = [*list(starts.values())[1:], time.monotonic()]
    return {stage: end - start for (stage, start), end in zip(starts.items(), ends, strict=True)}


def random_instants(times: dict[str, float], count: int) -> list[tuple[str, float]]:
    """(stage, share of its time) of instants in order, a random one in each of ``count`` equal parts of the whole."""
    ends = np.cumsum(list(times.values()))
    instants = (np.arange(count) + np.random.RandomState(0).uniform(size=count)) / count * ends[-1]
    stages = list(times)
    found = [int(np.searchsorted(ends, instant)) for instant in instants]
    return [(stages[k], 1 - (ends[k] - instant) / times[stages[k]]) for k, instant in zip(found, instants, strict=True)]


def kill_in_stage(
    repository: Repository, log: Path, times: dict[str, float], stage: str, share: float
) -> tuple[bool, str]:
    """Kills ``dvc repro`` and all that it started when that share of a stage's undisturbed time is over.

    A stage that continues takes less: then the kill comes when the next one begins. Where the stage is done already, it
    comes in the next one that runs.

    Returns:
        whether anything was left to kill, and what had been said.
    """
    awaited = list(times)[list(times).index(stage) :]
    with log.open("w") as file:
        process = subprocess.Popen(
            ["dvc", "repro"], cwd=repository.folder, env=repository.environment, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
        chosen, end = "", np.inf
        while process.poll() is None and time.monotonic() < end and (not chosen or running(log)[-1] == chosen):
            time.sleep(0.02)
            if not chosen and set(running(log)) & set(awaited):
                chosen = running(log)[-1]
                end = time.monotonic() + share * times[chosen]
        alive = process.poll() is None
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return alive, log.read_text()


def running(log: Path) -> list[str]:
    """Stages that ``dvc repro`` has begun."""
    return re.findall(r"Running stage '([^']+)'", log.read_text())
