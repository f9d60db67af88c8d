"""What the proof trains: ``proof/params.yaml`` -> runs and their settings, composed over ``params.yaml``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from equisynth import params
from equisynth.config import Count, LabelDeformation, Settings, Strict
from equisynth.datasets.splits import Split
from equisynth.errors import UserError
from equisynth.validation import validate

FILE = Path("proof/params.yaml")
SCALE = "proof"
"""What its runs are called in MLflow."""
PHOTOGRAPHS, BRAIN = "photographs", "brain"
DATASETS = {PHOTOGRAPHS: "coco", BRAIN: "ixi"}
"""Task -> dataset of ``params.yaml`` whose settings it takes."""
PREPARED = {PHOTOGRAPHS: Path("data/proof/photographs"), BRAIN: Path("data/prepared/ixi")}
BENEATH = {PHOTOGRAPHS: "paper", BRAIN: "demo"}
"""Task -> scale of ``params.yaml`` that the proof's own settings lie over."""


class Photographs(Strict):
    """Section ``photographs``."""

    seed: int = 0
    crop: Count
    crops: dict[Split, Count]
    pictures: dict[Split, tuple[str, ...]]
    training: dict[str, Any]


class Brain(Strict):
    """Section ``brain``."""

    training: dict[str, Any]


class Group(Strict):
    """Runs of some methods with some seeds."""

    task: Literal["photographs", "brain"]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    label: str | None = None


class Reference(Strict):
    """What the authors' code reached, and what is asserted; only the page reads it."""

    measured: dict[str, tuple[float, float, float]]
    tolerance_db: float
    ahead: tuple[tuple[str, str, float | None], ...]


class Protocol(Strict):
    """``proof/params.yaml``."""

    photographs: Photographs
    brain: Brain
    misalignments: dict[str, LabelDeformation]
    parts: dict[Literal["short", "full"], tuple[Group, ...]]
    reference: Reference


@dataclass(frozen=True)
class Run:
    """One training: a method of ``params.yaml`` on a task, with a seed.

    Attributes:
        label: what a brain run trains on, if not the misaligned label.
    """

    task: str
    method: str
    seed: int
    label: str | None = None

    @property
    def variant(self) -> str:
        """What the seeds of a table's row share."""
        return self.method if self.label is None else f"{self.method}_on_{self.label}"

    @property
    def regime(self) -> str | None:
        """Misalignment of photographs: the first letters of the method's name."""
        return self.method.partition("_")[0] if self.task == PHOTOGRAPHS else None

    @property
    def name(self) -> str:
        """Of the run everywhere: files, MLflow."""
        return f"{SCALE}-{self.task}-{self.variant}-seed{self.seed}"


def read(path: Path = FILE) -> Protocol:
    """The protocol.

    Raises:
        UserError: no such file, not YAML, or a wrong key or value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found in {Path.cwd()}; run from the top of the repository") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid YAML ({' '.join(str(error).split())}); mend the file") from None
    try:
        return validate(Protocol, content, str(path))
    except UserError as error:  # names the file that most settings stand in
        raise UserError(str(error).replace(f"params.yaml: {path}.", f"{path}: ", 1)) from None


def runs(protocol: Protocol, part: str) -> list[Run]:
    """The runs of a part, in the order in which they start.

    Raises:
        UserError: there is no such part.
    """
    if part not in protocol.parts:
        raise UserError(f"--part: found '{part}', expected one of: {', '.join(protocol.parts)}")
    return list(dict.fromkeys(_expanded(protocol.parts[part])))


def find(protocol: Protocol, name: str) -> Run:
    """The run of a name, whatever part it stands in.

    Raises:
        UserError: there is none.
    """
    for part in protocol.parts:
        for run in runs(protocol, part):
            if run.name == name:
                return run
    raise UserError(f"{FILE}: no part has a run '{name}'; see `parts` there")


def settings(protocol: Protocol, tree: params.Tree, run: Run) -> Settings:
    """Complete settings of a run: the dataset, the method and the scale beneath, and the protocol over them.

    Args:
        tree: ``params.yaml``.

    Raises:
        UserError: something does not fit together.
    """
    dataset, beneath = DATASETS[run.task], BENEATH[run.task]
    if run.method not in tree["methods"]:
        raise UserError(f"{FILE}: parts: params.yaml has no method '{run.method}'; take it out")
    over = protocol.photographs.training if run.task == PHOTOGRAPHS else protocol.brain.training
    overrides: dict[str, Any] = {"seed": run.seed}
    if run.regime is not None:
        if run.regime not in protocol.misalignments:
            raise UserError(f"{FILE}: misalignments: '{run.regime}' is missing, which '{run.method}' needs; add it")
        overrides["label_deformation"] = protocol.misalignments[run.regime].model_dump(mode="json")
    if run.label is not None:
        overrides["trains_on_label"] = run.label
    entry = {
        "dataset": dataset, "method": run.method, "code": tree["methods"][run.method]["method"], "overrides": overrides
    }  # fmt: skip
    scale = params.merge(tree["scales"][beneath][dataset], {"training": over})
    extended = {**tree, "scales": {SCALE: {dataset: scale}}, "pipeline": {run.name: entry}}
    return params.resolve(extended, run.name, SCALE)


def _expanded(groups: tuple[Group, ...]) -> Iterator[Run]:
    for group in groups:
        for seed in group.seeds:
            for method in group.methods:
                yield Run(group.task, method, seed, group.label)
