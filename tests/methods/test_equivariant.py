"""What the equivariant method promises beyond its numbers: cost of switched-off terms, who is trained by what."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equisynth.config import Settings
from equisynth.geometry.transforms import Affine, Image
from equisynth.methods.base import SELECTION, Batch
from equisynth.methods.equivariant import Equivariant

REGISTRATION = {"rigid_registration", "cross_registration", "intra_registration"}


def settings(n_dims: int = 2, discriminator: str = "conditional", augment: bool = False, **loss: Any) -> Settings:
    channel = {"modality": "any", "mean": (0.0,), "std": (1.0,), "signal_range": 1, "unit": "none"}
    weights = {
        "cross_modality_similarity": 1.0, "intra_modality_similarity": 1.0, "rigid_similarity": 1.0,
        "forward_rigidity": 1.0, "inverse_rigidity": 1.0, "commutation": 1.0, "discriminator": 0.1,
        "adversarial": 0.1, "max_rotation_degrees": 30.0, "max_translation": 4.0, "equivariant_similarity": True,
    } | loss  # fmt: skip
    features = dict.fromkeys(("i2i", "rigid_reg", "cross_modality_reg", "intra_modality_reg", "discriminator"), (4, 4))
    return Settings.model_validate({
        "experiment": "test", "scale": "test", "dataset": "phantom", "method": "equivariant",
        "data": {"n_dims": n_dims, "voxel_size": (1.0, 0.8, 1.2)[:n_dims], "input": channel, "label": channel,
                 "licence": "none"},
        "trains_on_label": "deformed", "batch_size": 4, "patch_size": (16, 12, 8)[:n_dims],
        "random_transformation": {}, "augment_with_random_transformation": augment, "features": features,
        "normalization_groups": 2, "epochs": 1, "learning_rate": {"generator": 1e-3, "discriminator": 1e-3},
        "loss": weights, "rigidity": {}, "discriminator": discriminator,
    })  # fmt: skip


def batch(n_dims: int = 2, size: int = 4, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = (16, 12, 8)[:n_dims]

    def image() -> Image:
        mask = torch.ones(size, 1, *shape)
        mask[:, :, -2:] = 0
        return Image(torch.randn(size, 1, *shape, generator=generator) * mask, mask)

    matrix = torch.eye(n_dims + 1).repeat(size, 1, 1)
    matrix[:, :n_dims] += 0.05 * torch.randn(size, n_dims, n_dims + 1, generator=generator)
    return Batch(image(), image(), Affine(matrix))


def method(given: Settings) -> Equivariant:
    torch.manual_seed(1)
    return Equivariant(given)


def counted(subject: Equivariant) -> dict[str, list[int]]:
    """Batch sizes of the calls of each network from now on."""
    calls: dict[str, list[int]] = {name: [] for name in subject.networks}
    for name, network in subject.networks.items():
        network.register_forward_pre_hook(lambda module, given, name=name: calls[name].append(len(given[0])))
    return calls


def run(subject: Equivariant, given: Batch) -> Counter[str]:
    steps: Counter[str] = Counter()
    for update in subject.updates(given):
        optimiser = subject.optimisers[update.optimiser]
        optimiser.zero_grad()
        update.loss.backward()
        optimiser.step()
        steps[update.optimiser] += 1
    return steps


def trained_by(loss: Tensor, subject: Equivariant) -> set[str]:
    """Names of the networks that a loss reaches with a gradient that is not zero."""
    for network in subject.networks.values():
        network.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name
        for name, network in subject.networks.items()
        if any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
    }


WITHOUT_D = {"discriminator": "none"}
OFF = {"commutation": None, "intra_modality_similarity": None, "forward_rigidity": None, "inverse_rigidity": None}
COSTS = {
    "EqSim": (WITHOUT_D | {"commutation": None}, {"i2i": [8]}),
    "DefSim": (WITHOUT_D | {"commutation": None, "equivariant_similarity": False}, {"i2i": [4]}),
    "DefSim, Com of weight zero": (WITHOUT_D | {"commutation": 0.0, "equivariant_similarity": False}, {"i2i": [4]}),
    "DefSim+Com": (WITHOUT_D | {"equivariant_similarity": False}, {"i2i": [8]}),
    "self commutation": (WITHOUT_D | {"self_commutation": 1.0}, {"i2i": [8, 4]}),
    "only rigid": (
        WITHOUT_D | OFF | {"cross_modality_similarity": 0.0},
        {"i2i": [4], "cross_registration": [], "intra_registration": []},
    ),
    "no intra": (WITHOUT_D | OFF, {"i2i": [4], "intra_registration": []}),
    "EqAdv": ({}, {"i2i": [4, 4], "rigid_registration": [2, 2], "discriminator": [2, 2, 2]}),
    "EqAdv, D off": ({"discriminator_weight": 0.0}, {"i2i": [4], "discriminator": [2]}),
    "adversarial off": ({"adversarial": 0.0}, {"discriminator": [2, 2]}),
    "DefCondAdv": (
        {"equivariant_adversarial": False, "commutation": None, "equivariant_similarity": False},
        {"i2i": [2, 2], "discriminator": [2, 2, 2]},
    ),
    "DefUncondAdv": (
        {"discriminator": "unconditional", "commutation": None, "equivariant_similarity": False},
        {"i2i": [2, 2], "rigid_registration": [2], "cross_registration": [2], "intra_registration": [2]},
    ),
}
"""Variant -> settings and the batch sizes of its networks' calls in one training step of four samples."""


@pytest.mark.parametrize("variant", COSTS)
def test_a_term_that_is_off_costs_no_network_call(variant: str) -> None:
    changes, expected = COSTS[variant]
    changes = dict(changes)
    weights = {"discriminator": changes.pop("discriminator_weight")} if "discriminator_weight" in changes else {}
    base = settings(**changes)
    subject = method(base.model_copy(update={"loss": base.loss.model_copy(update=weights)}))
    calls = counted(subject)
    run(subject, batch())
    assert {name: calls[name] for name in expected} == expected


def test_monitoring_computes_terms_of_weight_zero_but_not_absent_ones() -> None:
    subject = method(settings(discriminator="none", commutation=0.0, self_commutation=None))
    (plain,) = subject.updates(batch())
    subject.monitor = True
    (monitored,) = subject.updates(batch())
    assert "commutation" not in plain.log
    assert "displacement" not in plain.log
    assert {"commutation", "displacement", "drift_axis_1"} <= set(monitored.log)
    assert "self_commutation" not in monitored.log
    assert torch.equal(plain.loss, monitored.loss)
    assert not any(value.requires_grad for value in monitored.log.values())


TRAINED = {
    "rigid_similarity": {"rigid_registration"},
    "rotation_limit": {"rigid_registration"},
    "translation_limit": {"rigid_registration"},
    "cross_similarity": {"cross_registration"},
    "intra_similarity": {"i2i", "intra_registration"},
    "commutation": {"i2i"},
    "self_commutation": {"i2i"},
    "forward_rigidity_sum": {"cross_registration", "intra_registration", "i2i"},  # I sees F(x) with its graph
    "inverse_rigidity_sum": {"cross_registration", "intra_registration", "i2i"},
    "adversarial": {"i2i", "intra_registration"},
}


@pytest.mark.parametrize("term", TRAINED)
@pytest.mark.parametrize("n_dims", [2, 3])
def test_a_term_trains_what_it_should(term: str, n_dims: int) -> None:
    subject = method(settings(n_dims, self_commutation=1.0, max_rotation_degrees=1e-3, max_translation=1e-3))
    _, value = subject._terms(subject.run(batch(n_dims), equivariant=True))[term]
    assert trained_by(value(), subject) == TRAINED[term]


@pytest.mark.parametrize("discriminator, equivariant", [("conditional", True), ("conditional", False),
                                                        ("unconditional", True)])  # fmt: skip
def test_the_discriminator_trains_alone_and_is_frozen_in_the_generator_step(
    discriminator: str, equivariant: bool
) -> None:
    subject = method(settings(discriminator=discriminator, equivariant_adversarial=equivariant))
    steps = subject.updates(batch())
    first = next(steps)
    assert first.optimiser == "discriminator"
    assert trained_by(first.loss, subject) == {"discriminator"}
    second = next(steps)
    assert second.optimiser == "generator"
    assert trained_by(second.loss, subject) == REGISTRATION | {"i2i"}
    assert all(parameter.requires_grad for parameter in subject.networks["discriminator"].parameters())


def test_the_discriminator_takes_the_smaller_half() -> None:
    subject = method(settings())
    calls = counted(subject)
    assert run(subject, batch(size=5)) == {"discriminator": 1, "generator": 1}
    assert calls["discriminator"] == [2, 2, 3]


def test_the_discriminator_compares_undeformed_images_beside_the_undeformed_input() -> None:
    """Known difference: without EqAdv the reference shows the deformed input beside undeformed images."""
    subject, given = method(settings(equivariant_adversarial=False)), batch()
    shown: list[Tensor] = []
    subject.networks["discriminator"].register_forward_pre_hook(lambda module, given: shown.append(given[1]))
    run(subject, given)
    assert [len(condition) for condition in shown] == [2, 2, 2]
    assert torch.equal(shown[0], given.input.values[:2])
    assert torch.equal(shown[1], given.input.values[:2])
    assert torch.equal(shown[2], given.input.values[2:])


@pytest.mark.parametrize("n_dims", [2, 3])
def test_registration_is_inverted_by_its_inverse(n_dims: int) -> None:
    """Also T in 3D, where the reference's inverse is not one: known difference."""
    subject, given = method(settings(n_dims)), batch(n_dims)
    with torch.no_grad():
        subject.networks["rigid_registration"].linear.bias.fill_(0.3)
        done = subject.run(given)
        identity = torch.eye(n_dims + 1).expand(4, -1, -1)
        turned = done.rigid.matrix
        torch.testing.assert_close(done.rigid.then(done.rigid_inverse).matrix, identity, atol=1e-5, rtol=0)
        assert (turned - identity).abs().max() > 0.1
        round_trip = done.forward.then(done.inverse)
        length = (round_trip.displacement * round_trip.valid()).abs().max()
    assert length < 0.05 * done.forward.displacement.abs().max()


class Pointwise(nn.Module):
    """A network that cannot but commute with every deformation."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1


def quarter_turn(given: Batch) -> Batch:
    turn = torch.tensor([[0.0, -1.0, 11.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).expand(len(given), -1, -1)
    square = [Image(image.values[..., :12, :], image.mask[..., :12, :]) for image in (given.input, given.label)]
    return Batch(square[0], square[1], Affine(turn))


def test_a_pointwise_network_is_equivariant() -> None:
    subject = method(settings(discriminator="none"))
    subject.networks["i2i"] = Pointwise()
    given = quarter_turn(batch())
    done = subject.run(given, equivariant=True)
    turned = torch.rot90(done.output.values, -1, (2, 3))
    torch.testing.assert_close(done.random_output.values, turned, atol=1e-5, rtol=0)
    assert float(subject._terms(done)["commutation"][1]().detach()) < 1e-5
    torch.testing.assert_close(done.commuted.values, done.fitted.values, atol=1e-4, rtol=0)


def test_an_untrained_network_is_not_equivariant() -> None:
    subject = method(settings(discriminator="none"))
    done = subject.run(quarter_turn(batch()), equivariant=True)
    assert float(subject._terms(done)["commutation"][1]().detach()) > 1e-3


def test_without_a_random_transformation_eqsim_is_defsim() -> None:
    subject, given = method(settings(discriminator="none")), batch()
    given = dataclasses.replace(given, random=Affine(torch.eye(3).repeat(4, 1, 1)))
    done = subject.run(given, equivariant=True)
    torch.testing.assert_close(done.commuted.values, done.fitted.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(done.commuted.valid(), done.fitted.valid())
    assert float(subject._terms(done)["commutation"][1]().detach()) < 1e-6


@pytest.mark.parametrize("augment", [True, False])
def test_augmentation_applies_r_to_both_images_once(augment: bool) -> None:
    subject, given = method(settings(discriminator="none", augment=augment)), batch()
    seen: list[Tensor] = []
    subject.networks["i2i"].register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    run(subject, given)
    expected = given.input.warp(given.random) if augment else given.input
    torch.testing.assert_close(seen[0][:4], expected.values)
    torch.testing.assert_close(seen[0][4:], expected.warp(given.random).values)


@pytest.mark.parametrize("discriminator, beta1", [("conditional", 0.5), ("unconditional", 0.5), ("none", 0.9)])
def test_betas(discriminator: str, beta1: float) -> None:
    subject = method(settings(discriminator=discriminator))
    assert {tuple(group["betas"]) for o in subject.optimisers.values() for group in o.param_groups} == {(beta1, 0.999)}


def test_validation_repeats_itself_and_leaves_no_graph() -> None:
    subject = method(settings())
    subject.train(False)
    with torch.no_grad():
        first, second = (subject.validation(batch())[SELECTION] for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad


@pytest.mark.parametrize("n_dims", [2, 3])
def test_geometry_and_losses_stay_in_float32_under_autocast(n_dims: int) -> None:
    subject, given = method(settings(n_dims)), batch(n_dims)
    plain = subject.run(given, equivariant=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        done = subject.run(given, equivariant=True)
        for tensor in (done.rigid.matrix, done.forward.displacement, done.commuted.values, done.label_cross.values):
            assert tensor.dtype == torch.float32
        losses = [update.loss for update in subject.updates(given)]
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses)
    torch.testing.assert_close(done.label_cross.values, plain.label_cross.values, atol=0.2, rtol=0)


def test_training_lowers_the_loss() -> None:
    subject, given = method(settings(discriminator="none")), batch()
    losses = []
    for _ in range(30):
        (update,) = subject.updates(given)
        subject.optimisers["generator"].zero_grad()
        update.loss.backward()
        subject.optimisers["generator"].step()
        losses.append(float(update.loss.detach()))
    assert np.mean(losses[-5:]) < 0.97 * np.mean(losses[:5])
