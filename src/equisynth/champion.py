"""Which registered version users pull: the settings and the rule, without a registry."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from equisynth.config import Strict
from equisynth.errors import UserError
from equisynth.evaluation.names import ABSOLUTE_ERRORS
from equisynth.store import flatten

PUBLISHED_SCALE = "paper"
MEASURES = tuple(f"validate.{name}" for name in ABSOLUTE_ERRORS)
Measure = Callable[[], float]
_MEASURE = re.compile(r"validate\.(\w+_)?(mae|mse)")


class RegistrySettings(Strict):
    """Section ``registry`` of params.yaml.

    Attributes:
        alias: of the version that users pull.
        measure: errors in reports/metrics/<experiment>.json by which versions are compared, in the order of preference:
            the first that an evaluation holds counts. Lower is better.
    """

    alias: str = Field("champion", pattern=r"^[A-Za-z_-][\w-]*$")
    measure: tuple[str, ...] = Field(MEASURES, min_length=1)

    @field_validator("measure")
    @classmethod
    def _measured_on_the_validation_split(cls, measures: tuple[str, ...]) -> tuple[str, ...]:
        for measure in measures:
            if not _MEASURE.fullmatch(measure):
                raise ValueError(
                    f"'{measure}' chooses no champion, expected validate.mae, validate.mse or another error of the "
                    "evaluation (losses mean something else in each method, test cases are for the report)"
                )
        return measures

    def choose(self, evaluation: Mapping[str, Any]) -> tuple[str, float | None]:
        """The first measure that a (nested) evaluation holds, and its value; None where it holds none of them."""
        flat = flatten(evaluation)
        measure = next((key for key in self.measure if flat.get(key) is not None), self.measure[0])
        return measure, flat.get(measure)

    @staticmethod
    def possible(evaluation: Mapping[str, Any]) -> list[str]:
        """What an evaluation holds that ``measure`` could list."""
        flat = flatten(evaluation)
        return [key for key in flat if _MEASURE.fullmatch(key) and flat[key] is not None]


@dataclass(frozen=True)
class Candidate:
    """What the choice of the champion looks at.

    Attributes:
        dataset_version: of the prepared validation split that ``value`` was measured on.
        measure: what ``value`` is; lower is better.
    """

    model_sha256: str
    scale: str
    dataset_version: str
    measure: str
    value: float | None


@dataclass(frozen=True)
class Decision:
    """Whether the new version becomes champion, why, and whether that took force."""

    promote: bool
    reason: str
    forced: bool = False


def not_possible() -> float:
    """An evaluation that nobody offers."""
    raise UserError("nothing to evaluate it with")


def choose_champion(
    new: Candidate, champion: Candidate | None, force: bool = False, evaluate_champion: Measure = not_possible
) -> Decision:
    """The rule by which the alias moves: better on the same measure over the same prepared validation split.

    Force waives the comparison, recorded as such; two things it cannot do: a smaller scale never replaces the published
    one, and a model that was not measured is never promoted.

    Args:
        evaluate_champion: measures the champion as ``new`` was measured (same measure, same prepared validation split);
            called only where that is not known; raises `UserError` where it cannot be done.
    """
    if champion is not None and new.model_sha256 == champion.model_sha256:
        return Decision(False, "is the champion already")
    if new.value is None or not math.isfinite(new.value):
        return Decision(False, f"{new.measure} was not measured")
    if champion is None:
        return Decision(True, f"first version with {new.measure} {new.value:.6g}")
    if champion.scale == PUBLISHED_SCALE and new.scale != PUBLISHED_SCALE:
        return Decision(False, f"scale '{new.scale}' never replaces a champion of the published scale")
    old = champion.value
    if old is None or (new.measure, new.dataset_version) != (champion.measure, champion.dataset_version):
        try:
            old = evaluate_champion()
        except UserError as error:
            what = f"the champion has no {new.measure} on dataset version {new.dataset_version}: {error}"
            return Decision(force, f"{what}; {'forced' if force else 'register --force promotes'}", forced=force)
    comparison = f"{new.measure} {new.value:.6g} against the champion's {old:.6g}"
    if new.value < old:
        return Decision(True, f"better: {comparison}")
    return Decision(force, f"not better: {comparison}{'; forced' if force else ''}", forced=force)
