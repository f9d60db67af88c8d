"""Registration quality and deformation health of methods whose fields are known, and of every method's own networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import small_methods
import small_trainings
from equisynth.config import Settings
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case, write_info
from equisynth.errors import UserError
from equisynth.evaluation import deformations
from equisynth.evaluation.deformations import Quality, measure_case, neighbouring_patches, summarise
from equisynth.evaluation.health import Health
from equisynth.geometry.warping import displaced, sample
from equisynth.methods.base import Batch, Deformations, Method, build_method, method_class
from equisynth.methods.nemar import displacement, move
from equisynth.model import WEIGHTS, network_states, save_weights
from equisynth.work import Arrays, remembered

Array = npt.NDArray[Any]
STEP = 100  # images hold their own indices: STEP * row + column


class Known(Method):
    """Predicts what a function of the patch's first voxel gives, and half of it without the intra-modality step."""

    def __init__(self, settings: Settings, field: Callable[[tuple[int, ...]], Array]) -> None:
        super().__init__(settings)
        self.networks, self.optimisers, self.field = {"i2i": nn.Conv2d(1, 1, 1)}, {}, field

    def updates(self, batch: Batch) -> Any:
        raise NotImplementedError

    def validation(self, batch: Batch) -> Any:
        raise NotImplementedError

    @staticmethod
    def predictor(settings: Settings) -> nn.Module:
        raise NotImplementedError

    def deformations(self, batch: Batch) -> Deformations:
        starts = [divmod(round(float(image.flatten()[0])) - 1, STEP) for image in batch.input.values]
        field = torch.from_numpy(np.stack([self.field(start) for start in starts]).astype(np.float32))
        return Deformations(field, field / 2)


def known(field: Array, **changes: Any) -> Known:
    """Predicts the parts of a field (n, *S) of a whole picture."""
    chosen = small_trainings.settings(**{"method": "equivariant", "patch_size": (8, 8)} | changes)

    def part(start: tuple[int, ...]) -> Array:
        found = field[:, start[0] : start[0] + 8, start[1] : start[1] + 8]
        return np.pad(found, [(0, 0), *((0, 8 - side) for side in found.shape[1:])])

    return Known(chosen, part)


def make_dataset(
    folder: Path,
    shape: tuple[int, ...] = (20, 13),
    deformation: Array | None = None,
    evaluation: Array | None = None,
    voxel_size: tuple[float, ...] | None = None,
) -> PreparedDataset:
    """One case per split, whose images hold the index of each voxel, from 1."""
    n_dims = len(shape)
    rows, columns = np.indices(shape)[:2]
    arrays: dict[str, Array] = {"input": (STEP * rows + columns + 1).astype(np.float32)}
    arrays["label"] = arrays["input"]
    if deformation is not None:
        arrays["deformation"] = deformation
    if evaluation is not None:
        arrays["evaluation_mask"] = evaluation
    data = small_trainings.settings(n_dims, method="supervised").data.model_dump()
    data |= {"voxel_size": voxel_size or data["voxel_size"]}
    splits = {"train": ("a",), "validate": ("b",), "test": ("c",)}
    for case in "abc":
        write_case(folder, case, arrays, np.eye(4), n_dims)
    write_info(folder, DatasetInfo.model_validate({**data, "name": "none", "splits": splits}))
    return PreparedDataset.open(folder)


def smooth_field(shape: tuple[int, ...], length: float) -> Array:
    """A random field (n, *S) that varies from voxel to voxel."""
    return np.random.RandomState(0).uniform(-length, length, (len(shape), *shape)).astype(np.float32)


def numbers(method: Method, dataset: PreparedDataset, unit: str = "mm") -> dict[str, float | None]:
    return measure_case(method, dataset, "c").summary(unit)


# --- closed forms


@pytest.mark.parametrize("shape", [(20, 13), (8, 8), (5, 11)])
def test_the_truth_is_at_distance_zero_in_every_patch(tmp_path: Path, shape: tuple[int, ...]) -> None:
    truth = smooth_field(shape, 1.5)
    found = numbers(known(truth), make_dataset(tmp_path, shape, truth))
    assert found["distance_voxels"] == found["largest_distance_voxels"] == 0
    assert found["distance_unregistered_voxels"] == pytest.approx(2 * float(found["distance_without_intra_voxels"]))
    assert found["distance_unregistered_voxels"] > 0.5


def test_a_shift_is_its_length(tmp_path: Path) -> None:
    truth = smooth_field((20, 13), 1.0)
    shift = np.reshape([3.0, -4.0], (2, 1, 1))
    found = numbers(known(truth + shift), make_dataset(tmp_path, deformation=truth))
    assert found["distance_voxels"] == pytest.approx(5, abs=1e-5)
    assert found["largest_distance_voxels"] == pytest.approx(5, abs=1e-5)
    drift = found["drift_axis0_voxels"], found["drift_axis1_voxels"]
    assert drift == (pytest.approx(3, abs=1e-5), pytest.approx(-4, abs=1e-5))


def test_every_voxel_counts_once_though_patches_overlap(tmp_path: Path) -> None:
    rows = np.indices((20, 13))[0]
    field = np.stack([0.1 * rows, 0 * rows])  # a length that says where
    evaluation = (np.random.RandomState(0).rand(20, 13) > 0.3).astype(np.uint8)
    truth = np.zeros((2, 20, 13), np.float32)
    found = numbers(known(field), make_dataset(tmp_path, deformation=truth, evaluation=evaluation))
    expected = float((0.1 * rows)[evaluation > 0].mean())
    assert found["distance_voxels"] == pytest.approx(expected, rel=1e-6)
    assert found["distance_without_intra_voxels"] == pytest.approx(expected / 2, rel=1e-6)
    assert found["distance_unregistered_voxels"] == 0
    assert found["mean_displacement_mm"] == pytest.approx(expected, rel=1e-6)  # rows are 1.0 high


@pytest.mark.parametrize("shape", [(20, 13), (8, 8), (5, 3), (16, 24), (9, 9)])
def test_neighbouring_patches_answer_for_every_voxel_once(shape: tuple[int, ...]) -> None:
    counts = np.zeros([max(side, 8) for side in shape])
    for start, own in neighbouring_patches(shape, (8, 8)):
        assert set(np.unique(own)) <= {0, 1}
        counts[start[0] : start[0] + 8, start[1] : start[1] + 8] += own
    assert (counts == 1).all()


def test_what_truly_lies_beyond_the_patch_is_not_judged(tmp_path: Path) -> None:
    """The truth reads five columns further: the last five columns of every patch show what no patch can know."""
    truth = np.zeros((2, 8, 8), np.float32)
    truth[1] = 5
    prediction = truth.copy()
    prediction[:, :, 3:] = 99
    assert numbers(known(prediction), make_dataset(tmp_path, (8, 8), truth))["distance_voxels"] == 0


def test_folding_and_world_units(tmp_path: Path) -> None:
    rows = np.indices((16, 8))[0].astype(float)
    turned = np.stack([np.where(rows >= 8, -2.0 * (rows - 8), 0.0), 0 * rows])  # the second patch is turned over
    dataset = make_dataset(tmp_path, (16, 8), voxel_size=(2.0, 1.0))
    found = numbers(known(turned), dataset)
    assert found == {"folded_share": 0.5, "mean_displacement_mm": pytest.approx(2 * 2 * 3.5 / 2)}  # nothing else known
    assert numbers(known(0 * turned), dataset) == {"folded_share": 0, "mean_displacement_mm": 0}


def test_a_method_of_slices_cannot_move_across_them(tmp_path: Path) -> None:
    truth = np.zeros((3, 8, 8, 4), np.float32)
    truth[0], truth[2] = 1, 2
    dataset = make_dataset(tmp_path, (8, 8, 4), truth)
    slices = known(
        truth[:2, ..., 0],
        n_dims=3,
        patch_size=(8, 8, 1),
        slices=True,
        method="pix2pix",
        features={},
        network=small_methods.GAN,
    )
    found = numbers(slices, dataset)
    assert found["distance_voxels"] == pytest.approx(2)
    assert found["distance_unregistered_voxels"] == pytest.approx(5**0.5)
    assert found["folded_share"] == 0
    assert found["mean_displacement_mm"] == pytest.approx(1)


def test_health_alone_where_the_label_s_deformation_is_not_known(tmp_path: Path) -> None:
    truth = smooth_field((20, 13), 1.0)
    dataset = make_dataset(tmp_path / "without")
    assert set(numbers(known(truth), dataset)) == {"folded_share", "mean_displacement_mm"}
    aligned = known(truth, trains_on_label="aligned")  # which the known deformation did not misalign
    folder = tmp_path / "with"
    make_dataset(folder, deformation=truth)
    for case in "abc":
        (folder / f"cases/{case}/label_aligned.nii").write_bytes((folder / f"cases/{case}/label.nii").read_bytes())
    assert set(numbers(aligned, PreparedDataset.open(folder))) == {"folded_share", "mean_displacement_mm"}


def test_nothing_is_claimed_where_nothing_is_valid(tmp_path: Path) -> None:
    truth = smooth_field((20, 13), 1.0)
    dataset = make_dataset(tmp_path, deformation=truth, evaluation=np.zeros((20, 13), np.uint8))
    assert numbers(known(truth), dataset) == {"folded_share": None, "mean_displacement_mm": None}


def test_cases_pool_by_voxels_and_survive_being_kept(tmp_path: Path) -> None:
    rows = np.indices((20, 13))[0]
    first = np.stack([0.1 * rows, 0 * rows])
    truth = np.zeros((2, 20, 13), np.float32)
    one = measure_case(known(first), make_dataset(tmp_path / "a", deformation=truth), "c")
    few = np.zeros((20, 13), np.uint8)
    few[:, :4] = 1
    two = measure_case(known(3 * first), make_dataset(tmp_path / "b", deformation=truth, evaluation=few), "c")
    assert Quality.from_arrays(two.to_arrays()) == two
    assert Quality.from_arrays(Quality(Health()).to_arrays()) == Quality()
    pooled = summarise({"b": two, "a": one}, "mm")["pooled"]
    assert pooled["distance_voxels"] == pytest.approx((13 * 0.95 + 4 * 2.85) / 17, rel=1e-6)
    assert pooled["mean_displacement_mm"] == pytest.approx(pooled["distance_voxels"], rel=1e-6)


# --- whole models


def settings_of(method: str, **changes: Any) -> Settings:
    data = small_trainings.settings(method="supervised").data
    return small_methods.settings(method, data=data.model_copy(update={"voxel_size": (1.0, 1.0)}), **changes)


@pytest.mark.parametrize("method", small_methods.REGISTERING)
def test_a_model_is_measured_once_and_its_numbers_are_kept(method: str, tmp_path: Path) -> None:
    chosen = settings_of(method)
    shape = tuple(side + 8 for side in chosen.patch_size)
    truth = smooth_field(shape, 1.0)
    dataset = make_dataset(tmp_path / "prepared", shape, truth, voxel_size=(1.0, 1.0))
    small_methods.write_model(tmp_path / "model", chosen)
    asked: list[str] = []

    def counted(name: str, compute: Callable[[], Arrays]) -> Arrays:
        asked.append(name)
        return remembered(tmp_path / "kept")(name, compute)

    found = deformations.evaluate(tmp_path / "model", dataset, "test", counted, device="cpu")
    assert (found["computed"], found["known"], list(found["cases"])) == (True, True, ["c"])
    assert found["pooled"] == found["cases"]["c"]
    assert ("distance_without_intra_voxels" in found["pooled"]) == (method == "equivariant")
    assert {"distance_voxels", "folded_share", "mean_displacement_pixels"} <= found["pooled"].keys()
    json.dumps(found, allow_nan=False)
    (tmp_path / "model" / WEIGHTS).unlink()
    assert deformations.evaluate(tmp_path / "model", dataset, "test", counted) == found
    assert asked == ["deformations/test/c"] * 2


@pytest.mark.parametrize("method", ["supervised", "pix2pix", "cycle_gan"])
def test_methods_without_registration_say_so(method: str, tmp_path: Path) -> None:
    chosen = settings_of(method)
    small_methods.write_model(tmp_path / "model", chosen)
    found = deformations.evaluate(tmp_path / "model", make_dataset(tmp_path / "prepared"), "validate")
    reason = f"method '{method}' has no registration networks"
    assert found == {"split": "validate", "computed": False, "applies": False, "reason": reason}
    with pytest.raises(NotImplementedError):
        build_method(chosen).deformations(small_methods.batch(chosen))


def test_a_model_may_lack_its_discriminator_and_nothing_else(tmp_path: Path) -> None:
    chosen = settings_of("equivariant")
    method = small_methods.write_model(tmp_path / "model", chosen)
    dataset = make_dataset(tmp_path / "prepared", (16, 16), voxel_size=(1.0, 1.0))
    without = {name: network for name, network in method.networks.items() if name != "discriminator"}
    save_weights(tmp_path / "model" / WEIGHTS, network_states(without))
    assert deformations.evaluate(tmp_path / "model", dataset, "test", device="cpu")["computed"]
    save_weights(tmp_path / "model" / WEIGHTS, network_states({"i2i": method.networks["i2i"]}))
    with pytest.raises(UserError, match=r"model\.safetensors: rigid_registration does not fit .*model\.json"):
        deformations.evaluate(tmp_path / "model", dataset, "test", device="cpu")


# --- what methods predict


def test_methods_that_register_are_known() -> None:
    registering = {name for name in small_methods.FIELDS if method_class(name).registers()}
    assert registering == set(small_methods.REGISTERING)


@torch.no_grad()
@pytest.mark.parametrize("method", small_methods.REGISTERING)
def test_the_predicted_field_moves_the_output_as_the_method_does(method: str) -> None:
    chosen = small_methods.settings(method)
    built: Any = build_method(chosen)
    built.train(False)
    for network in built.networks.values():  # untrained fields are almost zero
        if hasattr(network, "output") and isinstance(network.output, nn.Conv2d):
            network.output.weight.add_(0.01)
    batch = small_methods.batch(chosen)
    whole = built.deformations(batch).whole
    assert whole.shape == (1, 2, *chosen.patch_size)
    if method == "equivariant":
        done = built.run(batch)
        expected, output = done.output_predicted.values, done.output.values
        assert torch.equal(built.deformations(batch).without_intra, done.cross_inverse.displacement)
        assert torch.equal(whole, done.inverse.displacement)
    elif method == "nemar_equivariant":
        done = built.run(batch)
        expected, output = done.moved.values, done.output.values
    elif method == "nemar":
        done = built.orders(batch)
        expected, output = done.moved, done.output
    else:
        done = built.registered(batch)
        expected, output = done.moved, done.output
    moved = sample(output, displaced(whole))
    within = ((displaced(whole) >= 0) & (displaced(whole) <= torch.tensor(whole.shape[2:]).view(1, 2, 1, 1) - 1)).all(1)
    if method == "equivariant":  # outside of its mask a composed field means nothing
        within &= done.inverse.valid()[:, 0] > 0
    assert within.float().mean() > 0.3
    torch.testing.assert_close(moved[:, 0][within], expected[:, 0][within], atol=1e-4, rtol=1e-4)


def test_nemar_s_affine_field_is_where_its_matrix_reads() -> None:
    image = torch.rand(2, 3, 12, 9, generator=torch.Generator().manual_seed(0))
    matrix = torch.tensor([[0.1, -0.2, 0.05], [0.15, -0.1, -0.1]]).expand(2, 2, 3)
    field = displacement(matrix, (12, 9))
    positions = displaced(field)
    within = ((positions >= 0) & (positions <= torch.tensor([11, 8]).view(1, 2, 1, 1))).all(1)
    moved, expected = sample(image, positions), move(image, matrix)
    for channel in range(3):
        torch.testing.assert_close(moved[:, channel][within], expected[:, channel][within], atol=1e-5, rtol=1e-5)
    still = displacement(torch.zeros(1, 2, 3), (12, 9))
    assert float(still.abs().max()) < 1e-5
