"""What the files of a prepared case are called, and on whose grid each lies."""

from __future__ import annotations

NATIVE = "label_native"
"""The label on the grid on which it was scanned; all else lies on the input's."""
IMAGES = ("input", "label", "label_aligned", "label_registered", NATIVE)
EVALUATION = "evaluation"
REGIONS = ("input_body", "label_body", f"{NATIVE}_body", "input_invalid_region", "label_invalid_region")
DEFORMATIONS = ("deformation", "inverse_deformation")
SHARED_MASK = "mask"
"""Serves each image on the input's grid, and the evaluation, that has no valid mask of its own."""
MASKS = (SHARED_MASK, *(f"{name}_mask" for name in (*IMAGES, EVALUATION, *REGIONS)))
ROLES = (*IMAGES, *MASKS, *DEFORMATIONS)


def grid_of(role: str) -> str:
    """The image whose grid a role lies on."""
    return NATIVE if role.startswith(NATIVE) else "input"


def image_of(role: str) -> str | None:
    """What a valid mask is of, an image or ``evaluation``; None for any other role."""
    name = role.removesuffix("_mask")
    return name if name != role and name in (*IMAGES, EVALUATION) else None
