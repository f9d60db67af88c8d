"""Names of processes: who is alive, and of whom nobody here can know."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import astuple, replace

import pytest

from equisynth import process_identity
from equisynth.process_identity import Machine, is_alive, this_machine, this_process

HERE = Machine("installed", "started", "numbered")


def named(machine: Machine) -> str:
    """This process, as if that machine had named it."""
    return "/".join([*this_process().split("/")[:3], ".".join(astuple(machine))])


def test_the_living_the_dead_and_those_that_got_their_numbers() -> None:
    host, number, start, machine = this_process().split("/")
    assert is_alive(this_process())
    assert is_alive(f"{host}/{number}/{start}")  # an older record
    assert is_alive(f"{host}/{number}/{int(start) - 1}/{machine}") is False
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert is_alive(f"{host}/{dead.pid}/{start}/{machine}") is False
    assert is_alive(f"{host}/{dead.pid}/{start}") is False
    assert is_alive(f"elsewhere/{number}/{start}/{machine}") is None


@pytest.mark.parametrize("identity", ["", "host", "host/12", f"{os.uname().nodename}/x/1", "a/b/c/d/e/f"])
def test_of_what_is_no_name_nothing_is_known(identity: str) -> None:
    assert is_alive(identity) is None


@pytest.mark.parametrize(
    ("there", "alive"),
    [
        (HERE, True),
        (replace(HERE, installation="other", start="other"), None),  # another machine of that name
        (replace(HERE, start="other"), False),  # this one, before it was started anew
        (replace(HERE, start="other", numbering="other"), False),
        (replace(HERE, numbering="other"), None),  # another container of that name
        (Machine(), None),
    ],
)
def test_machines_of_one_name_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, there: Machine, alive: bool | None
) -> None:
    monkeypatch.setattr(process_identity, "this_machine", lambda: HERE)
    assert is_alive(named(there)) is alive


def test_two_machines_without_a_number_are_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Machine("", "started", "numbered")
    monkeypatch.setattr(process_identity, "this_machine", lambda: here)
    assert is_alive(named(replace(here, start="other"))) is None


def test_a_system_that_tells_nothing_goes_by_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_identity, "this_machine", Machine)
    assert is_alive(this_process())
    assert is_alive(f"{this_process()}.of.a.later.version")


def test_processes_of_one_machine_agree_on_it() -> None:
    code = "from equisynth.process_identity import this_process; print(this_process())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other.split("/")[3] == ".".join(astuple(this_machine()))
    assert is_alive(other) is False


@pytest.mark.skipif(sys.platform != "linux", reason="a machine's numbers are Linux's")
def test_the_machine_s_own_number_is_not_spread() -> None:
    with open("/proc/sys/kernel/random/boot_id") as file:
        number = file.read().strip()
    assert this_machine().start
    assert number[:8] not in this_process()
