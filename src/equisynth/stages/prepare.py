"""Stage ``prepare``: raw archives -> a prepared dataset and its picture sheet.

Cases run in parallel; a repeat continues where it stopped.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from equisynth import __name__ as package
from equisynth.config import Data
from equisynth.contact_sheet import sheet_png
from equisynth.datasets.archives import CaseSkipped
from equisynth.datasets.prepared import SPLITS, DatasetInfo, PreparedDataset, write_info
from equisynth.datasets.splits import SplitLists, split_cases
from equisynth.errors import UserError
from equisynth.files import atomic_folder, atomic_path, link, read_json, write_json
from equisynth.layouts.base import Archives, Facts, Layout, Raw, layout
from equisynth.parallel import Workers
from equisynth.validation import validate
from equisynth.work import fingerprint, resumable, say_continuing


def run(
    preparation: dict[str, Any],
    data: Data,
    name: str,
    raw: Path,
    out: Path,
    jobs: int = 1,
    work: Path = Path(".equisynth/prepare"),
    sheets: Path = Path("reports/datasets"),
    scheduler: str | None = None,
    layout_name: str | None = None,
) -> None:
    """Prepares dataset ``name`` from the folder ``raw`` (stage ``raw``'s output) into the folder ``out``.

    Its picture sheet goes into ``sheets/<name>.png``.

    The bytes depend neither on ``jobs`` nor on ``scheduler`` (a dask cluster's address). Finished cases wait below
    ``work`` until all are done, so that a repeat after a kill loses those at work only (one for each of the ``jobs``).

    Args:
        layout_name: kind of raw data; by default that of the dataset's name.

    Raises:
        UserError: wrong parameters or archives, or a split without any usable case.
    """
    source = read_json(raw / "source.json")
    layout_name = layout_name or name
    if source["layout"] != layout_name:
        raise UserError(
            f"{raw / 'source.json'}: layout {source['layout']!r}, expected {layout_name!r}; run the stage raw again"
        )
    found = layout(layout_name, f"datasets.{name}.layout")
    settings: Any = validate(found.Preparation, preparation, f"datasets.{name}.preparation")
    archives = {key: raw / path for key, path in source["archives"].items()}
    with found.opened(archives) as opened:
        splits = _splits(found, settings, name, raw, opened)
        incomplete = set(opened.incomplete_cases())
    listed = [case for split in SPLITS for case in splits[split]]
    # the user's own lists say what is wanted; else every case that cannot be used is told
    told = set() if isinstance(settings.splits, SplitLists) else incomplete
    wanted = [*listed, *sorted(told - set(listed))]

    # What decides a case, and nothing else: a new split keeps the finished cases.
    key = {
        "source": source,
        "archives": {key: fingerprint(path) for key, path in archives.items()},
        "data": data.model_dump(mode="json"),
        **settings.model_dump(mode="json", exclude={"splits"}),
    }
    with resumable(work, name, key) as finished:
        facts = _prepare_all(name, layout_name, wanted, archives, settings, data, finished, jobs, scheduler)
        skipped = {case: fact["skipped"] for case, fact in facts.items() if "skipped" in fact}
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
            stored=found.STORED,
            preparation=found.constants(settings, data, [facts[case] for case in kept["train"]]),
            splits={split: tuple(cases) for split, cases in kept.items()},
            skipped=tuple({"case": case, "reason": skipped[case]} for case in sorted(skipped)),  # type: ignore[misc]
        )
        with atomic_folder(out) as folder:
            for case in (case for cases in kept.values() for case in cases):
                for path in sorted((finished / "cases" / case).iterdir()):
                    link(path, folder / "cases" / case / path.name)
            write_info(folder, info)
            sheet = sheet_png(PreparedDataset.open(folder))
        with atomic_path(sheets / f"{name}.png") as path:
            path.write_bytes(sheet)
    _report(info, {case: facts[case] for cases in kept.values() for case in cases})


def _splits(found: Layout, settings: Any, name: str, raw: Path, opened: Raw) -> dict[str, list[str]]:
    """The parameters' splits, else those that came with the raw data, else the published ones."""
    path, splits = raw / "splits.json", settings.splits
    if splits is None and path.is_file():
        splits = SplitLists.model_validate(read_json(path))
    if splits is None:
        published = found.default_splits(opened.cases())
        if published is None:
            raise UserError(
                f"params.yaml: datasets.{name}.preparation.splits: null, but this source comes without splits; give "
                "lists of case names under train, validate and test, or fractions under validate and test"
            )
        return published
    return split_cases(splits, opened.cases(), opened.full_name)


def _prepare_all(
    name: str,
    layout_name: str,
    cases: Sequence[str],
    archives: Archives,
    settings: Any,
    data: Data,
    work: Path,
    jobs: int,
    scheduler: str | None,
) -> dict[str, Facts]:
    """Prepares what is not finished yet; returns the facts of all cases."""
    from rich.console import Console
    from rich.progress import Progress

    todo = [case for case in cases if not (_facts_path(work, case).is_file() and _finished(work, case))]
    say_continuing("prepare", name, len(cases) - len(todo), len(cases))
    most = layout(layout_name, "layout").CASES_PER_OPENING
    console = Console(stderr=True)
    prepare_some = partial(
        _prepare_some, layout_name=layout_name, archives=archives, settings=settings, data=data, work=work
    )
    with (
        Workers(jobs, scheduler) as workers,
        warnings.catch_warnings(),
        Progress(console=console, disable=not (todo and console.is_terminal)) as bar,
    ):
        # loky restarts workers whose memory grew and says so: the first case of each loads the libraries.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
        size = max(1, min(most, -(-len(todo) // workers.count)))
        chunks = [todo[start : start + size] for start in range(0, len(todo), size)]
        task = bar.add_task(f"Preparing {name}", total=len(todo))
        for count in workers.map(prepare_some, chunks):
            bar.advance(task, count)
    return {case: read_json(_facts_path(work, case)) for case in cases}


def _prepare_some(
    cases: Sequence[str], layout_name: str, archives: Archives, settings: Any, data: Data, work: Path
) -> int:
    """Prepares cases in a worker process: first each one's folder, then the facts that mark it as finished."""
    from threadpoolctl import threadpool_limits

    found = layout(layout_name, "layout")
    with threadpool_limits(1), found.opened(archives) as opened:  # sums in BLAS depend on the number of threads
        for case in cases:
            try:
                facts = found.prepare_into(work, opened, case, settings, data)
            except CaseSkipped as error:
                facts = {"skipped": str(error)}
            write_json(_facts_path(work, case), facts)
    return len(cases)


def _facts_path(work: Path, case: str) -> Path:
    return work / "facts" / f"{quote(case, safe=' ')}.json"  # a name may be no file's name, and its case skipped for it


def _finished(work: Path, case: str) -> bool:
    return "skipped" in read_json(_facts_path(work, case)) or (work / "cases" / case).is_dir()


def _report(info: DatasetInfo, facts: Mapping[str, Facts]) -> None:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)  # a line stays one
    for skipped in info.skipped:
        console.print(f"{package}: skipped {skipped.case}: {skipped.reason}", style="yellow")
    for case, fact in facts.items():
        for note in fact.get("notes", ()):
            console.print(f"{case}: {note}")
    line = f"{info.name}: " + ", ".join(f"{len(cases)} {split}" for split, cases in info.splits.items())
    displacements = [fact["mean_displacement"] for fact in facts.values() if "mean_displacement" in fact]
    if displacements:
        mean = sum(displacements) / len(displacements)
        line += f"; labels displaced by {mean:.1f} voxels on average"
    console.print(line)
