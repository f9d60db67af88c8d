"""What a search varies: an experiment's settings with values of a trial's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from equisynth.config import Settings
from equisynth.errors import UserError
from equisynth.methods.base import method_options
from equisynth.params import NotApplicable, Tree, merge, resolve
from equisynth.search.settings import Choices, SearchSettings, Space
from equisynth.validation import FILE

SEED = "seed"
"""Key of the settings that confirmations vary."""


def override(tree: Tree, experiment: str, overrides: Mapping[str, Any]) -> Tree:
    """The parameters with dotted keys set in the experiment's overrides; the given tree stays as it is."""
    tree = deepcopy(tree)
    if experiment not in tree["pipeline"]:
        tree["pipeline"][experiment] = new_entry(tree, experiment)
    entry = tree["pipeline"][experiment]
    for key, value in overrides.items():
        entry["overrides"] = merge(entry.get("overrides") or {}, nested(key, value))
    return tree


def new_entry(tree: Tree, experiment: str) -> Tree:
    """What an experiment that is named ``<dataset>-<method>`` looks like below ``pipeline``."""
    dataset, _, method = experiment.partition("-")
    return {"dataset": dataset, "method": method, "code": tree["methods"][method]["method"]}


def nested(key: str, value: Any) -> Tree:
    """``a.b`` and a value -> ``{a: {b: value}}``."""
    *parents, last = key.split(".")
    tree: Tree = {last: value}
    for parent in reversed(parents):
        tree = {parent: tree}
    return tree


def trial_settings(tree: Tree, experiment: str, options: SearchSettings, overrides: Mapping[str, Any]) -> Settings:
    """The experiment with a trial's values and the search's budget."""
    budget = {key: getattr(options, key) for key in ("epochs", "epoch_steps") if getattr(options, key) is not None}
    resolve(tree, experiment)  # an experiment that does not exist is told before overrides make an entry for it
    return resolve(override(tree, experiment, {**overrides, **budget}), experiment, options=method_options)


def effective_space(tree: Tree, experiment: str, options: SearchSettings) -> Space:
    """The keys that the experiment has: weights of networks that its method lacks are left out of the settings.

    Raises:
        UserError: a key that no experiment has or that the search itself sets, a range whose ends are not allowed, or
            no key is left.
    """
    space: Space = {}
    for key, values in options.space.items():
        if key == SEED or (key in ("epochs", "epoch_steps") and getattr(options, key) is not None):
            by = "fresh seeds are tried by --confirm" if key == SEED else f"search.{key} says it for all trials"
            raise UserError(f"{FILE}: search.space: found '{key}', which cannot be searched: {by}; take one out")
        ends = values.choices if isinstance(values, Choices) else (values.low, values.high)
        if all(_takes(tree, experiment, options, key, end) for end in ends):
            space[key] = values
        else:
            print(f"search: {key} has no effect on {experiment}; left out")
    if not space:
        raise UserError(f"{FILE}: search.space: no key has an effect on {experiment}; give others")
    return space


def shown(value: Any) -> str:
    """A value for people: numbers with four digits, in a form that all YAML parsers read as numbers."""
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    mantissa, e, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}{e}{exponent}"


def _takes(tree: Tree, experiment: str, options: SearchSettings, key: str, value: Any) -> bool:
    """Whether the setting comes out as it was put in."""
    try:
        node: Any = trial_settings(tree, experiment, options, {key: value}).model_dump()
    except NotApplicable:
        return False
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) and part in node else None
    return bool(node == value)
