"""DICOM series: each voxel lies in NIfTI's world where it lay in DICOM's; what is no whole volume is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from dicom_series import UID, oblique, write_series
from equisynth.errors import UserError
from equisynth.images.dicom import find_series, holds_dicom, read_series, series_of
from equisynth.volumes import Volume, write_volume


def read(folder: Path) -> Volume:
    return read_series(find_series(folder))


def test_a_bright_cube_lies_where_it_lay(tmp_path: Path) -> None:
    image = oblique()
    volume = read(write_series(tmp_path, image))
    values = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    assert np.array_equal(volume.values, values)
    cube = np.argwhere(values > 500).mean(axis=0)
    lps = np.array(image.TransformContinuousIndexToPhysicalPoint(cube.tolist()))
    found = nibabel.affines.apply_affine(volume.image.affine, np.argwhere(volume.values > 500).mean(axis=0))
    assert np.allclose(found, lps * [-1, -1, 1], atol=1e-3)
    assert np.allclose(volume.image.header.get_zooms(), image.GetSpacing(), atol=1e-4)
    assert volume.is_oriented


def test_what_is_written_reads_back_at_the_same_place(tmp_path: Path) -> None:
    """By another program's eyes: SimpleITK turns NIfTI's RAS back into LPS."""
    image = oblique()
    volume = read(write_series(tmp_path / "series", image))
    write_volume(tmp_path / "out.nii.gz", volume.values.astype(np.float32), volume)
    again = SimpleITK.ReadImage(str(tmp_path / "out.nii.gz"))
    for index in ((0, 0, 0), (15, 0, 0), (0, 13, 0), (0, 0, 9), (10, 4, 7)):
        place, found = (one.TransformIndexToPhysicalPoint(index) for one in (image, again))
        assert np.allclose(place, found, atol=1e-3)
        assert image[index] == again[index]


def test_a_folder_of_several_series_needs_a_choice(tmp_path: Path) -> None:
    write_series(tmp_path, oblique(), 4)
    write_series(tmp_path, oblique((1.0, 1.0, 2.0)), 7)
    (tmp_path / "notes.txt").write_text("not an image")
    assert [series.name for series in series_of(tmp_path)] == ["0004-t2-tse", "0007-t2-tse"]
    with pytest.raises(UserError, match=r"holds 2 DICOM series \(0004-t2-tse, 0007-t2-tse\)"):
        find_series(tmp_path)
    chosen = find_series(tmp_path, f"{UID}.1.7")
    assert np.allclose(read_series(chosen).image.header.get_zooms(), (1, 1, 2), atol=1e-4)


def test_a_folder_without_dicom_is_said_to_be_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    assert not holds_dicom(tmp_path)
    with pytest.raises(UserError, match="is a folder without a DICOM series"):
        find_series(tmp_path)
    assert capfd.readouterr().err == ""


def damaged(folder: Path) -> Path:
    write_series(folder, oblique())
    path = sorted(folder.iterdir())[3]
    path.write_bytes(path.read_bytes()[:-300])
    return folder


def without_place(folder: Path) -> Path:
    image = SimpleITK.GetImageFromArray(np.ones((8, 8), np.int16))
    folder.mkdir()
    SimpleITK.WriteImage(image, str(folder / "a.dcm"))
    return folder


def zero(folder: Path) -> Path:
    return write_series(folder, SimpleITK.Image(oblique().GetSize(), SimpleITK.sitkInt16))


WRONG = {
    "a slice lacks": (lambda folder: write_series(folder, oblique(), without=(4,)), "lacks slices: 6 mm between"),
    "every other slice lacks at the end": (
        lambda folder: write_series(folder, oblique(), without=(8,)),
        "lacks slices: 6 mm between",
    ),
    "one slice": (lambda folder: write_series(folder, oblique(), without=tuple(range(1, 10))), "one slice"),
    "tilted": (lambda folder: write_series(folder, oblique(), shift=(0.3, 0.0, 0.0)), "tilted gantry|lacks slices"),
    "zero": (zero, "every voxel"),
    "damaged": (damaged, "cannot be read as DICOM"),
    "no place": (without_place, "does not say where its slices lie|one slice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_whole_volume_is_one_line(name: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    folder = make(tmp_path / "series")
    with pytest.raises(UserError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_two_slices_at_one_place_are_told(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", oblique())
    first = sorted(folder.iterdir())[0]
    header = SimpleITK.ImageFileReader()
    header.SetFileName(str(first))
    image = header.Execute()
    for key in header.GetMetaDataKeys():
        image.SetMetaData(key, header.GetMetaData(key))
    image.SetMetaData("0008|0018", f"{UID}.1.4.99")
    image.SetMetaData("0020|0013", "99")
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(folder / "echo.dcm"))
    writer.Execute(image)
    with pytest.raises(UserError, match="two slices at one place"):
        read(folder)
