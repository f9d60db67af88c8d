"""The grid of a model for a raw scan: there and back."""

from __future__ import annotations

import numpy as np
import pytest

from equisynth.datasets.raw_scan import ModelGrid, Scan, edge_shares

SHAPE = (12, 15, 9)


def scan(angle: float = 20.0) -> Scan:
    """Smooth values on an oblique grid whose axes point to the back, up and the right."""
    a = np.deg2rad(angle)
    axes = np.array([[0, 0, 2.2], [-1.1, 0, 0], [0, 1.3, 0]])
    affine = np.eye(4)
    affine[:3, :3] = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]] @ axes
    affine[:3, 3] = (3, -20, 11)
    waves = sum(np.sin(np.pi * i / n) for i, n in zip(np.indices(SHAPE), SHAPE, strict=True))
    return Scan(np.asarray(waves, np.float32), affine)


@pytest.mark.parametrize("orientation", ["LPS", "PSR", "IAR"])
def test_the_same_voxel_size_moves_nothing(orientation: str) -> None:
    raw = scan()
    target = np.array(ModelGrid.of(raw, orientation, (1, 1, 1)).own)
    grid = ModelGrid.of(raw, orientation, target + [5e-4, -5e-4, 5e-3])  # differences of rounding
    assert grid.ratios == (1, 1, 1)
    assert np.array_equal(np.sort(grid.forward(raw.values).ravel()), np.sort(raw.values.ravel()))
    assert np.array_equal(grid.back(grid.forward(raw.values)), raw.values)


def test_another_voxel_size_comes_back() -> None:
    raw = scan()
    grid = ModelGrid.of(raw, "LPS", (1.0, 0.8, 0.7))
    assert (grid.raw_orientation, grid.orientation) == ("PSR", "LPS")
    assert np.allclose(grid.ratios, (2.2, 1.1 / 0.8, 1.3 / 0.7))
    back = grid.back(grid.forward(raw.values))
    assert back.shape == SHAPE
    inner = (slice(1, -1),) * 3  # the outermost may lie beyond the resampled grid
    assert np.abs(back - raw.values)[inner].max() < 0.1


@pytest.mark.parametrize("orientation", ["LPS", "SAR"])
def test_the_affine_says_where_the_voxels_lie(orientation: str) -> None:
    """Values that are a coordinate of the scanner's stay it."""
    raw = scan()
    grid = ModelGrid.of(raw, orientation, (1.0, 0.8, 0.7))
    for axis in range(3):
        places = np.tensordot(raw.affine[axis, :3], np.indices(SHAPE), 1) + raw.affine[axis, 3]
        found = grid.forward(places.astype(np.float32))
        expected = np.tensordot(grid.affine[axis, :3], np.indices(found.shape), 1) + grid.affine[axis, 3]
        assert np.allclose(found, expected, atol=1e-3)


def test_edge_shares() -> None:
    body = np.zeros((4, 5, 6), np.uint8)
    body[:, 1:4, 2:] = 1
    assert edge_shares(body) == [[12 / 30, 12 / 30], [0, 0], [0, 12 / 20]]
