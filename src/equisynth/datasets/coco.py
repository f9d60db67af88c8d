"""COCO: photographs, of which pairs are made while training (``synthetic.py``).

Preparation sorts the pictures into splits and decodes them once; a prepared case holds ``input`` and nothing else.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from equisynth.config import Data, Strict
from equisynth.datasets import download as downloads
from equisynth.datasets.archives import CaseSkipped, open_archive, read_member, skipping_damage
from equisynth.datasets.case_files import case_files, why_doubled
from equisynth.datasets.download import RemoteFile
from equisynth.datasets.photographs import PhotographSource, write_archive
from equisynth.datasets.prepared_files import LONGEST_SIDE
from equisynth.datasets.splits import Split, Splits
from equisynth.errors import UserError

ARCHIVE = "unlabeled2017.zip"
MEMBER_LIMIT = 1 << 26  # bytes; a picture has about 200 kB
PIXEL_LIMIT = 1 << 26  # of the decoded picture, against bombs

Picture = npt.NDArray[np.uint8]

_LISTS = "https://raw.githubusercontent.com/honkamj/non-aligned-i2i/e395356/data/coco_unlabeled2017"
_SHA256: dict[Split, str] = {
    "train": "6c5a2767e686fda0425d8bd64b3ce4bdbd19ecaf3bbb04a1636e287074df945f",
    "validate": "c0b2a02c618141569e6f59990a9442552280f1d5cca2321197fc6cfb9dcfc076",
    "test": "36d65fdda3fad932d79fc7072692c420a2849756c5baaad708c13f02d07132a0",
}


class CocoPreparation(Strict):
    """``datasets.coco.preparation``. Null ``splits``: those that come with the raw data."""

    seed: Annotated[int, Field(ge=0)] = 0  # a picture's deformation follows from this and its name alone
    splits: Splits | None = None  # null: those that come with the raw data


class CocoDownload(Strict):
    """``sources.coco`` of kind ``download``: the public archive (19 GB) and the lists of the published splits."""

    kind: Literal["download"]
    licence_accepted: bool = False
    pictures: RemoteFile = RemoteFile(url=f"http://images.cocodataset.org/zips/{ARCHIVE}")  # the archive
    splits: dict[Split, RemoteFile] | None = {
        split: RemoteFile(url=f"{_LISTS}/{split}_cases.json", sha256=digest) for split, digest in _SHA256.items()
    }  # lists of the published splits; null: none


class CocoPath(Strict):
    """``sources.coco`` of kind ``path``: the archive, the folder that holds it, or a folder of pictures."""

    kind: Literal["path"]
    path: Path


# --- sources of raw archives


def make_phantoms(settings: PhotographSource, folder: Path, jobs: int = 1) -> dict[str, Path]:
    """Writes the archive (and ``splits.json``) from photographs that libraries ship."""
    return {"pictures": write_archive(settings, folder, jobs)}


def locate(settings: CocoPath) -> dict[str, Path]:
    """The user's archive or folder.

    Raises:
        UserError: absent, damaged, unsafe, or without pictures.
    """
    path = Path(os.path.expanduser(settings.path))
    archives = {"pictures": path / ARCHIVE if (path / ARCHIVE).is_file() else path}
    with CocoArchives(archives):  # fails here and now if the content is wrong
        return archives


def download(settings: CocoDownload, folder: Path) -> dict[str, Path]:
    """Fetches the public archive into ``folder``; a repeat continues.

    Raises:
        UserError: the licence is not accepted, or the archive cannot be had.
    """
    downloads.require_licence(
        settings.licence_accepted,
        "sources.coco.licence_accepted",
        "COCO's terms of use (annotations CC BY 4.0, each picture under the terms of its owner)",
        "https://cocodataset.org/#termsofuse",
    )
    return {"pictures": downloads.fetch(settings.pictures, folder)}


def download_splits(settings: CocoDownload, folder: Path) -> dict[str, list[str]] | None:
    """Fetches the published lists of case names; none where the settings have none.

    Raises:
        UserError: one cannot be had or is no list of names.
    """
    return None if settings.splits is None else downloads.fetch_case_lists(settings.splits, folder)


# --- raw archives


class CocoArchives:
    """The opened archive (or folder) of pictures; use as a context manager.

    Raises:
        UserError: it is absent, damaged, unsafe, or holds no picture.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._path, self._stack = paths["pictures"], ExitStack()

    def __enter__(self) -> CocoArchives:
        with ExitStack() as stack:
            archive = stack.enter_context(open_archive(self._path))
            self._files = case_files(archive, re.compile(r"(?:.*/)?(\d{12})\.jpe?g", re.IGNORECASE))
            if not self._files.cases:
                raise UserError(
                    f"{self._path}: holds no picture named <12 digits>.jpg ({len(archive.names())} other files); "
                    "is this the right archive?"
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def cases(self) -> list[str]:
        """Sorted names (12 digits)."""
        return sorted(self._files.names)

    def incomplete_cases(self) -> list[str]:
        """Sorted names of the cases that stand there twice."""
        return sorted(self._files.doubled)

    def full_name(self, case: str) -> str:
        """The 12 digits of a case given as such, by its number (``8``) or its file (``000000000008.jpg``)."""
        number = case.removesuffix(".jpg")
        return number.zfill(12) if number.isdecimal() else case

    def read(self, case: str) -> Picture:
        """The picture (height, width, 3); grey ones get three equal channels.

        Raises:
            CaseSkipped: it is missing, stands there twice, or cannot be read.
        """
        name = self._files.names.get(case)
        if name is None:
            raise CaseSkipped(why_doubled(case, [self._files]) or f"no {case}.jpg in the archive")
        with skipping_damage(name):
            content = read_member(self._files.archive, name, MEMBER_LIMIT)
        return decode(content, name)


def decode(content: bytes, name: str) -> Picture:
    """A JPEG file as (height, width, 3), as stored: a camera's note of how it was held is not applied.

    Raises:
        CaseSkipped: no JPEG, cut off, too many pixels, or all of one colour.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if image.width * image.height > PIXEL_LIMIT:
                raise CaseSkipped(f"{name}: {image.width} x {image.height} pixels, expected at most {PIXEL_LIMIT}")
            if max(image.size) > LONGEST_SIDE:
                raise CaseSkipped(f"{name}: {image.width} x {image.height} pixels, expected sides up to {LONGEST_SIDE}")
            picture = np.array(image.convert("RGB"))
    except CaseSkipped:
        raise
    except Exception as error:  # damaged files raise many kinds
        raise CaseSkipped(f"{name}: is no whole JPEG picture ({error})") from None
    if (picture == picture[0, 0]).all():
        raise CaseSkipped(f"{name}: every pixel is {tuple(picture[0, 0].tolist())}")
    return picture


# --- one case


def prepare_case(
    raw: Picture, case: str, preparation: CocoPreparation, data: Data
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """The arrays of one prepared case, and facts about it.

    Returns:
        ``input`` (height, width, 3) uint8; and JSON-like facts: ``size``, and whether the picture is ``grey``.
    """
    return {"input": raw}, {"size": list(raw.shape[:2]), "grey": bool((raw == raw[..., :1]).all())}


def constants(preparation: CocoPreparation) -> dict[str, Any]:
    """``preparation`` of ``dataset.json``: ``seed`` is what pairs are made with."""
    return {"kind": "coco", "pairs": "made from the input", "seed": preparation.seed}
