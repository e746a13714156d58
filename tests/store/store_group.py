"""Whole groups of pure stores on virtual time: one seed decides everything that happens to them.

A world has some stores, a lossy network, disks that lose what was not synced when their store crashes, a stand-in for
PD that gives steps without much sense, and clients that write and read. It checks while it runs: replicas that have
applied the same entry hold the same pairs and the same region; an acknowledged write is seen by every later read; a
destroyed peer never comes back.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from msgspec import Struct, field
from msgspec.structs import replace

from drillyard.emulator.raft.types import ChangeKind, Entry, HardState, Options, Ready, Restored
from drillyard.emulator.store.commands import CompareAndSwap, Put, Swapped, Write, Written
from drillyard.emulator.store.neighbours import Pulse
from drillyard.emulator.store.region import Peer, PeerChange, PeerRole, Region, configuration_of
from drillyard.emulator.store.replica import Context, Envelope, Outcome, Readable, RegionReady, Settings
from drillyard.emulator.store.state import Family, Pair, Span
from drillyard.emulator.store.store import (
    ChangePeers,
    RestoredReplica,
    Step,
    Store,
    TransferLeader,
    beginning,
    first_region,
)

REGION = 2
SETTINGS = Settings(
    raft=Options(election_ticks=10, heartbeat_ticks=2, max_append_bytes=2048, max_committed_bytes=512),
    tick_ms=100,
    log_gc_ticks=5,
    log_gc_threshold=10,
    log_gc_count_limit=40,
)
Pairs = dict[bytes, bytes]


class Log(Struct, frozen=True):
    hard_state: HardState = field(default_factory=HardState)
    snapshot_index: int = 0
    snapshot_term: int = 0
    entries: tuple[Entry, ...] = ()

    def staged(self, ready: Ready) -> Log:
        log = self
        if ready.hard_state is not None:
            log = replace(log, hard_state=ready.hard_state)
        if ready.snapshot is not None:
            log = replace(log, snapshot_index=ready.snapshot.index, snapshot_term=ready.snapshot.term, entries=())
        if ready.entries:
            kept = tuple(entry for entry in log.entries if entry.index < ready.entries[0].index)
            log = replace(log, entries=kept + ready.entries)
        return log

    def compacted(self, upto: int) -> Log:
        if upto <= self.snapshot_index:
            return self
        last = next(entry for entry in self.entries if entry.index == upto)
        kept = tuple(entry for entry in self.entries if entry.index > upto)
        return replace(self, snapshot_index=upto, snapshot_term=last.term, entries=kept)


class Record(Struct, frozen=True):
    region: Region
    peer_id: int
    applied: int = 0
    log: Log = field(default_factory=Log)
    is_dead: bool = False
    arrived: tuple[tuple[bytes, bytes], ...] | None = None  # a snapshot that is being installed


class Disk(Struct):
    """What is written, and what of it would survive a power cut."""

    pairs: Pairs = field(default_factory=dict)
    record: Record | None = None
    durable_pairs: Pairs = field(default_factory=dict)
    durable_record: Record | None = None

    def sync(self) -> None:
        self.durable_pairs, self.durable_record = dict(self.pairs), self.record

    def lose_unsynced(self) -> None:
        self.pairs, self.record = dict(self.durable_pairs), self.durable_record

    # What the pure store writes through: nobody here names a family.

    def get(self, key: bytes, family: Family = Family.DEFAULT) -> bytes | None:
        return self.pairs.get(key)

    def scan(self, span: Span, limit: int, reverse: bool = False) -> list[Pair]:
        found = sorted((pair for pair in self.pairs.items() if span.has(pair[0])), reverse=reverse)
        return found[:limit]

    def put(self, key: bytes, value: bytes, family: Family = Family.DEFAULT) -> None:
        self.pairs[key] = value

    def delete(self, key: bytes, family: Family = Family.DEFAULT) -> None:
        self.pairs.pop(key, None)

    def delete_range(self, span: Span) -> None:
        for key in [key for key in self.pairs if span.has(key)]:
            del self.pairs[key]


class World:
    def __init__(self, seed: int, stores: int = 4, settings: Settings = SETTINGS) -> None:
        self.settings = settings
        self.chance = random.Random(seed)
        self.now = 0
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.disks = {store_id: Disk() for store_id in range(1, stores + 1)}
        self.stores: dict[int, Store | None] = {}
        self.lives = dict.fromkeys(self.disks, 0)
        self.loss = 0.0
        self.blocked: set[frozenset[int]] = set()
        self.next_peer = 100
        self.history: dict[int, tuple[Region, Pairs]] = {}  # what held after each applied entry
        self.dead: set[int] = set()
        self.acknowledged: Pairs = {}
        self.counted = self.uncertain = 0
        self.reads = self.steps = 0
        self._found_first()
        for store_id in self.disks:
            self.start(store_id)

    def _found_first(self) -> None:
        region = first_region(REGION, Peer(3, 1))
        start = beginning(region)
        log = Log(HardState(start.snapshot_term, 0, start.applied), start.snapshot_index, start.snapshot_term)
        self.disks[1].record = Record(region, 3, start.applied, log)
        self.disks[1].sync()

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

    def start_later(self, store_id: int, delay: int) -> None:
        self.after(delay, lambda: self.start(store_id))

    def start(self, store_id: int) -> None:
        disk = self.disks[store_id]
        self.lives[store_id] += 1
        record = disk.record
        tombstones = {REGION: record.peer_id} if record is not None and record.is_dead else {}
        store = Store(store_id, self.settings, self.chance.randrange, tombstones)
        self.stores[store_id] = store
        if record is not None and not record.is_dead:
            if record.arrived is not None:
                self._finish_install(disk)
                record = disk.record
                assert record is not None
            log = record.log
            restored = Restored(
                configuration_of(record.region),
                log.hard_state,
                log.snapshot_index,
                log.snapshot_term,
                log.entries,
                record.applied,
            )
            store.restore(RestoredReplica(record.region, record.peer_id, restored))
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
        self.after(100 + self.chance.randrange(10), lambda: self._tick(store_id, life))

    def turn(self, store_id: int) -> None:
        store, disk = self.stores[store_id], self.disks[store_id]
        for pulse in store.take_pulses() if store is not None else ():
            self._send_pulse(pulse)
        while store is not None and store.has_ready:
            for said in store.ready(disk):
                self._write(disk, said.work)
                self._check_applied(disk, said.work)
                self._carry_out(store_id, said.work)
                for ticket, outcome in said.answers:
                    assert callable(ticket)
                    ticket(outcome)

    def _write(self, disk: Disk, work: RegionReady) -> None:
        record = disk.record
        if work.destroyed:
            disk.record = Record(work.region, work.peer_id, is_dead=True)
            disk.pairs.clear()
            return
        if record is None or record.is_dead:
            record = Record(work.region, work.peer_id)
        assert work.peer_id not in self.dead, "a destroyed peer came back"
        log = record.log if work.ready is None else record.log.staged(work.ready)
        if work.compact_to:
            log = log.compacted(work.compact_to)
        disk.record = replace(record, region=work.region, log=log, applied=work.applied or record.applied)

    def _carry_out(self, store_id: int, work: RegionReady) -> None:
        life, disk = self.lives[store_id], self.disks[store_id]
        for envelope in work.messages:
            self.send(envelope)
        for envelope in work.snapshots:
            self._send_snapshot(store_id, envelope, dict(disk.pairs))
        ready = work.ready
        if work.install:
            assert disk.record is not None
            disk.record = replace(disk.record, arrived=self._arriving)

        def synced() -> None:
            store = self.stores[store_id]
            if store is None or self.lives[store_id] != life:
                return
            disk.sync()
            if disk.record is not None and disk.record.is_dead:
                self.dead.add(disk.record.peer_id)
            if ready is None:
                return
            if work.install:
                self._finish_install(disk)
                disk.sync()
                store.installed(REGION, work.peer_id, ready.number)
                self._check_applied(disk, work)
            else:
                store.persisted(REGION, work.peer_id, ready.number)
            for envelope in work.deferred:
                self.send(envelope)
            self.turn(store_id)

        # Syncs of one store finish in order: each makes durable all that was written before.
        self.after(20 if work.install else 5, synced)

    def _finish_install(self, disk: Disk) -> None:
        record = disk.record
        assert record is not None
        assert record.arrived is not None
        disk.pairs = dict(record.arrived)
        disk.record = replace(record, arrived=None)

    def _check_applied(self, disk: Disk, work: RegionReady) -> None:
        """All replicas agree on the pairs and the region after each entry."""
        record = disk.record
        if work.destroyed or not work.applied or record is None or record.arrived is not None or work.install:
            return
        seen = self.history.setdefault(work.applied, (work.region, dict(disk.pairs)))
        assert seen == (work.region, disk.pairs), f"replicas differ after entry {work.applied}"

    # ---- network ----

    def send(self, envelope: Envelope) -> None:
        pair = frozenset({envelope.sender.store_id, envelope.to.store_id})
        if pair in self.blocked or self.chance.random() < self.loss:
            return
        for _ in range(2 if self.chance.random() < self.loss / 2 else 1):
            delay = (
                1 + self.chance.randrange(8) + (self.chance.randrange(300) if self.chance.random() < self.loss else 0)
            )
            self.after(delay, lambda: self._arrive(envelope))

    def _send_pulse(self, pulse: Pulse) -> None:
        def arrive() -> None:
            store = self.stores[pulse.to]
            if store is not None:
                store.hear(pulse)
                self.turn(pulse.to)

        if frozenset({pulse.sender, pulse.to}) not in self.blocked and self.chance.random() >= self.loss:
            self.after(1 + self.chance.randrange(8), arrive)

    def _arrive(self, envelope: Envelope) -> None:
        store = self.stores[envelope.to.store_id]
        if store is None:
            return
        for answer in store.step(envelope):
            self.send(answer)
        self.turn(envelope.to.store_id)

    def _send_snapshot(self, store_id: int, envelope: Envelope, pairs: Pairs) -> None:
        life = self.lives[store_id]
        lost = frozenset({store_id, envelope.to.store_id}) in self.blocked or self.chance.random() < self.loss

        def arrive() -> None:
            target = self.stores[envelope.to.store_id]
            ok = not lost and target is not None
            if ok and target is not None:
                self._arriving = tuple(sorted(pairs.items()))
                for answer in target.step(envelope):
                    self.send(answer)
                self.turn(envelope.to.store_id)
            sender = self.stores[store_id]
            if sender is not None and self.lives[store_id] == life:
                sender.report_snapshot(REGION, envelope.to.id, ok)
                self.turn(store_id)

        self.after(10 + self.chance.randrange(100), arrive)

    _arriving: tuple[tuple[bytes, bytes], ...] = ()

    # ---- PD and clients ----

    def leader(self) -> Store | None:
        leading = [
            store
            for store in self.stores.values()
            if store is not None and REGION in store.replicas and store.replicas[REGION].is_leader
        ]
        return max(leading, key=lambda store: store.replicas[REGION].raft.term, default=None)

    def give_step(self) -> None:
        """Some step that PD could give, under the region's epoch as its leader knows it; sometimes given twice."""
        store = self.leader()
        if store is None:
            return
        replica = store.replicas[REGION]
        action = self._some_action(replica.region)
        step = Step(REGION, replica.region.epoch, replica.me.id, action)
        for _ in range(self.chance.choice((1, 1, 2))):
            if not store.obey(step):
                self.steps += 1
        self.turn(store.id)

    def _some_action(self, region: Region) -> ChangePeers | TransferLeader:
        chance = self.chance
        if region.is_joint:
            return ChangePeers(()) if chance.random() < 0.8 else TransferLeader(chance.choice(region.peers))
        learners = [peer for peer in region.peers if peer.role is PeerRole.LEARNER]
        free = [store_id for store_id in self.disks if region.peer_on(store_id) is None]
        roll = chance.random()
        if learners and roll < 0.5:
            learner = chance.choice(learners)
            promote = PeerChange(ChangeKind.ADD_VOTER, replace(learner, role=PeerRole.VOTER))
            voters = [peer for peer in region.peers if peer.role is PeerRole.VOTER]
            if len(voters) > 2 and chance.random() < 0.5:
                return ChangePeers((promote, PeerChange(ChangeKind.ADD_LEARNER, chance.choice(voters))))
            return ChangePeers((promote,))
        if free and len(region.peers) < 4 and roll < 0.8:
            self.next_peer += 1
            peer = Peer(self.next_peer, chance.choice(free), PeerRole.LEARNER)
            return ChangePeers((PeerChange(ChangeKind.ADD_LEARNER, peer),))
        if len(region.peers) > 2 and roll < 0.9:
            return ChangePeers((PeerChange(ChangeKind.REMOVE, chance.choice(region.peers)),))
        return TransferLeader(chance.choice(region.peers))

    def context(self, store: Store) -> Context:
        replica = store.replicas[REGION]
        return Context(REGION, replica.region.epoch.version, replica.me.id, store.id)

    def write(self, key: bytes) -> None:
        """A key that is written once; a later read must see it."""
        store = self._some_leader()
        if store is None:
            return

        def ticket(outcome: Outcome) -> None:
            if isinstance(outcome, Written):
                self.acknowledged[key] = b"value of " + key

        store.write(ticket, self.context(store), Write((Put(key, b"value of " + key),)))
        self.turn(store.id)

    def count_up(self) -> None:
        store = self._some_leader()
        if store is None:
            return
        context, store_id = self.context(store), store.id
        life = self.lives[store_id]

        def swapped(outcome: Outcome) -> None:
            if isinstance(outcome, Swapped):
                self.counted += outcome.succeeded
                self.uncertain -= 1

        def read(outcome: Outcome) -> None:
            if isinstance(outcome, Readable):
                seen = self.disks[store_id].get(b"counter")
                value = str(int(seen or b"0") + 1).encode()
                self.after(0, lambda: swap(seen, value))

        def swap(seen: bytes | None, value: bytes) -> None:
            again = self.stores[store_id]
            if again is not None and self.lives[store_id] == life:
                if again.write(swapped, context, CompareAndSwap(b"counter", seen, value)) is None:
                    self.uncertain += 1  # until it is answered
                self.turn(store_id)

        store.read(read, context)
        self.turn(store_id)

    def read_all(self) -> None:
        """A read sees every write that was acknowledged before it began."""
        store = self._some_leader()
        if store is None:
            return
        before, store_id = dict(self.acknowledged), store.id

        def ticket(outcome: Outcome) -> None:
            if isinstance(outcome, Readable):
                self.reads += 1
                pairs = self.disks[store_id].pairs
                missing = [key for key, value in before.items() if pairs.get(key) != value]
                assert not missing, f"acknowledged and not seen: {missing}"

        store.read(ticket, self.context(store))
        self.turn(store_id)

    def _some_leader(self) -> Store | None:
        """Clients may believe in an old leader."""
        leading = [
            store
            for store in self.stores.values()
            if store is not None and REGION in store.replicas and store.replicas[REGION].is_leader
        ]
        return self.chance.choice(leading) if leading else None
