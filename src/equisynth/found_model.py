"""The model that a user names, in the registry or in a folder, and the device that it is to run on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from equisynth.description import DESCRIPTION, Description, read_description
from equisynth.errors import UserError
from equisynth.files import sha256
from equisynth.model import WEIGHTS


@dataclass(frozen=True)
class Found:
    """A model that was found, not yet loaded.

    Attributes:
        folder: holds its files.
        origin: for the record: where it comes from, and the hash of its weights.
    """

    folder: Path
    origin: dict[str, Any]
    description: Description


def find(model: str) -> Found:
    """A model by its name in the registry or its folder.

    Raises:
        UserError: there is none, or its description cannot be read.
    """
    folder, origin = _find(model)
    description = read_description(folder)
    named = {"experiment": description.settings.experiment, "scale": description.settings.scale}
    weights = folder / WEIGHTS
    return Found(folder, origin | named | ({"sha256": sha256(weights)} if weights.is_file() else {}), description)


def check_device(device: str | None) -> None:
    """
    Raises:
        UserError: this machine has no such device.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {device}: cannot be used here ({reason:.120}); leave it out, or give cpu") from None


def _find(model: str) -> tuple[Path, dict[str, Any]]:
    """The model's folder, and where it comes from for the record."""
    if model.startswith("models:/"):
        from equisynth.registry import resolve

        found = resolve(model)
        return found.folder, {"uri": model, "name": found.name, "version": found.version, "run": found.run_id}
    folder = Path(model)
    if not model or not (folder / DESCRIPTION).is_file():
        problem = f"holds no {DESCRIPTION}" if folder.is_dir() else "no such folder"
        raise UserError(
            f"--model '{model}': {problem}; give models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder"
        )
    return folder, {"uri": model, "name": None, "version": None, "run": None}
