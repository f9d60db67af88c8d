"""One command per pipeline stage, as dvc.yaml calls them (predict, which users call as well, is among the tasks)."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from equisynth.commands.options import Dataset, Epoch, Experiment, Jobs, Split, Workers, dataset_of, timed_stage

PANEL = "Pipeline stages (run by dvc repro)"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def code() -> None:
    """List the source files that each stage is made of: build/code."""
    from equisynth.stages import code as stage

    with timed_stage("code"):
        stage.run(Path("build/code"))


@app.command(rich_help_panel=PANEL)
def raw(dataset: Dataset, jobs: Jobs = -1) -> None:
    """Make or locate the raw archives of a dataset: data/raw/DATASET."""
    from equisynth import params
    from equisynth.stages import raw as stage

    with timed_stage(f"raw@{dataset}"):
        tree = params.read()
        layout = params.layout_of(tree, dataset)
        stage.run(params.source(tree, dataset), dataset, Path("data/raw") / dataset, jobs, layout)


@app.command(rich_help_panel=PANEL)
def prepare(
    dataset: Dataset,
    jobs: Jobs = -1,
    scheduler: Annotated[
        str | None,
        typer.Option(envvar="EQUISYNTH_SCHEDULER", help="Prepare on a dask cluster: tcp://HOST:8786."),
    ] = None,
) -> None:
    """Raw archives -> prepared dataset: data/prepared/DATASET."""
    from equisynth import params
    from equisynth.stages import prepare as stage

    raw, out = Path("data/raw") / dataset, Path("data/prepared") / dataset
    with timed_stage(f"prepare@{dataset}"):
        tree = params.read()
        settings, data = params.preparation(tree, dataset), params.data_settings(tree, dataset)
        layout = params.layout_of(tree, dataset)
        stage.run(settings, data, dataset, raw, out, jobs, scheduler=scheduler, layout_name=layout)


@app.command(rich_help_panel=PANEL)
def train(
    experiment: Experiment,
    workers: Workers = 0,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16 (networks only).")] = "no",
) -> None:
    """Train an experiment: models/EXPERIMENT. An interrupted training continues.

    In several processes: torchrun --nproc-per-node 2 -m equisynth train EXPERIMENT
    """
    from equisynth.processes import joined
    from equisynth.stages import train as stage

    with joined() as processes, timed_stage(f"train@{experiment}") if processes.is_main else nullcontext():
        prepared = Path("data/prepared") / dataset_of(experiment)
        stage.run(experiment, prepared, Path("models") / experiment, workers, precision, processes)


@app.command(rich_help_panel=PANEL)
def real_images(dataset: Dataset) -> None:
    """What the FID compares predictions with: reports/real_images/DATASET."""
    from equisynth.stages import real_images as stage

    with timed_stage(f"real_images@{dataset}"):
        stage.run(dataset, Path("data/prepared") / dataset)


@app.command(rich_help_panel=PANEL)
def evaluate(
    experiment: Experiment,
    split: Split = None,
    epoch: Epoch = "best",
    part: Annotated[str | None, typer.Option(help="2/5: only find this part of the registrations.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of registrations; default: .equisynth/registrations/DATASET.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=-1, help="Processes that register and measure; -1: one per core.")] = -1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each registration; default: params.yaml (1).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the registrations; default: params.yaml.")] = None,
    radius_mm: Annotated[float | None, typer.Option(help="Of the ball around a location.")] = None,
    label_radius_mm: Annotated[float | None, typer.Option(help="The same in the label.")] = None,
    weight_std_mm: Annotated[float | None, typer.Option(help="How wide errors count around a location.")] = None,
) -> None:
    """Measure the predictions: reports/metrics/EXPERIMENT.json and reports/evaluation/EXPERIMENT.json.

    Options that change numbers change names: reports/metrics/EXPERIMENT.epoch12.train.seed3.json.
    """
    prepared = Path("data/prepared") / dataset_of(experiment)
    options = {
        "seed": seed, "threads": threads, "radius_mm": radius_mm, "label_radius_mm": label_radius_mm,
        "weight_std_mm": weight_std_mm,
    }  # fmt: skip
    if (split, epoch, part) == (None, "best", None) and not any(value is not None for value in options.values()):
        from equisynth.stages import evaluate as stage

        with timed_stage(f"evaluate@{experiment}"):
            stage.run(experiment, prepared, Path("predictions") / experiment, cache=cache, jobs=jobs)
        return
    from equisynth.variants import Registering
    from equisynth.variants import evaluate as evaluate_variant

    evaluate_variant(experiment, prepared, split, epoch, Registering(part, cache, jobs, options))


@app.command(rich_help_panel=PANEL)
def register(
    experiment: Experiment,
    force: Annotated[bool, typer.Option(help="Promote to champion whatever the measure says (recorded).")] = False,
) -> None:
    """Log the evaluation to the training's run and register its model; promote it if it is better."""
    from equisynth.stages import register as stage

    with timed_stage(f"register@{experiment}"):
        stage.run(experiment, force=force)


@app.command(rich_help_panel=PANEL)
def report(experiment: Experiment) -> None:
    """Draw pictures of the predictions and log them: reports/pictures/EXPERIMENT."""
    from equisynth.stages import report as stage

    with timed_stage(f"report@{experiment}"):
        stage.run(experiment)


@app.command(rich_help_panel=PANEL)
def overview() -> None:
    """One page of all experiments that opens offline: reports/index.html."""
    from equisynth.stages import overview as stage

    with timed_stage("overview"):
        stage.run()
