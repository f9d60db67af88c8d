"""Which process a run belongs to, so that a later one can tell whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def this_process() -> str:
    """``host/process/start``: the start tells a process from a later one with the same number."""
    return f"{socket.gethostname()}/{os.getpid()}/{_start(os.getpid())}"


def is_alive(identity: str) -> bool | None:
    """Whether a process named by `this_process` still runs; None where this machine cannot know."""
    host, _, rest = identity.rpartition("/")[0].rpartition("/")
    start = identity.rpartition("/")[2]
    if host != socket.gethostname() or not rest.isdecimal():
        return None
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _start(int(rest)) == start


def _start(process: int) -> str:
    """Clock ticks from the machine's start to the process's; empty where unknown, ``dead`` where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if fields[0] in "ZX" else fields[19]
