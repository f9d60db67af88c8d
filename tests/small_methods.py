"""A tiny experiment of every method as settings, its untrained networks as a model, a batch for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import small_trainings
from equisynth.config import Settings
from equisynth.description import FORMAT, Description, write_description
from equisynth.methods.base import Batch, Method, build_method
from equisynth.model import WEIGHTS, network_states, save_weights
from equisynth.networks.attention_gan import LEAST_SIDE
from equisynth.training import to_batch

GAN = {"generator": "resnet_3blocks", "generator_width": 4, "discriminator_width": 4}
ONE_LOSS = {"loss": {"similarity_weight": 1.0}}
FIELDS: dict[str, dict[str, Any]] = {
    "equivariant": small_trainings.CASES["equivariant 2D"],
    "nemar_equivariant": {"method": "nemar_equivariant", "discriminator": "conditional",
                          "loss": {"cross_modality_similarity": 1.0, "discriminator": 0.1, "adversarial": 0.1}},
    "nemar": {"method": "nemar", "patch_size": (36, 32), "features": {}, "augmentation_label_background_value": -1.0,
              "network": {**GAN, "transformer_architecture": "S"}},
    "reg_gan": {"method": "reg_gan", "patch_size": (LEAST_SIDE + 4, LEAST_SIDE), "features": {}, "batch_size": 1,
                "network": {"generator_width": 4, "discriminator_width": 4, "blocks": 2,
                            "registration_architecture": "S"}},
    "supervised": {"method": "supervised", **ONE_LOSS},
    "pix2pix": small_trainings.CASES["pix2pix"],
    "cycle_gan": {"method": "cycle_gan", "patch_size": (28, 24), "features": {}, "network": GAN},
}  # fmt: skip
REGISTERING = ("equivariant", "nemar_equivariant", "nemar", "reg_gan")


def settings(method: str, **changes: Any) -> Settings:
    return small_trainings.settings(**FIELDS[method] | changes)


def batch(chosen: Settings) -> Batch:
    """One pair of random values with a mask, and a random affine transformation."""
    sample = small_trainings.Pairs(chosen, 1)[0]
    return to_batch({name: values[None] for name, values in sample.items()}, chosen)


def write_model(folder: Path, chosen: Settings) -> Method:
    """The untrained networks in a model's folder."""
    method = build_method(chosen)
    save_weights(folder / WEIGHTS, network_states(method.networks))
    write_description(folder, Description(format=FORMAT, settings=chosen, preparation={}, best_epoch=1, selection=0.5))
    method.train(False)
    return method
