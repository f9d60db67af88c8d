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
    from scipy import ndimage

    mask = morphology.majority(values > threshold)  # the median of 3 voxels a side is above it
    if opening:
        mask = morphology.dilate(morphology.erode(mask, opening), opening)
    mask = morphology.largest_component(mask)
    for box in ndimage.find_objects(mask):  # of the one component: what follows does not reach beyond it
        mask[box] = morphology.fill_holes(morphology.close(mask[box], closing))
    return morphology.dilate(mask, dilation) if dilation else mask
