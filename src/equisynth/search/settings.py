"""Section ``search`` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from equisynth.config import Count, Strict

ALIGNED, REGISTERED = "aligned_mae", "registered"
"""Objectives: error against the true aligned label (an oracle); similarity to the label after registration."""


class Interval(Strict):
    """A range of numbers, drawn on a log scale unless said otherwise; ``[low, high]`` is short for it."""

    low: float  # `[low, high]` is short for an interval on a log scale
    high: float  # above `low`
    log: bool = True  # false: on a linear scale

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, content: Any) -> Any:
        if isinstance(content, list | tuple) and len(content) == 2:
            return {"low": content[0], "high": content[1]}
        if not isinstance(content, dict | Interval):
            raise ValueError("expected [low, high], {low, high, log} or {choices: [...]}")
        return content

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}, expected low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}, expected above 0 on a log scale (or log: false)")
        return self


class Choices(Strict):
    """One of several values."""

    choices: tuple[str | bool | int | float | None, ...]  # one of these values

    @model_validator(mode="after")
    def _not_empty(self) -> Choices:
        if not self.choices:
            raise ValueError("expected at least one choice")
        return self


def _kind(content: Any) -> str:
    """Which of both is meant, so that a mistake is told of that one."""
    chooses = isinstance(content, Choices) or (isinstance(content, dict) and "choices" in content)
    return (Choices if chooses else Interval).__name__


Values = Annotated[
    Annotated[Interval, Tag(Interval.__name__)] | Annotated[Choices, Tag(Choices.__name__)], Discriminator(_kind)
]
Space = dict[str, Values]


class SearchSettings(Strict):
    """Section ``search`` of params.yaml.

    Attributes:
        space: dotted key of the settings -> [low, high] on a log scale, {low, high, log} or {choices}.
        sampler: tpe; gp (a Gaussian process: for few, dear trials of numbers); random.
        pruner: median stops a trial that is worse than half of the others were after as many epochs; halving stops all
            but the best third at epochs 1, 3, 9, ...; none.
        startup_trials: random ones before sampler and pruner learn from them.
        trials: total number of a study, over all its continuations.
        epochs, epoch_steps: of a trial, instead of the experiment's.
        objective: aligned_mae compares with the true aligned label of the validation split, which real data do not
            have (an oracle); registered is the best epoch's similarity to the label after registration; auto is the
            former where there is such a label and the latter elsewhere.
        max_folded_share: of the objective registered: trials whose deformations fold more than this share of voxels
            are not taken for the best one, since any error can be explained by tearing the image; null: all may be.
        confirm_seeds: fresh seeds for each of the trials that ``--confirm`` repeats.
        storage: URL of a database that several machines share; null: a journal file here.
    """

    space: Space
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    pruner: Literal["median", "halving", "none"] = "median"
    startup_trials: Count = 5
    trials: Count = 3
    epochs: Count | None = None
    epoch_steps: Count | None = None
    objective: Literal["auto", "aligned_mae", "registered"] = "auto"
    max_folded_share: Annotated[float, Field(ge=0, le=1)] | None = 0.001
    confirm_seeds: Count = 2
    storage: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0  # of the sampler

    @field_validator("space")
    @classmethod
    def _not_empty(cls, space: Space) -> Space:
        if not space:
            raise ValueError("expected at least one key to search")
        return space
