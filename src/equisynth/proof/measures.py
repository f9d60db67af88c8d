"""What a trained method is measured by: translation against the aligned truth, registration against the known field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from equisynth.config import Settings
from equisynth.datasets.intensity import channels_first, denormalise, normalise
from equisynth.datasets.prepared import PreparedDataset
from equisynth.datasets.tiles import patch_starts, window
from equisynth.evaluation import deformations
from equisynth.evaluation.metrics import Pooled, psnr
from equisynth.evaluation.registration import DeformationErrors, comparable, deformation_errors, folded_share
from equisynth.geometry.transforms import Image
from equisynth.losses import dissimilarity
from equisynth.methods.base import Batch, Method

EVALUATED_SHARE = 0.5
"""Volumes: patches less covered by the evaluation mask tell little of registration and are left out."""
Pictures = dict[str, npt.NDArray[np.float32]]
Measure = dict[str, float | None]


# --- photographs, the reference protocol: no mask, outputs as they are


@torch.no_grad()
def translate_pictures(method: Method, dataset: PreparedDataset, split: str, settings: Settings) -> Pictures:
    """Case -> output (*P, 3) in raw units, neither clipped nor rounded."""
    method.train(False)
    intensity, label = settings.data.input, settings.data.label
    device = next(method.networks["i2i"].parameters()).device
    result: Pictures = {}
    cases = sorted(dataset.cases(split))
    for first in range(0, len(cases), settings.batch_size):
        names = cases[first : first + settings.batch_size]
        raw = [normalise(dataset.image(case, "input"), intensity.mean, intensity.std, intensity.clip) for case in names]
        values = torch.from_numpy(np.stack([channels_first(image, 2) for image in raw]).copy()).to(device)
        found = method.translate(method.networks["i2i"], values, torch.ones_like(values[:, :1])).float().cpu().numpy()
        pictures = np.moveaxis(denormalise(found, label.mean, label.std), 1, -1)
        result.update(zip(names, pictures.astype(np.float32), strict=True))
    return result


def aligned_truth(dataset: PreparedDataset, split: str) -> Pictures:
    """Case -> the label where it truly belongs, (*P, C) in raw units."""
    return {case: np.asarray(dataset.image(case, "label_aligned"), np.float32) for case in dataset.cases(split)}


def compare(predictions: Pictures, truth: Pictures, signal_range: float) -> dict[str, Any]:
    """Pooled measures (PSNR of the pooled MSE, scikit-image's SSIM) and those of each case.

    Returns:
        ``{"pooled": {mae, mse, psnr, ssim}, "cases": {case: the same}}``.
    """
    from skimage.metrics import structural_similarity

    cases: dict[str, Measure] = {}
    for case in sorted(predictions):
        a, b = truth[case].astype(np.float64), predictions[case].astype(np.float64)
        similarity = structural_similarity(a, b, data_range=signal_range, channel_axis=-1)
        cases[case] = _measure(float(np.abs(a - b).mean()), float(np.square(a - b).mean()), similarity, signal_range)
    means = {key: float(np.mean([_number(found[key]) for found in cases.values()])) for key in ("mae", "mse", "ssim")}
    return {"pooled": _measure(means["mae"], means["mse"], means["ssim"], signal_range), "cases": cases}


def _measure(mae: float, mse: float, similarity: float, signal_range: float) -> Measure:
    decibel = psnr(Pooled(mse, 1.0), signal_range)
    return {"mae": mae, "mse": mse, "psnr": decibel if math.isfinite(decibel) else None, "ssim": float(similarity)}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


# --- equivariance


@torch.no_grad()
def equivariance_error(method: Method, batch: Batch) -> Tensor:
    """d(F(x∘r), F(x)∘r) in normalised units: how far translating and deforming are from commuting."""
    both = torch.cat([batch.input.values, batch.input.warp(batch.random).values])
    plain, deformed = method.translate(method.networks["i2i"], both, torch.ones_like(both[:, :1])).float().chunk(2)
    moved = batch.input.warp(batch.random)
    return dissimilarity(Image(deformed, moved.mask), Image(plain, batch.input.mask).warp(batch.random), "mae")


# --- registration


def registers(method: Method) -> bool:
    """Whether the method has registration networks."""
    return "cross_registration" in method.networks


@torch.no_grad()
def registration(method: Method, dataset: PreparedDataset, settings: Settings, split: str) -> dict[str, float]:
    """Mean distances in voxels between the predicted and the true deformation of the split's labels.

    Returns:
        ``distance`` (of the whole deformation), ``distance_cross`` (without the intra-modality part),
        ``distance_unregistered`` (of no deformation at all), ``largest`` (mean over patches of the largest distance),
        ``folded`` (share of voxels where the prediction folds).
    """
    method.train(False)
    whole, cross, none = DeformationErrors(), DeformationErrors(), DeformationErrors()
    folded = Pooled()
    for batch, truth, inside in _batches(method, dataset, settings, split):
        predicted, without_intra = predicted_deformations(method, batch)
        mask = comparable(batch.input.valid(), batch.label.valid(), truth) * inside
        whole += deformation_errors(predicted, truth, mask)
        cross += deformation_errors(without_intra, truth, mask)
        none += deformation_errors(torch.zeros_like(truth), truth, mask)
        for field in predicted.cpu().numpy():
            folded += folded_share(field)
    return {
        "distance": whole.distance.mean,
        "distance_cross": cross.distance.mean,
        "distance_unregistered": none.distance.mean,
        "largest": whole.largest.mean,
        "folded": folded.mean,
    }


def predicted_deformations(method: Method, batch: Batch) -> tuple[Tensor, Tensor]:
    """d⁻¹ and its part without the intra-modality step, (B, n, *P) in voxels each; the label is the truth after d⁻¹."""
    found = method.deformations(batch)
    assert found.without_intra is not None, "the proof's methods that register do so in both steps"
    return found.whole, found.without_intra


def registration_pair(
    method: Method, dataset: PreparedDataset, settings: Settings, case: str, start: Iterable[int]
) -> tuple[Batch, Tensor]:
    """One pair as a batch of one, undeformed by r, and the true deformation (1, n, *P) in voxels."""
    place, device = tuple(start), deformations.device_of(method)
    batch = deformations.registration_pair(dataset, settings, case, place, device)
    return batch, deformations.true_deformation(dataset, case, place, settings).to(device)


def _batches(
    method: Method, dataset: PreparedDataset, settings: Settings, split: str
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Neighbouring patches of all cases, their true deformations, and where they count (1, 1, *P)."""
    for case in sorted(dataset.cases(split)):
        evaluation = dataset.mask(case, "evaluation")
        for start in patch_starts(dataset.shape(case), settings.patch_size, settings.patch_size):
            inside = np.ones(settings.patch_size, np.float32)
            if evaluation is not None:
                inside = evaluation[window(start, settings.patch_size)].astype(np.float32)
            if inside.mean() >= EVALUATED_SHARE:
                batch, truth = registration_pair(method, dataset, settings, case, start)
                yield batch, truth, torch.from_numpy(inside)[None, None].to(truth.device)


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON, which has no word for NaN."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
