"""Arguments and options that several commands share, and the little that stages do around their work."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Annotated

import typer

Experiment = Annotated[str, typer.Argument(help="Name below `pipeline` in params.yaml, or <dataset>-<method>.")]
Dataset = Annotated[str, typer.Argument(help="Name below `datasets` in params.yaml.")]
Jobs = Annotated[int, typer.Option(min=-1, help="Cases prepared at once; -1: one per core.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that load patches; 0: none.")]
Split = Annotated[str | None, typer.Option(help="train, validate or test; default: validate and test.")]
Epoch = Annotated[str, typer.Option(help="One of the last six, whose weights are kept, or best.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU if there is one.")]


def dataset_of(experiment: str) -> str:
    """The dataset of an experiment, as params.yaml says."""
    from equisynth import params

    return params.dataset_of(params.read(), experiment)


def timed_stage(stage: str) -> AbstractContextManager[None]:
    """Notes how long a stage took, for ``make demo`` to show."""
    from equisynth.timing import timed

    return timed(stage)
