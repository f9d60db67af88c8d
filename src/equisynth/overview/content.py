"""What the page shows: experiments of datasets with their numbers, curves and pictures, and how they are ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from equisynth.compare import Measure
from equisynth.evaluation.intervals import Difference, paired_difference
from equisynth.evaluation.names import ABSOLUTE_ERRORS

SPLITS = ("test", "validate")
"""Where the models of a dataset are ranked: in the first that one of them has."""
SELECTION = "validation/selection"
DETAILS = ("drift", "largest")
"""Measures that the page leaves to the evaluation's file."""


@dataclass(frozen=True)
class Plane:
    """One slice or picture of a case; images: kind -> name in `Overview.images`."""

    name: str
    images: Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """A case as one model translated it.

    Attributes:
        chosen: why it is shown: ``first``, ``best``, ``worst``.
        reference: what its error is against: ``label_aligned``, ``label_registered`` or ``label``.
        checkerboard_with: a label, named likewise, or ``input``.
    """

    name: str
    split: str
    chosen: tuple[str, ...]
    measures: Mapping[str, float]
    planes: Sequence[Plane]
    reference: str = ""
    checkerboard_with: str = ""


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        pooled: split -> measure -> value.
        cases: split -> measure -> case -> value.
        missing: what was not measured: beginning of the measures' names -> reason.
        inapplicable: of these, what the dataset or the method gives no way to measure.
        references: name -> measure -> value, on split `reference_split`.
        fid: as the evaluation wrote it.
        history: one record per epoch.
        registered: as stage ``register`` wrote it.
        problems: what is missing or broken, in words.
    """

    name: str
    dataset: str
    method: str = ""
    pooled: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    cases: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    inapplicable: tuple[str, ...] = ()
    references: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reference_split: str = "test"
    fid: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    registered: Mapping[str, Any] | None = None
    panels: Sequence[Case] = ()
    error_range: tuple[float, ...] | None = None
    error_colours: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def is_evaluated(self) -> bool:
        return bool(self.pooled)

    @property
    def best_epoch(self) -> int | None:
        """Of the lowest validation measure that chooses the epoch."""
        found = [(record[SELECTION], int(record["epoch"])) for record in self.history if SELECTION in record]
        return min(found)[1] if found else None


@dataclass(frozen=True)
class Dataset:
    """Experiments of one dataset, the best one first, those without a value last.

    Attributes:
        letters: experiment -> what stands for it in plots.
        unit: of the label.
    """

    name: str
    experiments: Sequence[Experiment]
    unit: str = ""
    input: str = "input"
    label: str = "label"
    n_dims: int = 3

    @property
    def evaluated(self) -> list[Experiment]:
        return [found for found in self.experiments if found.is_evaluated]

    @property
    def letters(self) -> dict[str, str]:
        return {found.name: letter(position) for position, found in enumerate(self.experiments)}

    @property
    def inapplicable(self) -> set[str]:
        """What none of the models can be measured by: nobody misses it."""
        return set.intersection(*(set(found.inapplicable) for found in self.evaluated)) if self.evaluated else set()

    def measures(self, split: str) -> list[Measure]:
        """All that a model has but `DETAILS`, in the order in which they are shown."""
        names = {name for found in self.experiments for name in found.pooled.get(split, {})}
        measures = [measure for measure in map(Measure, names) if not measure.key.startswith(DETAILS)]
        return sorted(measures, key=lambda measure: measure.order)

    def primary(self, split: str = "test") -> Measure | None:
        """What the models are ranked by."""
        return primary(self.experiments, split)

    def best(self, measure: Measure, split: str) -> Experiment | None:
        """The model with the best pooled value; the first of equals."""
        found = []
        for experiment in self.experiments:
            value = experiment.pooled.get(split, {}).get(measure.name)
            badness = None if value is None else measure.badness(value)
            if badness is not None:
                found.append((badness, experiment))
        return min(found, key=lambda pair: pair[0])[1] if found else None


@dataclass(frozen=True)
class Overview:
    """All that the page shows.

    Attributes:
        images: name (of the content) -> data URI.
        left_out: number of images that the page had no room for.
        digest: of everything else here: equal inputs, equal digests.
    """

    datasets: Sequence[Dataset]
    scale: str
    images: Mapping[str, str]
    left_out: int
    digest: str


def difference(measure: Measure, split: str, a: Experiment, b: Experiment) -> Difference | None:
    """a - b over the cases that both have; None where there are none. Each pair is resampled once."""
    first, second = (tuple(sorted(e.cases.get(split, {}).get(measure.name, {}).items())) for e in (a, b))
    found = _paired(first, second) if first <= second else _negative(_paired(second, first))
    return found if found.cases else None


def primary(experiments: Sequence[Experiment], split: str) -> Measure | None:
    there = {name for found in experiments for name in found.pooled.get(split, {})}
    return next((Measure(name) for name in ABSOLUTE_ERRORS if name in there), None)


def letter(position: int) -> str:
    """A, B, ... Z, A1, B1, ..."""
    turn, place = divmod(position, 26)
    return f"{chr(ord('A') + place)}{turn or ''}"


@cache
def _paired(a: tuple[tuple[str, float], ...], b: tuple[tuple[str, float], ...]) -> Difference:
    return paired_difference(dict(a), dict(b))


def _negative(found: Difference) -> Difference:
    interval = None if found.interval is None else (-found.interval[1], -found.interval[0])
    return Difference(found.cases, -found.mean, interval, found.confidence)
