"""The inventory on six nodes: in use, and while one of them is killed or hangs."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable

import pytest
from inventory import Inventory

import drillyard

Cluster = drillyard.SyncCluster


def test_stock_is_what_came_in_less_what_went_out(tikv_cluster: Cluster) -> None:
    async def scenario() -> None:
        inventory = Inventory(tikv_cluster.pd_endpoints)
        assert await inventory.stock("bolts") == 0
        await inventory.move("bolts", 30)
        await inventory.move("bolts", -12)
        await inventory.move("bolts-m8", 5)
        assert await inventory.stock("bolts") == 18

    asyncio.run(scenario())


def test_more_movements_than_one_page_holds(tikv_cluster: Cluster) -> None:
    async def scenario() -> None:
        inventory = Inventory(tikv_cluster.pd_endpoints)
        await inventory.move("nuts", 0)
        await asyncio.gather(*(inventory.move("nuts", 1) for _ in range(1200)))
        assert await inventory.stock("nuts") == 1200

    asyncio.run(scenario())


def test_a_name_that_would_mix_two_items_is_refused() -> None:
    with pytest.raises(ValueError, match="'a/b' is no name of an item"):
        asyncio.run(Inventory([]).move("a/b", 1))


def leading_store(cluster: Cluster) -> str:
    """The TiKV that leads the first region, by the word of PD."""
    stores, regions = (ask_pd(cluster, path) for path in ("stores", "regions"))
    leader = regions["regions"][0]["leader"]["store_id"]
    address = next(one["store"]["address"] for one in stores["stores"] if one["store"]["id"] == leader)
    return next(row.name for row in cluster.status().members if row.addresses["client"] == address)


def ask_pd(cluster: Cluster, path: str) -> dict:
    with urllib.request.urlopen(f"http://{cluster.pd_endpoints[0]}/pd/api/v1/{path}", timeout=10) as answer:
        return json.load(answer)


def leading_pd(cluster: Cluster) -> str:
    return cluster.verify().pd_leader


FAULTS = {
    "the leading store is killed": (leading_store, Cluster.kill),
    "the leading store hangs": (leading_store, Cluster.pause),
    "the leading PD is killed": (leading_pd, Cluster.kill),
}


@pytest.mark.parametrize(("choose", "strike"), FAULTS.values(), ids=FAULTS)
def test_nothing_is_lost_or_counted_twice_while(
    tikv_cluster: Cluster, choose: Callable[[Cluster], str], strike: Callable[[Cluster, str], object]
) -> None:
    async def scenario() -> None:
        inventory = Inventory(tikv_cluster.pd_endpoints)
        await inventory.move("bolts", 100)
        victim = await asyncio.to_thread(choose, tikv_cluster)
        work = asyncio.gather(*(take_one_by_one(inventory, 10) for _ in range(4)))
        await asyncio.to_thread(strike, tikv_cluster, victim)  # in a thread, so that the work goes on meanwhile
        await work
        await take_one_by_one(Inventory(tikv_cluster.pd_endpoints), 10)  # one that connects now
        assert await inventory.stock("bolts") == 50

    asyncio.run(scenario())


async def take_one_by_one(inventory: Inventory, count: int) -> None:
    for _ in range(count):
        await inventory.move("bolts", -1)
