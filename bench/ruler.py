"""How far the outage ruler is from an independent client's own history of the same outages: ten kills a run."""

from __future__ import annotations

import asyncio

from bench import figures
from bench.deployment import Deployment, pd_addresses, standing
from bench.failover import region_leader
from bench.figures import Results
from bench.independent import Independent
from bench.plan import BenchFailed

KILLS = 10


def measure(results: Results) -> None:
    with standing() as deployment:
        _compare(deployment, results)


def _compare(deployment: Deployment, results: Results) -> None:
    """Kill the region's leader again and again, measured by both."""
    endpoints = pd_addresses(deployment.members())
    told = []
    with Independent(endpoints) as witness:
        for _ in range(KILLS):
            leader = asyncio.run(region_leader(deployment.members()))
            told.append(deployment.run("kill", leader, "--measure").document["outage"])
            deployment.run("start", leader)
            deployment.run("verify", "--wait")
    for outage in told:
        (region,) = outage["regions"]
        if region["outage_s"] is None or region["lost"] != 0:
            raise BenchFailed(f"a killed leader should be an outage that loses nothing: {region}")
        seen_s = witness.gap_s(outage["asked_at"], outage["done_at"] + outage["watched_s"])
        results.add(figures.OUTAGE, region["outage_s"])
        results.add(figures.DISAGREEMENT, 1000 * abs(region["outage_s"] - seen_s))
