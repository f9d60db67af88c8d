"""Pairs that are made from single pictures: the label is the picture with its colours rolled and its shape deformed.

A `SyntheticDataset` reads like any prepared dataset, but only the pictures lie on disk. Both sides of a pair are cut
at one size around the picture's centre; what lies outside of the picture is invalid.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from equisynth.config import LabelDeformation
from equisynth.datasets.prepared import PreparedDataset
from equisynth.datasets.randomness import named_random_state
from equisynth.errors import UserError
from equisynth.files import atomic_path
from equisynth.geometry.grids import identity_grid
from equisynth.geometry.random_deformations import GaussianBump, gaussian_deformation, random_gaussian_bump
from equisynth.geometry.rectangle import largest_interior_rectangle
from equisynth.geometry.warping import inside, sample_grid, sampling_grid

SEARCH_STEP = 4
"""How far the search for the valid rectangle looks, in pixels, as published."""
MEMORY = 1 << 28
"""Bytes of finished images that a dataset holds on to (256 MiB: 70 pairs of 400 x 400, thousands of a demo's)."""

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Size = tuple[int, ...]


def draw_deformation(ranges: LabelDeformation, random_state: np.random.RandomState) -> GaussianBump:
    """One deformation within the ranges."""

    def bounds(side: str) -> dict[str, Sequence[float]]:
        return {
            "width": getattr(ranges.width_range, side),
            "magnitude": getattr(ranges.magnitude_range, side),
            "center": getattr(ranges.center_range, side),
            "rotation": tuple(np.deg2rad(getattr(ranges.degree_range, side)).tolist()),
            "translation": getattr(ranges.translation_range, side),
        }

    return random_gaussian_bump(bounds("lower"), bounds("upper"), random_state)


# --- one picture


@dataclass(frozen=True)
class Side:
    """One image of a pair, (*P, 3), and where it is valid, (*P) of 0 and 1; None: everywhere."""

    values: npt.NDArray[Any]
    mask: Mask | None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.values.nbytes + (0 if self.mask is None else self.mask.nbytes)


def rolled(picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Red becomes green, green blue, blue red: the other modality of a picture (*S, 3)."""
    return np.roll(picture, 1, axis=-1)


def offset(shape: Sequence[int], size: Sequence[int]) -> tuple[float, ...]:
    """Where in a picture of ``shape`` the first pixel of its centred cut lies; halves where only one side is odd."""
    return tuple((whole - part) / 2 for whole, part in zip(shape, size, strict=True))


def centred(picture: npt.NDArray[Any], size: Sequence[int]) -> tuple[npt.NDArray[Any], Mask | None]:
    """The cut (*P, C) of ``size`` around the centre of a picture (*S, C), and where it is valid (None: everywhere).

    Its own values where the pixels of both grids meet, else interpolated float32; zero where invalid.
    """
    start = offset(picture.shape[:2], size)
    if all(first >= 0 and first.is_integer() for first in start):
        place = tuple(slice(int(first), int(first) + part) for first, part in zip(start, size, strict=True))
        return picture[place], None
    values, valid = sample_centred(picture, np.zeros((2, *size), np.float32))
    return (values, None) if valid.all() else (values * valid[..., None], valid)


def misaligned(picture: npt.NDArray[Any], field: FloatArray) -> tuple[FloatArray, Mask]:
    """The label of a picture (*S, 3): rolled and deformed by a field (2, *P), and the largest valid rectangle.

    Zero outside of the rectangle: the border shows nothing of the deformation.
    """
    values, valid = sample_centred(rolled(picture), field)
    rectangle = largest_interior_rectangle(valid, SEARCH_STEP)
    values *= rectangle[..., None]
    return values, rectangle


def sample_centred(picture: npt.NDArray[Any], field: FloatArray) -> tuple[FloatArray, Mask]:
    """A picture (*S, C) sampled around its centre where a displacement field (2, *P) in pixels points to.

    Returns:
        Values (*P, C), linear, and 1 where they come from inside of the picture, (*P).
    """
    shape, size = picture.shape[:2], field.shape[1:]
    start = torch.tensor(offset(shape, size)).view(1, 2, 1, 1)
    positions = identity_grid(size, torch.device("cpu"), torch.float32) + start + torch.from_numpy(field)
    volume = torch.from_numpy(np.moveaxis(picture, -1, 0).astype(np.float32, order="C"))[None]
    with torch.no_grad():
        grid = sampling_grid(positions, shape)
        values, valid = sample_grid(volume, grid)[0], inside(grid)[0, 0]
    return np.ascontiguousarray(np.moveaxis(values.numpy(), 0, -1)), valid.numpy().astype(np.uint8)


# --- a dataset


class SyntheticDataset(PreparedDataset):
    """Pairs from the ``input`` pictures of a prepared dataset; roles and methods as there.

    ``label`` is deformed, ``label_aligned`` is the truth on the input's grid. A picture's deformation follows from
    (seed, its name) alone. Images are made when they are asked for and kept: some in memory, labels also as files where
    ``cache`` is given.

    Args:
        pictures: a prepared dataset of colour pictures, 2D.
        deformation: ranges of the misalignment.
        size: of all images of a pair, (*P).
        seed: of the deformations.
        cache: folder of finished labels, shared by processes and runs; may be deleted at any time.
    """

    def __init__(
        self,
        pictures: PreparedDataset,
        deformation: LabelDeformation,
        size: Sequence[int],
        seed: int,
        cache: Path | None = None,
    ) -> None:
        super().__init__(pictures.folder, pictures.info)
        if (self.info.n_dims, self.info.input.channels, self.info.label.channels) != (2, 3, 3):
            raise UserError(
                f"label_deformation: {self.info.name} is no dataset of colour pictures "
                f"(n_dims {self.info.n_dims}, {self.info.input.channels} to {self.info.label.channels} channels), "
                "from which alone pairs can be made; remove label_deformation"
            )
        self.ranges, self.size, self.seed, self.cache = deformation, tuple(size), seed, cache
        self._sides: OrderedDict[tuple[str, str], Side] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_sides": OrderedDict()}

    def has(self, case: str, role: str) -> bool:
        """Whether the case has this image, mask or deformation; masks of the input only where the picture is small."""
        if not super().has(case, "input"):
            return False
        if role in ("input_mask", "label_aligned_mask"):
            return self.mask(case, "input") is not None
        return role in ("input", "label", "label_aligned", "label_mask", "deformation", "inverse_deformation")

    def shape(self, case: str) -> tuple[int, ...]:
        """The size of all pairs, whatever the picture's."""
        return self.size

    def image(self, case: str, role: str) -> npt.NDArray[Any]:
        """Values (*P, 3): ``input`` and ``label_aligned`` uint8 or interpolated float32, ``label`` float32.

        Raises:
            UserError: no such role, or the picture cannot be read.
        """
        if role in ("input", "label"):
            return self.side(case, role).values
        if role == "label_aligned":
            return rolled(self.side(case, "input").values)
        raise UserError(f"{self.info.name}, case {case}: has no {role}; pairs have input, label and label_aligned")

    def mask(self, case: str, role: str) -> Mask | None:
        """Where an image is valid, (*P); None: everywhere, as for ``evaluation``."""
        if role not in ("input", "label", "label_aligned"):
            return None
        return self.side(case, "label" if role == "label" else "input").mask

    def deformation(self, case: str, inverse: bool = False) -> FloatArray:
        """The field (2, *P) in pixels, or its inverse; inside ``label_mask`` label(p) = label_aligned(p + field(p)).

        Where the field leaves the size of the pair, the label shows what the picture holds there.
        """
        return gaussian_deformation(self.bump(case), self.size, self.info.voxel_size, inverse)

    def affine(self, case: str) -> npt.NDArray[np.float64]:
        """Pixel index of the pair to the picture's world, (4, 4)."""
        picture, shape = super().affine(case), super().shape(case)
        shift = np.eye(4)
        shift[:2, 3] = offset(shape, self.size)
        return picture @ shift

    def bump(self, case: str) -> GaussianBump:
        """The deformation of a picture."""
        return draw_deformation(self.ranges, named_random_state(self.seed, "deformation", case))

    def side(self, case: str, role: str) -> Side:
        """``input`` or ``label`` of a picture, made when it is first asked for."""
        key = (case, role)
        if key in self._sides:
            self._sides.move_to_end(key)
            return self._sides[key]
        picture = np.array(super().image(case, "input"), order="C")
        self._sides[key] = self._input(picture) if role == "input" else self._label(picture, self.bump(case))
        while len(self._sides) > 1 and sum(side.nbytes for side in self._sides.values()) > MEMORY:
            self._sides.popitem(last=False)
        return self._sides[key]

    def _input(self, picture: npt.NDArray[Any]) -> Side:
        values, valid = centred(picture, self.size)
        return Side(np.ascontiguousarray(values), valid)

    def _label(self, picture: npt.NDArray[Any], bump: GaussianBump) -> Side:
        """The label, from the cache if it holds it."""
        path = None if self.cache is None else self.cache / f"{self._key(picture, bump)}.npz"
        if path is not None and path.is_file():
            try:
                with np.load(path, allow_pickle=False) as stored:
                    return Side(stored["label"], stored["mask"])
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                path.unlink(missing_ok=True)  # a damaged file costs its time again, no more
        label, mask = misaligned(picture, gaussian_deformation(bump, self.size, self.info.voxel_size))
        if path is not None:
            with atomic_path(path) as temporary:
                np.savez(temporary, label=label, mask=mask)
        return Side(label, mask)

    def _key(self, picture: npt.NDArray[Any], bump: GaussianBump) -> str:
        """Names what a label is made from, so that no change of pictures or settings can meet an old file."""
        digest = hashlib.sha256(repr((bump, self.size, self.info.voxel_size, picture.shape)).encode())
        digest.update(picture.data)
        return digest.hexdigest()[:32]
