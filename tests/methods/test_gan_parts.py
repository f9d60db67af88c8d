"""What pix2pix, CycleGAN and NEMAR share: options, schedule, losses, masks and fills, work on slices, resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import small_trainings
from baseline_golden import fixed_batch, gan_settings, record, records
from equisynth.config import Settings
from equisynth.description import FORMAT, Description, write_description
from equisynth.errors import UserError
from equisynth.inference import translate_volume
from equisynth.methods import gan_parts
from equisynth.methods.base import SELECTION, build_method, method_class
from equisynth.model import WEIGHTS, load_model, network_states, save_weights
from equisynth.processes import Processes
from equisynth.training import STATE, Trainer, to_batch

SMALL = {
    "generator": "resnet_3blocks", "generator_width": 4, "discriminator_width": 4, "discriminator": "n_layers",
    "discriminator_layers": 1,
}  # fmt: skip
"""Networks for patches of 16 pixels."""
METHODS = ("pix2pix", "cycle_gan")
SLICES: dict[str, Any] = {"n_dims": 3, "slices": True, "patch_size": (16, 12, 1)}


def settings(method: str, **changes: Any) -> Settings:
    """Of a small training; options of the method among the changes."""
    known = method_class(method).Options.model_fields
    network = SMALL | {key: value for key, value in changes.items() if key in known}
    others = {key: value for key, value in changes.items() if key not in known}
    return small_trainings.settings(**{"method": method, "network": network, "features": {}} | others)


def trainer(folder: Path, chosen: Settings, processes: Processes | None = None) -> Trainer:
    patches = small_trainings.Pairs(chosen, 8), small_trainings.Pairs(chosen, 5)
    return Trainer(build_method(chosen), chosen, *patches, folder, processes=processes)


@pytest.mark.parametrize("name", records("pix2pix") + records("cyclegan") + records("nemar"))
def test_recorded_schedule(name: str) -> None:
    golden, factors = record(name), record(name)["learning_rate_by_epoch"]
    chosen = gan_settings("pix2pix", golden.json("options_json"), {}, (128, 128))
    share = chosen.network["decay_share"]
    golden.check(
        "learning_rate_by_epoch",
        [gan_parts.learning_rate(chosen, share, epoch) for epoch in range(1, len(factors) + 1)],
    )


@pytest.mark.parametrize("method", METHODS)
def test_all_optimisers_follow_the_schedule(method: str) -> None:
    """As published: fifteen epochs, then fifteen in which the rate falls."""
    made = build_method(settings(method, epochs=30, learning_rate={"generator": 16.0}))
    rates = []
    for epoch in range(1, 31):
        made.start_epoch(epoch)
        rates.append({group["lr"] for optimiser in made.optimisers.values() for group in optimiser.param_groups})
    assert rates == [{16.0}] * 15 + [{float(rate)} for rate in range(15, 0, -1)]


def test_losses_of_all_kinds() -> None:
    logits = torch.tensor([[-1.0, 2.0]])
    found = {
        kind: [float(gan_parts.adversarial(logits, real, kind)) for real in (True, False)]
        for kind in ("lsgan", "vanilla", "wgangp")
    }
    log = np.log1p(np.exp([1.0, -2.0, -1.0, 2.0]))
    assert found["lsgan"] == pytest.approx([2.5, 2.5])
    assert found["vanilla"] == pytest.approx([log[:2].mean(), log[2:].mean()])
    assert found["wgangp"] == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize("initialisation", ["normal", "xavier", "kaiming", "orthogonal"])
@pytest.mark.parametrize("generator", ["resnet_3blocks", "unet_128"])
def test_networks_start_as_the_options_say(generator: str, initialisation: str) -> None:
    chosen = settings("pix2pix", generator=generator, initialisation=initialisation, patch_size=(16, 128), norm="batch")
    with torch.device("meta"):  # as models are loaded
        assert method_class("pix2pix").predictor(chosen)
    network = build_method(chosen).networks["i2i"]
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    assert all(layer.bias is None or not layer.bias.any() for layer in convolutions)
    weights = torch.cat([layer.weight.flatten() for layer in convolutions])
    if initialisation == "normal":
        assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.05)
    scales = torch.cat([layer.weight for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)])
    assert float(scales.detach().mean()) == pytest.approx(1, abs=0.02)
    assert 0.005 < float(scales.detach().std()) < 0.05


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"network": {"width": 64}}, "network.width: found 64, no such key here; known: "),
    "published key": (
        {"network": {"ngf": 64}},
        "network.ngf: found 64, this is its published name; here it is called generator_width",
    ),
    "unknown generator": ({"generator": "resnet_7blocks"}, "network.generator: found 'resnet_7blocks', "),
    "another decay": ({"decay_policy": "cosine"}, "network.decay_policy: found 'cosine', expected 'linear'"),
    "share": ({"decay_share": 1.5}, "network.decay_share: found 1.5, "),
    "odd patch": ({"patch_size": (16, 18)}, "network.generator: found 'resnet_3blocks', expected a unet, or sides"),
    "small patch for a U-Net": (
        {"generator": "unet_128", "patch_size": (64, 64)},
        "network.generator: found 'unet_128', expected a side above 64: patch_size is [64, 64]",
    ),
    "small patch for D": (
        {"discriminator": "basic"},
        "network.discriminator: found 'basic', expected sides of at least 24: patch_size is [16, 16]",
    ),
    "volumes": ({"n_dims": 3, "patch_size": (16, 16, 16)}, "slices: found false, expected true"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("method", METHODS)
def test_wrong_options_are_told_in_one_line(method: str, case: str) -> None:
    changes, message = WRONG[case]
    with pytest.raises(UserError) as caught:
        build_method(settings(method, **changes))
    assert str(caught.value).startswith(f"params.yaml: test: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_published_shape(method: str) -> None:
    chosen = settings(method, **SLICES, epochs=30, use_masking=False, dropout=True)
    found = method_class(method).published_network(chosen)
    cycles = {"lambda_A": 10.0, "lambda_B": 10.0, "lambda_identity": 0.0}
    assert found == {
        "input_nc": 1, "output_nc": 1, "ngf": 4, "ndf": 4, "netD": "n_layers", "n_layers_D": 1,
        "netG": "resnet_3blocks", "norm": "instance", "init_type": "normal", "init_gain": 0.02, "no_dropout": False,
        "beta1": 0.5, "lr": 0.001, "gan_mode": "lsgan", "pool_size": 0, "lr_policy": "linear", "n_epochs": 15,
        "n_epochs_decay": 15, "squeeze_dim": 2, "final_activation": "linear", "use_masking": False,
    } | ({"lambda_L1": 100.0} if method == "pix2pix" else cycles)  # fmt: skip
    on_pictures = method_class(method).published_network(settings(method))
    assert on_pictures is not None
    assert not {"use_masking", "squeeze_dim"} & set(on_pictures)


@pytest.mark.parametrize("method", METHODS)
def test_resumed_training_equals_an_undisturbed_one_to_the_last_bit(tmp_path: Path, method: str) -> None:
    """With a pool that is full when the training is killed, and dropout."""
    chosen = settings(method, epochs=3, dropout=True, pool_size=3)

    class Killed(Exception):
        pass

    def kill(values: dict[str, float], seconds: float) -> None:
        if values["epoch"] == 2:
            raise Killed

    trainer(tmp_path / "a", chosen).fit()
    with pytest.raises(Killed):
        trainer(tmp_path / "b", chosen).fit(kill)
    torch.rand(3)
    resumed = trainer(tmp_path / "b", chosen)
    assert resumed.state.epoch == 2
    resumed.fit()
    for path in (tmp_path / "a").glob("epoch_*"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    one, other = (torch.load(tmp_path / folder / STATE, weights_only=True) for folder in "ab")
    torch.testing.assert_close(other, one, rtol=0, atol=0)
    assert bool(one["memory"]) == (method == "cycle_gan")


def test_several_processes_cannot_share_a_pool(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test: found 2 processes, expected one: .*'cycle_gan' remembers .* pool of"):
        trainer(tmp_path, settings("cycle_gan", pool_size=3), Processes(0, 2))
    trainer(tmp_path, settings("cycle_gan"), Processes())


@pytest.mark.parametrize("method", METHODS)
def test_validation_is_masked_and_repeatable(method: str) -> None:
    """Dropout is off, and what neither mask calls valid does not count."""
    measured = {}
    for masked in (True, False):
        made = build_method(settings(method, patch_size=(32, 32), dropout=True, use_masking=masked))
        made.train(False)
        batch = fixed_batch(2, (32, 32))
        for network in made.networks.values():
            network.double()
        label = batch.label.values.clone()
        label[..., :3, :] = 100  # where the label is invalid
        other = dataclasses.replace(batch, label=dataclasses.replace(batch.label, values=label))
        with torch.no_grad():
            first, second, third = (float(made.validation(given)[SELECTION]) for given in (batch, batch, other))
        assert first == second
        assert (third == first) == masked
        measured[masked] = first
    assert measured[True] < measured[False]


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_only_what_an_update_trains(method: str) -> None:
    made = build_method(settings(method))
    sample = next(iter(torch.utils.data.DataLoader(small_trainings.Pairs(made.settings, 2), batch_size=2)))
    for update in made.updates(to_batch(sample, made.settings)):
        for network in made.networks.values():
            network.zero_grad(set_to_none=True)
        update.loss.backward()
        trained = {id(p) for group in made.optimisers[update.optimiser].param_groups for p in group["params"]}
        for network in made.networks.values():
            assert all((p.grad is not None) == (id(p) in trained) for p in network.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_slices_train_and_translate_as_pictures(tmp_path: Path, method: str) -> None:
    """A batch of slices gives the losses of the same pictures; a volume is translated slice by slice."""
    sliced = settings(method, **SLICES, inference_stride=(16, 12, 1))
    flat = settings(method, patch_size=(16, 12))
    losses = []
    for chosen in (sliced, flat):
        sample = small_trainings.Pairs(settings(method, patch_size=(16, 12)), 2)[0]
        if chosen is sliced:
            affine = torch.eye(4, dtype=torch.float64)
            affine[:2, :2], affine[:2, 3] = sample["random_affine"][:2, :2], sample["random_affine"][:2, 2]
            sample = {key: value[..., None] for key, value in sample.items()} | {"random_affine": affine}
        made = build_method(chosen)
        batch = to_batch({key: value[None] for key, value in sample.items()}, chosen)
        losses.append([float(value) for update in made.updates(batch) for value in update.log.values()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)

    made = build_method(sliced)
    save_weights(tmp_path / WEIGHTS, network_states(made.networks))
    description = Description(format=FORMAT, settings=sliced, preparation={}, best_epoch=1, selection=1.0)
    write_description(tmp_path, description)
    volume = np.random.RandomState(0).randn(16, 12, 5).astype(np.float32)
    model = load_model(tmp_path, "cpu")
    found = translate_volume(model.predict, volume, None, model.description)
    made.train(False)
    with torch.no_grad():
        pictures = torch.from_numpy(volume).movedim(-1, 0)[:, None]  # (B, 1, H, W)
        expected = made.networks["i2i"](pictures)[:, 0].movedim(0, -1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
