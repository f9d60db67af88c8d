"""The proof itself in minutes: the method wins where labels are misaligned alike; and real processes, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import proof_workplace
from equisynth import params
from equisynth.files import read_json
from equisynth.proof import crops, protocol, stage
from pipeline_repository import COPIED, ROOT, Repository

EQSIM, NOREG = "lc_eqsim_com", "lc_noreg_aug"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_equivariance_wins_over_training_on_constantly_misaligned_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """640 steps of the reference protocol, the same seed, two processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    part = [{"task": "photographs", "methods": [EQSIM, NOREG], "seeds": [0]}]
    proof_workplace.write_protocol(tmp_path, part, training={"epochs": 10})
    data = params.data_settings(params.read(), "coco", "paper")
    crops.write_dataset(protocol.read().photographs, data, "coco", protocol.PREPARED["photographs"])
    stage.train("short", jobs=2)
    found = [read_json(stage.finished(f"proof-photographs-{name}-seed0") / "result.json") for name in (EQSIM, NOREG)]
    assert [result["budget"]["steps"] for result in found] == [640, 640]
    eqsim, noreg = (result["last"]["pooled"] for result in found)
    print(eqsim, noreg, found[0]["registration"])
    assert eqsim["psnr"] >= noreg["psnr"] + 0.5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_proof_continues_run_by_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage and its runs are killed when one run is done; the repeat trains the others only."""
    monkeypatch.chdir(tmp_path)
    proof_workplace.make(tmp_path)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "equisynth", "proof", "train", "--jobs", "2"]
    with subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL) as killed:
        while not (done := list(stage.WORK.glob("*/*/result.json"))):
            assert killed.poll() is None
            time.sleep(0.2)
        os.killpg(killed.pid, signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in done}
    assert not stage.OUT.exists()
    subprocess.run(command, env=environment, check=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    names = {run.name for run in protocol.runs(protocol.read(), "short")}
    assert {path.name for path in (stage.OUT / "short").iterdir()} == names
    subprocess.run([sys.executable, "-m", "equisynth", "proof", "page"], env=environment, check=True)
    assert Path("docs/results.md").is_file()


@pytest.mark.slow
def test_dvc_runs_the_proof_only_when_asked(tmp_path: Path) -> None:
    assert "proof" not in COPIED
    repository = Repository.make(tmp_path / "repository")
    proof_workplace.write_protocol(repository.folder, proof_workplace.PARTS)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    path = repository.folder / "params.yaml"
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    own["datasets"] = tree["datasets"]
    path.write_text(yaml.safe_dump(own, sort_keys=False), encoding="utf-8")
    (repository.folder / "proof/dvc.yaml").write_bytes((ROOT / "proof/dvc.yaml").read_bytes())
    plain = repository.run("dvc", "stage", "list", "--name-only").stdout.split()  # what `dvc repro` runs
    assert "prepare@ixi" in plain
    assert not {"crops", "short", "full"} & set(plain)
    needed = repository.run("dvc", "dag", "--dot", "proof/dvc.yaml:short").stdout
    for name in ("raw@ixi", "prepare@ixi", "proof/dvc.yaml:crops", "proof/dvc.yaml:short"):
        assert f'"{name}"' in needed, needed
    assert "train@" not in needed
