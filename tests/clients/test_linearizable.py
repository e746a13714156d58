"""Histories of real clients stay linearizable while members die, pause and come back."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest
from client_cluster import SERVED_S, ClientCluster
from client_histories import load

from drillyard.judge.consistency import Outcome, Verdict, check


def kill(cluster: ClientCluster, victim: str) -> Callable[[], object]:
    cluster.cluster.kill(victim)
    return lambda: cluster.start(victim)


def pause(cluster: ClientCluster, victim: str) -> Callable[[], object]:
    cluster.cluster.pause(victim)
    return lambda: cluster.cluster.resume(victim)


FAULTS = {
    "region leader killed": (ClientCluster.region_leader, kill),
    "another store killed": (ClientCluster.other_store, kill),
    "region leader paused": (ClientCluster.region_leader, pause),
    "PD leader killed": (ClientCluster.pd_leader, kill),
    "PD leader paused": (ClientCluster.pd_leader, pause),
}


@pytest.mark.parametrize(("choose", "strike"), FAULTS.values(), ids=FAULTS.keys())
def test_linearizable_while(
    cluster: ClientCluster,
    choose: Callable[[ClientCluster], str],
    strike: Callable[[ClientCluster, str], Callable[[], object]],
) -> None:
    seed = secrets.token_hex(4)
    victim = choose(cluster)
    with load(cluster.pd_endpoints, seed) as running:
        running.wait_for(40, SERVED_S, "not served before the fault")
        undo = strike(cluster, victim)
        try:
            running.wait_for(40, SERVED_S, f"not served again without {victim}")
        finally:
            undo()
        running.wait_for(40, SERVED_S, f"not served after {victim} came back")
    cluster.heal()
    operations = running.history.operations
    judgement = check(operations)
    assert judgement.verdict is Verdict.LINEARIZABLE, f"seed {seed}, {victim}: {judgement.explain()}"
    certain = sum(1 for op in operations if op.outcome is Outcome.OK)
    assert certain > 500, "too little happened for the verdict to mean much"
