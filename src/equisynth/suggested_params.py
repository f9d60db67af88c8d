"""From what a folder of own pairs holds to parameters that can be pasted into ``params.yaml``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from equisynth.errors import UserError
from equisynth.findings import CaseFacts, Findings, ImageFacts
from equisynth.preprocessing.resampling import resampled_shape

Tree = dict[str, Any]
METHOD = "eqsim_com_eqadv"
TAKEN = ("ixi", "coco", "staining", "cermep")
SMALLEST_AXIS = 4
"""Voxels: two levels of a network need so many."""
HOUNSFIELD = -500
"""Values below are taken to be a CT's air."""
PERCENTILES = [0.5, 99.5]


def dataset_name(folder_name: str) -> str:
    """A name for the dataset, from its folder's: small letters, digits and underscores."""
    name = re.sub(r"[^a-z0-9]+", "_", folder_name.lower()).strip("_") or "mydata"
    return f"my_{name}" if name in TAKEN or name[0].isdigit() else name


def checked_name(name: str) -> str:
    """A name that the user chose for the dataset.

    Raises:
        UserError: it is that of a public dataset, or could not be a key and a folder.
    """
    if name in TAKEN:
        raise UserError(f"--name {name}: is a dataset of its own kind here; choose another, such as my_{name}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"--name {name!r}: expected small letters, digits and underscores, such as {dataset_name(name)}"
        )
    return name


def suggest(findings: Findings, name: str) -> Tree | None:
    """The sections to merge into ``params.yaml``; None: the images are too small for a network.

    Args:
        findings: with one case or more.
        name: of the dataset.
    """
    n_dims, cases = findings.n_dims, list(_of_kind(findings))
    voxel_size = common_voxel_size(findings)
    shape = _usual_shape(findings)
    if min(shape) < SMALLEST_AXIS:
        return None
    sides = {role: _side([case.images[role] for case in cases], role) for role in ("input", "label")}
    data = {
        "n_dims": n_dims,
        "voxel_size": voxel_size,
        **{role: intensity for role, (intensity, _) in sides.items()},
        "licence": "own data",
    }
    preparation = {
        **{role: scaling for role, (_, scaling) in sides.items()},
        "splits": {"validate": 0.15, "test": 0.15, "seed": 0},
    }
    nothing: Tree = {"phantom": {}, "data": {}, "preparation": {}}
    return {
        "sources": {name: {"kind": "path", "path": findings.path}},
        "datasets": {
            name: {
                "layout": "folder",
                "data": data,
                "preparation": preparation,
                "training": _published(shape, n_dims),
            }
        },
        "scales": {
            "paper": {name: {**nothing, "training": {}}},
            "demo": {name: {**nothing, "training": _small(shape, voxel_size)}},
        },
        "pipeline": {
            f"{name}-{METHOD}": {"dataset": name, "method": METHOD, "code": "equivariant", "overrides": {}},
        },
    }


def too_small(findings: Findings, tree: Tree) -> Iterator[str]:
    """One line for each case that a patch of the suggested parameters does not fit into."""
    (dataset,) = tree["datasets"].values()
    patch = dataset["training"]["patch_size"]
    for case in _of_kind(findings):
        shape = _prepared_shape(case, dataset["data"]["voxel_size"])
        if any(size < wanted for size, wanted in zip(shape, patch, strict=True)):
            yield f"{case.case}: {_times(shape)} voxels when prepared, too small for patches of {_times(patch)}"


def common_voxel_size(findings: Findings) -> list[float]:
    """The median over the inputs, per axis as prepared."""
    sizes = [case.images["input"].voxel_size for case in _of_kind(findings)]
    return [round(float(size), 4) for size in np.median(sizes, axis=0)]


def _of_kind(findings: Findings) -> Iterator[CaseFacts]:
    return (case for case in findings.cases if case.n_dims == findings.n_dims)


def _prepared_shape(case: CaseFacts, voxel_size: Sequence[float]) -> tuple[int, ...]:
    image = case.images["input"]
    return resampled_shape(image.shape, image.voxel_size, voxel_size)


def _usual_shape(findings: Findings) -> list[int]:
    """What three quarters of the prepared cases reach along each axis: one tiny case must not decide for all."""
    shapes = [_prepared_shape(case, common_voxel_size(findings)) for case in _of_kind(findings)]
    return [int(size) for size in np.percentile(shapes, 25, axis=0, method="lower")]


def _side(images: Sequence[ImageFacts], role: str) -> tuple[Tree, Tree | None]:
    """What the values of one side are to be (`config.Intensity`), and how the preparation scales them."""
    channels = max(len(image.mean) for image in images)
    colours = [image for image in images if len(image.mean) == channels]
    intensity: Tree = {"modality": role}
    if all(image.stored == "uint8" and not image.orientation for image in images):
        means = np.mean([image.mean for image in colours], axis=0)
        stds = np.sqrt(np.mean([np.square(image.std) for image in colours], axis=0))
        return intensity | {
            "channels": channels,
            "mean": [round(float(mean), 3) for mean in means],
            "std": [max(round(float(std), 3), 1.0) for std in stds],
            "signal_range": 255.0,
            "unit": "8-bit value",
        }, None
    if channels == 1 and min(image.low for image in images) < HOUNSFIELD:
        return intensity | {
            "std": [1000.0],
            "clip": [-1024.0, 3072.0],
            "signal_range": 4096.0,
            "background": -1024.0,
            "unit": "HU",
        }, None
    unit = f"0 to 1: percentiles {PERCENTILES[0]} and {PERCENTILES[1]} of each image"
    several = {} if channels == 1 else {"channels": channels, "mean": [0.0] * channels, "std": [1.0] * channels}
    return intensity | several | {"clip": [0.0, 1.0], "signal_range": 1.0, "unit": unit}, {"percentiles": PERCENTILES}


def patch_sizes(shape: Sequence[int], largest: int, deepest: int) -> tuple[list[int], int]:
    """The largest patch that fits an image, at most ``largest`` a side, and the levels of networks that fit it."""
    levels = min(deepest, int(np.log2(min(shape))))
    unit = 2**levels
    return [min(size, largest) // unit * unit for size in shape], levels


def _published(shape: Sequence[int], n_dims: int) -> Tree:
    """As published for ixi, but for what depends on the images' size."""
    patch, levels = patch_sizes(shape, 64 if n_dims == 3 else 256, 5)
    wide, narrow = [64, 128, 256, 512, 512][:levels], [32, 64, 128, 256, 256][:levels]
    return {
        "trains_on_label": "unregistered",
        "batch_size": 4,
        "patch_size": patch,
        "training_stride": [max(1, 3 * size // 8) for size in patch],
        "inference_stride": [size // 2 for size in patch],
        "fusing_mask_smoothing": 2.0,
        "random_transformation": {
            "rotation_degrees": [-25, 25],
            "log_scale_std": 0.08,
            "log_shear_std": 0.08,
            "translation": [-8, 8],
        },
        "input_noise_std_range": [0, 0.02],
        "min_valid_ratio": {"input": 0.5, "label": 0.5},
        "features": _features(wide, narrow),
        "normalization_groups": 16,
        "final_activation": "linear",
        "epochs": 30,
        "epoch_steps": 1000,
        "learning_rate": {"generator": 1.0e-4, "discriminator": 4.0e-4},
        "loss": {
            "similarity": "mae",
            "cross_modality_similarity": 1.0,
            "intra_modality_similarity": 1.0,
            "rigid_similarity": 1.0,
            "forward_rigidity": 1.0,
            "inverse_rigidity": 1.0,
            "discriminator": 0.01,
            "adversarial": 0.01,
            "max_rotation_degrees": 30,
            "max_translation": 64,
        },
        "rigidity": {"affinity_weight": 1.0, "orthonormality_weight": 0.01, "properness_weight": 0.1},
    }


def _small(shape: Sequence[int], voxel_size: Sequence[float]) -> Tree:
    """What differs for a first look on a computer without a GPU."""
    patch, levels = patch_sizes(shape, 24 if len(shape) == 3 else 64, 3)
    cubic = len(set(patch)) == 1 and max(voxel_size) < 1.01 * min(voxel_size)
    widths = [8, 16, 32][:levels]
    return {
        "patch_size": patch,
        "training_stride": [max(1, 2 * size // 3) for size in patch],
        "inference_stride": [size // 2 for size in patch],
        "random_transformation": {"flips": True, "right_angle_rotations": cubic},
        "features": _features(widths, widths),
        "normalization_groups": 8,
        "learning_rate": {"generator": 8.0e-4, "discriminator": 8.0e-4},
        "epochs": 8,
        "epoch_steps": 64,
    }


def _features(wide: list[int], narrow: list[int]) -> Tree:
    """Copies, so that no two lists are one: YAML would write a reference."""
    registration = ("cross_modality_reg", "intra_modality_reg", "rigid_reg")
    return {"i2i": [*wide], "discriminator": [*wide], **{name: [*narrow] for name in registration}}


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
