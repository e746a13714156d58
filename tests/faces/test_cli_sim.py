"""The command that simulates whole clusters: seeds in, a judgement out."""

from __future__ import annotations

import pytest
from shell import Shell

from drillyard.flows.simulate import SimulationOrder, SimulationReport, _take, lines_of


def test_seeds_are_simulated_and_judged(drillyard: Shell) -> None:
    told = drillyard("sim", "--seeds", "0..3", "--jobs", "2", "--json").document["simulation"]
    assert (told["seeds"], told["failures"], told["trace"]) == (4, [], None)
    assert told["virtual_s"] > 4
    assert told["totals"]["elections"] > 4
    assert told["totals"]["calls"] > 40


def test_one_seed_has_a_trace_and_a_tale_and_says_them_again(drillyard: Shell) -> None:
    first, second = (drillyard("sim", "--seed", "2", "--json").document["simulation"] for _ in range(2))
    assert first["trace"] == second["trace"]
    assert first["tale"] == second["tale"]
    assert any("the storm begins" in line["text"] for line in first["tale"])
    ran = drillyard("sim", "--seed", "2")
    assert f"trace {first['trace']}" in ran.out
    assert "1 seeds: " in ran.out


def test_clusters_may_all_have_as_many_stores(drillyard: Shell) -> None:
    drawn, small, large = (
        drillyard("sim", "--seed", "2", *words, "--json").document["simulation"]
        for words in ((), ("--stores", "3"), ("--stores", "5"))
    )
    assert len({drawn["trace"], small["trace"], large["trace"]}) == 3
    assert any("store5" in line["text"] for line in large["tale"])
    assert not any("store4" in line["text"] for line in small["tale"])


@pytest.mark.parametrize(("stores", "replay"), [(None, "sim --seed 7"), (3, "sim --seed 7 --stores 3")])
def test_a_seed_that_fails_says_how_to_replay_it(stores: int | None, replay: str) -> None:
    report = SimulationReport(SimulationOrder(0, 9, stores=stores))
    told = {"seed": 7, "trace": "ab", "virtual_us": 5_000_000, "invariant": "liveness", "text": "nobody leads"}
    _take(report, told)
    assert not report.has_passed
    lines = "\n".join(lines_of(report))
    assert "seed 7 fails, version " in lines
    assert "nobody leads" in lines
    assert lines.splitlines()[1].endswith(f"drillyard {replay}")


def test_histories_are_judged_outside_the_emulator() -> None:
    report = SimulationReport(SimulationOrder(0, 9))
    history = [
        [1, "put", "k", "1-1", 0, 10, "ok", None, False, None],
        [2, "get", "k", None, 20, 30, "ok", None, False, None],
    ]
    _take(report, {"seed": 8, "trace": "ab", "virtual_us": 5_000_000, "calls": 2, "history": history})
    assert [failure.invariant for failure in report.failures] == ["linearizable history"]
