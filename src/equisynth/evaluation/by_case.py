"""Measures that need registrations first: found place by place, measured case by case, in processes, and pooled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.datasets.prepared import PreparedDataset
from equisynth.errors import UserError
from equisynth.evaluation.pooling import PooledMeasures
from equisynth.parallel import Workers
from equisynth.preprocessing.elastix import RegistrationFailed
from equisynth.work import Arrays, Remember

Part = tuple[int, int]
Place = tuple[int, ...]
"""A location's voxel, or a tile's first pixel."""
Lacks = Callable[[PreparedDataset, str], str | None]
"""Why a case cannot be evaluated so; None: it can."""
Find = Callable[[str, Place], object]
"""Registers at a place of a case and keeps what it found; raises `RegistrationFailed`."""
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


def place_name(case: str, place: Place) -> str:
    """In messages and of files."""
    return f"{case}/{'-'.join(map(str, place))}"


def lacking(dataset: PreparedDataset, split: str, lacks: Lacks) -> str | None:
    """Why a split cannot be evaluated so, by its first case that cannot; None: it can."""
    return next(filter(None, (lacks(dataset, case) for case in sorted(dataset.cases(split)))), None)


def not_computed(dataset: PreparedDataset, split: str, lacks: Lacks) -> dict[str, Any] | None:
    """What stands in place of numbers for JSON, ``{"split", "computed", "applies", "reason"}``; None: nothing lacks.

    ``applies`` is false where no case can be evaluated so: it is not this kind of dataset.
    """
    reason = lacking(dataset, split, lacks)
    if reason is None:
        return None
    applies = any(lacks(dataset, case) is None for case in dataset.cases(split))
    return {"split": split, "computed": False, "applies": applies, "reason": reason}


def register_all(
    find: Find, dataset: PreparedDataset, split: str, places: Callable[[str], Iterable[Place]], part: Part, jobs: int
) -> Registrations:
    """Registers one part of all places of a split's cases, in processes.

    Args:
        find: sent to other processes.
        places: of a case, in an order that is the same everywhere.
        part: (k, n): the k-th of each n.
        jobs: processes (-1: one per core).

    Raises:
        UserError: there is no such part.
    """
    number, count = part
    if not 1 <= number <= count:
        raise UserError(f"part {number}/{count}: expected a number from 1 to {count}, such as 1/{count}")
    tasks = [(case, place) for case in sorted(dataset.cases(split)) for place in places(case)]
    chosen, failures = tasks[number - 1 :: count], {}
    with Workers(jobs) as workers:
        for name, failure in workers.map(partial(_failure, find), chosen):
            if failure is not None:
                failures[name] = failure
    return Registrations(len(chosen) - len(failures), dict(sorted(failures.items())))


def _failure(find: Find, task: tuple[str, Place]) -> tuple[str, str | None]:
    """A place's name, and why nothing was found there."""
    try:
        find(*task)
    except RegistrationFailed as error:
        return place_name(*task), str(error)
    return place_name(*task), None


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
