"""Section ``evaluation`` of params.yaml: what is measured and how, with a part for each scale laid over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from equisynth.config import Strict
from equisynth.errors import UserError
from equisynth.evaluation.full_valid import FullValidSettings
from equisynth.evaluation.real_images import FidSettings
from equisynth.evaluation.registered import RegisteredSettings
from equisynth.params import Tree, merge
from equisynth.validation import validate

SCALES = "scales"
CACHE = Path(".equisynth/registrations")
"""Found registrations, ``<dataset>/``: they depend on no model. May be deleted at any time."""
Options = Mapping[str, float | None]
PLACES: dict[str, tuple[tuple[str, ...], ...]] = {
    "seed": (("registered", "seed"), ("full_valid", "registration", "seed")),
    "threads": (("registered", "registration", "threads"), ("full_valid", "registration", "threads")),
    "radius_mm": (("registered", "registration", "radius_mm"),),
    "label_radius_mm": (("registered", "registration", "label_radius_mm"),),
    "weight_std_mm": (("registered", "weight_std_mm"),),
}
"""Options of the command line -> the settings that they stand for."""


class EvaluationSettings(Strict):
    """What is measured.

    Attributes:
        split: whose predictions the FID and the references are measured on.
        registered: local registrations; none: they are left out, as where the dataset cannot be evaluated so.
        full_valid: tiles of sections; likewise.
    """

    split: Literal["train", "validate", "test"] = "test"
    fid: FidSettings = FidSettings()  # Fréchet inception distance
    registered: RegisteredSettings | None = RegisteredSettings()
    full_valid: FullValidSettings | None = FullValidSettings()


def read_settings(tree: Tree, options: Options | None = None) -> EvaluationSettings:
    """The settings of ``params.yaml``.

    Args:
        options: what registrations are to have instead, by the names in `PLACES`; None: as it stands there.

    Raises:
        UserError: a wrong key, type or range; a scale that is none.
    """
    section, scale = dict(tree["evaluation"]), tree["scale"]
    scales = section.pop(SCALES, None) or {}
    for name in scales:
        if name not in tree["scales"]:
            known = ", ".join(tree["scales"])
            raise UserError(f"params.yaml: evaluation.{SCALES}: found {name!r}, expected one of: {known}")
    # what is left out stays so: a scale says how, not whether
    over = {key: value for key, value in (scales.get(scale) or {}).items() if section.get(key, value) is not None}
    layers: list[tuple[str, Tree]] = [("evaluation", section), (f"evaluation.{SCALES}.{scale}", over)]
    merged = merge(*(layer for _, layer in layers))
    for name, value in (options or {}).items():
        for kind, *place in PLACES[name]:
            if value is not None and merged.get(kind, {}) is not None:
                layer: Tree = {place[-1]: value}
                for key in [*reversed(place[:-1]), kind]:
                    layer = {key: layer}
                merged = merge(merged, layer)
                layers.append((f"option --{name.replace('_', '-')}", layer))
    return validate(EvaluationSettings, merged, "evaluation", layers)
