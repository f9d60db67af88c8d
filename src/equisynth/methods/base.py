"""What the trainer, the search, the tests and the registry know of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equisynth.config import Settings, Strict
from equisynth.errors import UserError
from equisynth.geometry.transforms import Affine, Image, Transformation
from equisynth.method_names import method_names
from equisynth.validation import validate


@dataclass(frozen=True)
class Batch:
    """Training pairs of one step.

    Attributes:
        input: values (B, C, *S), mask (B, 1, *S), normalised and zero where invalid.
        label: the non-aligned partner, same grid.
        random: the random affine transformation r, drawn per sample, in voxel coordinates of the patch.
        label_random: the label's own, where the two are transformed apart; None: it is r.
    """

    input: Image
    label: Image
    random: Affine
    label_random: Affine | None = None

    def __len__(self) -> int:
        return self.input.values.shape[0]

    def __getitem__(self, index: slice) -> Batch:
        label_random = None if self.label_random is None else self.label_random[index]
        return Batch(self.input[index], self.label[index], self.random[index], label_random)

    def halves(self) -> tuple[Batch, Batch]:
        """The first floor(B/2) samples (discriminator side) and the rest (generator side)."""
        middle = len(self) // 2
        return self[:middle], self[middle:]

    def augmented(self, input_fill: float | None = None, label_fill: float | None = None) -> Batch:
        """Both images warped and detached (the Aug variants); r itself is kept for use inside the pass.

        Args:
            input_fill, label_fill: normalised values that the warped images take where their masks are 0; None: what
                the warp left there.
        """
        with torch.no_grad():
            moved = self.input.warp(self.random), self.label.warp(self.label_random or self.random)
            filled = [_filled(image, fill) for image, fill in zip(moved, (input_fill, label_fill), strict=True)]
            return replace(self, input=filled[0], label=filled[1])

    def flattened(self) -> Batch:
        """Slices (B, C, H, W, 1) as 2D images (B, C, H, W), for methods that know no third axis.

        The transformations must stay within the slices: what they do along the last axis is dropped.
        """
        label_random = None if self.label_random is None else _flattened(self.label_random)
        first, second = (Image(image.values[..., 0], image.valid()[..., 0]) for image in (self.input, self.label))
        return Batch(first, second, _flattened(self.random), label_random)


class Update(NamedTuple):
    """One optimiser step: the trainer clears gradients, runs backward and steps before it asks for the next one.

    Attributes:
        optimiser: key in ``Method.optimisers``.
        loss: scalar to minimise.
        log: detached scalars on the device; the trainer reads them once per logging interval.
    """

    optimiser: str
    loss: Tensor
    log: dict[str, Tensor]


class Deformations(NamedTuple):
    """What registration networks predict of a batch: displacement fields (B, n, *S) in voxels of the batch.

    Attributes:
        whole: the translated input warped by it lies on the label.
        without_intra: its part without the intra-modality step; None where a method has no such step.
    """

    whole: Tensor
    without_intra: Tensor | None = None


class Overview(NamedTuple):
    """What one pass makes of a batch, in the order of the method's table, each by its formula (and a few words).

    Attributes:
        inputs, outputs, labels: ``inputs`` look like the input, the others like the label.
    """

    inputs: Mapping[str, Image]
    outputs: Mapping[str, Image]
    labels: Mapping[str, Image]
    deformations: Mapping[str, Transformation]


SELECTION = "selection"
"""Key of ``Method.validation`` whose mean over the validation split chooses the best epoch (lower is better)."""


class Method(ABC):
    """One way to train an image-to-image network.

    A method is built from settings alone, knows no files and no trackers, and owns named networks and optimisers.
    Methods look networks up by name at every use, so that others can be put in their place; ``networks["i2i"]`` is the
    one that is evaluated and registered.

    Several processes train one method, each on its share of every batch, and average their gradients. So that this is
    the method itself, every loss is a mean over equally weighted samples, which networks and losses there are in a step
    does not depend on values, and nothing is drawn at random: what is random came with the batch. Buffers depend on
    weights alone (the power iterations of spectral norms do), and thus stay equal in all processes.

    Attributes:
        Options: what ``settings.network`` holds for this method, checked when it is built.
        monitor: also compute what is only looked at (lengths of displacements, terms of weight zero).
    """

    Options: ClassVar[type[Strict]] = Strict
    networks: dict[str, nn.Module]
    optimisers: dict[str, Optimizer]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.monitor = False

    @property
    def adversary(self) -> bool:
        """Whether a discriminator trains too: on the first half of each batch, all else on the rest."""
        return self.settings.discriminator != "none"

    @classmethod
    def options(cls, settings: Settings) -> Strict:
        """``settings.network``, checked.

        Raises:
            UserError: an unknown key, or a value of another kind.
        """
        return validate(cls.Options, settings.network, f"{settings.experiment}: network")

    @classmethod
    def published_network(cls, settings: Settings) -> dict[str, Any] | None:
        """``network`` by the published names, for methods with networks of their own; others have none."""
        return None

    def start_epoch(self, epoch: int) -> None:  # noqa: B027 - most methods have nothing to do
        """Called before an epoch (from 1): learning rates of a schedule, and what else follows from its number."""

    def memory(self) -> dict[str, Any]:
        """What a resumed training needs beside networks and optimisers: tensors, numbers, lists and dicts of these."""
        return {}

    def recall(self, memory: dict[str, Any]) -> None:  # noqa: B027 - most methods remember nothing
        """Takes back what `memory` gave."""

    @abstractmethod
    def updates(self, batch: Batch) -> Iterator[Update]:
        """Yields the optimiser steps of one batch in order; values computed before an earlier step may be shared."""

    @abstractmethod
    def validation(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars of a validation batch, among them ``SELECTION``; called in evaluation mode without a graph."""

    @staticmethod
    @abstractmethod
    def predictor(settings: Settings) -> nn.Module:
        """The untrained network that alone is needed to translate (``networks["i2i"]`` is one of these)."""

    @staticmethod
    def translate(network: nn.Module, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised, masked input patches (B, C, *S) -> normalised label patches (B, C', *S)."""
        return network(values)

    @classmethod
    def registers(cls) -> bool:
        """Whether the method has registration networks, and with them `deformations`."""
        return cls.deformations is not Method.deformations

    def deformations(self, batch: Batch) -> Deformations:
        """What the registration networks predict for a batch as it is (not augmented), if the method has any."""
        raise NotImplementedError(f"{type(self).__name__} has no registration networks")

    def overview(self, batch: Batch) -> Overview:
        """One pass over a batch as it is, for a figure; here what every method can show."""
        x, moved = batch.input, batch.input.warp(batch.random)
        output, of_moved = (
            Image(self.translate(self.networks["i2i"], image.values, image.valid()).float(), image.mask)
            for image in (x, moved)
        )
        outputs = {"F(x), output": output, "F(x∘r)": of_moved, "F(x)∘r": output.warp(batch.random)}
        inputs, labels = {"x, input": x, "x∘r": moved}, {"y, label": batch.label}
        return Overview(inputs, outputs, labels, {"r, random": batch.random})

    def train(self, mode: bool = True) -> None:
        """Sets all networks to training or evaluation mode."""
        for network in self.networks.values():
            network.train(mode)


def _filled(image: Image, fill: float | None) -> Image:
    if fill is None:
        return image
    mask = image.valid()
    return Image(image.values * mask + fill * (1 - mask), image.mask)


def _flattened(transformation: Affine) -> Affine:
    """(B, 4, 4) -> (B, 3, 3): without the third axis."""
    kept = [0, 1, 3]
    return Affine(transformation.matrix[:, kept][:, :, kept])


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """Within the block the parameters ask for no gradient, so that a loss reaches through them to the input only."""
    flags = [parameter.requires_grad for parameter in network.parameters()]
    try:
        network.requires_grad_(False)
        yield network
    finally:
        for parameter, flag in zip(network.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)


def method_class(name: str) -> type[Method]:
    """The class in ``methods/<name>.py`` (its module attribute ``METHOD``).

    Imported by name, so that nothing but the settings ties an experiment to one method's file.

    Raises:
        UserError: there is no such file.
    """
    known = method_names()
    if name not in known:
        raise UserError(f"method: found '{name}', expected one of: {', '.join(known)} (files in equisynth/methods)")
    return import_module(f"equisynth.methods.{name}").METHOD


def method_options(name: str) -> type[Strict]:
    """What ``network`` may hold for a method, for those who check it before they build one."""
    return method_class(name).Options


def build_method(settings: Settings) -> Method:
    """A method with freshly initialised networks, the same for the same settings.seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return method_class(settings.method)(settings)
