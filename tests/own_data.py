"""A user's own pairs, made up: one asymmetric body, sampled on any grid, in two contrasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
import tifffile
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from scipy.spatial.transform import Rotation
from scipy.special import expit

from equisynth.config import Data, Intensity

SEMI_AXES = np.array([18.0, 22.0, 16.0])  # mm


ORGANS = np.random.RandomState(5).uniform(-0.6, 0.6, (12, 3)) * SEMI_AXES  # mm
ORGAN_SIZE = 4.0  # mm


def anatomy(points: np.ndarray, contrast: str) -> np.ndarray:
    """Values at points (..., 3) in mm: a body whose organs are bright in one contrast, dark in the other.

    Smooth, so that linear interpolation of 4 mm voxels is off by some per cent only.
    """
    tissue = np.zeros(points.shape[:-1])
    for number, centre in enumerate(ORGANS):
        tissue += (-1) ** number * np.exp(-((points - centre) ** 2).sum(axis=-1) / (2 * ORGAN_SIZE**2))
    body = expit(30 * (1 - np.linalg.norm(points / SEMI_AXES, axis=-1)))
    return body * (1 + 0.6 * tissue if contrast == "input" else 1.2 - 0.6 * tissue)


def affine(
    shape: Sequence[int], voxel_size: Sequence[float] = (2.0, 2.0, 2.0), axes: str = "RAS", turned: float = 0.0
) -> np.ndarray:
    """Of a grid centred on the body, stored in an orientation, turned by degrees about an oblique axis."""
    upright = np.diag([*voxel_size, 1.0])
    upright[:3, 3] = -0.5 * np.array(voxel_size) * (np.array(shape) - 1)
    rotation = np.eye(4)
    rotation[:3, :3] = Rotation.from_rotvec(np.deg2rad(turned) * np.array([0.6, 0.0, 0.8])).as_matrix()
    turn = axcodes2ornt("RAS"), axcodes2ornt(axes)
    return rotation @ upright @ inv_ornt_aff(nibabel.orientations.ornt_transform(*turn), shape)


def grid(shape: Sequence[int], matrix: np.ndarray) -> np.ndarray:
    """Points (*shape, 3) in mm of a grid's voxels."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def volume(
    contrast: str = "input",
    shape: Sequence[int] = (22, 26, 20),
    voxel_size: Sequence[float] = (2.0, 2.0, 2.0),
    axes: str = "RAS",
    turned: float = 0.0,
    dtype: type = np.float32,
    gain: float = 100.0,
) -> nibabel.Nifti1Image:
    """A scan of the body; ``shape`` and ``voxel_size`` are along right, front and up, whatever the orientation."""
    goes_to = nibabel.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))[:, 0].astype(int)
    matrix = affine(shape, voxel_size, axes, turned)
    stored = [shape[axis] for axis in np.argsort(goes_to)]
    values = gain * anatomy(grid(stored, matrix), contrast)
    return nibabel.Nifti1Image(values.astype(dtype), matrix, dtype=dtype)


def picture(contrast: str = "input", shape: Sequence[int] = (40, 48), channels: int = 3, peak: int = 200) -> np.ndarray:
    """A slice of the body in 8 or 16 bit, (rows, columns) or (rows, columns, channels)."""
    points = grid((*shape, 1), affine((*shape, 1), (1.0, 1.0, 1.0)))[:, :, 0]
    values = anatomy(points[..., [1, 0, 2]], contrast) / 2
    kind = np.uint8 if peak < 256 else np.uint16
    grey = (peak * np.clip(values, 0, 1)).astype(kind)
    if channels == 1:
        return grey
    colours = np.stack([grey, grey // 2, grey // 3, np.full_like(grey, 255)][:channels], axis=-1)
    return colours


def write_case(folder: Path, case: str, images: Mapping[str, object], ending: str | None = None) -> Path:
    """``<folder>/<case>/<case>_<role>``: NIfTI images, or arrays as TIFF."""
    (folder / case).mkdir(parents=True, exist_ok=True)
    for role, image in images.items():
        if isinstance(image, np.ndarray):
            colours = {"photometric": "rgb"} if image.ndim == 3 else {"photometric": "minisblack"}
            extra = {"extrasamples": ["unassalpha"]} if image.ndim == 3 and image.shape[2] == 4 else {}
            tifffile.imwrite(folder / case / f"{case}_{role}{ending or '.tif'}", image, **colours, **extra)
        else:
            nibabel.save(image, folder / case / f"{case}_{role}{ending or '.nii.gz'}")
    return folder


def pair(**options: object) -> dict[str, object]:
    """Input and label on one grid."""
    return {role: volume(role, **options) for role in ("input", "label")}  # type: ignore[arg-type]


def intensity(channels: int = 1, **fields: object) -> Intensity:
    known = {"modality": "x", "mean": (0.0,) * channels, "std": (1.0,) * channels, "signal_range": 1.0, "unit": "1"}
    return Intensity.model_validate({**known, "channels": channels, **fields})


def data(n_dims: int = 3, channels: int = 1, voxel_size: Sequence[float] | None = None, **label: object) -> Data:
    size = voxel_size or ((2.0, 2.0, 2.0) if n_dims == 3 else (1.0, 1.0))
    one, other = intensity(channels), intensity(channels, **label)
    return Data(n_dims=n_dims, voxel_size=tuple(size), input=one, label=other, licence="none")  # type: ignore[arg-type]
