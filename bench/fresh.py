"""A cluster for a test: how long until a test has a fresh one, and until one that it used is empty again."""

from __future__ import annotations

import asyncio
import time

import drillyard
from bench import figures
from bench.deployment import Deployment, pd_addresses, standing
from bench.figures import Results
from bench.plan import BenchFailed
from drillyard.clients.tikv import RawClient
from drillyard.faces.api import Yard
from drillyard.flows.report import Ending

KEYS = 1000  # to be deleted by a reset


def measure(results: Results) -> None:
    began = time.perf_counter()
    with drillyard.cluster_sync():
        made = time.perf_counter()
    results.add(figures.FRESH, made - began)
    results.add(figures.FRESH_GONE, time.perf_counter() - made)
    with standing() as deployment:
        results.add(figures.RESET, asyncio.run(_reset(deployment)))


async def _reset(deployment: Deployment) -> float:
    """A cluster that is untouched but for its data, until it is proven to be as new."""
    client = RawClient(pd_addresses(deployment.members()), timeout_s=10.0)
    try:
        outcomes = await asyncio.gather(*(client.put(b"bench-%d" % number, b"x" * 100) for number in range(KEYS)))
    finally:
        client.close()
    if not all(outcome.is_ok for outcome in outcomes):
        raise BenchFailed("the keys to delete could not be written")
    began = time.perf_counter()
    done = await Yard(deployment.home).cluster().reset()
    took_s = time.perf_counter() - began
    if done.ending is not Ending.OK or not done.is_data_deleted:
        raise BenchFailed(f"the cluster could not be reset: {done.report.trouble}")
    return took_s
