"""A folder with a fresh MLflow database (migrated once a session, then copied), stand-ins for a pipeline's outputs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from equisynth.config import Settings
from equisynth.files import write_json


def make_settings(**changes: Any) -> Settings:
    """A tiny supervised 2D experiment."""
    intensity = {"unit": "white matter = 1", "signal_range": 2.0}
    fields: dict[str, Any] = {
        "experiment": "ixi-noreg",
        "scale": "demo",
        "dataset": "ixi",
        "method": "supervised",
        "data": {
            "n_dims": 2,
            "voxel_size": [1.0, 1.0],
            "input": {"modality": "T2", **intensity},
            "label": {"modality": "PD", **intensity},
            "licence": "CC BY-SA 3.0",
        },
        "trains_on_label": "deformed",
        "batch_size": 1,
        "patch_size": [8, 8],
        "training_stride": [8, 8],
        "inference_stride": [4, 4],
        "fusing_mask_smoothing": 1.0,
        "random_transformation": {},
        "features": {"i2i": [4, 4]},
        "normalization_groups": 4,
        "epochs": 3,
        "learning_rate": {"generator": 1e-3},
        "loss": {"similarity": "mae", "similarity_weight": 1.0},
    }
    return Settings.model_validate(fields | changes)


def write_model(folder: Path, settings: Settings, seed: int = 0) -> None:
    """The outputs of a training: real weights of the experiment's network, its description and its history."""
    from equisynth.description import FORMAT, Description, write_description
    from equisynth.methods.base import method_class

    torch.manual_seed(seed)
    network = method_class(settings.method).predictor(settings)
    folder.mkdir(parents=True, exist_ok=True)
    states = {f"i2i.{key}": value.contiguous() for key, value in network.state_dict().items()}
    save_file(states, folder / "model.safetensors")
    description = Description(format=FORMAT, settings=settings, preparation={}, best_epoch=3, selection=0.1)
    write_description(folder, description)
    history = folder.parent.parent / "reports/history" / f"{folder.name}.json"
    write_json(history, make_history(settings.epochs))


def make_history(epochs: int) -> list[dict[str, float]]:
    """Falling curves."""
    return [
        {"epoch": float(epoch), "train/similarity": 1.0 / epoch, "validation/selection": 0.5 / epoch, "seconds": 2.0}
        for epoch in range(1, epochs + 1)
    ]


def make_metrics(mae: float = 0.1) -> dict[str, Any]:
    """What the evaluation writes."""
    return {
        "test": {"mae": mae * 1.1, "ssim": 0.9},
        "validate": {"mae": mae, "ssim": 0.91},
        "fid": {"computed": False, "reason": "no weights: give --fid-weights"},
    }


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``mlflow.db`` with all tables and no runs (MLflow's migration takes seconds)."""
    from equisynth import store

    folder = tmp_path_factory.mktemp("migrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.open_store(create=True)
    return folder / "mlflow.db"


@pytest.fixture
def repository(tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an empty, migrated database and a prepared dataset's description."""
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_json(tmp_path / "data/prepared/ixi/dataset.json", {"name": "ixi"})
    return tmp_path


def make_image(size: int = 12) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(S, S), nothing special."""
    return np.random.RandomState(0).rand(size, size).astype(np.float32)
