"""Stores with many regions on virtual time: one seed decides everything that happens to them.

Like `store_group`, but regions are split, merged and moved. Checked while it runs: replicas of a region that have
applied the same entry hold the same region and the same pairs; no two regions of a store share a key; a region has one
leader a term; a destroyed peer never comes back; and an acknowledged write is seen by every later read of its range.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import pairwise

import store_group
from msgspec import Struct, field
from msgspec.structs import replace
from store_group import Log, Pairs

from drillyard.emulator.raft.types import ChangeKind, HardState, Ready, Restored
from drillyard.emulator.store.commands import Put, Write, Written
from drillyard.emulator.store.region import Part, Peer, PeerChange, PeerRole, Region, configuration_of
from drillyard.emulator.store.replica import (
    FIRST_STATE,
    Context,
    Envelope,
    Merging,
    Outcome,
    Readable,
    RegionReady,
    Replica,
)
from drillyard.emulator.store.state import Family, MemoryState, Pair, Span
from drillyard.emulator.store.store import (
    ChangePeers,
    Merge,
    RestoredReplica,
    Split,
    Step,
    Store,
    TransferLeader,
    beginning,
    first_region,
)

FIRST = 2
SETTINGS = replace(
    store_group.SETTINGS,
    raft=replace(store_group.SETTINGS.raft, max_committed_bytes=256),
    merge_check_ticks=3,
    leader_missing_ticks=40,
)


class Record(Struct, frozen=True):
    region: Region
    peer_id: int
    applied: int = 0
    log: Log = field(default_factory=Log)
    is_dead: bool = False
    merging: Merging | None = None
    arrived: tuple[Pair, ...] | None = None  # a snapshot that is being installed


class Disk(MemoryState):
    """What is written, and what of it would survive a power cut. Only one family is used."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[int, Record] = {}
        self.durable: tuple[Pairs, dict[int, Record]] = ({}, {})

    @property
    def all(self) -> Pairs:
        return self.pairs[Family.DEFAULT]

    def within(self, region: Region) -> Pairs:
        return dict(self.scan(Span(region.start, region.end), 1 << 30))

    def sync(self) -> None:
        self.durable = (dict(self.all), dict(self.records))

    def lose_unsynced(self) -> None:
        pairs, records = self.durable
        self.delete_range(Span(b"", b""))
        for key, value in pairs.items():
            self.put(key, value)
        self.records = dict(records)


class World:
    def __init__(self, seed: int, stores: int = 3) -> None:
        self.chance = random.Random(seed)
        self.now = 0
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.disks = {store_id: Disk() for store_id in range(1, stores + 1)}
        self.stores: dict[int, Store | None] = {}
        self.lives = dict.fromkeys(self.disks, 0)
        self.loss = 0.0
        self.blocked: set[frozenset[int]] = set()
        self.next_id = 100
        self.history: dict[tuple[int, int], tuple[Region, Pairs]] = {}
        self.leaders: dict[tuple[int, int], int] = {}
        self.dead: set[int] = set()
        self.known: dict[int, Region] = {}  # what PD has heard
        self.acknowledged: Pairs = {}
        self.arriving: tuple[Pair, ...] = ()
        self.reads = self.splits = self.merges = self.rollbacks = self.moves = 0
        region = first_region(FIRST, Peer(3, 1))
        self._begin(self.disks[1], region, 3, FIRST_STATE)
        self.disks[1].sync()
        for store_id in self.disks:
            self.start(store_id)

    @staticmethod
    def _begin(disk: Disk, region: Region, peer_id: int, state: HardState) -> None:
        start = beginning(region, state)
        log = Log(start.hard_state, start.snapshot_index, start.snapshot_term)
        disk.records[region.id] = Record(region, peer_id, start.applied, log)

    # ---- time ----

    def after(self, delay: int, call: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + delay, self.count, call))

    def run(self, duration: int) -> None:
        end = self.now + duration
        while self.events and self.events[0][0] <= end:
            self.now, _, call = heapq.heappop(self.events)
            call()
        self.now = end

    # ---- stores ----

    def start(self, store_id: int) -> None:
        disk = self.disks[store_id]
        self.lives[store_id] += 1
        tombstones = {record.region.id: record.peer_id for record in disk.records.values() if record.is_dead}
        store = Store(store_id, SETTINGS, self.chance.randrange, tombstones)
        self.stores[store_id] = store
        for region_id, record in list(disk.records.items()):
            if record.is_dead:
                continue
            if record.arrived is not None:
                self._finish_install(disk, region_id)
            record = disk.records[region_id]
            log = record.log
            restored = Restored(
                configuration_of(record.region),
                log.hard_state,
                log.snapshot_index,
                log.snapshot_term,
                log.entries,
                record.applied,
            )
            store.restore(RestoredReplica(record.region, record.peer_id, restored, record.merging))
        self._tick(store_id, self.lives[store_id])

    def crash(self, store_id: int) -> None:
        self.stores[store_id] = None
        self.lives[store_id] += 1
        self.disks[store_id].lose_unsynced()

    def _tick(self, store_id: int, life: int) -> None:
        store = self.stores[store_id]
        if store is None or self.lives[store_id] != life:
            return
        store.tick()
        self.turn(store_id)
        self._ask_pd(store)
        self.after(100 + self.chance.randrange(10), lambda: self._tick(store_id, life))

    def _ask_pd(self, store: Store) -> None:
        for region_id, replica in store.replicas.items():
            report = store.report(region_id)
            if report is not None and replica.is_leader:
                self._hear(report.region)
        for region, peer_id in store.leaderless():
            covering = next((known for known in self.known.values() if known.has_key(region.start)), None)
            store.validate(region.id, peer_id, self.known, covering)
        self.turn(store.id)

    def _hear(self, region: Region) -> None:
        """PD keeps the newest, and drops what a newer region overlaps."""
        near = [known for known in self.known.values() if known.overlaps(region) or known.id == region.id]
        if any(known.epoch.version > region.epoch.version for known in near):
            return
        same = self.known.get(region.id)
        if same is not None and same.epoch.conf_ver > region.epoch.conf_ver:
            return
        for known in near:
            del self.known[known.id]
        self.known[region.id] = region

    def turn(self, store_id: int) -> None:
        store, disk = self.stores[store_id], self.disks[store_id]
        while store is not None and store.has_ready:
            for said in store.ready(disk):
                self._write(disk, said.work)
                self._check(store, disk, said.work)
                self._carry_out(store_id, said.work)
                for ticket, outcome in said.answers:
                    assert callable(ticket)
                    ticket(outcome)

    def _write(self, disk: Disk, work: RegionReady) -> None:
        if work.destroyed:
            disk.records[work.region.id] = Record(work.region, work.peer_id, is_dead=True)
            if work.region.is_initialized:
                disk.delete_range(Span(work.region.start, work.region.end))
        else:
            self._write_living(disk, work)
        for made in work.made:
            self._begin(disk, made.region, made.peer_id, made.state)
            self.splits += 1
        for region, peer_id in work.merged:
            disk.records[region.id] = Record(region, peer_id, is_dead=True)
            self.merges += 1

    def _write_living(self, disk: Disk, work: RegionReady) -> None:
        region_id = work.region.id
        record = disk.records.get(region_id)
        if record is None or record.is_dead:
            record = Record(work.region, work.peer_id)
        assert work.peer_id not in self.dead, "a destroyed peer came back"
        log = record.log if work.ready is None else record.log.staged(work.ready)
        if work.compact_to:
            log = log.compacted(work.compact_to)
        if record.merging is not None and work.merging is None and not work.install:
            self.rollbacks += 1
        arrived = self.arriving if work.install else record.arrived
        disk.records[region_id] = Record(
            work.region, work.peer_id, work.applied or record.applied, log, False, work.merging, arrived
        )

    def _carry_out(self, store_id: int, work: RegionReady) -> None:
        life, disk = self.lives[store_id], self.disks[store_id]
        for envelope in work.messages:
            self.send(envelope)
        for envelope in work.snapshots:
            assert envelope.region is not None
            self._send_snapshot(store_id, envelope, tuple(disk.within(envelope.region).items()))
        ready = work.ready

        def synced() -> None:
            store = self.stores[store_id]
            if store is None or self.lives[store_id] != life:
                return
            disk.sync()
            self.dead |= {record.peer_id for record in disk.records.values() if record.is_dead}
            if ready is not None:
                self._finish(store, work, ready)

        # Syncs of one store finish in order: each makes durable all that was written before.
        self.after(20 if work.install else 5, synced)

    def _finish(self, store: Store, work: RegionReady, ready: Ready) -> None:
        disk, region_id = self.disks[store.id], work.region.id
        if work.install:
            self._finish_install(disk, region_id)
            disk.sync()
            store.installed(region_id, work.peer_id, ready.number)
            self._compare(disk, work)
        else:
            store.persisted(region_id, work.peer_id, ready.number)
        for envelope in work.deferred:
            self.send(envelope)
        self.turn(store.id)

    @staticmethod
    def _finish_install(disk: Disk, region_id: int) -> None:
        record = disk.records[region_id]
        assert record.arrived is not None
        disk.delete_range(Span(record.region.start, record.region.end))
        for key, value in record.arrived:
            disk.put(key, value)
        disk.records[region_id] = replace(record, arrived=None)

    def _check(self, store: Store, disk: Disk, work: RegionReady) -> None:
        regions = [r.region for r in store.replicas.values() if r.region.is_initialized and not r.is_destroyed]
        regions.sort(key=lambda region: region.start)
        for one, other in pairwise(regions):
            assert not one.overlaps(other), f"store {store.id}: {one} and {other} share keys"
        for region_id, replica in store.replicas.items():
            if replica.is_leader:
                term = replica.raft.term
                assert self.leaders.setdefault((region_id, term), replica.me.id) == replica.me.id, "two leaders"
        if work.applied and not work.install and not work.destroyed:
            self._compare(disk, work)

    def _compare(self, disk: Disk, work: RegionReady) -> None:
        now = (work.region, disk.within(work.region))
        seen = self.history.setdefault((work.region.id, work.applied), now)
        assert seen == now, f"replicas of region {work.region.id} differ after entry {work.applied}"

    # ---- network ----

    def send(self, envelope: Envelope) -> None:
        pair = frozenset({envelope.sender.store_id, envelope.to.store_id})
        if pair in self.blocked or self.chance.random() < self.loss:
            return
        late = self.chance.randrange(300) if self.chance.random() < self.loss else 0
        self.after(1 + self.chance.randrange(8) + late, lambda: self._arrive(envelope))

    def _arrive(self, envelope: Envelope) -> None:
        store = self.stores[envelope.to.store_id]
        if store is None:
            return
        for answer in store.step(envelope):
            self.send(answer)
        self.turn(envelope.to.store_id)

    def _send_snapshot(self, store_id: int, envelope: Envelope, pairs: tuple[Pair, ...]) -> None:
        life = self.lives[store_id]
        lost = frozenset({store_id, envelope.to.store_id}) in self.blocked or self.chance.random() < self.loss

        def arrive() -> None:
            target = self.stores[envelope.to.store_id]
            if not lost and target is not None:
                self.arriving = pairs
                for answer in target.step(envelope):
                    self.send(answer)
                self.turn(envelope.to.store_id)
            sender = self.stores[store_id]
            if sender is not None and self.lives[store_id] == life:
                sender.report_snapshot(envelope.region_id, envelope.to.id, not lost and target is not None)
                self.turn(store_id)

        self.after(10 + self.chance.randrange(100), arrive)

    # ---- PD and clients ----

    def led(self) -> list[tuple[Store, Replica]]:
        """All that believe to lead."""
        return [
            (store, replica)
            for store in self.stores.values()
            if store is not None
            for replica in store.replicas.values()
            if replica.is_leader and not replica.is_destroyed
        ]

    def ids(self, count: int) -> tuple[int, ...]:
        self.next_id += count
        return tuple(range(self.next_id - count, self.next_id))

    def give_step(self, kinds: str = "smmcct") -> None:
        led = self.led()
        if not led:
            return
        store, replica = self.chance.choice(led)
        region = replica.region
        kind = self.chance.choice(kinds)
        action: Split | Merge | ChangePeers | TransferLeader | None
        if kind == "s":
            action = self._some_split(region)
        elif kind == "m":
            action = self._some_merge(region)
        elif kind == "c":
            action = self._some_change(region)
        else:
            action = TransferLeader(self.chance.choice(region.peers))
        if action is not None:
            step = Step(region.id, region.epoch, replica.me.id, action)
            for _ in range(self.chance.choice((1, 1, 2))):
                refused = store.obey(step)
                self.moves += kind == "c" and not refused
            self.turn(store.id)

    def _some_split(self, region: Region) -> Split | None:
        if len(self.known) > 6:
            return None
        inside = [key for key in (b"k%02d" % n for n in range(1, 100)) if region.has_key(key) and key > region.start]
        if not inside:
            return None
        keys = tuple(sorted(self.chance.sample(inside, min(len(inside), self.chance.choice((1, 1, 2))))))
        return Split(keys, tuple(Part(self.ids(1)[0], self.ids(len(region.peers))) for _ in keys))

    def _some_merge(self, region: Region) -> Merge | None:
        near = [
            known
            for known in self.known.values()
            if known.end == region.start != b"" or known.start == region.end != b""
        ]
        return Merge(self.chance.choice(near)) if near else None

    def _some_change(self, region: Region) -> ChangePeers | None:
        chance = self.chance
        if region.is_joint:
            return ChangePeers(())
        learners = [peer for peer in region.peers if peer.role is PeerRole.LEARNER]
        free = [store_id for store_id in self.disks if region.peer_on(store_id) is None]
        voters = [peer for peer in region.peers if peer.role is PeerRole.VOTER]
        if learners:
            promote = PeerChange(ChangeKind.ADD_VOTER, replace(learners[0], role=PeerRole.VOTER))
            if len(voters) > 2:
                return ChangePeers((promote, PeerChange(ChangeKind.ADD_LEARNER, chance.choice(voters))))
            return ChangePeers((promote,))
        if free and len(voters) < 4:
            peer = Peer(self.ids(1)[0], chance.choice(free), PeerRole.LEARNER)
            return ChangePeers((PeerChange(ChangeKind.ADD_LEARNER, peer),))
        if len(voters) > 3:
            return ChangePeers((PeerChange(ChangeKind.REMOVE, chance.choice(voters)),))
        return None

    def replicate(self) -> None:
        """Gives every region a voter on the first three stores, as PD would."""
        for store, replica in self.led():
            region = replica.region
            action = None
            if region.is_joint:
                action = ChangePeers(())
            for store_id in list(self.disks)[:3]:
                peer = region.peer_on(store_id)
                if action is None and (peer is None or peer.role is PeerRole.LEARNER):
                    wanted = replace(peer, role=PeerRole.VOTER) if peer else Peer(self.ids(1)[0], store_id)
                    kind = ChangeKind.ADD_VOTER if peer else ChangeKind.ADD_LEARNER
                    action = ChangePeers((PeerChange(kind, wanted),))
            others = [peer for peer in region.peers if peer.store_id > 3]
            if action is None and others:
                if others[0].id == replica.me.id:
                    voters = [peer for peer in region.peers if peer.role is PeerRole.VOTER and peer.store_id <= 3]
                    store.obey(Step(region.id, region.epoch, replica.me.id, TransferLeader(voters[0])))
                    continue
                action = ChangePeers((PeerChange(ChangeKind.REMOVE, others[0]),))
            if action is not None:
                store.obey(Step(region.id, region.epoch, replica.me.id, action))
                self.turn(store.id)

    def write(self, number: int) -> None:
        """A key that is written once; a later read must see it."""
        key = b"k%02d/%d" % (self.chance.randrange(100), number)
        believers = [(store, replica) for store, replica in self.led() if replica.region.has_key(key)]
        if not believers:
            return
        store, replica = self.chance.choice(believers)
        value = b"value of " + key

        def ticket(outcome: Outcome) -> None:
            if isinstance(outcome, Written):
                self.acknowledged[key] = value

        store.write(ticket, self._context(store, replica), Write((Put(key, value),)))
        self.turn(store.id)

    def read(self) -> None:
        """A read sees every write in its range that was acknowledged before it began."""
        led = self.led()
        if not led:
            return
        store, replica = self.chance.choice(led)
        before, store_id, region = dict(self.acknowledged), store.id, replica.region

        def ticket(outcome: Outcome) -> None:
            if isinstance(outcome, Readable):
                self.reads += 1
                assert outcome.region.epoch.version == region.epoch.version
                pairs = self.disks[store_id].all
                missing = [key for key in before if outcome.region.has_key(key) and key not in pairs]
                assert not missing, f"acknowledged and not seen: {missing}"

        store.read(ticket, self._context(store, replica))
        self.turn(store_id)

    @staticmethod
    def _context(store: Store, replica: Replica) -> Context:
        return Context(replica.region.id, replica.region.epoch.version, replica.me.id, store.id)
