"""Predicted images of prepared cases as files: ``predictions/<experiment>/<split>/<case>.nii``, uncompressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from equisynth.datasets.prepared import PreparedDataset
from equisynth.datasets.prepared_files import as_nifti
from equisynth.errors import UserError
from equisynth.files import atomic_path


def write_prediction(path: Path, values: np.ndarray, dataset: PreparedDataset, case: str) -> None:
    """An uncompressed NIfTI on the case's grid, whole or not at all; channels lie in the fifth axis.

    Raises:
        UserError: a side is longer than NIfTI holds.
    """
    import nibabel

    image = as_nifti(path, values, dataset.affine(case), dataset.info.n_dims)
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)


def read_prediction(dataset: PreparedDataset, folder: Path, split: str, case: str) -> np.ndarray:
    """A predicted image, (*S) or (*S, C), behind a memory map.

    Raises:
        UserError: absent, or not on the case's grid.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    path = folder / split / f"{case}.nii"
    if not path.is_file():
        raise UserError(f"{path}: not found; run the stage that makes it (dvc repro predict@...)")
    try:
        stored = np.asanyarray(nibabel.load(path, mmap="r").dataobj)
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason:.120}); predict again (dvc repro)") from None
    n_dims, shape = dataset.info.n_dims, dataset.shape(case)
    if stored.shape[:n_dims] != shape:
        raise UserError(f"{path}: shape {stored.shape}, expected the case's {shape}; predict again")
    return stored.reshape(shape + stored.shape[4:], order="A")
