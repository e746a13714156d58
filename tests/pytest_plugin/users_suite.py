"""A suite of somebody's: test files in a directory of their own, run by pytest as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 110
SMALL = """[pytest]
drillyard_pd = 1
drillyard_tikv = 1
"""
PRELUDE = """
import os, pathlib, signal, time
import pytest
import tikv

def client(cluster):
    return tikv.RawClient(list(cluster.pd_endpoints))
"""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str

    def line(self, having: str) -> str:
        """The one line of the output that has these words, besides the short summary's."""
        lines = [line for line in self.out.splitlines() if not line.startswith(("ERROR ", "FAILED "))]
        found = [line for line in lines if having in line]
        assert len(found) == 1, f"{len(found)} lines have {having!r}:\n{self.out}"
        return found[0]

    def evidence(self, having: str) -> Path:
        """The bundle that this line of the summary tells of."""
        bundle = Path(self.line(having).rpartition("evidence: ")[2])
        assert (bundle / "members.json").is_file(), self.out
        return bundle


class Suite:
    def __init__(self, directory: Path) -> None:
        self.directory = directory / "suite"
        self.home = directory / "home"
        self.directory.mkdir()
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        self.env |= {"DRILLYARD_HOME": str(self.home), "COLUMNS": "200"}
        self.write("pytest.ini", SMALL)

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(PRELUDE + text if name.endswith(".py") else text)
        return path

    def begin(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *options]
        return subprocess.Popen(
            command, cwd=self.directory, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *options: str) -> Ran:
        return self.end(self.begin(*options))

    def end(self, begun: subprocess.Popen[str]) -> Ran:
        try:
            out, _ = begun.communicate(timeout=PATIENCE_S)
        finally:
            begun.kill()
        return Ran(begun.returncode, out)

    def leftovers(self) -> set[str]:
        return {name for inner in self.deployments().values() for name in inner}

    def deployments(self) -> dict[str, list[str]]:
        """What is left under the home: by deployment the names in its directory."""
        found = sorted((self.home / "deployments").glob("*"))
        return {path.name: sorted(inner.name for inner in path.iterdir()) for path in found}
