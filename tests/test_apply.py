"""`equisynth predict` on a file: what fits is translated, all else ends in one line and leaves nothing behind.

The model states no preparation: images are taken as they are. Raw scans: test_raw_scans.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile

from equisynth.apply import Request, predict_file
from equisynth.description import FORMAT, Description, write_description
from equisynth.errors import UserError
from equisynth.files import sha256
from equisynth.methods.base import build_method
from equisynth.model import network_states, save_weights
from equisynth.registry import Pulled
from test_training import settings

SHAPE = (12, 10, 9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    intensity = {"modality": "A", "signal_range": 1.0, "unit": "none"}
    data = {"n_dims": 3, "voxel_size": [2, 2, 2], "input": intensity, "label": intensity, "licence": "none"}
    small = {"features": {"i2i": [2, 2]}, "normalization_groups": 2, "loss": {"similarity_weight": 1.0}}
    chosen = settings(method="supervised", data=data, patch_size=[8, 8, 8], inference_stride=[4, 4, 4], **small)
    folder = tmp_path_factory.mktemp("model")
    save_weights(folder / "model.safetensors", network_states(build_method(chosen).networks))
    write_description(folder, Description(format=FORMAT, settings=chosen, preparation={}, best_epoch=1, selection=0.5))
    return str(folder)


def flat_model(folder: Path) -> str:
    """A model of grey pictures."""
    small = {"features": {"i2i": [2, 2]}, "normalization_groups": 2, "loss": {"similarity_weight": 1.0}}
    chosen = settings(method="supervised", inference_stride=[4, 4], **small)
    save_weights(folder / "model.safetensors", network_states(build_method(chosen).networks))
    write_description(folder, Description(format=FORMAT, settings=chosen, preparation={}, best_epoch=1, selection=0.5))
    return str(folder)


def write(path: Path, values: np.ndarray, voxel_size: float = 2.0) -> Path:
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), np.diag([voxel_size] * 3 + [1.0])), path)
    return path


def ones() -> np.ndarray:
    return np.random.RandomState(0).rand(*SHAPE) + 1


def predict(image: Path, model: str, output: Path, **options: Any) -> None:
    predict_file(Request(image, model, output, **{"device": "cpu", **options}))


def test_an_image_that_fits_is_translated(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.nii.gz"
    predict(write(tmp_path / "in.nii", ones()), model, output, prepared=True)
    image = nibabel.load(output)
    assert image.shape == SHAPE
    assert image.header["descrip"].item() == b"A, none"
    captured = capsys.readouterr()
    assert captured.out.strip() == str(output)
    assert captured.err == ""
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["prepared"], record["parameters"], record["warnings"]) == (True, {}, [])
    assert (record["precision"], record["flips"], record["device"]) == ("no", "none", "cpu")
    assert record["files"] == {"input": sha256(tmp_path / "in.nii"), "output": sha256(output)}
    predict(tmp_path / "in.nii", model, tmp_path / "mean.nii", prepared=True, flips="all", batch=3)
    assert not np.allclose(nibabel.load(tmp_path / "mean.nii").get_fdata(), image.get_fdata())


@pytest.mark.parametrize(("suffix", "reason"), [(".nii", "names no preparation"), (".tif", "none of TIFF images")])
def test_without_a_preparation_the_image_is_taken_as_it_is(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, reason: str
) -> None:
    image = tmp_path / f"in{suffix}"
    if suffix == ".tif":
        model = flat_model(tmp_path / "flat")
        tifffile.imwrite(image, np.full((20, 24), 7, np.uint8))
    else:
        write(image, ones())
    predict(image, model, tmp_path / f"out{suffix}")
    (warning,) = json.loads((tmp_path / "out.json").read_text())["warnings"]
    assert "taken as it is" in warning
    assert reason in warning
    assert capsys.readouterr().err == f"equisynth: warning: {image}: {warning}\n"


def test_another_voxel_size_is_told(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict(write(tmp_path / "in.nii", ones(), 3.0), model, tmp_path / "out.nii", prepared=True)
    assert "voxel size 3 x 3 x 3 mm, the model was trained on 2 x 2 x 2 mm" in capsys.readouterr().err
    predict(write(tmp_path / "near.nii", ones(), 2.05), model, tmp_path / "near_out.nii", prepared=True)
    assert capsys.readouterr().err == ""


def truncated(path: Path) -> None:
    write(path, ones())
    path.write_bytes(path.read_bytes()[:-500])


def with_nan(path: Path) -> None:
    values = ones()
    values[3, 3, 3] = np.nan
    write(path, values)


WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "absent": ("in.nii", lambda path: None, "no such file"),
    "text": ("in.nii.gz", lambda path: path.write_text("no image"), "in.nii.gz: cannot be read"),
    "truncated": ("in.nii", truncated, "cannot be read"),
    "truncated gzip": ("in.nii.gz", truncated, "cannot be read"),
    "NaN": ("in.nii", with_nan, "not finite"),
    "zero": ("in.nii", lambda path: write(path, np.zeros(SHAPE)), "every voxel is zero"),
    "empty": ("in.nii", lambda path: write(path, np.zeros((0, 3, 3))), "holds no voxel"),
    "2D": ("in.nii", lambda path: write(path, np.ones((12, 10))), "expected one 3D image"),
    "4D": ("in.nii", lambda path: write(path, np.ones((*SHAPE, 2))), "expected one 3D image"),
    "far voxel size": ("in.nii", lambda path: write(path, ones(), 10.0), "voxel size 10"),
    "suffix": ("in.mgz", lambda path: path.write_text("x"), "must end with"),
    "folder": ("in.nii", lambda path: path.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_end_in_one_line(model: str, tmp_path: Path, name: str) -> None:
    file, make, message = WRONG[name]
    make(tmp_path / file)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        predict(tmp_path / file, model, tmp_path / "out.nii")
    assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


def test_wrong_masks_devices_and_outputs(model: str, tmp_path: Path) -> None:
    image = write(tmp_path / "in.nii", ones())
    turned = write(tmp_path / "turned.nii", np.ones(SHAPE[::-1]))
    nothing = write(tmp_path / "nothing.nii", np.zeros(SHAPE))
    output = tmp_path / "out.nii"
    with pytest.raises(UserError, match="turned.nii: shape"):
        predict(image, model, output, mask=turned)
    with pytest.raises(UserError, match="no voxel is valid"):
        predict(image, model, output, mask=nothing)
    with pytest.raises(UserError, match="--device tpu: cannot be used"):
        predict(image, model, output, device="tpu")
    tifffile.imwrite(tmp_path / "in.tif", np.full((20, 24), 7, np.uint8))
    with pytest.raises(UserError, match="in.tif: is a picture, the model translates 3D volumes"):
        predict(tmp_path / "in.tif", model, tmp_path / "out.tif")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(UserError, match="folder.nii: is a folder"):
        predict(image, model, tmp_path / "folder.nii", force=True)
    with pytest.raises(UserError, match="cannot be written"):
        predict(image, model, tmp_path / f"{'o' * 300}.nii")
    with pytest.raises(UserError, match="output's name must end with"):
        predict(image, model, tmp_path / "out.tif")
    with pytest.raises(UserError, match="holds no model.json"):
        predict(image, str(tmp_path), output)
    assert not output.exists()
    output.write_text("mine")
    with pytest.raises(UserError, match="out.nii: exists already"):
        predict(image, model, output)
    assert output.read_text() == "mine"
    output.unlink()


def test_a_record_is_overwritten_by_force_only(model: str, tmp_path: Path) -> None:
    image, output, record = write(tmp_path / "in.nii", ones()), tmp_path / "out.nii.gz", tmp_path / "out.json"
    record.write_text("mine")
    with pytest.raises(UserError, match="out.json: exists already"):
        predict(image, model, output)
    assert record.read_text() == "mine"
    assert not output.exists()
    predict(image, model, output, force=True)
    assert json.loads(record.read_text())["output"] == "out.nii.gz"
    with pytest.raises(UserError, match="in.nii: is an input"):
        predict(image, model, image, force=True)


def test_image_and_record_are_written_both_or_neither(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write(tmp_path / "in.nii", ones())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("equisynth.apply.write_json", full)
    with pytest.raises(UserError, match="No space"):
        predict(image, model, tmp_path / "out.nii")
    assert list(tmp_path.iterdir()) == [image]


def test_the_record_names_a_registered_version(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = Pulled(Path(model), name="toy", version=3, run_id="0123abcd", alias="champion")
    monkeypatch.setattr("equisynth.registry.resolve", lambda uri: pulled)
    predict(write(tmp_path / "in.nii", ones()), "models:/toy@champion", tmp_path / "out.nii", prepared=True)
    found = json.loads((tmp_path / "out.json").read_text())["model"]
    assert found.pop("sha256") == sha256(Path(model) / "model.safetensors")
    assert found == {
        "uri": "models:/toy@champion", "name": "toy", "version": 3, "run": "0123abcd",
        "experiment": "toy", "scale": "demo",
    }  # fmt: skip
