"""The published experiments made small: their networks' topology and losses, on images of random values."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from equisynth import params
from equisynth.config import Intensity, Settings
from equisynth.datasets.prepared import DatasetInfo, write_case, write_info
from equisynth.networks.attention_gan import LEAST_SIDE
from equisynth.networks.field_network import ARCHITECTURES
from equisynth.networks.skip_generator import LEVELS

TREE = params.read(Path(__file__).parents[1] / "params.yaml")
PUBLISHED = params.published(TREE)
EPOCHS = 2
REDUCED = {
    "patch_size", "training_stride", "inference_stride", "normalization_groups", "epochs", "epoch_steps", "features",
    "network.generator_width", "network.discriminator_width",
}  # fmt: skip
"""The settings that are made smaller: sizes, widths and steps."""
SURPLUS, INVALID = 8, 2
"""How much larger than a patch images are along one axis, and how much of that is invalid; SSIM needs 7 slices."""
LABELS = {
    "ixi": ("label", "label_aligned", "label_registered"), "cermep": ("label", "label_registered"),
    "staining": ("label", "label_registered"),
}  # fmt: skip
"""What preparation writes."""
CASES = {"train": ("a", "b", "c", "d"), "validate": ("e",), "test": ("f",)}


@cache
def parameters(name: str) -> params.Tree:
    """``params.yaml`` with one published experiment, at the scale ``paper``, made small by overrides alone."""
    dataset, method = PUBLISHED[name]
    overrides = reductions(params.resolve(TREE, name, "paper"))
    code = TREE["methods"][method]["method"]
    entry = {"dataset": dataset, "method": method, "code": code, "overrides": overrides}
    return TREE | {"scale": "paper", "pipeline": {name: entry}}


def reductions(full: Settings) -> params.Tree:
    """Overrides that make an experiment small."""
    sides = smallest_sides(full)
    patch = (*sides, 1) if full.slices else sides
    shares = [new / old for new, old in zip(patch, full.patch_size, strict=True)]
    found: params.Tree = {"patch_size": list(patch), "epochs": EPOCHS, "epoch_steps": 1}
    # Strides stay the same share of a patch: as much overlap as published.
    if full.training_stride is not None:
        found["training_stride"] = [stride * share for stride, share in zip(full.training_stride, shares, strict=True)]
    if full.inference_stride is not None:
        strides = [stride * share for stride, share in zip(full.inference_stride, shares, strict=True)]
        found["inference_stride"] = [max(1, round(stride)) for stride in strides]
    # Widths: a sixteenth of all, on as many levels. Groups: a quarter, for at least one channel in each.
    widths = {name: [width // 16 for width in levels] for name, levels in full.features if levels is not None}
    if widths:
        found |= {"features": widths, "normalization_groups": 4}
    else:  # of 64 (32: RegGAN's discriminator); field networks have no width to choose
        found["network"] = {"generator_width": 4, "discriminator_width": 2 if full.method == "reg_gan" else 4}
    return found


def smallest_sides(full: Settings) -> tuple[int, ...]:
    """The smallest patch that an experiment's networks take, without the axis of slices."""
    # Encoders and discriminators halve a patch once per level, U-Nets between levels: one pixel may remain.
    once_more = ("discriminator", "rigid_reg")
    halvings = [len(levels) - (name not in once_more) for name, levels in full.features if levels is not None]
    if halvings:
        return (2 ** max(halvings),) * full.data.n_dims
    network = full.network
    # A patch discriminator needs 24 pixels, RegGAN's networks more.
    least = LEAST_SIDE if full.method == "reg_gan" else 24
    # Field networks reflect the borders of what is left at the bottom: two pixels.
    architecture = network.get("transformer_architecture") or network.get("registration_architecture")
    if architecture:
        least = max(least, ARCHITECTURES[architecture].least_side)
    longer = least + 4  # sides differ, so that no method mixes them up; a multiple of 4 for generators that halve twice
    # Instance norm needs two pixels, along one axis, in the last level of a unet_256 or unet_512 that has a norm.
    levels = LEVELS.get(network.get("generator", ""))
    if levels is not None:
        longer = max(longer, 2 ** (levels - 1) + 4)
    return longer, least


def changed(full: Settings, small: Settings) -> set[str]:
    """Keys whose values differ; those of ``network`` with the key inside."""
    first, second = full.model_dump(), small.model_dump()
    keys = {key for key in first if key != "network" and first[key] != second[key]}
    options = first["network"].keys() | second["network"].keys()
    return keys | {f"network.{key}" for key in options if first["network"].get(key) != second["network"].get(key)}


def write_dataset(folder: Path, settings: Settings, *others: Settings) -> None:
    """Six cases of random values, a little larger than the experiments' patches, with every label of the dataset."""
    data, random = settings.data, np.random.RandomState(0)
    pictures = settings.label_deformation is not None  # labels are made from them while training
    labels = () if pictures else LABELS[settings.dataset]
    patches = [item.patch_size for item in (settings, *others)]
    shape, axis = [max(sides) for sides in zip(*patches, strict=True)], -1 if settings.slices else 0
    shape[axis] += SURPLUS
    mask = np.ones(shape, np.uint8)
    np.moveaxis(mask, axis, 0)[:INVALID] = 0
    if pictures:  # deformations are in pixels, and are to find some
        shape = [side + 96 for side in shape]
    for case in (case for cases in CASES.values() for case in cases):
        arrays = {
            role: _image(data.input if role == "input" else data.label, shape, random) for role in ("input", *labels)
        }
        write_case(folder, case, arrays if pictures else arrays | {"mask": mask}, np.eye(4), data.n_dims)
    info = data.model_dump() | {"name": settings.dataset, "stored": ("input", *labels), "splits": CASES}
    write_info(folder, DatasetInfo.model_validate(info))


def _image(intensity: Intensity, shape: list[int], random: np.random.RandomState) -> np.ndarray[Any, np.dtype[Any]]:
    """(*S) or (*S, C) within the signal: 8 bits where that is what the values are."""
    values = random.uniform(0.1, 0.9, shape if intensity.channels == 1 else [*shape, intensity.channels])
    values = intensity.background + values * intensity.signal_range
    return values.astype(np.uint8 if intensity.signal_range == 255 else np.float32)
