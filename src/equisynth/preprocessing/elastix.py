"""elastix and transformix on arrays, in silence: whatever they write disappears with a temporary folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.errors import UserError

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
ParameterMap = dict[str, tuple[str, ...]]
Arrays = dict[str, npt.NDArray[Any]]
_NUMBERS = "TransformParameters"


class RegistrationFailed(UserError):
    """elastix gave up on this pair of images; the message says why."""


def register(
    fixed: FloatArray,
    fixed_affine: Matrix,
    moving: FloatArray,
    moving_affine: Matrix,
    maps: Sequence[ParameterMap],
    fixed_mask: Mask | None = None,
    moving_mask: Mask | None = None,
    threads: int = 1,
) -> Any:
    """Runs the steps of several parameter maps one after the other; returns itk's filter, which holds what it found.

    Args:
        fixed: (*S), two or three axes.
        moving: (*T).
        fixed_affine, moving_affine: voxel index to world, (n + 1, n + 1).
        fixed_mask, moving_mask: where samples are drawn, and where they may fall; None: everywhere.
        threads: the order of sums depends on it.

    Raises:
        RegistrationFailed: elastix fails (images without overlap or content).
    """
    # The modules of itk's classes, imported by themselves: through `itk.<class>` a process loads three times as much.
    from itk import elxParameterObjectPython, itkElastixRegistrationMethodPython

    method = getattr(itkElastixRegistrationMethodPython, f"itkElastixRegistrationMethodIF{fixed.ndim}IF{fixed.ndim}")
    elastix = method.New()
    parameters = elxParameterObjectPython.elastixParameterObject.New()
    for parameter_map in maps:
        parameters.AddParameterMap(parameter_map)
    elastix.SetParameterObject(parameters)
    elastix.SetFixedImage(to_image(fixed, fixed_affine))
    elastix.SetMovingImage(to_image(moving, moving_affine))
    if fixed_mask is not None:
        elastix.SetFixedMask(to_image(fixed_mask.astype(np.uint8), fixed_affine))
    if moving_mask is not None:
        elastix.SetMovingMask(to_image(moving_mask.astype(np.uint8), moving_affine))
    elastix.SetNumberOfThreads(threads)
    _run(elastix, "registration")
    return elastix


def transform(
    parameters: Any, values: FloatArray, affine: Matrix, order: int, outside: float, with_displacement: bool = False
) -> Any:
    """Reads an image where a found transformation says; returns itk's filter, which holds the result.

    Args:
        parameters: the parameter object of a registration; its last map is changed to ``order`` and ``outside``.
        values: (*T), with ``affine``.
        order: of the interpolating splines.
        outside: value of what is read from outside of the image.
    """
    from itk import itkTransformixFilterPython

    last = parameters.GetNumberOfParameterMaps() - 1
    parameters.SetParameter(last, "FinalBSplineInterpolationOrder", (str(order),))
    parameters.SetParameter(last, "DefaultPixelValue", (str(outside),))
    transformix = getattr(itkTransformixFilterPython, f"itkTransformixFilterIF{values.ndim}").New()
    transformix.SetMovingImage(to_image(values, affine))
    transformix.SetTransformParameterObject(parameters)
    transformix.SetComputeDeformationField(with_displacement)
    _run(transformix, "transformation")
    return transformix


# --- found transformations as plain arrays


def to_arrays(parameters: Any) -> Arrays:
    """A found transformation as arrays to keep: per step its numbers, and its words as JSON."""
    arrays: Arrays = {}
    for step in range(parameters.GetNumberOfParameterMaps()):
        words = {key: list(value) for key, value in dict(parameters.GetParameterMap(step)).items()}
        arrays[f"numbers_{step}"] = np.array([float(word) for word in words.pop(_NUMBERS)], np.float64)
        words["InitialTransformParameterFileName"] = ["NoInitialTransform"]  # the step before comes before
        arrays[f"words_{step}"] = np.array(json.dumps(words, sort_keys=True))
    return arrays


def from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
    """The parameter object that `to_arrays` took apart."""
    from itk import elxParameterObjectPython

    parameters = elxParameterObjectPython.elastixParameterObject.New()
    for step in range(sum(name.startswith("words_") for name in arrays)):
        words = {key: tuple(value) for key, value in json.loads(str(arrays[f"words_{step}"])).items()}
        words[_NUMBERS] = tuple(repr(number) for number in arrays[f"numbers_{step}"].tolist())
        parameters.AddParameterMap(words)
    return parameters


def strings(parameters: Mapping[str, Any]) -> ParameterMap:
    """As elastix wants them: each value a tuple of words."""

    def word(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return {
        key: tuple(word(v) for v in value) if isinstance(value, list | tuple) else (word(value),)
        for key, value in parameters.items()
    }


# --- images


def to_image(values: npt.NDArray[Any], affine: Matrix) -> Any:
    """An itk image of values (*S), whose axes itk counts from the last, at the world positions of the affine."""
    import itk

    columns = np.asarray(affine, dtype=np.float64)[:-1, :-1][:, ::-1]
    spacing = np.linalg.norm(columns, axis=0)
    image = itk.image_from_array(np.ascontiguousarray(values))
    image.SetSpacing([float(size) for size in spacing])
    image.SetOrigin([float(position) for position in np.asarray(affine)[:-1, -1]])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(columns / spacing)))
    return image


def to_array(image: Any) -> FloatArray:
    """The values (*S) of an itk image."""
    import itk

    values: FloatArray = itk.array_from_image(image).astype(np.float32, copy=False)
    return values


def _run(step: Any, what: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        step.LogToConsoleOff()
        step.LogToFileOn()
        step.SetOutputDirectory(folder)
        step.SetLogFileName("elastix.log")
        try:
            step.UpdateLargestPossibleRegion()
        except RuntimeError as error:
            log = Path(folder) / "elastix.log"
            text = log.read_text(errors="replace") if log.is_file() else str(error)
            raise RegistrationFailed(
                f"elastix: {what} failed ({_reason(text)}); check that both images show the same object and overlap"
            ) from None


def _reason(log: str) -> str:
    """The last description of an error in elastix's log, on one line."""
    for mark in ("Description:", "ERROR:", "exception"):
        lines = [line.split(mark, 1)[1].strip() for line in log.splitlines() if mark in line]
        if any(lines):
            return " ".join([line for line in lines if line][-1].split())[:200]
    return " ".join((log.strip().splitlines() or ["no message"])[-1].split())[:200]
