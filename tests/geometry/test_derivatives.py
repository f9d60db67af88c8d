"""Properties of derivatives and Jacobians."""

from __future__ import annotations

import pytest
import torch

from equisynth.geometry import affine, derivatives

SIZES = [(1.0, 1.0), (0.5, 2.0), (1.2, 0.9, 2.5)]


@pytest.mark.parametrize("voxel_size", SIZES)
@pytest.mark.parametrize("central", [True, False])
def test_jacobian_of_an_affine_transformation_is_its_matrix(voxel_size: tuple[float, ...], central: bool) -> None:
    n = len(voxel_size)
    torch.manual_seed(0)
    world = torch.eye(n + 1, dtype=torch.float64)[None].repeat(2, 1, 1)
    world[:, :n] += 0.2 * torch.randn(2, n, n + 1, dtype=torch.float64)
    field = affine.affine_displacement(affine.to_voxels(world, voxel_size), (6, 5, 7)[:n])
    matrices = derivatives.add_identity(derivatives.jacobian(field, voxel_size, central))
    shrunk = [size - (2 if central else 1) for size in (6, 5, 7)[:n]]
    expected = world[:, :n, :n].view(2, n, n, *(1,) * n).expand(2, n, n, *shrunk)
    torch.testing.assert_close(matrices, expected)
    determinants = derivatives.jacobian_determinant(field, voxel_size, central)
    expected_determinants = torch.linalg.det(world[:, :n, :n]).view(2, *(1,) * n).expand(2, *shrunk)
    torch.testing.assert_close(determinants, expected_determinants)


@pytest.mark.parametrize("n", [2, 3])
def test_closed_form_determinant(n: int) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, n, n, 4, 5, dtype=torch.float64)
    expected = torch.linalg.det(matrices.movedim((1, 2), (-2, -1)))
    torch.testing.assert_close(derivatives.determinant(matrices), expected)


def test_forward_differences_average_the_two_diagonal_corners() -> None:
    """In 3D two of the four neighbours: kept, the published weights were tuned with it."""
    volume = torch.zeros(1, 1, 2, 2, 2)
    volume[0, 0, 1, 0, 0] = 4.0
    assert derivatives.derivative(volume, 0).item() == 2
    volume = torch.zeros(1, 1, 2, 2, 2)
    volume[0, 0, 1, 0, 1] = 4.0
    assert derivatives.derivative(volume, 0).item() == 0
