"""CycleGAN: recorded and stated trainings, its pools."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from baseline_golden import (
    Step,
    check_epochs,
    check_tensors,
    filled,
    fixed_batch,
    gan_settings,
    load_state,
    record,
    recorded_batch,
    records,
    settings,
    single,
)
from equisynth.config import Settings
from equisynth.errors import UserError
from equisynth.geometry.transforms import Affine, Image
from equisynth.methods.base import Batch
from equisynth.methods.cycle_gan import CycleGan
from equisynth.methods.image_pool import ImagePool

NETWORK = {
    "generator": "resnet_3blocks", "generator_width": 4, "discriminator_width": 4, "pool_size": 50,
    "decay_share": 1 / 3, "cycle_weight_input": 10.0, "cycle_weight_label": 5.0, "identity_weight": 0.5,
}  # fmt: skip
NAMES = {
    "netG_A": "i2i", "netG_B": "back", "netD_A": "discriminator_label", "netD_B": "discriminator_input",
    "loss_G": "loss", "loss_G_A": "adversarial_label", "loss_G_B": "adversarial_input",
    "loss_cycle_A": "cycle_input", "loss_cycle_B": "cycle_label",
    "loss_idt_A": "identity_label", "loss_idt_B": "identity_input",
    "loss_D_A": "discriminator_label", "loss_D_B": "discriminator_input",
}  # fmt: skip
"""Recorded names of networks and losses -> ours."""
WEIGHTS = {
    "lambda_A": "cycle_weight_input", "lambda_B": "cycle_weight_label", "lambda_identity": "identity_weight",
}  # fmt: skip


def stated(**changes: Any) -> Settings:
    network = NETWORK | {key: changes.pop(key) for key in list(changes) if key in CycleGan.Options.model_fields}
    return settings("cycle_gan", network, (32, 32), **changes)


def translations(method: CycleGan, batch: Batch) -> dict[str, Tensor]:
    """By their recorded names."""
    there, back = method.networks["i2i"], method.networks["back"]
    masks = batch.input.valid(), batch.label.valid()
    input_mask, label_mask = masks if method.chosen.masked else (1, 1)
    with torch.no_grad():
        fake_label, fake_input = there(batch.input.values), back(batch.label.values)
        return {
            "fake_B": fake_label * input_mask, "rec_A": back(fake_label) * input_mask,
            "fake_A": fake_input * label_mask, "rec_B": there(fake_input) * label_mask,
        }  # fmt: skip


@pytest.mark.parametrize("name", records("cyclegan"))
def test_recorded_training(name: str) -> None:
    golden = record(name)
    batches = [recorded_batch(golden / part) for part in sorted(golden.children()) if part.startswith("batch")]
    size = batches[0].input.values.shape[2:]
    method = CycleGan(gan_settings("cycle_gan", golden.json("options_json"), WEIGHTS, size))
    networks = {theirs: method.networks[ours] for theirs, ours in NAMES.items() if theirs.startswith("net")}
    for theirs, network in networks.items():
        load_state(network, golden / f"state_{theirs}")
    method.train()
    method.start_epoch(1)
    assert len(batches) >= 2
    for number, batch in enumerate(batches):
        step = golden / f"step{number}"
        for key, image in translations(method, batch).items():
            if key in step:
                step.check(key, image)
        done = Step(method, batch)
        for key in step.keys():
            if key.startswith("loss_"):
                step.check(key, done.log[NAMES[key]])
        if number == 0:
            for theirs in networks:
                check_tensors(golden / "gradient_step0" / theirs, done.gradients[NAMES[theirs]])
    for theirs, network in networks.items():
        check_tensors(golden / "weights_after_2_steps" / theirs, network.parameters())


MASKED = {
    "discriminator_label": [3.925176, 1.323345, 0.735140],
    "adversarial_label": [5.829736, 0.166604, 0.580889],
    "cycle_input": [8.273933, 8.088923, 7.507908],
    "identity_label": [2.297636, 2.284273, 2.237946],
    "discriminator_input": [2.959931, 1.330081, 1.112688],
    "adversarial_input": [2.503345, 1.542026, 1.014042],
    "cycle_label": [4.220016, 4.165893, 4.110247],
    "identity_input": [4.626863, 4.566697, 4.438099],
}
UNMASKED = {
    "discriminator_label": [3.954998, 1.252288, None],
    "adversarial_label": [5.958773, 0.155775, None],
    "cycle_input": [8.967106, 8.844969, None],
    "identity_label": [2.297636, 2.270766, None],
    "discriminator_input": [2.850825, 1.837752, None],
    "adversarial_input": [2.053504, 1.691818, None],
    "cycle_label": [4.514608, 4.430002, None],
    "identity_input": [4.626863, 4.530636, None],
}
POOLED = {
    "discriminator_label": [3.756895, 1.577260, 1.286736],
    "adversarial_label": [None, 0.409321, None],
    "discriminator_input": [2.959931, 0.871206, 1.078708],
    "adversarial_input": [None, 1.520857, None],
}


class DrawingOn(CycleGan):
    """Draws from one stream over all epochs."""

    stream = Random()

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        self.draws = self.stream


@pytest.mark.parametrize(
    ("changes", "losses", "selection"),
    [
        pytest.param({}, MASKED, [0.739979, 0.737451, 0.736168], id="masked"),
        pytest.param({"use_masking": False}, UNMASKED, [0.914003, 0.904998, 0.900841], id="unmasked"),
        pytest.param(
            {"identity_weight": 0.0, "pool_size": 1}, POOLED, [0.741820, 0.741126, 0.739089], id="pool of one"
        ),
    ],
)
def test_stated_training(
    changes: dict[str, object], losses: dict[str, list[float | None]], selection: list[float]
) -> None:
    method = filled(DrawingOn(stated(**changes)))
    method.stream = Random(0)
    check_epochs(method, single(fixed_batch(2, (32, 32))), losses, selection)


def test_a_pool_returns_each_image_once_more_at_most() -> None:
    """While there is room new images pass; then about half of them are kept for a stored one."""
    pool, draws = ImagePool(4), Random(0)
    new = torch.arange(400.0).view(100, 4, 1, 1, 1)
    shown = torch.stack([pool.exchange(batch, draws) for batch in new])
    assert torch.equal(shown[0], new[0])
    seen, delivered = shown.flatten().tolist(), shown == new
    assert all(seen.count(value) <= 2 for value in set(seen))
    assert 0.4 < float(delivered[1:].float().mean()) < 0.6
    assert all(earlier <= now for earlier, now in zip(seen, new.flatten().tolist(), strict=True))
    assert len(pool.images) == 4


def test_a_pool_draws_as_published() -> None:
    """One number decides; only then another chooses the place."""
    pool, draws, script = ImagePool(2), Random(5), Random(5)
    kept: list[float] = []
    for value in range(50):
        found = float(pool.exchange(torch.full((1, 1, 1, 1), float(value)), draws))
        expected = float(value)
        if len(kept) < 2:
            kept.append(expected)
        elif script.uniform(0, 1) > 0.5:
            place = script.randint(0, 1)
            expected, kept[place] = kept[place], expected
        assert found == expected
    assert [float(image) for image in pool.images] == kept


def test_a_pool_of_none_and_gradients() -> None:
    images = torch.ones(2, 1, 1, 1, requires_grad=True)
    assert ImagePool(0).exchange(images, Random()) is images
    pool = ImagePool(1)
    assert not pool.exchange(images, Random()).requires_grad
    with torch.no_grad():
        images.mul_(2)
    assert float(pool.images[0]) == 1  # its own copy


def test_draws_follow_from_seed_and_epoch() -> None:
    def draws(seed: int, epoch: int) -> float:
        method = CycleGan(stated(seed=seed))
        method.start_epoch(epoch)
        return method.draws.random()

    assert draws(0, 2) == draws(0, 2)
    assert len({draws(0, 1), draws(0, 2), draws(1, 1)}) == 3


def test_identity_needs_equal_channels() -> None:
    with pytest.raises(UserError, match=r"network.identity_weight: found 0.5, expected 0: an input of 1 channels"):
        CycleGan(settings("cycle_gan", NETWORK, (32, 32), channels=(1, 3)))
    method = CycleGan(settings("cycle_gan", NETWORK | {"identity_weight": 0.0}, (32, 32), channels=(1, 3)))
    one, three = (Image(torch.randn(2, channels, 32, 32)) for channels in (1, 3))
    step = Step(method, Batch(one, three, Affine(torch.eye(3).expand(2, 3, 3))))
    assert {name.split("_")[0] for name in step.log} == {"adversarial", "cycle", "discriminator", "loss"}
