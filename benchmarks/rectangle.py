"""The largest valid rectangle of a photograph's label, against the plain loop: the same search, in Python on slices."""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from measure import compare
from numpy.typing import NDArray
from photograph_sample import STEP, misaligned

from equisynth.geometry.rectangle import largest_interior_rectangle


def plain_loop(mask: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """The rectangle (H, W); expects a valid middle. Larger candidates alone are looked at in the mask."""
    lower = [size // 2 for size in mask.shape]
    upper = [start + 1 for start in lower]
    largest, stable = 1, False
    while not stable:
        stable = True
        for corner in (lower, upper):
            origin, best = tuple(corner), tuple(corner)
            for offset in itertools.product(range(-step, step + 1), repeat=2):
                corner[0], corner[1] = origin[0] + offset[0], origin[1] + offset[1]
                if not (0 <= lower[0] < upper[0] <= mask.shape[0] and 0 <= lower[1] < upper[1] <= mask.shape[1]):
                    continue
                area = (upper[0] - lower[0]) * (upper[1] - lower[1])
                if area > largest and mask[lower[0] : upper[0], lower[1] : upper[1]].all():
                    largest, best, stable = area, tuple(corner), False
            corner[0], corner[1] = best
    box = np.zeros_like(mask)
    box[lower[0] : upper[0], lower[1] : upper[1]] = 1
    return box


if __name__ == "__main__":
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=2, default=[480, 360])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photograph = torch.rand(1, 3, *arguments.shape, generator=torch.Generator().manual_seed(0))
    moved = misaligned(photograph, rectangle=False)
    assert moved.mask is not None
    mask = moved.mask[0, 0].numpy().astype(np.uint8)
    assert (plain_loop(mask, STEP) == largest_interior_rectangle(mask, STEP)).all()
    compare(
        "rectangle",
        lambda: largest_interior_rectangle(mask, STEP),
        lambda: plain_loop(mask, STEP),
        shape=arguments.shape,
    )
