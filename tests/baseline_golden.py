"""The baselines' golden numbers: fixed weights and batches, trainings of a few steps, and what both must give.

Two sources: arrays of the file ``07_baselines``, and numbers that tests state for weights filled by a rule. The arrays
are compared in double precision: biases in front of norms have a gradient of zero, and what single precision makes of
it, noise, is for Adam as good as any gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from equisynth.config import Settings
from equisynth.geometry.transforms import Affine, Image
from equisynth.methods.base import SELECTION, Batch, Method
from golden_data import Golden, files, load

FILE = "07_baselines"
M = TypeVar("M", bound=Method)


def records(prefix: str) -> list[str]:
    """Names of the recorded trainings that start so."""
    return [name for file in files(FILE) for name in load(file).children() if name.startswith(prefix)]


def record(name: str) -> Golden:
    return load(FILE) / name


def settings(
    method: str, network: Mapping[str, Any], size: Sequence[int], channels: tuple[int, int] = (1, 1), **changes: Any
) -> Settings:
    """Settings of a baseline on pictures of a size; ``channels`` of input and label."""

    def image(count: int) -> dict[str, Any]:
        return {"modality": "any", "signal_range": 1, "unit": "none", "channels": count,
                "mean": (0.0,) * count, "std": (1.0,) * count}  # fmt: skip

    return Settings.model_validate({
        "experiment": "golden", "scale": "golden", "dataset": "golden", "method": method,
        "data": {"n_dims": 2, "voxel_size": (1.0, 1.0), "input": image(channels[0]), "label": image(channels[1]),
                 "licence": "none"},
        "trains_on_label": "deformed", "batch_size": 2, "patch_size": tuple(size), "random_transformation": {},
        "epochs": 3, "learning_rate": {"generator": 0.002}, "network": dict(network),
    } | changes)  # fmt: skip


def gan_network(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that pix2pix, CycleGAN and NEMAR share, from their published names."""
    names = {
        "netG": "generator", "ngf": "generator_width", "netD": "discriminator", "ndf": "discriminator_width",
        "n_layers_D": "discriminator_layers", "norm": "norm", "init_type": "initialisation",
        "init_gain": "initialisation_gain", "gan_mode": "gan_loss", "pool_size": "pool_size", "beta1": "beta1",
        "lr_policy": "decay_policy", "final_activation": "final_activation", "use_masking": "use_masking",
    }  # fmt: skip
    network = {ours: options[theirs] for theirs, ours in names.items() if theirs in options}
    share = options["n_epochs_decay"] / (options["n_epochs"] + options["n_epochs_decay"])
    return network | {"dropout": not options["no_dropout"], "decay_share": share}


def gan_settings(method: str, options: Mapping[str, Any], weights: Mapping[str, str], size: Sequence[int]) -> Settings:
    """Settings from recorded options; ``weights`` renames those of the losses."""
    assert (options["direction"], options["epoch_count"]) == ("AtoB", 1)
    network = gan_network(options) | {ours: options[theirs] for theirs, ours in weights.items()}
    epochs, channels = options["n_epochs"] + options["n_epochs_decay"], (options["input_nc"], options["output_nc"])
    return settings(method, network, size, channels, epochs=epochs, learning_rate={"generator": options["lr"]})


def recorded_batch(golden: Golden) -> Batch:
    """A and B with their masks, which are ones where there are none; they are not transformed."""
    images = {}
    for side in "AB":
        values, mask = golden[side], f"{side}_mask"
        valid = golden[mask] if mask in golden else np.ones((len(values), 1, *values.shape[2:]), np.float32)
        images[side] = Image(torch.from_numpy(values), torch.from_numpy(valid))
    identity = torch.eye(3).expand(len(images["A"]), 3, 3)
    return double(Batch(images["A"], images["B"], Affine(identity)))


def double(batch: Batch) -> Batch:
    """The same numbers in double precision."""
    first, second = (Image(image.values.double(), image.valid().double()) for image in (batch.input, batch.label))
    return Batch(first, second, Affine(batch.random.matrix.double()))


def single(batch: Batch) -> Batch:
    """The same numbers in single precision."""
    first, second = (Image(image.values.float(), image.valid().float()) for image in (batch.input, batch.label))
    return Batch(first, second, Affine(batch.random.matrix.float()))


def load_state(network: nn.Module, golden: Golden) -> None:
    """Copies a recorded state into a network, in double precision, whose tensors have other names in this order."""
    ours, names = list(network.double().state_dict(keep_vars=True).values()), golden["__order__"]
    for tensor, name in zip(ours, names, strict=True):
        array = golden[str(name)]
        assert tuple(tensor.shape) == array.shape, name
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(array))


def check_tensors(golden: Golden, tensors: Iterable[Tensor], stated: float = 1e-5) -> None:
    """Recorded sums, sums of squares and first values of tensors with more than one dimension, in order."""
    arrays = [tensor.detach().double().numpy() for tensor in tensors if tensor.ndim > 1]
    assert len(arrays) == len(golden["names"])
    golden.check("sum", [array.sum() for array in arrays], stated)
    golden.check("sumsq", [np.square(array).sum() for array in arrays], stated)
    first = [np.pad(a.ravel()[:5], (0, max(0, 5 - a.size)), constant_values=np.nan) for a in arrays]
    golden.check("first5", np.array(first), stated)


def gradients(network: nn.Module) -> list[Tensor]:
    """One per parameter, zeros where there is none."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.parameters()]


class Step:
    """One batch in the trainer's manner.

    Attributes:
        log: what the method logs.
        gradients: per network, those of the update that trains it.
    """

    def __init__(self, method: Method, batch: Batch) -> None:
        self.log: dict[str, float] = {}
        self.gradients: dict[str, list[Tensor]] = {}
        for update in method.updates(batch):
            optimiser = method.optimisers[update.optimiser]
            optimiser.zero_grad(set_to_none=True)
            update.loss.backward()
            trained = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
            for name, network in method.networks.items():
                if any(id(parameter) in trained for parameter in network.parameters()):
                    self.gradients[name] = gradients(network)
            optimiser.step()
            self.log |= {name: float(value) for name, value in update.log.items()}


def fill(parameters: Iterable[Tensor], factor: float = 0.4) -> None:
    """Tensor k gets factor * q(j, k) with q from a linear congruence of its flat index j, rounded to its precision."""
    for k, parameter in enumerate(parameters):
        j = torch.arange(parameter.numel(), dtype=torch.int64)
        q = ((31 * j**2 + 7919 * j + 104729 * k + 17) % 10007).double() / 10007 - 0.5
        with torch.no_grad():
            parameter.copy_((factor * q).view_as(parameter))


def filled(method: M) -> M:
    """The method with all its networks' weights filled by the rule, each network on its own."""
    for network in method.networks.values():
        fill(network.parameters())
    return method


def picture(shape: Sequence[int], second: bool = False) -> Tensor:
    """The picture X, or the second one, Y."""
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    a, b, c = (23, 409, 11) if second else (17, 611, 3)
    return (2 * ((a * n**2 + b * n + c) % 1009).float() / 1009 - 1).view(tuple(shape))


def fixed_batch(batch_size: int, size: Sequence[int]) -> Batch:
    """X without its last four columns, Y without its first three rows, and the rotation M, in double precision."""
    shape = (batch_size, 1, *size)
    masks = torch.ones(2, *shape)
    masks[0, ..., -4:] = 0
    masks[1, ..., :3, :] = 0
    cosine, sine = np.cos(0.1), np.sin(0.1)
    matrix = torch.tensor([[cosine, -sine, 1.5], [sine, cosine, -2.0], [0, 0, 1]], dtype=torch.float32)
    first, second = (Image(picture(shape, second=bool(k)) * masks[k], masks[k]) for k in range(2))
    return double(Batch(first, second, Affine(matrix.expand(batch_size, 3, 3))))


def check_epochs(
    method: Method, batch: Batch, losses: Mapping[str, Sequence[float | None]], selection: Sequence[float],
    tolerance: float = 1e-4,
) -> None:  # fmt: skip
    """Trains epochs of one batch each, which also validates them, and compares with stated values per epoch."""
    for epoch, measure in enumerate(selection, start=1):
        method.start_epoch(epoch)
        method.train()
        log = Step(method, batch).log
        for name, values in losses.items():
            if values[epoch - 1] is not None:
                _close(f"epoch {epoch}: {name}", log[name], values[epoch - 1], tolerance)
        method.train(False)
        with torch.no_grad():
            _close(f"epoch {epoch}: validation", float(method.validation(batch)[SELECTION]), measure, tolerance)


def _close(what: str, found: float, expected: float | None, tolerance: float) -> None:
    assert expected is not None
    assert abs(found - expected) <= tolerance * abs(expected) + 1e-6, f"{what}: {found:.6f}, stated {expected:.6f}"
