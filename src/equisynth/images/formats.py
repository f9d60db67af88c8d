"""What image files are called: the formats by their suffixes, and names without them."""

from __future__ import annotations

NIFTI = (".nii.gz", ".nii")
TIFF = (".ome.tiff", ".ome.tif", ".tiff", ".tif")
PICTURE = (".png", ".jpg", ".jpeg")
READABLE = (*NIFTI, *TIFF, *PICTURE)
OUTPUTS = {NIFTI: NIFTI, TIFF: TIFF, PICTURE: (".png",)}
"""Formats of an input -> formats of its output: JPEG would add errors of its own."""


def suffix_of(name: str) -> str:
    """The suffix of a readable image, in small letters; empty where it is none."""
    return next((suffix for suffix in READABLE if name.lower().endswith(suffix)), "")


def stem_of(name: str) -> str:
    """The name without the suffix of a readable image: ``a.b.nii.gz`` -> ``a.b``."""
    return name[: len(name) - len(suffix_of(name))]


def output_suffixes(name: str) -> tuple[str, ...]:
    """Suffixes that the output of an input may have; those of volumes for DICOM folders.

    Args:
        name: of the input.
    """
    suffix = suffix_of(name)
    return next((outputs for inputs, outputs in OUTPUTS.items() if suffix in inputs), NIFTI)


def output_suffix(name: str) -> str:
    """The suffix that keeps the format of an input: ``.png`` for JPEG, ``.nii.gz`` for DICOM folders."""
    suffix, possible = suffix_of(name), output_suffixes(name)
    return suffix if suffix in possible else possible[0]
