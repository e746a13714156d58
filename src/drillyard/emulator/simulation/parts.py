"""The parts of a simulated Raft group: chance, a disk that loses what was not synced, one node, and the invariants.

`simulation` puts them together. A node here does what a member's shell does, in the order that `Ready` demands, but
on a simulated disk and with everything that takes time (a sync, an application of entries) taking a random time:

- The disk separates *written* from *synced*. A sync makes durable what was written before it began. A crash keeps what
  was synced, and of the rest any prefix: the system may or may not have written it back by itself.
- The state machine is a handful of keys with values. Its writes go to the same disk, in order with the log.

The `Witness` sees every node and knows no mercy: it keeps what any node has ever written, decided, voted or led, and
raises a `Violation` as soon as one of Raft's promises is broken, long before a client could notice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from msgspec import Struct, field

from drillyard.emulator.chance import Chance
from drillyard.emulator.raft import (
    Configuration,
    Entry,
    HardState,
    Message,
    MessageKind,
    Options,
    ProposalDropped,
    Raft,
    Ready,
    Restored,
    Role,
    SnapshotMeta,
)

BOOT_INDEX = 1  # a group begins with a snapshot of nothing, so that a newcomer learns the configuration with it
T = TypeVar("T")


class Violation(Exception):
    """A promise was broken; `invariant` names it."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


class Dice(Chance):
    """All chance of a simulation, from one seed."""

    __slots__ = ()

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def happens(self, permille: int) -> bool:
        return permille > 0 and self.below(1000) < permille

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]


class Written(Struct, frozen=True):
    """One batch on its way to the disk: a Ready's part, or the effect of applied entries, or a compaction."""

    ready: Ready | None = None
    values: dict[bytes, bytes] = field(default_factory=dict)  # all of them with a snapshot, else those that changed
    applied: int = 0
    configuration: Configuration | None = None
    compacted: tuple[int, int] = (0, 0)  # index and term


class Disk:
    """What one node has written. `synced` is what a crash cannot take."""

    def __init__(self, configuration: Configuration, boot_index: int) -> None:
        self.configuration = configuration
        self.hard_state = HardState(boot_index, 0, boot_index)
        self.before = (boot_index, boot_index)  # index and term of the entry before the log
        self.entries: list[Entry] = []
        self.values: dict[bytes, bytes] = {}
        self.applied = boot_index
        self.pending: deque[Written] = deque()

    def sync(self, batches: int) -> None:
        for _ in range(batches):
            self._settle(self.pending.popleft())

    def cut_power(self, dice: Dice) -> None:
        self.sync(dice.below(len(self.pending) + 1))
        self.pending.clear()

    def restored(self) -> Restored:
        before, before_term = self.before
        return Restored(
            self.configuration, self.hard_state, before, before_term, tuple(self.entries), applied=self.applied
        )

    def _settle(self, batch: Written) -> None:
        if batch.ready is not None:
            self._settle_ready(batch.ready, batch.values)
        elif batch.applied > self.applied:
            self.applied = batch.applied
            self.values.update(batch.values)
            self.configuration = batch.configuration or self.configuration
        index, term = batch.compacted
        if index > self.before[0]:
            del self.entries[: index - self.before[0]]
            self.before = (index, term)

    def _settle_ready(self, ready: Ready, values: dict[bytes, bytes]) -> None:
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.snapshot is not None:
            self.before = (ready.snapshot.index, ready.snapshot.term)
            self.entries = []
            self.applied = ready.snapshot.index
            self.configuration = ready.snapshot.configuration
            self.values = dict(values)
        if ready.entries:
            del self.entries[ready.entries[0].index - self.before[0] - 1 :]
            self.entries.extend(ready.entries)


class Witness:
    """Every promise of Raft that can be checked by looking at all nodes at once."""

    def __init__(self) -> None:
        self._leaders: dict[int, int] = {}  # by term
        self._votes: dict[tuple[int, int], int] = {}  # by term and voter
        self._entries: dict[tuple[int, int], tuple[int | None, Entry]] = {}  # by index and term: the term before, entry
        self._decided: dict[int, tuple[Entry, int]] = {}  # by index: the entry, and the term by which it was decided
        self._configurations: dict[int, Configuration] = {}  # by the index of the change
        self.last_decided = 0

    @property
    def elections(self) -> int:
        return len(self._leaders)

    def see_leader(self, raft: Raft) -> bool:
        """Whether this leader is new. Leader completeness: what was decided in an earlier term is in its log."""
        known = self._leaders.setdefault(raft.term, 0)
        if known not in (0, raft.node):
            raise Violation("election safety", f"{known} and {raft.node} both lead term {raft.term}")
        if known:
            return False
        self._leaders[raft.term] = raft.node
        for index in range(raft.first_index, self.last_decided + 1):
            entry, by = self._decided.get(index, (None, raft.term))
            if by < raft.term and entry is not None and raft.term_at(index) != entry.term:
                raise Violation("leader completeness", f"{raft.node} leads term {raft.term} without {entry}")
        return True

    def see_vote(self, message: Message) -> None:
        known = self._votes.setdefault((message.term, message.sender), message.to)
        if known != message.to:
            raise Violation("one vote a term", f"{message.sender} voted for {known} and {message.to}, {message.term}")

    def see_entries(self, raft: Raft, entries: tuple[Entry, ...]) -> None:
        """Log matching, by induction: an index and term name one entry, after an entry of one term."""
        before = raft.term_at(entries[0].index - 1)
        for entry in entries:
            known_before, known = self._entries.setdefault((entry.index, entry.term), (before, entry))
            if known != entry or (before is not None and known_before is not None and known_before != before):
                raise Violation("log matching", f"{raft.node} holds {entry} where another holds {known}")
            before = entry.term

    def see_installed(self, raft: Raft, snapshot: SnapshotMeta, applied: int) -> None:
        if snapshot.index < applied:
            raise Violation("state machine safety", f"{raft.node} went back from {applied} to {snapshot.index}")

    def see_applied(self, raft: Raft, entry: Entry) -> None:
        known, _ = self._decided.setdefault(entry.index, (entry, raft.term))
        if known != entry:
            raise Violation("state machine safety", f"{raft.node} applied {entry} where another applied {known}")
        self.last_decided = max(self.last_decided, entry.index)
        if entry.change is not None and self._configurations.setdefault(entry.index, raft.configuration) != (
            raft.configuration
        ):
            raise Violation("state machine safety", f"{raft.node} changed to another membership at {entry.index}")


class World(Protocol):
    """What a node needs of the simulation around it."""

    dice: Dice
    witness: Witness
    now_us: int

    def after(self, delay_us: int, call: Callable[[], None]) -> None: ...
    def send(self, message: Message, values: dict[bytes, bytes] | None) -> None: ...
    def answer(self, operation: int, outcome: str, value: bytes | None) -> None: ...
    def note(self, text: str) -> None: ...
    def tempt(
        self, node: int
    ) -> None: ...  # something has just happened at this leader: a good moment for a misfortune


class Speed(Struct, frozen=True):
    """How long a node takes for its work, at most (drawn anew each time), and how long a log it keeps."""

    turn_us: int = 300
    sync_us: int = 5_000
    apply_us: int = 3_000
    keeps_entries: int = 0  # compacted as soon as it is longer; 0: only on demand


class Node:
    """One member: the shell around one Raft core, with its disk and its state machine."""

    def __init__(self, number: int, disk: Disk, world: World, options: Options) -> None:
        self.number = number
        self.disk = disk
        self.speed = Speed()
        self.is_up = False
        self.sleeps_until_us = 0  # a node that is stopped for a while does nothing, and knows nothing of it
        self._world = world
        self._options = options
        self._life = 0  # how often it was started; what belongs to an earlier life is ignored
        self.start()

    def start(self) -> None:
        self._life += 1
        self.is_up = True
        self.raft = Raft(self.number, self.disk.restored(), self._options, self._world.dice.below)
        self.values = dict(self.disk.values)
        self._arrived: dict[tuple[int, int], dict[bytes, bytes]] = {}  # the data of snapshots, by index and term
        self._turn_is_due = self._apply_is_due = self._is_syncing = False
        self._number = 0
        self._applied = self.disk.applied
        self._deferred: deque[Ready] = deque()
        self._to_apply: deque[Entry] = deque()
        self._proposed: dict[int, tuple[int, int]] = {}  # by index: term and operation
        self._asked: dict[bytes, tuple[int, bytes]] = {}  # by context: operation and key
        self._reads: list[tuple[int, bytes]] = []  # index to wait for, context
        self._later(0, self._turn)

    def crash(self) -> None:
        self.is_up = False
        self.sleeps_until_us = 0
        self.disk.cut_power(self._world.dice)
        self._life += 1

    # ---- what comes in -----------------------------------------------------------------------------------------

    def tick(self) -> None:
        self.raft.tick()
        self.wake()

    def deliver(self, message: Message, values: dict[bytes, bytes] | None) -> None:
        if message.snapshot is not None and values is not None:
            self._arrived[message.snapshot.index, message.snapshot.term] = values
        self.raft.step(message)
        self.wake()

    def put(self, operation: int, key: bytes, value: bytes) -> None:
        try:
            term, index = self.raft.propose(b"%b %b" % (key, value), is_urgent=operation % 2 == 0)
        except ProposalDropped:
            self._world.answer(operation, "failed", None)
            return
        if index in self._proposed:  # of an earlier leadership of this node, whose entry was replaced
            self._world.answer(self._proposed[index][1], "failed", None)
        self._proposed[index] = (term, operation)
        self.wake()

    def get(self, operation: int, key: bytes) -> None:
        context = b"%d" % operation
        try:
            self.raft.read_index(context)
        except ProposalDropped:
            self._world.answer(operation, "failed", None)
            return
        self._asked[context] = (operation, key)
        self.wake()

    def compact(self, keep: int) -> None:
        index = self.raft.applied - keep
        if index >= self.raft.first_index:
            term = self.raft.term_at(index)
            self.raft.compact(index)
            self.disk.pending.append(Written(compacted=(index, term or 0)))

    # ---- the cycle of Readys -----------------------------------------------------------------------------------

    def wake(self) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            self._later(self.speed.turn_us, self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        raft = self.raft
        while raft.has_ready():
            if raft.role is Role.LEADER and self._world.witness.see_leader(raft):
                self._world.tempt(self.number)
            self._carry_out(raft.ready())
        if not self._is_syncing:
            self._sync()

    def _carry_out(self, ready: Ready) -> None:
        self._number = ready.number
        if ready.must_persist:
            self._write(ready)
        for message in ready.messages:
            self._send(message)
        if ready.deferred:
            self._deferred.append(ready)
        self._to_apply.extend(ready.committed)
        for context in ready.aborted_reads:
            self._world.answer(self._asked.pop(context)[0], "failed", None)
        self._reads.extend((read.index, read.context) for read in ready.reads)
        if self._to_apply or self._reads:
            if self._world.dice.happens(700):
                self._apply()
            elif not self._apply_is_due:
                self._apply_is_due = True
                self._later(self.speed.apply_us, self._apply)

    def _write(self, ready: Ready) -> None:
        values: dict[bytes, bytes] = {}
        if ready.snapshot is not None:
            values = self._arrived.pop((ready.snapshot.index, ready.snapshot.term))
            self._install(ready.snapshot, values)
        if ready.entries:
            self._world.witness.see_entries(self.raft, ready.entries)
        self.disk.pending.append(Written(ready, values))

    def _install(self, snapshot: SnapshotMeta, values: dict[bytes, bytes]) -> None:
        self._world.witness.see_installed(self.raft, snapshot, self._applied)
        self.values = dict(values)
        self._applied = snapshot.index
        self._to_apply.clear()
        for index in [index for index in self._proposed if index <= snapshot.index]:
            self._world.answer(self._proposed.pop(index)[1], "unknown", None)

    def _sync(self) -> None:
        """Begin a sync: it covers what is written now, not what comes while it runs."""
        batches, number = len(self.disk.pending), self._number
        self._is_syncing = batches > 0
        if self._is_syncing:
            self._later(self.speed.sync_us, lambda: self._synced(batches, number))
        else:
            self._durable(number)

    def _synced(self, batches: int, number: int) -> None:
        self.disk.sync(batches)
        self._durable(number)
        self._is_syncing = False
        self._turn()

    def _durable(self, number: int) -> None:
        self.raft.persisted(number)
        while self._deferred and self._deferred[0].number <= number:
            for message in self._deferred.popleft().deferred:
                self._send(message)

    def _send(self, message: Message) -> None:
        if message.kind is MessageKind.VOTE_REPLY and not message.reject:
            self._world.witness.see_vote(message)
        if message.kind is MessageKind.SNAPSHOT:
            meta = self.raft.snapshot_meta()
            message = Message(message.kind, message.sender, message.to, message.term, snapshot=meta)
            self._world.send(message, dict(self.values))
        else:
            self._world.send(message, None)

    # ---- the state machine -------------------------------------------------------------------------------------

    def _apply(self) -> None:
        self._apply_is_due = False
        before = self.raft.applied
        changed: dict[bytes, bytes] = {}
        while self._to_apply:
            entry = self._to_apply.popleft()
            if entry.change is not None:
                if entry.data != b"reject":
                    if self.raft.role is Role.LEADER:
                        self._world.tempt(self.number)
                    self.raft.apply_change(entry.change)
            elif entry.data:
                key, value = entry.data.split(b" ")
                changed[key] = self.values[key] = value
            self._world.witness.see_applied(self.raft, entry)
            self.raft.applied_to(entry.index)
            self._applied = entry.index
            self._settle_proposal(entry)
            self._world.note(f"{self.number} applied {entry.index}")
        applied = self.raft.applied
        if applied > before:
            self.disk.pending.append(Written(None, changed, applied, self.raft.configuration))
            if self.speed.keeps_entries:
                self.compact(self.speed.keeps_entries)
        for index, context in self._reads:
            if index <= applied:
                operation, key = self._asked.pop(context)
                self._world.answer(operation, "ok", self.values.get(key))
        self._reads = [read for read in self._reads if read[0] > applied]
        self.wake()

    def _settle_proposal(self, entry: Entry) -> None:
        """An index that was decided decides the proposal that had got it: done if the term fits, else lost for good."""
        if entry.index in self._proposed:
            term, operation = self._proposed.pop(entry.index)
            self._world.answer(operation, "ok" if term == entry.term else "failed", None)

    def _later(self, at_most_us: int, call: Callable[[], None]) -> None:
        life = self._life
        delay = self._world.dice.below(at_most_us + 1)
        self._world.after(delay, lambda: self._come_to(life, call))

    def _come_to(self, life: int, call: Callable[[], None]) -> None:
        if life != self._life:
            return
        if self._world.now_us < self.sleeps_until_us:
            self._world.after(self.sleeps_until_us - self._world.now_us, lambda: self._come_to(life, call))
        else:
            call()
