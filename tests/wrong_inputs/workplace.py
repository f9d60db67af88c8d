"""A small working directory in which everything is right, and the ways to break it that several entries share."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import yaml

from equisynth import params
from equisynth.datasets.prepared import DatasetInfo, write_case, write_info
from equisynth.description import FORMAT, Description, write_description
from equisynth.methods.base import build_method
from equisynth.model import network_states, save_weights
from wrong_inputs.entry import Arrange

EXPERIMENT = "ixi-eqsim_com_eqadv"
PREPARED = "data/prepared/ixi"
MODEL = f"models/{EXPERIMENT}"
SHAPE, VOXEL_SIZE = (12, 12, 12), (2.0, 2.0, 2.0)
CASES = {"train": ("a", "b"), "validate": ("c",), "test": ("d",)}
REMOVED = object()
_TINY: dict[str, Any] = {
    "patch_size": [8, 8, 8],
    "training_stride": [4, 4, 4],
    "inference_stride": [4, 4, 4],
    "batch_size": 2,
    "features": {
        "i2i": [2, 4], "discriminator": [2, 4], "cross_modality_reg": [2, 4], "intra_modality_reg": [2, 4],
        "rigid_reg": [2, 4],
    },
    "normalization_groups": 2,
    "epochs": 1,
    "epoch_steps": 1,
}  # fmt: skip


def build(folder: Path, repository: Path) -> None:
    """Parameters, a prepared dataset of four cases, a model, an image and a mask."""
    tree = yaml.safe_load((repository / "params.yaml").read_text(encoding="utf-8"))
    tree["scale"] = "demo"
    tree["scales"]["demo"]["ixi"]["training"] = _TINY
    tree["scales"]["demo"]["ixi"]["data"] = {"voxel_size": list(VOXEL_SIZE)}
    tree["pipeline"] = {EXPERIMENT: tree["pipeline"][EXPERIMENT]}
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")

    settings = params.resolve(params.read(folder / "params.yaml"), EXPERIMENT)
    affine = np.diag([*VOXEL_SIZE, 1.0])
    for case in (case for cases in CASES.values() for case in cases):
        roles = ("input", "label", "label_aligned")
        arrays: dict[str, Any] = {role: values() for role in roles}
        arrays |= {f"{role}_mask": np.ones(SHAPE, np.uint8) for role in ("label", "evaluation")}
        write_case(folder / PREPARED, case, arrays, affine)
    write_info(folder / PREPARED, DatasetInfo(**settings.data.model_dump(), name="ixi", splits=CASES))

    torch.manual_seed(0)
    save_weights(folder / MODEL / "model.safetensors", network_states(build_method(settings).networks))
    description = Description(format=FORMAT, settings=settings, preparation={}, best_epoch=1, selection=0.5)
    write_description(folder / MODEL, description)
    for name in ("data/raw", "predictions", "reports/metrics", "reports/evaluation", "reports/history"):
        (folder / name).mkdir(parents=True)
    write_image(folder / "T2.nii.gz", values())
    write_image(folder / "mask.nii.gz", np.ones(SHAPE))


def values() -> np.ndarray:
    """An image that nothing is wrong with, (*S) float32."""
    return (np.random.RandomState(0).rand(*SHAPE) + 1).astype(np.float32)


def write_image(path: Path, content: np.ndarray, voxel_size: float = VOXEL_SIZE[0]) -> None:
    """A NIfTI image of the content's own type."""
    content = content if content.dtype != np.float64 else content.astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(content, np.diag([voxel_size] * 3 + [1.0])), path)


# --- ways to break it


def change(key: str, value: Any) -> Arrange:
    """Sets a key of params.yaml, given by its path with '/' between the parts (names may hold dots)."""

    def arrange(folder: Path) -> None:
        path = folder / "params.yaml"
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        _set(tree, key, value)
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")

    return arrange


def change_json(name: str, key: str, value: Any) -> Arrange:
    """Sets a key of a JSON file."""

    def arrange(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        _set(content, key, value)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return arrange


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split("/")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    if value is REMOVED:
        del tree[last]
    else:
        tree[last] = value


def remove(name: str) -> Arrange:
    """Deletes a file or folder."""

    def arrange(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return arrange


def text(name: str, content: str = "Not what it was meant to be.\n") -> Arrange:
    """A file of text."""

    def arrange(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")

    return arrange


def truncate(name: str, share: float = 0.5) -> Arrange:
    """Keeps the first part of a file."""

    def arrange(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return arrange


def image(name: str, make: Callable[[], np.ndarray], voxel_size: float = VOXEL_SIZE[0]) -> Arrange:
    """An image of other content."""
    return lambda folder: write_image(folder / name, make(), voxel_size)


def single(position: int, value: float) -> Callable[[], np.ndarray]:
    """The usual image with one wrong voxel."""

    def make() -> np.ndarray:
        content = values()
        content.flat[position] = value
        return content

    return make


def gzipped(name: str, content: bytes) -> Arrange:
    """A gzip file of bytes."""
    return lambda folder: (folder / name).write_bytes(gzip.compress(content, mtime=0))
