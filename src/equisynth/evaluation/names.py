"""How the names of measures begin, and which part of a detailed evaluation each comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIXES = {"registered": "local_", "full_valid": "full_valid_", "deformation": "deformation_"}
"""What is measured per split besides whole images: key of a detailed evaluation -> how its names begin."""
ABSOLUTE_ERRORS = ("mae", "local_mae", "full_valid_mae", "registered_mae")
"""By which models of a dataset are compared: the first that its evaluation has."""
LEFT_OUT = "left out"
"""Reason of what the settings leave out."""


def kind_of(measure: str) -> str | None:
    """The key of `PREFIXES` that a measure such as ``local_mae`` is of; None: of whole images."""
    return next((kind for kind, prefix in PREFIXES.items() if measure.startswith(prefix)), None)


def prefix_of_whole_images(found: Mapping[str, Any]) -> str:
    """How the names of whole images begin: a label that was registered, and is not known to be aligned, says so."""
    return "registered_" if found.get("label") == "label_registered" else ""
