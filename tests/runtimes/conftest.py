"""A runtime under a temporary home whose members are stand-ins, on ports that no default uses."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from drillyard.runtimes.abilities import Deployment
from drillyard.runtimes.local import LocalRuntime
from drillyard.runtimes.plans import Executable, Executables
from drillyard.topology import PREFERRED_PORTS, Member, Topology

STAND_IN = Executable("emulated", (sys.executable, "-S", "-E", str(Path(__file__).with_name("standin.py"))))
STAND_INS = Executables(STAND_IN, STAND_IN)


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


async def up(
    runtime: LocalRuntime, name: str = "a", behaviours: Mapping[str, str] | None = None, pd: int = 1, tikv: int = 1
) -> Deployment:
    """Start a deployment of stand-ins, some of which behave as told, and wait until each of them serves."""
    behaviours = behaviours or {}
    members = tuple(
        Member(m.name, m.role, flags=(f"--stand-in={behaviours[m.name]}",) if m.name in behaviours else ())
        for m in Topology.of(pd, tikv).members
    )
    deployment = await runtime.start(await runtime.plan(Topology(members), name, STAND_INS))
    await until(lambda: all(has_served(m.out_path, 1) for m in deployment.members))
    return deployment


def has_served(out: Path, times: int) -> bool:
    return out.exists() and out.read_text().count("serving") >= times


async def until(is_so: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait for a condition outside of this process; fail after the deadline."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.01)


def run(made: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(made, 60))
