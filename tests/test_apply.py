"""`equisynth predict` on a file: what fits is translated, all else ends in one line and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from equisynth.apply import predict_file
from equisynth.errors import UserError
from equisynth.methods.base import build_method
from equisynth.model import FORMAT, Description, network_states, save_weights, write_description
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


def write(path: Path, values: np.ndarray, voxel_size: float = 2.0) -> Path:
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), np.diag([voxel_size] * 3 + [1.0])), path)
    return path


def ones() -> np.ndarray:
    return np.random.RandomState(0).rand(*SHAPE) + 1


def test_an_image_that_fits_is_translated(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.nii.gz"
    predict_file(write(tmp_path / "in.nii", ones()), model, output, device="cpu")
    assert nibabel.load(output).shape == SHAPE
    captured = capsys.readouterr()
    assert captured.out.strip() == str(output)
    assert captured.err == ""


def test_another_voxel_size_is_told(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict_file(write(tmp_path / "in.nii", ones(), 3.0), model, tmp_path / "out.nii", device="cpu")
    assert "warning" in capsys.readouterr().err


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
    "suffix": ("in.png", lambda path: path.write_text("x"), "must end with"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_end_in_one_line(model: str, tmp_path: Path, name: str) -> None:
    file, make, message = WRONG[name]
    make(tmp_path / file)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        predict_file(tmp_path / file, model, tmp_path / "out.nii", device="cpu")
    assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


def test_wrong_masks_devices_and_outputs(model: str, tmp_path: Path) -> None:
    image = write(tmp_path / "in.nii", ones())
    turned = write(tmp_path / "turned.nii", np.ones(SHAPE[::-1]))
    nothing = write(tmp_path / "nothing.nii", np.zeros(SHAPE))
    output = tmp_path / "out.nii"
    with pytest.raises(UserError, match="turned.nii: shape"):
        predict_file(image, model, output, mask=turned, device="cpu")
    with pytest.raises(UserError, match="no voxel is valid"):
        predict_file(image, model, output, mask=nothing, device="cpu")
    with pytest.raises(UserError, match="--device tpu: cannot be used"):
        predict_file(image, model, output, device="tpu")
    with pytest.raises(UserError, match="output's name must end with"):
        predict_file(image, model, tmp_path / "out.tif", device="cpu")
    with pytest.raises(UserError, match="holds no model.json"):
        predict_file(image, str(tmp_path), output, device="cpu")
    assert not output.exists()
    output.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        predict_file(image, model, output, device="cpu")
    assert output.read_text() == "mine"
