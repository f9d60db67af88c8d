"""NIfTI files: geometry kept through a translation, what is read, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

from equisynth.errors import UserError
from equisynth.inference import translate_volume
from equisynth.volumes import read_mask, read_volume, write_volume
from test_inference import IDENTITY, describe


def predict_nifti(model: Any, source: Path, target: Path, mask: Path | None = None, meaning: str = "") -> None:
    data = model.description.settings.data
    volume = read_volume(source, data.n_dims, data.input.channels)
    valid = None if mask is None else read_mask(mask, volume)
    write_volume(target, translate_volume(model.predict, volume.values, valid, model.description), volume, meaning)


def oblique() -> np.ndarray:
    a, b = 0.4, -0.3
    rotation = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.9, 1.1, -2.0])
    affine[:3, 3] = [-80, 12, 33]
    return affine


def centre_of_brightness(path: Path) -> np.ndarray:
    image = nibabel.load(path)
    values = image.get_fdata() > 50
    return nibabel.affines.apply_affine(image.affine, np.argwhere(values).mean(axis=0))


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_geometry_is_kept(tmp_path: Path, dtype: Any, suffix: str) -> None:
    values = np.zeros((17, 20, 11), dtype)
    values[10:13, 4:7, 7:9] = 100
    image = nibabel.Nifti1Image(values, None)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(oblique(), code=1)
    shifted = oblique()
    shifted[:3, 3] += 0.25
    image.set_sform(shifted, code=2)
    image.header["cal_max"] = 100
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    nibabel.save(image, source)
    model = SimpleNamespace(description=describe((8, 8, 8), (4, 4, 4), fusing_mask_smoothing=2.0), **vars(IDENTITY))
    predict_nifti(model, source, target)
    found, given = nibabel.load(target), nibabel.load(source)
    assert found.get_data_dtype() == np.float32
    assert found.shape == values.shape
    assert np.array_equal(found.affine, given.affine)
    assert found.header.get_zooms() == given.header.get_zooms()
    for form in ("get_qform", "get_sform"):
        (a, code_a), (b, code_b) = (getattr(x, form)(coded=True) for x in (found, given))
        assert np.array_equal(a, b)
        assert code_a == code_b
    assert found.header.get_xyzt_units() == ("mm", "sec")
    assert found.dataobj.slope == 1
    assert found.dataobj.inter == 0
    assert found.header["cal_max"] == 0
    distance = np.linalg.norm(centre_of_brightness(source) - centre_of_brightness(target))
    assert distance < 0.9
    assert np.allclose(found.get_fdata(), values, atol=1e-4)


def test_scaled_integers_are_read_as_what_they_mean(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "in.nii")
    model = SimpleNamespace(description=describe((8, 8, 8)), **vars(IDENTITY))
    predict_nifti(model, tmp_path / "in.nii", tmp_path / "out.nii")
    given = nibabel.load(tmp_path / "in.nii").get_fdata()
    assert np.allclose(nibabel.load(tmp_path / "out.nii").get_fdata(), given, rtol=1e-5)


@pytest.mark.parametrize("damage", ["checksum", "cut in the checksum", "cut before it", "more behind it"])
def test_a_gzip_file_is_read_to_its_checksum(tmp_path: Path, damage: str) -> None:
    """Every voxel is there in all of these: who stops after the last one sees nothing."""
    path = tmp_path / "in.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.RandomState(0).rand(9, 8, 7), np.eye(4)), path)
    assert read_volume(path).shape == (9, 8, 7)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "checksum": whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:],
            "cut in the checksum": whole[:-6],
            "cut before it": whole[:-8],
            "more behind it": whole + b"something else",
        }[damage]
    )
    assert np.asanyarray(nibabel.load(path).dataobj).shape == (9, 8, 7)
    with pytest.raises(UserError, match=r"in.nii.gz: cannot be read .* the file is damaged, get it again") as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)


def test_a_single_slice_and_a_trailing_axis_keep_their_shape(tmp_path: Path) -> None:
    for patch, shape in (((8, 8), (9, 12)), ((8, 8, 8), (9, 12, 1)), ((8, 8, 8), (9, 12, 10, 1))):
        model = SimpleNamespace(description=describe(patch), **vars(IDENTITY))
        nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), tmp_path / "in.nii")
        predict_nifti(model, tmp_path / "in.nii", tmp_path / "out.nii")
        assert nibabel.load(tmp_path / "out.nii").shape == shape


def test_a_time_series_a_missing_file_and_another_mask_are_named(tmp_path: Path) -> None:
    model = SimpleNamespace(description=describe((8, 8, 8)), **vars(IDENTITY))
    series, volume, mask = tmp_path / "series.nii", tmp_path / "volume.nii", tmp_path / "mask.nii"
    for path, shape in ((series, (8, 8, 8, 4)), (volume, (8, 8, 8)), (mask, (8, 8, 7))):
        nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), path)
    with pytest.raises(UserError, match=r"series.nii.*\(8, 8, 8, 4\)"):
        predict_nifti(model, series, tmp_path / "out.nii")
    with pytest.raises(UserError, match="absent.nii: not found"):
        predict_nifti(model, tmp_path / "absent.nii", tmp_path / "out.nii")
    with pytest.raises(UserError, match=r"mask.nii: shape \(8, 8, 7\)"):
        predict_nifti(model, volume, tmp_path / "out.nii", mask)
    assert not (tmp_path / "out.nii").exists()
