"""`pip install` alone is enough: a new environment, the package, and a proven cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from environment import ROOT, Environment


@pytest.mark.timeout(300)
def test_a_cluster_comes_up_after_pip_install_alone(tmp_path: Path) -> None:
    new = Environment(tmp_path)
    new.pip("install", "--quiet", ROOT)
    try:
        assert "6 of 6 gates are open" in new.run(new.bin / "drillyard", "up")
    finally:
        down = new.run(new.bin / "drillyard", "down", "--delete-data")
    assert "nothing left" in down
