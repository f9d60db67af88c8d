"""``equisynth predict`` of many images: each translated once, in one process, several or on a cluster; a summary.

A case is finished when its record fits: the model's hash, the way it was asked, and the hashes of what was read and of
what was written. Such cases are skipped, so that the same command continues what was interrupted. A case that fails is
told and does not stop the others.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from equisynth import bids
from equisynth.apply import Loaded, Request, input_hashes, load, translate, way
from equisynth.cohort import Case, Wanted, find_cases, is_bids
from equisynth.cohort_cluster import Cluster, stop_if_unwanted
from equisynth.cohort_summary import CSV, JSON, Result, counts, write_summary
from equisynth.cohort_workers import Workers
from equisynth.errors import UserError
from equisynth.failures import explained
from equisynth.files import sha256, write_json
from equisynth.found_model import Found, check_device, find
from equisynth.images.formats import suffix_of
from equisynth.inference import Progress
from equisynth.model import chosen_device
from equisynth.remaining import Display, display

FAILED = 1
"""Exit code where a case failed."""
IGNORED = ".bidsignore"


@dataclass(frozen=True)
class Job:
    """A case as a worker gets it.

    Attributes:
        folder: of all outputs.
    """

    case: Case
    request: Request
    folder: Path


def run(
    inputs: Sequence[Path],
    request: Request,
    pattern: str | None = None,
    t1: str | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
) -> int:
    """Translates all images of files and folders.

    Args:
        request: what holds for all; its ``output`` is the folder of the outputs, its ``image`` is not used.
        pattern, t1: see ``cohort.Wanted``.
        jobs: cases at once, each in a process with a model of its own; one on a GPU.
        scheduler: address of a dask cluster, whose workers translate in place of processes here.

    Returns:
        The exit code: 0, or `FAILED`.

    Raises:
        UserError: nothing can begin: wrong inputs, model or options; outputs that something else made.
    """
    started = time.perf_counter()
    _check(request, jobs, scheduler)
    found = find(request.model)
    data = found.description.settings.data
    wanted = Wanted(data.input.modality, data.label.modality, data.n_dims, pattern, t1)
    todo = [_job(case, request) for case in find_cases(inputs, request.output, wanted)]
    if not request.force:
        for job in todo:
            _check_own(job, found)
    with _team(todo, found, request, jobs, scheduler) as team:  # says what is wrong before anything is written
        if is_bids(inputs):
            _describe(request.output, found)
        results: dict[str, Result] = {}
        try:
            with display() as shown:
                tell = shown.show(request.output.name, "cases")
                for result in team.results(shown):
                    results[result.output] = result
                    _say(result, request.output)
                    tell(len(results), len(todo))
        finally:
            ordered = [results.get(_below(job), Result(job.case.name, _below(job), "left")) for job in todo]
            about = {"model": found.origin, **way(request), "jobs": team.jobs, "batch": team.batch}
            write_summary(request.output, ordered, about, time.perf_counter() - started)
    number = ", ".join(f"{count} {status}" for status, count in counts(ordered).items() if count)
    print(f"equisynth: {number}; see {request.output / CSV}", file=sys.stderr)
    return FAILED if counts(ordered)["failed"] else 0


@dataclass(frozen=True)
class _Team:
    """Who translates.

    Attributes:
        results: what becomes of the cases, as they are ready.
        jobs: how many work at once.
        batch: tiles at once; None: each worker's own choice.
    """

    results: Callable[[Display], Iterator[Result]]
    jobs: int
    batch: int | None


@contextmanager
def _team(todo: Sequence[Job], found: Found, request: Request, jobs: int, scheduler: str | None) -> Iterator[_Team]:
    """Processes here or on a cluster, which ends its part in the work with the block."""
    if scheduler is None:
        loaded = load(found, request)
        yield _Team(lambda shown: _results(todo, found, loaded, shown, jobs), jobs, loaded.batch)
        return
    with Cluster(scheduler, _work_there, _start_there, (found, request), _seen(todo, found)) as cluster:
        yield _Team(lambda shown: cluster.results(todo, _failed), cluster.count, request.batch)


def _results(jobs: Sequence[Job], found: Found, loaded: Loaded, shown: Display, count: int) -> Iterator[Result]:
    """In processes of this machine."""
    if count == 1 or len(jobs) == 1:
        for job in jobs:
            yield attempt(job, loaded, shown.show(job.case.image.name, "tiles"))
        return
    threads = max(1, torch.get_num_threads() // count)
    workers = Workers(_work, min(count, len(jobs)), _start, (found, jobs[0].request, threads))
    killed = "its process was killed, perhaps for lack of memory; run the same command again with fewer --jobs"
    yield from workers.map(jobs, lambda job: _failed(job, killed))


def _seen(jobs: Sequence[Job], found: Found) -> list[Path]:
    """The folders that workers read and write: those of the outputs as far as they are there."""
    output = jobs[0].folder.absolute()
    there = next(folder for folder in (output, *output.parents) if folder.is_dir())
    inputs = [path for job in jobs for path in (job.case.image, job.case.t1) if path is not None]
    return [found.folder, there, *(path if path.is_dir() else path.parent for path in inputs)]


def attempt(job: Job, loaded: Loaded, progress: Progress | None = None) -> Result:
    """Translates one case unless that was done; whatever is wrong with it ends in its result."""
    name, below, started = job.case.name, _below(job), time.perf_counter()
    try:
        if job.case.problem is not None:
            raise UserError(job.case.problem)
        record = _finished(job, loaded.found)
        if record is not None:
            return Result(name, below, "skipped", warnings=tuple(record.get("warnings", ())))
        record = translate(loaded, job.request, progress)
    except Exception as error:
        own = str(error) if isinstance(error, UserError) else explained(error)
        reason = own or f"{type(error).__name__}: {error}"
        return Result(name, below, "failed", _since(started), " ".join(reason.split())[:500])
    return Result(name, below, "done", _since(started), warnings=tuple(record["warnings"]))


_loaded: list[Loaded] = []
"""In a worker: the model, loaded once."""


def _start(found: Found, request: Request, threads: int) -> None:
    """In a worker, once."""
    torch.set_num_threads(threads)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    _loaded[:] = [load(found, request)]  # in place of an earlier command's, where the process outlives commands


def _work(job: Job) -> Result:
    """In a worker."""
    return attempt(job, _loaded[0])


def _start_there(found: Found, request: Request) -> None:
    """On a cluster's worker, which has the threads that it was started with."""
    check_device(request.device)
    _start(found, request, torch.get_num_threads())


def _work_there(job: Job) -> Result:
    """On a cluster's worker."""
    return attempt(job, _loaded[0], stop_if_unwanted)


def _job(case: Case, request: Request) -> Job:
    own = replace(request, image=case.image, output=case.output, t1=case.t1, series=case.series)
    return Job(case, own, request.output)


def _finished(job: Job, found: Found) -> dict[str, Any] | None:
    """The record of a case that was translated so from the same files, and whose output is whole; else none."""
    record = _record(job.case.record)
    if record is None or not _is_own(record, job.request, found) or not job.case.output.is_file():
        return None
    files = input_hashes(job.request) | {"output": sha256(job.case.output)}
    return record if record.get("files") == files else None


def _check_own(job: Job, found: Found) -> None:
    """Raises where something else made the output; a record without output is an interruption's."""
    case = job.case
    if case.output.is_dir() or case.record.is_dir():
        raise UserError(f"{case.output}: is a folder, or its record is; choose another --output")
    record = _record(case.record)
    if record is None and (case.output.exists() or case.record.exists()):
        raise UserError(
            f"{case.output}: exists already and was not made by equisynth; choose another --output or add --force"
        )
    if record is not None and not _is_own(record, job.request, found):
        raise UserError(
            f"{case.output}: was made by another model or with other options ({_told(record)}); choose another "
            "--output, or add --force to make it again"
        )


def _is_own(record: dict[str, Any], request: Request, found: Found) -> bool:
    made = {"sha256": record["model"].get("sha256")} | {key: record.get(key) for key in way(request)}
    return made == {"sha256": found.origin.get("sha256")} | way(request)


def _told(record: dict[str, Any]) -> str:
    options = ", ".join(f"{key} {record.get(key)}" for key in ("prepared", "precision", "flips"))
    return f"{record['model'].get('uri')}, {options}"


def _record(path: Path) -> dict[str, Any] | None:
    """A record as `translate` writes it; none where the file is absent or something else."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            return content
    return None


def _check(request: Request, jobs: int, scheduler: str | None) -> None:
    """Raises where the options do not fit each other or this machine."""
    if scheduler is None:
        check_device(request.device)
        device = chosen_device(request.device)
        if jobs > 1 and device.type != "cpu":
            raise UserError(f"--jobs {jobs}: one process uses {device}; leave it out, and raise --batch instead")
    elif jobs > 1:
        raise UserError(
            f"--jobs {jobs}: as many cases at once as the cluster {scheduler} has workers; leave out --jobs, or "
            "--scheduler (EQUISYNTH_SCHEDULER)"
        )
    if request.mask is not None:
        raise UserError(
            f"--mask {request.mask}: belongs to one image; leave it out, or give one image and a file for --output"
        )
    is_file = request.output.exists() or bool(suffix_of(request.output.name))
    if is_file and not request.output.is_dir():
        raise UserError(f"--output {request.output}: is a file; several images need a folder")


def _describe(folder: Path, found: Found) -> None:
    """Makes the outputs of a BIDS tree one themselves; keeps what is there."""
    path = folder / bids.DESCRIPTION
    if not path.exists():
        model = found.origin["experiment"] if found.origin["name"] is None else found.origin["uri"]
        write_json(path, bids.description(version("equisynth"), model))
        (folder / IGNORED).write_text(f"{JSON}\n{CSV}\n", encoding="utf-8")


def _say(result: Result, folder: Path) -> None:
    if result.status == "failed":
        print(f"equisynth: failed: {result.case}: {result.reason}", file=sys.stderr)
        return
    for warning in result.warnings if result.status == "done" else ():
        print(f"equisynth: warning: {result.case}: {warning}", file=sys.stderr)
    if result.status == "done":
        print(folder / result.output)


def _failed(job: Job, reason: str) -> Result:
    return Result(job.case.name, _below(job), "failed", reason=reason)


def _below(job: Job) -> str:
    return job.case.output.relative_to(job.folder).as_posix()


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
