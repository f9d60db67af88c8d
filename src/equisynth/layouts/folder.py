"""A user's own pairs of images in a folder, or listed in a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equisynth.config import Data
from equisynth.datasets import folder as own
from equisynth.datasets.folder import FolderPreparation as Preparation
from equisynth.datasets.own_cases import FolderCases, FolderSource, locate
from equisynth.datasets.prepared import write_case
from equisynth.layouts.base import Archives, Facts

SOURCES = {"path": FolderSource}
STORED = ("input", "label")
CASES_PER_OPENING = 1


def fetch(source: FolderSource, folder: Path, jobs: int) -> Archives:
    return locate(source)


def opened(archives: Archives) -> FolderCases:
    return FolderCases(archives)


def prepare_into(work: Path, raw: FolderCases, case: str, preparation: Preparation, data: Data) -> Facts:
    arrays, facts = own.prepare_case(raw.read(case), case, preparation, data)
    write_case(work, case, arrays, np.array(facts["affine"]), n_dims=data.n_dims)
    return facts


def constants(preparation: Preparation, data: Data, facts: Sequence[Facts]) -> dict[str, Any]:
    return own.constants(preparation, data)


def default_splits(cases: Sequence[str]) -> None:
    return None
