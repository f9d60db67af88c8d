"""Argument parsing only: one command per pipeline stage and per user task; work is imported when it is asked for."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from equisynth.errors import UserError

app = typer.Typer(
    name="equisynth",
    help="Image-to-image translation from paired but non-aligned images of two modalities.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
STAGES, TASKS = "Pipeline stages (run by dvc repro)", "Tasks"

Experiment = Annotated[str, typer.Argument(help="Name below `pipeline` in params.yaml, or <dataset>-<method>.")]
Dataset = Annotated[str, typer.Argument(help="Name below `datasets` in params.yaml.")]
Jobs = Annotated[int, typer.Option(min=-1, help="Cases prepared at once; -1: one per core.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that load patches; 0: none.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU if there is one.")]


@app.command(rich_help_panel=STAGES)
def raw(dataset: Dataset, jobs: Jobs = -1) -> None:
    """Make or locate the raw archives of a dataset: data/raw/DATASET."""
    from equisynth import params
    from equisynth.stages import raw as stage

    with _timed(f"raw@{dataset}"):
        stage.run(params.source(params.read(), dataset), dataset, Path("data/raw") / dataset, jobs)


@app.command(rich_help_panel=STAGES)
def prepare(dataset: Dataset, jobs: Jobs = -1) -> None:
    """Raw archives -> prepared dataset: data/prepared/DATASET."""
    from equisynth import params
    from equisynth.stages import prepare as stage

    raw, out = Path("data/raw") / dataset, Path("data/prepared") / dataset
    with _timed(f"prepare@{dataset}"):
        tree = params.read()
        stage.run(params.preparation(tree, dataset), params.data_settings(tree, dataset), dataset, raw, out, jobs)


@app.command(rich_help_panel=STAGES)
def train(
    experiment: Experiment,
    workers: Workers = 0,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16 (networks only).")] = "no",
) -> None:
    """Train an experiment: models/EXPERIMENT. An interrupted training continues."""
    from equisynth.stages import train as stage

    with _timed(f"train@{experiment}"):
        prepared = Path("data/prepared") / _dataset(experiment)
        stage.run(experiment, prepared, Path("models") / experiment, workers, precision)


@app.command(rich_help_panel=STAGES)
def evaluate(experiment: Experiment) -> None:
    """Measure the predictions: reports/metrics/EXPERIMENT.json and reports/evaluation/EXPERIMENT.json."""
    from equisynth.stages import evaluate as stage

    with _timed(f"evaluate@{experiment}"):
        stage.run(experiment, Path("data/prepared") / _dataset(experiment), Path("predictions") / experiment)


@app.command(rich_help_panel=STAGES)
def register(
    experiment: Experiment,
    force: Annotated[bool, typer.Option(help="Promote to champion whatever the measure says (recorded).")] = False,
) -> None:
    """Log the evaluation to the training's run and register its model; promote it if it is better."""
    from equisynth.stages import register as stage

    with _timed(f"register@{experiment}"):
        stage.run(experiment, force=force)


@app.command(rich_help_panel=STAGES)
def report(experiment: Experiment) -> None:
    """Draw pictures of the predictions and log them: reports/pictures/EXPERIMENT."""
    from equisynth.stages import report as stage

    with _timed(f"report@{experiment}"):
        stage.run(experiment)


@app.command(rich_help_panel=TASKS)
def predict(
    image: Annotated[Path | None, typer.Argument(help="Prepared input image (.nii, .nii.gz, .tif).")] = None,
    model: Annotated[str | None, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where the synthesised image goes.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Valid region on the image's grid; default: all valid.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Pipeline stage: all validation and test cases.")] = None,
    device: Device = None,
    force: Annotated[bool, typer.Option(help="Overwrite OUTPUT if it exists.")] = False,
) -> None:
    """Synthesise the other modality: of IMAGE with --model and --output, or of an --experiment's cases."""
    if experiment is not None:
        if image is not None or model is not None or output is not None:
            raise UserError("predict: --experiment stands alone; leave out IMAGE, --model and --output")
        from equisynth.stages import predict as stage

        prepared, folder = Path("data/prepared") / _dataset(experiment), Path("predictions") / experiment
        with _timed(f"predict@{experiment}"):
            stage.run(Path("models") / experiment, prepared, folder, device=device)
        return
    if image is None or model is None or output is None:
        raise UserError("predict: give IMAGE, --model and --output (or --experiment NAME for the pipeline's stage)")
    from equisynth.apply import predict_file

    predict_file(image, model, output, mask, device, force)


@app.command(rich_help_panel=TASKS)
def search(
    experiment: Experiment,
    trials: Annotated[int | None, typer.Option(min=1, help="Total number of trials; default: params.yaml.")] = None,
) -> None:
    """Search loss weights with Optuna; an interrupted search continues."""
    from equisynth.search import run as run_search

    run_search(experiment, trials=trials)


@app.command(rich_help_panel=TASKS)
def resolve(
    experiment: Experiment,
    scale: Annotated[str | None, typer.Option(help="demo or paper; default: `scale` of params.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of YAML.")] = False,
) -> None:
    """Print an experiment's settings as one flat entry."""
    import yaml

    from equisynth.config import published_entry
    from equisynth.params import read
    from equisynth.params import resolve as resolve_settings

    entry = published_entry(resolve_settings(read(), experiment, scale))
    print(json.dumps(entry, indent=2) if as_json else yaml.safe_dump(entry, sort_keys=False).rstrip())


def _dataset(experiment: str) -> str:
    from equisynth import params

    return params.dataset_of(params.read(), experiment)


def _timed(stage: str) -> AbstractContextManager[None]:
    from equisynth.timing import timed

    return timed(stage)


def main() -> None:
    """Entry point: mistakes the user can mend end in one line and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"equisynth: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("equisynth: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
