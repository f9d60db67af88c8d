"""One photograph pair: colours rolled, Gaussian-bump deformation, largest valid rectangle."""

from __future__ import annotations

import numpy as np
import torch
from measure import report

from equisynth.geometry.random_deformations import gaussian_deformation, random_gaussian_bump
from equisynth.geometry.rectangle import largest_interior_rectangle
from equisynth.geometry.transforms import Field, Image

# The large constant misalignment of the published experiments; angles in radians, the rest in pixels or fractions.
BUMP = {
    "width": (0.2, 0.15), "magnitude": (20.0, -20.0), "center": (0.3, 0.7), "rotation": (np.deg2rad(-10),),
    "translation": (-10.0, 10.0),
}  # fmt: skip
STEP = 4  # of the rectangle search, as published


def misaligned(photograph: torch.Tensor, rectangle: bool = True) -> Image:
    """The label of a photograph (1, 3, *S): rolled, deformed, valid in a rectangle or wherever it may be."""
    shape = tuple(photograph.shape[2:])
    bump = random_gaussian_bump(BUMP, BUMP, np.random.RandomState(0))
    field = torch.from_numpy(gaussian_deformation(bump, shape, (1.0, 1.0)))[None]
    label = Image(photograph.roll(1, dims=1), torch.ones(1, 1, *shape)).warp(Field(field))
    if not rectangle:
        return label
    box = largest_interior_rectangle(label.valid()[0, 0].numpy().astype(np.uint8), STEP)
    return Image(label.values, torch.from_numpy(box)[None, None])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for shape in ((480, 640), (480, 360)):
        photograph = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0))
        report("photograph_sample", lambda image=photograph: misaligned(image), shape=shape)
