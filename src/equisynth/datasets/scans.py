"""Scans read from archives: NIfTI volumes with three axes, checked."""

from __future__ import annotations

import zlib

import numpy as np

from equisynth.datasets.archives import Archive, CaseSkipped, read_member, skipping_damage
from equisynth.datasets.raw_scan import Scan

MEMBER_LIMIT = 1 << 31  # bytes; a scan of a head is about 20 MB


def read_scan(archive: Archive, name: str, is_mask: bool = False) -> Scan:
    """A volume from a ``.nii`` or ``.nii.gz`` member.

    Args:
        is_mask: one value only is right as well.

    Raises:
        CaseSkipped: it is damaged, has not three axes, holds values that are not finite or all the same, or its affine
            is singular.
    """
    import nibabel

    with skipping_damage(name):
        content = read_member(archive, name, MEMBER_LIMIT)
    try:
        if name.endswith(".gz"):
            unpacker = zlib.decompressobj(wbits=31)
            content = unpacker.decompress(content, MEMBER_LIMIT)
            if not unpacker.eof:
                raise CaseSkipped(f"{name}: is truncated or larger than {MEMBER_LIMIT} bytes")
        image = nibabel.Nifti1Image.from_bytes(content)
        values = image.get_fdata(dtype=np.float32)
    except CaseSkipped:
        raise
    except Exception as error:  # damaged headers raise many kinds
        raise CaseSkipped(f"{name}: cannot be read ({error})") from None
    values = values.reshape(values.shape[:3], order="A") if np.prod(values.shape[3:], dtype=int) == 1 else values
    if values.ndim != 3 or min(values.shape) < 2:
        raise CaseSkipped(f"{name}: shape {values.shape}, expected three axes")
    if not np.isfinite(values).all():
        raise CaseSkipped(f"{name}: holds values that are not finite")
    if not is_mask and values.min() == values.max():
        raise CaseSkipped(f"{name}: every value is {values.flat[0]:g}")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise CaseSkipped(f"{name}: its affine is singular")
    return Scan(np.ascontiguousarray(values), np.asarray(image.affine, dtype=np.float64))
