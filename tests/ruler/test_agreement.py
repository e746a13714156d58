"""The ruler against an independent client, which keeps its own history of the same outages by its own clock.

Both see the same service from two processes; what they may differ by is how often each asks, and what a busy machine
makes of that: a process that is not let run for a while sees a longer outage. So the median is held to the promise
here, over few kills; `./yard bench ruler` compares fifty and tells every difference.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest
from client_cluster import ClientCluster, started

from bench.independent import Independent
from drillyard.flows.measure import OutageReport
from drillyard.flows.report import Ending

AGREED_S = 0.05
ROUNDS = {"kill": 8, "pause": 4}
UNDO = {"kill": "start", "pause": "resume"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientCluster]:
    with started(tmp_path_factory.mktemp("ruler")) as cluster:
        yield cluster


@pytest.mark.timeout(300)
def test_it_agrees_with_an_independent_client(cluster: ClientCluster) -> None:
    reports: list[OutageReport] = []
    with Independent(cluster.pd_endpoints) as witness:
        for operation, rounds in ROUNDS.items():
            for _ in range(rounds):
                member = cluster.region_leader()
                reports.append(cluster.cluster.measure(operation, member, timeout_s=60))
                getattr(cluster.cluster, UNDO[operation])(member)
                cluster.heal()
    compared = []
    for report in reports:
        (one,) = report.regions
        assert report.ending is Ending.OK, report
        assert one.gap is not None, report
        seen_s = witness.gap_s(report.strike.asked_at, report.strike.done_at + report.watched_s)
        compared.append((report.order.operation.value, round(one.gap.length_s, 3), round(seen_s, 3)))
    differences = [abs(ours - theirs) for _, ours, theirs in compared]
    assert statistics.median(differences) < AGREED_S, compared
