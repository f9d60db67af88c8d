"""The commands of each page, typed in their order in a repository with the smallest phantoms, after `make demo`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs.blocks import ROOT, Block, read_blocks, user_pages
from docs.session import Session
from inception import write_inception
from pipeline_repository import Repository

PAGES = [path.relative_to(ROOT).as_posix() for path in user_pages() if any(block.is_run for block in read_blocks(path))]
USED = ("Makefile", "scripts", "search", "requirements.lock", "pyproject.toml")
"""What commands of the pages need of the project beside what `Repository` copies."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository in which `make demo` has been run; its environment is the one that runs the tests."""
    repository = Repository.make(tmp_path_factory.mktemp("demo") / "equisynth")
    for name in USED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, repository.folder / name)
    (repository.folder / ".venv").mkdir()
    (repository.folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    (repository.folder / ".venv/.installed").touch()
    write_inception(repository.folder / "weights/fid_inception.pth")
    few = {
        "search": {"epochs": 1, "epoch_steps": 2, "startup_trials": 1},
        "evaluation": {"fid": {"axes": [2]}},
        "scales": {"demo": {"ixi": {"training": {"epochs": 7}}}},  # as many as the demo's: pages name epochs
    }
    repository.parameters(few)
    repository.run("git", "add", "-A")
    repository.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "all")
    repository.run("make", "demo")
    return repository


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_s_commands_run(demo: Repository, page: str, tmp_path: Path) -> None:
    folder = tmp_path / "equisynth"
    shutil.copytree(demo.folder, folder, symlinks=True)
    with Session(folder, tmp_path, demo.environment) as session:
        for block in read_blocks(ROOT / page):
            session.run(block)


def test_every_tutorial_has_commands_that_are_run() -> None:
    tutorials = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/tutorials").glob("*.md")}
    assert len(tutorials) == 4
    assert tutorials <= set(PAGES)


def typed(session: Session, text: str, comment: str = "", language: str = "sh") -> None:
    session.run(Block("page.md", 1, language, text, comment))


def test_a_session_is_one_shell(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("a: {b: 1}\n")
    with Session(tmp_path, tmp_path, os.environ) as session:
        typed(session, 'export WORD="two words"\nmkdir inner\ncd inner')
        typed(session, "echo $WORD > said")
        assert (tmp_path / "inner/said").read_text() == "two words\n"
        typed(session, "touch never", comment="not run: needs a GPU")
        assert not (tmp_path / "inner/never").exists()
        typed(session, "a: {c: 2}", "into params.yaml", "yaml")
        typed(session, "echo before; echo '# To paste into params.yaml, below:'; echo 'd: 3'", "paste into params.yaml")
        assert (tmp_path / "params.yaml").read_text() == "a:\n  b: 1\n  c: 2\nd: 3\n"
        with pytest.raises(AssertionError, match="page.md:1"):
            typed(session, "false\ntrue")


def test_servers_end_with_their_page(tmp_path: Path) -> None:
    port = int(subprocess.check_output([sys.executable, "-c", _FREE]))
    with Session(tmp_path, tmp_path, os.environ) as session:
        typed(session, f"'{sys.executable}' -c \"{_SERVER}\" --port {port}", "in the background")
        (server,) = session.servers
        assert server.poll() is None
        with pytest.raises(AssertionError, match=f"another program has port {port}"):
            typed(session, f"true --port {port}", "in the background")
    assert server.poll() is not None


_FREE = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"
_SERVER = (
    "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[2]))); [s.accept() for _ in iter(int, 1)]"
)
