"""The contract on stand-ins: it holds for the runtime alone, whatever the members are."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from standins import STAND_INS
from suite import SCENARIOS, LocalSubject, Subject, run, settled

from drillyard.runtimes.local import LocalRuntime
from drillyard.topology import Topology


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_contract(scenario: Callable[[Subject], Coroutine[Any, Any, None]], runtime: LocalRuntime) -> None:
    run(scenario, LocalSubject(runtime, STAND_INS, settled(Topology.of())))
