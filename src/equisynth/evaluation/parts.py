"""The registrations that an evaluation needs, found by several machines, each one's part of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from equisynth.datasets.prepared import PreparedDataset
from equisynth.errors import UserError
from equisynth.evaluation import full_valid, registered
from equisynth.evaluation.by_case import Part, Registrations
from equisynth.evaluation.settings import EvaluationSettings


def parse(text: str) -> Part:
    """``2/5`` -> (2, 5).

    Raises:
        UserError: there is no such part.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part[0] <= part[1]:
        raise UserError(f"--part {text}: expected the number of a part and how many there are, such as 2/5")
    return part


def run(
    experiment: str,
    prepared: Path,
    text: str,
    splits: Sequence[str],
    settings: EvaluationSettings,
    cache: Path,
    jobs: int = -1,
) -> str:
    """Finds one part, measures nothing; what was found and how parts are merged, in words.

    Args:
        experiment: whose evaluation it is for; its model is not needed.
        prepared: folder of the prepared dataset.
        text: of the part, see `parse`.
        cache: folder of the registrations.
        jobs: processes (-1: one per core).
    """
    part = parse(text)
    done = register(PreparedDataset.open(prepared), part, splits, settings, cache, jobs)
    failed = "".join(f"\nfailed: {name}: {reason}" for name, reason in done.failures.items())
    return (
        f"part {text}: {done.found} registrations are in {cache}, {len(done.failures)} failed{failed}\n"
        f"When all {part[1]} parts are done, copy what the machines have in this folder into one "
        f"(rsync -a MACHINE:{cache}/ {cache}/), then: equisynth evaluate {experiment}"
    )


def register(
    dataset: PreparedDataset,
    part: Part,
    splits: Sequence[str],
    settings: EvaluationSettings,
    cache: Path,
    jobs: int = 1,
) -> Registrations:
    """Finds the k-th of each n registrations of the splits.

    Raises:
        UserError: this dataset is evaluated without registrations.
    """
    around, tiles = settings.registered, settings.full_valid
    parts: list[Registrations] = []
    for split in splits:
        if around is not None and registered.lacking(dataset, split) is None:
            parts.append(registered.register(dataset, split, around, cache, part, jobs))
        if tiles is not None and full_valid.lacking(dataset, split) is None:
            parts.append(full_valid.register(dataset, split, tiles, cache, part, jobs))
    if not parts:
        why = {
            "registered": registered.lacking(dataset, splits[0]),
            "full_valid": full_valid.lacking(dataset, splits[0]),
        }
        reasons = "; ".join(f"{kind}: {reason or 'left out'}" for kind, reason in why.items())
        raise UserError(f"{dataset.folder}: is evaluated without registrations ({reasons}); leave out --part")
    failures = {name: reason for found in parts for name, reason in found.failures.items()}
    return Registrations(sum(found.found for found in parts), failures)
