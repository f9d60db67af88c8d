"""One 3D training patch from a prepared (memory-mapped) volume, against the same volume as .nii.gz read by nibabel."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from measure import compare

from equisynth.config import Intensity
from equisynth.datasets.prepared import SPLITS, DatasetInfo, PreparedDataset, write_case, write_info

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[256, 256, 130])
    parser.add_argument("--patch", type=int, default=64)
    arguments = parser.parse_args()
    shape, patch = tuple(arguments.shape), arguments.patch

    with tempfile.TemporaryDirectory() as folder:
        random = np.random.RandomState(0)
        values = random.rand(*shape).astype(np.float32)
        t2, pd = (Intensity(modality=m, signal_range=1.0, unit="none") for m in ("T2", "PD"))
        for case in SPLITS:
            write_case(folder, case, {"input": values, "label": values}, np.eye(4))
        splits = {split: (split,) for split in SPLITS}
        write_info(
            folder,
            DatasetInfo(name="b", n_dims=3, voxel_size=(1.0,) * 3, input=t2, label=pd, licence="none", splits=splits),
        )
        compressed = Path(folder) / "input.nii.gz"
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), compressed)
        dataset = PreparedDataset.open(folder)

        def window() -> tuple[slice, ...]:
            return tuple(slice(start, start + patch) for start in random.randint(np.array(shape) - patch + 1))

        def prepared() -> np.ndarray:
            return np.array(dataset.image("train", "input")[window()])

        def from_archive_format() -> np.ndarray:
            return np.asarray(nibabel.load(compressed).dataobj)[window()]

        compare("patch_reading", prepared, from_archive_format, shape=shape, patch=patch)
