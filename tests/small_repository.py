"""A git and DVC repository with the program's real training and registry, on a dataset of four tiny pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from equisynth.config import Settings
from mlflow_repository import make_settings

ROOT = Path(__file__).parents[1]
EXPERIMENT = "ixi-noreg"
DATA = f"data/prepared/{make_settings().dataset}"
PREPARE = """
import json, sys
from pathlib import Path
import numpy as np
from equisynth.datasets.prepared import DatasetInfo, write_case, write_info

folder, random = Path(sys.argv[1]), np.random.RandomState(0)
for case in "abcd":
    image = random.rand(16, 16).astype(np.float32)
    arrays = {"input": image, "label": 1 - image, "label_aligned": 1 - image}
    write_case(folder, case, arrays, np.eye(4), n_dims=2)
splits = {"train": ("a", "b"), "validate": ("c",), "test": ("d",)}
write_info(folder, DatasetInfo(**json.loads(sys.argv[2]), name="ixi", splits=splits))
"""
EVALUATE = """
import json, sys
from pathlib import Path

weights = Path(f"models/{sys.argv[1]}/model.safetensors").read_bytes()
metrics, pictures = Path("reports/metrics"), Path(f"reports/pictures/{sys.argv[1]}")
metrics.mkdir(parents=True, exist_ok=True)
(metrics / f"{sys.argv[1]}.json").write_text(json.dumps({"validate": {"mae": sum(weights) % 1009 / 1009}}))
pictures.mkdir(parents=True, exist_ok=True)
(pictures / "picture.png").write_bytes(b"a picture")
"""
IGNORED = "\n".join(["/data/", "/models/", "/reports/", "/mlruns", "/mlflow.db*", "/.equisynth", ""])


def environment() -> dict[str, str]:
    """Of a user who has nothing set but the path to the program."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_", "GIT_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
    }


def run(folder: Path, *command: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == expect, f"{' '.join(command)} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def make_repository(folder: Path, database: Path) -> Path:
    """Everything committed, nothing run.

    Args:
        database: an empty MLflow database, which takes seconds to make.
    """
    folder.mkdir(parents=True)
    (folder / "mlflow.db").write_bytes(database.read_bytes())
    settings = make_settings(epochs=1, epoch_steps=2)
    (folder / "bin").mkdir()
    (folder / "bin/equisynth").write_bytes((ROOT / "bin/equisynth").read_bytes())
    (folder / "bin/equisynth").chmod(0o755)
    (folder / "weights").mkdir()
    (folder / "weights/.gitignore").write_bytes((ROOT / "weights/.gitignore").read_bytes())
    (folder / "weights/inception.pth").write_bytes(b"weights")
    (folder / "prepare.py").write_text(PREPARE)
    (folder / "evaluate.py").write_text(EVALUATE)
    (folder / ".gitignore").write_text(IGNORED)
    (folder / ".dvcignore").write_bytes((ROOT / ".dvcignore").read_bytes())
    (folder / "params.yaml").write_text(yaml.safe_dump(_parameters(settings), sort_keys=False))
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": _stages(settings)}, sort_keys=False))
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    run(folder, *git, "init", "-q")
    run(folder, "dvc", "init", "-q")
    run(folder, "git", "config", "user.name", "t")
    run(folder, "git", "config", "user.email", "t@example.org")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "start")
    return folder


def _parameters(settings: Settings) -> dict[str, object]:
    fields = settings.model_dump(mode="json", exclude_defaults=True)
    for key in ("experiment", "scale", "dataset", "method"):
        fields.pop(key)
    data = fields.pop("data")
    return {
        "scale": "demo",
        "seed": 0,
        "sources": {},
        "datasets": {"ixi": {"layout": "ixi", "data": data, "preparation": {}, "training": fields}},
        "methods": {"noreg": {"method": "supervised"}},
        "scales": {"demo": {}},
        "pipeline": {EXPERIMENT: {"dataset": "ixi", "method": "noreg", "code": "supervised", "overrides": {}}},
        "search": {},
        "evaluation": {},
        "registry": {"alias": "champion"},
    }


def _stages(settings: Settings) -> dict[str, object]:
    model, metrics = f"models/{EXPERIMENT}", f"reports/metrics/{EXPERIMENT}.json"
    data = settings.data.model_dump_json()
    return {
        "prepare": {"cmd": f"python prepare.py {DATA} '{data}'", "deps": ["prepare.py"], "outs": [DATA]},
        "train": {
            "cmd": f"bin/equisynth train {EXPERIMENT}",
            "params": ["seed"],
            "deps": [DATA],
            "outs": [model],
            "plots": [f"reports/history/{EXPERIMENT}.json"],
        },
        "evaluate": {
            "cmd": f"python evaluate.py {EXPERIMENT}",
            "deps": [model, "evaluate.py"],
            "metrics": [metrics],
            "outs": [f"reports/pictures/{EXPERIMENT}"],
        },
        "register": {
            "cmd": f"bin/equisynth register {EXPERIMENT}",
            "deps": [model, metrics],
            "outs": [f"reports/registry/{EXPERIMENT}.json"],
        },
    }
