"""How long a stage took and how much memory it held, for ``make demo`` to show."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from equisynth.files import write_json

FOLDER = Path(".equisynth/timings")


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Writes ``.equisynth/timings/<stage>.json`` when the block ends without an error."""
    start = time.time()
    yield
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    record = {"stage": stage, "started": start, "seconds": time.time() - start, "peak_memory_mib": peak / 1024}
    write_json(FOLDER / f"{re.sub('[^A-Za-z0-9_.-]+', '_', stage)}.json", record)
