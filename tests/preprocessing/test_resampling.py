"""Grids: shapes, centres, units."""

from __future__ import annotations

import numpy as np
import pytest

from equisynth.preprocessing import resampling


def coordinates(shape: tuple[int, ...], voxel_size: tuple[float, ...], axis: int) -> np.ndarray:
    """World coordinate along an axis, measured from the volume centre."""
    along = (np.arange(shape[axis]) - (shape[axis] - 1) / 2) * voxel_size[axis]
    return np.broadcast_to(along.reshape([-1 if a == axis else 1 for a in range(3)]), shape).astype(np.float32)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("target", [(1.0, 1.0, 1.0), (0.7, 1.9, 3.3)])
def test_resampling_keeps_world_positions(axis: int, target: tuple[float, ...]) -> None:
    own = (1.2, 0.9, 2.5)
    shape = (11, 14, 9)
    resampled = resampling.to_voxel_size(coordinates(shape, own, axis), own, target)
    assert resampled.shape == resampling.resampled_shape(shape, own, target)
    assert np.allclose(resampled, coordinates(resampled.shape, target, axis), atol=1e-4)


def test_shape_rule() -> None:
    assert resampling.resampled_shape((256, 256, 130), (0.9375, 0.9375, 1.25), (0.9375, 0.9375, 1.25)) == (
        256,
        256,
        130,
    )
    assert resampling.resampled_shape((256, 256, 130), (0.9766, 0.9766, 1.2), (0.9375, 0.9375, 1.25)) == (266, 266, 124)
    assert resampling.resampled_shape((40, 40, 40), (3.6, 3.6, 3.6), (1.2, 1.2, 1.2)) == (118, 118, 118)


def test_same_voxel_size_changes_nothing() -> None:
    values = np.random.RandomState(0).rand(4, 5, 6).astype(np.float32)
    assert resampling.to_voxel_size(values, (1, 2, 3), (1, 2, 3)) is values


def test_there_and_back() -> None:
    own, target = (1.2, 0.9, 2.5), (1.0, 1.0, 2.0)
    values = coordinates((11, 14, 9), own, 1)
    back = resampling.from_voxel_size(resampling.to_voxel_size(values, own, target), values.shape, own, target)
    inner = (slice(None), slice(1, -1), slice(None))  # the outermost may lie beyond the resampled grid
    assert np.allclose(back[inner], values[inner], atol=1e-4)


def test_header_rounding_counts_as_equal() -> None:
    target = (0.9375, 0.9375, 1.25)
    assert resampling.agreed_voxel_size((0.93756, 0.9368, 1.2436), target) == target
    assert resampling.agreed_voxel_size((0.9386, 0.9375, 1.25), target) == (0.9386, 0.9375, 1.25)
    assert resampling.agreed_voxel_size((0.9375, 0.9375, 1.2399), target) == (0.9375, 0.9375, 1.2399)


def test_to_another_grid_follows_both_affines() -> None:
    sagittal = np.array([[0, 0, 1.2, -30], [-1.0, 0, 0, 25], [0, 1.1, 0, -20], [0, 0, 0, 1.0]])
    tilt = np.deg2rad(7)
    axial = np.eye(4)
    axial[:3, :3] = [[-2, 0, 0], [0, -2 * np.cos(tilt), -2 * np.sin(tilt)], [0, -2 * np.sin(tilt), 2 * np.cos(tilt)]]
    axial[:3, 3] = (10, 8, -5)
    index = np.indices((50, 40, 50)).reshape(3, -1)
    height = (sagittal[:3, :3] @ index + sagittal[:3, 3:])[2].reshape(50, 40, 50)
    found = resampling.to_grid(height.astype(np.float32), sagittal, (8, 8, 6), axial)
    index = np.indices((8, 8, 6)).reshape(3, -1)
    expected = (axial[:3, :3] @ index + axial[:3, 3:])[2].reshape(8, 8, 6)
    assert np.allclose(found, expected, atol=1e-3)
    assert np.allclose(resampling.voxel_size(axial), 2)
    far = axial.copy()
    far[:3, 3] += 1000
    assert not resampling.to_grid(height.astype(np.float32), sagittal, (8, 8, 6), far).any()


@pytest.mark.parametrize("target", ["RAS", "LPI", "SLA", "PIR"])
def test_reorientation_moves_no_voxel_in_space(target: str) -> None:
    shape = (4, 5, 6)
    tilt = np.deg2rad(12)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 1.2], [-1, 0, 0], [0, 1.1, 0]])
    affine[:3, :3] = [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]] @ affine[:3, :3]
    affine[:3, 3] = (7, -8, 9)
    own = resampling.orientation(affine)
    assert own == "PSR"
    index = np.indices(shape).reshape(3, -1)
    for axis in range(3):  # each voxel holds where it is
        place = (affine[:3, :3] @ index + affine[:3, 3:])[axis].reshape(shape).astype(np.float32)
        turned = resampling.reoriented(place, own, target)
        there = resampling.reoriented_affine(affine, shape, target)
        assert resampling.orientation(there) == target
        assert turned.shape == resampling.reoriented_shape(shape, own, target)
        found = np.indices(turned.shape).reshape(3, -1)
        assert np.allclose((there[:3, :3] @ found + there[:3, 3:])[axis].reshape(turned.shape), turned, atol=1e-4)
        assert np.array_equal(resampling.reoriented(turned, target, own), place)


def test_resampling_affine_says_where_the_voxels_lie() -> None:
    own, target, shape = (1.2, 0.9, 2.5), (0.7, 1.9, 3.3), (11, 14, 9)
    matrix = resampling.resampling_affine(shape, own, target)
    for axis in range(3):
        index = np.indices(shape)[axis].astype(np.float32)
        after = resampling.to_voxel_size(index, own, target)
        where = np.indices(after.shape)[axis] * matrix[axis, axis] + matrix[axis, 3]
        assert np.allclose(after, where, atol=1e-4)
