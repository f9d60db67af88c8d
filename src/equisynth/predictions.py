"""Predicted images of prepared cases as files: ``predictions/<experiment>/<split>/<case>.nii``, uncompressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from equisynth.datasets.prepared import PreparedDataset
from equisynth.errors import UserError


def write_prediction(path: Path, values: np.ndarray, dataset: PreparedDataset, case: str) -> None:
    """An uncompressed NIfTI on the case's grid; channels lie in the fifth axis."""
    import nibabel

    n_dims = dataset.info.n_dims
    if values.ndim > n_dims:
        values = values.reshape(*values.shape[:n_dims], *(1,) * (4 - n_dims), values.shape[-1])
    image = nibabel.Nifti1Image(values, dataset.affine(case))
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def read_prediction(dataset: PreparedDataset, folder: Path, split: str, case: str) -> np.ndarray:
    """A predicted image, (*S) or (*S, C), behind a memory map.

    Raises:
        UserError: absent, or not on the case's grid.
    """
    import nibabel

    path = folder / split / f"{case}.nii"
    if not path.is_file():
        raise UserError(f"{path}: not found; run the stage that makes it (dvc repro predict@...)")
    stored = np.asanyarray(nibabel.load(path, mmap="r").dataobj)
    n_dims, shape = dataset.info.n_dims, dataset.shape(case)
    if stored.shape[:n_dims] != shape:
        raise UserError(f"{path}: shape {stored.shape}, expected the case's {shape}; predict again")
    return stored.reshape(shape + stored.shape[4:], order="A")
