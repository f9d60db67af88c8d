"""Argument parsing only: one command per pipeline stage and per user task; work is imported when it is asked for."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from equisynth.errors import UserError

app = typer.Typer(
    name="equisynth",
    help="Image-to-image translation from paired but non-aligned images of two modalities.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # click's, or the copy of it that newer versions of typer hold
INTERRUPTED = 130  # what typer makes of Ctrl-C
STAGES, TASKS = "Pipeline stages (run by dvc repro)", "Tasks"

Experiment = Annotated[str, typer.Argument(help="Name below `pipeline` in params.yaml, or <dataset>-<method>.")]
Dataset = Annotated[str, typer.Argument(help="Name below `datasets` in params.yaml.")]
Jobs = Annotated[int, typer.Option(min=-1, help="Cases prepared at once; -1: one per core.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that load patches; 0: none.")]
Split = Annotated[str | None, typer.Option(help="train, validate or test; default: validate and test.")]
Epoch = Annotated[str, typer.Option(help="One of the last six, whose weights are kept, or best.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU if there is one.")]


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"equisynth {installed('equisynth')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        return
    from equisynth.experiment_copies import link_main_repository

    link_main_repository()


@app.command(rich_help_panel=STAGES)
def raw(dataset: Dataset, jobs: Jobs = -1) -> None:
    """Make or locate the raw archives of a dataset: data/raw/DATASET."""
    from equisynth import params
    from equisynth.stages import raw as stage

    with _timed(f"raw@{dataset}"):
        tree = params.read()
        layout = params.layout_of(tree, dataset)
        stage.run(params.source(tree, dataset), dataset, Path("data/raw") / dataset, jobs, layout)


@app.command(rich_help_panel=STAGES)
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
    with _timed(f"prepare@{dataset}"):
        tree = params.read()
        settings, data = params.preparation(tree, dataset), params.data_settings(tree, dataset)
        layout = params.layout_of(tree, dataset)
        stage.run(settings, data, dataset, raw, out, jobs, scheduler=scheduler, layout_name=layout)


@app.command(rich_help_panel=STAGES)
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

    with joined() as processes, _timed(f"train@{experiment}") if processes.is_main else nullcontext():
        prepared = Path("data/prepared") / _dataset(experiment)
        stage.run(experiment, prepared, Path("models") / experiment, workers, precision, processes)


@app.command(rich_help_panel=STAGES)
def real_images(dataset: Dataset) -> None:
    """What the FID compares predictions with: reports/real_images/DATASET."""
    from equisynth.stages import real_images as stage

    with _timed(f"real_images@{dataset}"):
        stage.run(dataset, Path("data/prepared") / dataset)


@app.command(rich_help_panel=STAGES)
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
    prepared = Path("data/prepared") / _dataset(experiment)
    options = {
        "seed": seed, "threads": threads, "radius_mm": radius_mm, "label_radius_mm": label_radius_mm,
        "weight_std_mm": weight_std_mm,
    }  # fmt: skip
    if (split, epoch, part) == (None, "best", None) and not any(value is not None for value in options.values()):
        from equisynth.stages import evaluate as stage

        with _timed(f"evaluate@{experiment}"):
            stage.run(experiment, prepared, Path("predictions") / experiment, cache=cache, jobs=jobs)
        return
    from equisynth.variants import Registering
    from equisynth.variants import evaluate as evaluate_variant

    evaluate_variant(experiment, prepared, split, epoch, Registering(part, cache, jobs, options))


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


@app.command(rich_help_panel=STAGES)
def overview() -> None:
    """One page of all experiments that opens offline: reports/index.html."""
    from equisynth.stages import overview as stage

    with _timed("overview"):
        stage.run()


@app.command(rich_help_panel=TASKS)
def compare(
    experiments: Annotated[list[str], typer.Argument(help="Two or more; all are compared with the first.")],
    split: Annotated[str, typer.Option(help="test, validate, or train where it was evaluated.")] = "test",
    measure: Annotated[list[str] | None, typer.Option(help="Such as mae; may be repeated. Default: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Differences between evaluated experiments, with paired bootstrap intervals over cases."""
    from equisynth.compare import run as run_compare
    from equisynth.compare import show
    from equisynth.params import read

    comparisons = run_compare(experiments, split, measure or [], read())
    if as_json:
        print(json.dumps([comparison.to_json() for comparison in comparisons], indent=2, ensure_ascii=False))
    else:
        show(comparisons)


@app.command(rich_help_panel=TASKS)
def predict(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Scans (.nii, .nii.gz, a DICOM folder), .tif, .png, .jpg; folders of them; BIDS trees."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Where the synthesised image goes, or a folder for several; records beside them as .json."),
    ] = None,
    t1: Annotated[
        str | None,
        typer.Option(help="T1 scan of the same subject: finds white matter as training did. For a BIDS tree: T1w."),
    ] = None,
    prepared: Annotated[
        bool, typer.Option("--prepared", help="IMAGE is prepared as the training images were: take it as it is.")
    ] = False,
    mask: Annotated[Path | None, typer.Option(help="Valid region on the image's grid; default: all valid.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Names to take from folders, e.g. '*_T2.nii.gz'.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Images at once, each in a process of its own.")] = 1,
    batch: Annotated[int | None, typer.Option(min=1, help="Tiles at once; default: 4 on a GPU, else 1.")] = None,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16 (networks only).")] = "no",
    flips: Annotated[
        str, typer.Option(help="Average over mirrored tiles: none, trained (if training mirrored) or all.")
    ] = "none",
    experiment: Annotated[str | None, typer.Option(help="Pipeline stage: all validation and test cases.")] = None,
    split: Split = None,
    epoch: Epoch = "best",
    save_slices_over_dims: Annotated[
        str | None, typer.Option(help="0,1,2: write slices across these axes as PNG: reports/slices/EXPERIMENT.")
    ] = None,
    save_full_valid_tiles: Annotated[
        bool, typer.Option("--save-full-valid-tiles", help="Write tiles of sections as PNG: reports/tiles/EXPERIMENT.")
    ] = False,
    save_labels: Annotated[bool, typer.Option("--save-labels", help="Cut real images likewise.")] = False,
    device: Device = None,
    force: Annotated[bool, typer.Option(help="Overwrite OUTPUT and its record if they exist.")] = False,
) -> None:
    """Synthesise the other modality: of IMAGES with --model and --output, or of an --experiment's cases.

    Several images: finished ones are skipped, summary.csv and summary.json tell what became of each; exit code 1 if any
    failed.
    """
    variant = (split, epoch, save_slices_over_dims, save_full_valid_tiles or save_labels) != (None, "best", None, False)
    if experiment is not None:
        if images or model is not None or output is not None or t1 is not None or prepared:
            raise UserError("predict: --experiment stands alone; leave out IMAGES and the options that go with them")
        dataset = Path("data/prepared") / _dataset(experiment)
        if not variant:
            from equisynth.stages import predict as stage

            with _timed(f"predict@{experiment}"):
                stage.run(Path("models") / experiment, dataset, Path("predictions") / experiment, device=device)
            return
        from equisynth.cuts import Cuts
        from equisynth.variants import predict as predict_variant

        cuts = Cuts.chosen(save_slices_over_dims, save_full_valid_tiles, save_labels)
        predict_variant(experiment, dataset, split, epoch, cuts, device)
        return
    if variant:
        raise UserError("predict: --split, --epoch and --save-... go with --experiment; leave them out, or name one")
    if not images or model is None or output is None:
        raise UserError("predict: give IMAGES, --model and --output (or --experiment NAME for the pipeline's stage)")
    from equisynth.apply import Request, predict_file
    from equisynth.cohort import is_one_image

    one = is_one_image(images, output)
    scan = None if t1 is None or not one else Path(t1)
    request = Request(images[0], model, output, mask, scan, prepared, device, force, precision, batch, flips)
    if one:
        predict_file(request)
        return
    from equisynth.cohort_run import run as run_cohort

    raise typer.Exit(run_cohort(images, request, pattern, t1, jobs))


@app.command(rich_help_panel=TASKS)
def search(
    experiment: Experiment,
    trials: Annotated[int | None, typer.Option(min=1, help="Total number of trials; default: params.yaml.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; others may join from other machines.")] = 1,
    confirm: Annotated[int, typer.Option(min=0, help="Repeat so many of the best trials with fresh seeds.")] = 0,
    apply: Annotated[bool, typer.Option("--apply", help="Write the best values into params.yaml; shows what.")] = False,
) -> None:
    """Search loss weights with Optuna; an interrupted search continues."""
    from equisynth.search.run import run as run_search

    run_search(experiment, trials, jobs, confirm, apply)


@app.command(rich_help_panel=TASKS)
def figures(
    experiment: Experiment,
    case: Annotated[str | None, typer.Option(help="Of the split; default: its first one.")] = None,
    split: Annotated[str, typer.Option(help="test, validate or train.")] = "test",
    output: Annotated[
        Path | None, typer.Option(help="PNG file; default: reports/figures/EXPERIMENT/SPLIT-CASE.png.")
    ] = None,
) -> None:
    """Draw one case's whole pass: input, deformed input, outputs, deformed labels, deformations."""
    from equisynth.figures import run as draw

    draw(experiment, Path("data/prepared") / _dataset(experiment), case, split, output)


@app.command(rich_help_panel=TASKS)
def restore_runs(
    experiments: Annotated[list[str] | None, typer.Argument(help="Default: all that have outputs here.")] = None,
) -> None:
    """Rebuild missing MLflow runs and registered versions from models/ and reports/ (after git clone, dvc pull)."""
    from equisynth.restore import run as run_restore

    run_restore(experiments or [])


@app.command(rich_help_panel=TASKS)
def check(
    folder: Annotated[Path, typer.Argument(help="Own cases (a folder, or a .csv or .json table), or prepared data.")],
    name: Annotated[str | None, typer.Option(help="Of the dataset; default: after the folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of words.")] = False,
) -> None:
    """Say what a folder of own pairs holds, with parameters to paste; or whether a prepared dataset is whole."""
    from equisynth.check import run as check_folder

    check_folder(folder, name, as_json)


@app.command(rich_help_panel=TASKS)
def import_weights(
    file: Annotated[Path, typer.Argument(help="Weights that the authors' code saved: training_weights_epoch_NNN.pt.")],
    experiment: Annotated[str, typer.Option(help="Name below `pipeline` in params.yaml, or <dataset>-<method>.")],
    output: Annotated[Path | None, typer.Option(help="New folder; default: models/EXPERIMENT.")] = None,
    scale: Annotated[str | None, typer.Option(help="demo or paper; default: `scale` of params.yaml.")] = None,
) -> None:
    """Make a model folder of the authors' weights, for predict, evaluate and register. Nothing in FILE is executed."""
    from equisynth.import_weights import run as run_import

    run_import(file, experiment, output, scale)


@app.command(rich_help_panel=TASKS)
def resolve(
    experiment: Experiment,
    scale: Annotated[str | None, typer.Option(help="demo or paper; default: `scale` of params.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of YAML.")] = False,
) -> None:
    """Print an experiment's settings as one flat entry."""
    import yaml

    from equisynth.params import read
    from equisynth.params import resolve as resolve_settings

    def options(method: str) -> Any:
        from equisynth.methods.base import method_options  # needs torch: other mistakes are told before

        return method_options(method)

    settings = resolve_settings(read(), experiment, scale, options)
    from equisynth.published import published_entry

    entry = published_entry(settings)
    print(json.dumps(entry, indent=2) if as_json else yaml.safe_dump(entry, sort_keys=False).rstrip())


proof = typer.Typer(no_args_is_help=True, help="Train and measure the proof's runs, make its page (see `make proof`).")
app.add_typer(proof, name="proof", rich_help_panel=TASKS)
Part = Annotated[str, typer.Option(help="short or full, see proof/params.yaml.")]


@proof.command("crops")
def proof_crops() -> None:
    """Photographs that libraries ship -> prepared crops: data/proof/photographs."""
    from equisynth import params
    from equisynth.proof import crops, protocol

    name, out = protocol.DATASETS[protocol.PHOTOGRAPHS], protocol.PREPARED[protocol.PHOTOGRAPHS]
    data = params.data_settings(params.read(), name, protocol.BENEATH[protocol.PHOTOGRAPHS])
    crops.write_dataset(protocol.read().photographs, data, name, out)


@proof.command("train")
def proof_train(
    part: Part = "short",
    jobs: Annotated[int, typer.Option(min=1, envvar="PROOF_JOBS", help="Runs at a time.")] = 2,
    device: Annotated[str, typer.Option(envvar="PROOF_DEVICE", help="cpu or cuda.")] = "cpu",
) -> None:
    """Train what is left of a part's runs: reports/proof/PART. Finished runs are not repeated."""
    from equisynth.proof import stage

    with _timed(f"proof@{part}"):
        stage.train(part, jobs, device)


@proof.command("run")
def proof_run(name: Annotated[str, typer.Argument(help="Of the run.")]) -> None:
    """Train and measure one run, or what is left of it."""
    from equisynth.proof import training

    print(training.train(name))


@proof.command("page")
def proof_page(part: Part = "short") -> None:
    """The runs of a part -> docs/results.md and its pictures, and the README's table of them."""
    from equisynth.proof import page

    page.write(part)


@app.command(rich_help_panel=TASKS)
def methods(
    name: Annotated[str | None, typer.Argument(help="Its file, or a name of params.yaml; default: all.")] = None,
) -> None:
    """List the methods, where they come from and on which datasets the paper reports them; or one with its options."""
    from equisynth.method_list import details, overview
    from equisynth.params import read

    print(overview(read()) if name is None else details(read(), name))


def _dataset(experiment: str) -> str:
    from equisynth import params

    return params.dataset_of(params.read(), experiment)


def _timed(stage: str) -> AbstractContextManager[None]:
    from equisynth.timing import timed

    return timed(stage)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: mistakes the user can mend, and a machine that refuses, end in one line and exit code 2.

    Args:
        arguments: by default those of the process.
    """
    try:
        code = app(args=arguments, prog_name="equisynth", standalone_mode=False)
    except UserError as error:
        _stop(str(error))
    except USAGE_ERROR as error:
        where = error.ctx.command_path if error.ctx is not None else "equisynth"
        _stop(f"{error.format_message().rstrip('.')} (see {where} --help)")
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        from equisynth.failures import explained

        line = explained(error)
        if line is None:
            raise
        _stop(line)
    if code == INTERRUPTED:
        _stop("interrupted; run the same command again to continue", INTERRUPTED)
    sys.exit(code)


def _stop(reason: str, code: int = 2) -> NoReturn:
    from equisynth.failures import with_final_names

    _, _, own = reason.rpartition(f"{UserError.__module__}.UserError: ")  # behind a loading process's traceback
    print(f"equisynth: {with_final_names(' '.join(own.split()))}", file=sys.stderr)
    sys.exit(code)
