"""Pix2pix: recorded and stated trainings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

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
from equisynth.methods.pix2pix import Pix2Pix

NETWORK = {
    "generator": "resnet_3blocks", "generator_width": 4, "discriminator_width": 4, "gan_loss": "vanilla",
    "decay_share": 1 / 3, "l1_weight": 100.0,
}  # fmt: skip
LOSSES = {
    "loss_G": "loss", "loss_G_GAN": "adversarial", "loss_G_L1": "l1", "loss_D": "discriminator",
    "loss_D_real": "discriminator_real", "loss_D_fake": "discriminator_fake",
}  # fmt: skip
"""Recorded names of losses -> ours."""


def stated(**changes: Any) -> Settings:
    network = NETWORK | {key: changes.pop(key) for key in list(changes) if key in Pix2Pix.Options.model_fields}
    return settings("pix2pix", network, (32, 32), **changes)


@pytest.mark.parametrize("name", records("pix2pix"))
def test_recorded_training(name: str) -> None:
    golden = record(name)
    batch = recorded_batch(golden / "batch0")
    size = batch.input.values.shape[2:]
    method = Pix2Pix(gan_settings("pix2pix", golden.json("options_json"), {"lambda_L1": "l1_weight"}, size))
    networks = {"netG": method.networks["i2i"], "netD": method.networks["discriminator"]}
    for theirs, network in networks.items():
        load_state(network, golden / f"state_{theirs}")
    method.train()
    method.start_epoch(1)
    steps = sorted(part for part in golden.children() if part.startswith("step"))
    assert steps
    mask = batch.input.comparison_mask(batch.label) if method.chosen.masked else 1
    for number, step in enumerate(steps):
        own = f"batch{number}"
        if own in golden.children():
            batch = recorded_batch(golden / own)
        with torch.no_grad():
            (golden / step).check("fake_B", networks["netG"](batch.input.values * mask) * mask)
        done = Step(method, batch)
        done.log["discriminator"] = (done.log["discriminator_real"] + done.log["discriminator_fake"]) / 2
        for key in (golden / step).keys():
            if key.startswith("loss_"):
                (golden / step).check(key, done.log[LOSSES[key]])
        if number == 0:
            check_tensors(golden / "gradient_step0" / "netG", done.gradients["i2i"])
            check_tensors(golden / "gradient_step0" / "netD", done.gradients["discriminator"])
    for theirs, network in networks.items():
        check_tensors(golden / "weights_after_2_steps" / theirs, network.parameters())


@pytest.mark.parametrize(
    ("changes", "losses", "selection"),
    [
        pytest.param(
            {},
            {
                "adversarial": [1.876191, 1.644932, 1.450845],
                "l1": [75.181389, 63.802624, 57.254494],
                "discriminator_real": [1.836306, 1.014567, 0.557836],
                "discriminator_fake": [0.224817, 0.282487, 0.356948],
            },
            [0.658447, 0.604562, 0.582782],
            id="masked",
        ),
        pytest.param(
            {
                "use_masking": False,
                "augment_with_random_transformation": True,
                "augmentation_input_background_value": -0.5,
                "augmentation_label_background_value": -0.25,
            },
            {
                "adversarial": [2.130617, 1.449471, 1.179214],
                "l1": [85.181877, 72.230843, 64.995667],
                "discriminator_real": [1.409037, 0.711052, 0.376601],
                "discriminator_fake": [0.216363, 0.461663, 0.486417],
            },
            [0.722308, 0.649957, 0.613067],
            id="augmented",
        ),
    ],
)
def test_stated_training(changes: dict[str, object], losses: dict[str, list[float]], selection: list[float]) -> None:
    check_epochs(filled(Pix2Pix(stated(**changes))), single(fixed_batch(2, (32, 32))), losses, selection)
