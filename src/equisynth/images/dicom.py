"""DICOM series as volumes, read by SimpleITK's GDCM.

DICOM counts millimetres towards left, back and top (LPS), NIfTI towards right, front and top (RAS): the first two world
coordinates change their signs, and each voxel lies where it lay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.errors import UserError
from equisynth.images.formats import suffix_of
from equisynth.volumes import Volume

POSITION, ORIENTATION, NUMBER, DESCRIPTION = "0020|0032", "0020|0037", "0020|0011", "0008|103e"
COORDINATES = "NIfTI's RAS: DICOM's LPS with the first two coordinates negated"
INDEX = "DICOMDIR"
MAGIC_AT, MAGIC = 128, b"DICM"
GAP = 0.02
"""How far the distance of two slices may differ from the others', relative to it; positions are stored rounded."""
TILT = 0.01
"""How far the way from slice to slice may deviate from their normal, relative to the distance."""


@dataclass(frozen=True)
class Series:
    """Slices that belong together.

    Attributes:
        uid: of the series.
        name: number and description, for people: ``0004-t2_tse_tra``.
        files: in the order of the slices.
    """

    uid: str
    name: str
    files: tuple[Path, ...]


def holds_dicom(folder: Path) -> bool:
    """Whether a file directly in a folder is DICOM."""
    return any(_is_dicom(path) for path in sorted(folder.iterdir()) if not suffix_of(path.name))


def series_of(folder: Path) -> list[Series]:
    """The series of which slices lie directly in a folder; reports and other objects without an image are left out."""
    found = []
    for uid, files in _files(folder).items():
        with suppress(UserError):
            found.append(Series(uid, _name(files[0]), files))
    return found


def find_series(folder: Path, uid: str | None = None) -> Series:
    """One series of a folder: that of a UID, or the only one.

    Raises:
        UserError: there is none, or several to choose from; a file is damaged, whichever series was its own.
    """
    listed = {path for files in _files(folder).values() for path in files}
    for path in sorted(folder.iterdir()):  # what GDCM cannot parse it leaves out without a word
        if path not in listed and path.name != INDEX and _is_dicom(path):
            raise UserError(f"{path}: cannot be read as DICOM; the file is damaged, get it again")
    found = [series for series in series_of(folder) if uid in (None, series.uid)]
    if not found:
        raise UserError(f"{folder}: is a folder without a DICOM series; give one image or one series")
    if len(found) > 1:
        names = ", ".join(series.name for series in found)
        raise UserError(f"{folder}: holds {len(found)} DICOM series ({names}); give a folder with one of them")
    return found[0]


def read_series(series: Series) -> Volume:
    """The volume of a series, in RAS world coordinates.

    Raises:
        UserError: unreadable; no position; slices missing, doubled, turned or shifted; colours; zero everywhere.
    """
    import nibabel
    import SimpleITK

    folder = series.files[0].parent
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in _in_order(series, folder)])
    try:
        with _quiet():
            image = reader.Execute()
    except RuntimeError as error:
        raise UserError(f"{folder}: series {series.name} cannot be read ({_reason(error)}); get it again") from None
    if image.GetNumberOfComponentsPerPixel() != 1:
        found = image.GetNumberOfComponentsPerPixel()
        raise UserError(f"{folder}: series {series.name} has {found} channels, expected grey values")
    values = np.ascontiguousarray(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0))  # (x, y, z)
    if not values.any():
        raise UserError(f"{folder}: every voxel of series {series.name} is zero; is this the right one?")
    affine = ras_affine(image)
    stored = nibabel.Nifti1Image(values.astype(np.float32), affine)
    stored.set_sform(affine, code=1)
    stored.set_qform(affine, code=1)
    stored.header.set_xyzt_units("mm")
    return Volume(folder, values, values.shape, stored)


def ras_affine(image: Any) -> npt.NDArray[np.float64]:
    """Voxel index to RAS mm (4, 4) of a SimpleITK image, which has LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _in_order(series: Series, folder: Path) -> list[Path]:
    """The files from slice to slice; raises where these do not lie straight above each other, at one distance."""
    headers = [_header(path) for path in series.files]
    places = [_numbers(header, POSITION, 3) for header in headers]
    turns = [_numbers(header, ORIENTATION, 6) for header in headers]
    if any(place is None for place in places) or any(turn is None for turn in turns):
        raise UserError(f"{folder}: series {series.name} does not say where its slices lie; convert it to NIfTI first")
    if len(places) < 2:
        raise UserError(f"{folder}: series {series.name} has one slice, expected a volume")
    orientation = np.asarray(turns, dtype=float)
    if np.abs(orientation - orientation[0]).max() > 1e-3:
        raise UserError(f"{folder}: the slices of series {series.name} are turned to each other, expected a volume")
    normal = np.cross(orientation[0, :3], orientation[0, 3:])
    positions = np.asarray(places, dtype=float)  # mm
    order = np.argsort(positions @ normal, kind="stable")
    files = [series.files[index] for index in order]
    steps = np.diff(positions[order], axis=0)  # mm, from slice to slice
    gaps = steps @ normal
    usual = float(np.median(gaps))
    if gaps.min() < GAP * max(usual, 1e-6):
        first = files[int(gaps.argmin())].name
        raise UserError(
            f"{folder}: series {series.name} has two slices at one place ({first} and the next); expected one volume: "
            "split its echoes or times into folders"
        )
    if np.abs(gaps - usual).max() > GAP * usual:
        at = int(np.abs(gaps - usual).argmax())
        one, two = (files[index].name for index in (at, at + 1))
        raise UserError(
            f"{folder}: series {series.name} lacks slices: {gaps[at]:.3g} mm between {one} and {two}, {usual:.3g} mm "
            "between the others; get the whole series"
        )
    sideways = np.linalg.norm(steps - np.outer(steps @ normal, normal), axis=1)
    if sideways.max() > TILT * usual:
        raise UserError(
            f"{folder}: series {series.name} was taken with a tilted gantry (slices shift by {sideways.max():.3g} mm); "
            "straighten it first, e.g. by dcm2niix"
        )
    return files


def _header(path: Path) -> Any:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        with _quiet():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); get the series again") from None
    return reader


def _numbers(header: Any, key: str, count: int) -> Sequence[float] | None:
    """The numbers of a tag; None: absent, or not as many."""
    try:
        numbers = [float(word) for word in header.GetMetaData(key).split("\\")] if header.HasMetaDataKey(key) else []
    except ValueError:
        return None
    return numbers if len(numbers) == count else None


def _files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Files by the UIDs of their series, in the order of slices."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader
    with _quiet():
        uids = reader.GetGDCMSeriesIDs(str(folder))
        return {uid: tuple(Path(name) for name in reader.GetGDCMSeriesFileNames(str(folder), uid)) for uid in uids}


def _name(file: Path) -> str:
    header = _header(file)
    words = [header.GetMetaData(key).strip() for key in (NUMBER, DESCRIPTION) if header.HasMetaDataKey(key)]
    if words and words[0].isdigit():
        words[0] = words[0].zfill(4)
    plain = ["".join(letter if letter.isalnum() or letter in "_." else "-" for letter in word) for word in words]
    return "-".join(word for word in plain if word) or "series"


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        file.seek(MAGIC_AT)
        return file.read(len(MAGIC)) == MAGIC


def _reason(error: Exception) -> str:
    """The last line of an error of ITK's, without the place in its sources."""
    return f"{' '.join(str(error).splitlines()[-1].split()).removeprefix('ITK ERROR: '):.120}"


@contextmanager
def _quiet() -> Iterator[None]:
    """ITK warns on stderr, of files in the folder that are no DICOM and of what is checked here."""
    import SimpleITK

    before = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(before)
