"""Makes the virtual staining archive from tissue phantoms, in the public archive's own layout and formats.

Each sample is three RGB TIFFs: the unstained section, the same tissue stained, displaced by a small rotation, shift and
smooth bend, and the mask of the tissue. They are made of one real picture of stained tissue (see ``tissue.py``).
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from equisynth.config import NonNegative, Strict
from equisynth.datasets.randomness import named_random_state
from equisynth.datasets.splits import SPLITS, CaseCounts
from equisynth.datasets.staining import ARCHIVE, KINDS
from equisynth.datasets.tissue import BAND, Picture, Section, positions
from equisynth.files import atomic_path, write_json

Side = Annotated[int, Field(ge=128)]


class StainingPhantom(Strict):
    """``sources.staining`` of kind ``phantom``. The offset is that of the stained section against the unstained one."""

    kind: Literal["phantom"] = "phantom"
    seed: Annotated[int, Field(ge=0)] = 0
    cases: CaseCounts = {"train": 2, "validate": 1, "test": 1}
    shape: tuple[Side, Side] = (768, 832)  # rows and columns
    offset_pixels: NonNegative = 12.0  # translation per axis, at most
    offset_bend_pixels: NonNegative = 4.0  # standard deviation per axis of the smooth part
    offset_degrees: NonNegative = 1.0  # rotation, at most


def case_names(settings: StainingPhantom) -> dict[str, list[str]]:
    """Case ids (``sample_<number>``) of each split."""
    numbers = iter(range(16, 16 + sum(settings.cases.values())))
    return {split: [f"sample_{next(numbers)}" for _ in range(settings.cases[split])] for split in SPLITS}


def make_phantoms(settings: StainingPhantom, folder: Path, jobs: int = 1) -> dict[str, Path]:
    """Writes the archive and ``splits.json`` into ``folder``; returns ``slides``: the archive.

    The bytes depend on ``settings`` alone, not on ``jobs``; memory holds a band of a sample per job.
    """
    from joblib import Parallel, delayed

    folder.mkdir(parents=True, exist_ok=True)
    splits, path = case_names(settings), folder / ARCHIVE
    cases = sorted(case for cases in splits.values() for case in cases)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, atomic_path(path) as temporary:
        made = Parallel(n_jobs=jobs, return_as="generator")(
            delayed(write_case)(settings, case, Path(scratch)) for case in cases
        )
        with tarfile.open(temporary, "w") as tar:
            for case, pictures in zip(cases, made, strict=True):
                for kind, picture in pictures.items():
                    member = tarfile.TarInfo(f"data/{case}/{case}_{kind}.tif")  # no time, no owner
                    member.size = picture.stat().st_size
                    with open(picture, "rb") as content:
                        tar.addfile(member, content)
                    picture.unlink()
    write_json(folder / "splits.json", splits)
    return {"slides": path}


def section(settings: StainingPhantom, case: str) -> Section:
    """The tissue of a sample; depends on (settings, case) only."""
    random_state = named_random_state(settings.seed, "staining phantom", case)
    return Section.draw(
        settings.shape, settings.offset_pixels, settings.offset_bend_pixels, settings.offset_degrees, random_state
    )


def write_case(settings: StainingPhantom, case: str, folder: Path) -> dict[str, Path]:
    """Writes one sample's ``mask``, ``stained`` and ``unstained`` TIFF into ``folder``, deflated in tiles."""
    tissue = section(settings, case)

    def noise(kind: str, rows: range) -> npt.NDArray[np.float32]:
        random_state = named_random_state(settings.seed, "staining noise", case, kind, str(rows.start))
        return random_state.standard_normal((len(rows), settings.shape[1], 3)).astype(np.float32)

    def mask(rows: range) -> Picture:
        inside = tissue.mask(positions(rows, settings.shape[1]))
        return np.repeat(np.where(inside, np.uint8(255), np.uint8(0))[..., None], 3, axis=-1)

    def stained(rows: range) -> Picture:
        return tissue.stained(tissue.displaced(positions(rows, settings.shape[1])), noise("stained", rows))

    def unstained(rows: range) -> Picture:
        return tissue.unstained(positions(rows, settings.shape[1]), noise("unstained", rows))

    paths = {kind: folder / f"{case}_{kind}.tif" for kind in KINDS}
    for kind, draw in (("mask", mask), ("stained", stained), ("unstained", unstained)):
        _write_tiff(paths[kind], settings.shape, draw)
    return paths


def _write_tiff(path: Path, shape: tuple[int, int], draw: Callable[[range], Picture]) -> None:
    import tifffile

    def tiles() -> Iterator[Picture]:
        for first in range(0, shape[0], BAND):
            band = draw(range(first, min(first + BAND, shape[0])))
            for left in range(0, shape[1], BAND):
                yield np.ascontiguousarray(band[:, left : left + BAND])

    with tifffile.TiffWriter(path) as writer:
        writer.write(
            tiles(),
            shape=(*shape, 3),
            dtype=np.uint8,
            tile=(BAND, BAND),
            compression="adobe_deflate",
            photometric="rgb",
            metadata=None,
            maxworkers=1,
        )
