"""Small DICOM series, as a scanner would store them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK

UID = "1.2.826.0.1.3680043.8.498.1"


def oblique(spacing: tuple[float, float, float] = (1.5, 1.25, 3.0)) -> SimpleITK.Image:
    """A volume (x, y, z) = (16, 14, 10), turned about two axes, with a bright cube; in LPS."""
    values = np.full((10, 14, 16), 40, np.int16)  # (z, y, x)
    values[6:8, 3:6, 9:13] = 900
    image = SimpleITK.GetImageFromArray(values)
    image.SetSpacing(spacing)
    image.SetOrigin((-30.0, 12.5, 47.0))
    a, b = 0.4, -0.3
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    image.SetDirection((about_z @ about_x).ravel().tolist())
    return image


def write_series(
    folder: Path,
    image: SimpleITK.Image,
    number: int = 4,
    without: tuple[int, ...] = (),
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Path:
    """Writes one file per slice, not in their order.

    Args:
        number: of the series in its study.
        without: slices that are left out.
        shift: mm by which each slice lies further than it should.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.reshape(image.GetDirection(), (3, 3))
    turn = "\\".join(f"{value:.8f}" for value in direction.T[:2].ravel())
    for index in range(image.GetDepth()):
        if index in without:
            continue
        place = np.array(image.TransformIndexToPhysicalPoint((0, 0, index))) + index * np.array(shift)
        one = image[:, :, index]
        for key, value in {
            "0008|0060": "MR",
            "0008|103e": "t2 tse",
            "0010|0010": "Phantom",
            "0020|000d": f"{UID}.1",
            "0020|000e": f"{UID}.1.{number}",
            "0008|0018": f"{UID}.1.{number}.{index + 1}",
            "0020|0011": str(number),
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in place),
            "0020|0037": turn,
            "0018|0050": f"{image.GetSpacing()[2]:g}",
        }.items():
            one.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{number}_{(7 * index) % 10:02d}.dcm"))
        writer.Execute(one)
    return folder
