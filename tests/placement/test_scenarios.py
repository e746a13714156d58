"""What an operator of a cluster sees of placement, from the order to its end, on virtual time."""

from __future__ import annotations

import pytest
from placement_world import World

from drillyard.wire import drillpb, metapb


def settled(seed: int, stores: int, regions: int, size: int = 30, **settings: object) -> World:
    world = World(seed, stores, {key.replace("_", "-"): value for key, value in settings.items()})
    world.bootstrap(regions, size, voters=min(3, stores))
    until_calm(world)
    assert world.complaints(3) == []
    return world


def until_calm(world: World, limit_s: int = 1200) -> None:
    """Until nothing was sent for half a minute."""
    for _ in range(limit_s // 30):
        before = len(world.orders)
        world.run(30)
        if len(world.orders) == before:
            return
    pytest.fail(f"it does not come to rest: {world.orders[-1]}")


def remove(world: World, store_id: int) -> None:
    removal = drillpb.PdStoreRemoval(store_id=store_id, replicas=3)
    world.apply(drillpb.PdCommand(remove_store=removal))


def finished(world: World, desc: str) -> int:
    records = world.mind.placement.controller.records
    return sum(1 for each in records if each.desc == desc and each.status.name == "SUCCESS")


def test_a_whole_cluster_is_left_alone() -> None:
    world = settled(1, 3, 20)
    before = len(world.orders)
    world.run(600)
    assert len(world.orders) == before


def test_a_store_that_is_deleted_is_emptied_and_buried() -> None:
    world = settled(2, 4, 12)
    remove(world, 2)
    until_calm(world)
    assert world.counts()[2] == 0
    assert world.complaints(3) == []
    assert finished(world, "replace-rule-offline-peer") + finished(world, "replace-rule-offline-leader-peer") > 0
    assert world.cluster.stores[2].state == metapb.Tombstone


def test_a_store_that_is_deleted_of_three_keeps_its_peers() -> None:
    world = settled(3, 3, 5)
    world.cluster.stores[2].state = metapb.Offline
    world.run(120)
    assert world.counts() == {1: 5, 2: 5, 3: 5}


def test_a_store_that_died_is_replaced_only_when_it_is_down() -> None:
    world = settled(4, 4, 12, max_store_down_time="5m")
    world.kill(4)
    world.run(240)
    assert world.counts()[4] > 0, "it may come back"
    until_calm(world)
    world.run(120)
    until_calm(world)
    assert world.counts()[4] == 0
    assert world.complaints(3) == []
    assert finished(world, "replace-rule-down-peer") > 0


def test_a_new_store_gets_its_share_as_fast_as_its_limit_lets_it() -> None:
    world = settled(5, 3, 12)
    world.add_store(4)
    world.run(60)
    assert 0 < world.counts()[4] <= 16, "fifteen a minute"
    until_calm(world)
    assert world.counts() == {1: 9, 2: 9, 3: 9, 4: 9}


def test_a_limit_of_nearly_nothing_holds_a_move_back() -> None:
    world = settled(6, 3, 12)
    world.add_store(4)
    limit = drillpb.PdStoreLimit(store_id=4, rate=1, add_peer=True)
    world.apply(drillpb.PdCommand(limit_store=limit))
    world.run(150)
    assert 1 <= world.counts()[4] <= 4


def test_leaders_are_evicted_and_stay_away_until_somebody_lets_them_back() -> None:
    world = settled(7, 3, 30)
    world.set({"scheduler.evict-leader-scheduler": {"store-id-ranges": {"1": []}}})
    until_calm(world)
    assert world.leaders()[1] == 0
    world.set({"scheduler.evict-leader-scheduler": None})
    until_calm(world)
    leaders = world.leaders()
    assert max(leaders.values()) - min(leaders.values()) <= 10


def test_a_scheduler_that_is_removed_moves_nothing() -> None:
    world = World(8, 3, {"scheduler.balance-leader-scheduler": None})
    world.bootstrap(30, 10, voters=3)
    until_calm(world)
    assert world.leaders() == {1: 30, 2: 0, 3: 0}


def test_small_regions_are_merged_after_the_interval_until_none_is_small() -> None:
    world = settled(9, 4, 16, size=2, split_merge_interval="60s")
    world.run(90)
    until_calm(world)
    assert world.complaints(3) == []
    assert len(world.regions) <= 2
    assert finished(world, "merge-region") > 0


def test_empty_regions_of_a_fresh_cluster_stay_for_an_hour() -> None:
    world = settled(10, 3, 5, size=1)
    world.run(1800, 10**9)
    assert len(world.regions) == 5


def test_labels_that_are_set_later_move_the_peers_apart() -> None:
    world = settled(11, 6, 8)
    for store_id in world.stores:
        world.label(store_id, zone=f"z{store_id % 3}")
    world.set({"location-labels": "zone"})
    until_calm(world)
    for region in world.regions.values():
        assert {peer.store_id % 3 for peer in region.meta.peers} == {0, 1, 2}


@pytest.mark.parametrize("replicas", [1, 5])
def test_another_number_of_replicas(replicas: int) -> None:
    world = settled(12, 5, 6)
    world.set({"max-replicas": replicas})
    until_calm(world)
    assert world.complaints(replicas) == []
