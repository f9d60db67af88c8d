"""Stage ``prepare``: raw archives -> a prepared dataset. Cases run in parallel; a repeat continues where it stopped."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from equisynth import __name__ as package
from equisynth.config import Data
from equisynth.datasets import ixi
from equisynth.datasets.prepared import SPLITS, DatasetInfo, PreparedDataset, write_case, write_info
from equisynth.datasets.splits import SplitLists, split_cases
from equisynth.errors import UserError
from equisynth.files import atomic_folder, link, read_json, write_json
from equisynth.params import validate
from equisynth.work import fingerprint, resumable, say_continuing

Facts = dict[str, Any]


def run(
    preparation: dict[str, Any],
    data: Data,
    name: str,
    raw: Path,
    out: Path,
    jobs: int = 1,
    work: Path = Path(".equisynth/prepare"),
) -> None:
    """Prepares dataset ``name`` from the folder ``raw`` (stage ``raw``'s output) into the folder ``out``.

    The bytes do not depend on ``jobs``. Finished cases wait below ``work`` until all are done, so that a
    repeat after a kill loses those at work only (one for each of the ``jobs``).

    Raises:
        UserError: wrong parameters or archives, or a split without any usable case.
    """
    settings = validate(ixi.IxiPreparation, preparation, f"datasets.{name}.preparation")
    source = read_json(raw / "source.json")
    if source["layout"] != "ixi":
        raise UserError(f"{raw / 'source.json'}: layout {source['layout']!r}, expected 'ixi'; run the stage raw again")
    archives = {modality: raw / path for modality, path in source["archives"].items()}
    with ixi.IxiArchives(archives) as opened:
        splits = _splits(settings, raw, opened)
        skipped = dict.fromkeys(opened.incomplete_cases(), "lacks a T1, T2 or PD scan")
    listed = [case for split in SPLITS for case in splits[split]]

    # What decides a case, and nothing else: a new split keeps the finished cases.
    key = {
        "source": source,
        "archives": {modality: fingerprint(path) for modality, path in archives.items()},
        "voxel_size": data.voxel_size,
        **settings.model_dump(mode="json", exclude={"splits"}),
    }
    with resumable(work, name, key) as finished:
        facts = _prepare_all(name, listed, archives, settings, data, finished, jobs)
        skipped = {case: reason for case, reason in skipped.items() if case in listed or settings.splits is None}
        skipped |= {case: fact["skipped"] for case, fact in facts.items() if "skipped" in fact}
        kept = {split: [case for case in cases if case not in skipped] for split, cases in splits.items()}
        for split, cases in kept.items():
            if not cases:
                reasons = "; ".join(f"{case}: {skipped[case]}" for case in splits[split][:3]) or "no case is listed"
                raise UserError(
                    f"{raw}: no case of split '{split}' can be used ({reasons}); check the archives and splits"
                )
        info = DatasetInfo(
            **data.model_dump(),
            name=name,
            preparation=ixi.constants(settings, data.voxel_size, [facts[case] for case in kept["train"]]),  # type: ignore[arg-type]
            splits={split: tuple(cases) for split, cases in kept.items()},
            skipped=tuple({"case": case, "reason": skipped[case]} for case in sorted(skipped)),  # type: ignore[misc]
        )
        with atomic_folder(out) as folder:
            for case in (case for cases in kept.values() for case in cases):
                for path in sorted((finished / "cases" / case).iterdir()):
                    link(path, folder / "cases" / case / path.name)
            write_info(folder, info)
            PreparedDataset.open(folder)
    _report(info, [facts[case] for cases in kept.values() for case in cases])


def _splits(settings: ixi.IxiPreparation, raw: Path, archives: ixi.IxiArchives) -> dict[str, list[str]]:
    splits = settings.splits
    if splits is None:
        path = raw / "splits.json"
        if not path.is_file():
            raise UserError(
                "params.yaml: datasets.ixi.preparation.splits: null, but this source comes without splits; give lists "
                "of case names under train, validate and test, or fractions under validate and test"
            )
        splits = SplitLists.model_validate(read_json(path))
    return {
        split: list(dict.fromkeys(archives.full_name(case) for case in cases))
        for split, cases in split_cases(splits, archives.cases()).items()
    }


def _prepare_all(
    name: str,
    cases: list[str],
    archives: dict[str, Path],
    settings: ixi.IxiPreparation,
    data: Data,
    work: Path,
    jobs: int,
) -> dict[str, Facts]:
    """Prepares what is not finished yet; returns the facts of all cases."""
    from joblib import Parallel, delayed
    from rich.console import Console
    from rich.progress import track

    todo = [case for case in cases if not (_facts_path(work, case).is_file() and _finished(work, case))]
    say_continuing("prepare", name, len(cases) - len(todo), len(cases))
    console = Console(stderr=True)
    results: Iterable[str] = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(_prepare_one)(case, archives, settings, data.voxel_size, work) for case in todo
    )
    with warnings.catch_warnings():
        # loky restarts workers whose memory grew and says so: the first case of each loads the libraries.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
        shown = bool(todo) and console.is_terminal
        for _ in track(results, "Preparing cases", total=len(todo), console=console, disable=not shown):
            pass
    return {case: read_json(_facts_path(work, case)) for case in cases}


def _prepare_one(
    case: str, archives: dict[str, Path], settings: ixi.IxiPreparation, voxel_size: Any, work: Path
) -> str:
    """Prepares one case in a worker process: first its folder, then the facts that mark it as finished."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), ixi.IxiArchives(archives) as opened:  # sums in BLAS depend on the number of threads
        try:
            arrays, facts = ixi.prepare_case(opened.read(case), case, settings, voxel_size)
        except ixi.CaseSkipped as error:
            facts = {"skipped": str(error)}
        else:
            import numpy as np

            write_case(work, case, arrays, np.diag([*voxel_size, 1.0]))
    write_json(_facts_path(work, case), facts)
    return case


def _facts_path(work: Path, case: str) -> Path:
    return work / "facts" / f"{case}.json"


def _finished(work: Path, case: str) -> bool:
    return "skipped" in read_json(_facts_path(work, case)) or (work / "cases" / case).is_dir()


def _report(info: DatasetInfo, facts: list[Facts]) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    for skipped in info.skipped:
        console.print(f"[yellow]{package}: skipped {skipped.case}: {skipped.reason}", highlight=False)
    counts = ", ".join(f"{len(cases)} {split}" for split, cases in info.splits.items())
    displacement = sum(fact["mean_displacement"] for fact in facts) / len(facts)
    console.print(f"{info.name}: {counts}; labels displaced by {displacement:.1f} voxels on average", highlight=False)
