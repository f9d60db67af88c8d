"""One step with the published networks and patch sizes through the program's own command: seconds and memory."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.ndimage import gaussian_filter

from equisynth import params
from equisynth.config import Data
from equisynth.datasets.prepared import DatasetInfo, write_case, write_info

ROOT = Path(__file__).parents[1]
ONE_STEP = {"batch_size": 2, "epochs": 1, "epoch_steps": 1}  # the published batch of 4 fits no small machine


def write_parameters(folder: Path, dataset: str, method: str) -> str:
    """params.yaml with one experiment at the published scale that trains one step; its name."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    name = f"{dataset}-{method}"
    tree["scale"] = "paper"
    tree["pipeline"] = {name: {"dataset": dataset, "method": method, "code": "equivariant", "overrides": ONE_STEP}}
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return name


def write_dataset(folder: Path, data: Data, shape: tuple[int, ...], pictures: bool = False) -> None:
    """Smooth random images of one size: two cases to train on, one for each other split.

    Args:
        pictures: 8-bit inputs alone, of which pairs are made while training.
    """
    splits = {"train": ("a", "b"), "validate": ("c",), "test": ("d",)}
    random = np.random.RandomState(0)
    for case in (case for cases in splits.values() for case in cases):
        channels = (data.input.channels,) if data.input.channels > 1 else ()
        noise = gaussian_filter(random.rand(*shape, *channels), (*[3.0] * len(shape), *[0.0] * len(channels)))
        values = (noise - noise.min()) / (noise.max() - noise.min()) * data.input.signal_range
        arrays = {"input": values, "label": np.roll(data.input.signal_range - values, 3, axis=0)}
        if pictures:
            arrays = {"input": values.astype(np.uint8)}
        write_case(folder, case, arrays, np.eye(4), n_dims=data.n_dims)
    stored = tuple(arrays)
    write_info(folder, DatasetInfo(**data.model_dump(), name=folder.name, splits=splits, stored=stored))


def train(folder: Path, experiment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = (sys.executable, "-m", "equisynth", "train", experiment)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("dataset", "method"), [("ixi", "eqsim_com_eqadv"), ("coco", "lr_eqsim_com")])
def test_one_step_of_the_published_networks(tmp_path: Path, dataset: str, method: str) -> None:
    experiment = write_parameters(tmp_path, dataset, method)
    settings = params.resolve(params.read(tmp_path / "params.yaml"), experiment)
    pictures = settings.label_deformation is not None
    write_dataset(tmp_path / "data/prepared" / dataset, settings.data, settings.patch_size, pictures)

    start = time.perf_counter()
    done = train(tmp_path, experiment)
    assert done.returncode == 0, done.stderr
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"\n{experiment}: {re.findall(r'epoch 1/1.*', done.stderr)}; command {seconds:.0f} s, at most {memory:.1f} GiB"
    )

    description = json.loads((tmp_path / "models" / experiment / "model.json").read_text())
    assert description["settings"]["patch_size"] == list(settings.patch_size)
    record = json.loads((tmp_path / "reports/history" / f"{experiment}.json").read_text())[0]
    assert all(np.isfinite(value) for value in record.values())


def test_data_smaller_than_the_published_patch_are_refused(tmp_path: Path) -> None:
    experiment = write_parameters(tmp_path, "ixi", "eqsim_com_eqadv")
    settings = params.resolve(params.read(tmp_path / "params.yaml"), experiment)
    write_dataset(tmp_path / "data/prepared/ixi", settings.data, (64, 48, 64))
    done = train(tmp_path, experiment)
    assert done.returncode == 2
    assert "[64, 48, 64]" in done.stderr
    assert "[64, 64, 64]" in done.stderr
    assert not (tmp_path / "models").exists()
