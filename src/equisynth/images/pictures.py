"""Pictures (PNG, JPEG): read whole, translated, written as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.errors import UserError
from equisynth.inference import PICTURE, Predictor, Progress, to_8_bit, translate_volume

GREY = {"1": "L", "L": "L", "LA": "L"}
COLOURS = {"RGB": "RGB", "RGBA": "RGB", "P": "RGB", "YCbCr": "RGB"}
"""Pillow's modes -> what is read of them; palettes are colours."""
DEEP = ("I;16", "I;16B", "I;16L")
"""Pillow's modes of 16-bit grey values; deep colours it gives as 8-bit ones."""


def read_picture(path: Path, channels: int) -> npt.NDArray[np.uint8]:
    """A picture as it is meant to be seen (turned as its EXIF says), (rows, columns) or (rows, columns, 3).

    Args:
        channels: 3: colours, of which transparency is dropped; 1: grey values.

    Raises:
        UserError: absent, damaged, of other channels, or zero everywhere.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            picture: Any = ImageOps.exif_transpose(file)
            picture.load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a PNG or JPEG picture") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: is too large to be read whole ({error}); convert it to a tiled TIFF") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # damaged PNG files are errors of syntax
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason:.120}); expected a PNG or JPEG picture") from None
    values = _values(picture, channels, path)
    if not values.any():
        raise UserError(f"{path}: every pixel is zero; is this the right file?")
    return values


def predict_picture(
    model: Predictor,
    input_path: Path,
    output_path: Path,
    mask_path: Path | None = None,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> None:
    """Translates a picture; the output has its rows and columns, 8-bit, and shows the mean colour where it is invalid.

    Args:
        mask_path: a picture of the same size, valid where above 0.

    Raises:
        UserError: a file is absent, damaged or does not fit the model.
    """
    from PIL import Image

    data = model.description.settings.data
    values = read_picture(input_path, data.input.channels)
    mask = None if mask_path is None else read_picture(mask_path, 1)
    if mask is not None and mask.shape != values.shape[:2]:
        raise UserError(f"{mask_path}: shape {mask.shape}, expected that of {input_path}, {values.shape[:2]}")
    if data.label.channels not in (1, 3):
        raise UserError(f"{input_path}: the model's output has {data.label.channels} channels; PNG holds 1 or 3")
    shape = (*values.shape[:2], 3) if data.label.channels == 3 else values.shape[:2]
    result = translate_volume(
        model.predict, values, mask, model.description, PICTURE, batch_size, progress,
        out=np.empty(shape, np.uint8), convert=to_8_bit,
    )  # fmt: skip
    Image.fromarray(result).save(output_path, format="PNG")


def _values(picture: Any, channels: int, path: Path) -> npt.NDArray[np.uint8]:
    if picture.mode in DEEP and channels == 1:
        return (np.asarray(picture, dtype=np.uint16) // 257).astype(np.uint8)
    grey, colours = picture.mode in (*GREY, *DEEP), picture.mode in COLOURS
    if not grey and not colours:
        raise UserError(f"{path}: holds {picture.mode} values, expected 8-bit RGB or grey; save it as such")
    if grey != (channels == 1):
        found = "grey" if grey else "in colours"
        expected = {1: "grey values", 3: "colours (RGB)"}.get(channels, f"{channels} channels")
        raise UserError(f"{path}: is {found}, the model expects {expected}; take a picture or a model that fits")
    return np.asarray(picture.convert((GREY | COLOURS)[picture.mode]), dtype=np.uint8)
