"""Stores with many regions each, quick disks, and a network that can be cut: to see a night pass."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from msgspec.structs import replace

from drillyard.emulator.raft.types import MessageKind, Options, Restored
from drillyard.emulator.store.commands import Put, Write
from drillyard.emulator.store.neighbours import Pulse
from drillyard.emulator.store.region import Epoch, Peer, Region, configuration_of
from drillyard.emulator.store.replica import Context, Envelope, Outcome, Readable, Replica, Settings
from drillyard.emulator.store.state import Family, Pair, Span
from drillyard.emulator.store.store import RestoredReplica, Store, beginning

ELECTION = 10
HEARTBEAT = 2
SETTINGS = Settings(
    raft=Options(election_ticks=ELECTION, heartbeat_ticks=HEARTBEAT), tick_ms=100, max_peer_down_s=5, hibernate=True
)


class Pairs:
    """Users' pairs; a night has only writes of single keys."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    def get(self, key: bytes, family: Family = Family.DEFAULT) -> bytes | None:
        return self.held.get(key)

    def put(self, key: bytes, value: bytes, family: Family = Family.DEFAULT) -> None:
        self.held[key] = value

    def delete(self, key: bytes, family: Family = Family.DEFAULT) -> None:
        self.held.pop(key, None)

    def delete_range(self, span: Span) -> None:
        raise AssertionError("nobody deletes ranges here")

    def scan(self, span: Span, limit: int, reverse: bool = False) -> list[Pair]:
        raise AssertionError("nobody scans here")


@dataclass
class Night:
    """`regions` regions, each with a peer on each of the stores. One tick of all stores is one step of time."""

    regions: int = 1
    stores: int = 3
    seed: int = 0
    settings: Settings = SETTINGS
    cut: set[tuple[int, int]] = field(default_factory=set)  # one direction each
    down: set[int] = field(default_factory=set)  # stopped, with all they know
    messages_a_tick: int = 1 << 30  # that the machine can carry; the others wait
    sent: int = 0  # messages between peers
    pulses: int = 0
    elections: int = 0  # votes that were asked for, not only sounded out

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.queue: deque[Envelope | Pulse] = deque()
        self.room = self.messages_a_tick
        self.pairs = {store_id: Pairs() for store_id in range(1, self.stores + 1)}
        self.there: dict[int, Store] = {}
        for store_id in self.pairs:
            store = self.there[store_id] = Store(store_id, self.settings, self.chance.randrange)
            for number in range(self.regions):
                region = self.region(100 + number)
                store.restore(RestoredReplica(region, 10 * region.id + store_id, beginning(region)))

    def region(self, region_id: int) -> Region:
        peers = tuple(Peer(10 * region_id + store_id, store_id) for store_id in range(1, self.stores + 1))
        return Region(region_id, b"%d" % region_id, b"%d~" % region_id, Epoch(1, 1), peers)

    # ---- time ----

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.room = self.messages_a_tick
            for store_id, store in self.there.items():
                if store_id not in self.down:
                    store.tick()
                    self.settle()
                assert store._sleep.awake == {
                    each.region.id for each in store.replicas.values() if not each.rest.is_asleep
                }

    def settle(self) -> None:
        """Carries everything out that can go on without time passing."""
        while True:
            for store_id, store in self.there.items():
                if store_id not in self.down:
                    self._turn(store)
            if not self.queue or not self.room:
                return
            while self.queue and self.room:
                self.room -= 1
                self._deliver(self.queue.popleft())

    def _turn(self, store: Store) -> None:
        for pulse in store.take_pulses():
            self.pulses += 1
            self.queue.append(pulse)
        while store.has_ready:
            for said in store.ready(self.pairs[store.id]):
                work = said.work
                if work.ready is not None:
                    store.persisted(work.region.id, work.peer_id, work.ready.number)
                for envelope in (*work.messages, *work.deferred):
                    self.sent += 1
                    self.queue.append(envelope)
                    self.elections += envelope.message is not None and envelope.message.kind is MessageKind.VOTE
                for ticket, outcome in said.answers:
                    assert callable(ticket)
                    ticket(outcome)

    def _deliver(self, said: Envelope | Pulse) -> None:
        sender, to = (said.sender, said.to) if isinstance(said, Pulse) else (said.sender.store_id, said.to.store_id)
        if (sender, to) in self.cut or to in self.down:
            return
        if isinstance(said, Pulse):
            self.there[to].hear(said)
        else:
            self.queue.extend(self.there[to].step(said))

    # ---- mishaps ----

    def part(self, *stores: int) -> None:
        """Cuts the stores off from all others."""
        ends = set(stores)
        self.cut |= {(a, b) for a in self.there for b in self.there if (a in ends) != (b in ends)}

    def kill(self, store_id: int) -> None:
        """Its connections break, and the others notice."""
        self.down.add(store_id)
        for other, store in self.there.items():
            if other not in self.down:
                store.report_unreachable(store_id)
        self.settle()

    def restart(self, store_id: int) -> None:
        """With the disk as it was: everything that was written is durable here."""
        before = self.there[store_id]
        store = self.there[store_id] = Store(store_id, self.settings, self.chance.randrange)
        for replica in before.replicas.values():
            raft = replica.raft
            entries = tuple(raft._log.slice(raft.first_index, raft.last_index, 1 << 30))
            term = raft.term_at(raft.first_index - 1)
            assert term is not None
            state = replace(beginning(replica.region).hard_state, term=raft.term, vote=raft._vote, commit=raft.commit)
            restored = Restored(
                configuration_of(replica.region), state, raft.first_index - 1, term, entries, raft.applied
            )
            store.restore(RestoredReplica(replica.region, replica.me.id, restored))
        self.down.discard(store_id)
        self.settle()

    # ---- what is seen ----

    def replicas(self, region_id: int = 100) -> dict[int, Replica]:
        return {store_id: store.replicas[region_id] for store_id, store in self.there.items()}

    def asleep(self, region_id: int = 100) -> set[int]:
        """The stores whose replica sleeps, of those that run."""
        running = set(self.there) - self.down
        return {store_id for store_id, replica in self.replicas(region_id).items() if replica.rest.is_asleep} & running

    def all_asleep(self) -> bool:
        return all(self.asleep(region_id) == set(self.there) - self.down for region_id in self.ids)

    @property
    def ids(self) -> range:
        return range(100, 100 + self.regions)

    def leader(self, region_id: int = 100) -> Store | None:
        """The latest, among the stores that run."""
        leading = [
            store
            for store_id, store in self.there.items()
            if store_id not in self.down and store.replicas[region_id].is_leader
        ]
        return max(leading, key=lambda store: store.replicas[region_id].raft.term, default=None)

    def terms(self) -> dict[int, int]:
        return {region_id: max(r.raft.term for r in self.replicas(region_id).values()) for region_id in self.ids}

    def until(self, holds: object, ticks: int = 100) -> int:
        """Ticks until it is so."""
        assert callable(holds)
        for passed in range(ticks):
            if holds():
                return passed
            self.tick()
        raise AssertionError(f"not within {ticks} ticks")

    def fall_asleep(self) -> None:
        self.until(self.all_asleep)

    # ---- clients ----

    def context(self, store: Store, region_id: int = 100) -> Context:
        replica = store.replicas[region_id]
        return Context(region_id, replica.region.epoch.version, replica.me.id, store.id)

    def write(self, region_id: int = 100, value: bytes = b"value") -> list[Outcome]:
        """The answers come into the list; it stays empty while there is none."""
        answers: list[Outcome] = []
        store = self.leader(region_id)
        if store is not None:
            put = Write((Put(b"%d" % region_id, value),))
            error = store.write(answers.append, self.context(store, region_id), put)
            assert error is None
            self.settle()
        return answers

    def is_served(self, region_id: int = 100) -> bool:
        store = self.leader(region_id)
        if store is None:
            return False
        answers: list[Outcome] = []
        store.read(answers.append, self.context(store, region_id))
        self.settle()
        return any(isinstance(answer, Readable) for answer in answers)
