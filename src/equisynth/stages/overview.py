"""Stage ``overview``: what the other stages wrote -> reports/index.html, one page of all experiments."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from equisynth.errors import UserError
from equisynth.files import atomic_path
from equisynth.overview.collect import collect
from equisynth.overview.page import to_html
from equisynth.params import read
from equisynth.tracking import log_files, run_of

PAGE = Path("reports/index.html")
ARTIFACTS = "report"
"""Where the page lies in a run's artifacts."""


def run() -> None:
    """Writes the page and gives a copy to the run of each experiment that it shows."""
    overview = collect(read())
    with atomic_path(PAGE) as path:
        path.write_text(to_html(overview), encoding="utf-8")
    shown = [found.name for dataset in overview.datasets for found in dataset.experiments if found.is_evaluated]
    logged = log_page(PAGE, shown)
    print(f"{PAGE} ({PAGE.stat().st_size / 1e6:.1f} MB), logged to {logged} MLflow run{'' if logged == 1 else 's'}")


def log_page(page: Path, experiments: Iterable[str]) -> int:
    """Logs the page to the experiments' runs; one whose model or run cannot be found is passed over and said so."""
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(page, Path(folder) / page.name)
        for experiment in experiments:
            try:
                log_files(run_of(experiment), Path(folder), ARTIFACTS)
            except (UserError, OSError) as error:
                print(f"{experiment}: its run has no copy of the page ({error})", file=sys.stderr)
                continue
            count += 1
    return count
