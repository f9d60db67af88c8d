"""Which case is for what: given lists, or fractions drawn with a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from equisynth.config import Strict
from equisynth.errors import UserError

Fraction = Annotated[float, Field(gt=0, lt=1)]


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


Splits = SplitLists | SplitFractions


def split_cases(splits: Splits, cases: Sequence[str]) -> dict[str, list[str]]:
    """The case names of ``train``, ``validate`` and ``test``; fractions are drawn from ``cases``.

    Raises:
        UserError: too few cases for fractions.
    """
    if isinstance(splits, SplitLists):
        return {"train": list(splits.train), "validate": list(splits.validate_), "test": list(splits.test)}
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
