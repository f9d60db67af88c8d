"""Registration quality and deformation health of a trained method on a prepared split (spec: evaluation, metrics).

Registration networks are asked for neighbouring patches of the training patch size, the last one flush with the end:
they were trained to explain the misalignment within a patch, and memory stays that of one. Every voxel is judged once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cache, partial, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from equisynth.config import Data, Settings
from equisynth.datasets.patches import Source
from equisynth.datasets.prepared import PreparedDataset
from equisynth.datasets.tiles import axis_masks, axis_starts, outer, window
from equisynth.evaluation.health import Health, health
from equisynth.evaluation.metrics import Pooled
from equisynth.evaluation.registration import DeformationErrors, comparable, deformation_errors
from equisynth.geometry.transforms import Affine, Image
from equisynth.methods.base import Batch, Method
from equisynth.model import described_method
from equisynth.trained_method import load_method
from equisynth.work import Arrays, Remember, anew

Place = tuple[int, ...]
FloatArray = npt.NDArray[np.float32]
DEFORMED = "label"
"""The label that a known ``deformation`` misaligned."""
WHOLE, WITHOUT_INTRA, UNREGISTERED = "distance", "distance_without_intra", "distance_unregistered"


@dataclass(frozen=True)
class Quality:
    """Sums over the patches of one or several cases; adding two pools them.

    Attributes:
        health: of the whole deformation, where both images are valid.
        errors: where the true deformation is known, of the whole deformation, of its part without the intra-modality
            step (if the method has one), and of no deformation at all, by these names.
    """

    health: Health = field(default_factory=Health)
    errors: Mapping[str, DeformationErrors] = field(default_factory=dict)

    def __add__(self, other: Quality) -> Quality:
        none = DeformationErrors()
        names = [*self.errors, *(name for name in other.errors if name not in self.errors)]
        errors = {name: self.errors.get(name, none) + other.errors.get(name, none) for name in names}
        return Quality(self.health + other.health, errors)

    def to_arrays(self) -> Arrays:
        """The sums as they are kept between runs."""
        errors = {
            name: np.array([astuple(sums) for sums in (found.distance, found.largest, *found.drift)])
            for name, found in self.errors.items()
        }
        return errors | self.health.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Quality:
        errors = {}
        for name in (WHOLE, WITHOUT_INTRA, UNREGISTERED):
            if name in arrays:
                distance, largest, *drift = (Pooled(*sums) for sums in arrays[name].tolist())
                errors[name] = DeformationErrors(distance, tuple(drift), largest)
        return cls(Health.from_arrays({name: sums for name, sums in arrays.items() if name not in errors}), errors)

    def summary(self, unit: str) -> dict[str, float | None]:
        """Numbers for JSON; None where nothing could be measured.

        Args:
            unit: of world lengths, mm or pixels.
        """
        found = self.health.summary()
        numbers = {"folded_share": found["folded_share"], f"mean_displacement_{unit}": found["mean_displacement"]}
        for name, errors in self.errors.items():
            numbers[f"{name}_voxels"] = _number(errors.distance)
        if WHOLE in self.errors:
            whole = self.errors[WHOLE]
            numbers["largest_distance_voxels"] = _number(whole.largest)
            numbers |= {f"drift_axis{axis}_voxels": _number(drift) for axis, drift in enumerate(whole.drift)}
        return numbers


def evaluate(
    model: Path,
    dataset: PreparedDataset,
    split: str,
    remember: Remember = anew,
    device: str | None = None,
) -> dict[str, Any]:
    """Measures what a model's registration networks predict, per case and pooled over the voxels of a split.

    Distances are in voxels; a slice-wise method moves nothing across its slices, which counts as its error.

    Args:
        model: folder that training wrote.
        dataset: of the experiment, see ``datasets/opened.py``.
        remember: may know a case, ``deformations/<split>/<case>``, from an interrupted run.
        device: where the networks run; by default a GPU if there is one.

    Returns:
        ``{"split", "computed": True, "known": whether the true deformations are, "cases": {case: numbers}, "pooled":
        numbers}`` with the numbers of `Quality.summary`; ``{"split", "computed": False, "applies": False, "reason"}``
        where the method has no registration networks.

    Raises:
        UserError: the model is absent or damaged, or was trained on other images.
    """
    description, trained = described_method(model)
    settings = description.settings
    if not trained.registers():
        reason = f"method '{settings.method}' has no registration networks"
        return {"split": split, "computed": False, "applies": False, "reason": reason}
    dataset.require(settings.data, f"the model in {model} was trained on")
    method = cache(partial(load_method, model, device))  # not at all where every case is remembered

    def measured(case: str) -> Arrays:
        return measure_case(method(), dataset, case).to_arrays()

    found = {
        case: Quality.from_arrays(remember(f"deformations/{split}/{case}", partial(measured, case)))
        for case in sorted(dataset.cases(split))
    }
    known = all(is_known(dataset, settings, case) for case in found)
    return {"split": split, "computed": True, "known": known} | summarise(found, length_unit(dataset.info))


def summarise(cases: Mapping[str, Quality], unit: str) -> dict[str, Any]:
    """``{"cases": {case: numbers}, "pooled": numbers}``, for JSON."""
    pooled = reduce(add, cases.values(), Quality())
    return {"cases": {case: cases[case].summary(unit) for case in sorted(cases)}, "pooled": pooled.summary(unit)}


@torch.no_grad()
def measure_case(method: Method, dataset: PreparedDataset, case: str) -> Quality:
    """All patches of a case, as many at a time as training has in a batch."""
    settings, voxel_size = method.settings, dataset.info.voxel_size
    patches = _judged_patches(method, dataset, case)
    total = Quality()
    while group := list(itertools.islice(patches, settings.batch_size)):
        total += _measure(method, _Patches.joined(group), voxel_size)
    return total


@dataclass(frozen=True)
class _Patches:
    """Pairs; where they count and both images are valid, (B, 1, *P); the true deformation (B, n, *P), if known."""

    pairs: Batch
    mask: Tensor
    truth: Tensor | None

    @classmethod
    def joined(cls, group: Sequence[_Patches]) -> _Patches:
        pairs, truths = [each.pairs for each in group], [each.truth for each in group if each.truth is not None]
        inputs, labels = (
            Image(torch.cat([image.values for image in images]), torch.cat([image.valid() for image in images]))
            for images in ([pair.input for pair in pairs], [pair.label for pair in pairs])
        )
        random = Affine(torch.cat([pair.random.matrix for pair in pairs]))
        mask = torch.cat([each.mask for each in group])
        return cls(Batch(inputs, labels, random), mask, torch.cat(truths) if truths else None)

    def flattened(self) -> _Patches:
        """Slices without their last axis."""
        truth = None if self.truth is None else self.truth[..., 0]
        return _Patches(self.pairs.flattened(), self.mask[..., 0], truth)


def _judged_patches(method: Method, dataset: PreparedDataset, case: str) -> Iterator[_Patches]:
    """The patches of a case in which something counts, one by one."""
    settings, device = method.settings, device_of(method)
    evaluation, known = dataset.mask(case, "evaluation"), is_known(dataset, settings, case)
    for start, own in neighbouring_patches(dataset.shape(case), settings.patch_size):
        counted = own if evaluation is None else own * filled_up(evaluation, start, settings.patch_size)
        if not counted.any():
            continue
        pair = registration_pair(dataset, settings, case, start, device)
        mask = torch.from_numpy(counted)[None, None].to(device) * pair.input.comparison_mask(pair.label)
        if mask.any():
            truth = true_deformation(dataset, case, start, settings).to(device) if known else None
            yield _Patches(pair, mask, truth)


def _measure(method: Method, patches: _Patches, voxel_size: Sequence[float]) -> Quality:
    if method.settings.slices:
        patches = patches.flattened()
    pairs, mask, truth = patches.pairs, patches.mask, patches.truth
    predicted = method.deformations(pairs)
    whole = predicted.whole.float()
    n_dims = whole.shape[1]  # fewer than the image's for slices
    parts = zip(whole.cpu().numpy(), mask.cpu().numpy(), strict=True)
    found = reduce(add, (health(part, voxel_size[:n_dims], inside[0]) for part, inside in parts))
    if truth is None:
        return Quality(found)
    judged = mask * comparable(pairs.input.valid(), pairs.label.valid(), truth[:, :n_dims])
    fields = {WHOLE: whole, WITHOUT_INTRA: predicted.without_intra, UNREGISTERED: torch.zeros_like(whole)}
    errors = {
        name: deformation_errors(_within(displacement, truth), truth, judged)
        for name, displacement in fields.items()
        if displacement is not None
    }
    return Quality(found, errors)


def _within(displacement: Tensor, truth: Tensor) -> Tensor:
    """With zeros along the axes of the truth that a slice-wise method does not know."""
    missing = truth.shape[1] - displacement.shape[1]
    zeros = displacement.new_zeros(len(displacement), missing, *displacement.shape[2:])
    return torch.cat([displacement, zeros], dim=1).float()


# --- what the networks are shown


def neighbouring_patches(shape: Sequence[int], patch_size: Sequence[int]) -> Iterator[tuple[Place, FloatArray]]:
    """First voxels of the patches that cover an image (*S), and which voxels each answers for, (*P) of 0 and 1.

    Every voxel is answered for once. An image smaller than a patch has one that reaches beyond its end.
    """
    sizes = [max(size, side) for size, side in zip(shape, patch_size, strict=True)]
    starts = [axis_starts(size, side, side) for size, side in zip(sizes, patch_size, strict=True)]
    profiles = [axis_masks(*axis) for axis in zip(starts, sizes, patch_size, strict=True)]
    for index in itertools.product(*(range(len(axis)) for axis in starts)):
        place = tuple(axis[k] for axis, k in zip(starts, index, strict=True))
        yield place, outer([axis[k] for axis, k in zip(profiles, index, strict=True)]).astype(np.float32)


def registration_pair(
    dataset: PreparedDataset, settings: Settings, case: str, start: Sequence[int], device: torch.device | str = "cpu"
) -> Batch:
    """One pair as training sees it, a batch of one (slices: not flattened yet); r is the identity."""
    image, label = (
        image_patch(dataset, case, role, start, settings.patch_size, device) for role in ("input", settings.label_role)
    )
    return Batch(image, label, Affine(torch.eye(settings.data.n_dims + 1, device=device)[None]))


def image_patch(
    dataset: PreparedDataset,
    case: str,
    role: str,
    start: Sequence[int],
    patch_size: Sequence[int],
    device: torch.device | str = "cpu",
) -> Image:
    """A patch of an image, normalised, zero where invalid: a batch of one."""
    values, mask = (
        torch.from_numpy(part)[None].to(device)
        for part in source(dataset, case, role, patch_size).patch(start, patch_size)
    )
    return Image(values, mask)


def is_known(dataset: PreparedDataset, settings: Settings, case: str) -> bool:
    """Whether the true deformation of the label that the method was trained on is known."""
    return settings.label_role == DEFORMED and dataset.has(case, "deformation")


def true_deformation(dataset: PreparedDataset, case: str, start: Sequence[int], settings: Settings) -> Tensor:
    """The displacement that misaligned a patch of the label, (1, n, *P) in voxels."""
    components = [filled_up(part, start, settings.patch_size) for part in dataset.deformation(case)]
    return torch.from_numpy(np.stack(components).astype(np.float32))[None]


def source(dataset: PreparedDataset, case: str, role: str, patch_size: Sequence[int]) -> Source:
    """An image of a case, filled up with invalid voxels where it is smaller than a patch."""
    info = dataset.info
    values, mask = dataset.image(case, role), dataset.mask(case, role)
    missing = [(0, max(0, side - size)) for size, side in zip(values.shape, patch_size, strict=False)]
    if any(after for _, after in missing):
        mask = np.pad(np.ones(values.shape[: info.n_dims], np.uint8) if mask is None else mask, missing)
        values = np.pad(values, [*missing, *[(0, 0)] * (values.ndim - info.n_dims)])
    intensity = info.input if role == "input" else info.label
    return Source(values, mask, info.n_dims, intensity, info.invalid_at_or_below, f"{info.name}, case {case}: {role}")


def filled_up(values: npt.NDArray[Any], start: Sequence[int], patch_size: Sequence[int]) -> npt.NDArray[Any]:
    """A patch (*P) of an array (*S), zero beyond its end."""
    found = np.asarray(values[window(start, patch_size)])
    return np.pad(found, [(0, side - size) for size, side in zip(found.shape, patch_size, strict=True)])


def device_of(method: Method) -> torch.device:
    """Where a method's networks are."""
    return next(method.networks["i2i"].parameters()).device


def length_unit(data: Data) -> str:
    """Of voxel sizes: mm, or pixels of pictures."""
    return "pixels" if data.n_dims == 2 and set(data.voxel_size) == {1.0} else "mm"


def _number(sums: Pooled) -> float | None:
    """For JSON, which has no word for NaN."""
    return sums.mean if np.isfinite(sums.mean) else None
