"""One replica: the peer of one region on one store, on top of one Raft node.

It turns requests into log entries and reads, committed entries into writes, and keeps what is still to be answered.

Rules:
- `NotLeader` is given only before something was proposed. When leadership is lost, every proposal still in the log is
  answered `StaleCommand`: it may yet be applied. A read never has an effect, so an aborted one is `NotLeader`.
- Reads are confirmed in batches by the leader's read-index and answered once that index is applied, under the range
  that the reader knew.
- While a snapshot is being installed the replica gives no `Ready`.
- It keeps no file and no clock. Requests carry a ticket that means something to the shell only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from drillyard.emulator.raft import Raft
from drillyard.emulator.raft.types import (
    Configuration,
    Entry,
    Message,
    MessageKind,
    Options,
    ProposalDropped,
    Ready,
    Role,
)
from drillyard.emulator.raft.types import NotLeader as RaftNotLeader
from drillyard.emulator.store.commands import (
    Growth,
    Proposal,
    Swapped,
    Written,
    apply_write,
    decode_change,
    decode_split,
    encode_change,
    encode_compaction,
    encode_split,
    encode_write,
    first_foreign_key,
)
from drillyard.emulator.store.errors import (
    EpochNotMatch,
    KeyNotInRegion,
    NotLeader,
    RaftEntryTooLarge,
    RegionError,
    RegionNotFound,
    ServerIsBusy,
    StaleCommand,
)
from drillyard.emulator.store.region import (
    ChangeRefused,
    Epoch,
    Part,
    Peer,
    PeerChange,
    PeerRole,
    Region,
    change_peers,
    configuration_of,
    raft_change,
    split_region,
)
from drillyard.emulator.store.state import State
from drillyard.emulator.store.transactions import Transacted
from drillyard.wire import drillpb

MUCH_TOO_LONG = 4.0  # times the limit of the log
FORGET_AT_ONCE = 2000  # entries; the rest follows when they are gone


@dataclass(frozen=True, slots=True)
class Settings:
    """How a store behaves. Times are in ticks unless the name says otherwise."""

    raft: Options = field(default_factory=lambda: Options(max_append_bytes=256 << 10, max_committed_bytes=256 << 10))
    tick_ms: int = 1000
    max_peer_down_s: int = 600
    log_gc_ticks: int = 3
    log_gc_threshold: int = 50  # entries that every peer has before they are forgotten
    log_gc_count_limit: int = 16384  # a longer log does not wait for peers that are silent
    log_gc_bytes_limit: int = 16 << 20
    max_entry_bytes: int = 8 << 20
    max_pending_bytes: int = 32 << 20  # proposed and not applied; beyond it the store is busy


@dataclass(frozen=True, slots=True)
class Context:
    """What a request says about where it believes it belongs."""

    region_id: int
    version: int
    peer_id: int
    store_id: int
    term: int = 0


@dataclass(frozen=True, slots=True)
class Readable:
    """The state may be read now, synchronously or through a view taken now, within the region's range."""

    region: Region


Outcome = Written | Swapped | Transacted | Readable | RegionError
Answer = tuple[object, Outcome]


@dataclass(frozen=True, slots=True)
class Envelope:
    """One Raft message with the address of the group and the two peers.

    No message at all tells `to` that it is not in the region any more, as of `epoch`. With a snapshot comes the
    region as the snapshot holds it.
    """

    region_id: int
    epoch: Epoch
    sender: Peer
    to: Peer
    message: Message | None
    region: Region | None = None


@dataclass(frozen=True, slots=True)
class RegionReady:
    """Work for the shell on one region.

    Stage `ready` in the Raft log (none: nothing to stage), and `record` and `applied` with it, in the batch that the
    writes to `State` went into. Send `messages` at once; take a view for each of `snapshots` right after the batch is
    written; send `deferred` and report `persisted(number)` once the batch is durable. `install`: the snapshot that
    came with this region is to be moved into place, then `Store.installed` is to be called instead of `persisted`.
    `made`: new regions that a split cut off; their beginnings are to be written in the same batch. `destroyed`: the log
    and the data of the region are to be deleted; the record says so already.
    """

    region: Region
    peer_id: int
    ready: Ready | None = None
    has_record: bool = False
    applied: int = 0
    compact_to: int = 0
    messages: tuple[Envelope, ...] = ()
    deferred: tuple[Envelope, ...] = ()
    snapshots: tuple[Envelope, ...] = ()
    made: tuple[Region, ...] = ()
    install: bool = False
    destroyed: bool = False


@dataclass(frozen=True, slots=True)
class RegionReport:
    """What a leader tells PD about its region."""

    region: Region
    leader: Peer
    term: int
    down: tuple[tuple[Peer, int], ...]  # with the seconds
    pending: tuple[Peer, ...]
    written_bytes: int
    written_keys: int
    size: int
    keys: int


@dataclass(slots=True)
class Outbox:
    """What all replicas of a store have to say between two calls of the shell."""

    answers: list[Answer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reports_due: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Pending:
    term: int
    index: int
    size: int
    ticket: object


@dataclass(frozen=True, slots=True)
class _Read:
    ticket: object
    version: int


class Replica:
    def __init__(self, region: Region, peer: Peer, raft: Raft, settings: Settings) -> None:
        self.region = region
        self.me = peer
        self.raft = raft
        self.settings = settings
        self.growth = Growth()
        self.is_destroyed = False
        self.is_installing = False
        self._record_due = not region.is_initialized
        self._incoming: Region | None = None
        self._compact_to = 0
        self._compaction_asked = 0
        self._made: list[Region] = []  # by a split
        self._extra: list[Envelope] = []  # what this module itself has to say to other peers
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        self._unasked: list[_Read] = []
        self._asked: dict[bytes, list[_Read]] = {}
        self._confirmed: deque[tuple[int, list[_Read]]] = deque()
        self._asks = 0
        self._ticks = 0
        self._heard: dict[int, int] = {}
        self._known: dict[int, Peer] = {}
        self._led = False
        self._reported: object = None

    # ---- requests ----

    @property
    def is_leader(self) -> bool:
        return self.raft.role is Role.LEADER

    @property
    def leader(self) -> Peer | None:
        return self.region.peer(self.raft.leader) if self.raft.leader else None

    def write(self, ticket: object, context: Context, command: Proposal) -> RegionError | None:
        """None: proposed, the answer comes with a later `ready`. An error: nothing was proposed."""
        if context.version != self.region.epoch.version:
            return EpochNotMatch((self.region,))
        foreign = first_foreign_key(command, self.region)
        if foreign is not None:
            return KeyNotInRegion(foreign, self.region)
        data = encode_write(command, self.region)
        if len(data) > self.settings.max_entry_bytes:
            return RaftEntryTooLarge(self.region.id, len(data))
        if self._pending_bytes + len(data) > self.settings.max_pending_bytes and self._pending:
            return ServerIsBusy("too many writes wait to be applied", backoff_ms=100)
        try:
            term, index = self.raft.propose(data)
        except RaftNotLeader:
            return NotLeader(self.region.id, self.leader)
        except ProposalDropped:  # leadership is on its way to another peer, which may not know it yet
            return NotLeader(self.region.id, None)
        self._pending.append(_Pending(term, index, len(data), ticket))
        self._pending_bytes += len(data)
        return None

    def read(self, ticket: object, context: Context) -> RegionError | None:
        if context.version != self.region.epoch.version:
            return EpochNotMatch((self.region,))
        self._unasked.append(_Read(ticket, context.version))
        return None

    # ---- PD's steps ----

    def change(self, changes: tuple[PeerChange, ...]) -> str:
        """Proposes a change of peers. The answer is empty, or why it is declined."""
        try:
            changed = change_peers(self.region, changes)
        except ChangeRefused as refusal:
            return str(refusal)
        mine = changed.peer(self.me.id)
        if mine is None or mine.role is PeerRole.LEARNER:
            return "it would remove or demote the leader"
        if not self._would_work(configuration_of(changed)):
            return "the peers it would leave are not recent enough to make a quorum"
        try:
            self.raft.propose_change(raft_change(changes), encode_change(changes, self.region))
        except ProposalDropped as refusal:
            return str(refusal) or "another change is under way"
        return ""

    def transfer(self, to: Peer) -> str:
        target = self.region.peer(to.id)
        if target is None or target.store_id != to.store_id:
            return f"peer {to.id} is not in the region"
        if target.role not in (PeerRole.VOTER, PeerRole.INCOMING_VOTER):
            return f"peer {to.id} may not lead"
        if target.id == self.me.id:
            return "it leads already"
        if target.id not in self._recent():
            return f"peer {to.id} is not recent enough to lead"
        try:
            self.raft.transfer_leader(target.id)
        except ProposalDropped as refusal:
            return str(refusal) or "leadership is on its way to another peer"
        return ""

    def _would_work(self, configuration: Configuration) -> bool:
        """Whether the log could still be committed at once under the new configuration."""
        recent = self._recent()
        halves = [configuration.voters, configuration.outgoing]
        return all(len(half & recent) * 2 > len(half) for half in halves if half)

    def split(self, keys: tuple[bytes, ...], parts: tuple[Part, ...]) -> str:
        """Proposes to cut the region at the keys. Without parts it only tells whether it would."""
        if len(self.region.peers) != 1:
            return "splitting a region that has several peers is not supported"
        if not keys:
            return "splitting where the store finds fit is not supported"
        try:
            split_region(self.region, keys, parts or tuple(Part(0, (0,)) for _ in keys))
            if parts:
                self.raft.propose(encode_split(keys, parts, self.region))
        except (ChangeRefused, ProposalDropped) as refusal:
            return str(refusal) or "leadership is on its way to another peer"
        return ""

    def _recent(self) -> set[int]:
        """Peers that were heard within an election timeout and do not wait for a snapshot; this one included."""
        oldest = self._ticks - self.settings.raft.election_ticks
        truncated = self.raft.first_index - 1
        recent = {
            peer_id
            for peer_id, progress in self.raft.progress().items()
            if progress.match >= truncated and self._heard.get(peer_id, oldest - 1) >= oldest
        }
        return recent | {self.me.id}

    # ---- time and messages ----

    def tick(self) -> None:
        self._ticks += 1
        self.raft.tick()
        if self.is_leader and self._ticks % self.settings.log_gc_ticks == 0:
            self._forget_log()
        if self.raft.leader == 0 and self._ticks % (2 * self.settings.raft.election_ticks) == 0:
            self._show_life()

    def _show_life(self) -> None:
        """Without a leader for long: it may have been removed and not know it, and whoever does know will say so.

        A voter is told when it asks for votes. A learner never asks, so all send an answer to a heartbeat that nobody
        sent, in a term long past: Raft makes nothing of it.
        """
        others = {peer.id: peer for peer in (*self.region.peers, *self._known.values()) if peer.id != self.me.id}
        for peer in others.values():
            sign = Message(MessageKind.HEARTBEAT_REPLY, self.me.id, peer.id, 0)
            self._extra.append(Envelope(self.region.id, self.region.epoch, self.me, peer, sign))

    def step(self, envelope: Envelope) -> None:
        assert envelope.message is not None
        self._heard[envelope.sender.id] = self._ticks
        self._known[envelope.sender.id] = envelope.sender
        if envelope.message.kind is MessageKind.SNAPSHOT:
            self._incoming = envelope.region
        self.raft.step(envelope.message)

    def destroy(self, box: Outbox) -> None:
        self.is_destroyed = True
        self._fail_all(box, RegionNotFound(self.region.id))

    def _forget_log(self) -> None:
        """Proposes to forget the part of the log that every peer has.

        A log that has grown long waits only for peers that are heard, and one that is much too long for none: those
        who then lack something get a snapshot.
        """
        raft, settings = self.raft, self.settings
        fullness = max(
            raft.log_bytes / settings.log_gc_bytes_limit,
            (raft.applied - raft.first_index) / settings.log_gc_count_limit,
        )
        oldest = self._ticks - settings.raft.election_ticks
        waited_for = [
            progress.match
            for peer_id, progress in raft.progress().items()
            if peer_id != self.me.id
            and fullness < MUCH_TOO_LONG
            and (fullness < 1 or self._heard.get(peer_id, oldest - 1) >= oldest)
        ]
        target = min(waited_for, default=raft.applied)
        target = min(target, raft.applied, raft.first_index + max(FORGET_AT_ONCE, settings.log_gc_threshold))
        if fullness < 1 and target - raft.first_index < settings.log_gc_threshold:
            return
        if target <= max(self._compaction_asked, raft.first_index):
            return
        try:
            raft.propose(encode_compaction(target, self.region))
        except ProposalDropped:
            return
        self._compaction_asked = target

    # ---- output ----

    @property
    def has_ready(self) -> bool:
        if self.is_destroyed or self.is_installing:
            return False
        return (
            self._record_due
            or bool(self._unasked)
            or bool(self._extra)
            or self._led != self.is_leader
            or self.raft.has_ready()
        )

    def ready(self, state: State, box: Outbox) -> RegionReady:
        self._ask_reads(box)
        self._notice_role(box)
        ready = self.raft.ready() if self.raft.has_ready() else None
        has_record, self._record_due = self._record_due, False
        if ready is None:
            return RegionReady(self.region, self.me.id, None, has_record, messages=self._take_extra())
        if ready.snapshot is not None:
            self._settle_reads(ready, box)
            return self._begin_install(ready)
        before = self.region
        applied = self._apply(ready.committed, state, box)
        if applied and not self.is_destroyed:
            self.raft.applied_to(applied)
        compact_to, self._compact_to = self._compact_to, 0
        if compact_to and not self.is_destroyed:
            is_more_likely = compact_to - self.raft.first_index >= FORGET_AT_ONCE
            self.raft.compact(compact_to)
            if is_more_likely and self.is_leader:
                self._forget_log()
        self._settle_reads(ready, box)
        if self.is_destroyed:
            self._fail_all(box, RegionNotFound(self.region.id))
        messages = [self._envelope(message) for message in ready.messages if message.kind is not MessageKind.SNAPSHOT]
        return RegionReady(
            self.region,
            self.me.id,
            ready,
            has_record or self.region is not before,
            applied,
            compact_to,
            tuple(envelope for envelope in messages if envelope is not None) + self._take_extra(),
            tuple(sent for message in ready.deferred if (sent := self._envelope(message)) is not None),
            self._snapshots(ready),
            made=self._take_made(),
            destroyed=self.is_destroyed,
        )

    def installed(self, number: int) -> None:
        self.is_installing = False
        self.raft.persisted(number)

    def _begin_install(self, ready: Ready) -> RegionReady:
        assert ready.snapshot is not None
        assert self._incoming is not None
        assert not ready.committed, "nothing can be applied beside a snapshot"
        self.region, self._incoming = self._incoming, None
        assert configuration_of(self.region) == ready.snapshot.configuration
        self.is_installing = True
        self.growth = Growth(is_unknown=True)
        deferred = tuple(sent for message in ready.deferred if (sent := self._envelope(message)) is not None)
        messages = tuple(sent for message in ready.messages if (sent := self._envelope(message)) is not None)
        return RegionReady(
            self.region,
            self.me.id,
            ready,
            has_record=True,
            applied=ready.snapshot.index,
            messages=messages,
            deferred=deferred,
            install=True,
        )

    def _envelope(self, message: Message) -> Envelope | None:
        to = self.region.peer(message.to) or self._known.get(message.to)
        if to is None:
            return None
        return Envelope(self.region.id, self.region.epoch, self.me, to, message)

    def _take_made(self) -> tuple[Region, ...]:
        made, self._made = self._made, []
        return tuple(made)

    def _take_extra(self) -> tuple[Envelope, ...]:
        extra, self._extra = self._extra, []
        return tuple(extra)

    def _snapshots(self, ready: Ready) -> tuple[Envelope, ...]:
        if self.is_destroyed:
            return ()
        asked = [m for m in (*ready.messages, *ready.deferred) if m.kind is MessageKind.SNAPSHOT]
        if not asked:
            return ()
        meta = self.raft.snapshot_meta()
        filled = (self._envelope(replace(message, snapshot=meta)) for message in asked)
        return tuple(replace(envelope, region=self.region) for envelope in filled if envelope is not None)

    # ---- reads ----

    def _ask_reads(self, box: Outbox) -> None:
        if not self._unasked:
            return
        reads, self._unasked = self._unasked, []
        self._asks += 1
        context = self._asks.to_bytes(8, "big")
        try:
            self.raft.read_index(context)
        except RaftNotLeader:
            error = NotLeader(self.region.id, self.leader)
            box.answers += [(read.ticket, error) for read in reads]
        else:
            self._asked[context] = reads

    def _settle_reads(self, ready: Ready, box: Outbox) -> None:
        for context in ready.aborted_reads:
            error = NotLeader(self.region.id, self.leader)
            box.answers += [(read.ticket, error) for read in self._asked.pop(context, ())]
        for confirmed in ready.reads:
            reads = self._asked.pop(confirmed.context, None)
            if reads is not None:
                self._confirmed.append((confirmed.index, reads))
        while self._confirmed and self._confirmed[0][0] <= self.raft.applied:
            _, reads = self._confirmed.popleft()
            version = self.region.epoch.version
            stale = EpochNotMatch((self.region,))
            readable = Readable(self.region)
            box.answers += [(read.ticket, readable if read.version == version else stale) for read in reads]

    # ---- roles ----

    def _notice_role(self, box: Outbox) -> None:
        if self._led == self.is_leader:
            return
        self._led = self.is_leader
        if self._led:
            self._heard = {peer.id: self._ticks for peer in self.region.peers}
            self._compaction_asked = 0
            return
        self._reported = None
        stale = StaleCommand()
        box.answers += [(pending.ticket, stale) for pending in self._pending]
        self._pending.clear()
        self._pending_bytes = 0

    def _fail_all(self, box: Outbox, error: RegionError) -> None:
        box.answers += [(pending.ticket, error) for pending in self._pending]
        waiting = [*self._unasked, *(read for reads in self._asked.values() for read in reads)]
        waiting += [read for _, reads in self._confirmed for read in reads]
        box.answers += [(read.ticket, error) for read in waiting]
        self._pending.clear()
        self._pending_bytes = 0
        self._unasked = []
        self._asked.clear()
        self._confirmed.clear()

    # ---- apply ----

    def _apply(self, entries: Iterable[Entry], state: State, box: Outbox) -> int:
        applied = 0
        for entry in entries:
            outcome = self._apply_one(entry, state, box)
            applied = entry.index
            self._answer(entry, outcome, box)
            if self.is_destroyed:
                break
        return applied

    def _apply_one(self, entry: Entry, state: State, box: Outbox) -> Outcome:
        if not entry.data:
            return Written()
        record = drillpb.Command.FromString(entry.data)
        if entry.change is not None:
            self._apply_change(entry, record, box)
        elif record.HasField("split"):
            self._apply_split(record, box)
        elif record.compact_to:
            self._compact_to = max(self._compact_to, record.compact_to)
        else:
            return apply_write(record, self.region, state, self.growth)
        return Written()

    def _apply_change(self, entry: Entry, record: drillpb.Command, box: Outbox) -> None:
        assert entry.change is not None
        if record.conf_ver != self.region.epoch.conf_ver:
            box.notes.append(f"region {self.region.id}: a change of peers came too late and has no effect")
            return
        try:
            changes = decode_change(record)
            changed = change_peers(self.region, changes)
        except ChangeRefused as refusal:
            box.notes.append(f"region {self.region.id}: a change of peers has no effect: {refusal}")
            return
        configuration = self.raft.apply_change(entry.change)
        assert configuration == configuration_of(changed), "the region and its Raft group disagree on who votes"
        gone = [peer for peer in self.region.peers if changed.peer(peer.id) is None]
        self.region = changed
        mine = changed.peer(self.me.id)
        if mine is None:
            self.is_destroyed = True
            return
        self.me = mine
        for change in changes:
            self._heard.setdefault(change.peer.id, self._ticks)
        if self.is_leader:
            self._extra += [Envelope(changed.id, changed.epoch, mine, peer, None) for peer in gone]

    def _apply_split(self, record: drillpb.Command, box: Outbox) -> None:
        if Epoch(record.version, record.conf_ver) != self.region.epoch:
            box.notes.append(f"region {self.region.id}: a split came too late and has no effect")
            return
        try:
            *made, self.region = split_region(self.region, *decode_split(record))
        except ChangeRefused as refusal:
            box.notes.append(f"region {self.region.id}: a split has no effect: {refusal}")
            return
        self._made += made
        self.growth.is_unknown = True

    def _answer(self, entry: Entry, outcome: Outcome, box: Outbox) -> None:
        while self._pending and self._pending[0].index <= entry.index:
            pending = self._pending.popleft()
            self._pending_bytes -= pending.size
            is_it = pending.index == entry.index and pending.term == entry.term
            box.answers.append((pending.ticket, outcome if is_it else StaleCommand()))

    # ---- what PD is told ----

    def notice_report(self, box: Outbox) -> None:
        """Asks for a heartbeat to PD at once if anything that PD decides by has changed."""
        if self.is_destroyed or not self._led or not self.is_leader:
            return
        pending = tuple(peer.id for peer in self._pending_peers())
        down = tuple(peer.id for peer, _ in self._down_peers())
        facts = (self.raft.term, self.region, pending, down)
        if facts != self._reported:
            self._reported = facts
            box.reports_due.add(self.region.id)

    def report(self) -> RegionReport | None:
        """None unless it leads. The written bytes and keys are those since the last report."""
        if not self.is_leader or not self.region.is_initialized:
            return None
        growth = self.growth
        report = RegionReport(
            self.region,
            self.me,
            self.raft.term,
            self._down_peers(),
            self._pending_peers(),
            growth.written_bytes,
            growth.written_keys,
            max(growth.size, 0),
            max(growth.keys, 0),
        )
        growth.written_bytes = growth.written_keys = 0
        return report

    def _pending_peers(self) -> tuple[Peer, ...]:
        """Peers that the log cannot bring up to date: they wait for a snapshot, or are installing one."""
        truncated = self.raft.first_index - 1
        progress = self.raft.progress()
        return tuple(
            peer
            for peer in self.region.peers
            if peer.id != self.me.id and (peer.id not in progress or progress[peer.id].match < truncated)
        )

    def _down_peers(self) -> tuple[tuple[Peer, int], ...]:
        settings = self.settings
        silent = (
            (peer, (self._ticks - self._heard.get(peer.id, self._ticks)) * settings.tick_ms // 1000)
            for peer in self.region.peers
            if peer.id != self.me.id
        )
        return tuple((peer, seconds) for peer, seconds in silent if seconds >= settings.max_peer_down_s)
