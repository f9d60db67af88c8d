"""What a search is about: all that a worker needs to know, and that can be sent to a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equisynth.config import Settings
from equisynth.params import Tree
from equisynth.search.settings import ALIGNED, SearchSettings, Space
from equisynth.search.space import trial_settings
from equisynth.search.study import FOLDER

Report = Callable[[int, dict[str, float]], None]
TrainTrial = Callable[[Settings, Path, Report], Mapping[str, Any]]
"""Trains and measures one configuration in a folder of its own: calls the report after each epoch (it may raise to
stop) and returns the objective's value under its name, ``folded_share`` where there is a limit for it, and
``model_sha256`` if there is a model."""


@dataclass(frozen=True)
class Plan:
    """One study, or the confirmation of its best trials.

    Attributes:
        name: of the study in the storage.
        tree: of params.yaml.
        space: what is varied.
        objective: what is minimised: ``aligned_mae`` or ``registered``.
        limit: largest share of folded voxels; None: no constraint.
        version: of the dataset.
        parent: MLflow run whose children the trials are.
        total: number of slots; None: those that are queued, with fresh seeds.
    """

    name: str
    tree: Tree
    experiment: str
    options: SearchSettings
    space: Space
    objective: str
    limit: float | None
    version: str
    parent: str
    total: int | None

    @property
    def confirms(self) -> bool:
        """Whether this repeats trials of another study."""
        return self.total is None

    @property
    def label(self) -> str:
        """The objective in words."""
        return self.objective + (" (oracle: uses the aligned label)" if self.objective == ALIGNED else "")

    @property
    def short_label(self) -> str:
        """The objective, marked where it uses what real pairs lack."""
        return self.objective + (" (oracle)" if self.objective == ALIGNED else "")

    def settings(self, parameters: Mapping[str, Any]) -> Settings:
        """Of a trial."""
        return trial_settings(self.tree, self.experiment, self.options, parameters)

    def folder(self, slot: str) -> Path:
        """Where a slot's training keeps its files; its repeat continues there."""
        return FOLDER / self.name / f"trial-{slot.replace('/', '-seed-')}"
