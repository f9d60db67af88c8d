"""NEMAR with our components: golden numbers, the published row of small trainings, and what no number says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equisynth.config import Settings
from equisynth.errors import UserError
from equisynth.geometry.transforms import Affine, Image
from equisynth.methods.base import SELECTION, Batch, build_method
from equisynth.methods.nemar_equivariant import NemarEquivariant
from equisynth.training import Trainer
from golden_data import files, load
from method_golden import Training, batch_of, load_states, settings_of, variants
from small_trainings import BATCH, Pairs
from small_trainings import settings as small_settings

FILES = [(file, dimensions) for file in files("06_i2ireg_*") for dimensions in load(file).children()]
WEIGHTS = {"cross_modality_similarity": 1.0, "forward_rigidity": 1.0, "discriminator": 0.1, "adversarial": 0.1}


def settings(n_dims: int = 2, loss: dict[str, Any] = WEIGHTS, **changes: Any) -> Settings:
    chosen = {"method": "nemar_equivariant", "discriminator": "conditional", "loss": loss}
    return small_settings(n_dims, **chosen | changes)


def random_batch(size: int = BATCH, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def image() -> Image:
        mask = (torch.rand(size, 1, 16, 16, generator=generator) > 0.1).float()
        return Image(torch.randn(size, 1, 16, 16, generator=generator) * mask, mask)

    matrix = torch.eye(3).repeat(size, 1, 1)
    matrix[:, :2, 2] = 1.5
    return Batch(image(), image(), Affine(matrix))


def step(method: NemarEquivariant, batch: Batch) -> dict[str, float]:
    log: dict[str, Tensor] = {}
    for update in method.updates(batch):
        optimiser = method.optimisers[update.optimiser]
        optimiser.zero_grad(set_to_none=True)
        update.loss.backward()
        optimiser.step()
        log |= update.log
    return {name: float(value) for name, value in log.items()}


def measure(method: NemarEquivariant, batch: Batch) -> float:
    with torch.no_grad():
        return float(method.validation(batch)[SELECTION])


@pytest.mark.parametrize("file, dimensions", FILES)
def test_every_value_of_a_pass(file: str, dimensions: str) -> None:
    golden = load(file) / dimensions
    method = NemarEquivariant(settings_of(golden.json("base_config_json"), "nemar_equivariant"))
    load_states(method, golden)
    batch = batch_of(golden / "batch0", method.settings.data.voxel_size)[2:4]
    done, outputs = method.run(batch), golden / "nemar_outputs"
    outputs.check("forward_cross_modality_deformation/deformation", done.field.displacement, 1e-4)
    images = {
        "output": done.output, "cross_modality_deformed_output": done.moved,
        "cross_modality_deformed_input": done.moved_input, "output_cross_modality_deformed": done.of_moved,
    }  # fmt: skip
    for name, image in images.items():
        outputs.check(f"{name}/volume", image.values, 1e-4)
        expected = outputs[f"{name}/mask"] if outputs[f"{name}/has_mask"] else 1.0
        assert np.array_equal(image.valid().numpy(), np.broadcast_to(expected, image.valid().shape)), name
    with torch.no_grad():
        translated = method.translate(method.networks["i2i"], batch.input.values, batch.input.mask)
    outputs.check("output/volume", translated, 1e-4)


@pytest.mark.parametrize("file, dimensions, variant", variants("nemar_"))
def test_training(file: str, dimensions: str, variant: str) -> None:
    golden = load(file) / dimensions
    record = golden / "train" / variant
    Training(NemarEquivariant(settings_of(record.json("config_json"), "nemar_equivariant")), golden).check_all(record)


def test_small_training_prints_the_published_row() -> None:
    """Weights and images follow from a rule; one fixed batch is trained and validated on, for two epochs."""
    method = NemarEquivariant(
        settings(
            patch_size=(32, 32), features=dict.fromkeys(("i2i", "cross_modality_reg", "discriminator"), (4, 8)),
            data=settings().data.model_dump() | {"voxel_size": (1.0, 1.0)},
            learning_rate={"generator": 1e-3, "discriminator": 4e-3},
            loss=WEIGHTS | {"discriminator": 0.01, "adversarial": 0.02},
        )
    )  # fmt: skip
    for network in method.networks.values():
        fill(network)
    batch = ruled_batch(4, 32)
    expected = [
        {"loss": 0.390762, "cross_similarity": 0.746823, "forward_rigidity": 0.000350, "adversarial": 1.700122,
         "discriminator": 2.029770, SELECTION: 0.745380},
        {"loss": 0.391806, "cross_similarity": 0.745380, "forward_rigidity": 0.000262, "adversarial": 1.885437,
         "discriminator": 1.972633, SELECTION: 0.743982},
    ]  # fmt: skip
    for row in expected:
        log = step(method, batch)
        found = {key: sum(value for name, value in log.items() if name.startswith(key)) for key in row}
        assert found | {SELECTION: measure(method, batch)} == pytest.approx(row, rel=1e-4, abs=1e-6)


def fill(network: nn.Module) -> None:
    """Tensor k gets 0.4 q(j, k) with q from a linear congruence of its flat index j, a norm's weight 1 more."""
    norms = {id(module.weight) for module in network.modules() if isinstance(module, nn.GroupNorm)}
    with torch.no_grad():
        for k, parameter in enumerate(weights_first(network)):
            j = torch.arange(parameter.numel(), dtype=torch.int64)
            q = ((31 * j**2 + 7919 * j + 104729 * k + 17) % 10007).double() / 10007 - 0.5
            parameter.copy_((0.4 * q + (id(parameter) in norms)).view_as(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith(("_u", "_v")):
                buffer.fill_(buffer.numel() ** -0.5)


def weights_first(network: nn.Module) -> list[Tensor]:
    """Parameters in order, the weight of a layer before its bias also where it is parametrised."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.GroupNorm)]
    weights = [m.parametrizations.weight.original if hasattr(m, "parametrizations") else m.weight for m in layers]
    return [tensor for weight, layer in zip(weights, layers, strict=True) for tensor in (weight, layer.bias)]


def ruled_batch(size: int, side: int) -> Batch:
    n = torch.arange(size * side * side)
    masks = [torch.ones(size, 1, side, side) for _ in range(2)]
    masks[0][..., -4:] = 0
    masks[1][..., :3, :] = 0
    values = [
        (2 * ((a * n**2 + b * n + c) % 1009).float() / 1009 - 1).view(size, 1, side, side) * mask
        for (a, b, c), mask in zip(((17, 611, 3), (23, 409, 11)), masks, strict=True)
    ]
    images = [Image(image, mask) for image, mask in zip(values, masks, strict=True)]
    return Batch(images[0], images[1], Affine(torch.eye(3).repeat(size, 1, 1)))


@pytest.mark.parametrize("whole", [False, True])
def test_the_second_half_of_a_batch_counts_only_on_request(whole: bool) -> None:
    batch = random_batch()
    other = random_batch(seed=1)
    changed = Batch(
        *(
            Image(torch.cat([a.values[:2], b.values[2:]]), torch.cat([a.mask[:2], b.mask[2:]]))
            for a, b in ((batch.input, other.input), (batch.label, other.label))
        ),
        batch.random,
    )
    logs = []
    for given in (batch, changed):
        method = build_method(settings(network={"whole_batch": whole}))
        logs.append([step(method, given), measure(method, given)])
    assert (logs[0] != logs[1]) == whole


def test_whole_batch_of_half_the_size_is_the_published_step() -> None:
    batch = random_batch()
    published = build_method(settings())
    whole = build_method(settings(network={"whole_batch": True}))
    assert step(published, batch) == step(whole, batch[:2])
    assert measure(published, batch) == measure(whole, batch[:2])


def test_augmentation_moves_both_images_alike() -> None:
    batch = random_batch()
    plain, augmented = build_method(settings()), build_method(settings(augment_with_random_transformation=True))
    assert step(augmented, batch) == step(plain, batch.augmented())
    assert measure(augmented, batch) == measure(plain, batch.augmented())


def test_d_trains_d_only_and_the_generator_side_never_d() -> None:
    method = build_method(settings())
    discriminator, generator = method.updates(random_batch())
    discriminator.loss.backward()
    assert gradients(method) == {"i2i": False, "cross_registration": False, "discriminator": True}
    for network in method.networks.values():
        network.zero_grad(set_to_none=True)
    generator.loss.backward()
    assert gradients(method) == {"i2i": True, "cross_registration": True, "discriminator": False}


def gradients(method: NemarEquivariant) -> dict[str, bool]:
    return {
        name: any(parameter.grad is not None for parameter in network.parameters())
        for name, network in method.networks.items()
    }


@pytest.mark.parametrize(
    "off, updates, terms",
    [
        ("discriminator", ["generator"], {"cross_similarity", "adversarial", "forward_rigidity"}),
        ("adversarial", ["discriminator", "generator"], {"cross_similarity", "forward_rigidity"}),
        ("forward_rigidity", ["discriminator", "generator"], {"cross_similarity", "adversarial"}),
        ("cross_modality_similarity", ["discriminator", "generator"], {"adversarial", "forward_rigidity"}),
    ],
)
def test_a_term_without_weight_is_not_computed(off: str, updates: list[str], terms: set[str]) -> None:
    method = build_method(settings(loss=WEIGHTS | {off: 0.0}))
    made = list(method.updates(random_batch()))
    assert [update.optimiser for update in made] == updates
    found = {name.removesuffix("_of_moved").removesuffix("_moved") for name in made[-1].log}
    assert found == terms | {"loss"}


def trainer(folder: Path, epochs: int, n_dims: int) -> Trainer:
    chosen = settings(n_dims, epochs=epochs)
    samples, validation = Pairs(chosen, 2 * BATCH), Pairs(chosen, BATCH + 1)
    return Trainer(build_method(chosen), chosen, samples, validation, folder)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_resumed_training_ends_where_an_undisturbed_one_does(n_dims: int, tmp_path: Path) -> None:
    undisturbed = trainer(tmp_path / "a", 2, n_dims)
    undisturbed.fit()
    trainer(tmp_path / "b", 1, n_dims).fit()
    resumed = trainer(tmp_path / "b", 2, n_dims)
    assert resumed.state.epoch == 1
    resumed.fit()
    assert resumed.state.history == undisturbed.state.history
    expected, found = undisturbed.weights_of(2), resumed.weights_of(2)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"discriminator": "none"}, "discriminator: found 'none'"),
        ({"discriminator": "unconditional"}, "discriminator: found 'unconditional'"),
        ({"features": {"i2i": (4, 4), "discriminator": (4, 4)}}, "cross_modality_reg"),
        ({"network": {"whole_batches": True}}, "whole_batches"),
        ({"rigidity": {"coefficient": {"values": [0, 1], "coefficients": [1, 0]}}}, "rigidity.coefficient"),
    ],
)
def test_settings_it_cannot_follow_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        build_method(settings(**changes))
