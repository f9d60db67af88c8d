"""A real PostgreSQL server of the tests' own: no port, no password, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USERS = ("postgres", "nobody")
"""The server refuses to run as root: the first of them that exists runs it then."""


def binaries() -> Path | None:
    """The folder of the newest server's programs, as Debian's package postgresql installs them."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    return max(found, key=lambda path: int(path.parent.name.split(".")[0]), default=None)


@contextmanager
def server() -> Iterator[str]:
    """A running server's URL with an empty database; skips the test where there is no PostgreSQL."""
    programs = binaries()
    if programs is None:
        pytest.skip("needs Debian's package postgresql")
    pytest.importorskip("psycopg", reason="needs the extra `search`")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path must be
    user = _user()
    if user is not None:
        shutil.chown(folder, user)
    extra: list[int] | None = None if user is None else []  # none of root's groups

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), *arguments]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, user=user, extra_groups=extra
        )
        log = folder / "log"
        said = log.read_text() if log.exists() and os.access(log, os.R_OK) else ""
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}{said}"

    data, options = folder / "data", f"-c listen_addresses='' -k {folder} -c fsync=off"
    try:
        run("initdb", "-D", str(data), "-U", "equisynth", "-A", "trust", "-E", "UTF8", "--locale", "C", "--no-sync")
        run("pg_ctl", "-D", str(data), "-l", str(folder / "log"), "-o", options, "-w", "start")
        try:
            yield f"postgresql+psycopg://equisynth@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> str | None:
    """Whom to run the server as; None: as whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    found = next((name for name in USERS if name in names), None)
    if found is None:
        pytest.skip("PostgreSQL does not run as root, and there is no user to run it as")
    return found
