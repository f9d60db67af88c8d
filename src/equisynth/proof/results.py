"""Finished runs -> the numbers of the page: means and spread over seeds, paired differences, and what of it holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equisynth.errors import UserError
from equisynth.evaluation.intervals import Difference, paired_difference
from equisynth.files import read_json
from equisynth.proof.protocol import BRAIN, PHOTOGRAPHS, Reference

Value = float | None
ORDER = ("noreg", "defsim", "eqsim", "equivariance")
"""Families of methods from the simplest to the paper's proposal, as tables list them."""
WORDS = {
    "noreg": "NoReg", "defsim": "DefSim", "eqsim": "EqSim", "com": "Com", "aug": "Aug", "eqadv": "EqAdv",
    "defuncondadv": "DefUncondAdv", "defcondadv": "DefCondAdv",
}  # fmt: skip
REGIMES = {"lc": "large constant", "lr": "large random", "sc": "small constant", "sr": "small random"}


@dataclass(frozen=True)
class Found:
    """One finished run.

    Attributes:
        result: ``result.json``.
        history: one record per epoch.
        folder: that holds it.
    """

    result: dict[str, Any]
    history: list[dict[str, float]]
    folder: Path

    @property
    def task(self) -> str:
        return str(self.result["run"]["task"])

    @property
    def variant(self) -> str:
        return str(self.result["run"]["variant"])

    @property
    def seed(self) -> int:
        return int(self.result["run"]["seed"])

    def number(self, protocol: str, measure: str) -> Value:
        """A pooled measure of ``last`` or ``best``."""
        value: Value = self.result[protocol]["pooled"][measure]
        return value


@dataclass(frozen=True)
class Spread:
    """A measure over seeds: mean, standard deviation (none for one seed), and how many."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Comparison:
    """One variant against another over the seeds that both have.

    Attributes:
        first, second: variants.
        ahead: first - second of the mean PSNR, dB.
        paired: mean over test cases of the difference of their PSNR (means over seeds), with its interval.
        demanded: by how much the first was expected ahead; None: nothing was.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    ahead: float
    paired: Difference
    demanded: float | None

    @property
    def holds(self) -> bool | None:
        """Whether what was demanded was found; None: nothing was."""
        if self.demanded is None:
            return None
        interval = self.paired.interval
        return self.ahead >= self.demanded and interval is not None and interval[0] > 0


def load(folders: Sequence[Path]) -> list[Found]:
    """The runs of some folders, sorted by name.

    Raises:
        UserError: there are none.
    """
    if not folders:
        raise UserError("no run of the proof is finished; run: make proof")
    found = [Found(read_json(folder / "result.json"), read_json(folder / "history.json"), folder) for folder in folders]
    return sorted(found, key=lambda run: str(run.result["run"]["name"]))


def variants(runs: Sequence[Found], task: str, regime: str | None = None) -> dict[str, list[Found]]:
    """Variant -> its runs by seed, the simplest method first."""
    chosen = [run for run in runs if run.task == task and run.result["run"]["regime"] == regime]
    names = sorted({run.variant for run in chosen}, key=_place)
    return {name: sorted((run for run in chosen if run.variant == name), key=lambda run: run.seed) for name in names}


def spread(runs: Sequence[Found], read: Callable[[Found], Value]) -> Spread | None:
    """Mean and deviation over runs; None where none has a value."""
    values = [value for run in runs if (value := read(run)) is not None]
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def compare(first: Sequence[Found], second: Sequence[Found], demanded: float | None) -> Comparison | None:
    """The first variant's runs against the second's, last epoch; None where they share no seed."""
    seeds = tuple(sorted({run.seed for run in first} & {run.seed for run in second}))
    if not seeds:
        return None
    sides = [[run for run in runs if run.seed in seeds] for runs in (first, second)]
    means = [spread(runs, lambda run: run.number("last", "psnr")) for runs in sides]
    if means[0] is None or means[1] is None:
        return None
    paired = paired_difference(_per_case(sides[0]), _per_case(sides[1]))
    return Comparison(first[0].variant, second[0].variant, seeds, means[0].mean - means[1].mean, paired, demanded)


def comparisons(runs: Sequence[Found], reference: Reference) -> list[Comparison]:
    """What the protocol asks for, as far as there are runs for it."""
    by_variant = {run.variant: [other for other in runs if other.variant == run.variant] for run in runs}
    found = [
        compare(by_variant[first], by_variant[second], demanded)
        for first, second, demanded in reference.ahead
        if first in by_variant and second in by_variant
    ]
    return [comparison for comparison in found if comparison is not None]


def title(variant: str) -> str:
    """``lc_eqsim_com`` -> EqSim+Com; ``noreg_on_aligned`` -> NoReg on aligned labels."""
    name, _, label = variant.partition("_on_")
    words = name.split("_")
    words = words[1:] if words[0] in REGIMES else words
    on = f" on {label} labels" if label else ""
    if words[0] == "equivariance":
        return f"DefSim+Com+EqAdv, equivariant to {', '.join(words[1:])}{on}"
    return "+".join(WORDS.get(word, word) for word in words) + on


def regimes(runs: Sequence[Found]) -> list[str]:
    """Misalignments of photographs that there are runs of, large ones first."""
    there = {run.result["run"]["regime"] for run in runs if run.task == PHOTOGRAPHS}
    return [regime for regime in REGIMES if regime in there]


def has_brain(runs: Sequence[Found]) -> bool:
    return any(run.task == BRAIN for run in runs)


def _place(variant: str) -> tuple[int, int, str]:
    words = variant.split("_")
    family = words[1] if words[0] in REGIMES else words[0]
    return ORDER.index(family) if family in ORDER else len(ORDER), len(words), variant


def _per_case(runs: Sequence[Found]) -> dict[str, Value]:
    """Case -> PSNR of the last epoch, the mean over runs; None where one has no value."""
    cases: dict[str, Value] = {}
    for case in runs[0].result["last"]["cases"]:
        values = [run.result["last"]["cases"][case]["psnr"] for run in runs]
        cases[case] = None if None in values else statistics.fmean(values)
    return cases
