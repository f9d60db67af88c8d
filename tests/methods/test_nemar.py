"""NEMAR against the reference's numbers, its resume, its predictions, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import small_trainings
from baseline_golden import (
    Step,
    check_tensors,
    fill,
    fixed_batch,
    gan_settings,
    load_state,
    picture,
    record,
    recorded_batch,
    records,
    settings,
    single,
)
from equisynth.config import Settings
from equisynth.description import FORMAT, Description, write_description
from equisynth.errors import UserError
from equisynth.inference import translate_volume
from equisynth.methods.base import SELECTION, Batch, build_method
from equisynth.methods.nemar import Nemar, move, roughness
from equisynth.model import WEIGHTS, load_model, network_states, save_weights
from equisynth.networks.field_network import ARCHITECTURES, AffineNetwork, FieldNetwork
from equisynth.training import Trainer
from golden_data import Golden
from methods.test_reg_gan import field_architecture
from test_training import assert_same_end

STATES = {"i2i": "netT", "registration": "netR", "discriminator": "netD"}
OPTIONS = {
    "lambda_GAN": "adversarial_weight", "lambda_recon": "reconstruction_weight", "lambda_smooth": "smoothness_weight",
    "stn_type": "transformer", "stn_multires_reg": "regulariser_levels", "stn_bilateral_alpha": "bilateral_alpha",
}  # fmt: skip
"""Published names of options -> ours."""
LOSSES = {
    "loss_L1_TR": "l1_of_moved", "loss_L1_RT": "l1_moved", "loss_GAN_TR": "adversarial_of_moved",
    "loss_GAN_RT": "adversarial_moved", "loss_D_real": "discriminator_real", "loss_smoothness": "smoothness",
    "loss_D_fake_TR": "discriminator_of_moved", "loss_D_fake_RT": "discriminator_moved", "loss_D": "discriminator",
}  # fmt: skip
"""Recorded names of losses -> ours."""
RECORDED_BACKGROUND = -1.5
SMALL = {"generator": "resnet_3blocks", "generator_width": 4, "discriminator_width": 4, "transformer_architecture": "S"}


def recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Nemar, Golden, list[Batch]]:
    """A method in a recorded state, and the batches of its training."""
    golden = record(name)
    options = golden.json("options_json")
    if options["stn_type"] == "unet":
        monkeypatch.setitem(ARCHITECTURES, "S", field_architecture(golden / "state_netR"))
    size = (options["img_height"], options["img_width"])
    chosen = gan_settings("nemar", options, OPTIONS, size)
    network = chosen.network | {
        "transformer_architecture": "S", "identity_initialisation": not options["stn_no_identity_init"],
    }  # fmt: skip
    fill = {"augmentation_label_background_value": RECORDED_BACKGROUND}
    method = build_method(chosen.model_copy(update={"network": network, **fill}))
    assert isinstance(method, Nemar)
    for ours, theirs in STATES.items():
        load_state(method.networks[ours], golden / f"state_{theirs}")
    method.train()
    method.start_epoch(1)
    parts = sorted(part for part in golden.children() if part.startswith("batch"))
    return method, golden, [recorded_batch(golden / part) for part in parts]


@pytest.mark.parametrize("name", records("nemar"))
def test_recorded_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, golden, batches = recorded(name, monkeypatch)
    for number, batch in enumerate(batches):
        step = golden / f"step{number}"
        with torch.no_grad():
            done = method.orders(batch)
        found = {
            "fake_B": done.output, "registered_real_A": done.moved_input, "fake_TR_B": done.of_moved,
            "fake_RT_B": done.moved, "stn_reg_term": done.penalty,
        }  # fmt: skip
        for key, value in found.items():
            if key in step:
                step.check(key, value)
        trained = Step(method, batch)
        judged = [value for key, value in trained.log.items() if key.startswith("discriminator_")]
        assert len(judged) == 3
        trained.log["discriminator"] = method.chosen.adversarial_weight * sum(judged) / 2
        for key in step.keys():
            if key.startswith("loss_"):
                step.check(key, trained.log[LOSSES[key]])
        if number == 0:
            for ours, theirs in STATES.items():
                check_tensors(golden / "gradient_step0" / theirs, trained.gradients[ours])
    for ours, theirs in STATES.items():
        check_tensors(golden / "weights_after_2_steps" / theirs, method.networks[ours].parameters())
    with torch.no_grad():
        golden.check("translate_and_deform", method.translated_and_moved(batches[-1]))


def pair(shape: tuple[int, ...]) -> Tensor:
    return torch.cat([picture(shape), picture(shape, second=True)], dim=1).double()


def check_picture(found: Tensor, total: float, absolute: float) -> None:
    """Stated sums; first and last pixels are beyond the border."""
    assert [float(found.sum()), float(found.abs().sum())] == pytest.approx([total, absolute], rel=1e-6)
    assert found.flatten()[0] == found.flatten()[-1] == 0


def test_displacement_and_its_roughness() -> None:
    network = FieldNetwork(2, ARCHITECTURES["B"]).double()
    fill(network.parameters(), 0.1)
    image = picture((1, 1, 128, 192)).double()
    with torch.no_grad():
        field = network(pair((1, 1, 128, 192)))
    moved = move(image, field)
    check_picture(moved, 490.215939, 6998.321556)
    assert float(roughness(field, moved)) == pytest.approx(0.242918, abs=1e-6)
    assert float(roughness(field, moved, levels=2, alpha=0.5)) == pytest.approx(0.266243, abs=1e-6)


def test_affine_difference() -> None:
    network = AffineNetwork(2, (64, 64)).double()
    fill(network.parameters(), 0.1)
    with torch.no_grad():
        difference = network(pair((1, 1, 64, 64)))
    check_picture(move(picture((1, 1, 64, 64)).double(), difference), 63.179623, 1085.501283)
    assert float(difference.abs().mean()) == pytest.approx(0.117810, abs=1e-6)


def test_no_displacement_darkens_the_border_but_no_affine_difference_does_not() -> None:
    """As published: grid and sampler disagree about where the border is."""
    ones = torch.ones(1, 1, 8, 8)
    moved = move(ones, torch.zeros(1, 2, 8, 8))
    assert moved[0, 0, 0, 0] == pytest.approx(0.25)
    assert moved[0, 0, 0, 4] == pytest.approx(0.5)
    torch.testing.assert_close(moved[..., 1:-1, 1:-1], ones[..., 1:-1, 1:-1])
    torch.testing.assert_close(move(ones, torch.zeros(1, 2, 3)), ones)


def test_displacements_are_x_before_y() -> None:
    image = torch.arange(64.0).view(1, 1, 8, 8)
    field = torch.zeros(1, 2, 8, 8)
    field[:, 0] = 2 / 8  # a column
    centre = (..., slice(2, 6), slice(2, 6))
    still = move(image, torch.zeros_like(field))
    torch.testing.assert_close((move(image, field) - still)[centre], torch.ones(1, 1, 4, 4))
    torch.testing.assert_close((move(image, field.flip(1)) - still)[centre], torch.full((1, 1, 4, 4), 8.0))


def test_stated_training() -> None:
    """Exact up to the first update and, of the second epoch, for what depends on D's alone.

    The rest only roughly: a relative change of the weights by 1e-7 moves the second epoch's losses by 4 %, since the
    gradient through a warp of noise jumps wherever a position crosses a pixel. The recorded training is exact.
    """
    network = SMALL | {"transformer_architecture": "B", "decay_share": 1 / 3, "use_masking": False}
    chosen = settings(
        "nemar", network, (128, 128), batch_size=1, learning_rate={"generator": 2e-4},
        augmentation_label_background_value=-0.25,
    )  # fmt: skip
    method, batch = build_method(chosen), fixed_batch(1, (128, 128))
    for name, part in method.networks.items():
        fill(part.double().parameters(), 0.1 if name == "registration" else 0.4)
    logs, measures = [], []
    for epoch in (1, 2):
        method.start_epoch(epoch)
        logs.append(Step(method, batch).log)
        with torch.no_grad():
            measures.append(float(method.validation(batch)[SELECTION]))
    stated = {
        "loss_L1_TR": (91.560997, 91.013351), "loss_GAN_TR": (6.222087, 6.747286),
        "loss_L1_RT": (72.689308, 70.812057), "loss_GAN_RT": (7.044765, 6.384836),
        "loss_D_real": (7.247326, 7.012259), "loss_D_fake_TR": (3.454118, 3.981834),
        "loss_D_fake_RT": (4.111182, 3.503748),
    }  # fmt: skip
    for name, (first, second) in stated.items():
        assert logs[0][LOSSES[name]] == pytest.approx(first, rel=1e-5), name
        tolerance = 1e-5 if name == "loss_D_real" else 0.05
        assert logs[1][LOSSES[name]] == pytest.approx(second, rel=tolerance), name
    assert measures[0] == pytest.approx(0.708588, rel=1e-3)
    assert measures[1] == pytest.approx(0.702532, rel=1e-2)


@pytest.mark.parametrize("transformer", ["unet", "affine"])
def test_resume_to_the_last_bit(tmp_path: Path, transformer: str) -> None:
    class Killed(Exception):
        pass

    def kill(values: dict[str, float], seconds: float) -> None:
        raise Killed

    chosen = small_settings(slices=True, transformer=transformer, augment_with_random_transformation=True)
    trainer(tmp_path / "a", chosen).fit()
    with pytest.raises(Killed):
        trainer(tmp_path / "b", chosen).fit(kill)
    resumed = trainer(tmp_path / "b", chosen)
    assert resumed.state.epoch == 1
    resumed.fit()
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_prediction_of_slices_is_the_generator_alone(tmp_path: Path) -> None:
    """As it is for each slice by itself, without registration."""
    chosen = small_settings(slices=True, inference_stride=(32, 36, 1))
    method = build_method(chosen)
    save_weights(tmp_path / WEIGHTS, network_states(method.networks))
    write_description(tmp_path, Description(format=FORMAT, settings=chosen, preparation={}, best_epoch=1, selection=0))
    model = load_model(tmp_path, "cpu")
    volume = np.random.RandomState(0).randn(32, 36, 3).astype(np.float32)
    found = translate_volume(model.predict, volume, None, model.description)
    with torch.no_grad():
        expected = method.networks["i2i"](torch.from_numpy(volume).movedim(-1, 0)[:, None])[:, 0].movedim(0, -1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_validation_sees_the_background_where_registration_moves_nothing_in() -> None:
    """And masks, unless told otherwise."""
    batch = single(fixed_batch(2, (32, 36)))
    for use_masking, area in ((None, 29 * 32), (False, 32 * 36)):
        method = build_method(small_settings(use_masking=use_masking, augmentation_label_background_value=1e4))
        assert isinstance(method, Nemar)
        with torch.no_grad():
            nn.init.constant_(method.networks["registration"].output.bias, 5.0)  # far beyond the border
            assert (method.translated_and_moved(batch) == 1e4).all()
            found = float(method.validation(batch)[SELECTION])
        assert found == pytest.approx(1e4 * area / (32 * 36), rel=1e-3)


def test_discriminator_gets_no_gradient_from_the_generators() -> None:
    method = build_method(small_settings())
    updates = method.updates(single(fixed_batch(2, (32, 36))))
    first, second = next(updates), next(updates)
    assert (first.optimiser, second.optimiser) == ("discriminator", "generator")
    second.loss.backward()
    assert all(parameter.grad is None for parameter in method.networks["discriminator"].parameters())
    assert all(parameter.grad is not None for parameter in method.networks["registration"].parameters())
    assert all(parameter.requires_grad for parameter in method.networks["discriminator"].parameters())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"augmentation_label_background_value": None}, "augmentation_label_background_value: missing; add it"),
        ({"transformer_architecture": "A", "patch_size": (256, 192)}, "transformer_architecture: found 'A'.*B, S"),
        ({"transformer_architecture": "B"}, "transformer_architecture: found 'B', expected .*[(]S[)]: patch_size"),
        ({"patch_size": (28, 28)}, "transformer_architecture: found 'S', expected .*at least 32"),
        ({"patch_size": (28, 28), "transformer": "affine"}, "transformer: found 'affine', expected 'unet', or sides"),
        ({"initialisation": "xavier"}, "initialisation: found 'xavier', expected normal or kaiming"),
        ({"bilateral_alpha": -1.0}, "network.bilateral_alpha: found -1.0"),
        ({"regulariser_levels": 0}, "network.regulariser_levels: found 0"),
        ({"regulariser_levels": 6}, "regulariser_levels: found 6, expected at most 5"),
        ({"network": SMALL | {"lambda_GAN": 1.0}}, "network.lambda_GAN: .*is called adversarial_weight"),
        ({"n_dims": 3, "patch_size": (32, 32, 32)}, "slices: found false, expected true"),
    ],
)
def test_what_does_not_fit_is_one_line(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        build_method(small_settings(**changes))
    assert "\n" not in str(caught.value)


def test_published_shape() -> None:
    found = Nemar.published_network(small_settings(slices=True, use_masking=False))
    own = {
        "lambda_GAN": 1.0, "lambda_recon": 100.0, "lambda_smooth": 200.0, "stn_type": "unet", "stn_cfg": "S",
        "stn_no_identity_init": False, "stn_multires_reg": 1, "stn_bilateral_alpha": 0.0, "img_height": 32,
        "img_width": 36,
    }  # fmt: skip
    assert {key: found.get(key) for key in own} == own
    assert set(found).isdisjoint({"identity_initialisation", "transformer", "decay_share"})
    assert (found["netG"], found["squeeze_dim"], found["use_masking"]) == ("resnet_3blocks", 2, False)


def small_settings(slices: bool = False, **changes: Any) -> Settings:
    """Of a small training; options of the method among the changes."""
    known = Nemar.Options.model_fields
    network = SMALL | {key: changes.pop(key) for key in list(changes) if key in known}
    shape = {"n_dims": 3, "patch_size": (32, 36, 1)} if slices else {"patch_size": (32, 36)}
    fields = {"method": "nemar", "batch_size": 2, "features": {}, "network": network, "slices": slices,
              "augmentation_label_background_value": -0.5}  # fmt: skip
    return small_trainings.settings(**fields | shape | changes)


def trainer(folder: Path, chosen: Settings) -> Trainer:
    samples = small_trainings.Pairs(chosen, 4), small_trainings.Pairs(chosen, 3)
    return Trainer(build_method(chosen), chosen, *samples, folder)
