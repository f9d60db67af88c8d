"""Binary morphology with ball-shaped elements, as the published masks use it (ITK's balls, through SimpleITK)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.uint8]


def majority(inside: npt.NDArray[np.bool_]) -> Mask:
    """Where more than half of a cube of 3 voxels a side is inside; the border repeats.

    Of ``values > threshold`` this is ``median(values) > threshold`` without the sorting.
    """
    from scipy import ndimage

    count = inside.astype(np.uint8)
    for axis in range(inside.ndim):
        count = ndimage.correlate1d(count, [1, 1, 1], axis=axis, mode="nearest")
    found: Mask = (count > 3**inside.ndim // 2).astype(np.uint8)
    return found


def erode(mask: Mask, radius: int) -> Mask:
    """Erosion by a ball; beyond the image border there is nothing, so a body erodes there, too."""
    if radius == 1:  # scipy takes a fifth of ITK's time for so small a ball
        from scipy import ndimage

        eroded: Mask = ndimage.binary_erosion(mask, _small_ball(mask.ndim)).astype(np.uint8)
        return eroded
    import SimpleITK as sitk

    return _array(sitk.BinaryErode(_image(mask), [radius] * mask.ndim, sitk.sitkBall, 0, 1, False))


def dilate(mask: Mask, radius: int) -> Mask:
    """Dilation by a ball."""
    if radius == 1:
        from scipy import ndimage

        dilated: Mask = ndimage.binary_dilation(mask, _small_ball(mask.ndim)).astype(np.uint8)
        return dilated
    import SimpleITK as sitk

    return _array(sitk.BinaryDilate(_image(mask), [radius] * mask.ndim, sitk.sitkBall, 0, 1))


def close(mask: Mask, radius: int) -> Mask:
    """Closing by a ball, as if zeros went on beyond the image border."""
    import SimpleITK as sitk

    return _array(sitk.BinaryMorphologicalClosing(_image(mask), [radius] * mask.ndim, sitk.sitkBall, 1, True))


def largest_component(mask: Mask) -> Mask:
    """The largest face-connected component; an empty mask stays empty."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count == 0:
        return mask.astype(np.uint8)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: Mask = (labels == sizes.argmax()).astype(np.uint8)
    return largest


def fill_holes(mask: Mask) -> Mask:
    """Fills cavities that no face-connected path joins to the image border."""
    import SimpleITK as sitk

    return _array(sitk.BinaryFillhole(_image(mask), False, 1))


def _small_ball(n_dims: int) -> npt.NDArray[np.bool_]:
    """ITK's ball of radius 1: all neighbours, in a volume all but the corners."""
    from scipy import ndimage

    ball: npt.NDArray[np.bool_] = ndimage.generate_binary_structure(n_dims, 2)
    return ball


def _image(mask: Mask) -> Any:
    import SimpleITK as sitk

    return sitk.GetImageFromArray(np.ascontiguousarray(mask, dtype=np.uint8))


def _array(image: Any) -> Mask:
    import SimpleITK as sitk

    values: Mask = sitk.GetArrayFromImage(image)
    return values
