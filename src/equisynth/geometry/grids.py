"""Sampling grids: where the voxels of an image lie, as voxel indices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

CACHED_ELEMENTS = 2**23  # Larger grids (whole volumes) are made afresh: keeping several would cost more than it saves.


def identity_grid(
    shape: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Index of every voxel, (1, n, *shape). One tensor per (shape, device, dtype) is shared: never write into it."""
    size = torch.Size(shape)
    if size.numel() * len(size) > CACHED_ELEMENTS:
        return _make_grid(size, torch.device(device), dtype)
    return _cached_grid(size, torch.device(device), dtype)


def other_grid(
    shape: Sequence[int],
    relative_voxel_size: Sequence[float],
    centred_in: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Positions of the voxels of another grid in the voxels of a volume, (1, n, *shape).

    Args:
        shape: Shape of the other grid.
        relative_voxel_size: Its voxel size divided by the volume's, per axis.
        centred_in: Shape of the volume: both grids share their centre. None: both share their first voxel.
    """
    grid = identity_grid(shape, device, dtype)  # (1, n, *T)
    positions = grid * per_axis(relative_voxel_size, grid)
    if centred_in is None:
        return positions
    triples = zip(centred_in, shape, relative_voxel_size, strict=True)
    origin = [((outer - 1) - (inner - 1) * size) / 2 for outer, inner, size in triples]
    return positions + per_axis(origin, grid)


def per_axis(values: Sequence[float], like: Tensor) -> Tensor:
    """One number per axis as (1, n, 1, ...), to be broadcast against ``like`` (B, n, *S), on its device and dtype.

    Kept per device: copying numbers to a GPU at every step would stall it.
    """
    return constant(tuple(map(float, values)), like.device, like.dtype).view(1, -1, *(1,) * (like.ndim - 2))


@lru_cache(maxsize=1024)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A vector of numbers on a device, shared between calls: never write into it."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor(values, dtype=dtype, device=device)


def _make_grid(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    axes = (torch.arange(size, device=device, dtype=dtype) for size in shape)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]  # (1, n, *S)


@lru_cache(maxsize=32)
def _cached_grid(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    # A tensor born in inference mode could never take part in training later, and the cache outlives the mode.
    with torch.inference_mode(False), torch.no_grad():
        return _make_grid(shape, device, dtype)
