"""What a folder of a user's own pairs holds: read once, case by case, and said in numbers. No files are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from equisynth.datasets.archives import CaseSkipped
from equisynth.datasets.folder import ORIENTATION
from equisynth.datasets.own_cases import IMAGES, FolderCases
from equisynth.datasets.raw_images import RawImage, field_of_view, on_grid_of
from equisynth.datasets.raw_scan import ModelGrid, Scan
from equisynth.preprocessing import resampling

COARSE_CELLS = 32
"""Cells along the longest axis of the grid on which flips are looked for."""
SHIFTS = range(-3, 4)  # cells along the left-right axis
FLIP_MARGIN = 1.05
"""How much more information the mirrored image must share to be suspected: symmetric anatomy stays at 1.00, heads that
lie some voxels apart below 0.8, and mirrored slices reach 1.25."""
BINS = 24  # of each image's values
SMALL_OVERLAP = 0.5

Progress = Callable[[int, int], None]
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImageFacts:
    """One image. Volumes: along the axes as prepared (right, front, up); slices and pictures: as stored.

    Attributes:
        file: its path.
        shape, voxel_size: one value per axis; mm, or pixels for pictures.
        orientation: where the stored axes point to; empty for pictures.
        stored: type of the numbers on disk.
        low, high: lowest and highest value.
        mean, std: per channel.
    """

    file: str
    shape: tuple[int, ...]
    voxel_size: tuple[float, ...]
    orientation: str
    stored: str
    low: float
    high: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Flip:
    """Normalised mutual information, less one, of input and label as they are and with the label mirrored."""

    as_is: float
    mirrored: float

    @property
    def suspected(self) -> bool:
        return self.mirrored > FLIP_MARGIN * max(self.as_is, 1e-3)


@dataclass(frozen=True)
class CaseFacts:
    """One case that can be read.

    Attributes:
        case: its name.
        n_dims: 2 or 3.
        images: role -> facts of input, label and, where given, the aligned label.
        masks: roles of its masks.
        overlap: share of the input's voxels that the label shows, by the headers.
        same_grid: whether input and label share shape and affine.
        flip: similarity with and without mirroring; None where no axis is known to be left-right.
        warnings: one line each, without the case's name.
    """

    case: str
    n_dims: int
    images: Mapping[str, ImageFacts]
    masks: tuple[str, ...]
    overlap: float
    same_grid: bool
    flip: Flip | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """All of a source.

    Attributes:
        path: the folder or table.
        cases: that can be read.
        skipped: case -> reason.
        unknown: files in the folder that play no role by their name.
    """

    path: str
    cases: tuple[CaseFacts, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def n_dims(self) -> int:
        """What most cases are."""
        volumes = sum(case.n_dims == 3 for case in self.cases)
        return 3 if 2 * volumes >= len(self.cases) else 2

    def warnings(self) -> Iterator[str]:
        """One line each, with the case's name."""
        for case in self.cases:
            for warning in case.warnings:
                yield f"{case.case}: {warning}"
            if case.n_dims != self.n_dims:
                yield f"{case.case}: is {case.n_dims}D, most cases are {self.n_dims}D; it will be skipped"


def survey(source: FolderCases, progress: Progress | None = None) -> Findings:
    """Reads every image of an opened source once."""
    cases, skipped = [], {}
    names = sorted({*source.cases(), *source.incomplete_cases()})
    for number, name in enumerate(names):
        try:
            cases.append(_case_facts(name, source.read(name)))
        except CaseSkipped as reason:
            skipped[name] = str(reason)
        if progress is not None:
            progress(number + 1, len(names))
    return Findings(str(source.path), tuple(cases), skipped, tuple(str(path) for path in source.unknown))


def _case_facts(case: str, raw: Mapping[str, RawImage]) -> CaseFacts:
    first, label = raw["input"], raw["label"]
    warnings = [note for image in raw.values() for note in image.notes]
    same_grid = first.spatial_shape == label.spatial_shape and first.is_picture == label.is_picture
    overlap: float = same_grid
    if first.n_dims == label.n_dims == 3:
        assert first.affine is not None
        assert label.affine is not None
        same_grid = same_grid and bool(np.allclose(first.affine, label.affine, atol=1e-3))
        overlap = float(field_of_view(label, first.values.shape, first.affine).mean())
        if not same_grid:
            warnings.append(
                "input and label lie on different grids; the label is resampled by the headers' coordinates"
            )
        if overlap == 0:
            raise CaseSkipped(
                f"{label.path}: by its header it lies beside {first.path.name}, no voxel of which it shows"
            )
        if overlap < SMALL_OVERLAP:
            warnings.append(f"the label shows {100 * overlap:.0f} % of the input; check the headers")
    elif not same_grid:
        raise CaseSkipped(
            f"{label.path}: shape {label.spatial_shape}, {first.path.name} has {first.spatial_shape}; "
            "a pair of pictures must share one pixel grid"
        )
    flip = find_flip(first, label)
    if flip is not None and flip.suspected:
        warnings.append(
            "suspected left-right flip: input and label share more information when the label is mirrored "
            f"({flip.mirrored:.3f}, as it is {flip.as_is:.3f}); look at the pair"
        )
    images = {role: _image_facts(raw[role]) for role in IMAGES if role in raw}
    masks = tuple(sorted(role for role in raw if role not in IMAGES))
    return CaseFacts(case, first.n_dims, images, masks, overlap, same_grid, flip, tuple(warnings))


def _image_facts(image: RawImage) -> ImageFacts:
    shape, voxel_size = image.spatial_shape, image.voxel_size
    if image.affine is not None and image.n_dims == 3:
        turned = resampling.reoriented_affine(image.affine, shape, ORIENTATION)
        shape = resampling.reoriented_shape(shape, image.orientation, ORIENTATION)
        voxel_size = resampling.voxel_size(turned)
    elif image.affine is not None:
        shape = tuple(shape[axis] for axis in image.plane)
        voxel_size = tuple(voxel_size[axis] for axis in image.plane)
    channels = image.values.reshape(-1, image.channels)
    return ImageFacts(
        str(image.path),
        tuple(int(size) for size in shape),
        tuple(round(float(size), 4) for size in voxel_size),
        image.orientation,
        image.stored,
        float(channels.min()),
        float(channels.max()),
        tuple(float(mean) for mean in channels.mean(axis=0, dtype=np.float64)),
        tuple(float(std) for std in channels.std(axis=0, dtype=np.float64)),
    )


def find_flip(first: RawImage, label: RawImage) -> Flip | None:
    """How much information input and label share, and how much when the label is mirrored left to right.

    Both are smoothed, cut to 99 % of their values and brought to one coarse grid. The mirror stands in the middle of
    the label's mass; small shifts along the axis are allowed, since the pair may be misaligned.
    """
    pair = _coarse_volumes(first, label) if first.n_dims == 3 else _coarse_slices(first, label)
    if pair is None:
        return None
    a, b = pair
    mass = (b - b.min()).sum(axis=tuple(range(1, b.ndim)), dtype=np.float64)
    if not mass.sum():
        return None
    centre = float((mass * np.arange(len(mass))).sum() / mass.sum())
    mirrored = np.roll(b[::-1], round(2 * centre - (len(b) - 1)), axis=0)
    return Flip(_shared_information(a, b), _shared_information(a, mirrored))


def _coarse_volumes(first: RawImage, label: RawImage) -> tuple[Array, Array]:
    """Both images on one grid of cubes in the scanner's coordinates, first axis to the right."""
    cell = max(n * size for n, size in zip(first.values.shape, first.voxel_size, strict=True)) / COARSE_CELLS
    smooth = [
        replace(image, values=_smoothed(image.values, [cell / size for size in image.voxel_size]))
        for image in (first, label)
    ]
    grid = ModelGrid.of(Scan(smooth[0].values, np.asarray(first.affine)), ORIENTATION, (cell,) * 3)
    coarse = grid.forward(smooth[0].values)
    return coarse, on_grid_of(smooth[1], coarse.shape, grid.affine, order=1)


def _coarse_slices(first: RawImage, label: RawImage) -> tuple[Array, Array] | None:
    """Both pictures thinned alike, the left-right axis first: columns, or what a slice's header says."""
    across = (
        first.plane[1] if first.is_picture else next((a for a in first.plane if first.orientation[a] in "LR"), None)
    )
    if across is None:
        return None
    step = max(1, max(first.spatial_shape) // (2 * COARSE_CELLS))
    pair = []
    for image in (first, label):
        grey = image.values.mean(axis=-1, dtype=np.float32) if image.channels > 1 else image.values
        grey = np.moveaxis(grey, across, 0).reshape(image.spatial_shape[across], -1)
        pair.append(_smoothed(grey, [float(step)] * 2)[::step, ::step])
    return pair[0], pair[1]


def _smoothed(values: npt.NDArray[Any], cells: list[float]) -> Array:
    """Values cut to 99 % of their range, smoothed for a grid so many times coarser."""
    low, high = np.percentile(values, (0.5, 99.5))
    cut = np.clip(values.astype(np.float32), low, high)
    smooth: Array = ndimage.gaussian_filter(cut, [0.5 * cell for cell in cells])
    return smooth


def _shared_information(a: Array, b: Array) -> float:
    """Normalised mutual information, less one, at the best of `SHIFTS` along the first axis."""
    index = np.arange(len(b))
    return max(_nmi(a, b[np.clip(index + shift, 0, len(b) - 1)]) for shift in SHIFTS)


def _nmi(a: Array, b: Array) -> float:
    """(H(a) + H(b)) / H(a, b) - 1 inside of what both show; its rim, which mixes with air, tells nothing."""
    inside = ndimage.binary_erosion(_foreground(a) & _foreground(b))
    joint = np.histogram2d(a[inside], b[inside], bins=BINS)[0]
    total = _entropy(joint)
    return (_entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))) / total - 1 if total else 0.0


def _foreground(values: Array) -> npt.NDArray[np.bool_]:
    low, high = float(values.min()), float(np.percentile(values, 99))
    result: npt.NDArray[np.bool_] = values >= low + 0.1 * (high - low)
    return result


def _entropy(counts: npt.NDArray[np.float64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
