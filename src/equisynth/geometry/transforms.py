"""Images with valid regions, and the transformations that warp them.

``a.then(b)`` is a∘b: an image is warped by ``a`` first, the result by ``b``. A composition is evaluated as one field so
that each image is interpolated once; affine parts stay exact. A mask of None means valid everywhere; masks are
(B, 1, *S), 1 = valid, and never carry a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from equisynth.geometry import affine, warping
from equisynth.geometry.grids import other_grid, per_axis


@dataclass(frozen=True, eq=False)
class Image:
    """Values (B, C, *S) with the mask of where they are valid."""

    values: Tensor
    mask: Tensor | None = None

    def warp(self, transformation: Transformation) -> Image:
        """The image under a transformation: read at p + u(p), linear, border padding, interpolated once.

        Valid is what came from valid voxels inside the field of view and, where the transformation has a mask, lies
        within it. The values are zeroed outside the field of view and that mask, but not outside the image's own mask.
        """
        return self._read(transformation.positions(self.values.shape[2:]), transformation.mask)

    def resample(
        self,
        shape: Sequence[int],
        relative_voxel_size: Sequence[float],
        displacement: Tensor | None = None,
        centred: bool = True,
    ) -> Image:
        """The image on another grid, optionally warped on the way.

        Args:
            shape: Shape T of the other grid.
            relative_voxel_size: Its voxel size divided by the image's, per axis.
            displacement: (B, n, *T) in voxels **of the other grid**.
            centred: Both grids share their centre, else their first voxel.
        """
        values = self.values
        within = values.shape[2:] if centred else None
        positions = other_grid(shape, relative_voxel_size, within, values.device, values.dtype)
        if displacement is not None:
            positions = positions + displacement * per_axis(relative_voxel_size, positions)
        return self._read(positions, None)

    def _read(self, positions: Tensor, keep: Tensor | None) -> Image:
        """Values and mask at positions (B, n, *T); ``keep`` (B, 1, *T) limits both further."""
        grid = warping.sampling_grid(positions, self.values.shape[2:])
        keep = _product(warping.inside(grid), keep)
        assert keep is not None
        if self.mask is None or self.values.requires_grad:  # A mask beside them would be sampled backwards too.
            values, mask = warping.sample_grid(self.values, grid), _read_mask(self.mask, grid)
        else:
            both = warping.sample_grid(torch.cat((self.values, self.mask), 1), grid)
            values, mask = both[:, :-1], warping.binarise(both[:, -1:])
        return Image(values * keep, _product(keep, mask))

    def comparison_mask(self, other: Image) -> Tensor:
        """Where both images are valid, (B, 1, *S)."""
        return _or_ones(_product(self.mask, other.mask), self.values)

    def valid(self) -> Tensor:
        """The mask, ones if there is none, (B, 1, *S)."""
        return _or_ones(self.mask, self.values)

    def detach(self) -> Image:
        return Image(self.values.detach(), self.mask)

    def __getitem__(self, samples: slice) -> Image:
        return Image(self.values[samples], None if self.mask is None else self.mask[samples])

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, eq=False)
class Field:
    """A displacement field (B, n, *S) in voxels; outside its mask it means nothing."""

    displacement: Tensor
    mask: Tensor | None = None

    def positions(self, shape: Sequence[int]) -> Tensor:
        """Where each voxel is read from, (B, n, *S)."""
        return warping.displaced(self.displacement)

    def then(self, following: Transformation, track_mask: bool = True) -> Field:
        """self∘following. Its mask: where ``following`` reads valid displacements of this field, inside the field of
        view, and is valid itself; without ``track_mask`` only the latter.
        """
        shape = self.displacement.shape[2:]
        grid = warping.sampling_grid(following.positions(shape), shape)
        displacement = following.as_displacement(shape) + warping.sample_grid(self.displacement, grid)
        if not track_mask:
            return Field(displacement, following.mask)
        seen = _product(warping.inside(grid), _read_mask(self.mask, grid))
        return Field(displacement, _product(seen, following.mask))

    def as_displacement(self, shape: Sequence[int]) -> Tensor:
        return self.displacement

    def comparison_mask(self, other: Field) -> Tensor:
        """Where both fields are valid, (B, 1, *S)."""
        return _or_ones(_product(self.mask, other.mask), self.displacement)

    def valid(self) -> Tensor:
        """The mask, ones if there is none, (B, 1, *S)."""
        return _or_ones(self.mask, self.displacement)

    def detach(self) -> Field:
        return Field(self.displacement.detach(), self.mask)

    def __getitem__(self, samples: slice) -> Field:
        return Field(self.displacement[samples], None if self.mask is None else self.mask[samples])

    def __len__(self) -> int:
        return len(self.displacement)


@dataclass(frozen=True, eq=False)
class Affine:
    """An affine transformation: homogeneous matrices (B, n+1, n+1) acting on voxel indices."""

    matrix: Tensor

    @classmethod
    def from_world(cls, matrix: Tensor, voxel_size: Sequence[float], dtype: torch.dtype = torch.float32) -> Affine:
        """From matrices (B, n+1, n+1) acting on index times voxel size, origin at the first voxel."""
        return cls(affine.to_voxels(matrix, voxel_size).to(dtype))

    @property
    def mask(self) -> None:
        """An affine transformation is valid everywhere."""
        return None

    def positions(self, shape: Sequence[int]) -> Tensor:
        """Where each voxel of a grid is read from, (B, n, *shape)."""
        return affine.affine_positions(self.matrix, shape)

    def as_displacement(self, shape: Sequence[int]) -> Tensor:
        """The displacement field on a grid, (B, n, *shape) in voxels."""
        return affine.affine_displacement(self.matrix, shape)

    @overload
    def then(self, following: Affine, track_mask: bool = True) -> Affine: ...
    @overload
    def then(self, following: Field, track_mask: bool = True) -> Field: ...
    def then(self, following: Transformation, track_mask: bool = True) -> Transformation:
        """self∘following, exact: nothing is resampled, so the mask of ``following`` stays as it is."""
        if isinstance(following, Affine):
            return Affine(affine.multiply(self.matrix, following.matrix))
        displacement = following.displacement
        # A (p + u) - p, written so that nothing large cancels.
        moved = affine.transform_vectors(self.matrix, displacement) + self.as_displacement(displacement.shape[2:])
        return Field(moved, following.mask)

    def inverse(self) -> Affine:
        return Affine(affine.invert(self.matrix))

    def detach(self) -> Affine:
        return Affine(self.matrix.detach())

    def __getitem__(self, samples: slice) -> Affine:
        return Affine(self.matrix[samples])

    def __len__(self) -> int:
        return len(self.matrix)


Transformation = Field | Affine


def integrate(velocity: Tensor, squarings: int = 7) -> tuple[Field, Field]:
    """exp(v) and exp(-v) of a velocity field (B, n, *S) in voxels, integrated as one batch."""
    forward, inverse = warping.integrate_both(velocity, squarings)
    return Field(forward), Field(inverse)


@torch.no_grad()
def _read_mask(mask: Tensor | None, grid: Tensor) -> Tensor | None:
    """A mask at a sampling grid, valid only where all it is interpolated from is."""
    return None if mask is None else warping.binarise(warping.sample_grid(mask, grid))


def _product(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one * other


def _or_ones(mask: Tensor | None, like: Tensor) -> Tensor:
    """The mask, or ones (B, 1, *S) that take no memory."""
    return like.new_ones(()).expand(like.shape[0], 1, *like.shape[2:]) if mask is None else mask
