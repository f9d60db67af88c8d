"""Measures that need registrations first: found place by place, measured case by case, in processes, and pooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from equisynth.datasets.prepared import PreparedDataset
from equisynth.errors import UserError
from equisynth.evaluation.pooling import PooledMeasures
from equisynth.parallel import Workers
from equisynth.work import Arrays, Remember

Task = TypeVar("Task")
Part = tuple[int, int]
Prediction = Callable[[str], npt.NDArray[Any]]
"""case -> (*S) or (*S, C'), raw units."""
Measure = Callable[[str, npt.NDArray[Any]], Arrays]
"""case and its prediction -> `case_arrays`."""
Take = Callable[[str, Arrays], None]

WHOLE: Part = (1, 1)


@dataclass(frozen=True)
class Registrations:
    """Places whose registration is there, and the reasons of those that failed, by name."""

    found: int
    failures: dict[str, str]


def register_all(
    register: Callable[[Task], tuple[str, str | None]], tasks: Sequence[Task], part: Part, jobs: int
) -> Registrations:
    """Registers the places of one part of all, in processes.

    Args:
        register: gives a place's name, and why it failed; sent to other processes.
        tasks: in an order that is the same everywhere.
        part: (k, n): the k-th of each n.
        jobs: processes (-1: one per core).

    Raises:
        UserError: there is no such part.
    """
    number, count = part
    if not 1 <= number <= count:
        raise UserError(f"part {number}/{count}: expected a number from 1 to {count}, such as 1/{count}")
    chosen, failures = tasks[number - 1 :: count], {}
    with Workers(jobs) as workers:
        for name, failure in workers.map(register, chosen):
            if failure is not None:
                failures[name] = failure
    return Registrations(len(chosen) - len(failures), dict(sorted(failures.items())))


def case_arrays(total: PooledMeasures, count: int, failures: list[tuple[str, str]]) -> Arrays:
    """What was measured of a case, as it is kept: sums, number of places, (N, 2) names of the failed and reasons."""
    return total.to_arrays() | {"count": np.array(count), "failures": np.array(failures, dtype=str).reshape(-1, 2)}


def measure_cases(
    kind: str,
    places: str,
    dataset: PreparedDataset,
    split: str,
    prediction: Prediction,
    measure: Measure,
    measures: type[PooledMeasures],
    remember: Remember,
    jobs: int = 1,
    take: Take | None = None,
) -> dict[str, Any]:
    """Measures the cases of a split in processes, and pools them.

    Args:
        kind: of the evaluation: a case is remembered as ``<kind>/<split>/<case>``.
        places: what is counted: ``locations`` or ``tiles``.
        prediction, measure, remember: are sent to other processes.
        measures: what the sums of a case are.
        jobs: processes (-1: one per core).
        take: gets each case and all its arrays.

    Returns:
        ``{"split", <places>, "failures": {place: reason}, "cases": {case: {measure: value, <places>}}, "pooled"}``.
    """
    one = partial(_remembered, f"{kind}/{split}", prediction, measure, remember)
    found: dict[str, tuple[PooledMeasures, int, dict[str, str]]] = {}
    with Workers(jobs) as workers:
        for case, arrays in workers.map(one, sorted(dataset.cases(split))):
            if take is not None:
                take(case, arrays)
            found[case] = measures.from_arrays(arrays), int(arrays["count"]), dict(arrays["failures"].tolist())
    signal_range = dataset.info.label.signal_range
    cases: dict[str, Any] = {}
    pooled, failures = measures(), dict[str, str]()
    for case, (total, count, failed) in sorted(found.items()):
        cases[case] = total.summary(signal_range) | {places: count}
        failures |= failed
        pooled += total
    return {
        "split": split,
        places: sum(case[places] for case in cases.values()),
        "failures": failures,
        "cases": cases,
        "pooled": pooled.summary(signal_range),
    }


def _remembered(
    prefix: str, prediction: Prediction, measure: Measure, remember: Remember, case: str
) -> tuple[str, Arrays]:
    def compute() -> Arrays:
        return measure(case, prediction(case))

    return case, remember(f"{prefix}/{case}", compute)
