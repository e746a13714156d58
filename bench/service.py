"""What clients get of a cluster: how long it is not served after a member was killed, and how much it serves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.deployment import Bench, BenchFailed
from drillyard.clients import calls
from drillyard.clients.calls import CallFailed
from drillyard.clients.pd import PdClient
from drillyard.clients.tikv import RawClient
from drillyard.faces.api import Yard
from drillyard.flows.report import Ending

PROBE_S = 0.5  # the longest that one attempt may take
PAUSE_S = 0.005
GIVE_UP_S = 60.0
IN_FLIGHT = 64
KEYS = 1000  # to be deleted by a reset
THROUGHPUT_S = 2.0


async def store_lost(bench: Bench) -> float:
    """SIGKILL of the region leader until a client that knew it writes again."""
    members = bench.members()
    victim = await region_leader(members)
    client = RawClient(pd_addresses(members), timeout_s=PROBE_S)
    try:
        if not (await client.put(b"bench-store", b"before")).is_ok:
            raise BenchFailed("the cluster does not serve before the fault")

        async def attempt() -> bool:
            return (await client.put(b"bench-store", b"after")).is_ok

        took_s = await _served_again(bench, victim, attempt)
    finally:
        client.close()
    await _heal(bench, victim)
    return took_s


async def pd_lost(bench: Bench) -> float:
    """SIGKILL of the PD leader until timestamps are granted and a client that knows nothing yet can write."""
    members = bench.members()
    pds = [PdClient(row["name"], row["addresses"]["client"]) for row in members.values() if row["role"] == "pd"]
    leader, _ = await _pd_leader(pds)

    async def attempt() -> bool:
        leader, cluster_id = await _pd_leader(pds)
        await leader.timestamps(cluster_id, 1, timeout_s=PROBE_S)
        client = RawClient(pd_addresses(members), timeout_s=PROBE_S)
        try:
            return (await client.put(b"bench-pd", b"after")).is_ok
        finally:
            client.close()

    try:
        took_s = await _served_again(bench, leader.name, attempt)
    finally:
        for pd in pds:
            pd.close()
    await _heal(bench, leader.name)
    return took_s


async def reset(bench: Bench) -> float:
    """A cluster that is untouched but for its data, until it is proven to be as new."""
    client = RawClient(pd_addresses(bench.members()), timeout_s=10.0)
    try:
        outcomes = await asyncio.gather(*(client.put(b"bench-%d" % number, b"x" * 100) for number in range(KEYS)))
    finally:
        client.close()
    if not all(outcome.is_ok for outcome in outcomes):
        raise BenchFailed("the keys to delete could not be written")
    began = time.perf_counter()
    done = await Yard(bench.home).cluster().reset()
    took_s = time.perf_counter() - began
    if done.ending is not Ending.OK or not done.is_data_deleted:
        raise BenchFailed(f"the cluster could not be reset: {done.report.trouble}")
    return took_s


async def throughput(bench: Bench) -> tuple[float, float]:
    """Puts and gets a second, with many in flight from one process."""
    client = RawClient(pd_addresses(bench.members()), timeout_s=10.0)
    try:
        puts = await _rate(lambda number: client.put(b"bench-%d" % (number % 5000), b"x" * 100))
        gets = await _rate(lambda number: client.get(b"bench-%d" % (number % 5000)))
    finally:
        client.close()
    return puts, gets


async def _rate(act: Callable[[int], Awaitable[Any]]) -> float:
    done = 0
    end = time.perf_counter() + THROUGHPUT_S

    async def work(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            outcome = await act(number)
            if not outcome.is_ok:
                raise BenchFailed(f"a call failed under load: {outcome.reason}")
            done += 1
            number += IN_FLIGHT

    began = time.perf_counter()
    await asyncio.gather(*(work(number) for number in range(IN_FLIGHT)))
    return done / (time.perf_counter() - began)


async def _served_again(bench: Bench, victim: str, attempt: Callable[[], Awaitable[bool]]) -> float:
    began = time.perf_counter()
    await Yard(bench.home).cluster().kill(victim)
    while time.perf_counter() - began < GIVE_UP_S:
        try:
            if await attempt():
                return time.perf_counter() - began
        except CallFailed:
            pass  # that is what is being measured
        await asyncio.sleep(PAUSE_S)
    raise BenchFailed(f"not served again within {GIVE_UP_S:g} s")


async def _heal(bench: Bench, member: str) -> None:
    await asyncio.to_thread(bench.run, "start", member)
    await asyncio.to_thread(bench.run, "verify", "--wait")


def pd_addresses(members: dict[str, dict[str, Any]]) -> list[str]:
    return [row["addresses"]["client"] for row in members.values() if row["role"] == "pd"]


async def _pd_leader(pds: list[PdClient]) -> tuple[PdClient, int]:
    """The PD leader and the cluster's id, by the word of any member."""
    failures: list[CallFailed] = []
    for pd in pds:
        try:
            view = await pd.members(timeout_s=PROBE_S)
        except CallFailed as failure:
            failures.append(failure)
            continue
        urls = {calls.strip_scheme(url) for url in view.leader.client_urls}
        leader = next((other for other in pds if other.address in urls), None)
        if leader is not None:
            return leader, view.header.cluster_id
    raise failures[0] if failures else CallFailed(calls.NO_LEADER, "no PD leader is known")


async def region_leader(members: dict[str, dict[str, Any]]) -> str:
    pds = [PdClient("any", address) for address in pd_addresses(members)]
    try:
        leader, cluster_id = await _pd_leader(pds)
        region = await leader.region(cluster_id, b"bench", timeout_s=PROBE_S)
        store = await leader.store(cluster_id, region.leader.store_id, timeout_s=PROBE_S)
    finally:
        for pd in pds:
            pd.close()
    return next(name for name, row in members.items() if row["addresses"]["client"] == store.store.address)
