"""``equisynth import-weights``: weights that the authors' code saved become a model folder of ours.

Their files hold an epoch, state dictionaries of networks and states of optimisers, which are left aside: a training
cannot be continued with them. Networks are found by name (`NAMES`), their tensors by order: layers come in the same
order here and there, and every tensor's kind and shape is checked.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from equisynth import params
from equisynth.config import Settings
from equisynth.datasets.prepared import PreparedDataset
from equisynth.description import FORMAT, Description, write_description
from equisynth.errors import UserError
from equisynth.files import atomic_folder, sha256, write_json
from equisynth.methods.base import method_class
from equisynth.model import WEIGHTS, save_weights
from equisynth.torch_files import read_torch_file
from equisynth.trained_method import OPTIONAL

ORIGIN = "imported.json"
"""Beside the model: which file it came from."""
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "equivariant": {
        "i2i": ("i2i_unet",),
        "rigid_registration": ("rigid_registration_encoder",),
        "cross_registration": ("cross_modality_registration_unet",),
        "intra_registration": ("intra_modality_registration_unet",),
        "discriminator": ("discriminator",),
    },
    "supervised": {"i2i": ("i2i_unet", "generator", "model"), "discriminator": ("discriminator",)},
    "nemar_equivariant": {
        "i2i": ("i2i_unet", "generator"),
        "cross_registration": ("cross_modality_registration_unet", "registration"),
        "discriminator": ("discriminator",),
    },
    "pix2pix": {"i2i": ("g",), "discriminator": ("d",)},
    "cycle_gan": {
        "i2i": ("g_a",),
        "back": ("g_b",),
        "discriminator_label": ("d_a",),
        "discriminator_input": ("d_b",),
    },
    "nemar": {"i2i": ("t",), "registration": ("r",), "discriminator": ("d",)},
    "reg_gan": {"i2i": ("generator",), "registration": ("registration", "reg"), "discriminator": ("discriminator",)},
}
"""Method -> our network -> what the authors' files call it, see `_plain`."""
_KINDS = {
    "parametrizations.weight.original": "weight", "weight_orig": "weight",
    "parametrizations.weight.0._u": "u", "weight_u": "u",
    "parametrizations.weight.0._v": "v", "weight_v": "v",
    "rho": "mixture", "gamma": "scale", "beta": "shift", "lamda": "strength",
}  # fmt: skip
"""Names of tensors within a layer that differ: two ways to store spectral norms, and the attention networks' own."""
_TENSOR = re.compile(r"(?:(?P<layer>.*?)\.)??(?P<tensor>parametrizations\.weight\.(?:original|0\._[uv])|[^.]+)")
_DEPTH = 4  # of dictionaries within dictionaries

State = dict[str, Tensor]
Names = dict[tuple[str, ...], Tensor]
"""Tensors by the keys that lead to them, the last of them the name within a state dictionary, split at its dots."""


class Imported(NamedTuple):
    """What a file holds: all tensors as ``<our network>.<our name>``, and the networks that may be missing and are."""

    file: Path
    epoch: int
    states: State
    absent: list[str]


def run(file: Path, experiment: str, output: Path | None = None, scale: str | None = None) -> None:
    """Writes a model folder that prediction, evaluation and the registry take.

    Facts about the preparation come from the prepared dataset. Where that is not here, or was made at another scale,
    the model takes prepared images only (``equisynth predict --prepared``), and says so when it is given a raw scan.

    Args:
        file: that the authors' training wrote.
        experiment: which of ours it is.
        output: by default ``models/<experiment>``; must not exist.
        scale: by default that of ``params.yaml``.

    Raises:
        UserError: the file is not what it should be, does not fit the experiment, or ``output`` exists.
    """
    tree = params.read()
    settings = params.resolve(tree, experiment, scale)
    folder = output or Path("models") / experiment
    if folder.exists():
        raise UserError(f"{folder}: exists; move it away, or give another folder as --output")
    found = read(file, settings)
    if found.absent:
        print(f"{file}: holds no {', '.join(found.absent)}, which only training needs", file=sys.stderr)
    write(found, settings, _preparation(settings, params.layout_of(tree, settings.dataset)), folder)
    networks = dict.fromkeys(name.partition(".")[0] for name in found.states)
    print(f"{folder}: {', '.join(networks)} of epoch {found.epoch}")


def write(found: Imported, settings: Settings, preparation: dict[str, Any], folder: Path) -> None:
    """Writes a model folder, whole or not at all."""
    description = Description(
        format=FORMAT,
        settings=settings,
        preparation=preparation,
        best_epoch=found.epoch,
        selection=None,  # their files do not say
    )
    with atomic_folder(folder) as temporary:
        save_weights(temporary / WEIGHTS, found.states)
        write_description(temporary, description)
        origin = {"file": found.file.name, "sha256": sha256(found.file), "epoch": found.epoch}
        write_json(temporary / ORIGIN, origin)


def read(file: Path, settings: Settings) -> Imported:
    """The weights in a file that is said to be of an experiment.

    Raises:
        UserError: it is not.
    """
    content = read_torch_file(file)
    hint = f"check --experiment {settings.experiment} and --scale {settings.scale}"
    if not isinstance(content, Mapping):
        raise UserError(f"{file}: holds a {type(content).__name__}, expected a dictionary of an epoch and state dicts")
    epoch = content.get("epoch")
    if "epoch" not in content and all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(
            f"{file}: holds the tensors of one network, expected a dictionary of an epoch and the state dicts of all "
            f"networks, as the authors' training saves them: {{'epoch': 20, '{names_of_first(settings)}': ...}}"
        )
    if type(epoch) is not int or epoch < 0:
        raise UserError(f"{file}: epoch: found {epoch!r:.40}, expected a whole number; save it as the training does")
    names = NAMES.get(settings.method)
    if names is None:
        raise UserError(f"{file}: weights of method '{settings.method}' cannot be imported; known: {', '.join(NAMES)}")
    left, states, absent = dict(_tensors(content, str(file))), State(), []
    held = ", ".join(dict.fromkeys(keys[0] for keys in left)) or "no tensors"
    for network, expected in expected_states(settings).items():
        found = _take(left, names[network])
        if found:
            try:
                names_of = match(found, expected)
            except ValueError as error:
                raise UserError(f"{file}: {network}: {error}; {hint}") from None
            for ours, theirs in names_of.items():
                states[f"{network}.{ours}"] = _copy(found[theirs], expected[ours].dtype, f"{file}: {network}: {theirs}")
        elif OPTIONAL in network:
            absent.append(network)
        else:
            called = " or ".join(names[network])
            raise UserError(f"{file}: no weights of network {network} ({called}), found {held}; {hint}")
    if left:
        first = ".".join(next(iter(left)))
        raise UserError(f"{file}: holds {len(left)} tensors too many ({first[:80]}, ...); {hint}")
    return Imported(file, epoch, states, absent)


def names_of_first(settings: Settings) -> str:
    """What the authors' files call the network that translates."""
    return next(iter(NAMES.get(settings.method, {}).values()), ("i2i_unet",))[0]


def expected_states(settings: Settings) -> dict[str, State]:
    """Network -> its state without values: names and shapes, in order; nothing is allocated."""
    with torch.device("meta"):
        method = method_class(settings.method)(settings)
    return {name: network.state_dict() for name, network in method.networks.items()}


def _tensors(
    content: Mapping[Any, Any], file: str, keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """All tensors but those of optimisers."""
    if len(keys) > _DEPTH:
        raise UserError(f"{file}: {'.'.join(keys)[:80]}: dictionaries too deep within each other")
    for key, value in content.items():
        if isinstance(value, Tensor):
            parts = (*keys, *str(key).split("."))
            yield tuple(part for part in parts if part != "module"), value  # around what ran on several devices
        elif isinstance(value, Mapping) and "param_groups" not in value:
            yield from _tensors(value, file, (*keys, str(key)))


def _take(left: Names, names: tuple[str, ...]) -> State:
    """A network's tensors, by their name within it; they are removed from what is left.

    They lie in a dictionary of one of the names, alone or within that of the whole model.
    """
    for name in names:
        for place in (("model", name), (name,)):
            depth = len(place)
            found = [keys for keys in left if len(keys) > depth and tuple(map(_plain, keys[:depth])) == place]
            if found:
                return {".".join(keys[depth:]): left.pop(keys) for keys in found}
    return {}


def _plain(key: str) -> str:
    """``netG_A``, ``G_A_state_dict``, ``g_a_model_state_dict`` -> ``g_a``."""
    return key.lower().removesuffix("_state_dict").removesuffix("_model").removeprefix("net").strip("_")


def match(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Our name -> theirs, for all tensors of a network.

    Raises:
        ValueError: the first difference in layers, tensors or shapes.
    """
    theirs, ours, names = _layers(found), _layers(expected), dict[str, str]()
    for layer, wanted in zip(theirs, ours, strict=False):
        if set(layer) != set(wanted):
            raise ValueError(f"{', '.join(layer.values())}: found {', '.join(layer)}, expected {', '.join(wanted)}")
        for kind, name in layer.items():
            shape, needed = tuple(found[name].shape), tuple(expected[wanted[kind]].shape)
            if shape != needed:
                raise ValueError(f"{name}: found shape {shape}, expected {needed}")
            names[wanted[kind]] = name
    if len(theirs) != len(ours):
        raise ValueError(f"found {len(theirs)} layers with weights, expected {len(ours)}")
    return {name: names[name] for name in expected}


def _layers(state: Mapping[str, Tensor]) -> list[dict[str, str]]:
    """For each layer, in order, its tensors: kind -> name."""
    layers: dict[str, dict[str, str]] = {}
    for name in state:
        match = _TENSOR.fullmatch(name)
        layer, tensor = (match["layer"] or "", match["tensor"]) if match else ("", name)
        tensors, kind = layers.setdefault(layer, {}), _KINDS.get(tensor, tensor)
        if kind in tensors:
            raise ValueError(f"{tensors[kind]}, {name}: found both, expected one of them")
        tensors[kind] = name
    return list(layers.values())


def _copy(tensor: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    usual = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not usual or tensor.is_floating_point() != dtype.is_floating_point:
        found = f"{tensor.dtype} ({tensor.layout}, {tensor.device})"
        raise UserError(f"{where}: found {found}, expected {dtype} with values")
    if not bool(tensor.isfinite().all()):
        raise UserError(f"{where}: holds values that are not finite; take the file of an earlier epoch")
    return tensor.detach().to(dtype, copy=True).contiguous()


def _preparation(settings: Settings, layout: str) -> dict[str, Any]:
    prepared = Path("data/prepared") / settings.dataset
    try:
        dataset = PreparedDataset.open(prepared)
        dataset.require(settings.data, f"'{settings.experiment}' at scale '{settings.scale}' says")
    except UserError as error:
        print(f"the model will not take raw scans, only prepared images: {error}", file=sys.stderr)
        return {"kind": layout}
    return dataset.info.preparation
