"""One command per task of a user."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from equisynth.commands.options import Device, Epoch, Experiment, Split, dataset_of, timed_stage
from equisynth.errors import UserError

PANEL = "Tasks"
SCHEDULER = "EQUISYNTH_SCHEDULER"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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
    scheduler: Annotated[
        str | None,
        typer.Option(envvar=SCHEDULER, help="Translate several images on a dask cluster: tcp://HOST:8786."),
    ] = None,
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
    asked_scheduler = None if scheduler == os.environ.get(SCHEDULER) else scheduler  # the variable holds for cohorts
    if experiment is not None:
        of_images = (images or None, model, output, t1, mask, pattern, batch, asked_scheduler)
        changed = (prepared, force, jobs, precision, flips) != (False, False, 1, "no", "none")
        if changed or any(value is not None for value in of_images):
            raise UserError("predict: --experiment stands alone; leave out IMAGES and the options that go with them")
        dataset = Path("data/prepared") / dataset_of(experiment)
        if not variant:
            from equisynth.stages import predict as stage

            with timed_stage(f"predict@{experiment}"):
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
    from equisynth.cohort import check_one_image, is_one_image

    one = is_one_image(images, output)
    if one:
        check_one_image(images[0], output, pattern, jobs, asked_scheduler)
    scan = None if t1 is None or not one else Path(t1)
    request = Request(images[0], model, output, mask, scan, prepared, device, force, precision, batch, flips)
    if one:
        predict_file(request)
        return
    from equisynth.cohort_run import run as run_cohort

    raise typer.Exit(run_cohort(images, request, pattern, t1, jobs, scheduler))


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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

    draw(experiment, Path("data/prepared") / dataset_of(experiment), case, split, output)


@app.command(rich_help_panel=PANEL)
def restore_runs(
    experiments: Annotated[list[str] | None, typer.Argument(help="Default: all that have outputs here.")] = None,
) -> None:
    """Rebuild missing MLflow runs and registered versions from models/ and reports/ (after git clone, dvc pull)."""
    from equisynth.restore import run as run_restore

    run_restore(experiments or [])


@app.command(rich_help_panel=PANEL)
def check(
    folder: Annotated[Path, typer.Argument(help="Own cases (a folder, or a .csv or .json table), or prepared data.")],
    name: Annotated[str | None, typer.Option(help="Of the dataset; default: after the folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of words.")] = False,
) -> None:
    """Say what a folder of own pairs holds, with parameters to paste; or whether a prepared dataset is whole."""
    from equisynth.check import run as check_folder

    check_folder(folder, name, as_json)


@app.command(rich_help_panel=PANEL)
def import_weights(
    file: Annotated[Path, typer.Argument(help="Weights that the authors' code saved: training_weights_epoch_NNN.pt.")],
    experiment: Annotated[str, typer.Option(help="Name below `pipeline` in params.yaml, or <dataset>-<method>.")],
    output: Annotated[Path | None, typer.Option(help="New folder; default: models/EXPERIMENT.")] = None,
    scale: Annotated[str | None, typer.Option(help="demo or paper; default: `scale` of params.yaml.")] = None,
) -> None:
    """Make a model folder of the authors' weights, for predict, evaluate and register. Nothing in FILE is executed."""
    from equisynth.import_weights import run as run_import

    run_import(file, experiment, output, scale)


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
def methods(
    name: Annotated[str | None, typer.Argument(help="Its file, or a name of params.yaml; default: all.")] = None,
) -> None:
    """List the methods, where they come from and on which datasets the paper reports them; or one with its options."""
    from equisynth.method_list import details, overview
    from equisynth.params import read

    print(overview(read()) if name is None else details(read(), name))
