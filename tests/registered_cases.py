"""Small prepared datasets whose labels must be registered: heads with a CT on a grid of its own, stained sections.

A perfect model is known of each: `true_ct` and `true_stain`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from equisynth.config import Intensity
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case, write_info

AIR = -1024.0
SHIFT = np.array([3.0, -2.0, 2.5])
"""The CT lies so many mm away from the MR."""
SHAPE, VOXEL = (26, 24, 22), (3.0, 3.2, 3.4)
NATIVE_SHAPE, NATIVE_VOXEL = (30, 32, 20), (2.6, 2.4, 3.8)
CASES = ("a", "b", "c", "d")
SPLITS = {"train": ("a",), "validate": ("b",), "test": ("c", "d")}
SECTION_SHIFT = (4.0, -3.0)
"""Of the stained section, in pixels."""


def pattern(position: np.ndarray, seed: int) -> np.ndarray:
    """A smooth pattern between 0 and 1 that fades towards the border, over positions (3, ...) in mm."""
    state, total = np.random.RandomState(seed), np.zeros(position.shape[1:])
    for _ in range(30):
        centre = state.uniform(12, 64, 3).reshape(3, 1, 1, 1)
        total += state.uniform(0.3, 1) * np.exp(
            -((position - centre) ** 2).sum(axis=0) / (2 * state.uniform(6, 10) ** 2)
        )
    return total / 2.5


def grid(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    return np.tensordot(affine[:3, :3], np.indices(shape), axes=1) + affine[:3, 3].reshape(3, 1, 1, 1)


def hounsfield(values: np.ndarray) -> np.ndarray:
    return (AIR + 1800 * np.minimum(values, 1)).astype(np.float32)


def true_ct(dataset: PreparedDataset, case: str) -> np.ndarray:
    """The CT where the MR is."""
    return hounsfield(dataset.image(case, "input"))


def write_heads(folder: Path) -> PreparedDataset:
    """Four cases whose CT is a function of the MR, shifted, on a grid of its own."""
    affine, native_affine = np.diag([*VOXEL, 1.0]), np.diag([*NATIVE_VOXEL, 1.0])
    intensity = Intensity(modality="CT", signal_range=4096, background=AIR, unit="HU")
    info = DatasetInfo(
        n_dims=3, voxel_size=VOXEL, input=intensity.model_copy(update={"background": 0.0}), label=intensity,
        licence="-", name="heads", splits=SPLITS,
    )  # fmt: skip
    for seed, case in enumerate(CASES):
        image = pattern(grid(SHAPE, affine), seed)
        moved = SHIFT.reshape(3, 1, 1, 1)
        native = hounsfield(pattern(grid(NATIVE_SHAPE, native_affine) - moved, seed))
        label = hounsfield(pattern(grid(SHAPE, affine) - moved, seed))
        body = image > 0.15
        invalid = np.zeros(SHAPE, np.uint8)
        invalid[:6] = 1
        arrays: dict[str, np.ndarray] = {
            "input": image, "label": label, "label_native": native, "input_body_mask": body,
            "label_native_body_mask": native > AIR + 270, "evaluation_mask": body,
            "label_invalid_region_mask": invalid,
        }  # fmt: skip
        write_case(folder, case, arrays, affine, affines={r: native_affine for r in arrays if "native" in r})
    write_info(folder, info)
    return PreparedDataset.open(folder)


def blots(shape: tuple[int, int], seed: int) -> np.ndarray:
    """A smooth picture between 0 and 1."""
    smooth = ndimage.gaussian_filter(np.random.RandomState(seed).rand(*shape), 3)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def stained(values: np.ndarray) -> np.ndarray:
    """What a perfect model makes of a picture: (rows, columns) of 0 to 1 -> 8-bit colours, nowhere black."""
    return np.rint(np.stack([250 - 180 * values, 240 - 200 * values**2, 200 - 90 * values], axis=-1)).astype(np.uint8)


def unstained(values: np.ndarray) -> np.ndarray:
    return np.rint(np.repeat(40 + 200 * values[..., None], 3, axis=-1)).astype(np.uint8)


def true_stain(dataset: PreparedDataset, case: str) -> np.ndarray:
    return stained((dataset.image(case, "input")[..., 0].astype(float) - 40) / 200)


def write_sections(folder: Path) -> PreparedDataset:
    """Sections of 144 x 192 pixels, the stained one shifted; a corner of them is invalid."""
    rows, columns = 144, 192
    intensity = Intensity(
        modality="H&E", channels=3, mean=(0,) * 3, std=(1,) * 3, signal_range=255, unit="8-bit colour"
    )
    info = DatasetInfo(
        n_dims=2, voxel_size=(1, 1), input=intensity, label=intensity, licence="-", invalid_at_or_below=0,
        name="sections", splits=SPLITS,
    )  # fmt: skip
    for seed, case in enumerate("abcd"):
        wide = blots((rows + 20, columns + 20), seed)
        moved = ndimage.shift(wide, SECTION_SHIFT, order=3)
        image, label = (picture[10:-10, 10:-10].clip(0, 1) for picture in (wide, moved))
        mask = np.ones((rows, columns), np.uint8)
        mask[-20:, -20:] = 0
        arrays: dict[str, Any] = {"input": unstained(image), "label": stained(label), "mask": mask}
        write_case(folder, case, arrays, np.eye(4), n_dims=2)
    write_info(folder, info)
    return PreparedDataset.open(folder)
