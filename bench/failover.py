"""How long clients are not served after a member was killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from bench import figures
from bench.deployment import Deployment, pd_addresses, standing
from bench.figures import Results
from bench.plan import BenchFailed
from drillyard.clients import calls
from drillyard.clients.calls import CallFailed
from drillyard.clients.pd import PdClient
from drillyard.clients.tikv import RawClient
from drillyard.faces.api import Yard

PROBE_S = 0.5  # the longest that one attempt may take
PAUSE_S = 0.005
GIVE_UP_S = 60.0
PD_SERVES = "PD cluster leader is ready to serve"


@dataclass(frozen=True, slots=True)
class Outage:
    began: float  # the kill, in seconds since the epoch
    took_s: float


def measure(results: Results) -> None:
    with standing() as deployment:
        results.add(figures.STORE_LOST, asyncio.run(store_lost(deployment)).took_s)
        outage = asyncio.run(pd_lost(deployment))
        results.add(figures.PD_LOST, outage.took_s)
        elected = next(said.at for said in deployment.log() if said.at > outage.began and said.text == PD_SERVES)
        results.add(figures.PD_ELECTED, elected - outage.began)


async def store_lost(deployment: Deployment) -> Outage:
    """SIGKILL of the region leader until a client that knew it writes again."""
    members = deployment.members()
    victim = await region_leader(members)
    client = RawClient(pd_addresses(members), timeout_s=PROBE_S)
    try:
        if not (await client.put(b"bench-store", b"before")).is_ok:
            raise BenchFailed("the cluster does not serve before the fault")

        async def attempt() -> bool:
            return (await client.put(b"bench-store", b"after")).is_ok

        outage = await _served_again(deployment, victim, attempt)
    finally:
        client.close()
    await _heal(deployment, victim)
    return outage


async def pd_lost(deployment: Deployment) -> Outage:
    """SIGKILL of the PD leader until timestamps are granted and a client that knows nothing yet can write."""
    members = deployment.members()
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
        outage = await _served_again(deployment, leader.name, attempt)
    finally:
        for pd in pds:
            pd.close()
    await _heal(deployment, leader.name)
    return outage


async def _served_again(deployment: Deployment, victim: str, attempt: Callable[[], Awaitable[bool]]) -> Outage:
    killed, began = time.time(), time.perf_counter()
    await Yard(deployment.home).cluster().kill(victim)
    while time.perf_counter() - began < GIVE_UP_S:
        try:
            if await attempt():
                return Outage(killed, time.perf_counter() - began)
        except CallFailed:
            pass  # that is what is being measured
        await asyncio.sleep(PAUSE_S)
    raise BenchFailed(f"not served again within {GIVE_UP_S:g} s")


async def _heal(deployment: Deployment, member: str) -> None:
    await asyncio.to_thread(deployment.run, "start", member)
    await asyncio.to_thread(deployment.run, "verify", "--wait")


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
