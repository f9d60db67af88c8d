"""At least forty wrong inputs: each ends in one line and exit code 2, nothing half-written; docs/wrong-inputs.md.

`WRITE_WRONG_INPUTS=1 pytest tests/test_wrong_inputs.py` writes the page anew.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from wrong_inputs import cohorts, data, disks, images, models, settings, workplace
from wrong_inputs.entry import Wrong
from wrong_inputs.runner import Outcome, attempt

pytest_plugins = ["mlflow_repository"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/wrong-inputs.md"
TOPICS = {
    "Command line and params.yaml": settings.ENTRIES,
    "Raw data, prepared data, evaluation": data.ENTRIES,
    "Images to translate": images.ENTRIES,
    "Cohorts, DICOM, pictures": cohorts.ENTRIES,
    "Models, registry, search": models.ENTRIES,
    "Disks and folders": disks.ENTRIES,
}
ENTRIES = {wrong.name: wrong for entries in TOPICS.values() for wrong in entries}
HEAD = """# Wrong inputs

What happens when something is wrong: one line that says what, exit code 2, and nothing half-written. Each row was tried
by `tests/test_wrong_inputs.py`, which also wrote this page (`make wrong-inputs`); do not edit it by hand. Where a
training that had begun fails, its MLflow run says so; caches below `.equisynth` may stay.
What a server answers to wrong requests stands in [serve](how-to/serve.md#wrong-requests).
"""
LONGEST = 280
"""Characters of a line that the page shows."""
Try = Callable[[Wrong], Outcome]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    workplace.build(folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def tried(start: Path, migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Try:
    """Tries an entry, once."""
    outcomes: dict[str, Outcome] = {}

    def outcome(wrong: Wrong) -> Outcome:
        if wrong.name not in outcomes:
            top = tmp_path_factory.mktemp("wrong")
            shutil.copytree(start, top / "here")
            if wrong.database:
                shutil.copy(migrated_database, top / "here/mlflow.db")
            (top / "notes").mkdir()
            outcomes[wrong.name] = attempt(wrong, top / "here", top / "notes")
            shutil.rmtree(top)
        return outcomes[wrong.name]

    return outcome


@pytest.mark.parametrize("name", ENTRIES)
def test_a_wrong_input_ends_in_one_line_and_leaves_nothing(
    tried: Try, name: str, request: pytest.FixtureRequest
) -> None:
    wrong = ENTRIES[name]
    if wrong.pending:
        request.applymarker(pytest.mark.xfail(reason=wrong.pending))
    found = tried(wrong)
    if found.code is None:
        pytest.skip("this machine does not let a process have a disk of its own")
    assert len(found.lines) == wrong.progress + 1, "\n".join(found.lines)
    line = found.lines[-1]
    assert line.startswith("equisynth: ")
    assert "Traceback" not in line
    assert found.code == 2
    for word in wrong.words:
        assert word in line
    changed = {
        path for path in found.before.keys() | found.after.keys() if found.before.get(path) != found.after.get(path)
    }
    assert changed <= set(wrong.records)


def test_the_page_is_what_the_tests_find(tried: Try) -> None:
    written = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    page = _page(tried, written)
    if os.environ.get("WRITE_WRONG_INPUTS"):
        PAGE.write_text(page, encoding="utf-8")
    else:
        assert written == page, "run `make wrong-inputs`"
    assert sum(line.startswith("|") for line in page.splitlines()) - 2 * len(TOPICS) >= 40


def _page(tried: Try, written: str) -> str:
    parts = [HEAD]
    for topic, entries in TOPICS.items():
        rows = "".join(_row(wrong, tried(wrong), written) for wrong in entries if not wrong.pending)
        parts.append(f"## {topic}\n\n| what is wrong | command | the line |\n|---|---|---|\n{rows}")
    return "\n".join(parts)


def _row(wrong: Wrong, found: Outcome, written: str) -> str:
    start = f"| {wrong.what} | {_code(wrong.command)} | "
    if found.code is None:  # not possible here: what was found elsewhere stands
        return next((f"{line}\n" for line in written.splitlines() if line.startswith(start)), "")
    return f"{start}{_code(found.lines[-1].removeprefix('equisynth: '))} |\n"


def _code(text: str) -> str:
    """For a cell: without hashes of the parameters, and without the ends of long lists."""
    text = re.sub(r"-[0-9a-f]{8,12}(?=/)", "-…", re.sub(r"P{50,}", "PP…PP", text)).replace("|", "\\|")
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"
