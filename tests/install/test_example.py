"""The example is what a stranger has: its files, the wheel from a new environment, and pytest, alone and on workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest
from environment import ROOT, Environment


@pytest.mark.timeout(500)
def test_the_example_passes_from_the_wheel_and_leaves_nothing(tmp_path: Path) -> None:
    new = Environment(tmp_path)
    new.pip("wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "wheels", ROOT)
    (wheel,) = (tmp_path / "wheels").glob("drillyard-*.whl")
    new.pip("install", "--quiet", wheel, "pytest", "pytest-xdist", "tikv-client==0.0.4")
    example = shutil.copytree(ROOT / "examples" / "pytest", tmp_path / "example", ignore=_caches)
    for options in ([], ["-n", "2"]):
        told = new.run(new.bin / "python", "-m", "pytest", "-rA", *options, inside=example)
        assert "6 passed" in told
        assert "= drillyard =" not in told, "nothing went wrong beside the tests"
        assert list((new.home / "deployments").iterdir()) == []
        assert [one for one in psutil.process_iter(["cmdline"]) if _is_of(one, new.home)] == []


def _caches(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith((".", "__"))]


def _is_of(process: psutil.Process, home: Path) -> bool:
    return any(str(home) in word for word in process.info["cmdline"] or ())
