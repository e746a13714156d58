"""Regions that nobody uses sleep, and are there at once when somebody does, also without the store that led them."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

from client_cluster import ClientCluster, eventually

from drillyard.clients.tikv import RawClient

KEYS = [b"sleeping-%02d" % number for number in range(12)]


def regions_of(cluster: ClientCluster) -> list[dict[str, Any]]:
    found = eventually(lambda: cluster.ask("regions"), "PD lists the regions")
    return list(found["regions"])


def status_of(cluster: ClientCluster, member: str) -> str:
    return next(row.addresses["status"] for row in cluster.cluster.status().members if row.name == member)


def stores(cluster: ClientCluster) -> list[str]:
    return [member for member in cluster.all_members() if member.startswith("tikv")]


def metric(cluster: ClientCluster, member: str, name: str) -> float:
    page = urllib.request.urlopen(f"http://{status_of(cluster, member)}/metrics", timeout=10).read().decode()
    return next(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name))


def are_asleep(cluster: ClientCluster, members: list[str], count: int) -> bool:
    state = 'tikv_raftstore_hibernated_peer_state{state="hibernated"}'
    return all(metric(cluster, member, state) == count for member in members)


def terms(cluster: ClientCluster, member: str) -> dict[int, int]:
    address = status_of(cluster, member)
    found = {}
    for region in regions_of(cluster):
        with urllib.request.urlopen(f"http://{address}/region/{region['id']}", timeout=10) as answer:
            found[region["id"]] = json.load(answer)["raft_status"]["hard_state"]["term"]
    return found


async def put_all(cluster: ClientCluster) -> None:
    client = RawClient(cluster.pd_endpoints, timeout_s=10.0)
    try:
        for key in KEYS:
            assert (await client.put(key, b"of " + key)).is_ok
    finally:
        client.close()


async def is_all_read(cluster: ClientCluster) -> bool:
    client = RawClient(cluster.pd_endpoints, timeout_s=2.0)
    try:
        outcomes = await asyncio.gather(*(client.get(key) for key in KEYS))
    finally:
        client.close()
    return all(outcome.is_ok and outcome.value == b"of " + key for key, outcome in zip(KEYS, outcomes, strict=True))


def test_sleeping_regions_keep_their_terms_and_outlive_the_store_that_leads_them(cluster: ClientCluster) -> None:
    cluster.split(*KEYS)
    asyncio.run(put_all(cluster))
    count = len(regions_of(cluster))
    assert count > len(KEYS)
    members = stores(cluster)
    eventually(lambda: cluster.ask("operators") == [], "PD has nothing to move")
    eventually(lambda: are_asleep(cluster, members, count), "all regions sleep")
    before = terms(cluster, members[0])
    now = metric(cluster, members[0], "process_cpu_seconds_total")
    eventually(lambda: metric(cluster, members[0], "process_cpu_seconds_total") > now + 0.03, "the store has worked")
    assert terms(cluster, members[0]) == before, "an idle cluster elects nobody"
    leader = cluster.region_leader()
    cluster.cluster.kill(leader)
    eventually(lambda: asyncio.run(is_all_read(cluster)), "every key is read again")
    others = [member for member in members if member != leader]
    eventually(lambda: are_asleep(cluster, others, count), "the others sleep without it")
    cluster.start(leader)
    cluster.heal()
    eventually(lambda: are_asleep(cluster, members, count), "all sleep again")
