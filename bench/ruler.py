"""How far the outage ruler is from an independent client's own history of the same outages: ten kills a run."""

from __future__ import annotations

import asyncio

from bench import figures, service
from bench.deployment import Bench, BenchFailed
from bench.figures import Results
from bench.independent import Independent

KILLS = 10


def measure(bench: Bench, results: Results) -> None:
    """Kill the region's leader again and again, measured by both."""
    endpoints = service.pd_addresses(bench.members())
    told = []
    with Independent(endpoints) as witness:
        for _ in range(KILLS):
            leader = asyncio.run(service.region_leader(bench.members()))
            told.append(bench.run("kill", leader, "--measure").document["outage"])
            bench.run("start", leader)
            bench.run("verify", "--wait")
    for outage in told:
        (region,) = outage["regions"]
        if region["outage_s"] is None or region["lost"] != 0:
            raise BenchFailed(f"a killed leader should be an outage that loses nothing: {region}")
        seen_s = witness.gap_s(outage["asked_at"], outage["done_at"] + outage["watched_s"])
        results.add(figures.OUTAGE, region["outage_s"])
        results.add(figures.DISAGREEMENT, 1000 * abs(region["outage_s"] - seen_s))
