"""A folder with the proof at a size of seconds: tiny crops and brains, networks of two levels, two epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from equisynth import params
from equisynth.datasets.prepared import DatasetInfo, write_case, write_info
from equisynth.proof import crops, protocol

ROOT = Path(__file__).parents[1]
WIDTHS = {"i2i": [4, 8], "cross_modality_reg": [4, 8], "intra_modality_reg": [4, 8], "rigid_reg": [4, 8]}
SIDE = 16  # of the brains, voxels
PARTS = [
    {"task": "photographs", "methods": ["lc_eqsim_com", "lc_noreg_aug"], "seeds": [0]},
    {"task": "photographs", "methods": ["lc_noreg_aug"], "seeds": [1]},
    {"task": "brain", "methods": ["eqsim_com_eqadv"], "seeds": [0]},
    {"task": "brain", "methods": ["noreg"], "label": "aligned", "seeds": [0]},
]


def write_protocol(folder: Path, parts: list[dict[str, Any]], **photographs: Any) -> None:
    """``params.yaml`` as it is, and ``proof/params.yaml`` with other parts and sizes."""
    tree = yaml.safe_load((ROOT / protocol.FILE).read_text(encoding="utf-8"))
    tree["parts"] = {"short": parts}
    tree["photographs"] = params.merge(tree["photographs"], photographs)
    tiny = {"features": {**WIDTHS, "discriminator": [4, 8]}, "normalization_groups": 4, "epochs": 2, "epoch_steps": 2}
    tree["brain"]["training"] = {
        "patch_size": [8, 8, 8],
        "training_stride": [8, 8, 8],
        "inference_stride": [8, 8, 8],
        **tiny,
    }
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / protocol.FILE).parent.mkdir(parents=True, exist_ok=True)
    (folder / protocol.FILE).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def make(folder: Path) -> None:
    """All that the proof needs, in a folder that is the working directory."""
    training = {"patch_size": [32, 32], "features": WIDTHS, "normalization_groups": 4, "epochs": 2}
    write_protocol(folder, PARTS, crop=48, crops={"train": 8, "validate": 4, "test": 6}, training=training)
    specified, tree = protocol.read(), params.read()
    crops.write_dataset(
        specified.photographs, params.data_settings(tree, "coco", "paper"), "coco", protocol.PREPARED["photographs"]
    )
    write_brains(protocol.PREPARED["brain"], tree)


def write_brains(folder: Path, tree: params.Tree) -> None:
    """Smooth random volumes whose label is the squared input, one voxel off along the first axis."""
    splits = {"train": ("a", "b"), "validate": ("c",), "test": ("d", "e")}
    state = np.random.RandomState(0)
    for case in (name for names in splits.values() for name in names):
        coarse = state.rand(4, 4, 4).astype(np.float32)
        image = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)
        shift = np.zeros((3, SIDE, SIDE, SIDE), np.float32)
        shift[0, :-1] = 1  # label(p) = aligned(p + shift); the last slice stays
        moved = np.concatenate([image[1:], image[-1:]])
        arrays = {
            "input": image, "label_aligned": image**2, "label": moved**2, "deformation": shift,
            "evaluation_mask": np.ones_like(image, np.uint8),
        }  # fmt: skip
        write_case(folder, case, arrays, np.eye(4))
    data = params.data_settings(tree, "ixi", "demo")
    stored = ("input", "label", "label_aligned")
    write_info(folder, DatasetInfo(**data.model_dump(), name="ixi", stored=stored, splits=splits))
