"""One replica: the peer of one region on one store, on top of one Raft node.

It turns requests into log entries and reads, committed entries into writes, and keeps what is still to be answered.

Rules:
- `NotLeader` is given only before something was proposed. When leadership is lost, every proposal still in the log is
  answered `StaleCommand`: it may yet be applied. A read never has an effect, so an aborted one is `NotLeader`.
- Reads are confirmed in batches by the leader's read-index and answered once that index is applied, under the range
  that the reader knew.
- While a snapshot is being installed the replica gives no `Ready`.
- Entries are applied in order. One that commits a merge waits until the source's replica beside this one has come to
  its end; what follows waits behind it (see `merging`).
- It keeps no file and no clock. Requests carry a ticket that means something to the shell only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from google.protobuf.message import DecodeError
from msgspec import Struct
from msgspec.structs import replace

from drillyard.emulator.raft import Raft
from drillyard.emulator.raft.types import (
    Entry,
    HardState,
    Message,
    MessageKind,
    ProposalDropped,
    ProtocolBroken,
    Ready,
    Role,
)
from drillyard.emulator.raft.types import NotLeader as RaftNotLeader
from drillyard.emulator.store import merging as merges
from drillyard.emulator.store.commands import (
    Growth,
    Proposal,
    Written,
    apply_write,
    decode_change,
    decode_split,
    encode_compaction,
    encode_write,
    first_foreign_key,
    unpack_region,
)
from drillyard.emulator.store.errors import (
    EpochNotMatch,
    KeyNotInRegion,
    NotLeader,
    ProposalInMergingMode,
    RaftEntryTooLarge,
    ReadIndexNotReady,
    RegionError,
    RegionNotFound,
    ServerIsBusy,
    StaleCommand,
)
from drillyard.emulator.store.messages import (
    Answer,
    Context,
    Envelope,
    Made,
    Merging,
    Outbox,
    Outcome,
    Readable,
    RegionReady,
    RegionReport,
)
from drillyard.emulator.store.read_queue import ReadQueue
from drillyard.emulator.store.region import (
    ChangeRefused,
    Epoch,
    Peer,
    Region,
    change_peers,
    configuration_of,
    split_region,
)
from drillyard.emulator.store.settings import Settings
from drillyard.emulator.store.state import FAMILIES, Span, State
from drillyard.emulator.store.upkeep import (
    FORGET_AT_ONCE,
    PeerWatch,
    Rest,
    down_peers,
    forgettable,
    pending_peers,
    recent_peers,
)
from drillyard.wire import drillpb

__all__ = [
    "FIRST_INDEX",
    "FIRST_STATE",
    "FIRST_TERM",
    "FORGET_AT_ONCE",
    "Answer",
    "Context",
    "Envelope",
    "Made",
    "Merging",
    "Outbox",
    "Outcome",
    "Readable",
    "RegionReady",
    "RegionReport",
    "Replica",
    "Settings",
]

# A region begins behind this index, so no log holds its beginning and every new peer starts from a snapshot.
FIRST_INDEX = 5
FIRST_TERM = 5
FIRST_STATE = HardState(FIRST_TERM, 0, FIRST_INDEX)

RANGED_KINDS = frozenset({MessageKind.PRE_VOTE, MessageKind.VOTE})


class _Pending(Struct, frozen=True):
    term: int
    index: int
    size: int
    ticket: object


class Replica:
    def __init__(self, region: Region, peer: Peer, raft: Raft, settings: Settings) -> None:
        self.region = region
        self.me = peer
        self.raft = raft
        self.settings = settings
        self.growth = Growth()
        self.rest = Rest()
        self.is_destroyed = False
        self.is_installing = False
        self.merging: Merging | None = None
        self.watch = PeerWatch()
        self.leaderless_ticks = 0
        self._backlog: deque[Entry] = deque()  # committed, and not applied yet
        self._is_held = False  # by a merge whose source has not come to its end here
        self._merged: list[tuple[Region, int]] = []
        self.asked_to_merge: tuple[int, int] = (0, 0)  # the source and the tick when its CommitMerge was proposed
        self._record_due = not region.is_initialized
        self._incoming: Region | None = None
        self._compact_to = 0
        self._compaction_asked = 0
        self._made: list[Made] = []  # by a split
        self._extra: list[Envelope] = []  # what this module itself has to say to other peers
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        self._reads = ReadQueue()
        self._known: dict[int, Peer] = {}
        self._led = False
        self._reported: object = None
        self.has_told_pending = False  # PD was told of a pending peer, and waits to hear that it is so no more

    # ---- requests ----

    @property
    def is_leader(self) -> bool:
        return self.raft.role is Role.LEADER

    @property
    def awaits_install(self) -> bool:
        """A snapshot has come and is not taken up yet."""
        return self._incoming is not None

    @property
    def leader(self) -> Peer | None:
        return self.region.peer(self.raft.leader) if self.raft.leader else None

    def write(self, ticket: object, context: Context, command: Proposal) -> RegionError | None:
        """None: proposed, the answer comes with a later `ready`. An error: nothing was proposed."""
        if context.version != self.region.epoch.version:
            return EpochNotMatch((self.region,))
        if self.merging is not None:
            return ProposalInMergingMode(self.region.id)
        foreign = first_foreign_key(command, self.region)
        if foreign is not None:
            return KeyNotInRegion(foreign, self.region)
        data = encode_write(command, self.region)
        if len(data) > self.settings.max_entry_bytes:
            return RaftEntryTooLarge(self.region.id, len(data))
        if self._pending_bytes + len(data) > self.settings.max_pending_bytes and self._pending:
            return ServerIsBusy("too many writes wait to be applied", backoff_ms=100)
        try:
            term, index = self.raft.propose(data, is_urgent=False)
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
        if self.merging is not None:
            return ReadIndexNotReady(self.region.id, "the region is being merged into another one")
        self._reads.add(ticket, context.version)
        return None

    def recent(self) -> set[int]:
        """Peers that could commit an entry at once, this one included."""
        return recent_peers(self.raft, self.watch, self.settings.raft.election_ticks)

    # ---- time and messages ----

    def tick(self) -> None:
        self.watch.ticks += 1
        self.raft.tick()
        self.leaderless_ticks = 0 if self.raft.leader else self.leaderless_ticks + 1
        if self.is_leader and self.watch.ticks % self.settings.log_gc_ticks == 0:
            self.forget_log()
        if self.raft.leader == 0 and self.watch.ticks % (2 * self.settings.raft.election_ticks) == 0:
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
        self.watch.hear(envelope.sender.id)
        self._known[envelope.sender.id] = envelope.sender
        if envelope.message.kind is MessageKind.SNAPSHOT:
            self._incoming = envelope.region
        self.raft.step(envelope.message)

    def destroy(self, box: Outbox) -> None:
        self.is_destroyed = True
        self._fail_all(box, RegionNotFound(self.region.id))

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for anything that this replica has to do or to say, beside Raft."""
        is_waited_for = self._pending or not self._reads.is_empty
        has_something = self._record_due or self._extra or self._made or self._backlog or self._led != self.is_leader
        is_changing = self.is_installing or self.is_destroyed or self.awaits_install or self.merging is not None
        return not (is_waited_for or has_something or is_changing)

    def forget_log(self) -> None:
        target = 0 if self.merging is not None else forgettable(self.raft, self.watch, self.settings)
        if target <= self._compaction_asked:
            return
        try:
            self.raft.propose(encode_compaction(target, self.region), is_urgent=False)
        except ProposalDropped:
            return
        self._compaction_asked = target

    # ---- output ----

    @property
    def has_ready(self) -> bool:
        if self.is_destroyed or self.is_installing:
            return False
        raft = self.raft
        return bool(
            raft.has_ready()
            or self._record_due
            or self._extra
            or self._led != (raft.role is Role.LEADER)
            or (self._reads.has_unasked and not raft.is_reading)
            or (self._backlog and not self._is_held)
        )

    def ready(self, state: State, box: Outbox, here: Mapping[int, Replica]) -> RegionReady:
        """`here`: all replicas of the store, by their regions."""
        if self._reads.has_unasked:
            box.answers += self._reads.ask(self.raft, NotLeader(self.region.id, self.leader))
        self._notice_role(box)
        ready = self.raft.ready() if self.raft.has_ready() else None
        has_record, self._record_due = self._record_due, False
        if ready is not None and ready.snapshot is not None:
            self._settle_reads(ready, box)
            return self._begin_install(ready, state, box, here)
        self._incoming = None
        before = self.region
        self._backlog += ready.committed if ready is not None else ()
        applied = self._apply(state, box, here)
        if applied and not self.is_destroyed:
            self.raft.applied_to(applied)
        compact_to = self._forget_applied()
        self._settle_reads(ready, box)
        if self.is_destroyed:
            self._fail_all(box, RegionNotFound(self.region.id))
        return RegionReady(
            self.region,
            self.me.id,
            ready,
            has_record or self.region is not before,
            applied,
            compact_to,
            self._addressed(ready.messages if ready is not None else ()) + self._take_extra(),
            self._addressed(ready.deferred if ready is not None else ()),
            self._snapshots(ready) if ready is not None else (),
            made=self._take_made(),
            merged=self._take_merged(),
            merging=self.merging,
            destroyed=self.is_destroyed,
        )

    def _settle_reads(self, ready: Ready | None, box: Outbox) -> None:
        if self._reads.is_empty:
            return
        refusal = NotLeader(self.region.id, self.leader)
        box.answers += self._reads.settle(ready, self.raft.applied, self.region, refusal)

    def _forget_applied(self) -> int:
        compact_to, self._compact_to = self._compact_to, 0
        if compact_to and not self.is_destroyed:
            is_more_likely = compact_to - self.raft.first_index >= FORGET_AT_ONCE
            self.raft.compact(compact_to)
            if is_more_likely and self.is_leader:
                self.forget_log()
        return compact_to

    def resume(self) -> None:
        """What held the entries up may be over."""
        self._is_held = False

    def installed(self, number: int) -> None:
        self.is_installing = False
        self.raft.persisted(number)

    def _begin_install(self, ready: Ready, state: State, box: Outbox, here: Mapping[int, Replica]) -> RegionReady:
        """What was here before goes at once: the range may have shrunk, and nobody else would look after the rest.

        Regions that the snapshot says were merged into this one end here, too.
        """
        assert ready.snapshot is not None
        assert self._incoming is not None
        assert not ready.committed, "nothing can be applied beside a snapshot"
        before, self.region, self._incoming = self.region, self._incoming, None
        assert configuration_of(self.region) == ready.snapshot.configuration
        _clear(state, before)
        for region_id in self.region.absorbed:
            if region_id in here:
                _clear(state, here[region_id].region)
                self._swallow(here[region_id], box)
        self.me = self.region.peer(self.me.id) or self.me
        self.is_installing = True
        self.merging = None
        self._backlog.clear()
        self.growth = Growth(is_unknown=True)
        return RegionReady(
            self.region,
            self.me.id,
            ready,
            has_record=True,
            applied=ready.snapshot.index,
            messages=self._addressed(ready.messages),
            deferred=self._addressed(ready.deferred),
            merged=self._take_merged(),
            install=True,
        )

    def _swallow(self, source: Replica, box: Outbox) -> None:
        """The source has become a part of this region."""
        source.destroy(box)
        self._merged.append((source.region, source.me.id))

    def _addressed(self, messages: tuple[Message, ...]) -> tuple[Envelope, ...]:
        if not messages:
            return ()
        sent = [self._envelope(message) for message in messages if message.kind is not MessageKind.SNAPSHOT]
        return tuple(envelope for envelope in sent if envelope is not None)

    def _envelope(self, message: Message) -> Envelope | None:
        to = self.region.peer(message.to) or self._known.get(message.to)
        if to is None:
            return None
        span = (self.region.start, self.region.end) if self._may_found(message) else None
        rest = self._speaks_of_sleep(message)
        return Envelope(self.region.id, self.region.epoch, self.me, to, message, range=span, rest=rest)

    def _speaks_of_sleep(self, message: Message) -> bool:
        if self.is_leader:
            return message.kind is MessageKind.HEARTBEAT and self.rest.is_asking and not message.context
        return message.kind is MessageKind.HEARTBEAT_REPLY and self.rest.is_asleep

    def _may_found(self, message: Message) -> bool:
        """Whether the receiver may not have heard of the region yet."""
        if message.kind in RANGED_KINDS:
            return self.region.is_initialized
        progress = self.raft.progress().get(message.to)
        return progress is not None and progress.match == 0

    def _take_made(self) -> tuple[Made, ...]:
        made, self._made = self._made, []
        return tuple(made)

    def _take_merged(self) -> tuple[tuple[Region, int], ...]:
        merged, self._merged = self._merged, []
        return tuple(merged)

    def _take_extra(self) -> tuple[Envelope, ...]:
        extra, self._extra = self._extra, []
        return tuple(extra)

    def _snapshots(self, ready: Ready) -> tuple[Envelope, ...]:
        if self.is_destroyed:
            return ()
        asked = [message for message in ready.messages if message.kind is MessageKind.SNAPSHOT]
        if self.merging is not None:  # every peer has the log from before the merge
            for message in asked:
                self.raft.report_snapshot(message.to, False)
            return ()
        if not asked:
            return ()
        meta = self.raft.snapshot_meta()
        filled = (self._envelope(replace(message, snapshot=meta)) for message in asked)
        return tuple(replace(envelope, region=self.region) for envelope in filled if envelope is not None)

    # ---- roles ----

    def _notice_role(self, box: Outbox) -> None:
        if self._led == self.is_leader:
            return
        self._led = self.is_leader
        if self._led:
            self.watch.expect_all(self.region.peers)
            self.asked_to_merge = (0, 0)
            self._compaction_asked = 0
            return
        self._reported, self.has_told_pending = None, False
        stale = StaleCommand()
        box.answers += [(pending.ticket, stale) for pending in self._pending]
        self._pending.clear()
        self._pending_bytes = 0

    def _fail_all(self, box: Outbox, error: RegionError) -> None:
        box.answers += [(pending.ticket, error) for pending in self._pending]
        box.answers += self._reads.fail(error)
        self._pending.clear()
        self._pending_bytes = 0

    # ---- apply ----

    def _apply(self, state: State, box: Outbox, here: Mapping[int, Replica]) -> int:
        """Returns the last entry that was applied, or 0."""
        applied = 0
        self._is_held = False
        while self._backlog and not self.is_destroyed:
            entry = self._backlog[0]
            try:
                record = drillpb.Command.FromString(entry.data)
                if record.HasField("commit_merge") and not self._has_source(record, here):
                    self._is_held = True
                    break
                self._backlog.popleft()
                outcome = self._apply_one(entry, record, state, box, here)
            except (DecodeError, ValueError) as error:
                # No leader of this version proposes it, and what every replica must do with it is not known.
                text = f"entry {entry.index} of region {self.region.id} makes no sense: {error}"
                raise ProtocolBroken(text) from error
            applied = entry.index
            self._answer(entry, outcome, box)
        return applied

    def _apply_one(
        self, entry: Entry, record: drillpb.Command, state: State, box: Outbox, here: Mapping[int, Replica]
    ) -> Outcome:
        if entry.change is not None:
            self._apply_change(entry, record, box)
        elif not entry.data:
            pass
        elif record.mutations or record.HasField("transaction"):  # first, for they are most
            return apply_write(record, self.region, state, self.growth)
        elif record.HasField("split"):
            self._apply_split(record, state, box, here)
        elif record.HasField("prepare_merge"):
            self._apply_prepare_merge(entry, record, box)
        elif record.HasField("commit_merge"):
            self._apply_commit_merge(record, box, here)
        elif record.HasField("rollback_merge"):
            self._apply_rollback_merge(record)
        elif record.compact_to:
            if record.compact_to >= entry.index:
                raise ValueError("it would forget what is not applied yet")
            self._compact_to = max(self._compact_to, record.compact_to if self.merging is None else 0)
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
            self.watch.expect(change.peer.id)
        if self.is_leader:
            self._extra += [Envelope(changed.id, changed.epoch, mine, peer, None) for peer in gone]

    def _is_late(self, record: drillpb.Command, what: str, box: Outbox) -> bool:
        if unpack_command_epoch(record) == self.region.epoch:
            return False
        box.notes.append(f"region {self.region.id}: {what} came too late and has no effect")
        return True

    def _apply_split(self, record: drillpb.Command, state: State, box: Outbox, here: Mapping[int, Replica]) -> None:
        if self._is_late(record, "a split", box):
            return
        try:
            *made, self.region = split_region(self.region, *decode_split(record))
        except ChangeRefused as refusal:
            box.notes.append(f"region {self.region.id}: a split has no effect: {refusal}")
            return
        for region in made:
            peer = region.peer_on(self.me.store_id)
            assert peer is not None
            beginning = begins_with(here.get(region.id), peer.id) if box.may_begin(region.id, peer.id) else None
            if beginning is None:
                _clear(state, region)
                box.notes.append(f"region {region.id}: peer {peer.id} is gone before it began")
            else:
                self._made.append(Made(region, peer.id, beginning))
        self.growth.share(1 + len(made))

    def _apply_prepare_merge(self, entry: Entry, record: drillpb.Command, box: Outbox) -> None:
        if self._is_late(record, "the beginning of a merge", box):
            return
        target = unpack_region(record.prepare_merge.target)
        self.region = merges.ended(self.region)
        self.merging = Merging(target, record.prepare_merge.min_index, entry.index)
        box.notes.append(f"region {self.region.id}: is being merged into region {target.id}")

    def _apply_rollback_merge(self, record: drillpb.Command) -> None:
        if self.merging is not None and self.merging.index == record.rollback_merge.index:
            self.region = merges.resumed(self.region)
            self.merging = None

    def _has_source(self, record: drillpb.Command, here: Mapping[int, Replica]) -> bool:
        """Whether the region that is to become a part of this one has come to its end here. If not, it is helped on."""
        if unpack_command_epoch(record) != self.region.epoch:
            return True  # the entry has no effect
        commit = record.commit_merge
        source = here.get(commit.source.id)
        if source is None or source.is_installing or source.is_destroyed:
            return False
        if source.merging is not None and source.merging.index == commit.index:
            return True
        source.raft.catch_up(merges.carried_entries(commit))
        return False

    def _apply_commit_merge(self, record: drillpb.Command, box: Outbox, here: Mapping[int, Replica]) -> None:
        if self._is_late(record, "the end of a merge", box):
            return
        commit = record.commit_merge
        source = here[commit.source.id]
        self.region = merges.joined(self.region, source.region)
        self.growth.add(source.growth)
        self._swallow(source, box)
        box.notes.append(f"region {self.region.id}: region {source.region.id} is a part of it now")

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
        pending = tuple(peer.id for peer in pending_peers(self.region, self.raft))
        down = tuple(peer.id for peer, _ in self._down())
        facts = (self.raft.term, self.region, pending, down)
        if facts != self._reported:
            self._reported, self.has_told_pending = facts, bool(pending)
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
            self._down(),
            pending_peers(self.region, self.raft),
            growth.written_bytes,
            growth.written_keys,
            max(growth.size, 0),
            max(growth.keys, 0),
        )
        growth.written_bytes = growth.written_keys = 0
        return report

    def _down(self) -> tuple[tuple[Peer, int], ...]:
        return down_peers(self.region, self.me.id, self.watch, self.settings)


def begins_with(known: Replica | None, peer_id: int) -> HardState | None:
    """What the log of a new region's peer begins with, if a replica of the region is known here; None: not at all.

    The peer may have been made before, by a message that overtook the split. It knows no range and has no log, but it
    may have voted, and must not forget it. A replica that knows its range, or a newer peer, is ahead of the split.
    """
    if known is None or known.me.id < peer_id:
        return FIRST_STATE
    if known.me.id > peer_id or known.region.is_initialized or known.is_destroyed:
        return None
    promised = known.raft.hard_state
    return HardState(promised.term, promised.vote, FIRST_INDEX) if promised.term >= FIRST_TERM else FIRST_STATE


def unpack_command_epoch(record: drillpb.Command) -> Epoch:
    return Epoch(record.version, record.conf_ver)


def _clear(state: State, region: Region) -> None:
    if region.is_initialized:
        for family in FAMILIES:
            state.delete_range(Span(region.start, region.end, family))
