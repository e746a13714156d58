"""Groups of stores through storms and calm, under PD's steps."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from store_group import REGION, SETTINGS, World

from drillyard.emulator.raft import Raft
from drillyard.emulator.raft.types import Role
from drillyard.emulator.store.read_queue import ReadQueue
from drillyard.emulator.store.region import Region
from drillyard.emulator.store.replica import Replica
from drillyard.emulator.store.store import Store


def storm(world: World, rounds: int) -> None:
    """Loss, partitions and crashes, with clients at work and PD giving steps."""
    chance = world.chance
    for number in range(rounds):
        roll = chance.random()
        world.loss = chance.choice((0.0, 0.02, 0.2))
        if roll < 0.1:
            one, two = chance.sample(sorted(world.disks), 2)
            world.blocked.add(frozenset({one, two}))
        elif roll < 0.16:
            leader = world.leader()
            if leader is not None:
                world.blocked |= {frozenset({leader.id, other}) for other in world.disks}
        elif roll < 0.3:
            world.blocked.clear()
        elif roll < 0.37:
            store_id = chance.choice(sorted(world.disks))
            if world.stores[store_id] is not None:
                world.crash(store_id)
                world.start_later(store_id, 200 + chance.randrange(2000))
        if chance.random() < 0.5:
            world.give_step()
        world.write(b"key %d" % number)
        world.count_up()
        world.read_all()
        world.run(chance.randrange(150))


def region_of(world: World) -> Region:
    leader = world.leader()
    assert leader is not None
    return leader.replicas[REGION].region


def replica_on(world: World, store_id: int) -> Replica:
    store = world.stores[store_id]
    assert store is not None
    return store.replicas[REGION]


def sleep(world: World) -> None:
    """Storms with long pauses between, in which the region falls asleep: what strikes, strikes sleepers."""
    asleep = 0
    for _ in range(12):
        storm(world, 6)
        world.loss = 0.0
        if world.chance.random() < 0.7:
            world.blocked.clear()
        world.run(2500 + world.chance.randrange(3000))
        replicas = [store.replicas[REGION] for store in world.stores.values() if store and REGION in store.replicas]
        asleep += sum(replica.rest.is_asleep for replica in replicas)
        if world.chance.random() < 0.5:
            leader = world.leader()
            if leader is not None:
                world.crash(leader.id)
                world.start_later(leader.id, world.chance.choice((100, 1000, 4000)))
    assert asleep, "nobody ever slept"


def calm(world: World) -> None:
    """Everything works again: the group finds together, and all that was acknowledged is there."""
    world.loss = 0.0
    world.blocked.clear()
    world.run(5000)
    for store_id, store in world.stores.items():
        if store is None:
            world.start(store_id)
    world.run(8000)
    leader = world.leader()
    assert leader is not None, "nobody leads although everything works"
    reads = world.reads
    world.write(b"last")
    world.run(1000)
    world.read_all()
    world.run(1000)
    assert world.reads > reads, "a read is not answered although everything works"
    assert b"last" in world.acknowledged
    region = leader.replicas[REGION].region
    pairs = world.disks[leader.id].pairs
    for key, value in world.acknowledged.items():
        assert pairs[key] == value
    counter = int(pairs.get(b"counter", b"0"))
    assert world.counted <= counter <= world.counted + world.uncertain
    for peer in region.peers:
        store = world.stores[peer.store_id]
        assert store is not None
        assert store.replicas[REGION].region == region
        assert world.disks[peer.store_id].pairs == pairs
    members = {peer.id for peer in region.peers}
    for store in world.stores.values():
        assert store is not None
        strangers = [replica for replica in store.replicas.values() if replica.me.id not in members]
        assert all(not replica.region.is_initialized for replica in strangers), "a removed peer lives on"


@pytest.mark.parametrize("seed", range(24))
def test_acknowledged_writes_survive_storms(seed: int) -> None:
    world = World(seed)
    world.run(3000)
    storm(world, 120)
    calm(world)
    assert world.steps > 0
    assert world.acknowledged


@pytest.mark.parametrize("seed", range(1000, 1016))
def test_what_strikes_sleepers_harms_nobody(seed: int) -> None:
    world = World(seed, settings=replace(SETTINGS, hibernate=True))
    world.run(3000)
    sleep(world)
    calm(world)
    assert world.acknowledged
    world.run(6000)
    members = {peer.store_id for peer in region_of(world).peers}
    awake = [store for store in members if not replica_on(world, store).rest.is_asleep]
    assert not awake or region_of(world).is_joint, "nothing happens, and somebody is awake"


def plant_and_expect(seeds: range) -> None:
    caught = 0
    for seed in seeds:
        world = World(seed)
        try:
            world.run(3000)
            storm(world, 120)
            calm(world)
        except Exception:
            caught += 1
            break
    assert caught, "the planted bug was not caught"


def test_a_store_that_forgets_who_died_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    bury = Store._bury

    def forget(self: Store, replica: Replica, work: object) -> object:
        said = bury(self, replica, work)  # type: ignore[arg-type]
        self.tombstones.clear()
        return said

    monkeypatch.setattr(Store, "_bury", forget)
    plant_and_expect(range(20))


def test_reads_without_asking_the_others_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(self: ReadQueue, raft: Raft, refusal: object) -> list[object]:
        if self._unasked and raft.role is Role.LEADER:
            reads, self._unasked = self._unasked, []
            self._confirmed.append((raft.applied, reads))
        return []

    monkeypatch.setattr(ReadQueue, "ask", at_once)
    plant_and_expect(range(40))


def test_answering_before_the_entry_is_applied_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Replica.write

    def hasty(self: Replica, ticket: object, context: object, command: object) -> object:
        from drillyard.emulator.store.commands import Written

        error = write(self, ticket, context, command)  # type: ignore[arg-type]
        if error is None and self._pending and self._pending[-1].ticket is ticket:
            assert callable(ticket)
            ticket(Written())
        return error

    monkeypatch.setattr(Replica, "write", hasty)
    plant_and_expect(range(20))
