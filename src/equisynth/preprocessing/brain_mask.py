"""Brain extraction from a T1 scan. The mask only feeds the white-matter step, so simple and robust is enough."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from equisynth.errors import UserError
from equisynth.preprocessing.morphology import largest_component

Mask = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

_NO_BRAIN = "the T1 scan shows no brain (too few bright voxels); check the file, or set robex_path"


def brain_mask(t1: FloatArray, voxel_size: Sequence[float]) -> Mask:
    """Brain mask (*S) of a T1 scan (*S) by thresholding and opening; any intensity unit, voxel size in mm.

    The scalp is peeled off by its depth below the head's surface; an opening by 4 mm cuts what joins the brain to
    neck and face (nerves, vessels); the largest component that remains is the brain.

    Raises:
        UserError: nothing is left.
    """
    smooth = ndimage.gaussian_filter(t1.astype(np.float32), 0.5 / np.asarray(voxel_size))
    # Closed first: a scalp that no bridge joins to the brain belongs to the head as well.
    head = largest_component(
        _closed(smooth > 0.15 * np.percentile(smooth, 99), voxel_size, radius=8.0).astype(np.uint8)
    )
    deep = ndimage.distance_transform_edt(head, sampling=voxel_size) > 7.0
    if not deep.any():
        raise UserError(_NO_BRAIN)
    bright = deep & (smooth > 0.6 * np.median(smooth[deep]))
    opening = max(4.0, 1.2 * max(voxel_size))
    core = largest_component((ndimage.distance_transform_edt(bright, sampling=voxel_size) > opening).astype(np.uint8))
    if not core.any():
        raise UserError(_NO_BRAIN)
    near = ndimage.distance_transform_edt(core == 0, sampling=voxel_size) <= opening + min(voxel_size)
    return _closed(bright & near, voxel_size, radius=5.0).astype(np.uint8)


def robex_brain_mask(t1: FloatArray, affine: npt.NDArray[np.float64], robex_path: Path | str) -> Mask:
    """Brain mask (*S) by the user's own ROBEX program (Iglesias et al., IEEE TMI 2011), as published.

    Raises:
        UserError: the program is absent or fails.
    """
    import nibabel

    program = Path(robex_path)
    if not program.is_file():
        raise UserError(f"robex_path: {program} not found; expected the ROBEX program (runROBEX.sh), or null")
    with tempfile.TemporaryDirectory() as folder:
        scan, stripped, mask = (Path(folder) / f"{name}.nii.gz" for name in ("t1", "stripped", "mask"))
        nibabel.save(nibabel.Nifti1Image(t1.astype(np.float32), affine), scan)
        done = subprocess.run([str(program), str(scan), str(stripped), str(mask)], capture_output=True, text=True)
        if done.returncode or not mask.is_file():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"robex_path: {program} failed ({last[0]}); check that it runs on its own, or set null")
        return (np.asarray(nibabel.Nifti1Image.from_filename(mask).dataobj) > 0).astype(np.uint8)


def _closed(mask: npt.NDArray[np.bool_], voxel_size: Sequence[float], radius: float) -> npt.NDArray[np.bool_]:
    """Closed by a ball of ``radius`` mm, holes filled; the image goes on beyond its border as it ends there."""
    margin = [int(np.ceil(radius / size)) + 1 for size in voxel_size]
    padded = np.pad(mask, [(m, m) for m in margin], mode="edge")
    dilated = ndimage.distance_transform_edt(~padded, sampling=voxel_size) <= radius
    closed = ndimage.binary_fill_holes(ndimage.distance_transform_edt(dilated, sampling=voxel_size) > radius)
    inner: npt.NDArray[np.bool_] = closed[tuple(slice(m, m + n) for m, n in zip(margin, mask.shape, strict=True))]
    return inner
