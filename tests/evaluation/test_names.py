"""Names of measures and the parts of an evaluation that they come from."""

from __future__ import annotations

import pytest

from equisynth.evaluation.kinds import KINDS
from equisynth.evaluation.names import PREFIXES, kind_of, prefix_of_whole_images


@pytest.mark.parametrize(
    ("measure", "kind"),
    [
        ("mae", None), ("registered_mae", None), ("ssim", None),
        ("local_mae", "registered"), ("full_valid_nmi", "full_valid"), ("deformation_folded_share", "deformation"),
    ],
)  # fmt: skip
def test_a_measure_tells_its_kind(measure: str, kind: str | None) -> None:
    assert kind_of(measure) == kind


def test_whole_images_against_a_registered_label_say_so() -> None:
    assert prefix_of_whole_images({"label": "label_registered"}) == "registered_"
    assert prefix_of_whole_images({"label": "label_aligned"}) == ""
    assert prefix_of_whole_images({"computed": False}) == ""


def test_no_prefix_begins_with_another() -> None:
    whole = prefix_of_whole_images({"label": "label_registered"})
    prefixes = [*PREFIXES.values(), whole]
    assert not [(a, b) for a in prefixes for b in prefixes if a is not b and a.startswith(b)]


def test_every_kind_has_a_prefix() -> None:
    assert list(KINDS) == list(PREFIXES)
