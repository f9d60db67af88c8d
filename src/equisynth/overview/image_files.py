"""The panels' image files as data URIs, one copy of equal ones, as many as fit the page."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

KINDS = ("prediction", "input", "label", "aligned", "registered", "error", "deformation", "checkerboard")
"""Images of a plane; the first ones are kept where not all fit the page."""
TYPES = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
LATE = 3
"""Cases from this place on wait until the kinds of earlier ones are in."""


class ImageFiles:
    """Collects images by their content.

    Args:
        folder: of all panels; an experiment's images lie in the folder of its name, and nowhere else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, tuple[tuple[int, int], str, bytes]] = {}

    def add(self, experiment: str, file: str, kind: str, rank: int) -> str | None:
        """Name of an image; None where there is no such file in the experiment's folder."""
        folder = (self._folder / experiment).resolve()
        path = (folder / str(file)).resolve()
        if not path.is_relative_to(folder) or path.suffix.lower() not in TYPES or not path.is_file():
            return None
        content = path.read_bytes()
        key = hashlib.sha256(content).hexdigest()[:16]
        order = (min(rank, LATE), KINDS.index(kind))
        if key in self._found:
            order = min(order, self._found[key][0])
        self._found[key] = (order, TYPES[path.suffix.lower()], content)
        return key

    def fitting(self, limit: int) -> tuple[dict[str, str], int]:
        """Data URIs of as many images as fit, and the number of those left out."""
        uris, total = {}, 0
        for key, (_, kind, content) in sorted(self._found.items(), key=lambda item: (item[1][0], item[0])):
            total += len(content)
            if total > limit:
                break
            uris[key] = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        return uris, len(self._found) - len(uris)
