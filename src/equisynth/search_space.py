"""What a search varies: section ``search`` of params.yaml, and the settings of an experiment with values of its own."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from equisynth.config import Count, Settings, Strict
from equisynth.errors import UserError
from equisynth.methods.base import method_options
from equisynth.params import NotApplicable, Tree, merge, resolve

if TYPE_CHECKING:
    from optuna import Trial


class Interval(Strict):
    """A range of numbers, drawn on a log scale unless said otherwise; ``[low, high]`` is short for it."""

    low: float
    high: float
    log: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, content: Any) -> Any:
        pair = isinstance(content, list | tuple) and len(content) == 2
        return {"low": content[0], "high": content[1]} if pair else content

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}, expected low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}, expected above 0 on a log scale (or log: false)")
        return self


class Choices(Strict):
    """One of several values."""

    choices: tuple[str | bool | int | float | None, ...] = Field(min_length=1)


class SearchSettings(Strict):
    """Section ``search`` of params.yaml.

    Attributes:
        space: dotted key of the settings -> [low, high] on a log scale, {low, high, log} or {choices}.
        startup_trials: random ones before sampler and pruner learn from them.
        trials: total number of a study, over all its continuations.
        epochs, epoch_steps: of a trial, instead of the experiment's.
        objective: aligned_mae compares with the true aligned label of the validation split, which real data do not
            have (an oracle); registered is the best epoch's similarity to the label after registration.
        storage: URL of a database that several machines share; none: a journal file here.
    """

    space: dict[str, Interval | Choices] = Field(min_length=1)
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "none"] = "median"
    startup_trials: Count = 5
    trials: Count = 3
    epochs: Count | None = None
    epoch_steps: Count | None = None
    objective: Literal["aligned_mae", "registered"] = "aligned_mae"
    storage: str | None = None
    seed: int = 0


def override(tree: Tree, experiment: str, overrides: Mapping[str, Any]) -> Tree:
    """The parameters with dotted keys set in the experiment's overrides; the given tree stays as it is."""
    tree = deepcopy(tree)
    if experiment not in tree["pipeline"]:
        dataset, _, method = experiment.partition("-")
        code = tree["methods"][method]["method"]
        tree["pipeline"][experiment] = {"dataset": dataset, "method": method, "code": code}
    entry = tree["pipeline"][experiment]
    for key, value in overrides.items():
        *parents, last = key.split(".")
        nested: Tree = {last: value}
        for parent in reversed(parents):
            nested = {parent: nested}
        entry["overrides"] = merge(entry.get("overrides") or {}, nested)
    return tree


def trial_settings(tree: Tree, experiment: str, options: SearchSettings, overrides: Mapping[str, Any]) -> Settings:
    """The experiment with a trial's values and the search's budget."""
    budget = {key: getattr(options, key) for key in ("epochs", "epoch_steps") if getattr(options, key) is not None}
    resolve(tree, experiment)  # an experiment that does not exist is told before overrides make an entry for it
    return resolve(override(tree, experiment, {**overrides, **budget}), experiment, options=method_options)


def effective_space(tree: Tree, experiment: str, options: SearchSettings) -> dict[str, Interval | Choices]:
    """The keys that the experiment has: weights of networks that its method lacks are left out of the settings."""
    space = {}
    for key, values in options.space.items():
        value: Any = values.choices[0] if isinstance(values, Choices) else values.low
        try:
            node: Any = trial_settings(tree, experiment, options, {key: value}).model_dump()
        except NotApplicable:
            node = None
        for part in key.split("."):
            node = node[part] if isinstance(node, dict) else None
        if node == value:
            space[key] = values
        else:
            print(f"search: {key} has no effect on {experiment}; left out")
    if not space:
        raise UserError(f"params.yaml: search.space: no key has an effect on {experiment}; give others")
    return space


def suggest(trial: Trial, key: str, values: Interval | Choices) -> Any:
    """A value of the sampler's choice."""
    if isinstance(values, Choices):
        return trial.suggest_categorical(key, values.choices)
    return trial.suggest_float(key, values.low, values.high, log=values.log)
