"""Every dataset goes from its raw archive through all stages up to evaluation, at the smallest size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from equisynth import params
from equisynth.datasets.opened import open_dataset
from equisynth.datasets.prepared import PreparedDataset
from equisynth.files import read_json
from equisynth.stages import evaluate, predict, prepare, raw
from equisynth.stages.train import train_once
from pipeline_repository import ROOT as REPOSITORY

ONE_EACH = {"train": 1, "validate": 1, "test": 1}
FEW = {"iterations": 20, "samples": 500, "step_size_samples": 500}
WIDTHS = {name: [4, 8] for name in ("i2i", "discriminator", "cross_modality_reg", "intra_modality_reg", "rigid_reg")}
TRAINING: dict[str, Any] = {
    "features": WIDTHS, "normalization_groups": 4, "epochs": 1, "epoch_steps": 2, "batch_size": 2
}  # fmt: skip
SMALLEST: dict[str, dict[str, Any]] = {
    "coco": {
        "phantom": {"cases": {"train": 4, "validate": 1, "test": 1}, "longer_side": 64},
        "training": {"patch_size": [32, 32]},
    },
    "staining": {
        "phantom": {"cases": ONE_EACH, "shape": [320, 288]},
        "preparation": {"registration_side": 160, "registration": {"rigid": FEW, "bspline": FEW}},
        "training": {"patch_size": [32, 32], "training_stride": [24, 24], "inference_stride": [32, 32]},
    },
    "cermep": {
        "phantom": {"cases": ONE_EACH, "voxel_size": [5, 5, 5], "shape": [40, 46, 36]},
        "data": {"voxel_size": [5, 5, 5]},
        "preparation": {
            "t1_closing": 2, "evaluation_dilation": 1, "bias_iterations": [5],
            "registration": {**FEW, "grid_spacing": 60, "sample_region": 150},
        },
        "training": {"patch_size": [16, 16, 16], "training_stride": [12, 12, 12], "inference_stride": [16, 16, 16]},
    },
}  # fmt: skip
ROLES = {
    "coco": {"input"},
    "staining": {"input", "label", "label_registered", "mask"},
    "cermep": {
        "input", "label", "label_registered", "label_native", "input_body_mask", "label_body_mask",
        "label_native_body_mask", "evaluation_mask",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SMALLEST)
def test_from_raw_archive_to_evaluation(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    small = params.merge({"data": {}, "preparation": {}, "training": TRAINING}, SMALLEST[name])
    if name == "coco":
        small["training"]["features"] = {key: value for key, value in WIDTHS.items() if key != "discriminator"}
        ranges = tree["scales"]["demo"]["coco"]["training"]["label_deformation"]
        small["training"]["label_deformation"] = ranges
    tree["scales"]["demo"][name] = small
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing is downloaded

    tree = params.read()
    archives, prepared = Path("data/raw") / name, Path("data/prepared") / name
    raw.run(params.source(tree, name), name, archives)
    prepare.run(params.preparation(tree, name), params.data_settings(tree, name), name, archives, prepared)
    dataset = PreparedDataset.open(prepared)
    dataset.verify()
    (case,) = dataset.cases("test")
    assert set(dataset.roles(case)) == ROLES[name]
    sheet = Path("reports/datasets") / f"{name}.png"
    assert sheet.stat().st_size < 2_000_000
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        assert picture.getextrema() != ((255, 255),) * len(picture.getbands())

    experiment = next(key for key in tree["pipeline"] if key.startswith(name))
    settings = params.resolve(tree, experiment)
    train_once(settings, open_dataset(prepared, settings), Path("models") / experiment, lambda epoch, values: None)
    predict.run(Path("models") / experiment, prepared, Path("predictions") / experiment)
    evaluate.run(experiment, prepared, Path("predictions") / experiment)
    found = read_json(Path("reports/metrics") / f"{experiment}.json")
    measure = "mae" if name == "coco" else "registered_mae"
    assert np.isfinite(found["test"][measure])
    assert found["test"][measure] < settings.data.label.signal_range
