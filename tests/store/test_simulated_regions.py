"""Stores whose regions are split, merged and moved, through storms and calm."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from msgspec.structs import replace
from region_world import World

from drillyard.emulator.raft.types import Entry
from drillyard.emulator.store import merging
from drillyard.emulator.store.replica import Outbox, Replica
from drillyard.wire import drillpb


def storm(world: World, rounds: int) -> None:
    """Loss, partitions and crashes, with clients at work and PD giving steps."""
    chance = world.chance
    for number in range(rounds):
        roll = chance.random()
        world.loss = chance.choice((0.0, 0.02, 0.15))
        if roll < 0.1:
            world.blocked.add(frozenset(chance.sample(sorted(world.disks), 2)))
        elif roll < 0.14:
            alone = chance.choice(sorted(world.disks))
            world.blocked |= {frozenset({alone, other}) for other in world.disks if other != alone}
        elif roll < 0.4:
            world.blocked.clear()
        elif roll < 0.45:
            store_id = chance.choice(sorted(world.disks))
            if world.stores[store_id] is not None:
                world.crash(store_id)
                world.after(200 + chance.randrange(1500), lambda store_id=store_id: world.start(store_id))  # type: ignore[misc]
        for _ in range(2):
            world.give_step()
        for _ in range(3):
            world.write(number)
            world.read()
        world.run(chance.randrange(150))


def calm(world: World) -> None:
    """Everything works again: merges come to their end, the ranges tile the key space, nothing acknowledged is lost."""
    world.loss = 0.0
    world.blocked.clear()
    world.run(3000)
    for store_id, store in world.stores.items():
        if store is None:
            world.start(store_id)
    world.run(12000)
    for _ in range(12):
        world.replicate()
        world.run(500)
    world.run(6000)
    led = sorted((replica.region for _, replica in world.led()), key=lambda region: region.start)
    assert led, "nobody leads although everything works"
    assert led[0].start == led[-1].end == b""
    for left, right in pairwise(led):
        assert left.end == right.start, f"a gap, or an old leader, between {left} and {right}"
    held: dict[bytes, bytes] = {}
    for store, replica in world.led():
        assert replica.merging is None, f"region {replica.region.id} is neither merged nor rolled back"
        pairs = world.disks[store.id].within(replica.region)
        held |= pairs
        for peer in replica.region.peers:
            other = world.stores[peer.store_id]
            assert other is not None
            assert other.replicas[replica.region.id].region == replica.region
            assert world.disks[peer.store_id].within(replica.region) == pairs
    assert {key: held.get(key) for key in world.acknowledged} == world.acknowledged
    members = {peer.id for region in led for peer in region.peers}
    for store in world.stores.values():
        assert store is not None
        for replica in store.replicas.values():
            assert replica.me.id in members or not replica.region.is_initialized, "a peer of nothing lives on"


def go(seed: int) -> World:
    world = World(seed, stores=3 if seed % 3 else 4)
    for _ in range(12):
        world.replicate()
        world.run(300)
    storm(world, 90)
    calm(world)
    return world


@pytest.mark.parametrize("seed", range(24))
def test_regions_survive_storms(seed: int) -> None:
    world = go(seed)
    assert world.acknowledged
    assert world.reads


def plant_and_expect(seeds: range) -> None:
    for seed in seeds:
        try:
            go(seed)
        except Exception:
            return
    raise AssertionError("the planted bug was not caught")


def test_a_source_that_serves_on_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version does not rise, so what was proposed before has an effect, and readers are answered."""
    monkeypatch.setattr(merging, "ended", lambda source: replace(source, epoch=replace(source.epoch, conf_ver=99)))
    monkeypatch.setattr(Replica, "_apply_prepare_merge", _serve_on(Replica._apply_prepare_merge))
    plant_and_expect(range(12))


def _serve_on(real: Callable[..., None]) -> Callable[..., None]:
    def apply(self: Replica, entry: Entry, record: drillpb.Command, box: Outbox) -> None:
        before = self.region
        real(self, entry, record, box)
        self.region = replace(self.region, epoch=replace(self.region.epoch, version=before.epoch.version))

    return apply


def test_a_target_that_does_not_wait_for_its_source_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replica, "_has_source", lambda self, record, here: record.commit_merge.source.id in here)
    plant_and_expect(range(12))


def test_a_merge_that_ignores_the_epoch_of_its_target_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Replica._is_late

    def never(self: Replica, record: drillpb.Command, what: str, box: Outbox) -> bool:
        return False if record.HasField("commit_merge") else real(self, record, what, box)

    monkeypatch.setattr(Replica, "_is_late", never)
    plant_and_expect(range(12))
