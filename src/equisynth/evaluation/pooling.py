"""Pooled measures side by side: they add up over cases, are kept as arrays and become numbers for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from equisynth.evaluation.metrics import Pooled

Summary = dict[str, float | None]


@dataclass(frozen=True)
class PooledMeasures:
    """Base of frozen dataclasses whose fields are all `Pooled`, zero by default."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def to_arrays(self) -> dict[str, npt.NDArray[np.float64]]:
        """Name -> total and mass (2,)."""
        return {field.name: np.array(astuple(getattr(self, field.name)), np.float64) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """What `to_arrays` gave; other arrays may stand beside."""
        return cls(*(Pooled(*arrays[field.name].tolist()) for field in fields(cls)))

    def values(self, signal_range: float) -> dict[str, float]:
        """The numbers by their names in reports; NaN where nothing was measured.

        Args:
            signal_range: of the label.
        """
        raise NotImplementedError

    def summary(self, signal_range: float) -> Summary:
        """Numbers for JSON; None where nothing could be measured, and for the PSNR of a perfect prediction."""
        found = self.values(signal_range).items()
        return {key: value if math.isfinite(value) else None for key, value in found}
