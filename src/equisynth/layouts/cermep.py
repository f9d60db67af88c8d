"""CERMEP: an archive of head scans, MR and CT, on request only; or phantoms in its form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equisynth.config import Data
from equisynth.datasets import cermep, cermep_phantom
from equisynth.datasets.cermep import CermepArchives, CermepPathSource
from equisynth.datasets.cermep import CermepPreparation as Preparation
from equisynth.datasets.cermep_phantom import CermepPhantom
from equisynth.datasets.prepared import write_case
from equisynth.layouts.base import Archives, Facts, volume_voxel_size

SOURCES = {"phantom": CermepPhantom, "path": CermepPathSource}
STORED = ("input", "label", "label_registered", "label_native")
CASES_PER_OPENING = 8  # the archive is compressed as a whole: going back in it means unpacking it again
NATIVE = ("label_native", "label_native_body_mask")
"""Roles that lie on CT's own grid."""


def fetch(source: Any, folder: Path, jobs: int) -> Archives:
    if isinstance(source, CermepPhantom):
        return cermep_phantom.make_phantoms(source, folder, jobs)
    return cermep.locate(source)


def opened(archives: Archives) -> CermepArchives:
    return CermepArchives(archives)


def prepare_into(work: Path, raw: CermepArchives, case: str, preparation: Preparation, data: Data) -> Facts:
    size = volume_voxel_size(data)
    arrays, facts = cermep.prepare_case(raw.read(case), case, preparation, size)
    native = np.array(facts["native_affine"])
    write_case(work, case, arrays, np.array(facts["affine"]), affines=dict.fromkeys(NATIVE, native))
    return facts


def constants(preparation: Preparation, data: Data, facts: Sequence[Facts]) -> dict[str, Any]:
    return cermep.constants(preparation, volume_voxel_size(data), facts)


def default_splits(cases: Sequence[str]) -> dict[str, list[str]]:
    return cermep.published_splits(cases)
