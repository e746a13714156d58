"""What one operation costs each process that has part in it: CPU time of the leader's store, of a follower, of PD's
leader and of the client, from which follows what bounds its rate. It bears a busy machine, as wall-clock time does not.

A process's time is counted from the start of the client's program to its end, and shared among all operations within,
those that warm up included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import psutil

from bench.failover import region_leader
from bench.figures import Figure, Results
from bench.load import Client, Load, Seen
from bench.splitting import pd_leader, stores

PARTS = {"leader": "the leader's store", "follower": "a follower", "pd": "PD's leader", "client": "the client"}


def cost(action: str, client: Client, part: str) -> Figure:
    name = f"CPU of a {action}, 64 in flight ({client.value}): {PARTS[part]}"
    return Figure(f"cost-{action}-{client.name.lower()}-{part}", name, "µs")


def spread_cost(action: str, client: Client) -> Figure:
    name = f"CPU of a {action}, 64 in flight, on regions of three leaders ({client.value}): the stores together"
    return Figure(f"cost-{action}-{client.name.lower()}-spread", name, "µs")


@dataclass(frozen=True, slots=True)
class Parts:
    """The processes that serve one region, by what they do for it."""

    leader: psutil.Process
    followers: Sequence[psutil.Process]
    pd: psutil.Process

    @classmethod
    def of(cls, members: dict[str, dict[str, Any]]) -> Parts:
        leader = asyncio.run(region_leader(members))
        followers = [row for row in stores(members) if row["name"] != leader]
        processes = [psutil.Process(row["pid"]) for row in followers]
        return cls(
            psutil.Process(members[leader]["pid"]), processes, psutil.Process(members[pd_leader(members)]["pid"])
        )

    def run(self, load: Load, action: str, results: Results) -> Seen:
        """The load on the one region, whose costs are added to the results."""
        seen, used_s = self._costed(load, action)
        for part in PARTS:
            results.add(cost(action, load.client, part), 1e6 * used_s[part] / seen.all)
        return seen

    def run_spread(self, load: Load, action: str, results: Results) -> Seen:
        """The load on regions that all the stores lead."""
        seen, used_s = self._costed(load, action)
        all_s = used_s["leader"] + len(self.followers) * used_s["follower"]
        results.add(spread_cost(action, load.client), 1e6 * all_s / seen.all)
        return seen

    def _costed(self, load: Load, action: str) -> tuple[Seen, Mapping[str, float]]:
        before = self._used_s()
        seen = load.run(action)
        return seen, {part: after - before[part] for part, after in self._used_s().items()} | {"client": seen.cpu_s}

    def _used_s(self) -> Mapping[str, float]:
        followers = fmean(_used_s(follower) for follower in self.followers)
        return {"leader": _used_s(self.leader), "follower": followers, "pd": _used_s(self.pd)}


def _used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
