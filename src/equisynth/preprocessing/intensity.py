"""Intensities that mean the same in every scan: white matter becomes 1; optionally without the bias field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from equisynth.errors import UserError

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]

LARGE = 100
"""Voxels along the shortest axis from which on a scan's scale is first found at half its resolution."""
_NO_BODY = "no body found in the scan; check that it is an MRI scan of a head"


def white_matter_membership(t1: FloatArray, brain_mask: Mask) -> FloatArray:
    """How much each voxel (*S) is white matter: the brightest of three fuzzy c-means classes of T1 within the brain.

    Reinhold et al., *Evaluating the impact of intensity normalization on MR image synthesis*, SPIE 2019.

    Raises:
        UserError: the clustering fails (an empty mask, a constant image).
    """
    from intensity_normalization.adapters.images import NumpyImageAdapter
    from intensity_normalization.domain.exceptions import NormalizationError
    from intensity_normalization.normalizers.individual.fcm import FCMNormalizer

    normaliser = FCMNormalizer()
    try:
        with _global_random_state(0):  # the clustering starts from numpy's global state
            normaliser.fit(NumpyImageAdapter(t1), NumpyImageAdapter(brain_mask.astype(np.float32)))
    except NormalizationError as error:
        raise UserError(f"no white matter found in the T1 scan ({error}); check that it shows a brain") from None
    assert normaliser.tissue_membership is not None
    membership: FloatArray = normaliser.tissue_membership.astype(np.float32)
    return membership


def white_matter_mean(values: FloatArray, membership: FloatArray) -> float:
    """Mean of values (*S) weighted by the membership (*S) found on T1: what to divide by.

    Raises:
        UserError: it is not positive.
    """
    mean = float(np.average(values, weights=membership))
    if not mean > 0:
        raise UserError(f"the mean of white matter is {mean:.3g}, expected above 0; check the scan's values")
    return mean


def body_quantiles(normalised: FloatArray, body_mask: Mask) -> list[float]:
    """Landmarks of a normalised image within its body: quantiles 10, 30, 50, 70, 90 %."""
    return [float(q) for q in np.quantile(normalised[body_mask > 0], (0.1, 0.3, 0.5, 0.7, 0.9))]


def white_matter_mean_without_t1(values: FloatArray, reference: list[float], closing: int = 8) -> tuple[float, Mask]:
    """What to divide a scan (*S) by so that its `body_quantiles` come closest to a training set's, and its body mask.

    For scans that come without a T1: scale and body mask are found in turns, since the mask's threshold is relative to
    white matter; of large scans first on every second voxel of each axis.
    """
    from equisynth.preprocessing.body_mask import body_mask

    target = np.log(np.asarray(reference))
    positive = values[values > 0]  # some scans are filled up with zeros
    if not positive.size:
        raise UserError(_NO_BODY)
    scale = float(np.percentile(positive, 90))
    stages = [(values, closing, 1e-3)]
    if min(values.shape) >= LARGE:
        half = values[(slice(None, None, 2),) * values.ndim]
        stages = [(half, (closing + 1) // 2, 1e-3), (values, closing, 1e-2)]
    for image, radius, smallest_step in stages:
        for _ in range(12):
            normalised = image / np.float32(scale)
            mask = body_mask(normalised, closing=radius)
            if not mask.any():
                raise UserError(_NO_BODY)
            found = np.maximum(body_quantiles(normalised, mask), 1e-6)
            step = float(np.exp(np.median(np.log(found) - target)))
            scale *= step
            if abs(step - 1) < smallest_step:
                break
    return scale, mask


def without_bias_field(
    values: FloatArray, mask: Mask, iterations: tuple[int, ...] = (400, 300, 200, 100)
) -> FloatArray:
    """N4 bias field correction (Tustison et al., IEEE TMI 2010) of values (*S) within a mask (*S).

    Tolerance 1e-7 and the default iterations per level are the published ones; the field is found at half resolution.
    """
    import SimpleITK as sitk

    scan = sitk.GetImageFromArray(values.astype(np.float32))
    inside = sitk.GetImageFromArray(mask.astype(np.uint8))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(list(iterations))
    n4.SetConvergenceThreshold(1e-7)
    n4.SetNumberOfThreads(1)  # the order of sums, and so the last bits, depend on it
    n4.Execute(sitk.Shrink(scan, [2] * values.ndim), sitk.Shrink(inside, [2] * values.ndim))
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(scan))
    corrected: FloatArray = (values / np.exp(field)).astype(np.float32)
    return corrected


@contextmanager
def _global_random_state(seed: int) -> Iterator[None]:
    """Numpy's global random state set to a seed and put back afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
