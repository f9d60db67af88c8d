"""What became of a cohort: one row per case, as JSON for programs and CSV for tables."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from equisynth.files import atomic_path, write_json

JSON, CSV = "summary.json", "summary.csv"
Status = Literal["done", "skipped", "failed", "left"]


@dataclass(frozen=True)
class Result:
    """What became of one case.

    Attributes:
        case: its path below the input.
        output: path below the output folder.
        status: ``done`` now; ``skipped``: was finished already; ``failed``; ``left``: not begun when the run ended.
        reason: why it failed.
        warnings: also of a skipped case, from its record.
    """

    case: str
    output: str
    status: Status
    seconds: float = 0.0
    reason: str = ""
    warnings: tuple[str, ...] = ()


def counts(results: Sequence[Result]) -> dict[str, int]:
    """How many cases ended how."""
    found = Counter(result.status for result in results)
    return {status: found[status] for status in ("done", "skipped", "failed", "left")}


def write_summary(folder: Path, results: Sequence[Result], about: Mapping[str, Any], seconds: float) -> None:
    """Writes ``summary.json`` and ``summary.csv``.

    Args:
        about: model and options.
        seconds: that the run took.
    """
    head = {**about, "date": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(seconds, 3)}
    write_json(folder / JSON, {**head, **counts(results), "cases": [asdict(result) for result in results]})
    with atomic_path(folder / CSV) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "output", "status", "seconds", "reason", "warnings"])
        for one in results:
            writer.writerow([one.case, one.output, one.status, one.seconds, one.reason, "; ".join(one.warnings)])
