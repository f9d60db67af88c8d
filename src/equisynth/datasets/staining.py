"""Virtual staining: unstained tissue -> haematoxylin and eosin. From the public archive to one prepared case.

Slides have tens of thousands of pixels a side, so nothing holds one: a case is written into its folder as uncompressed
TIFFs, whose windows are read by memory map. The stained section is registered to the unstained one on a small grey
picture; the displacement found there is then applied window by window.

```
<folder>/input.tif, label.tif, label_registered.tif   (rows, columns, 3) uint8; all channels 0: invalid
<folder>/mask.tif                                     (rows, columns) uint8 of 0 and 1: of all images
```
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from equisynth.config import Strict
from equisynth.datasets.archives import CaseSkipped, extract_member, open_archive, skipping_damage
from equisynth.datasets.case_files import CaseFiles, case_files, why_doubled
from equisynth.datasets.splits import Splits
from equisynth.errors import UserError
from equisynth.geometry.warping import sample
from equisynth.preprocessing.registration import BSplineStep, Registration, register_rigid_then_bspline
from equisynth.slides import BIG_TIFF_BYTES, Slide

ARCHIVE = "virtual-staining-data.tar"
KINDS = ("mask", "stained", "unstained")
WINDOW, ROWS = 512, 256
"""Side of the windows that are displaced at a time, and about the height of the bands that are read at a time."""
_TRAIN = ("28", "33", "32", "16", "29", "21", "27", "35", "30")
_VALIDATE = ("20",)
_TEST = ("23", "24", "26", "31", "25", "18", "17")

FloatArray = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]


class StainingPreparation(Strict):
    """``datasets.staining.preparation``. Null ``splits``: the published ones.

    Attributes:
        registration_side: most pixels a side of the small picture on which sections are registered.
        registration: its lengths are pixels of the small picture.
    """

    registration_side: Annotated[int, Field(ge=64)] = 1024
    registration: Registration = Registration(
        bspline=BSplineStep(iterations=1000, samples=5000, grid_spacing=64, sample_region=400, bending_weight=50)
    )
    splits: Splits | None = None  # null: the published ones


class StainingPathSource(Strict):
    """``sources.staining`` of kind ``path``: the archive, or a folder that holds it or what is in it."""

    kind: Literal["path"]
    path: Path


def locate(settings: StainingPathSource) -> dict[str, Path]:
    """Where the user's raw data lie: ``slides``.

    Raises:
        UserError: nothing is there.
    """
    path = Path(os.path.expanduser(settings.path))
    path = path / ARCHIVE if (path / ARCHIVE).is_file() else path
    if not path.exists():
        raise UserError(f"sources.staining.path: {path} not found; expected {ARCHIVE} or a folder; check the path")
    return {"slides": path}


def published_splits(cases: Sequence[str]) -> dict[str, list[str]]:
    """The published split of these cases; who is in no list is left out."""
    lists = {"train": _TRAIN, "validate": _VALIDATE, "test": _TEST}
    return {split: sorted({f"sample_{n}" for n in numbers} & set(cases)) for split, numbers in lists.items()}


# --- raw archives


class StainingArchives:
    """The archive (or folder) of slides; use as a context manager.

    Raises:
        UserError: it is absent, damaged, unsafe, or holds no slide.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._path, self._stack = paths["slides"], ExitStack()
        self._files: dict[str, CaseFiles] = {}

    def __enter__(self) -> StainingArchives:
        with ExitStack() as stack:
            archive = stack.enter_context(open_archive(self._path))
            for kind in KINDS:
                pattern = re.compile(rf"(?:.*/)?([A-Za-z0-9][A-Za-z0-9._-]*)_{kind}\.tiff?")
                self._files[kind] = case_files(archive, pattern)
            if not self._known():
                raise UserError(
                    f"{self._path}: holds no slide named <sample>_<{'|'.join(KINDS)}>.tif "
                    f"({len(archive.names())} other files); is this the right archive?"
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def cases(self) -> list[str]:
        """Sorted names (``sample_<number>``) of the cases that have each of the three slides, once."""
        return sorted(set.intersection(*(set(files.names) for files in self._files.values())))

    def incomplete_cases(self) -> list[str]:
        """Sorted names of the cases that lack a slide, or have one twice."""
        return sorted(self._known() - set(self.cases()))

    def full_name(self, case: str) -> str:
        """The full name of a case given as such or by its number alone (``28``)."""
        return f"sample_{case}" if case.isdigit() else case

    def read(self, case: str, scratch: Path) -> dict[str, Path]:
        """The slides of a case as files; those of an archive are copied into the folder ``scratch``, once.

        Raises:
            CaseSkipped: one is missing, stands there twice, or cannot be unpacked.
        """
        doubled = why_doubled(case, self._files.values())
        if doubled is not None:
            raise CaseSkipped(doubled)
        missing = [kind for kind, files in self._files.items() if case not in files.names]
        if missing:
            raise CaseSkipped(f"no {' and no '.join(missing)} slide in the archive")
        paths = {}
        for kind, files in self._files.items():
            name = files.names[case]
            if files.archive.path.is_dir():
                paths[kind] = files.archive.path / name
                continue
            paths[kind] = scratch / f"{case}_{kind}.tif"
            if not paths[kind].is_file():
                with skipping_damage(name):
                    extract_member(files.archive, name, paths[kind])
        return paths

    def _known(self) -> set[str]:
        return set().union(*(files.cases for files in self._files.values()))


# --- one case


def prepare_case_into(
    folder: Path, slides: Mapping[str, Path], case: str, preparation: StainingPreparation
) -> dict[str, Any]:
    """Writes the files of one prepared case into an existing folder; returns JSON-like facts about it.

    Memory holds some windows and the small pictures, whatever the size of the slides.

    Args:
        folder: where to.
        slides: ``mask``, ``stained``, ``unstained``; RGB or grey, 8 or 16-bit, however compressed.
        case: its name; nothing is random.
        preparation: what to do.

    Returns:
        ``shape``; ``valid_ratio``: the share of tissue; ``registered_ratio``: how much of the tissue has a registered
        label; ``mean_displacement``: what the registration found, in pixels inside the mask.

    Raises:
        CaseSkipped: a slide cannot be read, shapes differ, nothing is tissue, or the registration fails.
    """
    try:
        shapes = {}
        for kind in KINDS:
            with Slide(slides[kind]) as slide:
                shapes[kind] = slide.shape
        if len(set(shapes.values())) > 1:
            sizes = ", ".join(f"{kind} {rows} x {columns}" for kind, (rows, columns) in shapes.items())
            raise CaseSkipped(f"its slides differ in size: {sizes}")
        shape = shapes["mask"]
        image = _rewritten(slides["unstained"], folder / "input.tif", shape)
        label = _rewritten(slides["stained"], folder / "label.tif", shape)
        mask = _new_tiff(folder / "mask.tif", shape)
        for place, band in _bands(slides["mask"], shape):
            mask[place] = band.any(axis=-1)
        factor = -(-max(shape) // preparation.registration_side)
        small = _shrunken(mask, factor, np.asarray)
        if not small.any():
            raise UserError(f"{slides['mask']}: the mask is zero everywhere, there is no tissue")
        displacement = _registered(image, label, factor, preparation.registration)
    except UserError as error:
        reason = str(error)
        for path in slides.values():  # of unpacked slides the place says nothing
            reason = reason.replace(f"{path}:", f"{path.name}:")
        raise CaseSkipped(reason) from None
    target = _new_tiff(folder / "label_registered.tif", (*shape, 3))
    valid = 0
    for place, values in _displaced(label, mask, displacement, factor):
        target[place] = values
        valid += int(values.any(axis=-1).sum())
    for mapped in (image, label, mask, target):
        mapped.flush()
    tissue = float(small.mean()) or 1.0
    lengths = factor * np.linalg.norm(displacement, axis=0)
    return {
        "shape": list(shape),
        "valid_ratio": tissue,
        "registered_ratio": min(1.0, valid / (tissue * shape[0] * shape[1])),
        "mean_displacement": float(np.average(lengths, weights=small)),
    }


def constants(preparation: StainingPreparation, facts: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What the dataset says of its preparation, JSON-like; a raw slide needs none."""
    return {"kind": "staining", "intensity": "8-bit colours", **preparation.model_dump(mode="json", exclude={"splits"})}


# --- pictures on disk


def _bands(path: Path, shape: tuple[int, int]) -> Iterator[tuple[tuple[slice, slice], Picture]]:
    """The slide in bands of whole tiles, top to bottom: their place and (rows, columns, 3).

    Opened anew for each band: a slide keeps decoded tiles, of which none is needed twice here.
    """
    with Slide(path) as slide:
        height = slide.tile[0] if slide.tile is not None else ROWS
    for first in range(0, shape[0], height):
        place = (slice(first, min(first + height, shape[0])), slice(0, shape[1]))
        with Slide(path) as slide:
            yield place, slide.read(place)


def _rewritten(path: Path, target: Path, shape: tuple[int, int]) -> Any:
    """The slide as an uncompressed TIFF; its memory map (rows, columns, 3).

    Raises:
        UserError: it cannot be read, or nothing is on it.
    """
    mapped, empty = _new_tiff(target, (*shape, 3)), True
    for place, band in _bands(path, shape):
        mapped[place] = band
        empty = empty and not band.any()
    if empty:
        raise UserError(f"{path}: every pixel is 0")
    return mapped


def _new_tiff(path: Path, shape: tuple[int, ...]) -> Any:
    """A new uncompressed TIFF of zeros, uint8; its memory map."""
    import tifffile

    photometric = "rgb" if len(shape) == 3 else "minisblack"
    big = int(np.prod(shape, dtype=np.int64)) > BIG_TIFF_BYTES
    return tifffile.memmap(path, shape=shape, dtype=np.uint8, photometric=photometric, metadata=None, bigtiff=big)


def _shrunken(picture: Any, factor: int, measure: Callable[[Picture], npt.NDArray[Any]]) -> FloatArray:
    """Means over squares of ``factor`` pixels a side of what is measured in each pixel, (rows, columns) rounded up."""
    height = factor * max(1, ROWS // factor)
    parts = []
    for first in range(0, picture.shape[0], height):
        values = measure(np.asarray(picture[first : first + height])).astype(np.float32, copy=False)
        values = np.pad(values, [(0, -n % factor) for n in values.shape], mode="edge")
        rows, columns = (n // factor for n in values.shape)
        parts.append(values.reshape(rows, factor, columns, factor).mean(axis=(1, 3)))
    return np.concatenate(parts)


def _brightness(band: Picture) -> FloatArray:
    """Mean of the channels, (rows, columns)."""
    mean: FloatArray = band.mean(axis=-1, dtype=np.float32)
    return mean


def _is_valid(band: Picture) -> npt.NDArray[np.bool_]:
    """Where not all channels are zero, (rows, columns)."""
    return np.asarray(band.any(axis=-1))


# --- registration


def _registered(image: Any, label: Any, factor: int, settings: Registration) -> FloatArray:
    """The displacement (2, rows, columns) that takes the label to the image, on and in pixels of the small grid.

    The glass around the tissue takes part: where tissue ends is what tells most from afar.
    """
    found = register_rigid_then_bspline(
        _shrunken(image, factor, _brightness),
        _shrunken(label, factor, _brightness),
        np.eye(3),
        (_shrunken(label, factor, _is_valid) == 1).astype(np.uint8),
        settings,
        with_displacement=True,
    )
    assert found.displacement is not None
    return found.displacement


def _displaced(
    label: Any, mask: Any, displacement: FloatArray, factor: int
) -> Iterator[tuple[tuple[slice, slice], Picture]]:
    """The label read at displaced positions, window by window: their place and (rows, columns, 3).

    Linear interpolation; 0 outside of the mask, and where an invalid pixel of the label would be read.
    """
    rows, columns = label.shape[:2]
    for top in range(0, rows, WINDOW):
        for left in range(0, columns, WINDOW):
            place = (slice(top, min(top + WINDOW, rows)), slice(left, min(left + WINDOW, columns)))
            inside = np.asarray(mask[place]) > 0
            values = np.zeros((*inside.shape, 3), np.uint8)
            if inside.any():
                values = _window(label, mask, displacement, factor, place) * inside[..., None]
            yield place, values


def _window(label: Any, mask: Any, displacement: FloatArray, factor: int, place: tuple[slice, slice]) -> Picture:
    """One window (rows, columns, 3) of the displaced label."""
    here = np.stack(np.meshgrid(*(np.arange(s.start, s.stop, dtype=np.float32) for s in place), indexing="ij"))
    small = (here - np.float32((factor - 1) / 2)) / np.float32(factor)  # centres of squares are whole numbers
    read_at = here + np.float32(factor) * _sampled(displacement, small, "border")
    limits = np.array(label.shape[:2]) - 1
    low = np.clip(np.floor(read_at.min(axis=(1, 2))), 0, limits).astype(int)
    high = np.clip(np.ceil(read_at.max(axis=(1, 2))), 0, limits).astype(int)
    box = tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))
    read_at -= low.reshape(2, 1, 1).astype(np.float32)
    source = np.asarray(label[box])
    valid = (np.asarray(mask[box]) > 0) & source.any(axis=-1)
    layers = np.concatenate([np.moveaxis(source, -1, 0), valid[None]]).astype(np.float32)
    *channels, share = _sampled(layers, read_at, "zeros")
    values = np.clip(np.rint(np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)
    registered: Picture = values * (share > 1 - 1e-5)[..., None]
    return registered


def _sampled(values: FloatArray, positions: FloatArray, padding: Literal["border", "zeros"]) -> FloatArray:
    """Values (C, rows, columns) at positions (2, ...), linear."""
    with torch.no_grad():
        sampled = sample(torch.from_numpy(values)[None], torch.from_numpy(positions)[None], padding)
    result: FloatArray = sampled[0].numpy()
    return result
