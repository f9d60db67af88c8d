"""``equisynth figures``: one sample's whole pass through the networks, drawn in one figure.

Shown is the most valid of the patches that the evaluation of deformations looks at, with a random deformation r of the
training's ranges; of a volume the patch's middle axial slice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equisynth.config import Data, Intensity, Settings
from equisynth.datasets.intensity import denormalise
from equisynth.datasets.opened import open_dataset
from equisynth.datasets.patches import draw_transformation
from equisynth.datasets.prepared import PreparedDataset
from equisynth.datasets.randomness import named_random_state
from equisynth.description import read_description
from equisynth.errors import UserError, one_of
from equisynth.evaluation.deformations import (
    filled_up,
    image_patch,
    is_known,
    length_unit,
    neighbouring_patches,
    registration_pair,
    true_deformation,
)
from equisynth.evaluation.health import health
from equisynth.files import atomic_path
from equisynth.geometry.transforms import Affine, Field, Image, Transformation
from equisynth.methods.base import Method, Overview
from equisynth.panels import Window, coloured, shown, window_of
from equisynth.report import to_png
from equisynth.trained_method import load_method

Array = npt.NDArray[Any]
FOLDER = Path("reports/figures")
GRID_LINES = 16
"""Spaces between the lines of a grid, along the longest side."""
INVALID = (170, 190, 215)
PICTURE_SIDE = 2.0
"""Inches."""
ROWS = ("input and outputs", "labels", "deformations")


def run(
    experiment: str,
    prepared: Path,
    case: str | None = None,
    split: str = "test",
    output: Path | None = None,
    models: Path = Path("models"),
) -> Path:
    """Draws a case of an experiment.

    Args:
        prepared: folder of the prepared dataset.
        case: by default the first one of the split.
        output: a PNG file; by default ``reports/figures/<experiment>/<split>-<case>.png``.

    Returns:
        The file.

    Raises:
        UserError: no such model, split or case, or another kind of file.
    """
    if output is not None and output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: expected the name of a PNG file, such as {output.with_suffix('.png')}")
    model = models / experiment
    settings = read_description(model).settings
    dataset = open_dataset(prepared, settings)
    dataset.require(settings.data, f"the model in {model} was trained on")
    cases = sorted(dataset.cases(split))
    case = cases[0] if case is None else case
    if case not in cases:
        raise UserError(f"--case {case}: found no such case in split {split}, expected one of: {one_of(case, cases)}")
    path = output or FOLDER / experiment / f"{split}-{case}.png"
    content = to_png(draw(sample(load_method(model, "cpu"), dataset, case), f"{experiment}, {split} case {case}"))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    print(path)
    return path


# --- what is drawn


@dataclass(frozen=True)
class Sample:
    """A pass over one patch.

    Attributes:
        overview: batches of one.
        settings: of the experiment.
        place: where the patch lies, in words.
        unit: of world lengths.
    """

    overview: Overview
    settings: Settings
    place: str
    unit: str


@torch.no_grad()
def sample(method: Method, dataset: PreparedDataset, case: str) -> Sample:
    """A method's pass over the most valid patch of a case, with what is known of its truth."""
    settings, slices = method.settings, method.settings.slices
    start = most_valid_patch(dataset, settings, case)
    batch = registration_pair(dataset, settings, case, start)
    random_state = named_random_state(settings.seed, "figure", case)
    voxel_size = settings.data.voxel_size
    matrix = draw_transformation(random_state, settings.patch_size, voxel_size, settings.random_transformation)
    batch = replace(batch, random=Affine.from_world(torch.from_numpy(matrix), voxel_size))
    labels: dict[str, Image] = {}
    deformations: dict[str, Transformation] = {}
    if settings.label_role != "label_aligned" and dataset.has(case, "label_aligned"):
        aligned = image_patch(dataset, case, "label_aligned", start, settings.patch_size)
        labels["aligned label, the truth"] = replace(batch, label=aligned).flattened().label if slices else aligned
    if is_known(dataset, settings, case):
        truth = true_deformation(dataset, case, start, settings)
        deformations["true deformation"] = Field(truth[:, :-1, ..., 0] if slices else truth)
    found = method.overview(batch.flattened() if slices else batch)
    overview = found._replace(labels={**found.labels, **labels}, deformations={**found.deformations, **deformations})
    place = f"patch of {_by(settings.patch_size)} from {start} on, of {_by(dataset.shape(case))}"
    if len(start) == 3 and not slices:
        place += f", axial slice {start[2] + settings.patch_size[2] // 2}"
    return Sample(overview, settings, place, length_unit(dataset.info))


def most_valid_patch(dataset: PreparedDataset, settings: Settings, case: str) -> tuple[int, ...]:
    """Where the patch lies with the most voxels that are evaluated and valid in both images; of equals a central."""
    shape, evaluation = dataset.shape(case), dataset.mask(case, "evaluation")

    def order(start: tuple[int, ...]) -> tuple[float, int]:
        batch = registration_pair(dataset, settings, case, start)
        valid = batch.input.comparison_mask(batch.label)[0, 0].numpy()
        if evaluation is not None:
            valid = valid * filled_up(evaluation, start, settings.patch_size)
        away = sum(abs(2 * first + side - size) for first, side, size in zip(start, valid.shape, shape, strict=True))
        return float(valid.sum()), -away

    return max((start for start, _ in neighbouring_patches(shape, settings.patch_size)), key=order)


# --- drawing


def draw(sample: Sample, title: str) -> Figure:
    """Input and outputs, labels, deformations, one row each; images of a modality share their grey values."""
    overview, data = sample.overview, sample.settings.data
    view = _View.of(data)
    label_window = _window(overview.labels, data.label)
    rows: list[dict[str, Callable[[Axes], None]]] = [{}, {}, {}]
    for row, images, intensity, window in (
        (rows[0], overview.inputs, data.input, _window(overview.inputs, data.input)),
        (rows[0], overview.outputs, data.label, label_window),
        (rows[1], overview.labels, data.label, label_window),
    ):
        row |= {name: partial(view.show_image, image, intensity, window) for name, image in images.items()}
    shape = next(iter(overview.inputs.values())).values.shape[2:]
    for name, transformation in overview.deformations.items():
        displacement = transformation.as_displacement(shape)[0].cpu().numpy()
        length = health(displacement, data.voxel_size[: len(shape)]).displacement.mean
        rows[2][f"{name}\nmean {length:.2g} {sample.unit}"] = partial(view.show_grid, displacement)

    columns = max(map(len, rows))
    size = PICTURE_SIDE * columns + 0.4, (PICTURE_SIDE + 0.3) * len(rows) + 0.5
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for ax in axes.ravel():
        ax.set_axis_off()
    for line, pictures, words in zip(axes, rows, ROWS, strict=True):
        for ax, (name, show) in zip(line, pictures.items(), strict=False):
            show(ax)
            ax.set_title(name, fontsize=8)
        line[0].text(-0.08, 0.5, words, rotation=90, ha="right", va="center", fontsize=9, transform=line[0].transAxes)
    modalities = f"{data.input.modality} → {data.label.modality}, method {sample.settings.method}"
    figure.suptitle(f"{title} ({modalities})\n{sample.place}; blue: invalid", fontsize=10)
    return figure


@dataclass(frozen=True)
class _View:
    """How arrays are laid onto the page: pictures with rows down; axial slices of volumes with the second axis up.

    Attributes:
        axial: slices, the middle one of a patch.
        aspect: height of a pixel over its width.
    """

    axial: bool
    aspect: float

    @classmethod
    def of(cls, data: Data) -> _View:
        first, second = data.voxel_size[:2]
        return cls(True, second / first) if data.n_dims == 3 else cls(False, first / second)

    def plane(self, values: Array) -> Array:
        """(C, *S) -> (C, H, W), rows down."""
        if values.ndim == 4:
            values = values[..., values.shape[-1] // 2]
        return np.swapaxes(values, 1, 2)[:, ::-1] if self.axial else values

    def positions(self, displacement: Array) -> Array:
        """Rows and columns (2, H, W) on the page that a displacement field (n, *S) points to."""
        first, second = self.plane(displacement)[:2]
        down, right = (-second, first) if self.axial else (first, second)
        return np.indices(first.shape) + np.stack([down, right])

    def show_image(self, image: Image, intensity: Intensity, window: Window, ax: Axes) -> None:
        values = np.moveaxis(self.plane(_raw(image, intensity)), 0, -1)
        picture = coloured(shown(values if values.shape[-1] > 1 else values[..., 0], window)).copy()
        picture[self.plane(_valid(image))[0] == 0] = INVALID
        ax.imshow(picture, aspect=self.aspect, interpolation="nearest")

    def show_grid(self, displacement: Array, ax: Axes) -> None:
        """The picture of a straight grid, warped as images are: lines where a field points to one of its lines."""
        positions = self.positions(displacement)
        height, width = positions.shape[1:]
        spacing = max(height, width) / GRID_LINES
        for position, side in zip(positions, (height, width), strict=True):
            middle = (side - 1) / 2
            reach = np.ceil(np.abs(position - middle).max() / spacing)
            levels = middle + spacing * np.arange(-reach, reach + 1)
            ax.contour(position, levels=levels, colors="black", linewidths=0.6, linestyles="solid")
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[], aspect=self.aspect)
        ax.set_axis_on()


def _raw(image: Image, intensity: Intensity) -> Array:
    """Values (C, *S) in raw units."""
    return denormalise(image.values.cpu().numpy(), intensity.mean, intensity.std)[0]


def _valid(image: Image) -> Array:
    """(1, *S) of 0 and 1."""
    return image.valid()[0].cpu().numpy()


def _window(images: Mapping[str, Image], intensity: Intensity) -> Window:
    """Of the first one, where it is valid."""
    first = next(iter(images.values()))
    values, valid = _raw(first, intensity), _valid(first)[0] > 0
    return window_of([values[:, valid] if valid.any() else values])


def _by(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))
