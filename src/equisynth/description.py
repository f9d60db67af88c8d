"""What a trained model is and how to feed it: ``model.json`` beside the weights (``model.py``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from equisynth.config import Settings, Strict
from equisynth.errors import UserError
from equisynth.files import read_json, write_json

FORMAT = 1
DESCRIPTION = "model.json"


class Description(Strict):
    """What a model is and how to feed it.

    Attributes:
        preparation: the constants that raw scans need.
        selection: the validation measure that chose the epoch; none of imported weights.
    """

    format: int
    settings: Settings
    preparation: dict[str, Any]
    best_epoch: int
    selection: float | None


def write_description(folder: Path, description: Description) -> None:
    write_json(folder / DESCRIPTION, description.model_dump(mode="json"))


def read_description(folder: Path) -> Description:
    """The description in a model's folder.

    Raises:
        UserError: absent, unreadable, or written by a newer program.
    """
    path = folder / DESCRIPTION
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"{path}: model format {found!r}, this version of equisynth reads format {FORMAT}; update equisynth, or "
            "train or pull the model again"
        )
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key}: {_reason(first['type'], first['msg'])}") from None


def _reason(kind: str, message: str) -> str:
    """What is wrong with a key, and what to do."""
    if kind == "extra_forbidden":
        return "unknown to this version of equisynth; update equisynth, or remove the key if it was added by hand"
    if kind == "missing":
        return "is missing: the file was changed or is damaged; train or pull the model again"
    return f"{message}; the file was changed or is damaged: train or pull the model again"
