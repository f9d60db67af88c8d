"""Which case is for what: given lists, or fractions drawn with a seed."""

from __future__ import annotations

from collections.abc import Sequence
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

    train: tuple[str, ...]
    validate_: tuple[str, ...] = Field(alias="validate")
    test: tuple[str, ...]


class SplitFractions(Strict):
    """Shares of the validation and test split; the others train."""

    validate_: Fraction = Field(alias="validate")
    test: Fraction
    seed: Annotated[int, Field(ge=0)] = 0


def _kind(content: Any) -> str:
    """What is meant: ``train`` is given in lists alone. A mistake is then told of that kind, not of both."""
    lists = isinstance(content, SplitLists) or (isinstance(content, dict) and "train" in content)
    return "lists" if lists else "fractions"


Splits = Annotated[
    Annotated[SplitLists, Tag("lists")] | Annotated[SplitFractions, Tag("fractions")], Discriminator(_kind)
]


def split_cases(splits: Splits, cases: Sequence[str]) -> dict[str, list[str]]:
    """The case names of ``train``, ``validate`` and ``test``; fractions are drawn from ``cases``.

    Raises:
        UserError: too few cases for fractions, a case in two splits.
    """
    if isinstance(splits, SplitLists):
        lists = {"train": list(splits.train), "validate": list(splits.validate_), "test": list(splits.test)}
        _check_apart(lists)
        return lists
    count = len(cases)
    validate, test = (max(1, round(count * share)) for share in (splits.validate_, splits.test))
    if validate + test >= count:
        raise UserError(
            f"splits: {count} cases cannot be shared into train, {validate} validate and {test} test; "
            "give smaller fractions"
        )
    drawn = [sorted(cases)[i] for i in np.random.RandomState(splits.seed).permutation(count)]
    return {
        "train": sorted(drawn[validate + test :]),
        "validate": sorted(drawn[:validate]),
        "test": sorted(drawn[validate : validate + test]),
    }


def _check_apart(splits: dict[str, list[str]]) -> None:
    seen: dict[str, str] = {}
    for split, cases in splits.items():
        for case in cases:
            if case in seen:
                raise UserError(
                    f"splits: case '{case}' is in '{seen[case]}' and in '{split}', expected once; take one out"
                )
            seen[case] = split
