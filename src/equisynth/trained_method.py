"""All networks of a trained model, for what needs more than its predictor (``model.py``): registration, figures."""

from __future__ import annotations

from pathlib import Path

import torch

from equisynth.methods.base import Method, build_method
from equisynth.model import WEIGHTS, chosen_device, described_method, fill, network_state, read_weights

OPTIONAL = "discriminator"
"""Networks with this in their name serve training alone; a model may come without them."""


def load_method(folder: Path | str, device: str | torch.device | None = None) -> Method:
    """The method of a model's folder with its trained networks, in evaluation mode.

    Args:
        folder: holds ``model.safetensors`` and ``model.json``.
        device: where the networks run; by default a GPU if there is one.

    Raises:
        UserError: files absent or damaged; weights that do not fit the description; a method that this version does
            not know.
    """
    folder, target = Path(folder), chosen_device(device)
    description, _ = described_method(folder)
    states = read_weights(folder / WEIGHTS)
    method = build_method(description.settings)
    for name, network in method.networks.items():
        state = network_state(states, name)
        if not state and OPTIONAL in name:
            continue
        fill(network, state, name, folder)
        network.to(target)
    method.train(False)
    return method
