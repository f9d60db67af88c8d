"""Volumes: NIfTI images read with their geometry, and predictions written with it."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equisynth.errors import UserError

BLOCK = 2**20
"""Bytes that are unpacked at once where only a checksum is wanted."""


@dataclass(frozen=True)
class Volume:
    """A NIfTI image that was read.

    Attributes:
        path: its file.
        values: (*S) or (*S, C), as stored.
        shape: (*S).
        image: nibabel's image: header and geometry.
    """

    path: Path
    values: np.ndarray
    shape: tuple[int, ...]
    image: Any

    @property
    def is_oriented(self) -> bool:
        """Whether the header says where the axes point."""
        header = self.image.header
        return "qform_code" not in header or bool(header["qform_code"] > 0 or header["sform_code"] > 0)


def read_volume(path: Path | str, n_dims: int = 3, channels: int = 1) -> Volume:
    """Reads one NIfTI image of so many axes and channels.

    Raises:
        UserError: absent, no image, of another shape, not finite, or zero everywhere.
    """
    image = _load(path)
    values = _image_axes(_values(image, path), n_dims, channels, path)
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds values that are not finite; replace them (NaN or infinity) first")
    if not values.any():
        raise UserError(f"{path}: every voxel is zero; is this the right file?")
    return Volume(Path(path), values, values.shape[:-1] if channels > 1 else values.shape, image)


def read_mask(path: Path | str, volume: Volume) -> np.ndarray:
    """A mask (*S) on the grid of a volume, valid where above 0.

    Raises:
        UserError: absent, no image, of another shape, or nowhere valid.
    """
    mask = _values(_load(path), path)
    if _without_singletons(mask.shape) != _without_singletons(volume.shape):
        raise UserError(f"{path}: shape {mask.shape}, expected that of {volume.path}, {volume.shape}")
    if not mask.any():
        raise UserError(f"{path}: no voxel is valid; expected some above zero")
    return mask.reshape(volume.shape, order="F")


def write_volume(path: Path, values: np.ndarray, like: Volume, meaning: str = "") -> None:
    """Writes values (*S) or (*S, C') as a float32 NIfTI with the geometry of another image."""
    import nibabel

    if values.size == like.values.size:
        values = values.reshape(like.image.shape, order="F")
    header = like.image.header.copy() if isinstance(like.image.header, nibabel.Nifti1Header) else None
    nibabel.save(float_image(values, like.image.affine, header, meaning), path)


def float_image(values: np.ndarray, affine: np.ndarray, header: Any = None, meaning: str = "") -> Any:
    """A float32 NIfTI image with the geometry of ``header`` and none of its intensity fields.

    Args:
        meaning: of the values; NIfTI's ``descrip`` keeps 79 letters without accents.
    """
    import nibabel

    if header is not None:
        header.set_data_dtype(np.float32)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0  # the display range of another modality
        header.extensions.clear()
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    image = kind(np.asarray(values, dtype=np.float32), affine, header)
    if header is None:
        image.header.set_xyzt_units("mm")
    image.header["descrip"] = meaning.encode("ascii", "replace")[:79]
    return image


def _load(path: Path | str) -> Any:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nibabel.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; expected a NIfTI file") from None
    except (ImageFileError, OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a NIfTI file") from None
    if np.dtype(image.get_data_dtype()).kind not in "iufb":
        raise UserError(f"{path}: holds {image.get_data_dtype()}; expected real numbers")
    return image


def _values(image: Any, path: Path | str) -> np.ndarray:
    """The stored array; damage that the header does not show comes to light here."""
    try:
        values = np.asanyarray(image.dataobj)
        if str(path).endswith(".gz"):
            _check_gzip(path)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason:.120}); the file is damaged, get it again") from None
    if not values.size:
        raise UserError(f"{path}: holds no voxel (shape {values.shape})")
    return values


def _check_gzip(path: Path | str) -> None:
    """Reads to the end, where the checksum is: nibabel stops after the last voxel, before it is compared.

    Raises:
        OSError, EOFError, zlib.error: as gzip does of damaged and truncated files.
    """
    with gzip.open(path) as file:
        while file.read(BLOCK):
            pass


def _without_singletons(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _image_axes(stored: np.ndarray, n_dims: int, channels: int, path: Path | str) -> np.ndarray:
    """The stored array as (*S) or (*S, C): axes of length one beyond the third are dropped, missing ones added."""
    spatial = [*stored.shape[:3], *[1] * (n_dims - stored.ndim)]
    if channels > 1 and n_dims == 2:
        spatial = spatial[:2]
    wanted = spatial + ([channels] if channels > 1 else [])
    if stored.size != np.prod(wanted) or stored.ndim < n_dims:
        raise UserError(
            f"{path}: shape {stored.shape}, expected one {n_dims}D image of {channels} channel(s); "
            "split the file into single images"
        )
    return stored.reshape(wanted, order="F")
