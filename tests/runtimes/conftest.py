"""A runtime under a temporary home, on ports that no default uses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from drillyard.runtimes.local import LocalRuntime
from drillyard.topology import PREFERRED_PORTS


@pytest.fixture(autouse=True)
def _own_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that run side by side start looking at different places, and never at the real servers' ports."""
    base = 21000 + os.getpid() % 97 * 100
    starts = {key: (base + at * 20, 1) for at, key in enumerate(PREFERRED_PORTS)}
    monkeypatch.setattr("drillyard.runtimes.ports.PREFERRED_PORTS", starts)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[LocalRuntime]:
    """The runtime; whatever it still runs at the end is taken down."""
    made = LocalRuntime(tmp_path / "home")
    yield made
    for name in made.names():
        asyncio.run(made.stop(name))
