"""Tissue sections for phantoms: real stained tissue, grown to any size, seen before and after another staining.

The tissue is the immunohistochemistry picture that scikit-image ships (human colon, haematoxylin and DAB; no download).
Colour deconvolution (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 2001) gives how much of what is where; that is
mirrored on and on, bent smoothly, and coloured anew: as haematoxylin and eosin, and as an unstained section.
Everything follows from a position, so that sections of any size are made band by band.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

BAND = 256
"""Rows that are made at a time; noise is drawn per band."""
# Absorbance of red, green, blue per unit of stain.
_HAEMATOXYLIN, _EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
_GLASS = 243.0  # brightness where nothing is


@dataclass(frozen=True)
class Waves:
    """A smooth random function of position: a sum of plane waves, one row per wave.

    Attributes:
        frequency: (W, 2) radians per pixel.
        phase: (W,).
        amplitude: (W, K), of K functions.
    """

    frequency: npt.NDArray[np.float64]
    phase: npt.NDArray[np.float64]
    amplitude: npt.NDArray[np.float64]

    @classmethod
    def draw(cls, random_state: np.random.RandomState, count: int, wavelength: float, std: float) -> Waves:
        """``count`` functions of standard deviation ``std`` whose waves are ``wavelength`` pixels long or longer."""
        waves = 6
        angle = random_state.uniform(0, 2 * np.pi, waves)
        length = wavelength * random_state.uniform(1, 2, waves)
        frequency = 2 * np.pi / length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        amplitude = random_state.standard_normal((waves, count))
        amplitude *= std / np.sqrt((amplitude**2).sum(axis=0) / 2)
        return cls(frequency, random_state.uniform(0, 2 * np.pi, waves), amplitude)

    def at(self, position: Array) -> Array:
        """Values (K, ...) at positions (2, ...)."""
        total = np.zeros((self.amplitude.shape[1], *position.shape[1:]), np.float32)
        for frequency, phase, amplitude in zip(self.frequency, self.phase, self.amplitude, strict=True):
            wave = np.sin(np.float32(frequency[0]) * position[0] + np.float32(frequency[1]) * position[1] + phase)
            total += amplitude.astype(np.float32).reshape(-1, *[1] * (position.ndim - 1)) * wave.astype(np.float32)
        return total


@dataclass(frozen=True)
class Section:
    """One sample: where its tissue ends, how it is bent, and how the stained section lies off the unstained one."""

    shape: tuple[int, int]
    turn: npt.NDArray[np.float64]  # (2, 2) section -> source picture
    bend: Waves
    border: Waves
    offset_turn: npt.NDArray[np.float64]  # (2, 2)
    offset_shift: npt.NDArray[np.float64]  # (2,) pixels
    offset: Waves

    @classmethod
    def draw(
        cls, shape: tuple[int, int], shift: float, bend: float, degrees: float, random_state: np.random.RandomState
    ) -> Section:
        """Draws a section.

        Args:
            shape: rows and columns.
            shift, bend: of the stained section against the unstained one: translation at most, and standard deviation
                of the smooth part, in pixels.
            degrees: its rotation at most.
        """
        angle, off = random_state.uniform(0, 2 * np.pi), np.deg2rad(random_state.uniform(-degrees, degrees))
        return cls(
            shape,
            _turn(angle) * random_state.uniform(0.9, 1.1),
            Waves.draw(random_state, 2, 400.0, 30.0),
            Waves.draw(random_state, 1, 0.4 * min(shape), 0.08),
            _turn(off),
            random_state.uniform(-shift, shift, 2),
            Waves.draw(random_state, 2, 0.5 * min(shape), bend),
        )

    def displaced(self, position: Array) -> Array:
        """Where in the unstained section the stained section's pixels (2, ...) come from."""
        centre = np.reshape([(n - 1) / 2 for n in self.shape], (2, 1, 1))
        turned = np.tensordot(self.offset_turn, position - centre, axes=1) + centre + self.offset_shift.reshape(2, 1, 1)
        return (turned + self.offset.at(position)).astype(np.float32)

    def mask(self, position: Array) -> npt.NDArray[np.bool_]:
        """Whether there is tissue at positions (2, ...) of the unstained section: a disc with a wavy border."""
        y, x = (position[a] / (self.shape[a] - 1) * 2 - 1 for a in range(2))
        inside: npt.NDArray[np.bool_] = np.hypot(x, y) < 0.88 + self.border.at(position)[0]
        return inside

    def stains(self, position: Array) -> tuple[Array, ...]:
        """Nuclei, cytoplasm and edges, each (...), at positions (2, ...) of the unstained section."""
        source = np.tensordot(self.turn, position, axes=1).astype(np.float32) + self.bend.at(position)
        return tuple(ndimage.map_coordinates(part, source, order=1, mode="mirror") for part in _source())

    def stained(self, position: Array, noise: Array) -> Picture:
        """Haematoxylin and eosin (..., 3) at positions (2, ...) of the unstained section; noise (..., 3)."""
        nuclei, cytoplasm, _ = self.stains(position)
        present = self.mask(position)
        absorbance = np.multiply.outer(1.1 * nuclei * present, _HAEMATOXYLIN)
        absorbance += np.multiply.outer((0.25 + 0.55 * cytoplasm) * present, _EOSIN)
        return _to_8_bit(_GLASS * np.exp(-absorbance) + 2.5 * noise)

    def unstained(self, position: Array, noise: Array) -> Picture:
        """The same tissue before staining (..., 3): grey, low contrast, dark edges where light is bent."""
        nuclei, cytoplasm, edges = self.stains(position)
        present = self.mask(position)
        absorbance = (0.35 + 0.35 * cytoplasm - 0.18 * nuclei + 0.5 * edges) * present
        return _to_8_bit(_GLASS * np.exp(-np.multiply.outer(absorbance, [1.05, 1.05, 1.0])) + 2.5 * noise)


def positions(rows: range, columns: int) -> Array:
    """Row and column of every pixel of a band, (2, rows, columns)."""
    grid = np.meshgrid(np.arange(rows.start, rows.stop), np.arange(columns), indexing="ij")
    return np.stack(grid).astype(np.float32)


@lru_cache(maxsize=1)
def _source() -> tuple[Array, Array, Array]:
    """Of the source picture (512, 512): nuclei, cytoplasm and edges, each about 0 to 1."""
    from skimage.color import rgb2hed
    from skimage.data import immunohistochemistry

    haematoxylin, _, dab = np.moveaxis(rgb2hed(immunohistochemistry()), -1, 0)
    nuclei, brown = (_stretched(ndimage.gaussian_filter(part, 1.0)) for part in (haematoxylin, dab))
    cytoplasm = _stretched(ndimage.gaussian_filter(brown + 0.4 * nuclei, 1.5))
    return nuclei, cytoplasm, _stretched(ndimage.gaussian_gradient_magnitude(nuclei, 1.0))


def _stretched(values: npt.NDArray[np.floating]) -> Array:
    low, high = np.percentile(values, (2, 99))
    return np.clip((values - low) / (high - low), 0, 1).astype(np.float32)


def _turn(angle: float) -> npt.NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _to_8_bit(values: npt.NDArray[np.floating]) -> Picture:
    """Rounded; at least 1, since 0 in all channels stands for an invalid pixel."""
    return np.clip(np.rint(values), 1, 255).astype(np.uint8)
