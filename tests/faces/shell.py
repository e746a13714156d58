"""The command line as a subprocess, under a home of its own and on free ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from schema_check import problems

from ports import free_ports

# A suite that was started in the background of a shell ignores SIGINT, and so would the commands that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

CLI = (sys.executable, "-m", "drillyard")
PATIENCE_S = 110


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout, which keeps to the schema."""
        told: dict[str, Any] = json.loads(self.out)
        assert problems(told) == []
        assert told["exit_code"] == self.code
        assert told["ok"] == (self.code == 0)
        return told


class Shell:
    """Runs commands; nothing of them outlives the test."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {**os.environ, "DRILLYARD_HOME": str(home), "COLUMNS": "120"}

    def __call__(self, *words: str) -> Ran:
        done = subprocess.run([*CLI, *words], env=self.env, capture_output=True, text=True, timeout=PATIENCE_S)
        assert "Traceback" not in done.stdout + done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*CLI, *words], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )

    def topology(self, pd: int = 3, tikv: int = 3) -> Path:
        """A topology file on ports that are free now."""
        ports = free_ports(2 * (pd + tikv))
        lines = []
        for role, count, second in (("pd", pd, "peer"), ("tikv", tikv, "status")):
            for number in range(count):
                lines.append(f'[[{role}]]\nname = "{role}{number}"')
                lines.append(f"client-port = {ports.pop()}\n{second}-port = {ports.pop()}")
        path = self.home.parent / "topology.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def clear(self) -> None:
        for plan in (self.home / "deployments").glob("*/plan.json"):
            self("down", "--name", plan.parent.name, "--delete-data")


@pytest.fixture
def drillyard(tmp_path: Path) -> Iterator[Shell]:
    """A command line of its own for a test."""
    shell = Shell(tmp_path / "home")
    yield shell
    shell.clear()
