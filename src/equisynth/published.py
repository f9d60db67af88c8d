"""An experiment's settings in the flat shape in which the published experiments are listed."""

from __future__ import annotations

import json
from typing import Any

from equisynth.config import Settings
from equisynth.methods.base import method_class

COMMON = [
    "dataset", "trains_on_label", "batch_size", "patch_size", "training_stride", "inference_stride",
    "fusing_mask_smoothing", "random_transformation", "input_noise_std_range", "label_noise_std_range", "paired",
    "transformations_per_sample", "min_valid_ratio", "augment_with_random_transformation",
]  # fmt: skip
OURS = ["features", "normalization_groups", "final_activation", "epochs", "learning_rate", "loss"]
WHERE_GIVEN = [
    "label_deformation", "rigidity", "augmentation_input_background_value", "augmentation_label_background_value",
]  # fmt: skip


def published_entry(settings: Settings) -> dict[str, Any]:
    """What does not apply is left out. Networks of a method's own stand below ``network``, by their published names.

    Raises:
        UserError: ``settings.network`` holds what the method does not know.
    """
    full = settings.model_dump(mode="json")
    network = method_class(settings.method).published_network(settings)
    entry = {key: full[key] for key in COMMON}
    if network is not None:
        entry["network"] = json.loads(json.dumps(network))  # lists as read from a file
        if "lr" not in network:
            entry["learning_rate"] = settings.learning_rate.generator
        if "n_epochs" not in network:
            entry["n_epochs"] = settings.epochs
    elif settings.features.i2i is None:  # networks of its own, by no published names
        entry |= {key: full[key] for key in ("network", "epochs", "learning_rate")}
    else:
        entry |= {key: full[key] for key in OURS}
        entry["features"] = {key: value for key, value in full["features"].items() if value is not None}
        entry["loss"] = _stated_loss(full["loss"])
        entry |= {key: full[key] for key in ("discriminator", "network") if full[key]}
    entry |= {key: full[key] for key in WHERE_GIVEN if full[key] is not None}
    if settings.rigidity is not None and settings.rigidity.coefficient is None:
        del entry["rigidity"]["coefficient"]
    return entry


def _stated_loss(loss: dict[str, Any]) -> dict[str, Any]:
    """Without the key that the published configurations do not have where it is true: that is what they do."""
    stated = {key: value for key, value in loss.items() if value is not None}
    if stated.get("equivariant_adversarial"):
        del stated["equivariant_adversarial"]
    return stated
