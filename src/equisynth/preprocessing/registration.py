"""Registration by elastix, arrays in, arrays out (Klein et al., IEEE TMI 2010; Shamonin et al., Front. Neuroinf. 2014).

The parameter maps are the published ones; what a user may change are iterations, samples and a few weights. Results
repeat bit by bit: one fixed seed, one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from equisynth.config import Count, NonNegative, Positive, Strict
from equisynth.preprocessing import elastix
from equisynth.preprocessing.elastix import FloatArray, Mask, Matrix, ParameterMap
from equisynth.preprocessing.elastix import RegistrationFailed as RegistrationFailed

Samples = Annotated[int, Field(ge=100)]
"""Voxels drawn: in each iteration, or to estimate the sizes of steps beforehand (null: elastix's own 100000, which
takes longer than a hundred iterations)."""
Schedule = tuple[tuple[int, ...], ...]
"""Smoothing per resolution (coarse to fine) and image axis, in half voxels."""

OUTSIDE = -1.0
"""Value of what is read from outside of the moving image; no intensity of an MRI scan or photograph is negative."""
_SEED = 121212  # any fixed number


class RigidStep(Strict):
    """Rotation and translation by mutual information. Defaults: as published."""

    iterations: Count = 500  # per resolution, of three
    samples: Samples = 2000  # per iteration
    step_size_samples: Samples | None = None  # from which elastix estimates its step size; null: its own choice


class BSplineStep(Strict):
    """Free-form deformation by mutual information and bending energy. Defaults: as published for ixi and cermep."""

    iterations: Count = 5000  # per resolution, of three
    samples: Samples = 10000  # per iteration
    step_size_samples: Samples | None = None  # from which elastix estimates its step size; null: its own choice
    grid_spacing: Positive = 15.0  # of the finest control points; world units (mm; pixels for photographs)
    sample_region: Positive = 40.0  # side of the cube that an iteration samples; world units
    bending_weight: NonNegative = 50.0  # of the bending energy


class Registration(Strict):
    """Both steps, one after the other."""

    rigid: RigidStep = RigidStep()  # first step
    bspline: BSplineStep = BSplineStep()  # second step


@dataclass(frozen=True)
class Registered:
    """A moving image on the grid (*S) of the fixed image.

    Attributes:
        values: (*S), cubic interpolation; the default value where it would be read from outside of the moving image.
        mask: (*S), 1 where all that was read is valid: inside the moving image and inside its mask.
        displacement: (n, *S) in voxels of the fixed image, where asked for: ``values(p)`` is the moving image at the
            world position of the fixed image's index ``p + displacement(p)``.
    """

    values: FloatArray
    mask: Mask
    displacement: FloatArray | None = None


def register_rigid_then_bspline(
    fixed: FloatArray,
    moving: FloatArray,
    affine: Matrix,
    moving_mask: Mask | None = None,
    settings: Registration | None = None,
    with_displacement: bool = False,
) -> Registered:
    """Re-registration of a deformed label to its input, both on one grid (spec: datasets, ixi step 7).

    What is not valid becomes zero.

    Args:
        fixed: (*S), two or three axes.
        moving: (*S), not negative.
        affine: voxel index to world, (n + 1, n + 1).
        moving_mask: (*S), 1 where the moving image is valid; None: everywhere.
        settings: None: as published.
        with_displacement: whether the displacement field is wanted.

    Raises:
        RegistrationFailed: elastix fails (images without overlap or content).
    """
    settings = settings or Registration()
    schedule = tuple((factor,) * fixed.ndim for factor in (8, 4, 1))
    maps = [rigid_map(settings.rigid, schedule, schedule), bspline_map(settings.bspline, schedule, schedule)]
    found = _register(fixed, affine, moving, affine, moving_mask, maps, with_displacement)
    return replace(found, values=found.values * found.mask)


def register_bspline(
    fixed: FloatArray,
    fixed_affine: Matrix,
    moving: FloatArray,
    moving_affine: Matrix,
    moving_mask: Mask | None = None,
    settings: BSplineStep | None = None,
    moving_schedule: Schedule | None = None,
    outside: float = OUTSIDE,
    with_displacement: bool = False,
) -> Registered:
    """Elastic registration of images on grids of their own (spec: datasets, cermep step 4).

    Args:
        fixed: (*S), two or three axes.
        fixed_affine, moving_affine: voxel index to world, (n + 1, n + 1).
        moving: (*T).
        moving_mask: (*T), 1 where the moving image is valid; None: everywhere.
        settings: None: as published.
        moving_schedule: smoothing of the moving image, where it differs from the fixed image's 8, 4, 1.
        outside: value of what is read from outside of the moving image.
        with_displacement: whether the displacement field is wanted.

    Raises:
        RegistrationFailed: elastix fails (images without overlap or content).
    """
    schedule = tuple((factor,) * fixed.ndim for factor in (8, 4, 1))
    parameters = bspline_map(settings or BSplineStep(), schedule, moving_schedule or schedule, outside)
    return _register(fixed, fixed_affine, moving, moving_affine, moving_mask, [parameters], with_displacement)


# --- parameter maps


def rigid_map(step: RigidStep, fixed_schedule: Schedule, moving_schedule: Schedule) -> ParameterMap:
    """The published rigid step."""
    return elastix.strings(
        {
            **_common(step, fixed_schedule, moving_schedule, outside=0.0),
            "Registration": "MultiResolutionRegistration",
            "Transform": "EulerTransform",
            "Metric": "AdvancedMattesMutualInformation",
            "NumberOfHistogramBins": 64,
            "ImageSampler": "RandomCoordinate",
            "AutomaticScalesEstimation": True,
            "AutomaticTransformInitialization": True,
            "AutomaticTransformInitializationMethod": "GeometricalCenter",
            "MaximumStepLength": 1.0,
        }
    )


def bspline_map(
    step: BSplineStep, fixed_schedule: Schedule, moving_schedule: Schedule, outside: float = OUTSIDE
) -> ParameterMap:
    """The published elastic step."""
    return elastix.strings(
        {
            **_common(step, fixed_schedule, moving_schedule, outside),
            "Registration": "MultiMetricMultiResolutionRegistration",
            "Transform": "BSplineTransform",
            "FinalGridSpacingInPhysicalUnits": step.grid_spacing,
            "GridSpacingSchedule": (4.0, 2.0, 1.0),
            "Metric": ("AdvancedMattesMutualInformation", "TransformBendingEnergyPenalty"),
            "Metric0Weight": 1.0,
            "Metric1Weight": step.bending_weight,
            "NumberOfHistogramBins": 60,
            "ImageSampler": "MultiInputRandomCoordinate",
            "UseRandomSampleRegion": True,
            "SampleRegionSize": step.sample_region,
            "MaximumNumberOfSamplingAttempts": 5,
        }
    )


def _common(
    step: RigidStep | BSplineStep, fixed_schedule: Schedule, moving_schedule: Schedule, outside: float
) -> dict[str, Any]:
    estimation: dict[str, Any] = {}
    if step.step_size_samples is not None:
        estimation = dict.fromkeys(
            ("NumberOfSamplesForExactGradient", "NumberOfJacobianMeasurements"), step.step_size_samples
        )
    return {
        **estimation,
        "FixedInternalImagePixelType": "float",
        "MovingInternalImagePixelType": "float",
        "UseDirectionCosines": True,
        "FixedImagePyramid": "FixedSmoothingImagePyramid",
        "MovingImagePyramid": "MovingSmoothingImagePyramid",
        "NumberOfResolutions": len(fixed_schedule),
        # elastix counts axes the other way round: see _image.
        "FixedImagePyramidSchedule": [factor for level in fixed_schedule for factor in reversed(level)],
        "MovingImagePyramidSchedule": [factor for level in moving_schedule for factor in reversed(level)],
        "Optimizer": "AdaptiveStochasticGradientDescent",
        "MaximumNumberOfIterations": step.iterations,
        "NumberOfSpatialSamples": step.samples,
        "NewSamplesEveryIteration": True,
        "RequiredRatioOfValidSamples": 0.05,
        "ErodeMask": False,  # eroding for the smoothing would leave nothing of a small volume
        "Interpolator": "BSplineInterpolator",
        "BSplineInterpolationOrder": 1,
        "ResampleInterpolator": "FinalBSplineInterpolator",
        "FinalBSplineInterpolationOrder": 3,
        "Resampler": "DefaultResampler",
        "DefaultPixelValue": outside,
        "HowToCombineTransforms": "Compose",
        "RandomSeed": _SEED,
        "WriteResultImage": True,
        "ResultImagePixelType": "float",
    }


# --- elastix


def _register(
    fixed: FloatArray,
    fixed_affine: Matrix,
    moving: FloatArray,
    moving_affine: Matrix,
    moving_mask: Mask | None,
    maps: Sequence[ParameterMap],
    with_displacement: bool,
) -> Registered:
    outside = float(maps[-1]["DefaultPixelValue"][0])
    found = elastix.register(fixed, fixed_affine, moving, moving_affine, maps, moving_mask=moving_mask)
    transform, values = found.GetTransformParameterObject(), elastix.to_array(found.GetOutput())
    inside = np.ones_like(moving) if moving_mask is None else moving_mask.astype(np.float32)
    valid, displacement = _transformed(transform, inside, moving_affine, with_displacement)
    mask = (valid > 1 - 1e-6) & (values != outside)
    if displacement is not None:
        displacement = np.tensordot(np.linalg.inv(fixed_affine[:-1, :-1]), displacement, axes=1).astype(np.float32)
    return Registered(values, mask.astype(np.uint8), displacement)


def _transformed(
    transform: Any, values: FloatArray, affine: Matrix, with_displacement: bool
) -> tuple[FloatArray, FloatArray | None]:
    """An image transformed with linear interpolation, zero outside; and the displacement (n, *S) in world units."""
    result = elastix.transform(transform, values, affine, order=1, outside=0, with_displacement=with_displacement)
    field = np.moveaxis(elastix.to_array(result.GetOutputDeformationField()), -1, 0) if with_displacement else None
    return elastix.to_array(result.GetOutput()), field
