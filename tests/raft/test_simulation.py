"""Whole groups from seeds: several hundred here; more with

DRILLYARD_SEEDS=5000 DRILLYARD_FIRST_SEED=1000 pytest tests/raft/test_simulation.py --timeout=0
"""

from __future__ import annotations

import os

import pytest
from histories import run
from planted import (
    CHANGES,
    DEPOSED,
    DUELS,
    REPLACEMENTS,
    SLOW_DISKS,
    SLOW_REPLACEMENTS,
    SMALL_STEPS,
    STRAGGLING_SNAPSHOTS,
)

from drillyard.emulator.simulation.parts import Dice
from drillyard.emulator.simulation.raft_groups import Scale, simulate

FIRST = int(os.environ.get("DRILLYARD_FIRST_SEED", "0"))
SEEDS = int(os.environ.get("DRILLYARD_SEEDS", "240"))
CHUNKS = 8
SCALES = {
    "slow disks": SLOW_DISKS,
    "duels": DUELS,
    "small steps": SMALL_STEPS,
    "deposed leaders": DEPOSED,
    "changes": CHANGES,
    "replacements": REPLACEMENTS,
    "slow replacements": SLOW_REPLACEMENTS,
    "straggling snapshots": STRAGGLING_SNAPSHOTS,
}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_any_weather(chunk: int) -> None:
    for seed in range(FIRST + chunk, FIRST + SEEDS, CHUNKS):
        run(seed)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
def test_one_kind_of_trouble(scale: Scale) -> None:
    for seed in range(FIRST, FIRST + SEEDS // 16):
        run(seed, scale)


def test_the_storm_is_one() -> None:
    """What the simulation is for must happen in it: else it proves nothing."""
    outcomes = [simulate(seed) for seed in range(20)]
    assert sum(outcome.elections for outcome in outcomes) > 40
    assert sum(outcome.crashes for outcome in outcomes) > 100
    assert sum(outcome.changes for outcome in outcomes) > 10
    assert sum(outcome.snapshots for outcome in outcomes) > 10
    assert sum(outcome.decided for outcome in outcomes) > 400
    calls = [call for outcome in outcomes for call in outcome.history]
    assert {(call.kind, call.outcome) for call in calls} >= {
        (kind, how) for kind in ("get", "put") for how in ("ok", "failed", "unknown")
    }


def test_a_seed_says_everything() -> None:
    assert [simulate(seed).trace for seed in range(5)] == [simulate(seed).trace for seed in range(5)]
    assert len({simulate(seed).trace for seed in range(5)}) == 5


def test_a_failure_names_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(dice: Dice, n: int) -> int:
        raise ArithmeticError("no chance")

    monkeypatch.setattr(Dice, "below", stumble)
    with pytest.raises(ArithmeticError) as failure:
        simulate(77)
    assert any("seed 77" in note for note in failure.value.__notes__)
