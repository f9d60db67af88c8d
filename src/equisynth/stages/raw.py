"""Stage ``raw``: makes the raw archives of a dataset, or notes where the user's own lie.

Writes ``source.json``: ``{"layout", "kind", "archives": {modality: path}, "source": parameters}``; paths that are not
absolute start from the folder of ``source.json``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from equisynth.config import Strict
from equisynth.datasets.archives import open_archive
from equisynth.datasets.ixi import MODALITIES, IxiArchives
from equisynth.errors import UserError
from equisynth.files import atomic_folder, hash_json, write_json
from equisynth.params import validate


class IxiPathSource(Strict):
    """``sources.ixi`` of kind ``path``: a folder that holds IXI-<T1|T2|PD>.tar, or folders T1, T2, PD."""

    kind: Literal["path"]
    path: Path


def run(source: dict[str, Any], name: str, out: Path, jobs: int = 1) -> None:
    """Makes or locates the raw data of dataset ``name`` in the folder ``out``.

    Raises:
        UserError: an unknown dataset or kind of source, a wrong parameter, archives that are absent or wrong.
    """
    if name != "ixi":
        raise UserError(f"params.yaml: sources.{name}: no such dataset; known: ixi")
    kind = source.get("kind")
    with atomic_folder(out) as folder:
        if kind == "phantom":
            description = _phantom(source, folder, jobs)
        elif kind == "path":
            description = _located(source, out)
        else:
            raise UserError(f"params.yaml: sources.{name}.kind: found {kind!r}, expected 'phantom' or 'path'")
        write_json(folder / "source.json", {"layout": name, "kind": kind, **description})


def _phantom(source: dict[str, Any], folder: Path, jobs: int) -> dict[str, Any]:
    from equisynth.datasets.phantom import PhantomSource, write_archives

    settings = validate(PhantomSource, source, "sources.ixi")
    archives = write_archives(settings, folder, jobs)
    return {
        "archives": {modality: path.name for modality, path in archives.items()},
        "source": settings.model_dump(mode="json"),
    }


def _located(source: dict[str, Any], out: Path) -> dict[str, Any]:
    settings = validate(IxiPathSource, source, "sources.ixi")
    top = Path(os.path.expanduser(settings.path))
    archives: dict[str, Path] = {}
    for modality in MODALITIES:
        candidates = [top / f"IXI-{modality}.tar", top / f"IXI-{modality}", top / modality]
        found = next((path for path in candidates if path.exists()), None)
        if found is None:
            names = f"no {candidates[0].name} and no folder {modality}"
            raise UserError(f"params.yaml: sources.ixi.path: {top} has {names}; check the path")
        archives[modality] = found
    with IxiArchives(archives):  # fails here and now if the content is wrong
        pass
    contents = {}
    for modality, path in archives.items():
        with open_archive(path) as archive:
            contents[modality] = {"names": hash_json(archive.names()), "bytes": path.stat().st_size}
    relative = {m: path if path.is_absolute() else Path(os.path.relpath(path, out)) for m, path in archives.items()}
    return {
        "archives": {modality: path.as_posix() for modality, path in relative.items()},
        "source": {**settings.model_dump(mode="json"), "contents": contents},
    }
