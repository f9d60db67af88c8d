"""Names of image files."""

from __future__ import annotations

import pytest

from equisynth.images.formats import output_suffix, stem_of, suffix_of


@pytest.mark.parametrize(
    ("name", "stem", "suffix", "output"),
    [
        ("a.b.nii.gz", "a.b", ".nii.gz", ".nii.gz"),
        ("a.nii", "a", ".nii", ".nii"),
        ("slide.ome.tiff", "slide", ".ome.tiff", ".ome.tiff"),
        ("slide.TIF", "slide", ".tif", ".tif"),
        ("photo.JPG", "photo", ".jpg", ".png"),
        ("series", "series", "", ".nii.gz"),
    ],
)
def test_parts(name: str, stem: str, suffix: str, output: str) -> None:
    assert (stem_of(name), suffix_of(name), output_suffix(name)) == (stem, suffix, output)
