"""Differences between two models on the same cases, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

FEWEST_CASES = 6
"""Fewer say too little about spread for an interval to mean anything."""
RESAMPLES = 9999


@dataclass(frozen=True)
class Difference:
    """Mean over cases of a - b, and where it lies with the stated confidence.

    Attributes:
        cases: number of cases that both have.
        mean: NaN where there are none.
        interval: lower and upper end; None below `FEWEST_CASES`.
        confidence: of the interval.
    """

    cases: int
    mean: float
    interval: tuple[float, float] | None
    confidence: float = 0.95

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def paired_difference(
    a: Mapping[str, float | None], b: Mapping[str, float | None], confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Bootstrap (BCa; Efron 1987) over cases of the mean difference of one measure.

    Cases are resampled in pairs, since hard cases are hard for both models. A case that one of them lacks, or where a
    value is not finite, is left out. Where all differences are equal the interval is that point.

    Args:
        a, b: value of each case by its name.
    """
    from scipy.stats import bootstrap

    shared = [case for case in a if case in b and a[case] is not None and b[case] is not None]
    values = np.array([float(a[case]) - float(b[case]) for case in shared])  # type: ignore[arg-type]
    values = values[np.isfinite(values)]
    if not values.size:
        return Difference(0, float("nan"), None, confidence)
    mean = float(values.mean())
    if values.size < FEWEST_CASES:
        return Difference(values.size, mean, None, confidence)
    if np.ptp(values) == 0:
        return Difference(values.size, mean, (mean, mean), confidence)
    found = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=confidence, method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Difference(values.size, mean, (float(found.low), float(found.high)), confidence)
