"""What an experiment opens; and the way of pairs that are made from pictures through training to evaluation."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from equisynth.config import Settings
from equisynth.datasets.opened import PAIRS, open_dataset
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case, write_info
from equisynth.datasets.synthetic import SyntheticDataset
from equisynth.errors import UserError
from equisynth.evaluation import fid
from equisynth.predictions import new_prediction, read_prediction
from equisynth.stages import evaluate, predict
from equisynth.stages.panels import Case
from equisynth.stages.report import case_pictures
from equisynth.stages.train import train_once
from small_trainings import REGISTRATION
from small_trainings import settings as small_settings

SIZE = (32, 32)
CASES = {"train": ("t1", "t2", "t3"), "validate": ("v1",), "test": ("e1", "e2")}
SHAPES = {"t2": (40, 33), "e2": (20, 48)}  # one whose centre lies between pixels, one smaller than a pair
COLOURS = {"channels": 3, "mean": (120.0,) * 3, "std": (70.0,) * 3, "signal_range": 255, "unit": "8 bit"}
RANGES = {
    "width_range": {"lower": [0.1, 0.1], "upper": [0.3, 0.3]},
    "magnitude_range": {"lower": [-2, -2], "upper": [2, 2]},
    "center_range": {"lower": [0, 0], "upper": [1, 1]},
    "degree_range": {"lower": [-5], "upper": [5]},
    "translation_range": {"lower": [-2, -2], "upper": [2, 2]},
}


def settings(**changes: Any) -> Settings:
    base = small_settings(method="equivariant", loss=REGISTRATION).model_dump()
    base["data"] |= {
        "voxel_size": (1.0, 1.0), "input": {"modality": "photograph", **COLOURS},
        "label": {"modality": "rolled", **COLOURS},
    }  # fmt: skip
    chosen = {
        "experiment": "pictures-moved", "dataset": "pictures",
        "trains_on_label": "deformed on the fly", "label_deformation": RANGES, "patch_size": SIZE, "batch_size": 2,
    }  # fmt: skip
    return Settings.model_validate(base | chosen | changes)


def still(**changes: Any) -> Settings:
    return settings(trains_on_label="aligned", label_deformation=None, **changes)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared dataset that stores inputs alone; no weights for the FID, no network."""
    state = np.random.RandomState(0)
    for case in sum(CASES.values(), ()):
        coarse = state.randint(0, 256, (12, 12, 3))
        picture = np.kron(coarse, np.ones((4, 4, 1)))[tuple(map(slice, SHAPES.get(case, (48, 40))))]
        write_case(tmp_path / "prepared", case, {"input": picture.astype(np.uint8)}, np.eye(4), n_dims=2)
    described = DatasetInfo(
        name="pictures", stored=("input",), preparation={"seed": 5}, splits=CASES, **settings().data.model_dump()
    )
    write_info(tmp_path / "prepared", described)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    sections = ("scale: a", "seed: 0", "scales: {a: {}}", "evaluation: {}", *(
        f"{name}: {{}}" for name in ("sources", "datasets", "methods", "pipeline", "search", "registry")
    ))  # fmt: skip
    (tmp_path / "params.yaml").write_text("\n".join(sections))
    return Path("prepared")


def test_pairs_are_made_where_the_settings_say_so(pictures: Path) -> None:
    pairs, plain = open_dataset(pictures, settings()), open_dataset(pictures, still())
    assert isinstance(pairs, SyntheticDataset)
    assert (pairs.size, pairs.seed, pairs.cache) == (SIZE, 5, PAIRS)
    assert type(plain) is PreparedDataset
    assert plain.shape("t1") == (48, 40)


def test_experiments_with_the_same_ranges_train_on_the_same_pairs(pictures: Path) -> None:
    first, second = open_dataset(pictures, settings()), open_dataset(pictures, settings(seed=9, batch_size=4))
    assert np.array_equal(first.image("t1", "label"), second.image("t1", "label"))
    less = {**RANGES, "magnitude_range": {"lower": [0, 0], "upper": [0, 0]}}
    other = open_dataset(pictures, settings(label_deformation=less))
    assert not np.array_equal(first.image("t1", "label"), other.image("t1", "label"))
    assert np.array_equal(first.image("t1", "label_aligned"), other.image("t1", "label_aligned"))


def test_volumes_are_refused(pictures: Path) -> None:
    content = json.loads((pictures / "dataset.json").read_text())
    grey = {"modality": "T1", "signal_range": 1, "unit": "1"}
    (pictures / "dataset.json").write_text(json.dumps(content | {"input": grey}))
    with pytest.raises(UserError, match="label_deformation: pictures is no dataset of colour pictures"):
        open_dataset(pictures, settings())


def trained(chosen: Settings, pictures: Path) -> Path:
    folder = Path("models") / chosen.experiment
    history = train_once(chosen, open_dataset(pictures, chosen), folder, lambda epoch, values: None)
    assert len(history) == chosen.epochs
    predictions = Path("predictions") / chosen.experiment
    predict.run(folder, pictures, predictions, device="cpu")
    evaluate.run(chosen.experiment, pictures, predictions)
    return predictions


def test_from_pictures_to_an_evaluation(pictures: Path) -> None:
    chosen = settings()
    predictions = trained(chosen, pictures)
    dataset = open_dataset(pictures, chosen)
    reports = json.loads(Path("reports/evaluation/pictures-moved.json").read_text())
    errors = mass = 0.0
    for case in ("e1", "e2"):
        predicted = read_prediction(dataset, predictions, "test", case)
        assert (predicted.shape, predicted.dtype) == ((*SIZE, 3), np.uint8)
        truth, valid = dataset.image(case, "label_aligned"), dataset.mask(case, "input")
        weight = np.ones(SIZE) if valid is None else valid
        case_errors = (np.abs(predicted.astype(float) - truth).mean(-1) * weight).sum()
        assert reports["test"]["cases"][case]["mae"] == pytest.approx(case_errors / weight.sum(), rel=1e-5)
        errors, mass = errors + case_errors, mass + weight.sum()
    assert mass == 32 * 32 + 20 * 32
    assert reports["test"]["label"] == "label_aligned"
    assert reports["test"]["pooled"]["mae"] == pytest.approx(errors / mass, rel=1e-5)
    metrics = json.loads(Path("reports/metrics/pictures-moved.json").read_text())
    found = {key for key in metrics["validate"] if not key.startswith("deformation_")}
    assert found == {"mae", "mse", "psnr", "ssim", "nmi"}
    assert metrics["fid"]["computed"] is False
    prediction = read_prediction(dataset, predictions, "test", "e2")
    drawn = case_pictures(Case(dataset, "e2"), chosen.label_role, prediction)
    assert drawn.aligned is not None
    assert drawn.input.shape == drawn.prediction.shape == drawn.aligned.shape == drawn.label.shape == (*SIZE, 3)


class MeanColour(torch.nn.Module):
    """Stands in for Inception."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images.mean((2, 3), keepdim=True)]


def test_the_truth_is_a_perfect_prediction(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a small picture, where there is no truth, anything may be predicted. Interpolated labels lie between
    the 8 bits of a prediction; the truth is written with its fractions."""
    monkeypatch.setattr(PreparedDataset, "is_8_bit", lambda *_: False)
    monkeypatch.setattr(fid, "find_weights", lambda *_: Path("params.yaml"))
    monkeypatch.setattr(fid, "load_inception", lambda _: MeanColour())
    dataset = open_dataset(pictures, settings())
    for split in ("validate", "test"):
        for case in dataset.cases(split):
            values, valid = np.array(dataset.image(case, "label_aligned")), dataset.mask(case, "input")
            if valid is not None:
                values[valid == 0] = 200
            with new_prediction(Path("truth") / split / f"{case}.nii", dataset, case) as out:
                out[...] = values
    found = evaluate.evaluate(dataset, Path("truth"), evaluate.EvaluationSettings())
    for split in ("validate", "test"):
        assert found[split]["pooled"]["mae"] == 0
        assert found[split]["pooled"]["ssim"] == pytest.approx(1)
    assert found["fid"]["images"]["images"] == found["fid"]["images"]["real_images"] == 2
    assert found["references"]["lookup_table"]["mae"] > 10  # colours of a picture do not follow from one another


def test_prediction_and_evaluation_make_no_labels_but_those_of_the_references(pictures: Path) -> None:
    dataset = open_dataset(pictures, settings())
    for case in ("v1", "e1"):
        dataset.image(case, "input"), dataset.mask(case, "input"), dataset.image(case, "label_aligned")
    assert not PAIRS.exists()
    dataset.image("t1", "label")
    assert len(list(PAIRS.iterdir())) == 1
