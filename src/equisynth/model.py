"""A trained model on disk: weights as safetensors beside their description (``description.py``), no pickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from equisynth.description import DESCRIPTION, Description, read_description
from equisynth.errors import UserError
from equisynth.files import atomic_path
from equisynth.methods.base import Method, method_class

WEIGHTS = "model.safetensors"
PREDICTOR = "i2i"
"""The network that translates, in the names of weights."""


class Model:
    """A predictor: ``description`` and a network in evaluation mode."""

    def __init__(self, description: Description, network: nn.Module, device: torch.device) -> None:
        self.description, self.network, self.device = description, network, device

    @torch.no_grad()
    def predict(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised, masked patches (B, C, *P) -> normalised label patches (B, C', *P), on the CPU."""
        method = method_class(self.description.settings.method)
        device_mask = None if mask is None else mask.to(self.device)
        return method.translate(self.network, values.to(self.device), device_mask).float().cpu()


def network_states(networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """All parameters and buffers as ``<network>.<name>``, detached copies on the CPU."""
    return {
        f"{name}.{key}": value.detach().to("cpu", copy=True).contiguous()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


def network_state(states: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one network of all (`network_states`), by their names within it."""
    return {key.removeprefix(f"{name}."): value for key, value in states.items() if key.startswith(f"{name}.")}


def save_weights(path: Path, states: dict[str, Tensor]) -> None:
    """Writes tensors as safetensors, whole or not at all."""
    with atomic_path(path) as temporary:
        try:
            save_file(states, temporary)
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be written ({error}); make room on this disk and try again") from None


def read_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Tensors whose names start with ``prefix``, without it; nothing else is read.

    Raises:
        UserError: the file is absent or is not a safetensors file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such model file; train it (dvc repro) or pull it (dvc pull)")
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()
            return {key[len(prefix) :]: file.get_tensor(key) for key in keys if key.startswith(prefix)}
    except SafetensorError as error:
        raise UserError(f"{path}: is not a readable safetensors file ({error}); train or pull it again") from None


def load_model(folder: Path | str, device: str | torch.device | None = None) -> Model:
    """The model of a folder that training wrote or the registry gave.

    Args:
        folder: holds ``model.safetensors`` and ``model.json``.
        device: where the network runs; by default a GPU if there is one.

    Raises:
        UserError: files absent or damaged; weights that do not fit the description; a method that this version does
            not know.
    """
    folder, target = Path(folder), chosen_device(device)
    description, method = described_method(folder)
    with torch.device("meta"):  # no time or memory for an initialisation that the file replaces
        network = method.predictor(description.settings)
    state = read_weights(folder / WEIGHTS, prefix=f"{PREDICTOR}.")
    state = {key: value.to(network_type(value), copy=True) for key, value in state.items()}  # the file may be replaced
    fill(network, state, PREDICTOR, folder, assign=True)
    return Model(description, network.to(target).eval(), target)


def described_method(folder: Path) -> tuple[Description, type[Method]]:
    """What a model's folder says of it, and the class of its method.

    Raises:
        UserError: absent or damaged; a method that this version does not know.
    """
    description = read_description(folder)
    try:
        return description, method_class(description.settings.method)
    except UserError as error:
        raise UserError(f"{folder / DESCRIPTION}: settings.{error}; update equisynth") from None


def network_type(value: Tensor) -> torch.dtype:
    """In which type a network holds a tensor of a file: float32 if it holds numbers with fractions."""
    return torch.float32 if value.is_floating_point() else value.dtype


def fill(network: nn.Module, state: Mapping[str, Tensor], name: str, folder: Path, assign: bool = False) -> None:
    """Puts the tensors of a model's folder into one of its networks.

    Args:
        assign: the network takes these very tensors, as one that was made without memory must.

    Raises:
        UserError: they do not fit.
    """
    try:
        network.load_state_dict(state, assign=assign)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / WEIGHTS}: {name} does not fit {folder / DESCRIPTION} ({reason})") from None


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for, else a GPU if there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
