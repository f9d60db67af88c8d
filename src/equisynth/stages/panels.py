"""Part of stage ``report``: reports/panels/<experiment>/panels.json and the pictures that it names.

The page of all experiments is made from these: for each chosen test case, and each slice or picture of it, the input,
the label as trained on, the label that is taken for true, prediction, error, checkerboard and known deformation. What
is shown of a case, and how bright, follows from the dataset alone, so that models stand side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.compare import case_values
from equisynth.config import Settings
from equisynth.datasets.intensity import valid_mask
from equisynth.datasets.prepared import PreparedDataset
from equisynth.evaluation.names import ABSOLUTE_ERRORS
from equisynth.files import atomic_folder, sha256, write_json
from equisynth.orientation import sizes_to_ras, to_ras
from equisynth.panels import (
    ERROR_COLOURS,
    ERROR_HIDDEN,
    Array,
    FloatArray,
    Picture,
    Place,
    Read,
    View,
    Window,
    checkerboard,
    cut,
    error_limit,
    error_map,
    field_to_ras,
    grid_over,
    middle_of,
    most_detailed,
    part,
    shown,
    slices,
    thinned,
    to_webp,
    whole,
    window_of,
)
from equisynth.predictions import read_prediction

SPLIT = "test"
FIRST = 2
"""Cases of the split that are drawn of every model; display ranges follow from them."""
REFERENCES = ("label_aligned", "label_registered", "label")
"""What a prediction is compared with: the first of these that a case has."""


@dataclass(frozen=True)
class Case:
    """What is known of one case; volumes are seen with their axes to the right, the front and up.

    Attributes:
        dataset: that it is of.
        name: of the case.
    """

    dataset: PreparedDataset
    name: str

    @property
    def orientation(self) -> str | None:
        """Where the axes of a volume point, as its preparation says; None: a picture."""
        info = self.dataset.info
        return str(info.preparation.get("orientation", "RAS")) if info.n_dims == 3 else None

    @property
    def shape(self) -> tuple[int, ...]:
        """(*S)."""
        shape = self.dataset.shape(self.name)
        return shape if self.orientation is None else tuple(int(n) for n in sizes_to_ras(shape, self.orientation))

    @property
    def voxel_size(self) -> tuple[float, ...]:
        """One per axis."""
        sizes = self.dataset.info.voxel_size
        return sizes if self.orientation is None else sizes_to_ras(sizes, self.orientation)

    @property
    def reference(self) -> str:
        """The label that a prediction is compared with."""
        return next(role for role in REFERENCES if self.dataset.has(self.name, role))

    def image(self, role: str) -> Array:
        """(*S) or (*S, C); nothing is read before it is indexed."""
        return self.turned(self.dataset.image(self.name, role))

    def mask(self, role: str) -> Array | None:
        """Where an image is valid, or the ``evaluation`` counts, (*S); None: everywhere."""
        mask = self.dataset.mask(self.name, role)
        return None if mask is None else self.turned(mask)

    def deformation(self) -> tuple[Read, ...] | None:
        """The displacement in voxels that made ``label`` from ``label_aligned``, per axis, where it is known."""
        if not self.dataset.has(self.name, "deformation"):
            return None
        field = self.dataset.deformation(self.name)
        if self.orientation is not None:
            return field_to_ras(field, self.orientation)
        return tuple(component.__getitem__ for component in field)

    def turned(self, values: Array) -> Array:
        """An image of this case, such as a prediction, seen likewise."""
        return values if self.orientation is None else to_ras(values, self.orientation)

    def valid(self, roles: tuple[str, ...], place: Place) -> npt.NDArray[np.bool_]:
        """Where images, and the ``evaluation``, count in part of the case: two axes."""
        sides = zip(self.shape, place, strict=True)
        valid = np.ones([len(range(side)[where]) for side, where in sides if isinstance(where, slice)], bool)
        for role in roles:
            mask, values = self.mask(role), None if role == "evaluation" else self.image(role)[place]
            own = valid_mask(None if mask is None else mask[place], values, 2, self.dataset.info.invalid_at_or_below)
            valid = valid if own is None else valid & own
        return valid


@dataclass(frozen=True)
class Ranges:
    """What is drawn black and white of a dataset's inputs and labels, and where the error's colours end."""

    input: Window
    label: Window
    error: float


def write(
    settings: Settings,
    dataset: PreparedDataset,
    predictions: Path,
    details: Mapping[str, Any],
    folder: Path,
    beside: Sequence[Path] = (),
) -> None:
    """Draws the first cases of the test split, and the best and worst of this model.

    Args:
        predictions: holds ``<split>/<case>.nii`` (or .tif).
        details: of the model's evaluation, ``reports/evaluation/<experiment>.json``.
        folder: that is written.
        beside: files that the page shows beside these pictures; their hashes are kept, so that the page, which depends
            on panels alone, is made again when one of them changes.
    """
    info, names = dataset.info, dataset.cases(SPLIT)
    ranges = display_ranges([Case(dataset, name) for name in names[:FIRST]])
    measured = case_values(details, SPLIT)
    measure, chosen = choose(names, measured)
    with atomic_folder(folder) as temporary:
        cases = []
        for name, reasons in chosen.items():
            case = Case(dataset, name)
            prediction = case.turned(read_prediction(dataset, predictions, SPLIT, name))
            planes = []
            for view in case_views(case):
                pictures = draw(case, view, settings.label_role, prediction, ranges)
                files = {key: f"{name}-{view.name}-{key}.webp" for key in pictures}
                for key, picture in pictures.items():
                    exact = picture.ndim == 2 or key == "error"  # a colour there is a number
                    (temporary / files[key]).write_bytes(to_webp(picture, lossless=exact))
                height, width = pictures["input"].shape[:2]
                planes.append({"plane": view.name, "index": view.index, "size": [width, height], "images": files})
            cases.append(
                {
                    "case": name,
                    "split": SPLIT,
                    "chosen": reasons,
                    "measures": measures_of(name, measured, measure),
                    "reference": case.reference,
                    "checkerboard_with": _beside(case.reference),
                    "planes": planes,
                }
            )
        content = {
            "experiment": settings.experiment,
            "dataset": settings.dataset,
            "method": settings.method,
            "scale": settings.scale,
            "trains_on_label": settings.trains_on_label,
            "n_dims": info.n_dims,
            "input": info.input.modality,
            "label": info.label.modality,
            "unit": info.label.unit,
            "display_range": {"input": list(ranges.input), "label": list(ranges.label)},
            "error_range": [0.0, ranges.error],
            "error_colours": list(ERROR_COLOURS),
            "error_hidden": ERROR_HIDDEN,
            "chosen_by": measure,
            "cases": cases,
            "beside": {path.as_posix(): sha256(path) for path in beside},
        }
        write_json(temporary / "panels.json", content)


# --- which cases


def choose(
    names: Sequence[str], measured: Mapping[str, Mapping[str, float]]
) -> tuple[str | None, dict[str, list[str]]]:
    """The measure, and the cases with the reasons why they are drawn: ``first``, ``best``, ``worst``.

    Without two cases that were measured there is neither best nor worst.

    Args:
        measured: measure -> case -> value.
    """
    chosen: dict[str, list[str]] = {name: ["first"] for name in names[:FIRST]}
    measure = next((key for key in ABSOLUTE_ERRORS if key in measured), None)
    values = measured[measure] if measure else {}
    ranked = sorted((values[name], name) for name in names if name in values)
    if len(ranked) > 1:
        for (_, name), reason in ((ranked[0], "best"), (ranked[-1], "worst")):
            chosen.setdefault(name, []).append(reason)
    return measure, chosen


def measures_of(name: str, measured: Mapping[str, Mapping[str, float]], first: str | None) -> dict[str, float]:
    """All measures of one case, the one that cases are chosen by before the others."""
    keys = sorted((key for key in measured if name in measured[key]), key=lambda key: key != first)
    return {key: measured[key][name] for key in keys}


# --- which slices, how bright


def case_views(case: Case) -> list[View]:
    """Of a volume the slices through the middle of the evaluation mask; a picture whole, a large one also in part."""
    if case.orientation is not None:
        return slices(case.shape, case.voxel_size, middle_of(case.mask("evaluation"), case.shape))
    sides = (case.shape[0], case.shape[1]), (case.voxel_size[0], case.voxel_size[1])
    view, reference = whole(*sides), case.reference
    if view.step == 1:
        return [view]

    def moments(place: Place) -> FloatArray:
        values = np.asarray(case.image(reference)[place], np.float32)
        values = values.mean(axis=-1) if values.ndim == 3 else values
        valid = case.valid(("input", reference), place)
        return np.stack([values * valid, values**2 * valid, valid], axis=-1).astype(np.float32)

    start = most_detailed(thinned(moments, sides[0], view.step), view.step, sides[0])
    return [view, part(start, *sides)]


def display_ranges(cases: Sequence[Case]) -> Ranges:
    """From what is drawn of some cases; pictures in 8-bit colours as they are."""
    info = cases[0].dataset.info

    def window(channels: int, role: str | None) -> Window:
        if channels == 3 and cases[0].dataset.is_8_bit(cases[0].name):
            return 0.0, 255.0
        return window_of(
            [cut(case.image(role or case.reference).__getitem__, view) for case in cases for view in case_views(case)]
        )

    label = window(info.label.channels, None)
    return Ranges(window(info.input.channels, "input"), label, error_limit(label))


# --- pictures


def draw(case: Case, view: View, label_role: str, prediction: Array, ranges: Ranges) -> dict[str, Picture]:
    """All pictures of one view by name: (H, W) or (H, W, 3), of one size, but for a small ``deformation``.

    ``aligned``, ``registered`` and ``deformation`` are there where the case has such an image.

    Args:
        prediction: (*S) or (*S, C), turned as the case is.
    """
    reference = case.reference

    def picture(role: str) -> Picture:
        return shown(cut(case.image(role).__getitem__, view), ranges.input if role == "input" else ranges.label)

    def error(place: Place) -> FloatArray:
        """Absolute error where valid, and where that is, (*P, 2)."""
        difference = np.abs(np.asarray(prediction[place], np.float32) - case.image(reference)[place])
        difference = difference.mean(axis=-1) if difference.ndim == 3 else difference
        valid = case.valid(("input", reference, "evaluation"), place)
        return np.stack([difference * valid, valid], axis=-1).astype(np.float32)

    pictures = {"input": picture("input"), "label": picture(label_role)}
    if reference == "label_aligned":
        pictures["aligned"] = picture(reference)
    elif reference == "label_registered" != label_role:
        pictures["registered"] = picture(reference)
    pictures["prediction"] = shown(cut(prediction.__getitem__, view), ranges.label)
    pictures["error"] = error_map(cut(error, view), ranges.error)
    pictures["checkerboard"] = checkerboard(pictures["prediction"], picture(_beside(reference)))
    field = case.deformation()
    if field is not None:
        pictures["deformation"] = grid_over(picture("label"), in_plane(field, view))
    return pictures


def in_plane(field: tuple[Read, ...], view: View) -> FloatArray:
    """A displacement in voxels, read per axis, as a view shows it: (2, H, W), drawn pixels along rows and columns."""
    first, second = (cut(field[axis], view) for axis in view.axes)
    drawn, read = first.shape, view.shape
    if view.across is None:  # rows and columns as they are
        return np.stack([first * (drawn[0] / read[0]), second * (drawn[1] / read[1])])
    return np.stack([-second * (drawn[0] / read[1]), first * (drawn[1] / read[0])])


def _beside(reference: str) -> str:
    """What shares a checkerboard with the prediction: the aligned label where it is known, else the input."""
    return reference if reference == "label_aligned" else "input"
