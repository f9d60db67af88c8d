"""Slides: golden numbers, formats, structure, and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from equisynth import slides
from equisynth.errors import UserError
from equisynth.slides import Slide, predict_tiff
from golden_data import load
from test_inference import describe, golden_model, intensity

GOLDEN = load("08_data") / "inference_tiff"
COLOURS = intensity([0.0] * 3, [1.0] * 3)
IDENTITY = SimpleNamespace(
    description=describe((48, 32), (32, 16), input=COLOURS, label=COLOURS, fusing_mask_smoothing=2.0),
    predict=lambda values, mask: values,
)


def picture(shape: tuple[int, ...] = (150, 170, 3), dtype: Any = np.uint8) -> np.ndarray:
    rows, columns = np.meshgrid(np.linspace(0, 3, shape[0]), np.linspace(0, 2, shape[1]), indexing="ij")
    smooth = np.stack([np.sin(rows + k) * np.cos(columns * (k + 1)) for k in range(3)], axis=-1) * 100 + 120
    return np.rint(smooth.reshape(*shape[:2], 3)[..., : shape[2] if len(shape) > 2 else 1].reshape(shape)).astype(dtype)


@pytest.mark.parametrize("case", GOLDEN.children())
def test_tiff_golden(case: str, tmp_path: Path) -> None:
    golden = GOLDEN / case
    tifffile.imwrite(tmp_path / "image.tif", golden["image"], photometric="rgb")
    tifffile.imwrite(tmp_path / "mask.tif", golden["mask"], photometric="minisblack")
    model = golden_model(golden, 2)
    inputs, masks = [], []

    def predict(values: Any, mask: Any) -> Any:
        inputs.append(values.numpy())
        masks.append(mask.numpy())
        return model.predict(values, mask)

    spy = SimpleNamespace(description=model.description, predict=predict)
    predict_tiff(spy, tmp_path / "image.tif", tmp_path / "out.tif", tmp_path / "mask.tif")
    fusing = golden["patch_fusing_masks"]
    seen = (golden["patch_input_masks"] * fusing).sum(axis=(1, 2, 3)) >= 1e-5
    assert np.allclose(np.concatenate(masks), golden["patch_input_masks"][seen])
    tolerance = 1e-5 * np.abs(golden["patch_inputs"]).max()
    assert np.allclose(np.concatenate(inputs), golden["patch_inputs"][seen], atol=tolerance)
    found = tifffile.imread(tmp_path / "out.tif")
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - golden["prediction"])
    assert difference.max() <= 1  # a value on a half rounds either way
    assert (difference > 0).mean() < 1e-3


def encode(path: Path, kind: str) -> np.ndarray:
    """Writes a picture in some TIFF structure; returns what it shows."""
    image = picture()
    if kind == "jpeg_strips":
        return write_jpeg_strips(path, image)
    options: dict[str, Any] = {
        "one_strip": {},
        "strips": {"rowsperstrip": 7},
        "tiles": {"tile": (64, 48)},
        "deflate_tiles": {"tile": (32, 64), "compression": "adobe_deflate"},
        "deflate_strips": {"rowsperstrip": 11, "compression": "adobe_deflate"},
        "planar": {"planarconfig": "separate"},
        "big": {"tile": (64, 48), "bigtiff": True},
    }[kind]
    data = np.moveaxis(image, -1, 0) if kind == "planar" else image
    tifffile.imwrite(path, data, photometric="rgb", resolution=(4000, 4000), resolutionunit="CENTIMETER", **options)
    return image


def write_jpeg_strips(path: Path, image: np.ndarray) -> np.ndarray:
    """JPEG-compressed segments with their tables kept once, as slide scanners write them."""
    Image.fromarray(image).save(path, compression="jpeg", quality=95, tiffinfo={278: 32}, resolution=300)
    with Image.open(path) as decoded:
        return np.asarray(decoded)


KINDS = ["one_strip", "strips", "tiles", "deflate_tiles", "deflate_strips", "planar", "big", "jpeg_strips"]


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_every_structure(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(slides, "CACHE_BYTES", 40_000)
    image = encode(tmp_path / "in.tif", kind)
    with Slide(tmp_path / "in.tif") as slide:
        assert slide.shape == image.shape[:2]
        for top, bottom, left, right in ((0, 150, 0, 170), (60, 70, 30, 129), (149, 150, 0, 3)):
            rows, columns = slice(top, bottom), slice(left, right)
            assert np.array_equal(slide.read((rows, columns)), image[rows, columns])


@pytest.mark.parametrize("kind", KINDS)
def test_an_identity_gives_the_slide_back_in_its_structure(kind: str, tmp_path: Path) -> None:
    image = encode(tmp_path / "in.tif", kind)
    predict_tiff(IDENTITY, tmp_path / "in.tif", tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "in.tif") as given, tifffile.TiffFile(tmp_path / "out.tif") as found:
        a, b = given.pages[0], found.pages[0]
        assert b.photometric.name == "RGB"
        assert b.dtype == np.uint8
        assert b.is_tiled == a.is_tiled
        assert (b.tile if b.is_tiled else b.rowsperstrip) == (a.tile if a.is_tiled else a.rowsperstrip)
        assert b.resolution == a.resolution
        assert np.array_equal(b.asarray(), image)


def test_invalid_pixels_become_the_mean_colour(tmp_path: Path) -> None:
    image = picture()
    image[40:90, 50:] = 0
    tifffile.imwrite(tmp_path / "in.tif", image, photometric="rgb")
    label = intensity([160.0, 120.0, 170.0], [1.0, 1.0, 1.0])
    description = describe((48, 32), (32, 16), input=COLOURS, label=label, invalid_at_or_below=0.0)
    model = SimpleNamespace(description=description, predict=IDENTITY.predict)
    predict_tiff(model, tmp_path / "in.tif", tmp_path / "out.tif")
    found = tifffile.imread(tmp_path / "out.tif")
    assert np.array_equal(np.unique(found[40:90, 50:].reshape(-1, 3), axis=0), [[160, 120, 170]])


def test_grey_alpha_and_16_bit_pictures_are_read_as_colours(tmp_path: Path) -> None:
    grey, alpha = picture((60, 70)), picture((60, 70, 3))
    deep = picture((60, 70, 3)).astype(np.uint16) * 257
    with_alpha = np.concatenate([alpha, np.full((60, 70, 1), 255, np.uint8)], axis=-1)
    for data, expected, options in (
        (grey, np.repeat(grey[..., None], 3, -1), {"photometric": "minisblack"}),
        (with_alpha, alpha, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (deep, alpha, {"photometric": "rgb"}),
    ):
        tifffile.imwrite(tmp_path / "in.tif", data, **options)
        with Slide(tmp_path / "in.tif") as slide:
            assert np.array_equal(slide.read((slice(0, 60), slice(0, 70))), expected)


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.tif: not found"):
        predict_tiff(IDENTITY, tmp_path / "absent.tif", tmp_path / "out.tif")
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(UserError, match="text.tif: cannot be read"):
        predict_tiff(IDENTITY, tmp_path / "text.tif", tmp_path / "out.tif")
    tifffile.imwrite(tmp_path / "float.tif", np.ones((64, 64), np.float32))
    with pytest.raises(UserError, match="float.tif: holds float32"):
        predict_tiff(IDENTITY, tmp_path / "float.tif", tmp_path / "out.tif")
    tifffile.imwrite(tmp_path / "in.tif", picture(), photometric="rgb")
    tifffile.imwrite(tmp_path / "mask.tif", picture((20, 20)), photometric="minisblack")
    with pytest.raises(UserError, match=r"mask.tif: shape \(20, 20\)"):
        predict_tiff(IDENTITY, tmp_path / "in.tif", tmp_path / "out.tif", tmp_path / "mask.tif")
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.parametrize("kind", ["strips", "deflate_tiles", "jpeg_strips"])
@pytest.mark.parametrize("damage", ["header", "tile", "cut"])
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, kind: str, damage: str) -> None:
    path = tmp_path / "in.tif"
    image = encode(path, kind)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        first, last = page.dataoffsets[0], page.dataoffsets[-1]
        headers = page.offset
    if damage == "header":
        content[headers : headers + 40] = bytes(40)
    elif damage == "tile":
        content[first + 20 : first + 60] = bytes(40)
    else:
        content = content[: last + 5]
    path.write_bytes(content)
    everything = (slice(0, 150), slice(0, 170))
    if damage == "tile" and kind != "deflate_tiles":  # without a checksum: no more than a wrong picture, or refused
        return
    with pytest.raises(UserError, match=r"in\.tif: ") as error, Slide(path) as slide:
        assert np.array_equal(slide.read(everything), image)
    assert "\n" not in str(error.value)


def test_a_grey_or_black_picture_is_refused_by_a_model_of_colours(tmp_path: Path) -> None:
    for name, values, message in (
        ("grey.tif", picture()[..., 0], r"grey.tif: is grey, the model expects colours \(RGB\)"),
        ("black.tif", np.zeros((60, 70, 3), np.uint8), "black.tif: every pixel is zero; is this the right file"),
        (
            "dark.tif",
            np.full((60, 70, 3), 200, np.uint16),
            "dark.tif: every pixel is zero",
        ),  # below the first of 8 bits
    ):
        tifffile.imwrite(tmp_path / name, values)
        with pytest.raises(UserError, match=message):
            predict_tiff(IDENTITY, tmp_path / name, tmp_path / "out.tif")
        assert not (tmp_path / "out.tif").exists()


PIXELS = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}


@pytest.mark.parametrize("axes", ["YXS", "CYX", "CYX of pages"])
@pytest.mark.parametrize("options", [{}, {"tile": (64, 48), "compression": "adobe_deflate"}])
def test_ome_tiff_keeps_its_pixel_size(tmp_path: Path, axes: str, options: dict[str, Any]) -> None:
    """Channels interleaved, in planes of one page, or in pages of their own."""
    values = picture() if axes == "YXS" else np.moveaxis(picture(), -1, 0)
    kind = {"photometric": "minisblack" if "pages" in axes else "rgb"}
    if axes == "CYX":
        kind["planarconfig"] = "separate"
    metadata = {"axes": axes[:3], **PIXELS}
    tifffile.imwrite(tmp_path / "in.ome.tif", values, ome=True, metadata=metadata, **kind, **options)
    predict_tiff(IDENTITY, tmp_path / "in.ome.tif", tmp_path / "out.ome.tif")
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as found:
        assert found.is_ome
        assert np.array_equal(found.pages[0].asarray(), picture())
        for key, value in PIXELS.items():
            assert f'{key}="{value}"' in found.ome_metadata


def test_ome_tiff_of_several_pictures_is_refused(tmp_path: Path) -> None:
    stack = np.stack([picture()] * 4)
    tifffile.imwrite(tmp_path / "in.ome.tif", stack, ome=True, photometric="rgb", metadata={"axes": "ZYXS"})
    with pytest.raises(UserError, match=r"in.ome.tif: .*holds several pictures \(Z 4\)"):
        predict_tiff(IDENTITY, tmp_path / "in.ome.tif", tmp_path / "out.ome.tif")


PEAK = """
import resource, sys
from types import SimpleNamespace
sys.path[:0] = sys.argv[3:]
from test_slides import COLOURS
from test_inference import describe
from equisynth import slides
from equisynth.slides import predict_tiff
slides.CACHE_BYTES = 4_000_000
model = SimpleNamespace(description=describe((128, 128), input=COLOURS, label=COLOURS), predict=lambda v, m: v)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
predict_tiff(model, sys.argv[1], sys.argv[2], batch_size=8)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_is_bounded_by_a_row_of_tiles(tmp_path: Path) -> None:
    blank = np.full((128, 128, 3), 200, np.uint8)
    shape = (10_000, 1_800, 3)  # 51 MB of pixels
    with tifffile.TiffWriter(tmp_path / "in.tif") as writer:
        count = -(-shape[0] // 128) * -(-shape[1] // 128)
        writer.write(
            (blank for _ in range(count)), shape=shape, dtype=np.uint8, tile=(128, 128), photometric="rgb",
            compression="adobe_deflate",
        )  # fmt: skip
    command = [sys.executable, "-c", PEAK, str(tmp_path / "in.tif"), str(tmp_path / "out.tif"), *sys.path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 40  # less than the pixels, read and written
    assert tifffile.imread(tmp_path / "out.tif").min() == 200
