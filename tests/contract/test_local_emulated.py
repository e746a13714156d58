"""The contract on the local runtime with the emulator's members."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from suite import SCENARIOS, LocalSubject, Subject, run, settled

from drillyard.runtimes.local import LocalRuntime
from drillyard.runtimes.plans import Executables
from drillyard.topology import Topology


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_contract(scenario: Callable[[Subject], Coroutine[Any, Any, None]], tmp_path: Path) -> None:
    run(scenario, LocalSubject(LocalRuntime(tmp_path / "home"), Executables(), settled(Topology.of())))
