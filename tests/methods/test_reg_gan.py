"""RegGAN against the reference's numbers, its resume, its predictions, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    double,
    fill,
    fixed_batch,
    load_state,
    picture,
    record,
    records,
    settings,
    single,
)
from equisynth.description import FORMAT, Description, write_description
from equisynth.errors import UserError
from equisynth.geometry.warping import displaced, sample
from equisynth.inference import translate_volume
from equisynth.methods.base import SELECTION, Batch, Method, build_method
from equisynth.methods.reg_gan import RegGan, smoothness
from equisynth.model import WEIGHTS, load_model, network_states, save_weights
from equisynth.networks.field_network import ARCHITECTURES, FieldArchitecture
from equisynth.training import Trainer
from golden_data import Golden
from method_golden import batch_of
from networks.test_baseline_networks import generator_tensors, set_constants
from test_training import assert_same_end

STATES = {"i2i": "generator", "discriminator": "discriminator", "registration": "reg"}
SMALL = {"generator_width": 4, "discriminator_width": 4, "blocks": 2, "registration_architecture": "S"}


def field_architecture(state: Golden) -> FieldArchitecture:
    """Of a recorded registration network: the recorded ones are small."""

    def widths(part: str) -> list[int]:
        levels = [int(key.split("_")[2].split(".")[0]) for key in state.keys() if key.startswith(f"offset_map.{part}_")]
        inner = ".conv_0" if part == "down" else ""
        return [len(state[f"offset_map.{part}_{level}{inner}.conv2d.bias"]) for level in sorted(set(levels))]

    blocks = sum(key.startswith("offset_map.t.") and key.endswith("conv_block.1.bias") for key in state.keys())
    return FieldArchitecture(tuple(widths("down")), tuple(reversed(widths("up"))), blocks)


def recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Method, Golden, list[Batch]]:
    """A method in a recorded state, and the two batches of its training."""
    golden = record(name)
    config = golden.json("config_json")
    model, training = config["model"], config["training"]
    monkeypatch.setitem(ARCHITECTURES, "S", field_architecture(golden / "state_reg"))
    network = {
        "similarity_weight": model["Corr_lamda"], "adversarial_weight": model["Adv_lamda"],
        "smoothness_weight": model["Smooth_lamda"], "blocks": model["n_blocks"], "registration_architecture": "S",
        "final_activation": model["final_activation"], "use_masking": model.get("use_masking"),
        "generator_width": len(golden["state_generator/model.1.bias"]),
        "discriminator_width": len(golden["state_discriminator/model.1.bias"]),
    }  # fmt: skip
    fills = {key: training.get(key) for key in training if key.endswith("background_value")}
    chosen = settings(
        "reg_gan", network, model["size"], (model["input_nc"], model["output_nc"]), batch_size=1,
        learning_rate={"generator": training["learning_rate"]}, **fills,
        augment_with_random_transformation=training.get("augment_using_the_random_transformations", False),
    )  # fmt: skip
    method = build_method(chosen)
    for ours, theirs in STATES.items():
        load_state(method.networks[ours], golden / f"state_{theirs}")
    voxel_size = config["data_loader"]["voxel_size"]
    return method, golden, [double(batch_of(golden / f"batch{step}", voxel_size)) for step in range(2)]


@pytest.mark.parametrize("name", records("reggan"))
def test_first_pass_and_its_power_iterations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, golden, (batch, _) = recorded(name, monkeypatch)
    method.train()
    assert isinstance(method, RegGan)
    done = method.registered(batch)
    forward = golden / "forward"
    forward.check("prediction", done.output)
    forward.check("flow", done.flow)
    forward.check("warped_prediction", done.moved)
    forward.check("smoothing_loss", smoothness(done.flow))
    logits = method.networks["discriminator"](done.output)
    for head, key in zip(logits, ("local_logits", "global_logits", "cam_logit"), strict=True):
        forward.check(f"discriminator_{key}", head)
    for network in ("i2i", "discriminator"):
        buffers = golden / "spectral_norm_buffers_after_one_train_forward" / STATES[network]
        ours = [buffer for key, buffer in method.networks[network].named_buffers() if key[-8:-1] == "weight_"]
        for key, buffer in zip(list(buffers.keys()), ours, strict=True):
            buffers.check(key, buffer)


@pytest.mark.parametrize("name", records("reggan"))
def test_two_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, golden, batches = recorded(name, monkeypatch)
    method.train()
    logs = [losses(method, Step(method, batch).log) for batch in batches]
    for key in logs[0]:
        golden.check(f"loss/{key}", [log[key] for log in logs])
    for ours, theirs in STATES.items():
        check_tensors(golden / "weights_after_2_steps" / theirs, method.networks[ours].parameters())
    # The record's validation is in training mode, which advances the power iterations; ours is not.
    method.train(False)
    before = network_states(method.networks)
    first, again = (validated(method, batches[0]) for _ in range(2))
    assert first == again
    assert all(torch.equal(value, before[key]) for key, value in network_states(method.networks).items())
    method.train()
    golden.check("validation_loss/sim", [validated(method, batches[0])])


STATED = {
    True: [
        [19.557991, 0.114243, 2.712876, 2.869331, 0.953930],
        [19.074335, 0.115085, 2.736787, 2.827131, 0.933758],
    ],
    False: [
        [20.814780, 0.114243, 2.656102, 2.863207, 1.015989],
        [20.315315, 0.115879, 2.630531, 2.827634, 0.994260],
    ],
}
"""Masked or not -> per epoch the losses in the order of `losses`, and the measure of validation."""


@pytest.mark.parametrize("masked", STATED, ids=["masked", "unmasked"])
def test_two_epochs_with_ruled_weights(masked: bool) -> None:
    """The stated trainings never leave the training mode, whose validation advances the power iterations."""
    network = SMALL | {"registration_architecture": "B", "use_masking": masked}
    method = build_method(settings("reg_gan", network, (128, 128), batch_size=1, learning_rate={"generator": 1e-4}))
    for network in method.networks.values():
        network.double()
    fill(generator_tensors(method.networks["i2i"]))
    fill(discriminator_tensors(method.networks["discriminator"]))
    fill(method.networks["registration"].parameters(), 0.1)
    for name in ("i2i", "discriminator"):
        set_constants(method.networks[name])
    batch = fixed_batch(1, (128, 128))
    method.train()
    for expected in STATED[masked]:
        log = losses(method, Step(method, batch).log)
        assert [*log.values(), validated(method, batch)] == pytest.approx(expected, rel=1e-5)


def test_warp_reads_at_rows_and_columns_in_pixels() -> None:
    image, flow = picture((1, 1, 6, 7)).double(), 2 * picture((1, 2, 6, 7), second=True).double()
    border, zeros = (sample(image, displaced(flow), padding=padding) for padding in ("border", "zeros"))
    found = [border.sum(), border.abs().sum(), border[0, 0, 0, 0], border[0, 0, -1, -1], zeros.sum(), zeros.abs().sum()]
    expected = [-5.511269, 16.696886, -0.994054, -0.694747, 0.114006, 9.844142]
    assert [float(value) for value in found] == pytest.approx(expected, abs=2e-6)


def test_resume_to_the_last_bit(tmp_path: Path) -> None:
    undisturbed = trainer(tmp_path / "a")
    undisturbed.fit()
    trainer(tmp_path / "b", epochs=1).fit()
    resumed = trainer(tmp_path / "b")
    assert resumed.state.epoch == 1
    resumed.fit()
    assert any(name.endswith("weight_u") for name in resumed.weights_of(2))
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_prediction_of_slices_advances_nothing_and_knows_no_batch(tmp_path: Path) -> None:
    """As the generator in evaluation mode gives it for each slice by itself."""
    chosen = small_settings(slices=True, inference_stride=(64, 64, 1))
    method = build_method(chosen)
    save_weights(tmp_path / WEIGHTS, network_states(method.networks))
    write_description(tmp_path, Description(format=FORMAT, settings=chosen, preparation={}, best_epoch=1, selection=0))
    model = load_model(tmp_path, "cpu")
    volume = np.random.RandomState(0).randn(64, 64, 3).astype(np.float32)
    found, again = (translate_volume(model.predict, volume, None, model.description) for _ in range(2))
    np.testing.assert_array_equal(found, again)
    method.train(False)
    with torch.no_grad():
        slices = [method.networks["i2i"](torch.from_numpy(volume[None, None, ..., k])) for k in range(3)]
    np.testing.assert_allclose(found, torch.stack(slices, dim=-1)[0, 0].numpy(), atol=1e-5)
    with pytest.raises(UserError, match=r"tiles of \(64, 64\) pixels .* only, found \(64, 60\)"):
        model.predict(torch.zeros(1, 1, 64, 60, 1))


def test_half_precision_trains() -> None:
    """Spectral norms and their vectors among it."""
    method, batch = build_method(small_settings()), single(fixed_batch(1, (64, 64)))
    method.train()
    with torch.autocast("cpu", torch.bfloat16):
        log = Step(method, batch).log
    assert all(map(math.isfinite, log.values()))
    state = network_states(method.networks)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batch_size": 2}, "batch_size: found 2, expected 1"),
        ({"patch_size": (64, 66)}, "patch_size: found .*64, 66.*multiples of 4"),
        ({"patch_size": (64, 60)}, "patch_size: found .*64, 60.*at least 64"),
        ({"network": SMALL | {"registration_architecture": "B"}}, "registration_architecture: found 'B'.*[(]S[)]"),
        ({"network": SMALL | {"registration_architecture": "C"}}, "registration_architecture: found 'C'"),
        ({"network": SMALL | {"smoothness": 1}}, "network.smoothness: .*known: .*smoothness_weight"),
        ({"network": SMALL | {"similarity_weight": -1.0}}, "network.similarity_weight: found -1.0"),
        ({"n_dims": 3, "patch_size": (64, 64, 64), "batch_size": 1}, "slices: found false, expected true"),
    ],
    ids=["batch", "divisible", "small", "architecture", "unknown architecture", "unknown key", "negative", "volumes"],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        build_method(small_settings(**changes))
    assert "\n" not in str(caught.value)


def test_published_shape() -> None:
    chosen = small_settings(slices=True, network={"registration_architecture": "S", "use_masking": False, "blocks": 8})
    assert RegGan.published_network(chosen) == {
        "Corr_lamda": 20.0, "Adv_lamda": 1.0, "Smooth_lamda": 10.0, "reg_architecture_config": "S", "n_blocks": 8,
        "final_activation": "linear", "use_masking": False, "input_nc": 1, "output_nc": 1, "size": [64, 64],
        "squeeze_dim": 2,
    }  # fmt: skip
    assert "use_masking" not in RegGan.published_network(small_settings())


def losses(method: Method, log: dict[str, float]) -> dict[str, float]:
    """By the names of the reference, which logs them weighted."""
    assert isinstance(method, RegGan)
    weights = method.chosen
    return {
        "similarity": weights.similarity_weight * log["similarity"],
        "smoothness": weights.smoothness_weight * log["smoothness"],
        "generator_gan": weights.adversarial_weight * log["adversarial"],
        "discriminator_gan": weights.adversarial_weight * (log["discriminator_real"] + log["discriminator_fake"]),
    }


@torch.no_grad()
def validated(method: Method, batch: Batch) -> float:
    return float(method.validation(batch)[SELECTION])


def discriminator_tensors(network: nn.Module) -> list[Tensor]:
    """In the order in which the rule numbers them."""

    def spectral(part: nn.Module) -> Iterator[Tensor]:
        for layer in part.children():
            if isinstance(layer, nn.Conv2d):
                yield from (layer.weight_orig, layer.bias)

    return [
        *spectral(network.encoder), network.attention.classifier.weight_orig, *network.attention.mix.parameters(),
        *spectral(network.shared), *spectral(network.local), network.local_head.weight_orig,
        *spectral(network.coarse), network.global_head.weight_orig,
    ]  # fmt: skip


def small_settings(slices: bool = False, **changes: Any) -> Any:
    shape = {"n_dims": 3, "patch_size": (64, 64, 1)} if slices else {"patch_size": (64, 64)}
    fields = {"method": "reg_gan", "batch_size": 1, "features": {}, "network": SMALL, "slices": slices}
    return small_trainings.settings(**fields | shape | changes)


def trainer(folder: Path, epochs: int = 2) -> Trainer:
    chosen = small_settings(slices=True, epochs=epochs, augment_with_random_transformation=True)
    samples = small_trainings.Pairs(chosen, 2), small_trainings.Pairs(chosen, 1)
    return Trainer(build_method(chosen), chosen, *samples, folder, precision="no")
