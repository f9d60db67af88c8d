"""``equisynth check``: what a folder of own pairs holds, with parameters for it; whether a prepared dataset is whole.

Numbers come from `findings` and `suggested_params`; here they are put into words, tables and JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from equisynth.datasets.own_cases import FolderCases, FolderSource, locate
from equisynth.datasets.prepared import SPLITS, PreparedDataset
from equisynth.errors import UserError
from equisynth.findings import Findings, ImageFacts, survey
from equisynth.suggested_params import SMALLEST_AXIS, Tree, checked_name, dataset_name, suggest, too_small

SHOWN = 20
"""Cases in the table; JSON has them all."""
NEEDED = 3
"""Cases: one to train, one to validate, one to test."""


def run(folder: Path, name: str | None = None, as_json: bool = False) -> None:
    """Says what is in ``folder`` (a prepared dataset, a folder of cases, or a CSV or JSON table of paths).

    Args:
        name: of the dataset in the suggested parameters; by default after the folder.

    Raises:
        UserError: nothing in it can be used, or the prepared dataset is not whole.
    """
    if (folder / "dataset.json").is_file():
        facts = check_prepared(PreparedDataset.open(folder))
        print(json.dumps(facts, indent=2)) if as_json else _print_prepared(facts)
        return
    findings, tree, warnings = check_own(folder, name)
    if as_json:
        print(json.dumps(_own_json(findings, tree, warnings), indent=2))
    else:
        _print_own(findings, tree, warnings)
    if tree is None:
        reasons = [f"{case}: {reason}" for case, reason in findings.skipped.items()] or warnings
        raise UserError(f"{folder}: no case can be used ({'; '.join(reasons[:3])})")


def check_own(folder: Path, name: str | None = None) -> tuple[Findings, Tree | None, list[str]]:
    """What a source of own data holds, the parameters for it (None: nothing can be used), and warnings."""
    top = folder.resolve() if folder.is_dir() else folder.resolve().parent
    chosen = dataset_name(top.name) if name is None else checked_name(name)
    with FolderCases(locate(FolderSource(path=folder))) as source, _Progress("Reading cases") as progress:
        findings = survey(source, progress)
    warnings = list(findings.warnings())
    if findings.unknown:
        more = f" and {len(findings.unknown) - 3} more" if len(findings.unknown) > 3 else ""
        warnings.append(f"no role by their name: {', '.join(findings.unknown[:3])}{more}")
    if not findings.cases:
        return findings, None, warnings
    if len(findings.cases) < NEEDED:
        warnings.append(
            f"{len(findings.cases)} of the {NEEDED} cases that are needed at least: one to train, one to validate, "
            "one to test (to try the program with one pair, list it under three names in a CSV table)"
        )
    tree = suggest(findings, chosen)
    if tree is None:
        warnings.append(f"an axis has less than {SMALLEST_AXIS} voxels when prepared: too few for a network")
    else:
        warnings += too_small(findings, tree)
    return findings, tree, warnings


def check_prepared(dataset: PreparedDataset) -> dict[str, Any]:
    """Reads every file of a prepared dataset; facts about it, JSON-like.

    Raises:
        UserError: it is not whole.
    """
    dataset.verify()
    info = dataset.info
    return {
        "kind": "prepared",
        "name": info.name,
        "folder": str(dataset.folder),
        "n_dims": info.n_dims,
        "voxel_size": list(info.voxel_size),
        "input": info.input.modality,
        "label": info.label.modality,
        "licence": info.licence,
        "splits": {split: len(dataset.cases(split)) for split in SPLITS},
        "cases": {case: _case_facts(dataset, case, split) for split in SPLITS for case in dataset.cases(split)},
        "skipped": {skipped.case: skipped.reason for skipped in info.skipped},
    }


def _case_facts(dataset: PreparedDataset, case: str, split: str) -> dict[str, Any]:
    evaluation, label_mask = dataset.mask(case, "evaluation"), dataset.mask(case, "label")
    displacement = None
    if dataset.has(case, "deformation"):
        lengths = np.sqrt((dataset.deformation(case).astype(np.float32) ** 2).sum(axis=0))
        inside = lengths if evaluation is None else lengths[evaluation > 0]
        displacement = round(float(inside.mean()), 3) if inside.size else None
    return {
        "split": split,
        "shape": list(dataset.shape(case)),
        "roles": list(dataset.roles(case)),
        "label_valid": 1.0 if label_mask is None else round(float(label_mask.mean()), 3),
        "displacement_voxels": displacement,
    }


# --- words


class _Progress:
    """A bar on the terminal's error stream, gone when done."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)


def to_yaml(tree: Tree) -> str:
    """The text of parameters, innermost lists and mappings on one line, nothing by reference."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    return yaml.dump(tree, Dumper=Plain, sort_keys=False, default_flow_style=None, width=120).rstrip()


def _own_json(findings: Findings, tree: Tree | None, warnings: list[str]) -> dict[str, Any]:
    return {
        "kind": "own data",
        **asdict(findings),
        "n_dims": findings.n_dims if findings.cases else None,
        "warnings": warnings,
        "parameters": tree,
    }


def _print_own(findings: Findings, tree: Tree | None, warnings: list[str]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{findings.path}: {_summary(findings)}", markup=False)
    table = Table(
        "case", "image", *(Column(name, no_wrap=True) for name in ("shape", "voxel size", "axes", "type")), "values"
    )
    for case in findings.cases[:SHOWN]:
        for number, (role, image) in enumerate(case.images.items()):
            table.add_row("" if number else case.case, role, *_cells(image))
        if case.masks:
            table.add_row("", ", ".join(case.masks))
    if findings.cases:
        Console(highlight=False).print(table)
    if len(findings.cases) > SHOWN:
        console.print(f"and {len(findings.cases) - SHOWN} more cases (all of them: --json)")
    for skipped, reason in findings.skipped.items():
        console.print(f"skipped: {skipped}: {reason}", style="yellow", markup=False)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    if tree is not None:
        print("\n# To paste into params.yaml, each part below the section of its name:")
        print(to_yaml(tree))


def _summary(findings: Findings) -> str:
    count, skipped = len(findings.cases), len(findings.skipped)
    text = f"{count} usable {'case' if count == 1 else 'cases'}, {skipped} skipped"
    if not count:
        return text
    kind = "volumes (3D)" if findings.n_dims == 3 else "pictures or slices (2D)"
    aligned = sum("label_aligned" in case.images for case in findings.cases)
    masked = sum(bool(case.masks) for case in findings.cases)
    apart = sum(not case.same_grid for case in findings.cases)
    return f"{text}; {kind}; {aligned} with an aligned label, {masked} with masks, {apart} with two grids in the pair"


def _cells(image: ImageFacts) -> tuple[str, ...]:
    stored = image.stored if len(image.mean) == 1 else f"{image.stored} x {len(image.mean)}"
    sizes = " x ".join(f"{size:.4g}" for size in image.voxel_size)
    shape = " x ".join(map(str, image.shape))
    return shape, sizes, image.orientation or "pixels", stored, f"{image.low:.4g} to {image.high:.4g}"


def _print_prepared(facts: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(soft_wrap=True, highlight=False)
    counts = ", ".join(f"{count} {split}" for split, count in facts["splits"].items())
    sizes = " x ".join(f"{size:.4g}" for size in facts["voxel_size"])
    console.print(
        f"{facts['folder']}: prepared dataset {facts['name']}, {facts['input']} to {facts['label']}, {counts}; "
        f"{facts['n_dims']}D, voxel size {sizes}; every file was read and is as it should be",
        markup=False,
    )
    cases = list(facts["cases"].items())
    for roles in sorted({tuple(fact["roles"]) for _, fact in cases}):
        count = sum(tuple(fact["roles"]) == roles for _, fact in cases)
        console.print(f"{count} cases with {', '.join(roles)}")
    table = Table("case", "split", Column("shape", no_wrap=True), "label valid", "displaced")
    for case, fact in cases[:SHOWN]:
        displaced = "unknown" if fact["displacement_voxels"] is None else f"{fact['displacement_voxels']:.2f} voxels"
        shape = " x ".join(map(str, fact["shape"]))
        table.add_row(case, fact["split"], shape, f"{100 * fact['label_valid']:.0f} %", displaced)
    Console(highlight=False).print(table)
    if len(cases) > SHOWN:
        console.print(f"and {len(cases) - SHOWN} more cases (all of them: --json)")
    for case, reason in facts["skipped"].items():
        console.print(f"skipped: {case}: {reason}", style="yellow", markup=False)
