"""The demo's configuration learns: it beats every map of intensities fitted on the same misaligned pairs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from equisynth import params
from equisynth.datasets.prepared import PreparedDataset
from equisynth.evaluation.aligned import evaluate_references, evaluate_split
from equisynth.model import load_model
from equisynth.stages import prepare, raw
from equisynth.stages.predict import translate_case
from equisynth.stages.train import train_once

EXPERIMENT, SCALE = "ixi-eqsim_com_eqadv", "demo"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_beats_maps_of_intensities(tmp_path: Path) -> None:
    torch.set_num_threads(os.cpu_count() or 1)  # as the program does; one thread would take twice as long
    tree = params.read(Path(__file__).parents[1] / "params.yaml")
    scans, prepared = tmp_path / "raw", tmp_path / "prepared"
    raw.run(params.source(tree, "ixi", SCALE), "ixi", scans, jobs=2)
    preparation, data = params.preparation(tree, "ixi", SCALE), params.data_settings(tree, "ixi", SCALE)
    prepare.run(preparation, data, "ixi", scans, prepared, jobs=2, work=tmp_path / "work", sheets=tmp_path)
    dataset = PreparedDataset.open(prepared)

    train_once(params.resolve(tree, EXPERIMENT, SCALE), dataset, tmp_path / "model", lambda epoch, values: None)
    model = load_model(tmp_path / "model", "cpu")
    found = evaluate_split(dataset, "test", lambda case: translate_case(model, dataset, case))["pooled"]
    references = evaluate_references(dataset, "test")
    print(found, references)
    assert set(references) == {"mean_label", "linear_fit", "lookup_table"}
    for name, reference in references.items():
        assert found["mae"] < reference["mae"], name
        assert found["ssim"] > reference["ssim"], name
