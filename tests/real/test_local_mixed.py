"""The local runtime with a real PD and emulated TiKV: the same contract, and the same proof."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from real_pd import executable
from suite import SCENARIOS, LocalSubject, Subject, run, settled

from drillyard.faces.api import Ending, Wanted, Yard
from drillyard.runtimes.local import LocalRuntime
from drillyard.runtimes.plans import Executable, Executables
from drillyard.topology import Topology


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_contract(scenario: Callable[[Subject], Coroutine[Any, Any, None]], tmp_path: Path) -> None:
    executables = Executables(pd=Executable.real(executable("pd-server-81")))
    run(scenario, LocalSubject(LocalRuntime(tmp_path / "home"), executables, settled(Topology.of())))


@pytest.mark.parametrize("era", ["81", "66"])
def test_six_gates_open_and_nothing_is_left(era: str, tmp_path: Path) -> None:
    wanted = Wanted(pd_binary=str(executable(f"pd-server-{era}")))
    proof = asyncio.run(Yard(tmp_path / "home").prove(wanted))
    assert proof.report.is_ready, proof.report.trouble
    assert proof.ending is Ending.OK, proof
    assert "real PD" in proof.report.proven
