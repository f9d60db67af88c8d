"""Who trains, who validates, who is tested: lists and fractions, and what is said where they do not fit."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from equisynth.datasets.splits import Splits, split_cases
from equisynth.errors import UserError

ADAPTER: TypeAdapter[Splits] = TypeAdapter(Splits)
CASES = [f"case{n}" for n in range(20)]


def lists(train: list[str], validate: list[str], test: list[str]) -> Splits:
    return ADAPTER.validate_python({"train": train, "validate": validate, "test": test})


def fractions(validate: float = 0.2, test: float = 0.1, seed: int = 0) -> Splits:
    return ADAPTER.validate_python({"validate": validate, "test": test, "seed": seed})


def test_fractions_share_all_cases_by_the_seed_alone() -> None:
    found = split_cases(fractions(), CASES)
    assert [len(found[split]) for split in ("train", "validate", "test")] == [14, 4, 2]
    assert sorted(sum(found.values(), [])) == sorted(CASES)
    assert split_cases(fractions(), CASES[::-1]) == found
    assert split_cases(fractions(seed=1), CASES) != found


def test_three_cases_are_enough() -> None:
    found = split_cases(fractions(0.01, 0.01), CASES[:3])
    assert [len(cases) for cases in found.values()] == [1, 1, 1]


@pytest.mark.parametrize("count, words", [(0, "0 cases"), (1, "1 case "), (2, "2 cases")])
def test_fewer_say_what_is_there_and_what_to_do(count: int, words: str) -> None:
    with pytest.raises(UserError) as error:
        split_cases(fractions(), CASES[:count])
    line = str(error.value)
    assert line.startswith(f"splits: {words}")
    assert "1 to validate and 1 to test leave 0 to train" in line
    assert "at least 3 are needed, one in each split, and no case may stand in two" in line
    assert "list one pair under three names in a CSV table" in line
    assert "smaller" not in line
    assert "\n" not in line


def test_large_fractions_are_to_be_made_smaller() -> None:
    with pytest.raises(UserError, match=r"20 cases .* 10 to validate and 12 to test leave 0 to train; give smaller"):
        split_cases(fractions(0.5, 0.6), CASES)


def full_name(case: str) -> str:
    return f"case{case.removeprefix('case')}"


def test_lists_may_name_cases_in_short() -> None:
    found = split_cases(lists(["1", "2", "1"], ["3"], ["case4"]), CASES, full_name)
    assert found == {"train": ["case1", "case2"], "validate": ["case3"], "test": ["case4"]}


def test_a_case_in_two_splits() -> None:
    with pytest.raises(UserError, match="case 'a' is in 'train' and in 'test', expected once; take one out"):
        split_cases(lists(["a"], ["b"], ["a"]), CASES)
    with pytest.raises(UserError, match="case 'case1' .as '1' and as 'case1'. is in 'train' and in 'test'"):
        split_cases(lists(["1"], ["2"], ["case1"]), CASES, full_name)
