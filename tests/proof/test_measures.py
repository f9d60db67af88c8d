"""Measures against closed forms, and methods whose equivariance and registration are known."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import proof_workplace
from equisynth import params
from equisynth.config import Settings
from equisynth.datasets.opened import open_dataset
from equisynth.evaluation import deformations
from equisynth.geometry.transforms import Affine, Image
from equisynth.methods.base import Batch, Deformations, build_method
from equisynth.proof import measures, protocol
from equisynth.proof.protocol import PREPARED, Run
from equisynth.proof.watched import EQUIVARIANCE, Watched


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("measures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        proof_workplace.make(folder)
        yield folder


def settings_of(run: Run) -> Settings:
    return protocol.settings(protocol.read(), params.read(), run)


class Known(nn.Module):
    """A translation given as a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.one = function, nn.Parameter(torch.ones(()))

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.function(values) * self.one
        return result


def test_measures_of_constant_errors() -> None:
    truth = {
        case: np.random.RandomState(i).uniform(0, 255, (16, 16, 3)).astype(np.float32) for i, case in enumerate("ab")
    }
    offsets = {"a": 3.0, "b": -5.0}
    found = measures.compare({case: truth[case] + offset for case, offset in offsets.items()}, truth, 255)
    for case, offset in offsets.items():
        assert found["cases"][case]["mae"] == pytest.approx(abs(offset), rel=1e-5)
        assert found["cases"][case]["mse"] == pytest.approx(offset**2, rel=1e-5)
        assert found["cases"][case]["psnr"] == pytest.approx(20 * math.log10(255 / abs(offset)), rel=1e-6)
    pooled = found["pooled"]
    assert (pooled["mae"], pooled["mse"]) == (pytest.approx(4, rel=1e-5), pytest.approx(17, rel=1e-5))
    assert pooled["psnr"] == pytest.approx(10 * math.log10(255**2 / 17), rel=1e-6)  # not the mean of both
    assert pooled["ssim"] == pytest.approx(np.mean([case["ssim"] for case in found["cases"].values()]))


def test_ssim_against_its_formula() -> None:
    """Two constant pictures: variances are 0, and what is left is the term of the means."""
    a, b = (np.full((9, 9, 3), value, np.float32) for value in (100, 140))
    stability = (0.01 * 255) ** 2
    expected = (2 * 100 * 140 + stability) / (100**2 + 140**2 + stability)
    assert measures.compare({"x": b}, {"x": a}, 255)["pooled"]["ssim"] == pytest.approx(expected, rel=1e-6)


def test_a_perfect_prediction_has_no_psnr() -> None:
    truth = {"x": np.random.RandomState(0).rand(9, 9, 3).astype(np.float32)}
    found = measures.compare(truth, truth, 255)["pooled"]
    assert (found["psnr"], found["mse"], found["ssim"]) == (None, 0.0, pytest.approx(1))


def test_pictures_are_translated_in_raw_units_without_clipping(workplace: Path) -> None:
    run = Run("photographs", "lc_noreg_aug", 0)
    settings = settings_of(run)
    dataset, method = open_dataset(PREPARED[run.task], settings), build_method(settings)
    label = settings.data.label
    # The other modality: red becomes green, green blue, blue red, each with its own mean and deviation; then 100 more.
    mean, std = (torch.tensor(getattr(settings.data.input, key)).view(3, 1, 1) for key in ("mean", "std"))
    new_mean, new_std = (torch.tensor(getattr(label, key)).view(3, 1, 1) for key in ("mean", "std"))
    method.networks["i2i"] = Known(lambda x: (torch.roll(x * std + mean, 1, 1) + 100 - new_mean) / new_std)
    found = measures.translate_pictures(method, dataset, "test", settings)
    truth = measures.aligned_truth(dataset, "test")
    assert set(found) == set(dataset.cases("test"))
    assert measures.compare(found, truth, 255)["pooled"]["mae"] == pytest.approx(100, abs=1e-3)
    assert max(picture.max() for picture in found.values()) > 255


@pytest.mark.parametrize(("function", "equivariant"), [(lambda x: 2 * x, True), (lambda x: torch.roll(x, 3, 2), False)])
def test_equivariance_error_of_known_translations(function: Any, equivariant: bool) -> None:
    values = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    flip = torch.tensor([[-1.0, 0, 15], [0, 1, 0], [0, 0, 1]]).expand(2, 3, 3)
    image = Image(values, torch.ones(2, 1, 16, 16))
    method: Any = SimpleNamespace(networks={"i2i": Known(function)}, translate=lambda network, x, mask: network(x))
    error = float(measures.equivariance_error(method, Batch(image, image, Affine(flip))))
    assert error < 1e-5 if equivariant else error > 0.05


class Registers:
    """Predicts a field that is given, as if it had networks."""

    def __init__(self, field: Tensor) -> None:
        network = Known(lambda x: x)
        self.networks, self.field = {"i2i": network, "cross_registration": network}, field

    def train(self, mode: bool = True) -> None:
        pass

    def deformations(self, batch: Batch) -> Deformations:
        return Deformations(self.field, torch.zeros_like(self.field))


def test_distance_to_a_known_deformation(workplace: Path) -> None:
    run = Run("photographs", "lc_eqsim_com", 0)
    settings = settings_of(run)
    dataset = open_dataset(PREPARED[run.task], settings)
    truth = torch.from_numpy(dataset.deformation(dataset.cases("test")[0]))[None]  # the same for all
    exact: Any = Registers(truth)
    found = measures.registration(exact, dataset, settings, "test")
    assert found["distance"] == pytest.approx(0, abs=1e-6)
    assert found["distance_cross"] == pytest.approx(found["distance_unregistered"])
    assert 2 < found["distance_unregistered"] < 8
    off: Any = Registers(truth + torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
    found = measures.registration(off, dataset, settings, "test")
    assert (found["distance"], found["largest"]) == (pytest.approx(5, abs=1e-4), pytest.approx(5, abs=1e-4))
    assert found["folded"] == 0


def test_the_pipeline_measures_the_same_of_pairs_made_on_the_fly(workplace: Path) -> None:
    run = Run("photographs", "lc_eqsim_com", 0)
    settings = settings_of(run)
    dataset, method = open_dataset(PREPARED[run.task], settings), build_method(settings)
    found = measures.registration(method, dataset, settings, "test")
    cases = {case: deformations.measure_case(method, dataset, case) for case in dataset.cases("test")}
    pooled = deformations.summarise(cases, "pixels")["pooled"]
    for ours, theirs in (
        ("", "distance"),
        ("_without_intra", "distance_cross"),
        ("_unregistered", "distance_unregistered"),
    ):
        assert pooled[f"distance{ours}_voxels"] == pytest.approx(found[theirs], rel=1e-5)
    assert pooled["largest_distance_voxels"] == pytest.approx(found["largest"], rel=1e-5)


def test_distance_in_volumes_counts_the_patches_of_the_body(workplace: Path) -> None:
    run = Run("brain", "eqsim_com_eqadv", 0)
    settings = settings_of(run)
    dataset = open_dataset(PREPARED[run.task], settings)
    shift = torch.zeros(1, 3, *settings.patch_size)
    shift[:, 0] = 1
    method: Any = Registers(shift)
    found = measures.registration(method, dataset, settings, "test")
    # The field is exactly one voxel but in the last slice, which is compared as well: label and truth are valid there.
    assert 0 <= found["distance"] < 0.1
    assert found["distance_unregistered"] == pytest.approx(1 - found["distance"], abs=1e-6)


@pytest.mark.parametrize("method", ["lc_eqsim_com", "lc_noreg_aug"])
def test_watching_changes_nothing(method: str, workplace: Path) -> None:
    settings = settings_of(Run("photographs", method, 0))
    plain, watched = build_method(settings), Watched(build_method(settings))
    values = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    image = Image(values, torch.ones(4, 1, 32, 32))
    batch = Batch(image, image, Affine(torch.eye(3).expand(4, 3, 3)))
    losses = [[float(update.loss.detach()) for update in each.updates(batch)] for each in (plain, watched)]
    assert losses[0] == losses[1]
    validation = watched.validation(batch)
    assert validation.pop(EQUIVARIANCE) < 1e-5  # r is the identity
    assert validation.keys() == plain.validation(batch).keys()
    assert watched.networks is watched.within.networks
