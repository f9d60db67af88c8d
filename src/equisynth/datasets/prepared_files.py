"""Single files of the prepared layout: uncompressed NIfTI or TIFF, read behind memory maps.

Whatever the format, arrays have their spatial axes first and their components last: (*S) or (*S, C). A TIFF's axes
are rows and columns; its affine is the identity.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from equisynth.errors import UserError

if TYPE_CHECKING:
    from nibabel import Nifti1Image

SUFFIXES = (".nii", ".tif")
LONGEST_SIDE = 32_767
"""Of what NIfTI holds: its header counts in 16 bits."""
BLOCK = 1 << 24
"""Values that are looked at together when a file is checked: memory does not grow with the file."""

Affine = npt.NDArray[np.float64]


def find(folder: Path, role: str) -> Path | None:
    """The file of a role in the folder of a case, None if there is none."""
    for suffix in SUFFIXES:
        path = folder / f"{role}{suffix}"
        if path.is_file():
            return path
    return None


def open_map(path: Path, n_dims: int) -> npt.NDArray[Any]:
    """The values of a file, (*S) or (*S, C), read-only; nothing is read before it is indexed.

    Raises:
        UserError: no such file, neither format, compressed, cut off, or other axes than ``n_dims`` and components.
    """
    kind, read = ("NIfTI", _nifti) if path.suffix == ".nii" else ("uncompressed TIFF", _tiff)
    try:
        stored = read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; prepare the dataset again") from None
    except Exception as error:  # damaged headers raise many kinds
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise UserError(
                f"{path}: this process has too many files open; raise the limit (ulimit -n) and run the command again"
            ) from None
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as {kind} ({reason}); prepare the dataset again") from None
    if stored.dtype not in (np.float32, np.uint8):
        raise UserError(f"{path}: holds {stored.dtype}, expected float32 or uint8; prepare the dataset again")
    # NIfTI keeps components in the fifth axis, behind those of space and time; TIFF behind rows and columns.
    first = 4 if path.suffix == ".nii" else 2
    space, between, components = stored.shape[:n_dims], stored.shape[n_dims:first], stored.shape[first:]
    if len(space) < n_dims or any(size != 1 for size in between) or len(components) > 1:
        raise UserError(
            f"{path}: shape {stored.shape}, expected {n_dims} axes and the channels; prepare the dataset again"
        )
    return stored.reshape(space + components, order="A")


def read_affine(path: Path) -> Affine:
    """Voxel index to mm, (4, 4); the identity for TIFF.

    Raises:
        UserError: as `open_map`.
    """
    if path.suffix != ".nii":
        return np.eye(4)
    import nibabel

    try:
        return np.asarray(nibabel.Nifti1Image.from_filename(path).affine, dtype=np.float64)
    except Exception as error:  # damaged headers raise many kinds
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as NIfTI ({reason}); prepare the dataset again") from None


def as_nifti(path: Path, values: npt.NDArray[Any], affine: Affine, n_dims: int) -> Nifti1Image:
    """Values (*S) or (*S, C) as an image to save.

    Args:
        path: where it is to lie in the end; for messages.

    Raises:
        UserError: a side is longer than `LONGEST_SIDE`.
    """
    import nibabel

    check_sides(path, values.shape[:n_dims])
    if values.ndim == n_dims + 1:
        values = values.reshape(values.shape[:n_dims] + (1,) * (4 - n_dims) + values.shape[n_dims:])
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    return image


def check_sides(path: Path, shape: Sequence[int]) -> None:
    """Refuses a spatial shape that is to lie at ``path``, and that NIfTI cannot hold."""
    if max(shape) > LONGEST_SIDE:
        sides = " x ".join(map(str, shape))
        raise UserError(f"{path}: {sides} voxels, NIfTI holds at most {LONGEST_SIDE} a side; cut the image into parts")


def check_values(
    path: Path, values: npt.NDArray[Any], is_mask: bool, advice: str = "check the raw scan of this case"
) -> None:
    """Refuses NaN and infinity, and in a mask all but 0 and 1.

    Args:
        advice: what to do about values that are not finite.

    Raises:
        UserError: naming the file.
    """
    flat = values.reshape(-1, order="A")
    for first in range(0, flat.size, BLOCK):
        block = flat[first : first + BLOCK]
        if block.dtype.kind == "f" and not np.isfinite(block).all():
            raise UserError(f"{path}: holds values that are not finite (NaN or infinity); {advice}")
        if is_mask and block.max() > 1:
            raise UserError(f"{path}: holds values up to {block.max()}, expected a mask of 0 and 1")


def _nifti(path: Path) -> npt.NDArray[Any]:
    import nibabel

    stored: npt.NDArray[Any] = np.asanyarray(nibabel.Nifti1Image.from_filename(path, mmap="r").dataobj)
    return stored.view(np.ndarray)


def _tiff(path: Path) -> npt.NDArray[Any]:
    import tifffile

    stored: npt.NDArray[Any] = tifffile.memmap(path, mode="r")
    return stored.view(np.ndarray)
