"""The example SLURM script, with stand-ins for the programs that it starts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples/slurm.sh"


@pytest.mark.parametrize(
    ("words", "variables", "started"),
    [
        ("train e", {"SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_ID": "7"},
         "4 torchrun --nproc-per-node 2 --master-port 20007 -m equisynth train e"),
        ("search e", {"SLURM_ARRAY_TASK_ID": "3"}, "1 equisynth search e"),
        ("prepare ixi", {"SLURM_CPUS_PER_TASK": "16"}, "1 equisynth prepare ixi --jobs 16"),
        ("paint e", {}, "slurm.sh: task 'paint', expected train, search or prepare"),
        ("", {}, "train, search or prepare"),
    ],
)  # fmt: skip
def test_the_script_starts(tmp_path: Path, words: str, variables: dict[str, str], started: str) -> None:
    folder = tmp_path / ".venv/bin"
    folder.mkdir(parents=True)
    for name in ("torchrun", "equisynth"):
        (folder / name).write_text(f'#!/bin/sh\necho "$OMP_NUM_THREADS {name} $*"\n')
        (folder / name).chmod(0o755)
    environment = {"PATH": str(Path(shutil.which("bash") or "/bin/bash").parent), **variables}
    done = subprocess.run(
        ["bash", SCRIPT, *words.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert started in done.stdout + done.stderr
    assert (done.returncode == 0) == (words.split()[:1] in (["train"], ["search"], ["prepare"]))
