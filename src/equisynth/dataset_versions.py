"""Versions of prepared datasets: DVC's hashes from ``dvc.lock``, which say it without the data being there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equisynth.errors import UserError
from equisynth.files import sha256


def dataset_version(prepared: Path | str) -> str:
    """DVC's hash of a prepared dataset from ``dvc.lock``; without it a hash of its description.

    Raises:
        UserError: there is neither.
    """
    prepared = Path(prepared)
    found = next((entry for stage in _locked() if (entry := _entry(stage, "outs", prepared))), None)
    if found is None and not (prepared / "dataset.json").is_file():
        raise UserError(f"{prepared / 'dataset.json'}: not found, and dvc.lock does not say its version; dvc pull")
    return found or f"json-{sha256(prepared / 'dataset.json')[:24]}"


def trained_on(experiment: str, dataset: str) -> str:
    """Version of the dataset that ``models/<experiment>`` was trained on, as ``dvc.lock`` says, else the present one.

    Raises:
        UserError: nothing tells.
    """
    prepared = Path("data/prepared") / dataset
    stages = _locked()
    if any(_entry(stage, "outs", prepared) for stage in stages):  # else DVC's hash of it is not its version
        for stage in stages:
            if any(Path(out["path"]) == Path("models") / experiment for out in stage.get("outs", ())):
                return _entry(stage, "deps", prepared) or dataset_version(prepared)
    return dataset_version(prepared)


def _locked() -> list[dict[str, Any]]:
    """The stages of ``dvc.lock``."""
    import yaml

    lock = Path("dvc.lock")
    if not lock.is_file():
        return []
    return list(((yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages") or {}).values())


def _entry(stage: Mapping[str, Any], kind: str, path: Path) -> str | None:
    """The hash of one of a locked stage's ``outs`` or ``deps``."""
    return next(
        (str(entry["md5"]) for entry in stage.get(kind, ()) if Path(entry["path"]) == path and "md5" in entry), None
    )
