"""All runs of a part, some at a time, each in a process of its own with one thread; what is finished is collected."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from equisynth.errors import UserError
from equisynth.files import atomic_folder, link, read_json
from equisynth.proof import protocol
from equisynth.proof.protocol import Run

WORK = Path(".equisynth/proof")
OUT = Path("reports/proof")
COLLECTED = ("result.json", "history.json", "samples.npz", "model/model.safetensors", "model/model.json")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
DEVICES = ("cpu", "cuda")


def train(part: str, jobs: int = 2, device: str = "cpu", out: Path = OUT) -> None:
    """Trains what is left of a part and collects all its runs in ``<out>/<part>/<run>/``.

    An interrupted stage is repeated with the same command: finished runs are found, the others continue.

    Args:
        jobs: runs at a time.
        device: ``cpu``, or ``cuda`` for the machine's GPU.

    Raises:
        UserError: a run failed; those beside it were still finished.
    """
    if device not in DEVICES:
        raise UserError(f"--device: found '{device}', expected one of: {', '.join(DEVICES)}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: found no GPU; leave it out to train on the processor")
    runs = protocol.runs(protocol.read(), part)
    print(f"proof {part}: {len(runs)} runs, {jobs} at a time on {device}", flush=True)
    failed: list[str] = []

    def one(numbered: tuple[int, Run]) -> None:
        number, run = numbered
        if failed:  # what is at work is finished, nothing new begins
            return
        start = time.monotonic()
        reason = _train_apart(run.name, device)
        if reason is not None:
            failed.append(f"{run.name}: {reason}")
            return
        psnr = read_json(finished(run.name) / "result.json")["last"]["pooled"]["psnr"]
        spent = f"{time.monotonic() - start:.0f} s"
        print(f"[{number}/{len(runs)}] {run.name}: {psnr:.2f} dB after the last epoch ({spent} now)", flush=True)

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        list(pool.map(one, enumerate(runs, start=1)))
    if failed:
        raise UserError(f"{failed[0]}; run the same command again to continue")
    collect(runs, out / part)


def collect(runs: Sequence[Run], out: Path) -> None:
    """Links the outputs of finished runs into one folder, all or nothing."""
    with atomic_folder(out) as temporary:
        for run in runs:
            folder = finished(run.name)
            for file in COLLECTED:
                link(folder / file, temporary / run.name / Path(file).name)


def finished(name: str, work: Path = WORK) -> Path:
    """The folder of a finished run.

    Raises:
        UserError: there is none.
    """
    found = sorted((work / name).glob("*/result.json"))
    if len(found) != 1:
        raise UserError(f"{work / name}: found {len(found)} finished runs, expected one; run: make proof")
    return found[0].parent


def gathered(part: str, runs: Sequence[Run], out: Path = OUT, work: Path = WORK) -> list[Path]:
    """Folders of a part's runs: all, as the stage collected them; where it has not ended, those that are finished."""
    collected = sorted((out / part).glob("*/result.json"))
    found = collected or [path for run in runs for path in sorted((work / run.name).glob("*/result.json"))]
    return [path.parent for path in found]


def _train_apart(name: str, device: str) -> str | None:
    """Trains one run in a process of its own; what it says goes into ``<work>/<run>/log``.

    Returns:
        Why it failed; None: it did not.
    """
    environment = os.environ | ONE_THREAD
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    log = WORK / name / "log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        command = [sys.executable, "-m", "equisynth", "proof", "run", name]
        done = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
    if done.returncode == 0:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1].removeprefix('equisynth: ')} (all of it: {log})" if lines else f"ended with {done.returncode}"
