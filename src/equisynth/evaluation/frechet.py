"""Fréchet distance (Fréchet 1957) of two sets of activations, each taken for a Gaussian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from equisynth.work import Arrays

FEW_IMAGES = 2048
"""Below so many the covariance has no full rank, and the distance is biased upwards."""


class Unavailable(Exception):
    """FID cannot be computed; the message is the reason."""


class Sample:
    """Activations of a set of images: each of them up to `FEW_IMAGES`, beyond that their mean and covariance."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[np.ndarray] = []
        self._mean = self._scatter = np.zeros(0)  # scatter: sum of outer products of deviations from the mean

    def add(self, activations: np.ndarray) -> None:
        """More images, (n, features)."""
        if not len(activations):
            return
        self._parts.append(activations)
        self.count += len(activations)
        if self.count > FEW_IMAGES:
            part = np.concatenate(self._parts, dtype=np.float64)  # all of them once, later the last ones alone
            self._pool(self.count - len(part), part)
            self._parts = []

    def _pool(self, before: int, part: np.ndarray) -> None:
        """Adds images to the moments of those before (Chan, Golub, LeVeque 1983)."""
        mean = part.mean(axis=0)
        deviations = part - mean
        scatter = deviations.T @ deviations
        if not before:
            self._mean, self._scatter = mean, scatter
            return
        step, count = mean - self._mean, before + len(part)
        self._mean = self._mean + step * (len(part) / count)
        self._scatter = self._scatter + scatter + np.outer(step, step) * (before * len(part) / count)

    def to_arrays(self) -> Arrays:
        """``activations`` (images, features) float32; or ``mu``, ``sigma``, as pytorch-fid keeps them, and ``images``.

        Raises:
            Unavailable: fewer than two images have no covariance.
        """
        if self.count < 2:
            raise Unavailable(f"a covariance needs at least two images, found {self.count}")
        if self.count <= FEW_IMAGES:
            return {"activations": np.concatenate(self._parts)}
        return {"mu": self._mean, "sigma": self._scatter / (self.count - 1), "images": np.array(self.count)}


def number_of_images(sample: Arrays) -> int:
    """Of `Sample.to_arrays`."""
    return len(sample["activations"]) if "activations" in sample else int(sample["images"])


def frechet_distance(a: Arrays, b: Arrays) -> float:
    """Fréchet distance of two Gaussians with the moments of two samples.

    |mean_a - mean_b|² + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^½), where the last trace is the nuclear norm of R_a R_bᵀ for
    any C = Rᵀ R, such as the centred sample matrix: exact, and much faster than a matrix square root.

    Args:
        a, b: see :meth:`Sample.to_arrays`.
    """
    (mean_a, root_a), (mean_b, root_b) = _mean_and_root(a), _mean_and_root(b)
    difference = mean_a - mean_b
    traces = float(np.square(root_a).sum() + np.square(root_b).sum())
    cross = float(np.linalg.norm(root_a @ root_b.T, ord="nuc"))
    return float(difference @ difference) + traces - 2 * cross


def _mean_and_root(sample: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Mean (features), and R (at most features, features) with RᵀR the covariance."""
    if "activations" not in sample:
        values, vectors = np.linalg.eigh(sample["sigma"])
        return sample["mu"], np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    x = np.asarray(sample["activations"], np.float64)
    mean = x.mean(axis=0)
    root = (x - mean) / np.sqrt(len(x) - 1)
    # With more images than features an orthogonal rotation of the samples keeps root.T @ root and shortens it.
    return mean, np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root


def compare(predicted: Mapping[str, Arrays], real: Mapping[str, Arrays], weights_sha256: str) -> dict[str, Any]:
    """Distances per cut, each beside what it was computed from, for JSON."""
    result: dict[str, Any] = {"computed": True}
    for name in predicted:
        counts = [number_of_images(side[name]) for side in (predicted, real)]
        result[name] = {
            "value": frechet_distance(predicted[name], real[name]),
            "images": counts[0],
            "real_images": counts[1],
            "weights_sha256": weights_sha256,
        }
        if min(counts) < FEW_IMAGES:
            result[name]["warning"] = (
                f"fewer than {FEW_IMAGES} images: biased upwards, comparable only between runs with as many images"
            )
    return result | {"weights_sha256": weights_sha256}
