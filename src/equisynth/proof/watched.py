"""A method with its equivariance error beside its validation, so that the error is part of every epoch's record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from equisynth.config import Settings
from equisynth.methods.base import Batch, Method, Update, method_class
from equisynth.proof.measures import equivariance_error

EQUIVARIANCE = "equivariance"


class Watched(Method):
    """Does what the method within does; measuring draws nothing and changes nothing."""

    def __init__(self, method: Method) -> None:
        super().__init__(method.settings)
        self.within = method
        self.networks, self.optimisers = method.networks, method.optimisers

    @property
    def adversary(self) -> bool:
        return self.within.adversary

    def updates(self, batch: Batch) -> Iterator[Update]:
        return self.within.updates(batch)

    def validation(self, batch: Batch) -> dict[str, Tensor]:
        return self.within.validation(batch) | {EQUIVARIANCE: equivariance_error(self.within, batch)}

    def start_epoch(self, epoch: int) -> None:
        self.within.start_epoch(epoch)

    def memory(self) -> dict[str, Any]:
        return self.within.memory()

    def recall(self, memory: dict[str, Any]) -> None:
        self.within.recall(memory)

    @staticmethod
    def predictor(settings: Settings) -> nn.Module:
        return method_class(settings.method).predictor(settings)
