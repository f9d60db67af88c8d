"""Virtual staining: an archive of large slides, each a case of three TIFFs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equisynth.config import Data
from equisynth.datasets import staining, staining_phantom
from equisynth.datasets.archives import CaseSkipped
from equisynth.datasets.staining import StainingArchives, StainingPathSource
from equisynth.datasets.staining import StainingPreparation as Preparation
from equisynth.datasets.staining_phantom import StainingPhantom
from equisynth.files import atomic_folder, remove
from equisynth.layouts.base import Archives, Facts

SOURCES = {"phantom": StainingPhantom, "path": StainingPathSource}
STORED = ("input", "label", "label_registered")
CASES_PER_OPENING = 1


def fetch(source: Any, folder: Path, jobs: int) -> Archives:
    if isinstance(source, StainingPhantom):
        return staining_phantom.make_phantoms(source, folder, jobs)
    return staining.locate(source)


def opened(archives: Archives) -> StainingArchives:
    return StainingArchives(archives)


def prepare_into(work: Path, raw: StainingArchives, case: str, preparation: Preparation, data: Data) -> Facts:
    scratch = work / "unpacked" / case  # outside of the case's folder: a repeat finds what is unpacked
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_folder(work / "cases" / case) as folder:
            facts = staining.prepare_case_into(folder, raw.read(case, scratch), case, preparation)
    except CaseSkipped:
        remove(scratch)
        raise
    remove(scratch)
    return facts


def constants(preparation: Preparation, data: Data, facts: Sequence[Facts]) -> dict[str, Any]:
    return staining.constants(preparation, facts)


def default_splits(cases: Sequence[str]) -> dict[str, list[str]]:
    return staining.published_splits(cases)
