"""What the training benchmarks share: a method with random batches, and one step in the trainer's manner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from equisynth.config import Settings
from equisynth.geometry.transforms import Affine, Image
from equisynth.methods.base import Batch, build_method


def training_step(
    patch: tuple[int, ...],
    features: tuple[int, ...],
    batch_size: int,
    discriminator: str,
    precision: str = "no",
    **changes: Any,
) -> Callable[[], None]:
    """A function that makes one EqSim+Com step (with EqAdv if there is a discriminator) on random images.

    ``precision`` is that of the networks: ``no``, ``bf16`` or ``fp16``.
    """
    accelerator = Accelerator(mixed_precision=precision)
    device = accelerator.device
    n = len(patch)
    intensity = {"modality": "random", "signal_range": 1, "unit": "none"}
    weights = dict.fromkeys(
        ("cross_modality_similarity", "intra_modality_similarity", "rigid_similarity", "forward_rigidity",
         "inverse_rigidity", "commutation"), 1.0,
    )  # fmt: skip
    networks = ("i2i", "rigid_reg", "cross_modality_reg", "intra_modality_reg", "discriminator")
    settings = Settings.model_validate({
        "experiment": "benchmark", "scale": "benchmark", "dataset": "phantom", "method": "equivariant",
        "data": {"n_dims": n, "voxel_size": (1.0,) * n, "input": intensity, "label": intensity, "licence": "none"},
        "trains_on_label": "deformed", "batch_size": batch_size, "patch_size": patch, "random_transformation": {},
        "features": dict.fromkeys(networks, features), "normalization_groups": 8, "epochs": 1,
        "learning_rate": {"generator": 1e-4, "discriminator": 4e-4}, "rigidity": {}, "discriminator": discriminator,
        "loss": weights | {"discriminator": 0.01, "adversarial": 0.01, "max_rotation_degrees": 30,
                           "max_translation": 64, "equivariant_similarity": True},
    } | changes)  # fmt: skip
    method = build_method(settings)
    for network in method.networks.values():
        accelerator.prepare_model(network, evaluation_mode=True)
    for name, optimiser in method.optimisers.items():
        method.optimisers[name] = accelerator.prepare_optimizer(optimiser)
    generator = torch.Generator().manual_seed(0)

    def image() -> Image:
        values = torch.randn(batch_size, 1, *patch, generator=generator)
        return Image(values.to(device), torch.ones_like(values).to(device))

    matrix = torch.eye(n + 1).repeat(batch_size, 1, 1)
    matrix[:, :n] += 0.05 * torch.randn(batch_size, n, n + 1, generator=generator)
    batch = Batch(image(), image(), Affine(matrix.to(device)))

    def step() -> None:
        for update in method.updates(batch):
            optimiser = method.optimisers[update.optimiser]
            optimiser.zero_grad(set_to_none=True)
            accelerator.backward(update.loss)
            optimiser.step()

    return step
