"""Stage ``raw``: makes the raw archives of a dataset, downloads them, or notes where the user's own lie.

Writes ``source.json``: ``{"layout", "kind", "archives": {name: path}, "source": parameters}``; paths that are not
absolute start from the folder of ``source.json``. Downloads lie in ``.equisynth/downloads``, where a repeat finds them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from equisynth.datasets.archives import open_archive
from equisynth.errors import UserError
from equisynth.files import atomic_folder, hash_json, write_json
from equisynth.layouts.base import Archives, Raw, layout
from equisynth.validation import validate


def run(source: dict[str, Any], name: str, out: Path, jobs: int = 1, layout_name: str | None = None) -> None:
    """Makes or locates the raw data of dataset ``name`` in the folder ``out``.

    Args:
        layout_name: kind of raw data; by default that of the dataset's name.

    Raises:
        UserError: an unknown layout or kind of source, a wrong parameter, archives that are absent or wrong.
    """
    layout_name = layout_name or name
    found = layout(layout_name, f"datasets.{name}.layout")
    kind = str(source.get("kind"))
    if kind not in found.SOURCES:
        expected = " or ".join(repr(known) for known in found.SOURCES)
        raise UserError(f"params.yaml: sources.{name}.kind: found {kind!r}, expected {expected}")
    settings = validate(found.SOURCES[kind], source, f"sources.{name}")
    with atomic_folder(out) as folder:
        archives = found.fetch(settings, folder, jobs)
        with found.opened(archives) as raw:  # fails here and now if the content is wrong
            contents = {} if kind == "phantom" else _contents(raw, archives)
        write_json(
            folder / "source.json",
            {
                "layout": layout_name,
                "kind": kind,
                "archives": {key: _relative(path, folder, out) for key, path in archives.items()},
                "source": settings.model_dump(mode="json") | ({"contents": contents} if contents else {}),
            },
        )


def _relative(path: Path, folder: Path, out: Path) -> str:
    """As `source.json` in ``out`` names it; ``folder`` stands for ``out`` while that is written."""
    if path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return path.as_posix() if path.is_absolute() else Path(os.path.relpath(path, out)).as_posix()


def _contents(raw: Raw, archives: Archives) -> dict[str, Any]:
    """What tells a changed source from an unchanged one without reading all of it, or as the raw data know best."""
    known = getattr(raw, "contents", None)
    if known is not None:
        return dict(known())
    found = {}
    for key, path in archives.items():
        with open_archive(path) as archive:
            found[key] = {"names": hash_json(archive.names()), "bytes": path.stat().st_size}
    return found
