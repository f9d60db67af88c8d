"""Whole images from tiles: golden numbers, geometry, memory order, and what the program does at the edges."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from equisynth.datasets.tiles import patch_masks, patch_starts, window
from equisynth.inference import VOLUME, Rule, translate_slabs, translate_volume
from equisynth.networks.unet import UNet
from golden_data import Golden, load

GOLDEN = load("08_data")


def intensity(mean: Any, std: Any, clip: Any = None) -> SimpleNamespace:
    return SimpleNamespace(mean=tuple(mean), std=tuple(std), clip=clip, channels=len(mean))


def describe(patch: tuple[int, ...], stride: tuple[int, ...] | None = None, **changes: Any) -> SimpleNamespace:
    one, smoothing = intensity([0.0], [1.0]), changes.pop("fusing_mask_smoothing", None)
    settings = {"patch_size": patch, "inference_stride": stride, "fusing_mask_smoothing": smoothing}
    data: dict[str, Any] = {"n_dims": len(patch), "input": one, "label": one, "invalid_at_or_below": None}
    return SimpleNamespace(settings=SimpleNamespace(**settings, data=SimpleNamespace(**{**data, **changes})))


def golden_model(golden: Golden, n_dims: int) -> SimpleNamespace:
    settings = golden.json("settings_json")
    normalization = settings["normalization"]
    parts = {}
    for role in ("input", "label"):
        mean, std = normalization[f"{role}_mean_and_std"]
        parts[role] = intensity(mean, std, normalization.get(f"{role}_min_and_max"))
    description = describe(
        tuple(settings["patch_size"]),
        tuple(settings["stride"]),
        fusing_mask_smoothing=settings["fusing_mask_smoothing"],
        invalid_at_or_below=settings.get("mask_smaller_or_equal_values_as_invalid"),
        **parts,
    )
    network = UNet(
        n_dims, parts["input"].channels, parts["label"].channels, settings["n_features"], settings["groups"],
        "leaky_relu",
    )  # fmt: skip
    names = [str(name) for name in golden["state/__order__"]]
    values = [torch.from_numpy(golden[f"state/{name}"]) for name in names]
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    return SimpleNamespace(description=description, predict=lambda patch, mask: network(patch))


IDENTITY = SimpleNamespace(predict=lambda values, mask: values)
BLEND = [(None, (4, 5, 6)), (1.5, (3, 3, 4))]


def decided_alike(golden: Golden) -> np.ndarray:
    """Where the reference, which skips whole batches of tiles, and ours, which decides per tile, do the same.

    Known difference: tiles that are skipped for their little weight although something in them is valid.
    """
    settings, mask = golden.json("settings_json"), golden["mask"] > 0
    tiling = mask.shape, settings["patch_size"], settings["stride"]
    alike = np.ones(mask.shape, bool)
    fusing_masks = patch_masks(*tiling, smoothing=settings["fusing_mask_smoothing"])
    for start, fusing in zip(patch_starts(*tiling), fusing_masks, strict=True):
        place = window(start, settings["patch_size"])
        weight = (mask[place] * fusing).sum()
        if 0 < weight < VOLUME.minimum_weight:
            alike[place] = False
    return alike


@pytest.mark.parametrize("case", (GOLDEN / "inference_nifti").children())
def test_nifti_golden(case: str) -> None:
    golden = GOLDEN / "inference_nifti" / case
    model = golden_model(golden, golden["volume"].ndim)
    found = translate_volume(model.predict, golden["volume"], golden["mask"], model.description)
    assert found.dtype == np.float32
    if "prediction" in golden:
        compared = decided_alike(golden)
        assert compared.mean() > 0.5
        expected = golden["prediction"]
        scale = np.abs(expected).max()
        limit = golden.tolerance("prediction")
        assert np.abs(found - expected)[compared].max() <= limit * scale
    else:  # the reference fails on integer files; ours must give what the same values as floats give
        floats = golden["volume"].astype(np.float32)
        assert np.array_equal(found, translate_volume(model.predict, floats, golden["mask"], model.description))
        assert np.ptp(found) > 0
        assert np.all(found[golden["mask"] == 0] == 0)


@pytest.mark.parametrize(("smoothing", "stride"), BLEND)
@pytest.mark.parametrize("shape", [(4, 5, 6), (9, 11, 13), (16, 7, 6), (3, 4, 20)])
def test_an_identity_gives_the_image_back(shape: tuple[int, ...], smoothing: float | None, stride: Any) -> None:
    image = np.random.RandomState(0).rand(*shape).astype(np.float32)
    description = describe((4, 5, 6), stride, fusing_mask_smoothing=smoothing)
    found = translate_volume(IDENTITY.predict, image, None, description, batch_size=3)
    assert np.allclose(found, image, atol=1e-6)


def test_channels_and_intensities() -> None:
    image = np.random.RandomState(0).randint(0, 255, (9, 11, 3)).astype(np.uint8)
    mask = np.ones((9, 11), np.uint8)
    mask[:3] = 0
    colours = intensity([10.0, 20.0, 30.0], [2.0, 3.0, 4.0])
    label = intensity([1.0, 2.0], [5.0, 6.0])
    description = describe((4, 6), (2, 3), input=colours, label=label)
    found = translate_volume(lambda values, _: values[:, :2], image, mask, description)
    expected = (image[..., :2] - np.array([10.0, 20.0])) / np.array([2.0, 3.0]) * np.array([5.0, 6.0]) + [1.0, 2.0]
    assert np.allclose(found, expected * (mask > 0)[..., None], rtol=1e-5)


def test_results_do_not_depend_on_the_batch() -> None:
    image = np.random.RandomState(0).rand(12, 12, 12).astype(np.float32)
    mask = np.zeros(image.shape)
    mask[:5, :3] = 1
    description = describe((4, 4, 4), (3, 3, 3), fusing_mask_smoothing=1.0)
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 1, 3, padding=1).eval()
    one, many = (
        translate_volume(lambda values, _: network(values), image, mask, description, batch_size=size)
        for size in (1, 7)
    )
    assert np.allclose(one, many, atol=1e-6)


def test_tiles_without_valid_voxels_are_not_predicted() -> None:
    image, mask = np.ones((16, 8), np.float32), np.zeros((16, 8))
    mask[:8] = 1
    seen = []

    def predict(values: Tensor, inside: Tensor) -> Tensor:
        seen.append(float(inside.min()))
        return values

    translate_volume(predict, image, mask, describe((8, 8)))
    assert seen == [1.0]


def test_a_tile_is_skipped_by_its_own_weight_alone() -> None:
    image, mask = np.ones((8, 4), np.float32), np.zeros((8, 4), np.float32)
    mask[0, 0] = mask[4:, :] = 1
    found = translate_volume(IDENTITY.predict, image, mask, describe((4, 4)), Rule(2.0, False), batch_size=2)
    assert np.array_equal(found[:4], np.zeros((4, 4)))
    assert np.array_equal(found[4:], np.ones((4, 4)))


def test_slabs_are_finished_as_soon_as_no_tile_reaches_them() -> None:
    image, reads = np.random.RandomState(0).rand(20, 6).astype(np.float32), []

    def read(place: tuple[slice, ...]) -> tuple[np.ndarray, None]:
        reads.append(place[0].start)
        return image[place], None

    description = describe((6, 6), (4, 6))
    finished = []
    for first, slab in translate_slabs(IDENTITY.predict, read, image.shape, description):
        finished.append((first, len(slab)))
        assert max(reads) == first  # nothing of a later row has been asked for
        assert np.allclose(slab[..., 0], image[first : first + len(slab)], atol=1e-6)
    assert finished == [(0, 4), (4, 4), (8, 4), (12, 2), (14, 6)]


def test_voxels_that_are_not_finite_are_invalid() -> None:
    image = np.ones((8, 8), np.float32)
    image[2, 3] = np.nan
    found = translate_volume(IDENTITY.predict, image, None, describe((8, 8)))
    assert found[2, 3] == 0
    assert found.sum() == 63


def test_a_2d_model_translates_a_volume_slice_by_slice() -> None:
    image = np.random.RandomState(0).rand(9, 7, 5).astype(np.float32)
    shapes = set()

    def predict(values: Tensor, mask: Tensor) -> Tensor:
        shapes.add(values.shape[1:])
        return values

    assert np.allclose(translate_volume(predict, image, None, describe((4, 4), (3, 3))), image, atol=1e-6)
    assert shapes == {(1, 4, 4)}


def test_progress_counts_every_tile() -> None:
    calls: list[tuple[int, int]] = []
    translate_volume(
        IDENTITY.predict, np.ones((8, 8), np.float32), None, describe((4, 4)), VOLUME,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
