"""Whole clusters from seeds: more than a thousand here; more with

DRILLYARD_SEEDS=20000 DRILLYARD_FIRST_SEED=5000 pytest -n auto tests/simulation/test_clusters.py --timeout=0
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from cluster_histories import run

from drillyard.emulator.simulation.clients import Client
from drillyard.emulator.simulation.clusters import simulate

FIRST = int(os.environ.get("DRILLYARD_FIRST_SEED", "0"))
SEEDS = int(os.environ.get("DRILLYARD_SEEDS", "1000"))
CHUNKS = 40  # short ones: a test may not take long on a busy machine


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_any_weather(chunk: int) -> None:
    for seed in range(FIRST + chunk, FIRST + SEEDS, CHUNKS):
        run(seed)


def test_the_storm_is_one() -> None:
    """What the simulation is for must happen in it: else it proves nothing."""
    outcomes = [simulate(seed) for seed in range(30)]
    assert sum(outcome.elections for outcome in outcomes) > 60
    assert sum(outcome.moves for outcome in outcomes) > 60
    assert sum(outcome.crashes for outcome in outcomes) > 40
    assert sum(outcome.steps for outcome in outcomes) > 40
    assert sum(outcome.splits for outcome in outcomes) > 4
    assert sum(outcome.merges for outcome in outcomes) > 0
    calls = [call for outcome in outcomes for call in outcome.history]
    kinds = {(call.kind, call.outcome) for call in calls}
    assert kinds >= {(kind, "ok") for kind in ("get", "put", "delete", "swap")}
    assert kinds >= {(kind, "unknown") for kind in ("put", "delete", "swap")}


def test_a_seed_says_everything() -> None:
    """In other processes, too, where strings and bytes have other hashes."""
    program = (
        "from drillyard.emulator.simulation.clusters import simulate\n"
        "print([simulate(seed).trace for seed in range(6)])"
    )
    here = str([simulate(seed).trace for seed in range(6)])
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", program]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == here


def test_a_failure_names_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(client: Client) -> None:
        raise ArithmeticError("no chance")

    monkeypatch.setattr(Client, "start", stumble)
    with pytest.raises(ArithmeticError) as failure:
        simulate(77)
    assert any("seed 77" in note for note in failure.value.__notes__)
