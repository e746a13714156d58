"""The compose runtime on a real Docker daemon, with a real PD and emulated TiKV: the same contract, the same proof."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from compose_subject import REAL_PD, ComposeSubject, objects_of
from suite import SCENARIOS, Subject, run

from drillyard.faces.api import Ending, Wanted, Yard
from drillyard.runtimes.compose import ComposeRuntime
from drillyard.runtimes.compose_file import default_topology


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_contract(scenario: Callable[[Subject], Coroutine[Any, Any, None]], tmp_path: Path) -> None:
    run(scenario, ComposeSubject(ComposeRuntime(tmp_path / "home"), REAL_PD, default_topology()))


@pytest.mark.timeout(300)
def test_six_gates_open_and_nothing_is_left(tmp_path: Path) -> None:
    wanted = Wanted(runtime="compose", pd_image=REAL_PD.pd, tikv_image=REAL_PD.tikv, timeout_s=120)
    proof = asyncio.run(Yard(tmp_path / "home").prove(wanted, "proof"))
    assert proof.report.is_ready, proof.report.trouble
    assert proof.ending is Ending.OK, proof
    assert "real PD" in proof.report.proven
    assert proof.down is not None
    assert (proof.down.killed, proof.down.checked_containers) == ((), 6)
    assert objects_of("drillyard-proof") == []
