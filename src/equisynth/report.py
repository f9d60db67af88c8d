"""Pictures for people: predictions beside their labels, deformation grids, training curves. Arrays in, figures out."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Array = npt.NDArray[Any]
DPI = 110
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

    planes = _middle_planes(reference.shape[: case.n_dims])
    figure = _figure(1.9 * (len(columns) + 1) + 0.6, 2.0 * len(planes) + 0.5)
    axes = figure.subplots(len(planes), len(columns) + 1, squeeze=False)
    for row, (label, index) in enumerate(planes):
        aspect = _aspect(case.voxel_size, index)
        for ax, (title, image) in zip(axes[row], columns.items(), strict=False):
            _show(ax, image[index], limits[title], aspect)
            ax.set_title(title if row == 0 else "", fontsize=9)
        drawn = axes[row, -1].imshow(
            _upright(error[index]), cmap="RdBu_r", vmin=-extent, vmax=extent, aspect=aspect, origin="lower"
        )
        _bare(axes[row, -1])
        axes[row, -1].set_title("error" if row == 0 else "", fontsize=9)
        axes[row, 0].set_ylabel(label, fontsize=9)
    figure.colorbar(drawn, ax=axes[:, -1], shrink=0.8, label="prediction - label")
    figure.suptitle(case.name, fontsize=10)
    return figure


def draw_deformation(displacement: Array, voxel_size: Sequence[float], title: str, spacing: int = 4) -> Figure:
    """A regular grid after a deformation, over the length of the displacement, in the middle slice across each axis.

    Args:
        displacement: (n, *S) in voxels.
        spacing: voxels between grid lines.
    """
    sizes = np.asarray(voxel_size, dtype=np.float32)
    length = np.sqrt(sum((displacement[axis] * sizes[axis]) ** 2 for axis in range(len(sizes))))
    planes = _middle_planes(length.shape)
    figure = _figure(3.4 * len(planes) + 0.6, 3.6)
    axes = figure.subplots(1, len(planes), squeeze=False)[0]
    for ax, (label, index) in zip(axes, planes, strict=True):
        drawn = ax.imshow(
            _upright(length[index]), cmap="viridis", vmin=0, vmax=float(length.max()) or 1.0, origin="lower",
            aspect=_aspect(voxel_size, index),
        )  # fmt: skip
        first, second = (axis for axis in range(len(sizes)) if isinstance(index[axis], slice))
        shape = (displacement.shape[1 + first], displacement.shape[1 + second])
        rows, columns = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
        moved = (rows + displacement[(first, *index)], columns + displacement[(second, *index)])
        for line in range(0, shape[0], spacing):
            ax.plot(moved[0][line], moved[1][line], color="white", linewidth=0.6)
        for line in range(0, shape[1], spacing):
            ax.plot(moved[0][:, line], moved[1][:, line], color="white", linewidth=0.6)
        ax.set_xlim(-0.5, shape[0] - 0.5)
        ax.set_ylim(-0.5, shape[1] - 0.5)
        _bare(ax)
        ax.set_title(label, fontsize=9)
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


def _middle_planes(shape: Sequence[int]) -> list[tuple[str, tuple[int | slice, ...]]]:
    """Name and index of the middle slice across each axis; the only one of a 2D image."""
    if len(shape) == 2:
        return [("", (slice(None), slice(None)))]
    whole: tuple[int | slice, ...] = (slice(None),) * len(shape)
    return [
        (f"{PLANES[axis]} {size // 2}", (*whole[:axis], size // 2, *whole[axis + 1 :]))
        for axis, size in enumerate(shape)
    ]


def _aspect(voxel_size: Sequence[float], index: Sequence[int | slice]) -> float:
    """Height of a drawn pixel over its width."""
    first, second = (size for size, part in zip(voxel_size, index, strict=True) if isinstance(part, slice))
    return second / first


def _window(image: Array) -> tuple[float, float]:
    """Grey values that keep all but the brightest half percent apart."""
    low, high = np.percentile(np.asarray(image, dtype=np.float32), (0.5, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def _show(ax: Axes, image: Array, limits: tuple[float, float], aspect: float) -> None:
    if image.ndim == 3:  # channels last: a colour picture
        image = np.clip((np.asarray(image, dtype=np.float32) - limits[0]) / (limits[1] - limits[0]), 0, 1)
    ax.imshow(
        _upright(image),
        cmap="gray",
        vmin=limits[0],
        vmax=limits[1],
        aspect=aspect,
        origin="lower",
        interpolation="nearest",
    )
    _bare(ax)


def _upright(image: Array) -> Array:
    """First axis to the right, second axis up, as a RAS volume is looked at."""
    return np.swapaxes(image, 0, 1)


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])


def _validation_first(key: str) -> tuple[bool, str]:
    return not key.startswith("validation/"), key


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
