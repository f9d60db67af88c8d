"""Local registration of a CT to an MR around one location, and the CT that follows (spec: evaluation, cermep).

Where no aligned ground truth exists, one is made around each of many locations: there a registration can be good, even
if none is everywhere. It knows nothing of any model, so that what it found is kept in plain files for all of them.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.config import Count, NonNegative, Positive, Strict
from equisynth.datasets.prepared import PreparedDataset
from equisynth.files import hash_json
from equisynth.preprocessing import elastix, resampling
from equisynth.preprocessing.elastix import Arrays, FloatArray, Mask, Matrix, ParameterMap, RegistrationFailed
from equisynth.preprocessing.registration import BSplineStep, RigidStep, Samples, bspline_map, rigid_map
from equisynth.work import remembered

FIXED_SCHEDULE = ((8, 8, 8), (4, 4, 4), (1, 1, 1))
MOVING_SCHEDULE = ((8, 8, 2), (4, 4, 1), (1, 1, 1))  # CT's slices are thick
BINS = "64"
RIGID_FROM, RIGID_TO = 280.0, 320.0
"""CT values between which tissue becomes bone, which does not bend."""
CERTAIN = 1 - 1e-5
"""A warped mask above this has read valid voxels alone."""
FAILURE = "failure"


class ElasticStep(Strict):
    """B-splines by mutual information, bending energy and, in bone, rigidity (Staring et al. 2007). As published."""

    iterations: Count = 500  # per resolution, of three
    samples: Samples = 10000  # within the ball
    step_size_samples: Samples | None = None  # from which elastix estimates its step size; null: its own choice
    grid_spacing: Positive = 5.0  # of the finest control points; mm
    bending_weight: NonNegative = 20.0  # of the bending energy
    rigidity_weight: NonNegative = 1.0  # of the rigidity penalty in bone
    linearity_weight: NonNegative = 100.0  # of its part for affinity
    orthonormality_weight: NonNegative = 1.0  # of its part for orthonormality
    properness_weight: NonNegative = 10.0  # of its part for properness


class LocalRegistration(Strict):
    """Both steps and the balls that they see, radii in mm. Defaults: as published."""

    rigid: RigidStep = RigidStep()  # first step
    elastic: ElasticStep = ElasticStep()  # second step: B-splines that keep bone rigid
    radius_mm: Positive = 100.0  # of the ball in the MR
    label_radius_mm: Positive = 110.0  # of the ball in the CT, whose surrounding box is looked at
    threads: Count = 1  # the order of sums depends on it, and so do the last bits of a transformation


@dataclass(frozen=True)
class Surroundings:
    """What lies around a location, cut out of a case.

    Attributes:
        box: of the ball in the MR's grid.
        affine: index in the box to mm.
        ball: (*P), 1 inside the ball where the MR is valid.
        image: (*P).
        label: (*Q) CT on its own grid, with its own ``label_affine``.
        label_body, label_valid: (*Q).
    """

    box: tuple[slice, ...]
    affine: Matrix
    ball: Mask
    image: FloatArray
    label: FloatArray
    label_affine: Matrix
    label_body: Mask
    label_valid: Mask


@dataclass(frozen=True)
class WarpedLabel:
    """The CT on the grid of a box (*P) of the MR, its body mask, and where it is valid."""

    values: FloatArray
    body: Mask
    valid: Mask


def surroundings(
    dataset: PreparedDataset, case: str, location: Sequence[int], settings: LocalRegistration
) -> Surroundings:
    """Reads what lies around a location, and no more.

    Args:
        location: voxel of the input's grid.

    Raises:
        RegistrationFailed: the CT does not reach there.
    """
    affine, label_affine = dataset.affine(case), dataset.native_affine(case)
    shape = dataset.shape(case)
    box = ball_box(affine, location, settings.radius_mm, shape)
    ball = squared_distance(affine, location, box) <= settings.radius_mm**2
    invalid = dataset.region(case, "input_invalid_region")
    if invalid is not None:
        ball &= invalid[box] == 0

    label, body = dataset.image(case, "label_native"), dataset.region(case, "label_native_body")
    there = np.linalg.inv(label_affine) @ affine @ [*location, 1.0]
    label_box = ball_box(label_affine, there[:-1].tolist(), settings.label_radius_mm, label.shape)
    cut = np.asarray(label[label_box], np.float32)
    if cut.size == 0:
        raise RegistrationFailed("the label does not reach there")
    cut_affine = shifted(label_affine, label_box)
    valid = np.ones(cut.shape, np.uint8)
    label_invalid = dataset.region(case, "label_invalid_region")
    if label_invalid is not None:  # on the input's grid
        on_grid = resampling.to_grid(np.asarray(label_invalid, np.float32), affine, cut.shape, cut_affine, order=0)
        valid[on_grid > 0.5] = 0
    return Surroundings(
        box=box,
        affine=shifted(affine, box),
        ball=ball.astype(np.uint8),
        image=np.asarray(dataset.image(case, "input")[box], np.float32),
        label=cut,
        label_affine=cut_affine,
        label_body=np.ones(cut.shape, np.uint8) if body is None else np.asarray(body[label_box], np.uint8),
        label_valid=valid,
    )


def found_transformation(
    around: Surroundings, settings: LocalRegistration, background: float, cache: Path, name: str
) -> Arrays:
    """The transformation around a location, from the cache or found now; a failure is kept as one (`FAILURE`).

    The file's name holds a hash of all that the registration sees: whatever changes, nothing wrong is ever read.

    Args:
        background: value of air.
        name: of the location, before the hash.
    """
    maps = parameter_maps(settings, background)
    seen = (around.image, around.ball, around.affine, around.label, around.label_valid, around.label_affine)
    key = hash_json([[_digest(array) for array in seen], maps, settings.threads, version("itk-elastix")])

    def find() -> Arrays:
        try:
            return register_around(around, maps, settings.threads)
        except RegistrationFailed as error:
            return {FAILURE: np.array(str(error))}

    return remembered(cache)(f"{name}-{key}", find)


def register_around(around: Surroundings, maps: Sequence[ParameterMap], threads: int = 1) -> Arrays:
    """Registers the CT to the MR within the ball; the transformation as plain arrays.

    Raises:
        RegistrationFailed: elastix fails.
    """
    import itk

    rigidity = np.clip((around.label - RIGID_FROM) / (RIGID_TO - RIGID_FROM), 0, 1).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rigidity.mha")  # elastix takes it from a file alone
        itk.imwrite(elastix.to_image(rigidity, around.label_affine), path)
        *before, last = maps
        if "TransformRigidityPenalty" in last["Metric"]:
            last = last | {"MovingRigidityImageName": (path,)}
        found = elastix.register(
            around.image, around.affine, around.label, around.label_affine, [*before, last],
            fixed_mask=around.ball, moving_mask=around.label_valid, threads=threads,
        )  # fmt: skip
    return elastix.to_arrays(found.GetTransformParameterObject())


def warped_label(around: Surroundings, transformation: Arrays, background: float) -> WarpedLabel:
    """The CT and its masks where the transformation takes them; cubic for values, linear for masks.

    Raises:
        RegistrationFailed: transformix fails.
    """

    def warp(values: npt.NDArray[Any], order: int, outside: float) -> FloatArray:
        parameters = elastix.from_arrays(transformation)
        image = np.asarray(values, np.float32)
        return elastix.to_array(elastix.transform(parameters, image, around.label_affine, order, outside).GetOutput())

    return WarpedLabel(
        values=warp(around.label, 3, background),
        body=(warp(around.label_body, 1, 0.0) > 0.5).astype(np.uint8),
        valid=(warp(around.label_valid, 1, 0.0) > CERTAIN).astype(np.uint8),
    )


def parameter_maps(settings: LocalRegistration, background: float) -> list[ParameterMap]:
    """The published steps; nothing in them says where files lie."""
    rigid = rigid_map(settings.rigid, FIXED_SCHEDULE, MOVING_SCHEDULE) | {
        "AutomaticTransformInitialization": ("false",),
        "NumberOfHistogramBins": (BINS,),
        "DefaultPixelValue": (str(background),),
        "WriteResultImage": ("false",),
    }
    step = settings.elastic
    shared = step.model_dump(include={"iterations", "samples", "step_size_samples", "grid_spacing", "bending_weight"})
    elastic = bspline_map(BSplineStep(**shared), FIXED_SCHEDULE, MOVING_SCHEDULE, background) | {
        "NumberOfHistogramBins": (BINS,),
        "UseRandomSampleRegion": ("false",),
        "WriteResultImage": ("false",),
    }
    del elastic["SampleRegionSize"], rigid["AutomaticTransformInitializationMethod"]
    if step.rigidity_weight > 0:
        elastic |= elastix.strings(
            {
                "Metric": (*elastic["Metric"], "TransformRigidityPenalty"),
                "Metric2Weight": step.rigidity_weight,
                "LinearityConditionWeight": step.linearity_weight,
                "OrthonormalityConditionWeight": step.orthonormality_weight,
                "PropernessConditionWeight": step.properness_weight,
            }
        )
    return [rigid, elastic]


# --- balls


def ball_box(affine: Matrix, centre: Sequence[float], radius: float, shape: Sequence[int]) -> tuple[slice, ...]:
    """The part of a grid of ``shape`` that holds a ball, of ``radius`` in world units around a voxel position."""
    columns = np.asarray(affine)[:-1, :-1]
    reach = radius * np.sqrt(np.diag(np.linalg.inv(columns.T @ columns)))  # in voxels along each axis
    limits = [(max(int(np.ceil(c - r)), 0), min(int(np.floor(c + r)) + 1, size))
              for c, r, size in zip(centre, reach, shape, strict=True)]  # fmt: skip
    return tuple(slice(first, max(last, first)) for first, last in limits)


def squared_distance(affine: Matrix, centre: Sequence[float], box: tuple[slice, ...]) -> npt.NDArray[np.float64]:
    """Squared distance in world units of each voxel of a box to a voxel position, (*P)."""
    columns = np.asarray(affine, np.float64)[:-1, :-1]
    gram = columns.T @ columns
    offsets = [offset - c for offset, c in zip(np.ogrid[box], centre, strict=True)]
    axes = range(len(offsets))
    return np.asarray(sum(gram[i, j] * offsets[i] * offsets[j] for i in axes for j in axes))


def shifted(affine: Matrix, box: tuple[slice, ...]) -> Matrix:
    """The affine of an image cut to a box."""
    result = np.array(affine, np.float64)
    result[:-1, -1] += result[:-1, :-1] @ [part.start for part in box]
    return result


def _digest(array: npt.NDArray[Any]) -> str:
    contiguous = np.ascontiguousarray(array)
    return f"{contiguous.dtype}{contiguous.shape}{hashlib.sha256(contiguous.data).hexdigest()}"
