"""IXI: the three public archives of brain scans, phantoms in their form, or a user's own copy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from equisynth.config import Data, Strict
from equisynth.datasets import download as downloads
from equisynth.datasets import ixi
from equisynth.datasets.download import RemoteFile
from equisynth.datasets.ixi import MODALITIES, IxiArchives
from equisynth.datasets.ixi import IxiPreparation as Preparation
from equisynth.datasets.phantom import PhantomSource, write_archives
from equisynth.datasets.prepared import write_case
from equisynth.datasets.splits import Split
from equisynth.errors import UserError
from equisynth.files import write_json
from equisynth.layouts.base import Archives, Facts, volume_voxel_size

_ARCHIVES = "http://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI"
_LISTS = "https://raw.githubusercontent.com/honkamj/non-aligned-i2i/e395356/data/IXI"
_SHA256: dict[Split, str] = {
    "train": "45a8a370fef86d5e5288d0d458441d207c514015d41bb7900d6d9724c6733161",
    "validate": "172edb481aa56154efba6536de77f052b43fc30005275759a174c21bc719063a",
    "test": "9c1a86fddd92a65ee0221658370bc166f9863ba5c44eada8abda48ecfa267fcf",
}


class IxiPath(Strict):
    """``sources.<dataset>`` of kind ``path``: a folder that holds IXI-<T1|T2|PD>.tar, or folders T1, T2, PD."""

    kind: Literal["path"]
    path: Path


class IxiDownload(Strict):
    """``sources.<dataset>`` of kind ``download``: the public archives (13 GB) and the lists of the published splits.

    Attributes:
        scans: an archive per modality.
    """

    kind: Literal["download"]
    licence_accepted: bool = False
    scans: dict[str, RemoteFile] = {m: RemoteFile(url=f"{_ARCHIVES}/IXI-{m}.tar") for m in MODALITIES}
    splits: dict[Split, RemoteFile] | None = {
        split: RemoteFile(url=f"{_LISTS}/{split}_cases.json", sha256=digest) for split, digest in _SHA256.items()
    }  # lists of the published splits; null: none


SOURCES = {"phantom": PhantomSource, "path": IxiPath, "download": IxiDownload}
STORED = ("input", "label")
CASES_PER_OPENING = 1


def fetch(source: Any, folder: Path, jobs: int) -> Archives:
    if isinstance(source, PhantomSource):
        return write_archives(source, folder, jobs)
    if isinstance(source, IxiPath):
        return _located(Path(os.path.expanduser(source.path)))
    downloads.require_licence(
        source.licence_accepted,
        "params.yaml: sources.ixi.licence_accepted",
        "Creative Commons BY-SA 3.0",
        "https://brain-development.org/ixi-dataset/",
    )
    place = downloads.FOLDER / "ixi"
    archives = {modality: downloads.fetch(file, place) for modality, file in source.scans.items()}
    if source.splits is not None:
        write_json(folder / "splits.json", downloads.fetch_case_lists(source.splits, place))
    return archives


def opened(archives: Archives) -> IxiArchives:
    return IxiArchives(archives)


def prepare_into(work: Path, raw: IxiArchives, case: str, preparation: Preparation, data: Data) -> Facts:
    size = volume_voxel_size(data)
    arrays, facts = ixi.prepare_case(raw.read(case), case, preparation, size)
    write_case(work, case, arrays, np.diag([*size, 1.0]))
    return facts


def constants(preparation: Preparation, data: Data, facts: Sequence[Facts]) -> dict[str, Any]:
    return ixi.constants(preparation, volume_voxel_size(data), facts)


def default_splits(cases: Sequence[str]) -> None:
    return None


def _located(top: Path) -> Archives:
    archives: Archives = {}
    for modality in MODALITIES:
        candidates = [top / f"IXI-{modality}.tar", top / f"IXI-{modality}", top / modality]
        found = next((path for path in candidates if path.exists()), None)
        if found is None:
            names = f"has no {candidates[0].name} and no folder {modality}" if top.is_dir() else "not found"
            raise UserError(f"params.yaml: sources.ixi.path: {top} {names}; check the path")
        archives[modality] = found
    return archives
