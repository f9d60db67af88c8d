"""Where the body is: everything inside the skin, cavities included."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from equisynth.preprocessing import morphology


def body_mask(
    values: npt.NDArray[np.float32], threshold: float = 0.1, closing: int = 8, opening: int = 1, dilation: int = 0
) -> npt.NDArray[np.uint8]:
    """Body mask (*S) of an image (*S); the defaults are for images whose white matter is about 1.

    Median filter 3, > ``threshold``, erode and dilate ``opening``, largest component, close ``closing``, fill holes,
    dilate ``dilation`` (radii in voxels; spec: datasets, ixi step 2, cermep steps 1 and 3).
    """
    mask = (morphology.median(values, 3) > threshold).astype(np.uint8)
    if opening:
        mask = morphology.dilate(morphology.erode(mask, opening), opening)
    mask = morphology.fill_holes(morphology.close(morphology.largest_component(mask), closing))
    return morphology.dilate(mask, dilation) if dilation else mask
