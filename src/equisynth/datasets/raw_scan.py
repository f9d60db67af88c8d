"""One raw scan on its way to a model and back: what all kinds of preparation share.

A prepared dataset names its kind (``preparation["kind"]``). For predictions of raw scans the module
``equisynth.datasets.<kind>`` offers

    COMPANIONS: tuple[str, ...] = ("t1",)   # other scans of the subject that it can use; absent: none

    def prepare_input(scan: Scan, preparation: Mapping[str, Any], **companions: Scan) -> PreparedInput

``scan`` lies already on the `ModelGrid`; companions are as they were read. ``preparation`` is what the dataset says of
itself (``dataset.json``, ``model.json``) and holds, beside what the kind needs, ``orientation``: the orientation of the
training scans. Optional, for warnings: ``reference_body_quantiles`` and ``edge_shares`` of the training scans. A module
without ``prepare_input`` has nothing to do for raw inputs. Importing it needs the base dependencies only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.preprocessing import resampling

FloatArray = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]
Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scan:
    """Values (*S) and the affine (4, 4) from voxel index to mm."""

    values: FloatArray
    affine: Matrix

    @property
    def voxel_size(self) -> tuple[float, ...]:
        return resampling.voxel_size(self.affine)


@dataclass(frozen=True)
class PreparedInput:
    """A scan as training saw its inputs, but for the grid, which is the caller's part.

    Attributes:
        values: (*S), in the unit of the prepared inputs.
        body: (*S), 1 inside of the body; None: unknown.
        parameters: what was found, JSON-like, for the record beside the output.
        warnings: one line each.
    """

    values: FloatArray
    body: Mask | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelGrid:
    """The grid on which a model sees a raw scan: axes turned to the training scans', voxels of their size.

    Attributes:
        raw_shape, raw_affine: of the scan as it is stored.
        orientation: of the training scans, e.g. ``LPS``.
        own: the scan's voxel size (mm) along the turned axes; equal to ``target`` where it differs by rounding only.
        target: the model's voxel size (mm).
    """

    raw_shape: tuple[int, ...]
    raw_affine: Matrix
    orientation: str
    own: tuple[float, ...]
    target: tuple[float, ...]

    @classmethod
    def of(cls, scan: Scan, orientation: str, target: Sequence[float]) -> ModelGrid:
        """The grid for a scan."""
        affine = resampling.reoriented_affine(scan.affine, scan.values.shape, orientation)
        sizes = tuple(float(size) for size in target)
        own = resampling.agreed_voxel_size(resampling.voxel_size(affine), sizes)
        return cls(scan.values.shape, scan.affine, orientation, own, sizes)

    @property
    def raw_orientation(self) -> str:
        """The orientation in which the scan is stored."""
        return resampling.orientation(self.raw_affine)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The scan's voxel size over the model's, along the turned axes."""
        return tuple(o / t for o, t in zip(self.own, self.target, strict=True))

    def forward(self, values: npt.NDArray[Any]) -> FloatArray:
        """An image on the scan's stored grid (*S) on this one; linear interpolation."""
        turned = resampling.reoriented(values, self.raw_orientation, self.orientation)
        return resampling.to_voxel_size(turned, self.own, self.target)

    @property
    def affine(self) -> Matrix:
        """Voxel index of this grid to mm, (4, 4)."""
        turned = resampling.reoriented_affine(self.raw_affine, self.raw_shape, self.orientation)
        turned_shape = resampling.reoriented_shape(self.raw_shape, self.raw_orientation, self.orientation)
        affine: Matrix = turned @ resampling.resampling_affine(turned_shape, self.own, self.target)
        return affine

    def back(self, values: FloatArray) -> FloatArray:
        """An image of this grid (*S) on the scan's stored grid."""
        turned_shape = resampling.reoriented_shape(self.raw_shape, self.raw_orientation, self.orientation)
        turned = resampling.from_voxel_size(values, turned_shape, self.own, self.target)
        return resampling.reoriented(turned, self.orientation, self.raw_orientation)


def training_landmarks(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What warnings compare a raw scan with, JSON-like: how the training scans lay, and were, as a whole.

    Args:
        facts: of the training cases, each with ``orientation``, ``body_quantiles`` and ``edge_shares``.
    """
    quantiles = np.mean([fact["body_quantiles"] for fact in facts], axis=0)
    edges = np.max([fact["edge_shares"] for fact in facts], axis=0)
    return {
        "orientation": Counter(fact["orientation"] for fact in facts).most_common(1)[0][0],
        "reference_body_quantiles": [round(float(q), 6) for q in quantiles],
        "edge_shares": [[round(float(share), 6) for share in sides] for sides in edges],
    }


def edge_shares(body: Mask) -> list[list[float]]:
    """How much of the first and the last slice along each axis is body: where it goes on beyond the field of view."""
    return [[float((np.take(body, side, axis) > 0).mean()) for side in (0, -1)] for axis in range(body.ndim)]
