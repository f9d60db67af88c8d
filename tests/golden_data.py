"""Reads the golden numbers: arrays printed by the reference implementation that ours must reproduce.

Set the environment variable ``GOLDEN_DIR`` to check against another set of the same structure.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

DIRECTORY = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden")


class Golden:
    """The arrays of one file below a key prefix; ``golden / "2d"`` narrows the prefix."""

    def __init__(self, name: str, arrays: dict[str, np.ndarray], prefix: str = "") -> None:
        self.name, self._arrays, self.prefix = name, arrays, prefix

    def __truediv__(self, part: str | int) -> Golden:
        return Golden(self.name, self._arrays, f"{self.prefix}{part}/")

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[self.prefix + key]

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self._arrays

    def keys(self) -> Iterator[str]:
        """Keys below the prefix, without it."""
        return (key[len(self.prefix) :] for key in self._arrays if key.startswith(self.prefix))

    def children(self) -> list[str]:
        """The distinct first parts of the keys below the prefix that have parts below them, in file order."""
        return list(dict.fromkeys(key.split("/")[0] for key in self.keys() if "/" in key))

    def json(self, key: str) -> Any:
        return json.loads(str(self[key]))

    def tolerance(self, key: str, stated: float = 1e-5) -> float:
        """Relative to the largest magnitude of the array: the stated one, or 20 times the measured noise."""
        return max(1e-5, stated, 20 * _noise().get(self.name, {}).get(self.prefix + key, 0.0))

    def check(self, key: str, actual: Any, stated: float = 1e-5) -> None:
        """Asserts that ``actual`` equals the golden array within its tolerance."""
        expected = np.asarray(self[key], dtype=np.float64)
        found = np.asarray(actual.detach().cpu() if hasattr(actual, "detach") else actual, dtype=np.float64)
        assert found.shape == expected.shape, f"{self.prefix}{key}: shape {found.shape}, golden {expected.shape}"
        assert np.array_equal(np.isnan(found), np.isnan(expected)), f"{self.prefix}{key}: NaN in other places"
        if np.isnan(expected).all():  # also where there is nothing
            return
        scale = max(float(np.nanmax(np.abs(expected), initial=0.0)), 1e-30)
        error = float(np.nanmax(np.abs(found - expected), initial=0.0)) / scale
        limit = self.tolerance(key, stated)
        assert error <= limit, f"{self.prefix}{key}: relative error {error:.3g} exceeds {limit:.3g}"


def files(pattern: str) -> list[str]:
    """Names (without suffix) of the golden files that match, e.g. ``06_i2ireg_*``."""
    return sorted(path.stem for path in DIRECTORY.glob(f"{pattern}.npz"))


@cache
def load(name: str) -> Golden:
    """A golden file by its name without suffix, e.g. ``01_primitives``."""
    with np.load(DIRECTORY / f"{name}.npz", allow_pickle=False) as archive:
        return Golden(name, {key: archive[key] for key in archive.files})


@cache
def _noise() -> dict[str, dict[str, float]]:
    path = DIRECTORY / "precision_noise.json"
    return json.loads(path.read_text()) if path.exists() else {}
