"""The stages ``predict`` and ``evaluate`` on a small prepared dataset with an untrained network."""

from __future__ import annotations

import json
import math
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from equisynth.config import Settings
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case, write_info
from equisynth.description import FORMAT, Description, write_description
from equisynth.errors import UserError
from equisynth.evaluation import fid
from equisynth.files import MARK
from equisynth.inference import translate_volume
from equisynth.methods.base import build_method
from equisynth.model import WEIGHTS, load_model, network_states, save_weights
from equisynth.params import read, resolve
from equisynth.predictions import new_prediction
from equisynth.stages import evaluate, predict
from killing import kill_in_child

PARAMS = Path(__file__).parents[2] / "params.yaml"
AFFINE = np.array([[0.0, -3.0, 0, 5], [3.0, 0, 0, -7], [0, 0, 3.6, 11], [0, 0, 0, 1]])


def settings() -> Settings:
    base = resolve(read(PARAMS), "ixi-noreg", "demo").model_dump()
    features = {"i2i": (4, 4), "discriminator": None}
    return Settings.model_validate({**base, "patch_size": (16,) * 3, "inference_stride": (8,) * 3,
                                    "normalization_groups": 2, "features": features})  # fmt: skip


def prepared(folder: Path, aligned: bool = True) -> PreparedDataset:
    data = settings().data.model_dump()
    splits = {"train": ("t2", "t1"), "validate": ("v1",), "test": ("e2", "e1")}
    state = np.random.RandomState(0)
    for case in sum(splits.values(), ()):
        image = state.uniform(0, 3, (20, 18, 17)).astype(np.float32)
        arrays = {"input": image, "label": np.roll(2 * image, 1, axis=0)}
        if aligned:
            arrays["label_aligned"] = 2 * image
        if case == "e1":
            arrays["evaluation_mask"] = np.ones(image.shape, np.uint8)
            arrays["evaluation_mask"][0] = 0
            arrays["input_mask"] = np.ones(image.shape, np.uint8)
            arrays["input_mask"][:, 0] = 0
        write_case(folder, case, arrays, AFFINE)
    write_info(folder, DatasetInfo.model_validate({**data, "name": "small", "splits": splits}))
    return PreparedDataset.open(folder)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: Any) -> Path:
    """A folder with a prepared dataset, a model and the parameters; no FID weights and no network."""
    prepared(tmp_path / "prepared")
    chosen = settings()
    method = build_method(chosen)
    description = Description(format=FORMAT, settings=chosen, preparation={}, best_epoch=1, selection=0.5)
    for folder in ("model", "models/experiment", "models/truth"):
        write_description(tmp_path / folder, description)
        save_weights(tmp_path / folder / WEIGHTS, network_states(method.networks))
    (tmp_path / "params.yaml").write_text(PARAMS.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path


def test_predictions_lie_on_the_cases_grid(places: Path) -> None:
    predict.run(Path("model"), Path("prepared"), Path("predictions"), device="cpu")
    found = sorted(str(path.relative_to("predictions")) for path in Path("predictions").rglob("*.nii"))
    assert found == ["test/e1.nii", "test/e2.nii", "validate/v1.nii"]
    image = nibabel.load("predictions/test/e1.nii")
    assert image.get_data_dtype() == np.float32
    assert np.array_equal(image.affine, PreparedDataset.open("prepared").affine("e1"))
    assert np.allclose(image.affine, AFFINE)
    dataset, model = PreparedDataset.open("prepared"), load_model("model", "cpu")
    expected = translate_volume(
        model.predict, dataset.image("e1", "input"), dataset.mask("e1", "input"), model.description
    )
    assert np.allclose(image.get_fdata(), expected, atol=1e-6)
    assert np.all(image.get_fdata()[:, 0] == 0)


def test_predictions_and_evaluation_repeat_bit_for_bit(places: Path) -> None:
    contents = []
    for name in ("first", "second"):
        predict.run(Path("model"), Path("prepared"), Path(name), device="cpu")
        evaluate.run("experiment", Path("prepared"), Path(name), Path("reports") / name)
        files = [*sorted(Path(name).rglob("*.nii")), *sorted((Path("reports") / name).rglob("*.json"))]
        contents.append([path.read_bytes() for path in files])
    assert len(contents[0]) == 5
    assert contents[0] == contents[1]


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Finished parts and when they were made."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".nii", ".npz") and not path.name.startswith(".")
    }


def contents(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if MARK in path.name]


def check_kills(stage: Callable[[], None], outputs: tuple[Path, ...], work: Path, capsys: Any, every: int = 1) -> None:
    """Kills a stage before its renames in turn; each time the repeat gives the same and makes no part twice."""
    stage()
    expected = contents(*outputs)
    all_parts = len(state(work))
    kills = continued = 0
    for step in range(1, 1000, every):
        for folder in (*outputs, work):  # as DVC deletes outputs
            shutil.rmtree(folder)
        if not kill_in_child(stage, step):
            break
        before = state(work)
        present = contents(*(folder for folder in outputs if folder.exists()))
        assert all(expected[name] == content for name, content in present.items() if MARK not in name)
        for folder in outputs:
            shutil.rmtree(folder, ignore_errors=True)
        capsys.readouterr()
        stage()
        said = capsys.readouterr().err
        after = state(work)
        assert contents(*outputs) == expected, step
        assert {name: after[name] for name in before} == before, step  # not made again
        assert len(after) == all_parts
        assert ("continuing" in said) == bool(before), said
        assert leftovers(work) == []
        kills += 1
        continued += bool(before)
    assert kills * every > all_parts
    assert continued > kills // 2


def test_a_kill_at_any_rename_costs_prediction_at_most_a_case(places: Path, capsys: Any) -> None:
    def stage() -> None:
        predict.run(Path("model"), Path("prepared"), Path("predictions"), device="cpu")

    check_kills(stage, (Path("predictions"),), Path(".equisynth/predict/predictions"), capsys)
    assert leftovers(Path()) == []


class SmallNetwork(torch.nn.Module):
    """Stands in for Inception."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 4, 3)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.convolution(images).mean((2, 3), keepdim=True)]


def test_a_kill_at_any_rename_costs_evaluation_at_most_a_case(places: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(fid, "find_weights", lambda *_: places / "params.yaml")
    monkeypatch.setattr(fid, "load_inception", lambda _: SmallNetwork().eval())
    predict.run(Path("model"), Path("prepared"), Path("predictions"), device="cpu")

    def stage() -> None:
        evaluate.run("experiment", Path("prepared"), Path("predictions"))

    check_kills(stage, (Path("reports"),), Path(".equisynth/evaluate/experiment"), capsys, every=2)
    assert json.loads(Path("reports/metrics/experiment.json").read_text())["fid"]["computed"] is True


def test_only_the_same_work_is_continued(places: Path, capsys: Any) -> None:
    def stages() -> str:
        capsys.readouterr()
        predict.run(Path("model"), Path("prepared"), Path("predictions"), device="cpu")
        evaluate.run("experiment", Path("prepared"), Path("predictions"))
        return str(capsys.readouterr().err)

    assert "continuing" not in stages()
    assert "predict@predictions: continuing, 3 of 3 cases are there" in stages()
    assert "evaluate@experiment: continuing" in stages()  # predictions are the same files: linked, not made
    state = load_file("model/model.safetensors")
    name = next(iter(state))
    save_weights(Path("model") / WEIGHTS, {**state, name: state[name] + 1})
    assert "continuing" not in stages()
    assert len(list(Path(".equisynth/predict/predictions").iterdir())) == 2  # the lock, and the latest folder
    Path("dvc.lock").write_text("outputs are DVC's now")
    assert "continuing" not in stages()


def test_reports_hold_one_number_per_measure_and_every_case(places: Path) -> None:
    predict.run(Path("model"), Path("prepared"), Path("predictions"), device="cpu")
    evaluate.run("experiment", Path("prepared"), Path("predictions"))
    metrics = json.loads(Path("reports/metrics/experiment.json").read_text())
    details = json.loads(Path("reports/evaluation/experiment.json").read_text())
    for split in ("validate", "test"):
        assert set(metrics[split]) == {"mae", "mse", "psnr", "ssim", "nmi"}
        assert metrics[split] == details[split]["pooled"]
    assert list(details["test"]["cases"]) == ["e1", "e2"]
    assert metrics["test"]["psnr"] == pytest.approx(20 * math.log10(6.5) - 10 * math.log10(metrics["test"]["mse"]))
    assert metrics["fid"]["computed"] is False
    assert metrics["fid"]["reason"] == "no weights: weights/fid_inception.pth is absent"  # short, for a table
    assert "no route" in details["fid"]["reason"]
    assert set(details["references"]) == {"mean_label", "linear_fit", "lookup_table"}
    assert metrics["reference"]["lookup_table"]["mae"] == details["references"]["lookup_table"]["mae"]


def test_masks_of_a_case_are_respected(places: Path) -> None:
    """The truth as prediction, wrong only where a mask says so, is perfect."""
    dataset = PreparedDataset.open("prepared")
    for split in ("validate", "test"):
        for case in dataset.cases(split):
            values = 2 * np.array(dataset.image(case, "input"))
            if case == "e1":
                values[0] = values[:, 0] = 100
            with new_prediction(Path("truth") / split / f"{case}.nii", dataset, case) as out:
                out[...] = values
    evaluate.run("truth", Path("prepared"), Path("truth"))
    metrics = json.loads(Path("reports/metrics/truth.json").read_text())
    assert metrics["test"]["mae"] == 0
    assert "psnr" not in metrics["test"]
    assert metrics["validate"]["ssim"] == pytest.approx(1)


def test_fid_has_the_names_that_dvc_and_mlflow_show() -> None:
    details = {
        "validate": {"computed": False}, "test": {"pooled": {"mae": 1.0, "nmi": None}}, "references": {},
        "fid": {
            "computed": True,
            "axis0": {"value": 3.5, "images": 2100},
            "axis2": {"value": 4.5, "images": 90, "warning": "only 90 images"},
            "weights_sha256": "x",
        },
    }  # fmt: skip
    assert evaluate.summary(details) == {
        "test": {"mae": 1.0},
        "fid/axis0": 3.5,
        "fid/axis2": 4.5,
        "fid/axis0_images": 2100,
        "fid/axis2_images": 90,
        "fid": {"computed": True, "weights_sha256": "x", "warning": "only 90 images"},
    }


def test_another_dataset_and_missing_predictions_are_named(places: Path) -> None:
    with pytest.raises(UserError, match=r"predictions/validate/v1.nii: not found.*dvc repro"):
        evaluate.run("experiment", Path("prepared"), Path("predictions"))
    content = json.loads(Path("prepared/dataset.json").read_text())
    content["voxel_size"] = [1, 1, 1]
    Path("prepared/dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="voxel_size"):
        predict.run(Path("model"), Path("prepared"), Path("predictions"), device="cpu")
    assert not Path("predictions").exists()
    assert not Path("reports").exists()


def test_an_unknown_setting_is_named(places: Path) -> None:
    Path("params.yaml").write_text(PARAMS.read_text().replace("  split: test", "  splitt: test"))
    with pytest.raises(UserError, match="evaluation.*splitt"):
        evaluate.run("experiment", Path("prepared"), Path("predictions"))
