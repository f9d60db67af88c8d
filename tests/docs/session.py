"""A user who types a page's blocks, one after the other, in one shell."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

from docs.blocks import Block
from equisynth.params import merge

SECONDS = 180
"""A server may take so long to answer."""
PORTS = {"optuna-dashboard": 8080, "mlflow": 5000}
"""Where they answer without ``--port``."""


class Session:
    """The state of a shell: its folder and exported variables, and the servers that were started in it.

    Args:
        folder: where it begins: the repository.
        notes: where the state is kept between two blocks.
    """

    def __init__(self, folder: Path, notes: Path, environment: Mapping[str, str]) -> None:
        self.repository, self.environment, self.servers = folder, dict(environment), list[subprocess.Popen[bytes]]()
        self.state, self.log = notes / "state.sh", notes / "servers.log"
        self.state.write_text(f"cd {shlex.quote(str(folder))}\n", encoding="utf-8")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for server in self.servers:
                try:
                    os.killpg(server.pid, sign)
                except ProcessLookupError:
                    continue
                try:
                    server.wait(10)
                except subprocess.TimeoutExpired:
                    continue

    def run(self, block: Block) -> None:
        """Does with a block what its page asks for; fails with what its commands said."""
        if block.comment == "into params.yaml":
            self._merge(block.text)
        elif not block.is_run:
            return
        elif block.comment == "in the background":
            self._serve(block)
        else:
            printed = self._type(block)
            if block.comment == "paste into params.yaml":
                self._merge(printed.partition("# To paste into params.yaml")[2].partition("\n")[2])

    def _type(self, block: Block) -> str:
        keep = f"{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} > {shlex.quote(str(self.state))}"
        script = f"source {shlex.quote(str(self.state))}\nset -euo pipefail\n{block.text}\nset +u\n{keep}\n"
        done = subprocess.run(
            ["bash", "-c", script], env=self.environment, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        servers = self.log.read_text(errors="replace")[-2000:] if self.log.is_file() else ""
        said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{servers}"
        assert done.returncode == 0, f"{block.place}:\n{block.text}\n-> {done.returncode}\n{said}"
        return done.stdout

    def _serve(self, block: Block) -> None:
        ports = [int(port) for port in re.findall(r"--port[ =](\d+)", block.text)]
        ports = ports or [port for program, port in PORTS.items() if block.text.startswith(program)]
        assert ports, f"{block.place}: which port is it?"
        for port in ports:
            assert not _answers(port), f"{block.place}: another program has port {port}"
        script = f"source {shlex.quote(str(self.state))}\n{block.text}\n"
        with self.log.open("ab") as log:
            server = subprocess.Popen(
                ["bash", "-c", script], env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        self.servers.append(server)
        end = time.monotonic() + SECONDS
        while not all(_answers(port) for port in ports):
            said = self.log.read_text(errors="replace")[-3000:]
            assert server.poll() is None, f"{block.place}: ended with {server.returncode}\n{said}"
            assert time.monotonic() < end, f"{block.place}: no answer\n{said}"
            time.sleep(0.5)

    def _merge(self, text: str) -> None:
        path = self.repository / "params.yaml"
        tree = merge(yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(text))
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
