"""Predicted images of prepared cases as files: ``predictions/<experiment>/<split>/<case>.nii``, uncompressed.

A case that is kept as TIFF is predicted as TIFF: slides are written as they are computed, and have no longest side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.datasets.prepared import PreparedDataset
from equisynth.datasets.prepared_files import as_nifti, check_sides, check_values
from equisynth.errors import UserError
from equisynth.files import atomic_path


def prediction_path(dataset: PreparedDataset, folder: Path, split: str, case: str) -> Path:
    """Where the prediction of a case lies below the folder of an experiment's predictions."""
    return folder / split / f"{case}{dataset.suffix(case)}"


def prediction_form(dataset: PreparedDataset, case: str) -> tuple[tuple[int, ...], npt.DTypeLike]:
    """Shape, (*S) or (*S, C) of several channels, and type: 8 bits where the images of the case have them."""
    shape, channels = dataset.shape(case), dataset.info.label.channels
    return (*shape, channels) if channels > 1 else shape, np.uint8 if dataset.is_8_bit(case) else np.float32


@contextmanager
def new_prediction(path: Path, dataset: PreparedDataset, case: str) -> Iterator[npt.NDArray[Any]]:
    """An array to fill that becomes the file when the block ends without an error.

    Raises:
        UserError: a side is longer than NIfTI holds, where the case is kept as NIfTI.
    """
    shape, dtype = prediction_form(dataset, case)
    with atomic_path(path) as temporary:
        if path.suffix == ".tif":
            import tifffile

            kind = "rgb" if shape[-1] == dataset.info.label.channels == 3 else "minisblack"
            yield tifffile.memmap(temporary, shape=shape, dtype=dtype, photometric=kind, bigtiff=True, metadata=None)
            return
        import nibabel

        check_sides(path, dataset.shape(case))
        values = np.empty(shape, dtype)
        yield values
        nibabel.save(as_nifti(path, values, dataset.affine(case), dataset.info.n_dims), temporary)


def read_prediction(dataset: PreparedDataset, folder: Path, split: str, case: str) -> npt.NDArray[Any]:
    """A predicted image, (*S) or (*S, C), behind a memory map.

    Raises:
        UserError: absent, not on the case's grid, or a value is not finite: no measure would say anything.
    """
    path = prediction_path(dataset, folder, split, case)
    if not path.is_file():
        raise UserError(f"{path}: not found; run the stage that makes it (dvc repro predict@...)")
    try:
        stored = _open(path)
    except Exception as error:  # damaged headers raise many kinds
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason:.120}); predict again (dvc repro)") from None
    n_dims, shape = dataset.info.n_dims, dataset.shape(case)
    if stored.shape[:n_dims] != shape:
        raise UserError(f"{path}: shape {stored.shape}, expected the case's {shape}; predict again")
    check_values(path, stored, is_mask=False, advice="the model diverged: train again with smaller learning rates")
    components = stored.shape[n_dims:] if path.suffix == ".tif" else stored.shape[4:]
    return stored.reshape(shape + components, order="A")


def _open(path: Path) -> npt.NDArray[Any]:
    if path.suffix == ".tif":
        import tifffile

        return np.asarray(tifffile.memmap(path, mode="r"))
    import nibabel

    return np.asanyarray(nibabel.Nifti1Image.from_filename(path, mmap="r").dataobj)
