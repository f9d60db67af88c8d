"""Registration quality: golden numbers of a network's deformations, and closed forms."""

from __future__ import annotations

import math
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch

from equisynth.evaluation.metrics import Pooled, errors, normalised_mutual_information, psnr, ssim
from equisynth.evaluation.registration import (
    DeformationErrors,
    comparable,
    deformation_errors,
    folded_share,
    mean_displacement,
)
from equisynth.geometry.transforms import Affine, Image
from equisynth.methods.base import Batch
from equisynth.methods.equivariant import Equivariant, Pass
from golden_data import Golden, files, load
from method_golden import load_in_order, negated_angles, settings_of

FILES = files("10_registration_evaluation*")


def denormalised(image: Image, mean_and_std: list[list[float]]) -> np.ndarray:
    """(B, C, *S) in raw units, zero where invalid."""
    mean, std = (np.float32(v).reshape(-1, *(1,) * (image.values.dim() - 2)) for v in mean_and_std)
    return (image.values.numpy() * std + mean) * image.valid().numpy()


def image_of(batch: Golden, side: str) -> Image:
    return Image(torch.from_numpy(batch[side]), torch.from_numpy(batch[f"{side}_mask"]))


@pytest.mark.parametrize("file", FILES)
def test_golden(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reference's inverse rigid transformation put back: in 3D ours is exact, theirs is not."""
    monkeypatch.setattr(Pass, "rigid_inverse", negated_angles)
    golden = load(file)
    config = golden.json("config_json")
    normalisation, signal_range = config["data_loader"]["normalization"], config["data_loader"]["label_signal_range"]
    settings = settings_of(config, "equivariant")
    method = Equivariant(settings)
    method.train(False)
    networks = [network for name, network in method.networks.items() if name != "discriminator"]
    where = str(golden["state_is_in"]).split() if "state_is_in" in golden else []
    state = load(where[0].removesuffix(".npz")) if where else golden
    for part in (where[1] if where else "state_i2ireg").strip("/").split("/"):
        state = state / part
    load_in_order(networks, state)

    pooled: dict[str, Pooled] = {}
    found, cross = DeformationErrors(), DeformationErrors()
    for key in [key for key in golden.children() if key.startswith("batch")]:
        batch = golden / key
        source, training, aligned = (image_of(batch, side) for side in ("input", "training_label", "aligned_label"))
        truth = torch.from_numpy(batch["label_deformation"])
        identity = Affine(torch.eye(truth.shape[1] + 1, dtype=torch.float64).expand(len(truth), -1, -1))
        with torch.no_grad():
            done = method.run(Batch(source, training, identity))
            mask = comparable(source.valid(), training.valid(), truth)
            found += deformation_errors(done.inverse.displacement, truth, mask)
            cross += deformation_errors(done.cross_inverse.displacement, truth, mask)
            pairs = {
                "": (aligned, done.output, batch["patch_mask"] * batch["evaluation_mask"]),
                "_training": (done.label_cross, done.fitted, np.ones_like(batch["patch_mask"])),
            }
        x = denormalised(source, normalisation["input_mean_and_std"])
        for suffix, (label, output, weight) in pairs.items():
            content = label.valid().numpy() * output.valid().numpy()
            a, b = (denormalised(image, normalisation["label_mean_and_std"]) for image in (label, output))
            for k in range(len(a)):
                inside, where_counted = content[k, 0], content[k, 0] * weight[k, 0]
                absolute, squared = errors(a[k, 0], b[k, 0], where_counted)
                values = {
                    "MAE": absolute,
                    "MSE": squared,
                    "SSIM": ssim(a[k, 0], b[k, 0], inside, where_counted, signal_range),
                }
                if not suffix:
                    values["NMI"] = normalised_mutual_information(x[k, 0], b[k, 0], where_counted)
                for name, value in values.items():
                    pooled[name + suffix] = pooled.get(name + suffix, Pooled()) + value

    total = golden / "total"
    for name, value in pooled.items():
        total.check(name, value.mean)
    for suffix in ("", "_training"):
        total.check(f"PSNR{suffix}", psnr(pooled[f"MSE{suffix}"], signal_range))
    total.check("MAE_def", found.distance.mean)
    total.check("cross_MAE_def", cross.distance.mean)
    total.check("mean_max_AE_def", found.largest.mean)
    for axis, name in enumerate(("ME_def_x", "ME_def_y")):
        total.check(name, found.drift[axis].mean)


def test_a_constant_error_is_its_length() -> None:
    truth = torch.zeros(2, 3, 4, 5, 6)
    predicted = truth + torch.tensor([1.0, -2.0, 2.0]).view(1, 3, 1, 1, 1)
    mask = torch.ones(2, 1, 4, 5, 6)
    mask[0] = 0
    found = deformation_errors(predicted, truth, mask)
    assert found.distance == Pooled(3 * 120, 120)
    assert [drift.mean for drift in found.drift] == [1, -2, 2]
    assert found.largest == Pooled(3, 1)
    assert reduce(add, [found, found], DeformationErrors()).distance.mean == 3
    assert math.isnan(deformation_errors(predicted, truth, 0 * mask).distance.mean)


def test_what_left_the_field_of_view_is_not_judged() -> None:
    truth = torch.zeros(1, 2, 4, 8)
    truth[:, 1] = 3  # the aligned label three columns further lies here
    mask = comparable(torch.ones(1, 1, 4, 8), torch.ones(1, 1, 4, 8), truth)
    assert mask[0, 0, :, :5].all()
    assert not mask[0, 0, :, 5:].any()


@pytest.mark.parametrize("n_dims", [2, 3])
def test_folding_and_displacement(n_dims: int) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(8.0)] * n_dims, indexing="ij"))
    assert folded_share(np.zeros_like(grid)).mean == 0
    shrinking = np.zeros_like(grid)
    shrinking[0] = -0.9 * grid[0]
    assert folded_share(shrinking).mean == 0
    mirrored = np.zeros_like(grid)
    mirrored[0, 4:] = -2.0 * (grid[0, 4:] - 4)  # turned over from the fifth plane on
    mask = np.ones(grid.shape[1:])
    assert folded_share(mirrored).mean == pytest.approx(3 / 7)
    mask[4:] = 0
    assert folded_share(mirrored, mask).mean == 0
    assert mean_displacement(shrinking).mean == pytest.approx(0.9 * 3.5)
    assert math.isnan(mean_displacement(shrinking, np.zeros_like(mask)).mean)


def test_degenerate_fields() -> None:
    single = np.full((3, 1, 1, 1), 2.0)
    assert math.isnan(folded_share(single).mean)  # no neighbour to fold over
    assert mean_displacement(single).mean == pytest.approx(math.sqrt(12))
    field, mask = np.zeros((2, 6, 6)), np.ones((6, 6))
    field[0, 5, 5] = math.nan
    assert math.isnan(mean_displacement(field).mean)
    mask[4:] = 0  # beyond its neighbours too
    assert folded_share(field, mask) == Pooled(0, 20)
    assert mean_displacement(field, mask) == Pooled(0, 24)
    field[0, 1, 1] = math.nan
    assert math.isnan(folded_share(field, mask).mean)


def test_errors_of_fields_that_are_not_finite() -> None:
    predicted, truth, mask = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
    predicted[0, 0, 3, 3] = math.nan
    assert math.isnan(deformation_errors(predicted, truth, mask).distance.mean)
    mask[0, 0, 3, 3] = 0
    assert deformation_errors(predicted, truth, mask).distance == Pooled(0, 15)
    assert deformation_errors(truth, truth, mask).largest == Pooled(0, 1)
