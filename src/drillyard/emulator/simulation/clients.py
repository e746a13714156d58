"""Simulated clients: RawKV through a cache of regions, with region errors handled as TiKV's own clients do.

Rules: an answer that says that nothing was proposed (NotLeader, EpochNotMatch, KeyNotInRegion and the like) is followed
by another try of the same operation, for a while. After one that leaves it open (StaleCommand, RegionNotFound, silence)
a write is over and its outcome unknown, for to write again would be another write. A read may always be tried again.

Each operation is kept as its client saw it, for whoever judges the history. What touches several keys is kept as one
operation for each key, all with the interval of the whole; a scan covers one region at a time.
"""

from __future__ import annotations

from msgspec import Struct, field
from msgspec.structs import replace

from drillyard.emulator.simulation.disks import Disk
from drillyard.emulator.simulation.pds import PdAnswer
from drillyard.emulator.simulation.stage import Stage
from drillyard.emulator.simulation.stores import StoreMember
from drillyard.emulator.simulation.world import MILLISECOND_US, Member
from drillyard.emulator.store.commands import (
    CompareAndSwap,
    Delete,
    DeleteRange,
    Put,
    Swapped,
    Write,
    Written,
    unpack_peer,
)
from drillyard.emulator.store.errors import EpochNotMatch, NotLeader, RegionNotFound, StaleCommand
from drillyard.emulator.store.region import Peer, Region
from drillyard.emulator.store.replica import Context
from drillyard.emulator.store.state import Pair, Span
from drillyard.emulator.tikv.records import unpack_region

KEYS = tuple(b"k%02d" % number for number in range(12))
PATIENCE_US = 800 * MILLISECOND_US  # with one operation
ANSWER_US = 300 * MILLISECOND_US  # until a try is given up
KINDS = (
    "get",
    "get",
    "get",
    "put",
    "put",
    "put",
    "put",
    "swap",
    "swap",
    "delete",
    "scan",
    "scan",
    "range",
    "batch",
    "stamp",
)


class Call(Struct, frozen=True):
    """One operation on one key, as its client saw it; `outcome` is "ok", "failed" (certainly nothing) or "unknown"."""

    client: int
    kind: str  # "get", "put", "delete" or "swap"
    key: bytes
    value: bytes | None
    called_us: int
    returned_us: int = 0
    outcome: str = "unknown"
    expected: bytes | None = None
    swapped: bool = False
    previous: bytes | None = None


class Task(Struct):
    """What a client is at."""

    kind: str
    start: bytes
    end: bytes
    value: bytes | None
    expected: bytes | None
    called_us: int
    floor: tuple[int, int] = (0, 0)
    asked_us: int = 0  # when this try began
    tries: int = 0

    @property
    def is_read(self) -> bool:
        return self.kind in ("get", "scan", "stamp")


class Served(Struct):
    """What a client has got since it was last asked to look."""

    kinds: set[str] = field(default_factory=set)


class Client(Member):
    def __init__(self, number: int, stage: Stage) -> None:
        super().__init__(f"client{number}", 30 + number, stage.world)
        self.number = number
        self.calls: list[Call] = []
        self.served = Served()
        self.count = 0
        self._stage = stage
        self._cache: list[tuple[Region, Peer]] = []
        self._pd = 1
        self._task: Task | None = None
        self._seen: dict[bytes, bytes | None] = {}  # the last value of each key that was read or written
        self.begin_life()

    def start(self) -> None:
        self.later(self.world.dice.below(100 * MILLISECOND_US), self._begin)

    # ---- operations ----

    def _begin(self) -> None:
        dice = self.world.dice
        kind = dice.pick(KINDS)
        if not self.world.is_busy:  # what is not served yet comes first
            kind = next((each for each in ("put", "get", "stamp") if each not in self.served.kinds), "")
            if not kind:
                self.later(500 * MILLISECOND_US, self._begin)
                return
        start = KEYS[dice.below(self._stage.keys)]
        end = b""
        if kind in ("scan", "range"):
            place = KEYS.index(start) + 1 + dice.below(4 if kind == "scan" else 2)
            end = KEYS[place] if place < len(KEYS) else b"z"
        self.count += 1
        value = b"%d-%d" % (self.number, self.count) if kind in ("put", "swap", "batch") else None
        expected = self._seen.get(start) if kind == "swap" else None
        self._task = Task(kind, start, end, value, expected, self.world.now_us, self._stage.witness.last_stamp)
        self.world.note(f"{self} {kind} {start!r}")
        self._try(self._task)

    def _try(self, task: Task) -> None:
        if task is not self._task:
            return
        if self.world.now_us - task.called_us > PATIENCE_US:
            self._end(task, "failed")
            return
        task.tries += 1
        task.asked_us = self.world.now_us
        tries = task.tries
        self.later(ANSWER_US, lambda: self._give_up(task, tries))
        if task.kind == "stamp":
            self._ask_stamp(task)
            return
        found = self._find(task.start)
        if found is None:
            self._locate(task)
            return
        region, leader = found
        store = self._stage.store(leader.store_id)
        if store is None:
            self._forget(region)
            self._again(task)
            return
        context = Context(region.id, region.epoch.version, leader.id, leader.store_id)
        self._ask(task, store, region, context)

    def _again(self, task: Task, soon: bool = True) -> None:
        tries = task.tries  # silence may have led to another try meanwhile: two at once would be two writes

        def again() -> None:
            if task.tries == tries:
                self._try(task)

        self.later((2 if soon else 40) * MILLISECOND_US + self.world.dice.below(5_000), again)

    def _give_up(self, task: Task, tries: int) -> None:
        """Silence."""
        if task is not self._task or task.tries != tries:
            return
        found = self._find(task.start)
        if found is not None:
            self._forget(found[0])
        self._pd = self.world.dice.pick(sorted(self._stage.pds))
        if task.is_read or task.asked_us < 0:
            self._try(task)
        else:
            self._end(task, "unknown")

    def _end(self, task: Task, outcome: str) -> None:
        """Without an answer to show."""
        for key in self._keys(task):
            self._record(task, key, outcome)
        self._finish(task, outcome)

    def _finish(self, task: Task, outcome: str) -> None:
        self._task = None
        self.world.note(f"{self} {task.kind} {outcome}")
        if outcome == "ok":
            self.served.kinds.add("put" if task.kind == "batch" else task.kind)
        self.later(self.world.dice.below(100 * MILLISECOND_US), self._begin)

    def _keys(self, task: Task) -> tuple[bytes, ...]:
        if task.kind == "stamp":
            return ()
        if task.end:
            return tuple(key for key in KEYS if task.start <= key < task.end)
        return (task.start,)

    def _record(
        self, task: Task, key: bytes, outcome: str, read: bytes | None = None, swapped: Swapped | None = None
    ) -> None:
        kinds = {"scan": "get", "range": "delete", "batch": "put"}
        value = read if task.is_read else task.value
        call = Call(
            self.number,
            kinds.get(task.kind, task.kind),
            key,
            value,
            task.called_us,
            self.world.now_us,
            outcome,
            task.expected,
        )
        if swapped is not None:
            call = replace(call, swapped=swapped.succeeded, previous=swapped.previous)
        self.calls.append(call)
        if outcome == "ok":
            self._seen[key] = value if swapped is None or swapped.succeeded else swapped.previous

    # ---- asking stores ----

    def _ask(self, task: Task, store: StoreMember, region: Region, context: Context) -> None:
        network, tries = self._stage.network, task.tries
        if region.end and (not task.end or task.end > region.end) and task.end:
            task.end = region.end  # each region by itself
        if task.is_read:
            span = Span(task.start, task.end or task.start + b"\0")

            def take(disk: Disk, region: Region) -> list[Pair]:
                low, high = region.clip(span.start, span.end)
                return disk.scan(Span(low, high), 1000) if low != high or not high else []

            network.ask(
                self,
                store,
                lambda reply: store.read(context, take, reply),
                lambda answer: self._answered(task, tries, region, answer),
            )
            return
        command = self._command(task, region)
        network.ask(
            self,
            store,
            lambda reply: store.write(context, command, reply),
            lambda answer: self._answered(task, tries, region, answer),
        )

    def _command(self, task: Task, region: Region) -> Write | CompareAndSwap:
        value = task.value or b""
        if task.kind == "swap":
            return CompareAndSwap(task.start, task.expected, value)
        if task.kind == "delete":
            return Write((Delete(task.start),))
        if task.kind == "range":
            return Write((DeleteRange(task.start, task.end),))
        if task.kind == "batch":
            near = [key for key in KEYS if key > task.start and region.has_key(key)][:2]
            task.end = (near[-1] if near else task.start) + b"\0"
            return Write(tuple(Put(key, value) for key in (task.start, *near)))
        return Write((Put(task.start, value),))

    def _answered(self, task: Task, tries: int, region: Region, answer: object) -> None:
        if task is not self._task or task.tries != tries:
            return
        if isinstance(answer, list):
            found = dict(answer)
            for key in self._keys(task):
                self._record(task, key, "ok", found.get(key))
            self._finish(task, "ok")
        elif isinstance(answer, Written):
            self._end(task, "ok")
        elif isinstance(answer, Swapped):
            self._record(task, task.start, "ok", swapped=answer)
            self._finish(task, "ok")
        elif isinstance(answer, StaleCommand | RegionNotFound) and not task.is_read:
            self._forget(region)
            self._end(task, "unknown")
        else:
            self._learn(region, answer)
            self._again(task, soon=not isinstance(answer, NotLeader) or answer.leader is not None)

    # ---- the cache ----

    def _find(self, key: bytes) -> tuple[Region, Peer] | None:
        return next((found for found in self._cache if found[0].has_key(key)), None)

    def _forget(self, region: Region) -> None:
        self._cache = [found for found in self._cache if found[0].id != region.id]

    def _keep(self, region: Region, leader: Peer) -> None:
        self._cache = [found for found in self._cache if not found[0].overlaps(region)]
        self._cache.append((region, leader))

    def _learn(self, region: Region, error: object) -> None:
        match error:
            case NotLeader(_, leader) if leader is not None:
                self._keep(region, leader)
            case EpochNotMatch(regions):
                before = self._find(region.start)
                store_id = before[1].store_id if before is not None else 0
                self._forget(region)
                for each in regions:
                    leader = each.peer_on(store_id) or (each.peers[0] if each.peers else None)
                    if leader is not None:
                        self._keep(each, leader)
            case _:
                self._forget(region)

    # ---- asking PD ----

    def _locate(self, task: Task) -> None:
        tries = task.tries
        task.asked_us = -1  # no store has heard of this try

        def located(answer: PdAnswer) -> None:
            self._hear_pd(answer)
            if task is not self._task or task.tries != tries:
                return
            if answer.value is None or answer.value[1] is None:
                self._again(task, soon=False)
                return
            self._keep(unpack_region(answer.value[0]), unpack_peer(answer.value[1]))
            self._again(task)

        pd = self._stage.pds[self._pd]
        self._stage.network.ask(self, pd, lambda reply: pd.locate(task.start, reply), located)

    def _ask_stamp(self, task: Task) -> None:
        tries = task.tries

        def stamped(answer: PdAnswer) -> None:
            self._hear_pd(answer)
            if answer.value is not None:
                self._stage.witness.received(answer.value)
            if task is not self._task or task.tries != tries:
                return
            if answer.value is None:
                self._again(task, soon=False)
            else:
                self._finish(task, "ok")

        pd, count = self._stage.pds[self._pd], 1 + self.world.dice.below(3)
        floor = task.floor = self._stage.witness.last_stamp
        self._stage.network.ask(self, pd, lambda reply: pd.timestamp(count, floor, reply), stamped)

    def _hear_pd(self, answer: PdAnswer) -> None:
        if not answer.term:
            self._pd = answer.leader or self.world.dice.pick(sorted(self._stage.pds))
