"""Predictions of a prepared split against labels that are aligned with the input.

Beside the model stand three references that know nothing of anatomy, fitted on the misaligned training pairs: the mean
label, the best linear map of intensities, and the best lookup table of intensities. A model that does not beat the
table has learned no more than a change of contrast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from equisynth.datasets.intensity import channels_first, valid_mask
from equisynth.datasets.prepared import PreparedDataset
from equisynth.evaluation.metrics import Pooled, errors, normalised_mutual_information, psnr, ssim
from equisynth.evaluation.names import prefix_of_whole_images
from equisynth.evaluation.pooling import PooledMeasures
from equisynth.work import Arrays, Remember, anew

LOOKUP_BINS = 128
Translate = Callable[[np.ndarray], np.ndarray]
"""Raw input (*S) or (*S, C) -> raw prediction (*S) or (*S, C')."""


@dataclass(frozen=True)
class Measures(PooledMeasures):
    """Pooled measures of one or several cases."""

    absolute: Pooled = Pooled()
    squared: Pooled = Pooled()
    similarity: Pooled = Pooled()
    information: Pooled = Pooled()

    def values(self, signal_range: float) -> dict[str, float]:
        return {
            "mae": self.absolute.mean,
            "mse": self.squared.mean,
            "psnr": psnr(self.squared, signal_range),
            "ssim": self.similarity.mean,
            "nmi": self.information.mean,
        }


def measure(
    image: np.ndarray,
    prediction: np.ndarray,
    label: np.ndarray,
    image_mask: np.ndarray | None,
    label_mask: np.ndarray | None,
    evaluation_mask: np.ndarray | None,
    n_dims: int,
    signal_range: float,
) -> Measures:
    """All measures of one case, in raw units, as the evaluation of full volumes defines them.

    Args:
        image, prediction, label: (*S) or (*S, C).
        image_mask, label_mask, evaluation_mask: (*S); None: everywhere.
        signal_range: of the label.
    """
    shape = image.shape[:n_dims]
    content = np.ones(shape, np.uint8) if image_mask is None else (image_mask > 0).astype(np.uint8)
    if label_mask is not None:
        content &= label_mask > 0
    if evaluation_mask is None:
        evaluation, inside = np.broadcast_to(np.uint8(1), shape), content
    else:
        evaluation, inside = evaluation_mask, content & (evaluation_mask > 0)
    absolute, squared = errors(label, prediction, inside)
    similarity = ssim(label, prediction, content, evaluation, signal_range)
    comparable = image.size == prediction.size
    information = normalised_mutual_information(image, prediction, inside) if comparable else Pooled()
    return Measures(absolute, squared, similarity, information)


def aligned_role(dataset: PreparedDataset, split: str) -> str | None:
    """The label that predictions are compared with: the truth, else the deformably registered one, else none."""
    for role in ("label_aligned", "label_registered"):
        if all(dataset.has(case, role) for case in dataset.cases(split)):
            return role
    return None


def evaluate_split(
    dataset: PreparedDataset, split: str, prediction: Callable[[str], np.ndarray], remember: Remember = anew
) -> dict[str, Any]:
    """Measures a model's predictions per case and pooled over the cases of a split.

    Args:
        prediction: case -> (*S) or (*S, C'), raw units.
        remember: may know a case, ``<split>/<case>``, from an interrupted run.

    Returns:
        ``{"split", "label", "cases": {case: {mae, mse, psnr, ssim, nmi}}, "pooled": {...}}``; without an aligned label
        ``{"split", "computed": False, "reason"}``.
    """
    role = aligned_role(dataset, split)
    if role is None:
        reason = f"the cases of {split} do not all have an aligned (or all a registered) label"
        return {"split": split, "computed": False, "reason": reason}
    signal_range = dataset.info.label.signal_range
    pooled, cases = Measures(), {}
    for case in sorted(dataset.cases(split)):

        def measure_case(case: str = case) -> Arrays:
            return measure(
                dataset.image(case, "input"),
                prediction(case),
                dataset.image(case, role),
                _valid(dataset, case, "input"),
                _valid(dataset, case, role),
                dataset.mask(case, "evaluation"),
                dataset.info.n_dims,
                signal_range,
            ).to_arrays()

        found = Measures.from_arrays(remember(f"{split}/{case}", measure_case))
        cases[case] = found.summary(signal_range)
        pooled += found
    return {"split": split, "label": role, "cases": cases, "pooled": pooled.summary(signal_range)}


def named_measures(found: Mapping[str, Any]) -> dict[str, float]:
    """The pooled measures of `evaluate_split` that have a value, by the names that reports use."""
    prefix = prefix_of_whole_images(found)
    return {f"{prefix}{key}": value for key, value in found.get("pooled", {}).items() if value is not None}


@dataclass(frozen=True)
class References:
    """The three references, fitted.

    Attributes:
        predictors: name -> function of a raw input.
        residual: root mean square of label minus lookup table on the training pairs, what intensities cannot explain
            (anatomy and misalignment).
    """

    predictors: Mapping[str, Translate]
    residual: float


def fit_references(
    dataset: PreparedDataset, label_role: str = "label", split: str = "train", remember: Remember = anew
) -> References:
    """Fits the references inside the valid masks of the training pairs, case by case.

    The lookup table gives the mean label of each of 128 bins over the range of the input; a label channel sees the
    input channel of its number (the first one, if there are not as many).
    """
    cases = sorted(dataset.cases(split))
    extents = [remember(f"extent/{case}", partial(_extent, dataset, case, label_role))["extent"] for case in cases]
    lower, upper = (float(reduce(np.minimum, extents)[0]), float(reduce(np.maximum, extents)[1]))
    if not math.isfinite(lower):
        lower, upper = 0.0, 1.0
    edges = np.linspace(lower, upper if upper > lower else lower + 1, LOOKUP_BINS + 1)

    inputs, labels = dataset.info.input.channels, dataset.info.label.channels
    source = [channel if labels <= inputs else 0 for channel in range(labels)]
    parts = (remember(f"sums/{case}", partial(_sums, dataset, case, label_role, edges, source)) for case in cases)
    sums = reduce(_add, parts)
    gram, moment, bin_counts, bin_sums = (sums[name] for name in ("gram", "moment", "bin_counts", "bin_sums"))
    square_sum = float(sums["squares"])
    count = max(float(gram[-1, -1]), 1.0)
    coefficients = np.linalg.lstsq(gram, moment, rcond=None)[0]  # (inputs + 1, labels)
    tables = bin_sums / np.maximum(bin_counts, 1)
    residual = math.sqrt(max(square_sum - float((bin_counts * tables**2).sum()), 0.0) / (count * labels))
    for table, counts in zip(tables, bin_counts, strict=True):
        filled = np.flatnonzero(counts)
        if filled.size:
            table[:] = np.interp(np.arange(LOOKUP_BINS), filled, table[filled])
    means = moment[-1] / count
    n_dims = dataset.info.n_dims
    clip = dataset.info.input.clip

    def predictor(function: Callable[[np.ndarray], np.ndarray]) -> Translate:
        def translate(image: np.ndarray) -> np.ndarray:
            x = channels_first(np.asarray(image, np.float32), n_dims)
            result = np.asarray(function(x if clip is None else np.clip(x, *clip)), np.float32)
            return result[0] if labels == 1 else np.moveaxis(result, 0, -1)

        return translate

    def mean_label(x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(means.reshape(-1, *(1,) * n_dims), (labels, *x.shape[1:]))

    def linear(x: np.ndarray) -> np.ndarray:
        weights, offset = coefficients[:-1].astype(np.float32), coefficients[-1].reshape(-1, *(1,) * n_dims)
        return np.asarray(np.tensordot(weights.T, x, axes=1) + offset.astype(np.float32))

    def lookup(x: np.ndarray) -> np.ndarray:
        return np.stack([tables[k][_bins(x[source[k]], edges)].astype(np.float32) for k in range(labels)])

    predictors = {"mean_label": mean_label, "linear_fit": linear, "lookup_table": lookup}
    return References({name: predictor(function) for name, function in predictors.items()}, residual)


def evaluate_references(
    dataset: PreparedDataset, split: str, label_role: str = "label", remember: Remember = anew
) -> dict[str, Any]:
    """Fits the references on the training split and measures them on another one: name -> pooled measures."""
    references = fit_references(dataset, label_role, remember=remember)
    result: dict[str, Any] = {}
    for name, translate in references.predictors.items():

        def predicted(case: str, translate: Translate = translate) -> np.ndarray:
            return translate(dataset.image(case, "input"))

        def remember_own(key: str, compute: Callable[[], Arrays], name: str = name) -> Arrays:
            return remember(f"{name}/{key}", compute)

        evaluated = evaluate_split(dataset, split, predicted, remember_own)
        if "pooled" not in evaluated:
            return {}
        result[name] = evaluated["pooled"]
    result["lookup_table"]["residual_rmse"] = references.residual
    return result


def _extent(dataset: PreparedDataset, case: str, label_role: str) -> Arrays:
    """Lowest and highest input of a training pair where both images are valid; infinite if nowhere."""
    lower, upper = math.inf, -math.inf
    for x, _ in _valid_values(dataset, case, label_role):
        if x.size:
            lower, upper = min(lower, float(x.min())), max(upper, float(x.max()))
    return {"extent": np.array([lower, upper])}


def _sums(dataset: PreparedDataset, case: str, label_role: str, edges: np.ndarray, source: list[int]) -> Arrays:
    """What a training pair adds to the fits: moments of its valid values, and their sums in the bins of the table."""
    inputs, labels = dataset.info.input.channels, len(source)
    gram, moment = np.zeros((inputs + 1, inputs + 1)), np.zeros((inputs + 1, labels))
    bin_counts, bin_sums = np.zeros((labels, LOOKUP_BINS)), np.zeros((labels, LOOKUP_BINS))
    squares = 0.0
    for x, y in _valid_values(dataset, case, label_role):
        design = np.concatenate([x, np.ones((1, x.shape[1]))])
        gram += design @ design.T
        moment += design @ y.T
        squares += float((y**2).sum())
        for channel in range(labels):
            place = _bins(x[source[channel]], edges)
            bin_counts[channel] += np.bincount(place, minlength=LOOKUP_BINS)
            bin_sums[channel] += np.bincount(place, weights=y[channel], minlength=LOOKUP_BINS)
    return {
        "gram": gram, "moment": moment, "bin_counts": bin_counts, "bin_sums": bin_sums, "squares": np.array(squares)
    }  # fmt: skip


def _add(a: Arrays, b: Arrays) -> Arrays:
    return {name: np.asarray(a[name] + b[name]) for name in a}


def _valid_values(dataset: PreparedDataset, case: str, label_role: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Raw values of a pair where both are valid: input (C, N), clipped, and label (C', N), float64."""
    n_dims, clip = dataset.info.n_dims, dataset.info.input.clip
    image, label = dataset.image(case, "input"), dataset.image(case, label_role)
    valid = np.ones(image.shape[:n_dims], bool)
    for mask in (_valid(dataset, case, "input"), _valid(dataset, case, label_role)):
        if mask is not None:
            valid &= mask > 0
    for plane in range(0, image.shape[0], 16):  # slabs, so that float64 copies stay small
        part = slice(plane, plane + 16)
        x = channels_first(image[part], n_dims)[:, valid[part]].astype(np.float64)
        yield (
            x if clip is None else np.clip(x, *clip),
            channels_first(label[part], n_dims)[:, valid[part]].astype(np.float64),
        )


def _valid(dataset: PreparedDataset, case: str, role: str) -> np.ndarray | None:
    """Where an image is valid (*S): by its mask, and by its values where the dataset says so."""
    mask, threshold = dataset.mask(case, role), dataset.info.invalid_at_or_below
    if threshold is None:
        return mask
    return valid_mask(mask, dataset.image(case, role), dataset.info.n_dims, threshold)


def _bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    scaled = (values - edges[0]) * (LOOKUP_BINS / (edges[-1] - edges[0]))
    return np.clip(scaled.astype(np.int64), 0, LOOKUP_BINS - 1)
