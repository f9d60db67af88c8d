"""``equisynth restore-runs``: MLflow's runs and registered versions from the outputs that ``dvc pull`` brings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from equisynth.dataset_versions import trained_on
from equisynth.description import DESCRIPTION, read_description
from equisynth.errors import UserError
from equisynth.files import read_json, sha256
from equisynth.model import WEIGHTS
from equisynth.params import dataset_of, read
from equisynth.registry import version_numbers
from equisynth.stages.register import describe, enrol
from equisynth.tracking import find_run, log_details, log_evaluation, log_files, run_of


def run(experiments: Sequence[str] = ()) -> None:
    """Restores what is missing and says for each experiment what that was; repeated, it changes nothing.

    Args:
        experiments: by default those of ``params.yaml`` and all that have a model here.

    Raises:
        UserError: at the end, if outputs of an experiment are missing; the others are restored all the same.
    """
    tree = read()
    for experiment in experiments:
        dataset_of(tree, experiment)
    names = set(experiments) or {*tree["pipeline"], *(path.parent.name for path in Path("models").glob("*/*.json"))}
    incomplete = 0
    for experiment in sorted(names, key=_order):
        missing = [str(path) for path in outputs(experiment) if not path.exists()]
        if missing and len(missing) == len(outputs(experiment)) and not experiments:
            print(f"{experiment}: has no outputs here, nothing to restore")
        elif missing:
            incomplete += 1
            print(f"{experiment}: not restored, missing: {', '.join(missing)}", file=sys.stderr)
        else:
            try:
                print(f"{experiment}: {restore(experiment)}")
            except UserError as error:
                incomplete += 1
                print(f"{experiment}: not restored: {error}", file=sys.stderr)
    if incomplete:
        raise UserError(
            f"restore-runs: {incomplete} of {len(names)} experiments not restored; get their outputs (dvc pull, "
            "dvc repro) and run it again"
        )


def outputs(experiment: str) -> list[Path]:
    """What runs and versions are made from."""
    reports = Path("reports")
    return [
        Path("models") / experiment / WEIGHTS,
        Path("models") / experiment / DESCRIPTION,
        reports / "history" / f"{experiment}.json",
        reports / "metrics" / f"{experiment}.json",
        reports / "pictures" / experiment,
    ]


def restore(experiment: str) -> str:
    """Restores one experiment; what was done, in words."""
    folder = Path("models") / experiment
    model_sha256, dataset = sha256(folder / WEIGHTS), read_description(folder).settings.dataset
    trained_on(experiment, dataset)  # before anything is made: a run without its dataset's version says too little
    done = [] if find_run(experiment, model_sha256) else ["run rebuilt"]
    run_id = run_of(experiment)
    values = log_evaluation(run_id, read_json(Path("reports/metrics") / f"{experiment}.json"))
    done += [f"{values} values of the evaluation logged"] if values else []
    pictures = log_files(run_id, Path("reports/pictures") / experiment, missing_only=True)
    done += [f"{pictures} pictures logged"] if pictures else []
    if (Path("reports/evaluation") / f"{experiment}.json").is_file():
        log_details(run_id, experiment)
    before = version_numbers(dataset)
    result = enrol(experiment, run_id)
    done += [] if result.version in before else [f"version {result.version} registered"]
    return f"{', '.join(done) or 'nothing to do'}; {describe(result)}"


def _order(experiment: str) -> tuple[int, str]:
    """As they were registered, so that a new registry numbers them likewise; the others come last."""
    path = Path("reports/registry") / f"{experiment}.json"
    return (int(read_json(path)["version"]) if path.is_file() else sys.maxsize, experiment)
