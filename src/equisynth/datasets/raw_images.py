"""One image file of a user, read whole: NIfTI of any orientation, grey or colour TIFF. Damage becomes one line."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from equisynth.datasets.archives import CaseSkipped
from equisynth.preprocessing import resampling

NIFTI, TIFF = (".nii.gz", ".nii"), (".tiff", ".tif")

Array = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RawImage:
    """An image as its file has it.

    Attributes:
        path: of the file.
        values: NIfTI: (X, Y, Z), one of them 1 for a single slice. TIFF: (rows, columns) or (rows, columns, C).
        affine: (4, 4) from voxel index to mm; None: a picture, measured in pixels.
        stored: type of the numbers on disk.
        notes: what was left out or assumed, one line each.
    """

    path: Path
    values: npt.NDArray[Any]
    affine: Matrix | None
    stored: str
    notes: tuple[str, ...] = ()

    @property
    def is_picture(self) -> bool:
        """Whether it has no place in the scanner."""
        return self.affine is None

    @property
    def n_dims(self) -> int:
        """2 for pictures and single slices."""
        return 2 if self.affine is None or 1 in self.values.shape else 3

    @property
    def channels(self) -> int:
        return self.values.shape[2] if self.affine is None and self.values.ndim == 3 else 1

    @property
    def voxel_size(self) -> tuple[float, ...]:
        """mm along the stored axes; pixels for pictures."""
        return (1.0, 1.0) if self.affine is None else resampling.voxel_size(self.affine)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        return self.values.shape[:2] if self.affine is None else self.values.shape

    @property
    def plane(self) -> tuple[int, ...]:
        """The stored axes of a picture, or of a single slice; the one across it is left out."""
        across = 2 if self.affine is None else self.values.shape.index(1)
        return tuple(axis for axis in range(3) if axis != across)

    @property
    def orientation(self) -> str:
        """Where the stored axes point to, e.g. ``LPS``; empty for pictures."""
        return "" if self.affine is None else resampling.orientation(self.affine)


def read_image(path: Path, is_mask: bool = False) -> RawImage:
    """Reads one file.

    Raises:
        CaseSkipped: absent, damaged, of a kind that is not read, not finite, or without content.
    """
    if not path.is_file():
        raise CaseSkipped(f"{path}: not found")
    try:
        if path.name.lower().endswith(NIFTI):
            image = _read_nifti(path)
        elif path.name.lower().endswith(TIFF):
            image = _read_tiff(path)
        else:
            raise CaseSkipped(f"{path}: ending not known, expected {', '.join(NIFTI + TIFF)}")
    except CaseSkipped:
        raise
    except Exception as error:  # damaged files raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CaseSkipped(f"{path}: cannot be read ({reason:.120})") from None
    values = image.values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise CaseSkipped(f"{path}: {count} of {values.size} values are not finite (NaN or infinity)")
    if is_mask and not values.any():
        raise CaseSkipped(f"{path}: no voxel of the mask is above zero")
    if not is_mask and values.min() == values.max():
        raise CaseSkipped(f"{path}: every value is {values.flat[0]:g}")
    return image


def _read_nifti(path: Path) -> RawImage:
    import nibabel

    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as file:  # to its end, where the checksum is: nibabel stops before
            while file.read(1 << 20):
                pass
    image: Any = nibabel.load(path)
    stored = np.dtype(image.get_data_dtype())
    if stored.kind not in "iufb":
        raise CaseSkipped(f"{path}: holds {stored}, expected real numbers")
    values = np.asanyarray(image.dataobj).view(np.ndarray)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what does not fit is infinite, and said to be so
            values = values.astype(np.float32)
    if not values.size or np.prod(values.shape[3:], dtype=int) != 1 or values.ndim < 2:
        raise CaseSkipped(f"{path}: shape {values.shape}, expected one image; split the file into single ones")
    values = values.reshape((*values.shape[:3], *[1] * (3 - values.ndim)), order="A")
    affine = np.asarray(image.affine, dtype=np.float64)
    # The direction across a single slice may be left empty.
    sizes = [size for size, count in zip(resampling.voxel_size(affine), values.shape, strict=True) if count > 1]
    singular = 1 not in values.shape and abs(np.linalg.det(affine[:3, :3])) < 1e-9
    if not np.isfinite(affine).all() or singular or not all(sizes):
        raise CaseSkipped(f"{path}: its header gives no usable voxel size (the affine is singular)")
    notes: tuple[str, ...] = ()
    header: Any = image.header
    if not (header["qform_code"] > 0 or header["sform_code"] > 0):
        # As predictions of raw scans take it; nibabel's own default would mirror the first axis.
        affine = np.diag([*resampling.voxel_size(affine), 1.0])
        affine[:3, 3] = -0.5 * np.diag(affine)[:3] * (np.array(values.shape) - 1)
        notes = (f"{path.name}: the header says nothing of orientation; its axes are taken to be right, front, up",)
    return RawImage(path, values, affine, str(stored), notes)


def _read_tiff(path: Path) -> RawImage:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        series = file.series[0]
        if len(series.pages) != 1 or series.axes not in ("YX", "YXS", "SYX"):
            raise CaseSkipped(f"{path}: holds a stack of shape {series.shape}, expected a single picture")
        if page.photometric.name not in ("MINISBLACK", "RGB", "YCBCR"):
            raise CaseSkipped(f"{path}: colours stored as {page.photometric.name}, expected grey or RGB; convert it")
        stored = np.dtype(page.dtype)
        if stored.kind not in "iufb":
            raise CaseSkipped(f"{path}: holds {stored}, expected real numbers")
        try:
            values = series.asarray()
        except ValueError:  # a compression that tifffile leaves to an extra package
            from PIL import Image

            with Image.open(path) as picture:
                values = np.asarray(picture)
        axes = series.axes
    values = np.moveaxis(values, 0, -1) if axes == "SYX" else values
    values = values.astype(np.uint8) if values.dtype == np.bool_ else values
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    notes: tuple[str, ...] = ()
    if values.ndim == 3:
        if values.shape[2] in (2, 4):
            notes = (f"{path.name}: the alpha channel is left out",)
        if values.shape[2] > 4:
            raise CaseSkipped(f"{path}: has {values.shape[2]} channels, expected grey, RGB or RGBA")
        values = values[..., :3] if values.shape[2] >= 3 else values[..., 0]
    if values.dtype == np.uint16:
        notes += (f"{path.name}: 16-bit numbers are kept as they are",)
    return RawImage(path, values, None, str(stored), notes)


# --- other grids


def on_grid_of(image: RawImage, shape: Sequence[int], affine: Matrix, order: int) -> Array:
    """An image on another grid by its scanner coordinates; beyond its border the border repeats."""
    matrix = _index_matrix(image, affine)
    values = np.asarray(image.values, dtype=np.float32)
    if np.allclose(matrix, np.eye(4), atol=1e-5) and image.values.shape == tuple(shape):
        return values
    result: Array = ndimage.affine_transform(
        values, matrix[:3, :3], matrix[:3, 3], tuple(shape), order=order, mode="nearest", output=np.float32
    )
    return result


def field_of_view(image: RawImage, shape: Sequence[int], affine: Matrix) -> npt.NDArray[np.bool_]:
    """Which voxels of a grid have their centre in one of the image's voxels, (*shape)."""
    matrix = _index_matrix(image, affine)
    seen = np.ones(tuple(shape), dtype=np.bool_)
    for row, count in zip(matrix[:3], image.values.shape, strict=True):
        index = sum(
            row[axis] * np.arange(n).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, n in enumerate(shape)
        )
        index = index + row[3]
        seen &= (index >= -0.5 - 1e-3) & (index <= count - 0.5 + 1e-3)
    return seen


def _index_matrix(image: RawImage, affine: Matrix) -> Matrix:
    """From a voxel's index on a grid to its index in a volume, (4, 4)."""
    assert image.affine is not None
    matrix: Matrix = np.linalg.inv(image.affine) @ affine
    return matrix
