"""Pictures for people: predictions beside their labels, deformation grids, training curves. Arrays in, figures out."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

Array = npt.NDArray[Any]
DPI = 110
TITLE_WIDTH = 26  # characters that fit over a column
PLANES = ("sagittal", "coronal", "axial")  # a slice across the first, second, third axis of a RAS volume
ERROR_RANGE = 0.25
"""The error's colours end at this share of the label's signal."""


@dataclass(frozen=True)
class CasePictures:
    """One case, everything on the input's grid.

    Attributes:
        name: of the case.
        n_dims: spatial axes; images are (*S) or (*S, C).
        voxel_size: one per axis, for the aspect of slices and the unit of displacements.
        input, prediction: what went in and what came out.
        aligned: the label where it truly belongs, if that is known.
        label: the label as it was trained on.
        mask: (*S) where the prediction is judged; None: everywhere.
        modalities: names of input and label.
    """

    name: str
    n_dims: int
    voxel_size: tuple[float, ...]
    input: Array
    prediction: Array
    aligned: Array | None
    label: Array
    mask: Array | None
    modalities: tuple[str, str]


def draw_case(case: CasePictures) -> Figure:
    """Input | prediction | aligned label | label as trained on | error, in the middle slice across each axis.

    The error is against the aligned label, against the label itself where no aligned one is known.
    """
    source, target = case.modalities
    reference = case.label if case.aligned is None else case.aligned
    columns = {f"input ({source})": case.input, f"prediction ({target})": case.prediction}
    if case.aligned is not None:
        columns[f"aligned label ({target})"] = case.aligned
    columns[f"label as trained on ({target})"] = case.label
    limits = {title: _window(case.input if position == 0 else reference) for position, title in enumerate(columns)}
    error = np.asarray(case.prediction, dtype=np.float32) - reference
    if error.ndim > case.n_dims:
        error = error.mean(axis=-1)
    if case.mask is not None:
        error = np.where(case.mask > 0, error, np.nan)
    extent = ERROR_RANGE * (_window(reference)[1] - _window(reference)[0])

    planes = _middle_planes(reference.shape[: case.n_dims], case.voxel_size)
    figure = _figure(1.9 * (len(columns) + 1) + 0.6, 2.0 * len(planes) + 0.5)
    axes = figure.subplots(len(planes), len(columns) + 1, squeeze=False)
    for row, plane in enumerate(planes):
        for ax, (title, image) in zip(axes[row], columns.items(), strict=False):
            _show(ax, _grey_or_colour(image[plane.index], limits[title]), plane, limits[title], "gray", "nearest")
            ax.set_title(textwrap.fill(title, TITLE_WIDTH) if row == 0 else "", fontsize=9)
        drawn = _show(axes[row, -1], error[plane.index], plane, (-extent, extent), "RdBu_r")
        axes[row, -1].set_title("error" if row == 0 else "", fontsize=9)
        axes[row, 0].set_ylabel(plane.name, fontsize=9)
    figure.colorbar(drawn, ax=axes[:, -1], shrink=0.8, label="prediction - label")
    figure.suptitle(case.name, fontsize=10)
    return figure


def draw_deformation(
    displacement: Array, voxel_size: Sequence[float], title: str, spacing: int | None = None
) -> Figure:
    """A regular grid after a deformation, over the length of the displacement, in the middle slice across each axis.

    Args:
        displacement: (n, *S) in voxels.
        spacing: voxels between grid lines; by default 4, more where that gave over 40 of them.
    """
    sizes = np.asarray(voxel_size, dtype=np.float32)
    spacing = spacing or max(4, max(displacement.shape[1:]) // 40)
    length = np.sqrt(sum((displacement[axis] * sizes[axis]) ** 2 for axis in range(len(sizes))))
    planes = _middle_planes(length.shape, voxel_size)
    figure = _figure(3.4 * len(planes) + 0.6, 3.6)
    axes = figure.subplots(1, len(planes), squeeze=False)[0]
    for ax, plane in zip(axes, planes, strict=True):
        drawn = _show(ax, length[plane.index], plane, (0, float(length.max()) or 1.0), "viridis")
        limits = ax.get_xlim(), ax.get_ylim()
        moved = [grid + displacement[(axis, *plane.index)] for axis, grid in zip(plane.axes, plane.grids, strict=True)]
        x, y = moved[::-1] if plane.rows_down else moved
        for line in range(0, x.shape[0], spacing):
            ax.plot(x[line], y[line], color="white", linewidth=0.6)
        for line in range(0, x.shape[1], spacing):
            ax.plot(x[:, line], y[:, line], color="white", linewidth=0.6)
        ax.set(xlim=limits[0], ylim=limits[1])
        ax.set_title(plane.name, fontsize=9)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="length of the displacement (mm or pixels)")
    figure.suptitle(title, fontsize=10)
    return figure


def draw_curves(history: Sequence[Mapping[str, float]], best_epoch: int | None = None) -> Figure:
    """Every recorded value over the epochs, one small plot each, validation first; the best epoch is marked."""
    keys = sorted({key for record in history for key in record} - {"epoch", "seconds"}, key=_validation_first)
    width = min(4, max(len(keys), 1))
    height = -(-len(keys) // width) or 1
    figure = _figure(2.9 * width, 2.2 * height + 0.2)
    axes = figure.subplots(height, width, squeeze=False).ravel()
    for ax, key in zip(axes, keys, strict=False):
        points = [(record["epoch"], record[key]) for record in history if key in record]
        ax.plot(*zip(*points, strict=True), marker=".", linewidth=1.2)
        if best_epoch is not None:
            ax.axvline(best_epoch, color="grey", linestyle=":", linewidth=1)
        ax.set_title(key, fontsize=9)
        ax.tick_params(labelsize=7)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("epoch", fontsize=8)
    for ax in axes[len(keys) :]:
        ax.set_axis_off()
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def to_html(title: str, note: str, metrics: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """One page that needs no other file: a table of (flat) metrics and the pictures."""
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(_number(value))}</td></tr>" for key, value in metrics.items()
    )
    images = "".join(
        f"<h2>{html.escape(name)}</h2><img alt='{html.escape(name, quote=True)}' "
        f"src='data:image/png;base64,{base64.b64encode(content).decode()}'>"
        for name, content in pictures.items()
    )
    style = (
        "body{font-family:sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}img{max-width:100%}"
        "td{padding:.15em 1em .15em 0;border-bottom:1px solid #ddd}h2{font-size:1.1em;font-weight:normal}"
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{style}</style>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(note)}</p><table>{rows}</table>{images}</html>\n"
    )


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


@dataclass(frozen=True)
class _Plane:
    """A slice as it is drawn.

    Attributes:
        axes: the two axes that it holds.
        index: of the slice in the image.
        shape: of the slice.
        aspect: height of a drawn pixel over its width.
        rows_down: a photograph's first axis points down, its second to the right; else, as a RAS volume is looked at,
            the first to the right and the second up.
    """

    name: str
    axes: tuple[int, int]
    index: tuple[int | slice, ...]
    shape: tuple[int, int]
    aspect: float
    rows_down: bool

    @property
    def grids(self) -> tuple[Array, Array]:
        """Indices along both axes, of the slice's shape."""
        first, second = np.indices(self.shape)
        return first, second


def _middle_planes(shape: Sequence[int], voxel_size: Sequence[float]) -> list[_Plane]:
    """The middle slice across each axis; a 2D image is the only one."""
    if len(shape) == 2:
        aspect = voxel_size[0] / voxel_size[1]
        return [_Plane("", (0, 1), (slice(None), slice(None)), (shape[0], shape[1]), aspect, rows_down=True)]
    planes = []
    for across, size in enumerate(shape):
        first, second = (axis for axis in range(3) if axis != across)
        index = tuple(size // 2 if axis == across else slice(None) for axis in range(3))
        aspect = voxel_size[second] / voxel_size[first]
        name = f"{PLANES[across]} {size // 2}"
        planes.append(_Plane(name, (first, second), index, (shape[first], shape[second]), aspect, rows_down=False))
    return planes


def _window(image: Array) -> tuple[float, float]:
    """Grey values that keep all but the brightest half percent apart."""
    low, high = np.percentile(np.asarray(image, dtype=np.float32), (0.5, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def _grey_or_colour(image: Array, limits: tuple[float, float]) -> Array:
    """A colour picture (*S, C) from 0 to 1; a grey one as it is."""
    if image.ndim == 2:
        return image
    return np.clip((np.asarray(image, dtype=np.float32) - limits[0]) / (limits[1] - limits[0]), 0, 1)


def _show(
    ax: Axes,
    image: Array,
    plane: _Plane,
    limits: tuple[float, float],
    colours: str,
    interpolation: str | None = None,
) -> AxesImage:
    ax.set_xticks([])
    ax.set_yticks([])
    return ax.imshow(
        image if plane.rows_down else np.swapaxes(image, 0, 1),
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        aspect=plane.aspect,
        origin="upper" if plane.rows_down else "lower",
        interpolation=interpolation,
    )


def _validation_first(key: str) -> tuple[bool, str]:
    return not key.startswith("validation/"), key


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
