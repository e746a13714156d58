"""Histories of real clients stay linearizable while members die, pause and come back."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable

import pytest
from client_cluster import READY_S, SERVED_S, ClientCluster
from client_faults import FAULTS, Fault
from client_histories import History, load

from drillyard.clients.tikv import RawClient
from drillyard.judge.consistency import Kind, Operation, Outcome, Verdict, check


def judge(history: History, at_least: int = 500) -> None:
    judgement = check(history.operations)
    assert judgement.verdict is Verdict.LINEARIZABLE, f"seed {history.seed}: {judgement.explain()}"
    certain = sum(1 for op in history.operations if op.outcome is Outcome.OK)
    assert certain > at_least, "too little happened for the verdict to mean much"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_linearizable_while(cluster: ClientCluster, fault: Fault) -> None:
    with load(cluster.pd_endpoints, secrets.token_hex(4)) as running:
        running.wait_for(40, SERVED_S, "not served before the fault")
        victim = fault.choose(cluster)
        fault.strike(cluster.cluster, victim)
        try:
            running.wait_for(40, SERVED_S, f"not served again without {victim}")
        finally:
            fault.undo(cluster.cluster, victim)
        running.wait_for(40, SERVED_S, f"not served after {victim} came back")
    cluster.heal()
    judge(running.history)


def test_linearizable_through_faults_that_overlap(cluster: ClientCluster) -> None:
    """Members are killed and paused, quorums too, and come back, in an order that the printed seed decides."""
    seed = secrets.token_hex(4)
    chance = random.Random(seed)
    members = cluster.all_members()
    undos: dict[str, Callable[[str], object]] = {}
    with load(cluster.pd_endpoints, seed) as running:
        running.wait_for(20, SERVED_S, "not served before the faults")
        try:
            for _ in range(10):
                member = chance.choice(members)
                if member in undos:
                    undos.pop(member)(member)
                elif chance.random() < 0.5:
                    undos[member] = cluster.start
                    cluster.cluster.kill(member)
                else:
                    undos[member] = cluster.cluster.resume
                    cluster.cluster.pause(member)
                running.stop.wait(chance.random())
        finally:
            for member, undo in undos.items():
                undo(member)
        running.wait_for(20, READY_S, f"seed {seed}: not served after all came back")
    cluster.heal()
    history = running.history
    history.add(asyncio.run(read_back(cluster, [*history.plain, *history.swapped])))
    judge(history, at_least=200)


def test_killing_all_six_at_once_loses_nothing_acknowledged(cluster: ClientCluster) -> None:
    with load(cluster.pd_endpoints, secrets.token_hex(4)) as running:
        running.wait_for(80, SERVED_S, "not served before the fault")
        cluster.kill_all()
    cluster.start(*cluster.all_members())
    cluster.heal()
    history = running.history
    history.add(asyncio.run(read_back(cluster, [*history.plain, *history.swapped])))
    judge(history)


async def read_back(cluster: ClientCluster, keys: list[bytes]) -> list[Operation]:
    """What each key holds now, as operations that end the history."""
    client = RawClient(cluster.pd_endpoints, timeout_s=READY_S)
    operations = []
    try:
        for key in keys:
            called = time.monotonic()
            outcome = await client.get(key)
            assert outcome.is_ok, outcome
            operations.append(Operation(Kind.GET, key, called, time.monotonic(), outcome.value, client="afterwards"))
    finally:
        client.close()
    return operations
