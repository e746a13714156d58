"""What regions cost that nobody uses, and what many of them do to a failover and to a restart.

Rules: idle are the cluster's CPU, elections, loop lag and memory, over spans in which nobody asks it anything. After a
fault every region is read until it answers, those that lost their leader first. The readers know the regions and ask
the stores themselves, a few at a time: a client that asks PD again for each region measures itself and PD.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections import deque
from dataclasses import dataclass
from typing import Any

from bench.deployment import Deployment, cpu_s, pd_addresses, standing
from bench.failover import PROBE_S, region_leader
from bench.figures import Figure, Results
from bench.plan import BenchFailed, spans
from bench.splitting import ask, post, split, stores
from drillyard.clients.tikv import Route, Stores
from drillyard.faces.api import Yard
from drillyard.wire import kvrpcpb, metapb, services

COUNTS = (1, 100, 1000)
SETTLE_S = 300.0  # at most, until the leaders are spread and nothing is awake
CALM_S = 4.0
SPANS, IDLE_S = 5, 4.0
LOSSES, FAULTS_S = 5, 240.0  # after so long no more faults are begun for a number of regions
READERS = 8
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.1  # before a region that did not answer is asked again
LIMIT_S = 60.0

CPU = Figure("idle-cpu", "CPU of all six members, idle, by regions", "% of a core", 5.0)
ELECTIONS = Figure("idle-elections", "terms begun while idle, by regions", "", 0.0)
IDLE_LAG = Figure("idle-loop-lag", "loop lag while idle, 99 %, the worst member, by regions", "ms", 10.0)
LONGEST_IDLE_LAG = Figure("idle-longest-lag", "longest loop lag while idle, by regions", "ms")
MEMORY = Figure("regions-pss", "memory of an idle member, proportional, the largest, by regions", "MB", 55.0)
SERVED = Figure("regions-served", "all regions served again after SIGKILL of a store, by regions", "s")
LOST_LAG = Figure("lost-loop-lag", "loop lag after SIGKILL of a store, 99 %, the worst member, by regions", "ms")
LONGEST_LOST_LAG = Figure("lost-longest-lag", "longest loop lag after SIGKILL of a store, by regions", "ms")
STOPPED = Figure("regions-stopped", "all regions served again after SIGSTOP of a store, by regions", "s")
WOKEN = Figure("regions-woken", "terms begun after SIGCONT of that store, by regions", "")
RESTARTED = Figure("regions-restart", "all regions served after `drillyard up` of the stopped cluster, by regions", "s")

Members = dict[str, dict[str, Any]]


def measure(results: Results) -> None:
    """Several spans and faults on one cluster, because a thousand regions take long to make."""
    with standing() as deployment:
        members = deployment.members()
        for count in COUNTS:
            split(members, [key_of(number) for number in range(1, count)])
            wait_asleep(members, count)
            for _ in range(SPANS):
                _idle(deployment, members, count, results)
            for _ in spans(LOSSES, FAULTS_S):
                _lost(deployment, count, results)
                _stopped(deployment, count, results)
                _restarted(deployment, count, results)
            members = deployment.members()


def key_of(number: int) -> bytes:
    return b"bench-region-%06d" % number


def wait_asleep(members: Members, count: int) -> None:
    """Until PD has nothing more to move, and for some seconds no peer was awake."""
    deadline = time.monotonic() + SETTLE_S
    calm_since = time.monotonic()
    while time.monotonic() < deadline:
        states = [_metrics(row, "tikv_raftstore_hibernated_peer_state") for row in stores(members)]
        is_asleep = all(state.get('state="hibernated"') == count for state in states)
        if not is_asleep or ask(f"http://{pd_addresses(members)[0]}/pd/api/v1/operators"):
            calm_since = time.monotonic()
        if time.monotonic() > calm_since + CALM_S:
            return
        time.sleep(0.5)
    raise BenchFailed(f"after {SETTLE_S:g} s there are still peers awake: {states}")


# ---- idle ----


def _idle(deployment: Deployment, members: Members, count: int, results: Results) -> None:
    terms, lags, began = _terms(members, count), _lags(members), time.perf_counter()
    used_s = cpu_s(members)
    time.sleep(IDLE_S)
    used_s = cpu_s(members) - used_s
    results.add(CPU.of(count), 100 * used_s / (time.perf_counter() - began))
    worst, longest = _worst(lags, _lags(members))
    results.add(IDLE_LAG.of(count), worst)
    results.add(LONGEST_IDLE_LAG.of(count), longest)
    results.add(ELECTIONS.of(count), _terms(members, count) - terms)
    results.add(MEMORY.of(count), max(pss for _, pss in deployment.memory_mb()))


def _terms(members: Members, count: int) -> int:
    """The sum of all regions' terms, as the first of these stores knows them."""
    row = next(iter(stores(members)))
    regions = ask(f"http://{pd_addresses(members)[0]}/pd/api/v1/regions")["regions"]
    if len(regions) != count:
        raise BenchFailed(f"PD knows {len(regions)} regions instead of {count}")
    address = row["addresses"]["status"]
    return sum(
        ask(f"http://{address}/region/{region['id']}")["raft_status"]["hard_state"]["term"] for region in regions
    )


@dataclass(frozen=True, slots=True)
class Lag:
    longest_s: float
    buckets: dict[float, float]


def _lags(members: Members) -> dict[str, Lag]:
    return {name: found for name, row in members.items() if (found := _lag(row)) is not None}


def _lag(row: dict[str, Any]) -> Lag | None:
    try:
        buckets = _metrics(row, "drillyard_loop_lag_seconds_distribution_bucket")
        longest = _metrics(row, "drillyard_loop_lag_seconds")
    except OSError:  # it was killed
        return None
    bounds = {float(label.split('"')[1].replace("+Inf", "inf")): value for label, value in buckets.items()}
    return Lag(longest[""], bounds)


def _worst(before: dict[str, Lag], after: dict[str, Lag]) -> tuple[float, float]:
    """The bucket below which 99 % of a member's lags were, and the longest lag lately, both of the worst member."""
    bounds = []
    for name, now in after.items():
        seen = {bound: value - before[name].buckets[bound] for bound, value in now.buckets.items()}
        total = seen[float("inf")]
        bounds.append(min((bound for bound, value in seen.items() if value >= 0.99 * total), default=float("inf")))
    return 1000 * max(bounds), 1000 * max(now.longest_s for now in after.values())


# ---- faults ----


def _lost(deployment: Deployment, count: int, results: Results) -> None:
    """A store that leads is killed, and started again."""
    members = deployment.members()
    victim = asyncio.run(region_leader(members))
    before, known = _lags(members), _known(members, victim)
    began = time.perf_counter()
    asyncio.run(Yard(deployment.home).cluster().kill(victim))
    results.add(SERVED.of(count), asyncio.run(_served(known)) - began)
    worst, longest = _worst(before, _lags(members))
    results.add(LOST_LAG.of(count), worst)
    results.add(LONGEST_LOST_LAG.of(count), longest)
    deployment.run("start", victim)
    deployment.run("verify", "--wait")
    wait_asleep(deployment.members(), count)


def _stopped(deployment: Deployment, count: int, results: Results) -> None:
    """A store that leads stands still, and goes on."""
    members = deployment.members()
    victim = asyncio.run(region_leader(members))
    known = _known(members, victim)
    began = time.perf_counter()
    asyncio.run(Yard(deployment.home).cluster().pause(victim))
    results.add(STOPPED.of(count), asyncio.run(_served(known)) - began)
    others = {name: row for name, row in members.items() if name != victim}
    post(_balancing(members), {"delay": round(SETTLE_S)})  # PD gives leaders back to the store, for a term each
    terms = _terms(others, count)
    asyncio.run(Yard(deployment.home).cluster().resume(victim))
    time.sleep(CALM_S)
    results.add(WOKEN.of(count), _terms(others, count) - terms)
    post(_balancing(members), {"delay": 0})
    wait_asleep(members, count)


def _balancing(members: Members) -> str:
    return f"http://{pd_addresses(members)[0]}/pd/api/v1/schedulers/balance-leader-scheduler"


def _restarted(deployment: Deployment, count: int, results: Results) -> None:
    known = _known(deployment.members())
    deployment.run("down")
    began = time.perf_counter()
    deployment.up()
    results.add(RESTARTED.of(count), asyncio.run(_served(known)) - began)
    wait_asleep(deployment.members(), count)


@dataclass(slots=True)
class _Known:
    """A region as a client knows it: a key in it, and the ways to its peers, the leader's first."""

    key: bytes
    routes: list[Route]
    pause_s: float = SHORTEST_PAUSE_S


def _known(members: Members, victim: str = "") -> deque[_Known]:
    """All regions, without the peers on the victim; those that it leads come first."""
    pd = f"http://{pd_addresses(members)[0]}/pd/api/v1"
    addresses = {row["store"]["id"]: row["store"]["address"] for row in ask(f"{pd}/stores")["stores"]}
    gone = members[victim]["addresses"]["client"] if victim else ""
    known: deque[_Known] = deque()
    for row in ask(f"{pd}/regions")["regions"]:
        start, end = bytes.fromhex(row["start_key"]), bytes.fromhex(row["end_key"])
        peers = [metapb.Peer(id=peer["id"], store_id=peer["store_id"]) for peer in row["peers"]]
        epoch = metapb.RegionEpoch(conf_ver=row["epoch"]["conf_ver"], version=row["epoch"]["version"])
        region = metapb.Region(id=row["id"], start_key=start, end_key=end, region_epoch=epoch, peers=peers)
        leader = row["leader"]["id"]
        ways = [Route(start, end, region, peer, addresses[peer.store_id]) for peer in peers]
        ways = sorted((way for way in ways if way.address != gone), key=lambda way: way.peer.id != leader)
        is_hit = addresses[row["leader"]["store_id"]] == gone
        (known.appendleft if is_hit else known.append)(_Known(start, ways))
    return known


async def _served(left: deque[_Known]) -> float:
    """When every region had answered a read."""
    stores = Stores(PROBE_S)
    until = time.perf_counter() + LIMIT_S

    async def is_served(one: _Known) -> bool:
        for way in one.routes:
            request = kvrpcpb.RawGetRequest(key=one.key)
            outcome, _ = await stores.attempt(services.TIKV.RawGet, request, way, is_write=False)
            if outcome.is_ok:
                return True
        return False

    async def read() -> None:
        while left:
            one = left.popleft()
            while not await is_served(one):
                if time.perf_counter() > until:
                    raise BenchFailed(f"{len(left) + 1} regions are not served after {LIMIT_S:g} s")
                await asyncio.sleep(one.pause_s)
                one.pause_s = min(2 * one.pause_s, LONGEST_PAUSE_S)

    try:
        await asyncio.gather(*(read() for _ in range(READERS)))
        return time.perf_counter()
    finally:
        stores.close()


# ---- asking ----


def _metrics(row: dict[str, Any], name: str) -> dict[str, float]:
    """The samples of one metric, by their labels as written."""
    address = row["addresses"].get("status") or row["addresses"]["client"]
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
    found = {}
    for line in text.splitlines():
        whole, _, value = line.rpartition(" ")
        metric, _, labels = whole.partition("{")
        if metric == name:
            found[labels.rstrip("}")] = float(value)
    return found
