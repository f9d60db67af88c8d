"""Whether deformations are plausible at all: how much of them folds, and how far they reach.

A low error after registration says little if the deformation explains it by tearing the image apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from equisynth.evaluation.metrics import Pooled
from equisynth.evaluation.registration import folded_share, mean_displacement
from equisynth.work import Arrays


@dataclass(frozen=True)
class Health:
    """Sums over voxels of one or several displacement fields; adding two pools them.

    Attributes:
        folded: share of voxels whose Jacobian determinant is not positive.
        displacement: length in world units.
    """

    folded: Pooled = Pooled()
    displacement: Pooled = Pooled()

    def __add__(self, other: Health) -> Health:
        return Health(self.folded + other.folded, self.displacement + other.displacement)

    def to_arrays(self) -> Arrays:
        """The sums as they are kept between runs."""
        return {field.name: np.array(astuple(getattr(self, field.name)), np.float64) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Health:
        return cls(**{name: Pooled(*sums.tolist()) for name, sums in arrays.items()})

    def summary(self) -> dict[str, float | None]:
        """Numbers for JSON; None where the mask was empty or the field not finite."""
        values = {"folded_share": self.folded.mean, "mean_displacement": self.displacement.mean}
        finite = all(math.isfinite(value) for value in values.values())
        return {key: value if finite else None for key, value in values.items()}


def health(displacement: np.ndarray, voxel_size: Sequence[float], mask: np.ndarray | None = None) -> Health:
    """Health of one displacement field.

    Args:
        displacement: (n, *S) in voxels.
        voxel_size: world units per voxel and axis.
        mask: (*S), counts where above 0; None: everywhere.
    """
    # Folding does not depend on the voxel size: it is a property of the map, not of the unit.
    size = np.reshape(np.asarray(voxel_size, displacement.dtype), (-1, *(1,) * (displacement.ndim - 1)))
    return Health(folded_share(displacement, mask), mean_displacement(displacement * size, mask))


def summarise(cases: Mapping[str, Health]) -> dict[str, Any]:
    """``{"cases": {case: {folded_share, mean_displacement}}, "pooled": {...}}``, for JSON."""
    pooled = reduce(add, cases.values(), Health())
    return {"cases": {case: cases[case].summary() for case in sorted(cases)}, "pooled": pooled.summary()}
