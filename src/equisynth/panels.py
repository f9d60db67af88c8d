"""Pictures that lie side by side on the page of all experiments: arrays in, 8-bit pictures and WebP files out.

Rows of a picture point down. A slice of a volume (RAS) is turned so that the patient's right is on the right and up is
up (a sagittal slice looks to the right), and drawn with square pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.orientation import to_ras, turn

LONGEST_SLICE = 320
"""Pixels of a slice's longest side, at most."""
LONGEST_PICTURE = 512
"""Pixels of a picture's longest side, at most: a larger one is thinned, and shown in part at full resolution."""
DETAIL = 256
"""Pixels a side of that part."""
SQUARES = 8
"""Of a checkerboard, along the longest side."""
GRID_LINES = 16
"""Spaces between the lines of a grid, along the longest side."""
GRID_SIDE = 256
"""A smaller picture is enlarged until its longest side would exceed this, so that lines stay apart from each other."""
GRID_COLOUR = (255, 208, 40)
ERROR_SHARE = 0.25
"""The error's colours end at this share of the label's display range."""
ERROR_COLOURS = (
    "#000004", "#210c4a", "#57106e", "#8a226a", "#bc3754", "#e45a31", "#f98e09", "#f9cb35", "#fcffa4",
)  # fmt: skip
"""Of the error, evenly spaced from zero to the end of its range; between them linear. matplotlib's inferno."""
ERROR_HIDDEN = "#808080"
"""Where there is nothing to compare with."""
QUALITY = 85
"""Of lossy WebP; of lossless WebP the effort."""

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]
"""(H, W) or (H, W, 3)."""
Place = tuple[int | slice, ...]
Read = Callable[[Place], Array]
"""Reads part of an image (*S) or (*S, C)."""
Window = tuple[float, float]
"""The values that are drawn black and white."""


# --- volumes whose axes point anywhere


def field_to_ras(field: Array, orientation: str) -> tuple[Read, ...]:
    """A displacement field (3, *S) in voxels, seen likewise: what reads its component along each turned axis."""

    def component(axis: int, flip: bool) -> Read:
        values = to_ras(field[axis], orientation)
        return lambda place: -values[place] if flip else values[place]

    return tuple(component(axis, flip) for axis, flip in zip(*turn(orientation), strict=True))


# --- what is drawn of an image


@dataclass(frozen=True)
class View:
    """A slice of a volume; or a picture, whole or a part of it.

    Attributes:
        name: axial, coronal, sagittal; picture, detail.
        across: the axis that the slice is across; None: a picture.
        place: what is read of the image, one entry per spatial axis.
        shape: of what is read, two axes.
        pixel: sides of a pixel along them.
        step: pixels that are read, along both axes, for one that is drawn.
    """

    name: str
    across: int | None
    place: Place
    shape: tuple[int, int]
    pixel: tuple[float, float]
    step: int = 1

    @property
    def index(self) -> int | None:
        """Of the slice, counted to the right, the front or up."""
        found = None if self.across is None else self.place[self.across]
        return found if isinstance(found, int) else None

    @property
    def axes(self) -> tuple[int, ...]:
        """Of the image, that the view holds."""
        return tuple(axis for axis in range(len(self.place)) if axis != self.across)


def slices(shape: Sequence[int], voxel_size: Sequence[float], middle: Sequence[int]) -> list[View]:
    """The slices through a voxel of a volume: axial, coronal, sagittal."""
    views = []
    for name, across in (("axial", 2), ("coronal", 1), ("sagittal", 0)):
        place = tuple(middle[axis] if axis == across else slice(None) for axis in range(3))
        first, second = (axis for axis in range(3) if axis != across)
        sides = (shape[first], shape[second]), (voxel_size[first], voxel_size[second])
        views.append(View(name, across, place, *sides))
    return views


def whole(shape: tuple[int, int], pixel: tuple[float, float]) -> View:
    """A picture, thinned until it is at most `LONGEST_PICTURE` long."""
    return View("picture", None, (slice(None), slice(None)), shape, pixel, -(-max(shape) // LONGEST_PICTURE))


def part(start: tuple[int, int], shape: tuple[int, int], pixel: tuple[float, float]) -> View:
    """The part of a picture at full resolution that begins at ``start``, `DETAIL` a side or what there is."""
    sides = (min(DETAIL, shape[0]), min(DETAIL, shape[1]))
    rows, columns = (slice(first, first + side) for first, side in zip(start, sides, strict=True))
    return View("detail", None, (rows, columns), sides, pixel)


def middle_of(mask: Array | None, shape: Sequence[int]) -> tuple[int, ...]:
    """The middle of the box around a mask (*S), of the whole image where that is None or empty."""
    if mask is None or not np.any(mask):
        return tuple(side // 2 for side in shape)
    found = []
    for axis in range(len(shape)):
        inside = np.flatnonzero(np.any(mask, axis=tuple(other for other in range(len(shape)) if other != axis)))
        found.append(int(inside[0] + inside[-1] + 1) // 2)
    return tuple(found)


def most_detailed(moments: FloatArray, step: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Where the part of a picture begins that is the most valid, and of these the one whose values vary most.

    Args:
        moments: (h, w, 3) of a thinned picture: means of value, of its square, and the valid share; zero where invalid.
        step: pixels per pixel of the thinned picture.
        shape: of the whole picture.
    """
    cells = [-(-min(DETAIL, side) // step) for side in shape]
    value, square, valid = (_box_means(moments[..., k].astype(np.float64), cells) for k in range(3))
    share = np.maximum(valid, 1e-9)
    variance = square / share - (value / share) ** 2
    best = valid >= valid.max() - 1e-6
    place = np.unravel_index(int(np.argmax(np.where(best, variance, -np.inf))), best.shape)
    limits = (max(0, side - DETAIL) for side in shape)
    row, column = (min(int(cell) * step, limit) for cell, limit in zip(place, limits, strict=True))
    return row, column


def _box_means(values: npt.NDArray[np.float64], cells: Sequence[int]) -> npt.NDArray[np.float64]:
    """Means over all boxes of so many cells, (h, w) -> (h - cells[0] + 1, w - cells[1] + 1)."""
    for count in cells:  # along the first axis, then the other
        sums = np.cumsum(np.insert(values, 0, 0, axis=0), axis=0)
        values = ((sums[count:] - sums[:-count]) / count).T
    return values


# --- reading


def cut(read: Read, view: View) -> FloatArray:
    """The values of a view as they are drawn, (H, W) or (H, W, C): square pixels, rows down."""
    values = thinned(read, view.shape, view.step) if view.step > 1 else np.asarray(read(view.place), np.float32)
    height, width = view.pixel
    if view.across is not None:
        values, height, width = np.swapaxes(values, 0, 1)[::-1], width, height
    return square_pixels(values, (height, width), LONGEST_SLICE if view.across is not None else LONGEST_PICTURE)


def thinned(read: Read, shape: tuple[int, int], step: int) -> FloatArray:
    """Means over squares of ``step`` pixels a side (less at the far borders); memory holds one row of squares."""
    starts = np.arange(0, shape[1], step)
    widths = np.diff(np.append(starts, shape[1])).astype(np.float32)
    rows = []
    for first in range(0, shape[0], step):
        band = np.asarray(read((slice(first, min(first + step, shape[0])), slice(None))))
        sums = np.add.reduceat(band.mean(axis=0, dtype=np.float32), starts, axis=0)
        rows.append(sums / widths.reshape(-1, *(1,) * (band.ndim - 2)))
    return np.stack(rows)


def square_pixels(values: Array, pixel: tuple[float, float], longest: int) -> FloatArray:
    """Resamples (h, w) or (h, w, C) to pixels as high as wide: the smaller side of ``pixel``, larger ones if needed."""
    extent = tuple(side * size for side, size in zip(values.shape, pixel, strict=False))
    unit = max(min(pixel), max(extent) / longest)
    return resized(values, (max(1, round(extent[0] / unit)), max(1, round(extent[1] / unit))))


def resized(values: Array, shape: tuple[int, int]) -> FloatArray:
    """Linear between pixels; means where the shape shrinks."""
    from PIL import Image

    values = np.asarray(values, dtype=np.float32, order="C")
    if values.shape[:2] == shape:
        return values
    if values.ndim == 3:
        return np.stack([resized(channel, shape) for channel in np.moveaxis(values, -1, 0)], axis=-1)
    return np.asarray(Image.fromarray(values).resize(shape[::-1], Image.Resampling.BILINEAR), np.float32)


# --- pictures


def window_of(images: Sequence[Array]) -> Window:
    """The values that keep all but the outer half percents of some images apart."""
    low, high = np.percentile(np.concatenate([np.asarray(image, np.float32).ravel() for image in images]), (0.5, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def shown(values: Array, window: Window) -> Picture:
    """Grey or colour; two channels or more than three as their mean."""
    scaled = (np.asarray(values, np.float32) - window[0]) * (255 / (window[1] - window[0]))
    if scaled.ndim == 3 and scaled.shape[-1] != 3:
        scaled = scaled.mean(axis=-1)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def error_limit(window: Window) -> float:
    """Where the error's colours end, of two digits: `ERROR_SHARE` of the label's display range."""
    return float(f"{ERROR_SHARE * (window[1] - window[0]):.2g}")


def error_map(error: Array, limit: float) -> Picture:
    """An error from 0 to ``limit`` in `ERROR_COLOURS`, (H, W, 3).

    Args:
        error: (H, W, 2), means over the pixels that a pixel stands for: the error where valid, else zero; and the share
            of valid ones. Less than half: hidden.
    """
    stops = np.array([_rgb(colour) for colour in ERROR_COLOURS])
    share = error[..., 1]
    level = np.clip(error[..., 0] / np.maximum(share, 1e-6) / limit, 0, 1) * (len(stops) - 1)
    channels = [np.rint(np.interp(level, np.arange(len(stops)), stop)).astype(np.uint8) for stop in stops.T]
    picture = np.stack(channels, axis=-1)
    picture[share < 0.5] = _rgb(ERROR_HIDDEN)
    return picture


def checkerboard(first: Picture, second: Picture) -> Picture:
    """Squares of one picture and of the other by turns: edges that do not meet show misalignment."""
    if first.ndim != second.ndim:
        first, second = coloured(first), coloured(second)
    side = -(-max(first.shape[:2]) // SQUARES)
    rows, columns = (np.arange(size) // side for size in first.shape[:2])
    odd = (rows[:, None] + columns[None]) % 2 > 0
    return np.where(odd if first.ndim == 2 else odd[..., None], second, first)


def grid_over(picture: Picture, displacement: Array) -> Picture:
    """A grid that is straight where a field points to, drawn where it points from: bent as what the field made.

    The label reads the aligned label at p + displacement(p), and so do its lines a straight grid.

    Args:
        displacement: (2, H, W), in pixels of the picture, along rows and columns.

    Returns:
        (h, w, 3), enlarged if small.
    """
    times = max(1, GRID_SIDE // max(picture.shape[:2]))
    shape = (picture.shape[0] * times, picture.shape[1] * times)
    spacing = max(shape) / GRID_LINES
    covered = np.zeros(shape)
    for axis in range(2):
        straight = np.expand_dims(np.arange(shape[axis]) - (shape[axis] - 1) / 2, 1 - axis)
        position = straight + times * resized(displacement[axis], shape).astype(np.float64)
        distance = np.abs((position / spacing + 0.5) % 1 - 0.5) * spacing  # to the next line, where the field points
        slope = np.hypot(*np.gradient(position)) if min(shape) > 1 else np.ones(shape)
        covered = np.maximum(covered, np.clip(1 - distance / np.maximum(slope, 1e-3), 0, 1))
    background = coloured(np.rint(resized(picture, shape)).astype(np.uint8))
    alpha = 0.85 * covered[..., None]
    return np.rint(background * (1 - alpha) + np.array(GRID_COLOUR) * alpha).astype(np.uint8)


def coloured(picture: Picture) -> Picture:
    """(H, W, 3)."""
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)


def to_webp(picture: Picture, lossless: bool) -> bytes:
    """A WebP file, the same bytes for the same picture."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", lossless=lossless, quality=QUALITY, method=4)
    return buffer.getvalue()


def _rgb(colour: str) -> tuple[int, int, int]:
    """Of ``#rrggbb``."""
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue
