"""A user's own pairs, from `check` and what it says to paste, to a prediction of a raw file."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from equisynth import params
from equisynth.apply import Request, predict_file
from equisynth.check import check_own, check_prepared, to_yaml
from equisynth.datasets.opened import open_dataset
from equisynth.datasets.prepared import PreparedDataset
from equisynth.stages import prepare, raw
from equisynth.stages.train import train_once
from own_data import affine, volume
from pipeline_repository import ROOT as REPOSITORY

WIDTHS = {name: [4, 8] for name in ("i2i", "discriminator", "cross_modality_reg", "intra_modality_reg", "rigid_reg")}
FEW_STEPS = {
    "features": WIDTHS, "normalization_groups": 4, "epochs": 1, "epoch_steps": 2, "batch_size": 2,
    "patch_size": [16, 16, 16], "training_stride": [8, 8, 8], "inference_stride": [16, 16, 16],
}  # fmt: skip
SHAPE = (28, 34, 26)
EXPERIMENT = "heads-eqsim_com_eqadv"


def test_one_pair_from_check_to_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pair stands three times in a table; the input is stored as LPI, the label on a grid of its own."""
    scans = tmp_path / "scans"
    scans.mkdir()
    nibabel.save(volume("input", SHAPE, axes="LPI", dtype=np.int16), scans / "flair.nii")
    nibabel.save(volume("label", (30, 36, 14), (2.0, 2.0, 4.0), turned=4.0, gain=10.0), scans / "ct.nii.gz")
    rows = [f"{case},flair.nii,ct.nii.gz\n" for case in ("one", "two", "three")]
    (scans / "cases.csv").write_text("case,input,label\n" + "".join(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    findings, suggested, warnings = check_own(Path("scans/cases.csv"), "heads")
    assert suggested is not None
    assert len(findings.cases) == 3
    assert not [warning for warning in warnings if "flip" in warning]
    pasted = yaml.safe_load(to_yaml(suggested))
    tree = params.merge(yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8")), pasted)
    tree["pipeline"][EXPERIMENT]["overrides"] = FEW_STEPS
    Path("params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")

    tree = params.read()
    archives, prepared, model = Path("data/raw/heads"), Path("data/prepared/heads"), Path("models") / EXPERIMENT
    raw.run(params.source(tree, "heads"), "heads", archives, layout_name=params.layout_of(tree, "heads"))
    preparation, data = params.preparation(tree, "heads"), params.data_settings(tree, "heads")
    prepare.run(preparation, data, "heads", archives, prepared, layout_name="folder")
    facts = check_prepared(PreparedDataset.open(prepared))
    assert facts["splits"] == {"train": 1, "validate": 1, "test": 1}
    assert {tuple(case["shape"]) for case in facts["cases"].values()} == {SHAPE}

    settings = params.resolve(tree, EXPERIMENT)
    (record,) = train_once(settings, open_dataset(prepared, settings), model, lambda epoch, values: None)
    assert all(np.isfinite(value) for value in record.values() if isinstance(value, float))

    predict_file(Request(Path("scans/flair.nii"), str(model), Path("ct_predicted.nii.gz"), device="cpu"))
    scan, predicted = nibabel.load("scans/flair.nii"), nibabel.load("ct_predicted.nii.gz")
    values = predicted.get_fdata()
    assert predicted.shape == scan.shape
    assert np.allclose(predicted.affine, scan.affine)
    assert np.allclose(scan.affine, affine(SHAPE, axes="LPI"))
    assert np.isfinite(values).all()
    assert values.std() > 0
    assert json.loads(Path("ct_predicted.json").read_text())["model"]["experiment"] == EXPERIMENT
