"""A picture sheet of a prepared dataset: some cases of each split, both images, how they lie on each other, masks.

Arrays in, one figure out. Large images are thinned while they are read, so that a slide costs no more than a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from equisynth.datasets.prepared import SPLITS, PreparedDataset
from equisynth.datasets.roles import REGIONS
from equisynth.orientation import sizes_to_ras, to_ras

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

SIDE = 300
"""Pixels that are drawn of an image's longest side, at most."""
SQUARES = 6
"""Squares of the checkerboard along the longest side."""
RESOLUTIONS = (110, 80, 60, 40)  # dots per inch, tried until the file is small enough
LARGEST_FILE = 2_000_000  # bytes
PANEL = 1.5  # inches of a 3D dataset's slices; 2D pictures are drawn larger
PLANES = ("sagittal", "coronal", "axial")  # a slice across the first, second, third axis of a RAS volume
CONTOURS = {
    "input_mask": "tab:orange",
    "label_mask": "tab:cyan",
    "evaluation_mask": "tab:green",
    "input_body_mask": "tab:red",
    "label_body_mask": "tab:purple",
}


@dataclass(frozen=True)
class _Slice:
    """One slice of a case, thinned: input and perhaps label (a, b) or (a, b, C), masks (a, b), a pixel's shape."""

    images: tuple[Array, ...]
    masks: dict[str, Array]
    aspect: float  # height of a pixel over its width

    @property
    def height(self) -> float:
        """Of the drawing over its width, within bounds that keep a sheet legible."""
        return float(np.clip(self.images[0].shape[1] * self.aspect / self.images[0].shape[0], 0.3, 2.0))


def draw_sheet(dataset: PreparedDataset, per_split: int = 2) -> Figure:
    """Input | label | checkerboard of both, with the outlines of the masks, for the first cases of each split.

    Volumes are shown in the middle slice across each axis. Of a dataset that stores no labels, the inputs alone, in 2D
    side by side: one row per split.

    Args:
        per_split: cases of each split at most.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    info = dataset.info
    planes = range(3) if info.n_dims == 3 else range(1)
    chosen = [(split, case) for split in SPLITS for case in dataset.cases(split)[:per_split]]
    paired = all(dataset.has(case, "label") for _, case in chosen)
    if not paired and info.n_dims == 2:
        return _draw_inputs(dataset, per_split)
    sides = ("input", "label") if paired else ("input",)
    rows = {(split, case): [_cut(dataset, case, sides, plane) for plane in planes] for split, case in chosen}
    width = PANEL if info.n_dims == 3 else 2 * PANEL
    heights = [width * max(cut.height for cut in cuts) + 0.2 for cuts in rows.values()]
    titles = [f"input ({info.input.modality})", f"label ({info.label.modality})", "both, in squares"]
    titles = titles if paired else titles[:1]
    columns = len(titles) * len(planes)
    figure = Figure(figsize=(columns * width + 0.4, sum(heights) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    shown: set[str] = set()
    for row, ((split, case), cuts) in enumerate(rows.items()):
        windows = [_window(images) for images in zip(*(cut.images for cut in cuts), strict=True)]
        for plane, cut in enumerate(cuts):
            grey = [_shown(image, window) for image, window in zip(cut.images, windows, strict=True)]
            for column, image in enumerate((*grey, _checkerboard(*grey)) if paired else grey):
                ax = axes[row, column * len(planes) + plane]
                outlined = _outlined(column, cut.masks)
                _draw(ax, image, cut.aspect, {role: cut.masks[role] for role in outlined}, info.n_dims)
                shown |= set(outlined)
                if row == 0:
                    title = f"{titles[column]}\n{PLANES[plane]}" if len(planes) > 1 else titles[column]
                    ax.set_title(title, fontsize=7)
        axes[row, 0].set_ylabel(f"{split}\n{_shortened(case)}", fontsize=6)
    lines = [Line2D([], [], color=CONTOURS[role], label=role.replace("_", " ")) for role in CONTOURS if role in shown]
    if lines:
        figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), fontsize=7)
    figure.suptitle(_heading(dataset), fontsize=9)
    return figure


def sheet_png(dataset: PreparedDataset, per_split: int = 2) -> bytes:
    """The sheet as a PNG file of at most `LARGEST_FILE` bytes, the same bytes for the same dataset."""
    import io

    figure = draw_sheet(dataset, per_split)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax in figure.axes:  # the last digits of the layout differ from call to call
        left, bottom, width, height = np.round(ax.get_position(original=True).bounds, 4).tolist()
        ax.set_position((left, bottom, width, height))
    content = b""
    for dpi in RESOLUTIONS:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
        content = buffer.getvalue()
        if len(content) <= LARGEST_FILE:
            break
    return content


def _draw_inputs(dataset: PreparedDataset, per_split: int) -> Figure:
    """2D pictures without labels: a row per split, a column per case."""
    from matplotlib.figure import Figure

    rows = [dataset.cases(split)[:per_split] for split in SPLITS]
    cuts = {case: _cut(dataset, case, ("input",), 0) for cases in rows for case in cases}
    heights = [2 * PANEL * max((cuts[case].height for case in cases), default=0.1) + 0.2 for cases in rows]
    figure = Figure(figsize=(per_split * 2 * PANEL + 0.4, sum(heights) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), per_split, squeeze=False, height_ratios=heights)
    for split, cases, row in zip(SPLITS, rows, axes, strict=True):
        for ax in row[len(cases) :]:
            ax.set_axis_off()
        for case, ax in zip(cases, row, strict=False):
            (image,) = cuts[case].images
            _draw(ax, _shown(image, _window([image])), cuts[case].aspect, {}, 2)
            ax.set_xlabel(_shortened(case), fontsize=6)
        row[0].set_ylabel(split, fontsize=6)
    axes[0, 0].set_title(f"input ({dataset.info.input.modality})", fontsize=7)
    figure.suptitle(_heading(dataset), fontsize=9)
    return figure


def _heading(dataset: PreparedDataset) -> str:
    return f"{dataset.info.name}: " + ", ".join(f"{len(dataset.cases(split))} {split}" for split in SPLITS)


def _draw(ax: Axes, image: Array, aspect: float, masks: Mapping[str, Array], n_dims: int) -> None:
    """An image (a, b) or (a, b, C), its first axis to the right, with the outlines of masks."""
    ax.imshow(
        np.swapaxes(image, 0, 1),
        cmap="gray",
        vmin=0,
        vmax=1,
        aspect=aspect,
        origin="lower" if n_dims == 3 else "upper",
        interpolation="nearest",
    )
    ax.set_xticks([])
    ax.set_yticks([])
    for order, (role, mask) in enumerate(masks.items()):
        style = "dashed" if order else "solid"  # so that both show where outlines coincide
        ax.contour(np.swapaxes(mask, 0, 1), levels=[0.5], colors=CONTOURS[role], linewidths=1.0, linestyles=style)


def _cut(dataset: PreparedDataset, case: str, sides: Sequence[str], plane: int) -> _Slice:
    """The middle slice across an axis of a volume, its axes turned to the right, the front and up; a picture whole."""
    shape, voxel_size = dataset.shape(case), dataset.info.voxel_size
    orientation = dataset.info.preparation.get("orientation", "RAS")

    def seen(values: Array) -> Array:
        return to_ras(values, orientation) if len(shape) == 3 else values

    if len(shape) == 3:
        shape = tuple(int(size) for size in sizes_to_ras(shape, orientation))
        voxel_size = sizes_to_ras(voxel_size, orientation)
    across = plane if len(shape) == 3 else None
    inside = [axis for axis in range(len(shape)) if axis != across]
    step = max(1, -(-max(shape[axis] for axis in inside) // SIDE))
    index = tuple(shape[axis] // 2 if axis == across else slice(None, None, step) for axis in range(len(shape)))
    masks = {}
    for role in CONTOURS:
        name = role.removesuffix("_mask")
        mask = dataset.region(case, name) if name in REGIONS else dataset.mask(case, name)
        if mask is not None:
            masks[role] = np.asarray(seen(mask)[index])
    first, second = (voxel_size[axis] for axis in inside)
    images = tuple(np.asarray(seen(dataset.image(case, side))[index]) for side in sides)
    if len(shape) == 3:
        return _Slice(images, masks, second / first)
    # Rows go from top to bottom: the drawing swaps axes for the volumes' sake.
    upright = {role: mask.T for role, mask in masks.items()}
    return _Slice(tuple(np.swapaxes(image, 0, 1) for image in images), upright, first / second)


def _outlined(column: int, masks: dict[str, Array]) -> list[str]:
    """Masks whose outline belongs onto the input, the label and the checkerboard; full ones have none."""
    side = ("input", "label", None)[column]
    wanted = () if side is None else (f"{side}_mask", f"{side}_body_mask", "evaluation_mask")
    return [role for role in wanted if role in masks and masks[role].min() != masks[role].max()]


def _window(images: Sequence[Array]) -> tuple[float, float]:
    """Grey values that keep all but the outer half percents apart in all slices of a case; 8-bit colours stay."""
    if images[0].dtype == np.uint8 and images[0].ndim == 3:
        return 0.0, 255.0
    values = np.concatenate([np.asarray(image, dtype=np.float32).ravel() for image in images])
    low, high = np.percentile(values, (0.5, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def _shown(image: Array, window: tuple[float, float]) -> Array:
    """Values between 0 and 1; two channels or more than three are shown as their mean."""
    values = np.clip((np.asarray(image, dtype=np.float32) - window[0]) / (window[1] - window[0]), 0, 1)
    return values.mean(axis=-1) if values.ndim == 3 and values.shape[-1] != 3 else values


def _checkerboard(first: Array, second: Array) -> Array:
    """Squares of one image and of the other by turns: edges that do not meet show misalignment."""
    if first.ndim != second.ndim:
        first, second = (image if image.ndim == 3 else np.repeat(image[..., None], 3, -1) for image in (first, second))
    side = max(1, -(-max(first.shape[:2]) // SQUARES))
    rows, columns = (np.arange(size) // side for size in first.shape[:2])
    odd = (rows[:, None] + columns[None]) % 2 > 0
    return np.where(odd if first.ndim == 2 else odd[..., None], second, first)


def _shortened(name: str, length: int = 18) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
