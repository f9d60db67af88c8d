"""Which case is for what: given lists, or fractions drawn with a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Discriminator, Field, Tag

from equisynth.config import Count, Strict
from equisynth.errors import UserError

Split = Literal["train", "validate", "test"]
SPLITS: tuple[Split, ...] = ("train", "validate", "test")
Fraction = Annotated[float, Field(gt=0, lt=1)]


def _all_splits(counts: dict[Split, int]) -> dict[Split, int]:
    if set(counts) != set(SPLITS):
        raise ValueError(f"expected a number for each of {', '.join(SPLITS)}")
    return counts


CaseCounts = Annotated[dict[Split, Count], AfterValidator(_all_splits)]
"""How many cases of each split a phantom source makes."""


class SplitLists(Strict):
    """Case names of each split."""

    train: tuple[str, ...]  # names of cases
    validate_: tuple[str, ...] = Field(alias="validate")  # names of cases
    test: tuple[str, ...]  # names of cases


class SplitFractions(Strict):
    """Shares of the validation and test split; the others train."""

    validate_: Fraction = Field(alias="validate")  # share of the cases
    test: Fraction  # share of the cases; the others train
    seed: Annotated[int, Field(ge=0)] = 0  # of the choice


def _kind(content: Any) -> str:
    """What is meant: ``train`` is given in lists alone. A mistake is then told of that kind, not of both."""
    lists = isinstance(content, SplitLists) or (isinstance(content, dict) and "train" in content)
    return "lists" if lists else "fractions"


Splits = Annotated[
    Annotated[SplitLists, Tag("lists")] | Annotated[SplitFractions, Tag("fractions")], Discriminator(_kind)
]


def split_cases(splits: Splits, cases: Sequence[str], full_name: Callable[[str], str] = str) -> dict[str, list[str]]:
    """The case names of ``train``, ``validate`` and ``test``; fractions are drawn from ``cases``.

    Args:
        full_name: of a case that a list may name in short.

    Raises:
        UserError: too few cases for fractions, a case in two splits.
    """
    if isinstance(splits, SplitLists):
        given = {"train": splits.train, "validate": splits.validate_, "test": splits.test}
        lists = {split: {name: full_name(name) for name in names} for split, names in given.items()}
        _check_apart(lists)
        return {split: list(dict.fromkeys(names.values())) for split, names in lists.items()}
    count = len(cases)
    validate, test = (max(1, round(count * share)) for share in (splits.validate_, splits.test))
    train = count - validate - test
    if train < 1:
        advice = "give smaller fractions"
        if count < len(SPLITS):
            advice = (
                f"at least {len(SPLITS)} are needed, one in each split, and no case may stand in two: add cases, or, "
                "to try the program on own data only, list one pair under three names in a CSV table"
            )
        found = f"{count} {'case' if count == 1 else 'cases'}"
        raise UserError(
            f"splits: {found} cannot be shared: {validate} to validate and {test} to test leave {max(train, 0)} to "
            f"train; {advice}"
        )
    drawn = [sorted(cases)[i] for i in np.random.RandomState(splits.seed).permutation(count)]
    return {
        "train": sorted(drawn[validate + test :]),
        "validate": sorted(drawn[:validate]),
        "test": sorted(drawn[validate : validate + test]),
    }


def _check_apart(splits: dict[str, dict[str, str]]) -> None:
    """Refuses a case in two splits, or twice in one under different names; ``splits``: given name -> full name."""
    seen: dict[str, tuple[str, str]] = {}
    for split, names in splits.items():
        for name, case in names.items():
            if case in seen:
                other, before = seen[case]
                words = f"'{case}'" if name == other else f"'{case}' (as '{other}' and as '{name}')"
                raise UserError(f"splits: case {words} is in '{before}' and in '{split}', expected once; take one out")
            seen[case] = name, split
