"""What a user is told was expected."""

from __future__ import annotations

from equisynth.errors import LISTED, one_of

MANY = [f"layer_{number}" for number in range(LISTED)] + ["equivariant"]


def test_a_short_list_is_shown_whole() -> None:
    assert one_of("adm", ["sgd", "adam"]) == "sgd, adam"


def test_of_a_long_list_the_nearest_names() -> None:
    assert one_of("equivarant", MANY) == "equivariant (13 are known)"


def test_of_a_long_list_the_first_ones_where_none_is_near() -> None:
    assert one_of("xyz", MANY) == ", ".join(MANY[: LISTED // 2]) + " (13 are known)"
