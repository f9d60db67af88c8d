"""Binary morphology with ball-shaped elements, as the published masks use it (ITK's balls, through SimpleITK)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.uint8]


def median(values: npt.NDArray[np.float32], size: int = 3) -> npt.NDArray[np.float32]:
    """Median over cubes of ``size`` voxels a side; the border repeats."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(values, dtype=np.float32))
    filtered: npt.NDArray[np.float32] = sitk.GetArrayFromImage(sitk.Median(image, [size // 2] * values.ndim))
    return filtered


def erode(mask: Mask, radius: int) -> Mask:
    """Erosion by a ball; the image border does not erode."""
    import SimpleITK as sitk

    return _array(sitk.BinaryErode(_image(mask), [radius] * mask.ndim, sitk.sitkBall, 0, 1, False))


def dilate(mask: Mask, radius: int) -> Mask:
    """Dilation by a ball."""
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


def _image(mask: Mask) -> Any:
    import SimpleITK as sitk

    return sitk.GetImageFromArray(np.ascontiguousarray(mask, dtype=np.uint8))


def _array(image: Any) -> Mask:
    import SimpleITK as sitk

    values: Mask = sitk.GetArrayFromImage(image)
    return values
