"""A new method is one file and one entry in params.yaml, and so is a new dataset: toys in a copy of the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from equisynth.params import merge

ROOT = Path(__file__).parents[1]
METHOD = '''
"""Toy: one convolution fitted to the label (*A Toy*, 2026)."""

from pydantic import Field
from torch import nn, optim

from equisynth.config import Strict
from equisynth.methods.base import SELECTION, Method, Update


class Options(Strict):
    width: int = Field(3, ge=1)


class Toy(Method):
    Options = Options

    def __init__(self, settings):
        super().__init__(settings)
        self.networks = {"i2i": self.predictor(settings)}
        self.optimisers = {"all": optim.SGD(self.networks["i2i"].parameters(), settings.learning_rate.generator)}

    def updates(self, batch):
        loss = (self.networks["i2i"](batch.input.values) - batch.label.values).square().mean()
        yield Update("all", loss, {"loss": loss.detach()})

    def validation(self, batch):
        return {SELECTION: (self.networks["i2i"](batch.input.values) - batch.label.values).abs().mean()}

    @staticmethod
    def predictor(settings):
        width = Toy.options(settings).width
        return nn.Conv2d(settings.data.input.channels, settings.data.label.channels, width, padding=width // 2)


METHOD = Toy
'''
LAYOUT = '''
"""Toy: pictures drawn on the spot."""

from contextlib import contextmanager

import numpy as np

from equisynth.config import Strict
from equisynth.datasets.prepared import write_case


class Source(Strict):
    kind: str
    side: int


class Preparation(Strict):
    splits: dict[str, list[str]] | None = None


class Pictures:
    def __init__(self, archives):
        self.arrays = np.load(archives["pictures"])

    def cases(self):
        return sorted(self.arrays.files)

    def incomplete_cases(self):
        return []

    def full_name(self, case):
        return case


SOURCES = {"phantom": Source}
STORED = ("input", "label")
CASES_PER_OPENING = 1


def fetch(source, folder, jobs):
    random, path = np.random.RandomState(0), folder / "pictures.npz"
    np.savez(path, **{name: random.rand(source.side, source.side).astype(np.float32) for name in "abcd"})
    return {"pictures": path}


@contextmanager
def opened(archives):
    yield Pictures(archives)


def prepare_into(work, raw, case, preparation, data):
    image = raw.arrays[case]
    write_case(work, case, {"input": image, "label": 1 - image}, np.eye(4), n_dims=2)
    return {}


def constants(preparation, data, facts):
    return {}


def default_splits(cases):
    return {"train": ["a", "b"], "validate": ["c"], "test": ["d"]}
'''
INTENSITY = {"modality": "A", "signal_range": 1.0, "unit": "1"}
ENTRIES: dict[str, Any] = {
    "sources": {"toy": {"kind": "phantom", "side": 24}},
    "datasets": {
        "toy": {
            "layout": "toy",
            "data": {"n_dims": 2, "voxel_size": [1, 1], "input": INTENSITY, "label": INTENSITY, "licence": "none"},
            "preparation": {},
            "training": {
                "trains_on_label": "unregistered", "batch_size": 2, "patch_size": [16, 16], "training_stride": [8, 8],
                "inference_stride": [8, 8], "random_transformation": {}, "epochs": 1, "epoch_steps": 2,
                "learning_rate": {"generator": 0.1},
            },
        }
    },
    "methods": {"toy": {"method": "toy", "datasets": {"toy": {}}, "network": {"width": 5}}},
}  # fmt: skip
STEPS = """
import json
from pathlib import Path
from equisynth import params
from equisynth.datasets.prepared import PreparedDataset
from equisynth.methods.base import build_method, method_class
from equisynth.published import published_entry
from equisynth.stages import prepare, raw
from equisynth.stages.train import train_once

tree, scans, prepared = params.read(), Path("data/raw/toy"), Path("data/prepared/toy")
layout, data = params.layout_of(tree, "toy"), params.data_settings(tree, "toy")
raw.run(params.source(tree, "toy"), "toy", scans, layout_name=layout)
prepare.run(params.preparation(tree, "toy"), data, "toy", scans, prepared, layout_name=layout)
settings = params.resolve(tree, "toy-toy", None, lambda name: method_class(name).Options)
method = build_method(settings)
history = train_once(settings, PreparedDataset.open(prepared), Path("model"), lambda epoch, values: None)
width = method.networks["i2i"].weight.shape[-1]
print(json.dumps({"entry": published_entry(settings), "width": width, "history": history}))
"""
COMMANDS = """
import sys
from equisynth import cli

for command in ("methods", "methods toy", "resolve toy-toy", "resolve toy-toy --scale demo --json"):
    try:
        cli.main(command.split())
    except SystemExit as stopped:
        print(f"exit {stopped.code}")
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, the toys' two files and their entries in params.yaml; nothing else is changed."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for room, text in (("methods", METHOD), ("layouts", LAYOUT)):
        path = folder / "src" / "equisynth" / room / "toy.py"
        assert not path.exists()
        path.write_text(text.lstrip(), encoding="utf-8")
    tree = merge(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")), ENTRIES)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return folder


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    command = (sys.executable, "-c", script)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_method_and_a_dataset_are_a_file_and_an_entry_each(copy: Path) -> None:
    done = json.loads(run(copy, STEPS).stdout.splitlines()[-1])
    assert done["width"] == 5
    entry = done["entry"]
    assert (entry["dataset"], entry["epochs"], entry["network"]) == ("toy", 1, {"width": 5})
    assert not {"features", "loss", "normalization_groups"} & set(entry)
    assert [record["epoch"] for record in done["history"]] == [1]
    assert (copy / "model" / "model.safetensors").is_file()


def test_a_new_method_is_listed_and_its_options_are_checked(copy: Path) -> None:
    text = (copy / "params.yaml").read_text(encoding="utf-8")
    (copy / "params.yaml").write_text(text.replace("width: 5", "wdth: 5"), encoding="utf-8")
    try:
        done = run(copy, COMMANDS)
    finally:
        (copy / "params.yaml").write_text(text, encoding="utf-8")
    assert "Toy: one convolution" in done.stdout
    assert "width: int, default 3" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["exit 2", "exit 2"]
    for told in done.stderr.splitlines():
        assert "methods.toy.network.wdth" in told
        assert "no such key here; known: width" in told
    assert done.stderr.count("\n") == 2
