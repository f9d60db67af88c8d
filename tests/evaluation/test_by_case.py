"""Places found in processes, part by part, and what stands where a dataset cannot be evaluated so."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from equisynth.errors import UserError
from equisynth.evaluation.by_case import Place, lacking, not_computed, place_name, register_all
from equisynth.preprocessing.elastix import RegistrationFailed


def dataset(**cases: str | None) -> Any:
    """Cases and what they lack."""
    return SimpleNamespace(cases=lambda split: cases, lacks=cases)


def lacks(data: Any, case: str) -> str | None:
    found: Mapping[str, str | None] = data.lacks
    return found[case]


def fail_at_odd_places(case: str, place: Place) -> None:
    if place[0] % 2:
        raise RegistrationFailed(f"odd in {case}")


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ({"a": None, "b": None}, None),
        ({"b": "b has no label", "a": None}, {"applies": True, "reason": "b has no label"}),
        ({"b": "b has no label", "a": "a has none"}, {"applies": False, "reason": "a has none"}),
    ],
)
def test_it_does_not_apply_where_no_case_can_be_evaluated(cases: dict[str, str | None], expected: Any) -> None:
    found = not_computed(dataset(**cases), "test", lacks)
    assert found == (None if expected is None else {"split": "test", "computed": False, **expected})
    assert lacking(dataset(**cases), "test", lacks) == (None if expected is None else expected["reason"])


@pytest.mark.parametrize("jobs", [1, 2])
def test_parts_are_every_place_once_and_failures_have_names(jobs: int) -> None:
    def places(case: str) -> list[Place]:
        return [(number, 0) for number in range(3 if case == "a" else 2)]

    data = dataset(b=None, a=None)
    parts = [register_all(fail_at_odd_places, data, "test", places, (k, 2), jobs) for k in (1, 2)]
    whole = register_all(fail_at_odd_places, data, "test", places, (1, 1), jobs)
    assert sum(part.found for part in parts) == whole.found == 3
    assert whole.failures == {"a/1-0": "odd in a", "b/1-0": "odd in b"} == parts[0].failures | parts[1].failures
    with pytest.raises(UserError, match="part 3/2: expected a number from 1 to 2"):
        register_all(fail_at_odd_places, data, "test", places, (3, 2), jobs)


def test_names_of_places() -> None:
    assert place_name("case", (3, 14, 15)) == "case/3-14-15"
