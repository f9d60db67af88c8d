"""Everything that the page shows, from the files that the stages write; what is missing or broken is said in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from equisynth.compare import base_name, case_values, inapplicable, pooled_values, reasons
from equisynth.errors import UserError
from equisynth.files import read_json
from equisynth.overview.content import SPLITS, Case, Dataset, Experiment, Overview, Plane, primary
from equisynth.overview.image_files import KINDS, ImageFiles
from equisynth.params import Tree, data_settings, dataset_of

UNKNOWN = "unknown dataset"
MAX_IMAGE_BYTES = 10_500_000
"""All images together; as text in the page they need a third more."""


def collect(tree: Tree, reports: Path = Path("reports"), max_image_bytes: int = MAX_IMAGE_BYTES) -> Overview:
    """Reads all experiments of the pipeline, and others that left reports; evaluations by hand stay out.

    Args:
        tree: of params.yaml.
        max_image_bytes: of all images together; later kinds of `KINDS` and later cases are left out first.
    """
    names = dict.fromkeys(tree["pipeline"])
    for folder in ("evaluation", "history"):
        found_here = sorted(path.name.removesuffix(".json") for path in (reports / folder).glob("*.json"))
        names |= dict.fromkeys(name for name in found_here if base_name(name) == name)
    files = ImageFiles(reports / "panels")
    experiments = [read_experiment(name, tree, reports, files) for name in names]
    found = list(dict.fromkeys(experiment.dataset for experiment in experiments))
    datasets = [_dataset(name, [e for e in experiments if e.dataset == name], tree) for name in found]
    images, left_out = files.fitting(max_image_bytes)
    content = json.dumps([datasets, sorted(images)], default=vars, sort_keys=True)
    return Overview(datasets, tree["scale"], images, left_out, hashlib.sha256(content.encode()).hexdigest()[:12])


def read_experiment(name: str, tree: Tree, reports: Path, images: ImageFiles) -> Experiment:
    """Whatever is there of an experiment."""
    problems: list[str] = []

    def read(folder: str, check: type, required: bool = True) -> Any:
        path = reports / folder / f"{name}.json"
        if not path.is_file():
            if required:
                problems.append(f"no {path.relative_to(reports).as_posix()}")
            return check()
        try:
            content = read_json(path)
        except UserError as error:
            problems.append(str(error))
            return check()
        if not isinstance(content, check):
            problems.append(f"{path.relative_to(reports).as_posix()} is not what the stage writes")
            return check()
        return content

    details, history, registered = read("evaluation", dict), read("history", list), read("registry", dict)
    panels = _read_panels(reports / "panels" / name, problems)
    if not details and not history:
        problems = ["not run"]
    dataset, method = _origin(name, tree, panels)

    def attempt(function: Callable[[], Any], what: str) -> Any:
        try:
            return function()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problems.append(f"{what} cannot be read ({type(error).__name__}: {error})")
            return {}

    fid = details.get("fid") if isinstance(details.get("fid"), Mapping) else {}
    pooled = {split: attempt(partial(pooled_values, details, split), split) for split in SPLITS}
    return Experiment(
        name=name,
        dataset=dataset,
        method=method,
        pooled={split: values for split, values in pooled.items() if values},
        cases={split: attempt(partial(case_values, details, split), split) for split in SPLITS},
        missing=attempt(lambda: reasons(details, "test"), "test"),
        inapplicable=attempt(lambda: inapplicable(details, "test"), "test") or (),
        references=attempt(lambda: _references(details), "references"),
        reference_split=(fid or {}).get("split", "test"),
        fid=fid or {},
        history=[record for record in history if isinstance(record, Mapping) and "epoch" in record],
        registered=registered or None,
        panels=attempt(lambda: _cases(panels, name, images), "panels") or (),
        error_range=attempt(lambda: tuple(map(float, panels["error_range"])) if panels else None, "panels") or None,
        error_colours=attempt(lambda: tuple(map(str, panels.get("error_colours", ()))), "panels") or (),
        problems=tuple(problems),
    )


def _dataset(name: str, experiments: list[Experiment], tree: Tree) -> Dataset:
    measure = primary(experiments, "test")

    def rank(found: Experiment) -> tuple[int, float]:
        value = found.pooled.get("test", {}).get(measure.name) if measure else None
        if value is None:
            return (2 if "not run" in found.problems else 1), 0.0
        return 0, measure.badness(value) or 0.0  # type: ignore[union-attr]

    ordered = sorted(experiments, key=rank)
    try:
        data = data_settings(tree, name)
    except UserError:
        return Dataset(name, ordered)
    return Dataset(name, ordered, data.label.unit, data.input.modality, data.label.modality, data.n_dims)


def _origin(name: str, tree: Tree, panels: Mapping[str, Any]) -> tuple[str, str]:
    """Dataset and method."""
    base = base_name(name)
    entry = tree["pipeline"].get(base) or {}
    try:
        dataset = dataset_of(tree, base)
    except UserError:
        dataset = str(panels.get("dataset", UNKNOWN))
    return dataset, str(entry.get("method") or panels.get("method") or base.removeprefix(f"{dataset}-"))


def _references(details: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Named as the models' measures are."""
    split = (details.get("fid") or {}).get("split", "test")
    of_split = details.get(split) or {}
    found = {}
    for name, pooled in (details.get("references") or {}).items():
        known = {key: value for key, value in pooled.items() if key != "residual_rmse"}
        found[name] = pooled_values({split: {"label": of_split.get("label"), "pooled": known}}, split)
    return found


def _read_panels(folder: Path, problems: list[str]) -> Mapping[str, Any]:
    path = folder / "panels.json"
    if not path.is_file():
        problems.append(f"no panels/{folder.name}/panels.json")
        return {}
    try:
        content = read_json(path)
    except UserError as error:
        problems.append(str(error))
        return {}
    return content if isinstance(content, dict) else {}


def _cases(panels: Mapping[str, Any], experiment: str, images: ImageFiles) -> list[Case]:
    return [
        Case(
            str(case["case"]),
            str(case.get("split", "test")),
            tuple(case.get("chosen") or ()),
            {key: float(value) for key, value in (case.get("measures") or {}).items() if _is_number(value)},
            [_plane(plane, experiment, images, rank) for plane in case.get("planes") or ()],
            str(case.get("reference", "")),
            str(case.get("checkerboard_with", "")),
        )
        for rank, case in enumerate(panels.get("cases") or ())
    ]


def _plane(plane: Mapping[str, Any], experiment: str, images: ImageFiles, rank: int) -> Plane:
    named = {kind: plane["images"].get(kind) for kind in KINDS}
    keys = {kind: images.add(experiment, file, kind, rank) for kind, file in named.items() if file}
    return Plane(str(plane["plane"]), {kind: key for kind, key in keys.items() if key is not None})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
