"""Trainings of seconds: all methods' networks and losses, on random pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equisynth.config import Settings
from equisynth.methods.base import build_method
from equisynth.processes import Processes
from equisynth.training import Trainer

BATCH, EPOCHS = 4, 2
FEATURES = ("i2i", "rigid_reg", "cross_modality_reg", "intra_modality_reg", "discriminator")
REGISTRATION = {
    "cross_modality_similarity": 1.0, "intra_modality_similarity": 1.0, "rigid_similarity": 1.0,
    "forward_rigidity": 1.0, "inverse_rigidity": 1.0, "commutation": 1.0, "self_commutation": 0.5,
    "max_rotation_degrees": 1e-3, "max_translation": 1e-3, "equivariant_similarity": True,
}  # fmt: skip
ADVERSARIAL = {"discriminator": 0.1, "adversarial": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "equivariant 2D": {"method": "equivariant", "discriminator": "conditional", "loss": REGISTRATION | ADVERSARIAL},
    "equivariant 3D": {"n_dims": 3, "method": "equivariant", "discriminator": "conditional",
                       "loss": REGISTRATION | ADVERSARIAL},
    "networks without a gradient": {
        "method": "equivariant", "discriminator": "unconditional", "loss": {"intra_modality_similarity": 1.0}
        | ADVERSARIAL,
    },
    "supervised": {"method": "supervised", "discriminator": "conditional",
                   "loss": {"similarity_weight": 1.0} | ADVERSARIAL},
    "supervised alone": {"method": "supervised", "loss": {"similarity_weight": 1.0}},
    # Without norms: behind them, gradients of biases are rounding errors, which Adam makes as large as any other.
    "pix2pix": {"method": "pix2pix", "patch_size": (24, 24), "features": {}, "loss": {},
                "network": {"generator": "resnet_3blocks", "generator_width": 4, "discriminator_width": 4,
                            "norm": "none"}},
}  # fmt: skip


def settings(n_dims: int = 2, **changes: Any) -> Settings:
    channel = {"modality": "any", "signal_range": 1, "unit": "none"}
    return Settings.model_validate({
        "experiment": "test", "scale": "test", "dataset": "none",
        "data": {"n_dims": n_dims, "voxel_size": (1.0, 0.8, 1.2)[:n_dims], "input": channel, "label": channel,
                 "licence": "none"},
        "trains_on_label": "deformed", "batch_size": BATCH, "patch_size": (16, 16) if n_dims == 2 else (8, 8, 8),
        "random_transformation": {}, "features": dict.fromkeys(FEATURES, (4, 4)), "normalization_groups": 2,
        "epochs": EPOCHS, "learning_rate": {"generator": 1e-3, "discriminator": 1e-3}, "rigidity": {},
    } | changes)  # fmt: skip


class Pairs:
    """Random pairs with masks that differ from sample to sample; infinite values at ``poison``: epoch and index."""

    def __init__(self, settings: Settings, count: int, poison: tuple[int, int] | None = None) -> None:
        self.shape, self.count, self.poison, self.epoch = settings.patch_size, count, poison, 0
        self.taken: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.taken.append(index)
        n, state = len(self.shape), np.random.RandomState([self.epoch, index])
        mask = np.ones((1, *self.shape), np.float32)
        mask[:, : state.randint(6)] = 0
        images = [(mean + state.randn(1, *self.shape)).astype(np.float32) * mask for mean in (0, 2)]
        if (self.epoch, index) == self.poison:
            images[0][:] = np.inf
        affine = np.eye(n + 1)
        affine[:n] += 0.05 * state.randn(n, n + 1)
        arrays = {"input": images[0], "input_mask": mask, "label": images[1], "label_mask": mask}
        return {key: torch.from_numpy(value) for key, value in (arrays | {"random_affine": affine}).items()}


def trainer(
    case: str, folder: Path, processes: Processes | None = None, precision: str = "no", **changes: Any
) -> Trainer:
    """A trainer of one of the cases: two steps an epoch, a validation split that no batch size divides."""
    chosen = settings(**CASES[case] | changes)
    samples, validation = Pairs(chosen, 2 * BATCH), Pairs(chosen, BATCH + 1)
    return Trainer(build_method(chosen), chosen, samples, validation, folder, precision=precision, processes=processes)
