"""Which process a run belongs to, so that a later one can tell whether it still lives."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """What tells machines of the same name apart; empty where the system has no such thing.

    Attributes:
        installation: of the operating system; stays when the machine is started anew.
        start: of the machine.
        numbering: within which process numbers are given: containers have their own.
    """

    installation: str = ""
    start: str = ""
    numbering: str = ""


def this_process() -> str:
    """``host/process/start/machine``: the start tells a process from a later one with the same number."""
    machine = ".".join(astuple(this_machine()))
    return f"{socket.gethostname()}/{os.getpid()}/{_start(os.getpid())}/{machine}"


def this_machine() -> Machine:
    """Hashes, because a machine's own number is not to be spread (machine-id(5))."""
    installation, start, numbering = "", "", ""
    with suppress(OSError):
        installation = Path("/etc/machine-id").read_text().strip()
    with suppress(OSError):
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        numbering = os.readlink("/proc/self/ns/pid")
    return Machine(*(_hash(part) for part in (installation, start, numbering)))


def is_alive(identity: str) -> bool | None:
    """Whether a process named by `this_process` still runs; None where this machine cannot know.

    Older records have no machine: hosts of one name are then taken for one.
    """
    host, number, start, machine = (identity.split("/") + [""] * 4)[:4]
    if host != socket.gethostname() or not number.isdecimal():
        return None
    if machine:
        here, there = this_machine(), Machine(*(machine.split(".") + [""] * 3)[:3])
        if here.start != there.start:  # one machine started anew, or two
            return False if here.installation and here.installation == there.installation else None
        if here.numbering != there.numbering:
            return None
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _start(int(number)) == start


def _hash(text: str) -> str:
    return hashlib.sha256(f"equisynth {text}".encode()).hexdigest()[:8] if text else ""


def _start(process: int) -> str:
    """Clock ticks from the machine's start to the process's; empty where unknown, ``dead`` where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if fields[0] in "ZX" else fields[19]
