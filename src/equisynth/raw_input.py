"""Raw scans for a model: what preparation did to the training inputs, repeated on one scan alone.

Geometry and warnings, the same for all kinds of preparation, are here; intensities are the part of the kind's own
module (``datasets/raw_scan.py`` states the interface).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth import datasets
from equisynth.config import Data
from equisynth.datasets.raw_scan import FloatArray, Mask, ModelGrid, Scan, edge_shares
from equisynth.errors import UserError
from equisynth.volumes import Volume

FAR, FARTHEST = 1.25, 3.0
"""Ratio of voxel sizes, on any axis, beyond which a user is told of resampling; beyond which a model says nothing."""
CLIPPED_SHARE = 0.01
"""Share of the body's voxels outside of the model's range beyond which a user is told."""
QUANTILE_TOLERANCE = 0.15
"""How far a quantile of the body may lie from the training scans', relative to their highest. A T1 or PD scan taken for
T2 lies at 0.2 or more, T2 scans of one kind within 0.05."""
EDGE_TOLERANCE = 0.15
"""By how much the body may fill more of an outer slice than in any training scan (necks leave the view, each at another
height)."""

_SIDES = {"R": "right", "L": "left", "A": "front", "P": "back", "S": "top", "I": "bottom"}
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


@dataclass(frozen=True)
class RawInput:
    """A raw scan ready for the model.

    Attributes:
        values: (*S) on ``grid``, as training saw its inputs.
        grid: takes masks there and predictions back.
        parameters: what was found, JSON-like.
        warnings: one line each.
    """

    values: FloatArray
    grid: ModelGrid
    parameters: dict[str, Any]
    warnings: tuple[str, ...]


def preparation_module(preparation: Mapping[str, Any], data: Data) -> ModuleType | None:
    """The module that prepares a model's raw scans; None: they are taken as they are.

    Args:
        preparation: of the model's description; empty for models of images that came prepared.

    Raises:
        UserError: this version does not know the kind.
    """
    if not preparation:
        return None
    kind = preparation.get("kind")
    if kind not in {module.name for module in iter_modules(datasets.__path__)}:
        raise UserError(
            f"the model's preparation is of kind {kind!r}, unknown to this version of equisynth; update it, or prepare "
            "the image as the training images were and add --prepared"
        )
    module = import_module(f"equisynth.datasets.{kind}")
    takes_scans = data.n_dims == 3 and data.input.channels == 1
    return module if takes_scans and hasattr(module, "prepare_input") else None


def companions_of(module: ModuleType | None) -> Sequence[str]:
    """Other scans of the subject that the preparation can use, e.g. ``t1``."""
    return getattr(module, "COMPANIONS", ())


def prepare(
    scan: Scan,
    module: ModuleType,
    preparation: Mapping[str, Any],
    data: Data,
    oriented: bool = True,
    **companions: Scan,
) -> RawInput:
    """Turns, resamples and scales a scan as preparation did with the training scans.

    Args:
        scan: as it was read.
        module: `preparation_module`'s.
        oriented: the scan's affine says where its axes point.
        companions: other scans of the subject by name, on grids of their own.

    Raises:
        UserError: the voxel size is too far from training's, or the kind cannot prepare it; without the file's name.
    """
    orientation, warnings = preparation.get("orientation"), []
    if orientation is None:
        raise UserError(
            "the model's preparation states no orientation, so that raw scans cannot be turned to it; train it again "
            "with this version, or prepare the image as the training images were and add --prepared"
        )
    if not oriented:
        scan = replace(scan, affine=_upright(scan, orientation))
        warnings.append(f"the header says nothing of orientation: axes are taken to be {orientation}, as in training")
    grid = ModelGrid.of(scan, orientation, data.voxel_size)
    warnings += voxel_size_warnings(grid.own, grid.target)
    found = module.prepare_input(Scan(grid.forward(scan.values), grid.affine), preparation, **companions)
    warnings += [*found.warnings, *range_warnings(found.values, found.body, preparation, data)]
    if found.body is not None:
        warnings += edge_warnings(found.body, preparation)
    parameters = {
        "kind": preparation["kind"],
        "orientation": {"input": grid.raw_orientation, "model": orientation},
        "voxel_size": {"input": _rounded(scan.voxel_size), "model": list(grid.target)},
        "resampled": grid.own != grid.target,
        **found.parameters,
    }
    return RawInput(found.values, grid, parameters, tuple(warnings))


def voxel_size_warnings(found: Sequence[float], expected: Sequence[float], far: float = FAR) -> list[str]:
    """A line where a scan is resampled by much.

    Raises:
        UserError: by more than `FARTHEST`, or a size is zero.
    """
    ratios = [one / other for one, other in zip(found, expected, strict=True)]
    sizes = f"voxel size {_sizes(found)} mm, the model was trained on {_sizes(expected)} mm"
    if any(not 1 / FARTHEST <= ratio <= FARTHEST for ratio in ratios):
        raise UserError(f"{sizes}; expected at most a factor of {FARTHEST:g} apart: take a scan or a model that fits")
    if any(not 1 / far <= ratio <= far for ratio in ratios):
        return [f"{sizes}: details that depend on it may be wrong"]
    return []


def range_warnings(
    values: npt.NDArray[Any], body: Mask | None, preparation: Mapping[str, Any], data: Data
) -> list[str]:
    """Lines where intensities are not those that the model was trained on.

    Args:
        values: (*S) in the unit of the prepared inputs.
        body: (*S); None: wherever the values are not zero.
    """
    inside, warnings = values[values != 0 if body is None else body > 0], []
    reference = preparation.get("reference_body_quantiles")
    if reference is not None and body is not None:
        found = np.quantile(inside, (0.1, 0.3, 0.5, 0.7, 0.9))
        if np.abs(found - reference).max() > QUANTILE_TOLERANCE * reference[-1]:
            warnings.append(
                f"intensities are unlike the training scans' (quantiles of the body {_numbers(found)}, expected about "
                f"{_numbers(reference)}): is this a {data.input.modality} scan?"
            )
    if data.input.clip is not None and inside.size:
        low, high = data.input.clip
        share = float(((inside < low) | (inside > high)).mean())
        if share > CLIPPED_SHARE:
            warnings.append(f"{share:.1%} of the image lies outside of the model's range {low:g} to {high:g}: clipped")
    return warnings


def edge_warnings(body: Mask, preparation: Mapping[str, Any]) -> list[str]:
    """A line where the body (*S) leaves the field of view more than it did in the training scans."""
    usual = preparation.get("edge_shares") or np.zeros((body.ndim, 2)).tolist()
    sides = [
        f"{_SIDES[letter]} ({share:.0%} of the outer slice, in training up to {most:.0%})"
        for towards, shares, limits in zip(preparation["orientation"], edge_shares(body), usual, strict=True)
        for letter, share, most in zip((_OPPOSITE[towards], towards), shares, limits, strict=True)
        if share > most + EDGE_TOLERANCE
    ]
    return [f"the body touches the edge of the field of view: {', '.join(sides)}"] if sides else []


def as_scan(volume: Volume) -> Scan:
    """A volume that was read as a scan in space.

    Raises:
        UserError: fewer than three axes, or an affine that is singular.
    """
    path, affine = volume.path, np.asarray(volume.image.affine, dtype=np.float64)
    if min(volume.shape) < 2:
        raise UserError(f"{path}: shape {volume.shape}, expected a volume with at least two voxels along each axis")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise UserError(f"{path}: its affine is singular; mend its header, or convert it from DICOM again")
    return Scan(volume.values.astype(np.float32), affine)


def _upright(scan: Scan, orientation: str) -> npt.NDArray[np.float64]:
    """An affine with the scan's voxel size and centre at 0 whose axes point as told."""
    axes = np.zeros((3, 3))
    for axis, letter in enumerate(orientation):
        axes["RLAPSI".index(letter) // 2, axis] = 1 if letter in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = axes * scan.voxel_size
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(scan.values.shape) - 1) / 2)
    return affine


def _rounded(sizes: Sequence[float]) -> list[float]:
    return [round(size, 6) for size in sizes]


def _sizes(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes)


def _numbers(values: Sequence[float] | npt.NDArray[Any]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
