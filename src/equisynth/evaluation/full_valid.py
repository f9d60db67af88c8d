"""Predictions of slides, tile by tile, against a label registered affinely to each tile (spec: evaluation, staining).

Sections before and after staining differ by more than one smooth field would tell, so each tile gets its own affine
map. It follows from input and label alone: what was found is kept in plain files and serves every model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from equisynth.config import Count, Strict
from equisynth.datasets.intensity import valid_mask
from equisynth.datasets.prepared import PreparedDataset
from equisynth.datasets.tiles import patch_starts, window
from equisynth.errors import UserError
from equisynth.evaluation import by_case
from equisynth.evaluation.affine_registration import (
    BINS,
    SHRINK,
    SMOOTHING,
    AffineRegistration,
    affine_map,
    warped,
)
from equisynth.evaluation.aligned import Measures, measure
from equisynth.evaluation.by_case import (
    WHOLE,
    Part,
    Place,
    Prediction,
    Registrations,
    case_arrays,
    measure_cases,
    not_computed,
    place_name,
    register_all,
)
from equisynth.files import hash_json
from equisynth.preprocessing.elastix import RegistrationFailed
from equisynth.work import Arrays, Remember, anew, remembered

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Picture = npt.NDArray[np.uint8]

CERTAIN = 1 - 1e-5
"""A warped mask above this has read valid pixels alone."""
FAILURE = "failure"


class FullValidSettings(Strict):
    """``evaluation.full_valid``. Defaults: as published.

    Attributes:
        tile, stride: in pixels.
        min_input_share: of valid pixels; a tile with less shows no tissue.
    """

    tile: Annotated[int, Field(ge=32)] = 512
    stride: Count = 256
    min_input_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    registration: AffineRegistration = AffineRegistration()  # of the label, affine, to each tile


@dataclass(frozen=True)
class Tile:
    """One tile of a case: pictures (P, P, C) and valid masks (P, P)."""

    input: Picture
    label: Picture
    input_mask: Mask
    label_mask: Mask


def lacking(dataset: PreparedDataset, split: str) -> str | None:
    """Why a split cannot be evaluated so; None: it can."""
    return by_case.lacking(dataset, split, _lacks)


def _lacks(dataset: PreparedDataset, case: str) -> str | None:
    if dataset.info.n_dims != 2 or not dataset.is_8_bit(case) or dataset.image(case, "input").ndim != 3:
        return f"{case} is no colour picture"
    if dataset.has(case, "label_aligned"):
        return f"{case} has an aligned label"
    return None if dataset.has(case, "label") else f"{case} has no label"


# --- tiles


def read_tile(dataset: PreparedDataset, case: str, start: Place, side: int) -> Tile:
    """A tile of the input and the unregistered label."""
    place, n_dims = window(start, (side, side)), dataset.info.n_dims
    pictures = {role: np.asarray(dataset.image(case, role)[place]) for role in ("input", "label")}
    masks = {}
    for role, picture in pictures.items():
        stored = dataset.mask(case, role)
        valid = valid_mask(None if stored is None else stored[place], picture, n_dims, dataset.info.invalid_at_or_below)
        masks[role] = np.ones(picture.shape[:n_dims], np.uint8) if valid is None else valid.astype(np.uint8)
    return Tile(pictures["input"], pictures["label"], masks["input"], masks["label"])


def is_full_valid(tile: Tile, min_input_share: float) -> bool:
    """Whether a tile is measured: enough of the input is valid, and all of the label."""
    return bool(tile.label_mask.all()) and float(tile.input_mask.mean()) >= min_input_share


def full_valid_starts(dataset: PreparedDataset, case: str, settings: FullValidSettings) -> list[Place]:
    """First pixels of a case's tiles that are measured; tiles that stick out are left out."""
    shape, side = dataset.shape(case), settings.tile
    if min(shape) < side:
        return []
    starts: Iterable[Place] = patch_starts(shape, (side, side), (settings.stride, settings.stride), include_last=False)
    mask = dataset.mask(case, "label")
    if mask is not None:  # glass around the tissue: no picture is read there
        starts = (s for s in starts if mask[window(s, (side, side))].all())
    return [s for s in starts if is_full_valid(read_tile(dataset, case, s, side), settings.min_input_share)]


# --- registration


def grey(picture: Picture) -> FloatArray:
    """The mean of the channels / 255, (P, P)."""
    result: FloatArray = picture.mean(axis=-1, dtype=np.float32) / np.float32(255)
    return result


def found_map(tile: Tile, settings: AffineRegistration, cache: Path, name: str) -> npt.NDArray[np.float64]:
    """The affine map of a tile, from the cache or found now.

    Raises:
        RegistrationFailed: it fails, or failed before.
    """
    seen = [hashlib.sha256(np.ascontiguousarray(picture).data).hexdigest() for picture in (tile.input, tile.label)]
    key = hash_json([seen, tile.input.shape, settings.model_dump(mode="json"), SHRINK, SMOOTHING, BINS])

    def find() -> Arrays:
        try:
            return {"affine": affine_map(grey(tile.input), grey(tile.label), settings)}
        except RegistrationFailed as error:
            return {FAILURE: np.array(str(error))}

    found = remembered(cache)(f"{name}-{key}", find)
    if FAILURE in found:
        raise RegistrationFailed(str(found[FAILURE]))
    return found["affine"]


def register(
    dataset: PreparedDataset,
    split: str,
    settings: FullValidSettings,
    cache: Path,
    part: Part = WHOLE,
    jobs: int = 1,
) -> Registrations:
    """Finds the maps of a split's tiles that are not in the cache yet, in parallel processes.

    Args:
        cache: folder of the maps; those of several machines are merged by laying their files into one.
        part: (k, n): of all tiles in their order, the k-th of each n.
        jobs: processes (-1: one per core).

    Raises:
        UserError: there is no such part, or the split has no such pictures.
    """
    reason = lacking(dataset, split)
    if reason is not None:
        raise UserError(f"{dataset.folder}: {reason}; no tiles can be registered")
    find, starts = partial(_found, dataset, settings, cache), partial(full_valid_starts, dataset, settings=settings)
    return register_all(find, dataset, split, starts, part, jobs)


def _found(
    dataset: PreparedDataset, settings: FullValidSettings, cache: Path, case: str, start: Place
) -> tuple[Tile, npt.NDArray[np.float64]]:
    """A tile and its affine map; raises as `found_map` does."""
    tile = read_tile(dataset, case, start, settings.tile)
    return tile, found_map(tile, settings.registration, cache, place_name(case, start))


# --- measures


def evaluate(
    dataset: PreparedDataset,
    split: str,
    prediction: Prediction,
    settings: FullValidSettings,
    cache: Path,
    remember: Remember = anew,
    jobs: int = 1,
) -> dict[str, Any]:
    """Measures a model's predictions per case and pooled over all full-valid tiles of a split.

    Args:
        prediction: case -> (rows, columns, C), raw units; it is sent to other processes.
        cache: folder of the maps; those not there yet are found first.
        remember: may know a case, ``full_valid/<split>/<case>``, from an interrupted run; sent likewise.
        jobs: processes (-1: one per core).

    Returns:
        ``{"split", "tiles", "failures": {tile: reason}, "cases": {case: {mae, mse, psnr, ssim, nmi, tiles}},
        "pooled": {mae, mse, psnr, ssim, nmi}}``; for other images than sections what `not_computed` gives.
    """
    instead = not_computed(dataset, split, _lacks)
    if instead is not None:
        return instead
    register(dataset, split, settings, cache, jobs=jobs)
    measure = partial(measure_case, dataset, settings=settings, cache=cache)
    return measure_cases("full_valid", "tiles", dataset, split, prediction, measure, Measures, remember, jobs)


def measure_case(
    dataset: PreparedDataset, case: str, prediction: npt.NDArray[Any], settings: FullValidSettings, cache: Path
) -> Arrays:
    """All tiles of a case: `case_arrays` of `Measures`."""
    total, failures, count = Measures(), [], 0
    evaluation, side = dataset.mask(case, "evaluation"), settings.tile
    for start in full_valid_starts(dataset, case, settings):
        try:
            tile, affine = _found(dataset, settings, cache, case, start)
        except RegistrationFailed as error:
            failures.append((place_name(case, start), str(error)))
            continue
        place = window(start, (side, side))
        inside = None if evaluation is None else np.asarray(evaluation[place])
        total += measure_tile(tile, affine, np.asarray(prediction[place]), inside, dataset.info.label.signal_range)
        count += 1
    return case_arrays(total, count, failures)


def registered_label(tile: Tile, affine: npt.NDArray[np.float64]) -> FloatArray:
    """The label (P, P, C) after its affine map, linear."""
    return np.stack([warped(channel, affine) for channel in np.moveaxis(tile.label, -1, 0)], axis=-1)


def measure_tile(
    tile: Tile,
    affine: npt.NDArray[np.float64],
    prediction: npt.NDArray[Any],
    evaluation: Mask | None,
    signal_range: float,
) -> Measures:
    """A prediction (P, P, C) against the label after its affine map, where that read valid pixels alone."""
    label = registered_label(tile, affine)
    label_mask = (warped(tile.label_mask, affine) > CERTAIN).astype(np.uint8)
    image = tile.input.astype(np.float32)
    return measure(
        image, prediction.astype(np.float32), label, tile.input_mask, label_mask, evaluation, 2, signal_range
    )
