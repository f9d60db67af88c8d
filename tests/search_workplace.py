"""A repository in which searches run: small parameters, a tiny prepared dataset, and formulas instead of trainings."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from equisynth.config import Settings
from equisynth.datasets.prepared import DatasetInfo, write_case, write_info
from equisynth.params import data_settings
from equisynth.search.plan import Report

ROOT = Path(__file__).parents[1]
EXPERIMENT = "ixi-eqsim_com_eqadv"
SPLITS = {"train": ("a", "b"), "validate": ("c",), "test": ("d",)}
BEGUN, DEAD = "begun", "dead"
"""Files of what the formulas below did."""


@pytest.fixture
def parameters(repository: Path) -> Path:
    """The project's own params.yaml with a small search, and four tiny cases."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    space = {"loss.commutation": [0.01, 10.0], "learning_rate.generator": {"low": 1e-4, "high": 1e-2}}
    tree["search"] = {"space": space, "trials": 3, "epochs": 2, "seed": 1}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    write_dataset(tree)
    return repository


def write_dataset(tree: dict[str, Any], roles: tuple[str, ...] = ("input", "label", "label_aligned")) -> None:
    """Four cases of noise."""
    folder, random = Path("data/prepared/ixi"), np.random.RandomState(0)
    for case in "abcd":
        images = {role: random.rand(16, 16, 16) for role in roles}
        write_case(folder, case, images, np.diag([3.0, 3.0, 3.6, 1.0]))
    write_info(folder, DatasetInfo(name="ixi", splits=SPLITS, **data_settings(tree, "ixi").model_dump()))


def change(**values: Any) -> None:
    """Keys of the section ``search``."""
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["search"] |= values
    Path("params.yaml").write_text(yaml.safe_dump(tree))


def value_of(settings: Settings) -> float:
    """Best at a commutation weight of 1; a seed shifts it a little."""
    return abs(math.log10(settings.loss.commutation or 1e-9)) + 0.01 * (settings.seed % 7)


def formula(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
    """Curves that tell early."""
    for epoch in range(1, settings.epochs + 1):
        report(epoch, {"train/x": 1.0, "validation/selection": value_of(settings) + 1 / epoch})
    return {"aligned_mae": value_of(settings), "model_sha256": f"{value_of(settings)}"}


def slow(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
    """Leaves a line when it begins and takes two tenths of a second an epoch."""
    with Path(BEGUN).open("a") as file:
        file.write(f"{os.getpid()} {settings.loss.commutation}\n")
    for epoch in range(1, settings.epochs + 1):
        time.sleep(0.2)
        report(epoch, {"train/x": 1.0, "validation/selection": 1 / epoch})
    return {"aligned_mae": value_of(settings)}


def killed_once(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
    """Of all processes the first that comes to a second trial is killed in the middle of it."""
    with Path(BEGUN).open("a") as file:
        file.write(f"{os.getpid()} {settings.loss.commutation}\n")
    own = [line for line in Path(BEGUN).read_text().splitlines() if line.split()[0] == str(os.getpid())]
    time.sleep(0.2)
    report(1, {"train/x": 1.0, "validation/selection": 1.0})
    if len(own) == 2:
        try:
            Path(DEAD).touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"aligned_mae": value_of(settings)}
