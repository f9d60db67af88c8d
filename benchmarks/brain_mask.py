"""The offline brain mask on the phantoms' T1 scans, as the datasets are prepared: Dice with the phantoms' true brain.

The truth is what the phantom was made of: grey and white matter and lesions, closed by 6 mm and filled, as the outline
of the average brain is. One line for each dataset; ``--cases 1`` takes the first case only.
"""

from __future__ import annotations

import argparse
import gzip

import nibabel
import numpy as np
from measure import report
from scipy import ndimage

from equisynth.datasets import cermep_phantom, phantom
from equisynth.datasets.head import TISSUES, Subject, head_atlas
from equisynth.datasets.randomness import named_random_state
from equisynth.preprocessing.brain_mask import brain_mask
from equisynth.preprocessing.resampling import voxel_size

BRAIN = ("white", "grey", "deep_grey", "lesion")
CLOSING = 6.0  # mm


def true_brain(subject: Subject, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Where the brain of a phantom is on the grid of a scan, (*shape) bool."""
    weights = np.array([[float(tissue in BRAIN) for tissue in TISSUES]])
    tissue = subject.scan(shape, affine, weights)[0][0] > 0.5
    margin = [int(np.ceil(CLOSING / size)) + 1 for size in voxel_size(affine)]
    padded = np.pad(tissue, [(m, m) for m in margin], mode="edge")
    dilated = ndimage.distance_transform_edt(~padded, sampling=voxel_size(affine)) <= CLOSING
    closed = ndimage.distance_transform_edt(dilated, sampling=voxel_size(affine)) > CLOSING
    filled: np.ndarray = ndimage.binary_fill_holes(closed)
    return filled[tuple(slice(m, m + n) for m, n in zip(margin, shape, strict=True))]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two masks: 1 where they are the same."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, help="of each dataset; by default all")
    count = parser.parse_args().cases
    for dataset, source, module, purpose, role in (
        ("ixi", phantom.PhantomSource(), phantom, "phantom", "T1"),
        ("cermep", cermep_phantom.CermepPhantom(), cermep_phantom, "cermep phantom", "T1w"),
    ):
        atlas = head_atlas(source.voxel_size)
        names = [case for cases in module.case_names(source).values() for case in cases][:count]
        found = []
        for case in names:
            scan = nibabel.Nifti1Image.from_bytes(gzip.decompress(module.make_case(source, case, atlas)[role]))
            values, sizes = scan.get_fdata(dtype=np.float32), voxel_size(scan.affine)
            subject = Subject.draw(atlas, named_random_state(source.seed, purpose, case))
            found.append(dice(brain_mask(values, sizes) > 0, true_brain(subject, values.shape, scan.affine)))
        report(
            "brain_mask",
            lambda values=values, sizes=sizes: brain_mask(values, sizes),
            repeats=3,
            dataset=dataset,
            cases=len(found),
            dice_mean=round(float(np.mean(found)), 3),
            dice_lowest=round(min(found), 3),
        )
