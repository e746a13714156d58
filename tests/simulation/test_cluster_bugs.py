"""Each planted bug must be caught by the simulation, on seeds that the sound cluster passes."""

from __future__ import annotations

import pytest
from cluster_histories import run
from cluster_planted import PLANTED, Planted

from drillyard.emulator.simulation.clusters import Violation


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_the_simulation_catches(bug: Planted) -> None:
    caught: Violation | None = None
    with pytest.MonkeyPatch.context() as monkeypatch:
        bug.patch(monkeypatch)
        for seed in (bug.seed, *range(bug.seeds)):
            try:
                run(seed, bug.scale)
            except Violation as violation:
                caught = violation
                break
    assert caught is not None, f"{bug.name} was not caught by {bug.seeds} seeds"
    assert caught.invariant in bug.expected, str(caught)
    run(seed, bug.scale)  # without the bug, the seed that caught it passes
