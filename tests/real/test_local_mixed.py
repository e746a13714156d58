"""The local runtime with a real PD and emulated TiKV: the same contract, and the same proof."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from real_pd import executable
from suite import SCENARIOS, LocalSubject, Subject, run, settled, until

import drillyard
from drillyard.faces.api import Cluster, Ending, Wanted, Yard
from drillyard.runtimes.local import LocalRuntime
from drillyard.runtimes.plans import Executable, Executables
from drillyard.topology import Topology

ANY_ONE = "any 1 PD and any 1 TiKV may fail"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_contract(scenario: Callable[[Subject], Coroutine[Any, Any, None]], tmp_path: Path) -> None:
    executables = Executables(pd=Executable.real(executable("pd-server-81")))
    run(scenario, LocalSubject(LocalRuntime(tmp_path / "home"), executables, settled(Topology.of())))


async def may_fail(cluster: Cluster, *text: str) -> None:
    """A look says so before long, in sentences that begin like this."""

    async def is_told() -> bool:
        seen = (await cluster.status()).survivability
        told = seen.text if seen is not None else ()
        return len(told) == len(text) and all(map(str.startswith, told, text))

    await until(is_told)


@pytest.mark.parametrize("era", ["81", "66"])
def test_a_real_pd_tells_what_may_still_fail(era: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        binary = str(executable(f"pd-server-{era}"))
        async with drillyard.cluster(home=tmp_path / "home", pd_binary=binary) as cluster:
            assert cluster.report is not None
            seen = cluster.report.survivability
            assert seen is not None
            assert list(seen.text) == [ANY_ONE]
            await cluster.kill("tikv1")
            regions = "losing tikv0 or tikv2 now would leave region"  # a real PD has the first one split
            await may_fail(cluster, "any 1 PD may fail", f"no TiKV may fail: tikv1 is down, and {regions}")
            await cluster.start("tikv1")
            await may_fail(cluster, ANY_ONE)
            follower = next(name for name in ("pd0", "pd1") if name != cluster.report.pd_leader)
            await cluster.kill(follower)
            await may_fail(cluster, f"no PD may fail: {follower} is down", "any 1 TiKV may fail")

    asyncio.run(scenario())


@pytest.mark.parametrize("era", ["81", "66"])
def test_six_gates_open_and_nothing_is_left(era: str, tmp_path: Path) -> None:
    wanted = Wanted(pd_binary=str(executable(f"pd-server-{era}")))
    proof = asyncio.run(Yard(tmp_path / "home").prove(wanted))
    assert proof.report.is_ready, proof.report.trouble
    assert proof.ending is Ending.OK, proof
    assert "real PD" in proof.report.proven
