"""`pip install` alone is enough: a new environment, the package, and a proven cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_a_cluster_comes_up_after_pip_install_alone(tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))},
        "DRILLYARD_HOME": str(tmp_path / "home"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    bin_dir = tmp_path / "venv" / "bin"

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [str(word) for word in command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(bin_dir / "python", "-m", "pip", "install", "--quiet", ROOT)
    try:
        assert "6 of 6 gates are open" in run(bin_dir / "drillyard", "up")
    finally:
        down = run(bin_dir / "drillyard", "down", "--delete-data")
    assert "nothing left" in down
