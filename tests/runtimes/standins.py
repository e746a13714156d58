"""Deployments whose members are stand-ins, and the one way the tests here wait."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from drillyard.runtimes.abilities import Deployment
from drillyard.runtimes.local import LocalRuntime
from drillyard.runtimes.plans import Executable, Executables
from drillyard.topology import Member, Topology

STAND_IN = Executable("emulated", (sys.executable, "-S", "-E", str(Path(__file__).with_name("standin.py"))))
STAND_INS = Executables(STAND_IN, STAND_IN)


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
