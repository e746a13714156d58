"""A new virtual environment, away from this one and its variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ("PYTHON", "VIRTUAL_ENV", "PYTEST")


class Environment:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.bin = directory / "venv" / "bin"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        self._variables = {**kept, "DRILLYARD_HOME": str(self.home), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        self.run(sys.executable, "-m", "venv", directory / "venv")

    def pip(self, *words: str | Path) -> None:
        self.run(self.bin / "python", "-m", "pip", *words)

    def run(self, *command: str | Path, inside: Path | None = None) -> str:
        words = [str(word) for word in command]
        directory = inside or self.directory
        done = subprocess.run(words, cwd=directory, env=self._variables, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout
