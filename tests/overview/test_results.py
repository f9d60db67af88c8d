"""The table's notes: what was not computed, and why, where anybody could miss it."""

from __future__ import annotations

import pytest

from equisynth.overview.content import Dataset, Experiment
from equisynth.overview.results import card_of_results

LOCAL, FIELDS = "Local registrations: case0 has no label_native", "Deformations: the method has no registration"


def experiment(name: str, inapplicable: tuple[str, ...]) -> Experiment:
    missing = {"local_": "case0 has no label_native", "deformation_": "the method has no registration networks"}
    return Experiment(name, "ixi", pooled={"test": {"mae": 0.2}}, missing=missing, inapplicable=inapplicable)


@pytest.mark.parametrize(
    ("of_first", "of_second", "shown"),
    [
        (("local_", "deformation_"), ("local_", "deformation_"), set()),
        (("local_", "deformation_"), ("local_",), {FIELDS}),
        (("local_",), (), {LOCAL, FIELDS}),
        ((), (), {LOCAL, FIELDS}),
    ],
)
def test_what_applies_to_no_model_of_a_dataset_is_not_called_missing(
    of_first: tuple[str, ...], of_second: tuple[str, ...], shown: set[str]
) -> None:
    card = card_of_results(Dataset("ixi", [experiment("a", of_first), experiment("b", of_second)]))
    assert {note for note in (LOCAL, FIELDS) if note in card} == shown


def test_a_model_that_is_not_evaluated_has_no_say() -> None:
    models = [experiment("a", ("local_", "deformation_")), Experiment("b", "ixi", problems=("not run",))]
    assert Dataset("ixi", models).inapplicable == {"local_", "deformation_"}
    assert Dataset("ixi", models[1:]).inapplicable == set()
