"""Lists of source files: complete, exact, and changed by nothing but a change of what they list."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from equisynth.files import sha256
from equisynth.source_imports import SOURCE
from equisynth.stages import code


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists") / "code"
    code.run(folder)
    return folder


def paths(file: Path) -> set[str]:
    return {line.split("  ")[1] for line in file.read_text(encoding="utf-8").splitlines()}


def test_a_line_is_a_hash_and_a_path(written: Path) -> None:
    for line in (written / "train-equivariant.txt").read_text(encoding="utf-8").splitlines():
        found, path = line.split("  ")
        assert found == sha256(SOURCE / path)


def test_files_that_are_read_and_not_imported_are_listed(written: Path) -> None:
    assert {"equisynth/overview/page.css", "equisynth/overview/page.js"} <= paths(written / "overview.txt")
    assert "equisynth/served_model.py" in paths(written / "register-supervised.txt")


def test_the_program_s_own_imports_are_all_listed(written: Path) -> None:
    """What the interpreter loads for a stage, without choosing a method, is no more than what is listed."""
    program = (
        "import sys; import equisynth.stages.evaluate; "
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('equisynth') and m.__file__))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {Path(file).relative_to(SOURCE).as_posix() for file in done.stdout.split()}
    assert "equisynth/stages/evaluate.py" in loaded
    assert {file for file in loaded if not file.endswith("__init__.py")} <= paths(written / "evaluate-supervised.txt")


def test_a_change_shows_where_the_file_is_used_and_nowhere_else(written: Path, tmp_path: Path) -> None:
    shutil.copytree(SOURCE / "equisynth", tmp_path / "equisynth", ignore=shutil.ignore_patterns("__pycache__"))
    changed = tmp_path / "equisynth/methods/pix2pix.py"
    changed.write_text(changed.read_text(encoding="utf-8") + "\n# a change\n", encoding="utf-8")
    new = tmp_path / "lists"
    program = f"from pathlib import Path; from equisynth.stages import code; code.run(Path({str(new)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    names = {file.name for file in written.iterdir()}
    assert names == {file.name for file in new.iterdir()}
    differing = {name for name in names if (written / name).read_bytes() != (new / name).read_bytes()}
    assert differing == {f"{stage}-pix2pix.txt" for stage in ("train", "predict", "evaluate", "register")}


def test_a_new_method_has_lists_without_being_named_anywhere(tmp_path: Path) -> None:
    shutil.copytree(SOURCE / "equisynth", tmp_path / "equisynth", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(tmp_path / "equisynth/methods/supervised.py", tmp_path / "equisynth/methods/mine.py")
    program = "from pathlib import Path; from equisynth.stages import code; code.run(Path('lists'))"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert "equisynth/methods/mine.py" in paths(tmp_path / "lists/train-mine.txt")
