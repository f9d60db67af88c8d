"""Which methods there are, read without importing any: parameters are checked long before torch is needed."""

from __future__ import annotations

import re
from pathlib import Path


def method_names() -> list[str]:
    """A file in ``methods/`` is a method if it defines ``METHOD``; all others there are parts that methods share."""
    folder = Path(__file__).parent / "methods"
    return sorted(
        path.stem
        for path in folder.glob("*.py")
        if re.search(r"^METHOD\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    )
