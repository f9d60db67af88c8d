"""All networks of a trained model, for what needs more than its predictor (``model.py``): registration, figures."""

from __future__ import annotations

from pathlib import Path

import torch

from equisynth.description import DESCRIPTION, read_description
from equisynth.errors import UserError
from equisynth.methods.base import Method, build_method
from equisynth.model import WEIGHTS, read_weights

OPTIONAL = "discriminator"
"""Networks with this in their name serve training alone; a model may come without them."""


def load_method(folder: Path | str, device: str | torch.device | None = None) -> Method:
    """The method of a model's folder with its trained networks, in evaluation mode.

    Args:
        folder: holds ``model.safetensors`` and ``model.json``.
        device: where the networks run; by default a GPU if there is one.

    Raises:
        UserError: files absent or damaged; weights that do not fit the description.
    """
    folder = Path(folder)
    settings, states = read_description(folder).settings, read_weights(folder / WEIGHTS)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    method = build_method(settings)
    for name, network in method.networks.items():
        state = {key.removeprefix(f"{name}."): tensor for key, tensor in states.items() if key.startswith(f"{name}.")}
        if not state and OPTIONAL in name:
            continue
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder / WEIGHTS}: {name} does not fit {folder / DESCRIPTION} ({reason})") from None
        network.to(target)
    method.train(False)
    return method
