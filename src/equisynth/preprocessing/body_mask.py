"""Where the body is: everything inside the skin, cavities included."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from equisynth.preprocessing import morphology


def body_mask(normalised: npt.NDArray[np.float32], threshold: float = 0.1, closing: int = 8) -> npt.NDArray[np.uint8]:
    """Body mask (*S) of an image (*S) whose white matter is about 1 (spec: datasets, ixi step 2).

    Median filter 3, > ``threshold``, erode 1, dilate 1, largest component, close ``closing``, fill holes.
    """
    mask = (morphology.median(normalised, 3) > threshold).astype(np.uint8)
    mask = morphology.largest_component(morphology.dilate(morphology.erode(mask, 1), 1))
    return morphology.fill_holes(morphology.close(mask, closing))
