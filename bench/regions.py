"""What regions cost that nobody uses: CPU, elections, loop lag and memory, and how soon a lost store is made up for."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

from bench.deployment import Deployment, cpu_s, pd_addresses, standing
from bench.failover import PROBE_S, region_leader
from bench.figures import Figure, Results
from bench.plan import BenchFailed
from bench.splitting import ask, split, stores
from drillyard.clients.tikv import RawClient
from drillyard.faces.api import Yard

COUNTS = (1, 100, 1000)
SETTLE_S = 300.0  # at most, until the leaders are spread and nothing is awake
CALM_S = 4.0
SPANS, IDLE_S = 5, 4.0
LOSSES = 5
READERS = 32
LIMIT_S = 60.0

CPU = Figure("idle-cpu", "CPU of all six members, idle, by regions", "% of a core", 5.0)
ELECTIONS = Figure("idle-elections", "terms begun while idle, by regions", "", 0.0)
IDLE_LAG = Figure("idle-loop-lag", "loop lag while idle, 99 %, the worst member, by regions", "ms", 10.0)
LONGEST_IDLE_LAG = Figure("idle-longest-lag", "longest loop lag while idle, by regions", "ms")
MEMORY = Figure("regions-pss", "memory of an idle member, proportional, the largest, by regions", "MB", 55.0)
SERVED = Figure("regions-served", "all regions served again after SIGKILL of a store, by regions", "s")
LOST_LAG = Figure("lost-loop-lag", "loop lag after SIGKILL of a store, 99 %, the worst member, by regions", "ms")
LONGEST_LOST_LAG = Figure("lost-longest-lag", "longest loop lag after SIGKILL of a store, by regions", "ms")


def measure(results: Results) -> None:
    """Several spans and losses on one cluster, because a thousand regions take long to make."""
    with standing() as deployment:
        members = deployment.members()
        for count in COUNTS:
            split(members, [key_of(number) for number in range(1, count)])
            wait_asleep(members, count)
            for _ in range(SPANS):
                _idle(deployment, members, count, results)
            for _ in range(LOSSES):
                _lost(deployment, members, count, results)
                members = deployment.members()


def key_of(number: int) -> bytes:
    return b"bench-region-%06d" % number


def wait_asleep(members: dict[str, dict[str, Any]], count: int) -> None:
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


def _idle(deployment: Deployment, members: dict[str, dict[str, Any]], count: int, results: Results) -> None:
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


def _terms(members: dict[str, dict[str, Any]], count: int) -> int:
    """The sum of all regions' terms, as the first store knows them."""
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


def _lags(members: dict[str, dict[str, Any]]) -> dict[str, Lag]:
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


# ---- a store is lost ----


def _lost(deployment: Deployment, members: dict[str, dict[str, Any]], count: int, results: Results) -> None:
    """A store is killed, measured, and started again; who led regions is led elsewhere by then."""
    before = _lags(members)
    victim = asyncio.run(region_leader(members))
    results.add(SERVED.of(count), asyncio.run(_lose_a_store(deployment, members, victim, count)))
    worst, longest = _worst(before, _lags(members))
    results.add(LOST_LAG.of(count), worst)
    results.add(LONGEST_LOST_LAG.of(count), longest)
    deployment.run("start", victim)
    deployment.run("verify", "--wait")


async def _lose_a_store(deployment: Deployment, members: dict[str, dict[str, Any]], victim: str, count: int) -> float:
    """SIGKILL of a store until every region has answered a read that was begun after it."""
    client = RawClient(pd_addresses(members), timeout_s=PROBE_S)
    left = list(range(count))

    async def read(began: float) -> None:
        while left:
            number = left.pop()
            while not (await client.get(key_of(number))).is_ok:
                if time.perf_counter() - began > LIMIT_S:
                    raise BenchFailed(f"{len(left) + 1} regions are not served after {LIMIT_S:g} s")
                await asyncio.sleep(0.02)

    try:
        began = time.perf_counter()
        await Yard(deployment.home).cluster().kill(victim)
        await asyncio.gather(*(read(began) for _ in range(READERS)))
        return time.perf_counter() - began
    finally:
        client.close()


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
