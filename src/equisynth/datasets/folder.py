"""A user's own pairs of images to prepared cases: one grid, comparable values, nothing drawn.

Volumes are put on one grid by what their headers say of the scanner's coordinates; pictures of a pair must share their
pixels. Where the files lie: `own_cases`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from equisynth.config import Data, Strict
from equisynth.datasets.archives import CaseSkipped
from equisynth.datasets.own_cases import IMAGES, MASKS, FolderCases, FolderSource, locate
from equisynth.datasets.prepared_files import LONGEST_SIDE
from equisynth.datasets.raw_images import RawImage, field_of_view, on_grid_of
from equisynth.datasets.raw_scan import ModelGrid, PreparedInput, Scan
from equisynth.datasets.splits import SplitFractions, Splits
from equisynth.errors import UserError
from equisynth.preprocessing import resampling

__all__ = [
    "FolderCases", "FolderPreparation", "FolderSource", "constants", "locate", "prepare_case", "prepare_input",
]  # fmt: skip

ORIENTATION = "RAS"
"""Of prepared volumes: first axis to the right, second to the front, third up."""
GEOMETRY_TOLERANCE = 0.01  # of a pixel's size

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
Percent = Annotated[float, Field(ge=0, le=100)]


class Percentiles(Strict):
    """These percentiles of an image's foreground become 0 and 1; the foreground is what exceeds its lowest value.

    Attributes:
        percentiles: of the foreground (what exceeds the lowest value): they become 0 and 1.
    """

    percentiles: tuple[Percent, Percent] = (0.5, 99.5)

    @model_validator(mode="after")
    def _in_order(self) -> Percentiles:
        if self.percentiles[0] >= self.percentiles[1]:
            raise ValueError(f"percentiles are {list(self.percentiles)}, expected [lower, upper] with lower < upper")
        return self


class Limits(Strict):
    """These values become 0 and 1 in every image."""

    low: float  # becomes 0
    high: float  # becomes 1

    @model_validator(mode="after")
    def _in_order(self) -> Limits:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}, high is {self.high}, expected low < high")
        return self


Scaling = Percentiles | Limits | None
"""How values become comparable between cases; what lies beyond 0 and 1 is clipped. None: values are kept."""


class FolderPreparation(Strict):
    """``datasets.<dataset>.preparation`` of own data."""

    input: Scaling = Percentiles()  # how the input's values are scaled; null: kept
    label: Scaling = Percentiles()  # how the label's values are scaled; null: kept
    splits: Splits = SplitFractions(validate=0.15, test=0.15)  # shares, or lists of cases


# --- one case


def prepare_case(
    raw: Mapping[str, RawImage], case: str, preparation: FolderPreparation, data: Data
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """All arrays of one prepared case, and facts about it.

    Args:
        raw: role -> image, as `FolderCases.read` gives them.
        case: its name; nothing is drawn from it.
        preparation: how values are scaled.
        data: what the prepared images are to be; volumes are turned to `ORIENTATION` and resampled to its voxel size.

    Returns:
        Role -> array: ``input``, ``label`` and, where given, ``label_aligned`` (*S) or (*S, C), float32 (uint8 where
        8-bit values are kept); masks (*S) uint8 where an image is not valid everywhere. And JSON-like facts: ``affine``
        (4, 4) of the prepared grid, ``intensity`` (the values of input and label that became 0 and 1, or null),
        ``valid_ratio`` of the label, ``notes``.

    Raises:
        CaseSkipped: an image does not fit ``data`` or its partner; the reason names the file.
    """
    _check_kinds(raw, data)
    bring = _volumes_on_grid if data.n_dims == 3 else _pictures_on_grid
    images, masks, affine = bring(raw, data)
    intensity: dict[str, list[float] | None] = {}
    for side in ("input", "label"):
        # Of the input the whole image counts: a raw scan that comes for a prediction has no mask.
        seen = masks.get("label_mask") if side == "label" else None
        found = limits(images[side], seen, getattr(preparation, side))
        if found is not None and found[0] >= found[1]:
            raise CaseSkipped(f"{raw[side].path}: its foreground has one value only ({found[0]:g})")
        intensity[side] = None if found is None else list(found)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for role, values in images.items():
        side = "input" if role == "input" else "label"  # an aligned label is the label's modality: one scale for both
        arrays[role] = _scaled(values, intensity[side])
        valid = masks.get(f"{role}_mask")
        if valid is not None:
            arrays[role][valid == 0] = (data.input if role == "input" else data.label).background
    arrays |= {role: mask for role, mask in masks.items() if not mask.all()}
    valid = arrays.get("label_mask")
    facts = {
        "affine": affine.tolist(),
        "intensity": intensity,
        "valid_ratio": 1.0 if valid is None else float(valid.mean()),
        "notes": [note for image in raw.values() for note in image.notes],
    }
    return arrays, facts


def limits(values: npt.NDArray[Any], valid: Mask | None, scaling: Scaling) -> tuple[float, float] | None:
    """The values of an image (*S) or (*S, C) that become 0 and 1, within its valid mask (*S); None: values are kept."""
    if scaling is None:
        return None
    if isinstance(scaling, Limits):
        return scaling.low, scaling.high
    inside = values.ravel() if valid is None else values[valid > 0].ravel()
    foreground = inside[inside > inside.min()] if inside.size else inside
    if not foreground.size:
        return 0.0, 0.0
    low, high = np.percentile(foreground, scaling.percentiles)
    return float(low), float(high)


def _scaled(values: npt.NDArray[Any], found: Sequence[float] | None) -> npt.NDArray[Any]:
    """A copy; 8-bit values that are kept stay 8-bit."""
    if found is None:
        return values.astype(np.uint8 if values.dtype == np.uint8 else np.float32)
    low, high = found
    return np.clip((values.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)


def _check_kinds(raw: Mapping[str, RawImage], data: Data) -> None:
    for role, image in raw.items():
        if image.n_dims != data.n_dims:
            raise CaseSkipped(
                f"{image.path}: shape {_times(image.values.shape)} is {image.n_dims}D, data.n_dims says {data.n_dims}"
            )
        if image.is_picture != raw["input"].is_picture:
            raise CaseSkipped(f"{image.path}: expected the format of {raw['input'].path.name}, NIfTI or TIFF for both")
        wanted = 1 if role in MASKS else (data.input if role == "input" else data.label).channels
        if image.channels not in (1, wanted):
            raise CaseSkipped(f"{image.path}: has {image.channels} channels, expected {wanted}")
        if max(image.spatial_shape) > LONGEST_SIDE:
            sides = _times(image.spatial_shape)
            raise CaseSkipped(f"{image.path}: {sides} pixels, expected sides up to {LONGEST_SIDE}; cut it into parts")


def _volumes_on_grid(
    raw: Mapping[str, RawImage], data: Data
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Mask], Matrix]:
    """Images and masks on the input's grid, turned to `ORIENTATION` and resampled; valid within the field of view."""
    first = raw["input"]
    grid = ModelGrid.of(Scan(first.values, np.asarray(first.affine)), ORIENTATION, data.voxel_size)
    images: dict[str, npt.NDArray[Any]] = {"input": grid.forward(first.values)}
    shape, affine = images["input"].shape, grid.affine
    masks = {
        role: (on_grid_of(raw[role], shape, affine, order=0) > 0) & field_of_view(raw[role], shape, affine)
        for role in MASKS
        if role in raw
    }
    for role in ("label", "label_aligned"):
        if role not in raw:
            continue
        images[role] = on_grid_of(raw[role], shape, affine, order=1)
        seen = field_of_view(raw[role], shape, affine)
        if not seen.any():
            raise CaseSkipped(
                f"{raw[role].path}: by its header it lies beside {first.path.name}, no voxel of which it shows"
            )
        masks[f"{role}_mask"] = masks.get(f"{role}_mask", True) & seen
    _check_masks(raw, masks)
    return images, {role: mask.astype(np.uint8) for role, mask in masks.items()}, affine


def _pictures_on_grid(
    raw: Mapping[str, RawImage], data: Data
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Mask], Matrix]:
    """Images and masks of one pixel grid, resampled to the pixel size of ``data``; a single slice loses its third axis.

    The grids must agree: two sizes or resolutions alone do not say how one picture lies on the other.
    """
    first = raw["input"]
    own = resampling.agreed_voxel_size([first.voxel_size[axis] for axis in first.plane], data.voxel_size)
    images: dict[str, npt.NDArray[Any]] = {}
    masks: dict[str, Mask] = {}
    for role, image in raw.items():
        _check_shared_pixels(image, first)
        values = image.values.reshape([image.spatial_shape[axis] for axis in first.plane] + [image.channels])
        wanted = 1 if role in MASKS else (data.input if role == "input" else data.label).channels
        values = np.repeat(values, wanted, axis=-1) if image.channels < wanted else values
        if role in MASKS:
            mask = (values[..., 0] > 0).astype(np.float32)
            masks[role] = (resampling.to_voxel_size(mask, own, data.voxel_size) > 0.5).astype(np.uint8)
        elif own != data.voxel_size:
            channels = np.moveaxis(values, -1, 0)
            values = np.stack([resampling.to_voxel_size(c, own, data.voxel_size) for c in channels], axis=-1)
        if role in IMAGES:
            images[role] = values if wanted > 1 else values[..., 0]
    _check_masks(raw, masks)
    return images, masks, np.diag([*data.voxel_size, 1.0, 1.0])


def _check_shared_pixels(image: RawImage, first: RawImage) -> None:
    if image.spatial_shape != first.spatial_shape:
        raise CaseSkipped(
            f"{image.path}: {_times(image.spatial_shape)} pixels, {first.path.name} has {_times(first.spatial_shape)}; "
            "a pair of pictures must share one pixel grid"
        )
    if image.orientation != first.orientation:
        raise CaseSkipped(f"{image.path}: orientation {image.orientation}, {first.path.name} has {first.orientation}")
    if not np.allclose(image.voxel_size, first.voxel_size, rtol=GEOMETRY_TOLERANCE):
        sizes = (", ".join(f"{size:.4g}" for size in one.voxel_size) for one in (image, first))
        raise CaseSkipped(f"{image.path}: pixels of {next(sizes)} mm, {first.path.name} has {next(sizes)}")


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _check_masks(raw: Mapping[str, RawImage], masks: Mapping[str, npt.NDArray[Any]]) -> None:
    for role, mask in masks.items():
        if not mask.any():
            path = raw[role].path if role in raw else raw[role.removesuffix("_mask")].path
            raise CaseSkipped(f"{path}: no voxel is valid on the grid of {raw['input'].path.name}")


# --- one raw scan, for predictions


def constants(preparation: FolderPreparation, data: Data) -> dict[str, Any]:
    """What `prepare_input` needs, JSON-like."""
    known: dict[str, Any] = {
        "kind": "folder",
        "voxel_size": list(data.voxel_size),
        **preparation.model_dump(mode="json", include={"input", "label"}),
    }
    return known | ({"orientation": ORIENTATION} if data.n_dims == 3 else {})


def prepare_input(scan: Scan, preparation: Mapping[str, Any], **companions: Scan) -> PreparedInput:
    """A raw input, on the model's grid already, with its values scaled as training's inputs, from `constants`.

    Raises:
        UserError: the scan has one value only.
    """
    settings = preparation["input"]
    scaling: Scaling = None
    if settings is not None:
        scaling = (Percentiles if "percentiles" in settings else Limits).model_validate(settings)
    found = limits(scan.values, None, scaling)
    if found is not None and found[0] >= found[1]:
        raise UserError(f"the scan's foreground has one value only ({found[0]:g}); is this the right file?")
    values = _scaled(scan.values, found).astype(np.float32)
    parameters = {} if found is None else {"low": found[0], "high": found[1]}
    return PreparedInput(values, parameters=parameters)
