"""Affine registration of two small pictures by mutual information, arrays in, arrays out."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from equisynth.config import Count, Strict
from equisynth.preprocessing.elastix import FloatArray, RegistrationFailed

SHRINK, SMOOTHING = (6, 4, 2, 1), (3.0, 2.0, 1.0, 0.0)
"""Per level, coarse to fine: subsampling, and the Gaussian's standard deviation in pixels."""
BINS = 32


class AffineRegistration(Strict):
    """Affine registration of tiles by mutual information. Defaults: as published.

    Attributes:
        iterations: per level, coarse to fine.
        sampling: share of the pixels.
        seed: of the sampled pixels.
        threads: the order of sums depends on it, and so do the last bits of a map.
    """

    iterations: tuple[Count, Count, Count, Count] = (2100, 1200, 1200, 100)
    sampling: Annotated[float, Field(gt=0, le=1)] = 0.2
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Count = 1


def affine_map(fixed: FloatArray, moving: FloatArray, settings: AffineRegistration) -> npt.NDArray[np.float64]:
    """The affine map (2, 3), in pixels, row and column: ``moving(A p + b)`` lies on ``fixed(p)``.

    Mattes' mutual information of sampled pixels, gradient descent, level by level (the same pixels each time).

    Args:
        fixed, moving: (P, P).

    Raises:
        RegistrationFailed: the images do not overlap, or nothing is on them.
    """
    import SimpleITK as sitk

    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(settings.threads)
    try:
        images = [sitk.GetImageFromArray(np.ascontiguousarray(image, np.float32)) for image in (fixed, moving)]
        transform = sitk.AffineTransform(2)
        transform.SetCenter([(side - 1) / 2 for side in reversed(fixed.shape)])
        for iterations, shrink, smoothing in zip(settings.iterations, SHRINK, SMOOTHING, strict=True):
            method = sitk.ImageRegistrationMethod()
            method.SetMetricAsMattesMutualInformation(BINS)
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(settings.sampling, settings.seed + 1)  # zero would mean the clock
            method.SetInterpolator(sitk.sitkLinear)
            method.SetShrinkFactorsPerLevel([shrink])
            method.SetSmoothingSigmasPerLevel([smoothing])
            method.SetOptimizerAsGradientDescent(
                learningRate=1.0, numberOfIterations=iterations, convergenceMinimumValue=1e-6, convergenceWindowSize=10,
                estimateLearningRate=method.EachIteration, maximumStepSizeInPhysicalUnits=0.25 * shrink,
            )  # fmt: skip
            method.SetOptimizerScalesFromPhysicalShift()
            method.SetInitialTransform(transform, inPlace=True)
            method.Execute(*images)
    except RuntimeError as error:
        raise RegistrationFailed(" ".join(str(error).split())[-200:]) from None
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    matrix = np.reshape(transform.GetMatrix(), (2, 2))
    centre = np.array(transform.GetCenter())
    offset = np.array(transform.GetTranslation()) + centre - matrix @ centre
    # ITK counts axes the other way round.
    return np.concatenate([matrix[::-1, ::-1], offset[::-1, None]], axis=1)


def warped(values: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> FloatArray:
    """Values (P, P) read at ``A p + b``, linear; 0 outside."""
    from scipy import ndimage

    result: FloatArray = ndimage.affine_transform(
        values.astype(np.float32), affine[:, :2], affine[:, 2], order=1, mode="constant", output=np.float32
    )
    return result
