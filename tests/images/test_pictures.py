"""PNG and JPEG: what is read of them, what is refused, and an identity that gives them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equisynth.errors import UserError
from equisynth.images.pictures import predict_picture, read_picture
from test_slides import IDENTITY, picture


def save(path: Path, values: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def test_an_identity_gives_a_picture_back(tmp_path: Path) -> None:
    path = save(tmp_path / "in.png", picture())
    predict_picture(IDENTITY, path, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as found:
        assert found.mode == "RGB"
        assert np.array_equal(np.asarray(found), picture())


def test_a_mask_makes_the_rest_the_mean_colour(tmp_path: Path) -> None:
    mask = np.zeros((150, 170), np.uint8)
    mask[:75] = 255
    path = save(tmp_path / "in.png", picture())
    predict_picture(IDENTITY, path, tmp_path / "out.png", save(tmp_path / "mask.png", mask))
    found = np.asarray(Image.open(tmp_path / "out.png"))
    assert np.array_equal(found[:75], picture()[:75])
    assert not found[75:].any()
    with pytest.raises(UserError, match=r"small.png: shape \(9, 9\), expected that of"):
        predict_picture(IDENTITY, path, tmp_path / "out.png", save(tmp_path / "small.png", mask[:9, :9]))


def test_jpeg_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    path = save(tmp_path / "in.jpg", picture(), quality=95, exif=exif)
    values = read_picture(path, 3)
    assert values.shape == (170, 150, 3)
    assert np.abs(values.astype(int) - np.rot90(picture(), -1)).mean() < 3


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_modes_that_fit(tmp_path: Path, mode: str, channels: int) -> None:
    values = read_picture(save(tmp_path / "in.png", picture(), mode), channels)
    assert values.dtype == np.uint8
    assert values.shape == ((150, 170) if channels == 1 else (150, 170, 3))


def test_16_bit_grey_values_are_scaled_down(tmp_path: Path) -> None:
    values = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    assert np.array_equal(read_picture(save(tmp_path / "in.png", values), 1), values // 257)


@pytest.mark.parametrize(
    ("mode", "channels", "message"),
    [
        ("L", 3, r"is grey, the model expects colours \(RGB\)"),
        ("RGB", 1, "is in colours, the model expects grey values"),
        ("CMYK", 3, "holds CMYK values"),
    ],
)
def test_other_channels_are_refused(tmp_path: Path, mode: str, channels: int, message: str) -> None:
    path = save(tmp_path / f"in.{'jpg' if mode == 'CMYK' else 'png'}", picture(), mode)
    with pytest.raises(UserError, match=message):
        read_picture(path, channels)


def test_damage_is_one_line(tmp_path: Path) -> None:
    path = save(tmp_path / "in.png", picture())
    whole = path.read_bytes()
    for content in (b"", b"no picture", whole[: len(whole) // 2], whole[:200] + bytes(50) + whole[250:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"in.png: cannot be read") as caught:
            read_picture(path, 3)
        assert "\n" not in str(caught.value)
    save(path, np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(UserError, match="every pixel is zero"):
        read_picture(path, 3)
    with pytest.raises(UserError, match="no such file"):
        read_picture(tmp_path / "absent.png", 3)
