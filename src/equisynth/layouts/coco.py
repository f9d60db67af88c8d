"""COCO: a zip of photographs, of which pairs are made while training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equisynth.config import Data
from equisynth.datasets import coco
from equisynth.datasets import download as downloads
from equisynth.datasets.coco import CocoArchives, CocoDownload, CocoPath
from equisynth.datasets.coco import CocoPreparation as Preparation
from equisynth.datasets.photographs import PhotographSource
from equisynth.datasets.prepared import write_case
from equisynth.files import write_json
from equisynth.layouts.base import Archives, Facts

SOURCES = {"phantom": PhotographSource, "path": CocoPath, "download": CocoDownload}
STORED = ("input",)
CASES_PER_OPENING = 64  # reading the list of a hundred thousand pictures takes seconds


def fetch(source: Any, folder: Path, jobs: int) -> Archives:
    if isinstance(source, PhotographSource):
        return coco.make_phantoms(source, folder, jobs)
    if isinstance(source, CocoPath):
        return coco.locate(source)
    place = downloads.FOLDER / "coco"
    archives, splits = coco.download(source, place), coco.download_splits(source, place)
    if splits is not None:
        write_json(folder / "splits.json", splits)
    return archives


def opened(archives: Archives) -> CocoArchives:
    return CocoArchives(archives)


def prepare_into(work: Path, raw: CocoArchives, case: str, preparation: Preparation, data: Data) -> Facts:
    arrays, facts = coco.prepare_case(raw.read(case), case, preparation, data)
    write_case(work, case, arrays, np.eye(4), n_dims=2)
    return facts


def constants(preparation: Preparation, data: Data, facts: Sequence[Facts]) -> dict[str, Any]:
    return coco.constants(preparation)


def default_splits(cases: Sequence[str]) -> None:
    return None
