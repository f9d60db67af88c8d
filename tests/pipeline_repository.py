"""A repository of its own for a test: the project's tracked parts under git and DVC, on the smallest phantoms."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
EXPERIMENT = "ixi-eqsim_com_eqadv"
COPIED = ("src", "bin", "dvc.yaml", "params.yaml", "weights", ".dvc", ".dvcignore", ".gitignore")
SMALLEST: dict[str, Any] = {
    "phantom": {"cases": {"train": 2, "validate": 1, "test": 1}, "voxel_size": [5.0, 5.0, 6.0], "shape": [40, 48, 32]},
    "data": {"voxel_size": [5.0, 5.0, 6.0]},
    "preparation": {"registration": None},
    "training": {
        "patch_size": [16, 16, 16],
        "inference_stride": [12, 12, 12],
        "features": {
            "i2i": [4, 16], "discriminator": [4, 8], "cross_modality_reg": [4, 8], "intra_modality_reg": [4, 8],
            "rigid_reg": [4, 8],
        },
        "epochs": 2,
        "epoch_steps": 3,
    },
}  # fmt: skip


class Repository:
    """A copy of the project's tracked parts with the smallest scale, under git and DVC."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "2",
        }

    @classmethod
    def make(cls, folder: Path) -> Repository:
        """Copies the project into a folder and commits it."""
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns(
                    "__pycache__", "*.pth", "tmp", "cache", "config.local", "lock", "*.lock"
                )
                shutil.copytree(source, folder / name, ignore=ignored)
            else:
                folder.mkdir(exist_ok=True)
                shutil.copy(source, folder / name)
        repository = cls(folder)
        repository.only("ixi")
        repository.parameters({"scales": {"demo": {"ixi": SMALLEST}}})
        repository.run("git", "init", "-q")
        repository.run("git", "add", "-A")
        repository.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start")
        return repository

    def run(self, *command: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == expect, f"{' '.join(command)} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def parameters(self, change: dict[str, Any]) -> None:
        """Merges a change into params.yaml."""
        from equisynth.params import merge

        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump(merge(yaml.safe_load(path.read_text()), change), sort_keys=False))

    def only(self, dataset: str) -> None:
        """Takes the other datasets and their experiments out of params.yaml."""
        path = self.folder / "params.yaml"
        tree = yaml.safe_load(path.read_text())
        for section in ("sources", "datasets"):
            tree[section] = {dataset: tree[section][dataset]}
        tree["scales"] = {scale: {dataset: parts[dataset]} for scale, parts in tree["scales"].items()}
        tree["pipeline"] = {key: item for key, item in tree["pipeline"].items() if item["dataset"] == dataset}
        path.write_text(yaml.safe_dump(tree, sort_keys=False))

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def changed(self) -> dict[str, Any]:
        """Stages that `dvc repro` would run."""
        return dict(json.loads(self.run("dvc", "status", "--json").stdout))
