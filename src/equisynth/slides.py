"""Slides: large TIFF images read by window and written tile by tile, and their translation with bounded memory."""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from equisynth.errors import UserError
from equisynth.files import atomic_path
from equisynth.inference import PICTURE, Predictor, Progress, to_8_bit, translate_slabs

CACHE_BYTES = 512 * 2**20
"""Decoded tiles kept while neighbouring windows are read."""
BIG_TIFF_BYTES = 2**32 - 2**25
ADOBE_NO_TRANSFORM = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""JPEG marker: the three components are R, G, B as they are."""


class Slide:
    """Reads windows of a TIFF's first page as 8-bit colours or grey values.

    Args:
        path: a TIFF: uncompressed (memory-mapped), or compressed in tiles or strips.
        channels: 3: grey pictures are repeated, alpha is dropped; 1: one channel.

    Attributes:
        shape: rows and columns.
        samples: channels that are stored: in each pixel, or of OME-TIFF in a page each.

    Raises:
        UserError: absent, not a TIFF, or not of this kind.
    """

    def __init__(self, path: Path | str, channels: int = 3) -> None:
        import tifffile

        self.path, self.channels = Path(path), channels
        try:
            self._file = tifffile.TiffFile(self.path)
            self.page: Any = self._file.pages[0]
            self.shape = (int(self.page.imagelength), int(self.page.imagewidth))
            planes = _planes(self._file)
            samples, photometric = int(self.page.samplesperpixel) * planes, self.page.photometric.name
        except FileNotFoundError:
            raise UserError(f"{path}: not found; expected a TIFF image") from None
        except Exception as error:  # damaged headers raise many kinds
            raise UserError(f"{path}: cannot be read ({error}); expected a TIFF image") from None
        if self.page.dtype not in (np.uint8, np.uint16) or photometric == "PALETTE":
            found = f"{self.page.dtype} ({photometric})"
            raise UserError(f"{path}: holds {found}, expected 8 or 16-bit RGB or grey")
        if (channels == 1 and samples > 2) or (channels == 3 and samples not in (1, 2, 3, 4)) or channels not in (1, 3):
            raise UserError(f"{path}: has {samples} channels, the model expects {channels}")
        self.samples = samples
        contiguous = self.page.planarconfig == tifffile.PLANARCONFIG.CONTIG and planes == 1
        self._whole: np.ndarray | None = None
        if self.page.is_memmappable and contiguous:
            try:
                self._whole = tifffile.memmap(self.path, page=0, mode="r")
            except ValueError as error:  # shorter than it says
                raise UserError(f"{path}: cannot be read ({error}); the file is damaged, get it again") from None
        elif not contiguous:
            self._whole = np.moveaxis((self.page if planes == 1 else self._file.series[0]).asarray(), 0, -1)
        self._decoded: OrderedDict[int, np.ndarray | None] = OrderedDict()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def tile(self) -> tuple[int, int] | None:
        """Rows and columns of a tile; None: stored in strips."""
        return (int(self.page.tilelength), int(self.page.tilewidth)) if self.page.is_tiled else None

    @property
    def pixel_size(self) -> dict[str, Any]:
        """Physical size of a pixel as OME-TIFF names it; empty where none is stated so."""
        if not self._file.is_ome:
            return {}
        pixels = re.search(r"<(\w+:)?Pixels\b[^>]*>", self._file.ome_metadata)
        return dict(re.findall(r'\b(PhysicalSize[XY](?:Unit)?)="([^"]*)"', pixels[0] if pixels else ""))

    def read(self, place: tuple[slice, ...]) -> np.ndarray:
        """A window (rows, columns) or (rows, columns, 3), uint8 (16-bit values are scaled down)."""
        window = self._whole[place] if self._whole is not None else self._read_segments(place)
        window = window[..., None] if window.ndim == 2 else window
        if window.dtype == np.uint16:
            window = (window // 257).astype(np.uint8)
        if self.channels == 1:
            return window[..., 0]
        return window[..., :3] if window.shape[-1] >= 3 else np.repeat(window[..., :1], 3, axis=-1)

    def _read_segments(self, place: tuple[slice, ...]) -> np.ndarray:
        """Puts a window together from the tiles or strips that it touches."""
        length, width = self.tile or (int(self.page.rowsperstrip), self.shape[1])
        per_row = math.ceil(self.shape[1] / width)
        rows, columns = place
        samples = int(self.page.samplesperpixel)
        result = np.zeros((rows.stop - rows.start, columns.stop - columns.start, samples), self.page.dtype)
        for i in range(rows.start // length, (rows.stop - 1) // length + 1):
            for j in range(columns.start // width, (columns.stop - 1) // width + 1):
                segment = self._segment(i * per_row + j)
                if segment is None:
                    continue
                top, left = max(rows.start, i * length), max(columns.start, j * width)
                bottom, right = (min(rows.stop, (i + 1) * length), min(columns.stop, (j + 1) * width))
                result[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start] = segment[
                    top - i * length : bottom - i * length, left - j * width : right - j * width
                ]
        return result

    def _segment(self, index: int) -> np.ndarray | None:
        if index not in self._decoded:
            segment = self._decode(index)
            size = max(segment.nbytes if segment is not None else 0, 1)
            while self._decoded and (len(self._decoded) + 1) * size > CACHE_BYTES:
                self._decoded.popitem(last=False)
            self._decoded[index] = segment
        self._decoded.move_to_end(index)
        return self._decoded[index]

    def _decode(self, index: int) -> np.ndarray | None:
        """One tile or strip, (rows, columns, samples); None where nothing is stored."""
        offset, count = self.page.dataoffsets[index], self.page.databytecounts[index]
        if count == 0:
            return None
        handle = self._file.filehandle
        handle.seek(offset)
        data = handle.read(count)
        try:
            if self.page.compression == 7:  # JPEG
                return self._decode_jpeg(data)
            decoded = self.page.decode(data, index)[0]
        except (zlib.error, EOFError, struct.error) as error:
            raise UserError(f"{self.path}: cannot be read ({error}); the file is damaged, get it again") from None
        except (ValueError, KeyError, ImportError, OSError) as error:
            raise UserError(
                f"{self.path}: compression {self.page.compression.name} cannot be decoded here ({error}); "
                "save it uncompressed, or as deflate, LZW or JPEG tiles, or install imagecodecs"
            ) from None
        return None if decoded is None else np.asarray(decoded)[0]

    def _decode_jpeg(self, data: bytes) -> np.ndarray:
        """A JPEG segment; its tables may be kept once for all segments."""
        from PIL import Image

        tables = self.page.jpegtables
        body = data[2:] if tables is None else tables[2:-2] + data[2:]
        marker = ADOBE_NO_TRANSFORM if self.page.photometric.name == "RGB" else b""
        with Image.open(io.BytesIO(data[:2] + marker + body)) as picture:
            array = np.asarray(picture)
        return array[..., None] if array.ndim == 2 else array


def _planes(file: Any) -> int:
    """Pages that OME-TIFF keeps the channels of the first image in, mostly one.

    Raises:
        ValueError: the image has depth, or changes in time.
    """
    if not file.is_ome:
        return 1
    sizes = {axis: size for axis, size in zip(file.series[0].axes, file.series[0].shape, strict=True) if size > 1}
    others = set(sizes) - set("YXSC")
    if others:
        found = ", ".join(f"{axis} {sizes[axis]}" for axis in sorted(others))
        raise ValueError(f"holds several pictures ({found}); split it into single ones")
    return int(sizes.get("C", 1))


def predict_tiff(
    model: Predictor,
    input_path: Path | str,
    output_path: Path | str,
    mask_path: Path | str | None = None,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> None:
    """Translates a slide; the output is 8-bit, RGB where the label has three channels, tiled like the input.

    Memory holds one row of patches, whatever the size of the slide. Pixels that are invalid (outside the mask, or not
    above the model's ``invalid_at_or_below`` in any channel) become the label's mean colour.

    Raises:
        UserError: a file is absent or does not fit the model.
    """
    data = model.description.settings.data
    with Slide(input_path, data.input.channels) as slide:
        if data.input.channels == 3 and slide.samples < 3:
            raise UserError(
                f"{input_path}: is grey, the model expects colours (RGB); take a picture or a model that fits"
            )
        nonzero = False
        mask = None if mask_path is None else Slide(mask_path, channels=1)
        if mask is not None and mask.shape != slide.shape:
            raise UserError(f"{mask_path}: shape {mask.shape}, expected that of {input_path}, {slide.shape}")

        def read(place: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray | None]:
            nonlocal nonzero
            values = slide.read(place)
            nonzero = nonzero or bool(values.any())
            return values, None if mask is None else mask.read(place)

        slabs = translate_slabs(model.predict, read, slide.shape, model.description, PICTURE, batch_size, progress)
        pictures = (to_8_bit(slab) for _, slab in slabs)
        with atomic_path(output_path) as temporary:
            _write(temporary, pictures, slide, data.label.channels)
            if not nonzero:
                raise UserError(f"{input_path}: every pixel is zero; is this the right file?")


def _write(path: Path, slabs: Iterator[np.ndarray], slide: Slide, channels: int) -> None:
    """Writes consecutive slabs (n, columns, C) with the tiles (or strips) and the resolution of a slide."""
    import tifffile

    shape = (*slide.shape, channels) if channels > 1 else slide.shape
    options: dict[str, Any] = {
        "photometric": "rgb" if channels == 3 else "minisblack",
        "resolution": slide.page.resolution,
        "resolutionunit": slide.page.resolutionunit,
        "metadata": None,
    }
    ome = slide.pixel_size
    if ome:
        options["metadata"] = {"axes": "YXS" if channels > 1 else "YX", **ome}
    big = math.prod(shape) > BIG_TIFF_BYTES
    if slide.tile is not None:
        compressed = slide.page.compression != 1
        with tifffile.TiffWriter(path, bigtiff=big, ome=bool(ome)) as writer:
            writer.write(
                _tiles(slabs, slide.shape[1], slide.tile),
                shape=shape,
                dtype=np.uint8,
                tile=slide.tile,
                compression="adobe_deflate" if compressed else None,
                **options,
            )
        return
    rows_per_strip = min(int(slide.page.rowsperstrip), slide.shape[0])
    options |= {"bigtiff": big, "ome": bool(ome), "rowsperstrip": rows_per_strip}
    target = tifffile.memmap(path, shape=shape, dtype=np.uint8, **options)
    first = 0
    for slab in slabs:
        target[first : first + len(slab)] = slab if channels > 1 else slab[..., 0]
        first += len(slab)
    target.flush()


def _tiles(slabs: Iterator[np.ndarray], columns: int, tile: tuple[int, int]) -> Iterator[np.ndarray]:
    """Cuts consecutive slabs into tiles, row by row."""
    length, width = tile
    waiting: list[np.ndarray] = []
    rows = 0
    for slab in slabs:
        waiting.append(slab)
        rows += len(slab)
        if rows >= length:
            band = np.concatenate(waiting)
            while len(band) >= length:
                yield from _cut(band[:length], columns, width)
                band = band[length:]
            waiting, rows = [band], len(band)
    if rows:
        yield from _cut(np.concatenate(waiting), columns, width)


def _cut(band: np.ndarray, columns: int, width: int) -> Iterator[np.ndarray]:
    for left in range(0, columns, width):
        piece = band[:, left : left + width]
        yield np.ascontiguousarray(piece if piece.shape[-1] > 1 else piece[..., 0])
