"""One PD member's part in the group: it drives the Raft core, keeps its log, and applies what was agreed on.

Rules: a command is answered after it was applied here, which is after a quorum has it on disk. A command whose fate is
not known (the lead was lost in between) is answered with `Undetermined`, never with success. `confirm` proves that
this member still led after the call began: by a round of messages, not by a clock. The whole state is small and lives
in memory; on disk are the log and now and then a snapshot, from which a restart replays.

It serves no client and decides nothing about the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from google.protobuf.message import DecodeError
from msgspec import Struct
from msgspec.structs import replace

from drillyard.emulator import raft_codec
from drillyard.emulator.logs import Log
from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.outcomes import Outcome
from drillyard.emulator.peers import Transport
from drillyard.emulator.raft import Raft
from drillyard.emulator.raft.configuration import electors
from drillyard.emulator.raft.types import (
    Change,
    Configuration,
    ConfigurationChange,
    Entry,
    Message,
    MessageKind,
    NotLeader,
    Options,
    ProposalDropped,
    ProtocolBroken,
    Ready,
    Restored,
    Role,
    SnapshotMeta,
)
from drillyard.emulator.storage import Batch, RaftLog, Storage
from drillyard.wire import drillpb, metapb

GROUP = 0
SNAPSHOT_KEY = b"pd/snapshot"
SNAPSHOT_EVERY = 1000  # applied entries
LOG_KEPT = 200  # entries kept behind a snapshot, for members that lag a little
CHUNK_BYTES = 1 << 19
MAX_COMMAND_BYTES = 3 << 19  # as etcd: what the way to the others does not take would hold up all that comes after it
BOOT_CAMPAIGN_EVERY_S = 0.03
RESIGN_S = 1.0


class Undetermined(Exception):
    """The command may or may not have been carried out: the lead was lost before its place in the log was settled."""


class Seat(Struct, frozen=True):
    """Which member of which group this is, and how it keeps time."""

    member_id: int
    group_id: int
    first_members: tuple[int, ...]
    is_first: bool  # the one that campaigns at once when the group is new
    tick_s: float
    options: Options


class _Proposal(Struct):
    term: int
    answer: asyncio.Future[Outcome]


class Consensus:
    def __init__(self, seat: Seat, storage: Storage, chance: Callable[[int], int], log: Log) -> None:
        self._seat = seat
        self._storage = storage
        self._log = log
        self._raft_log = RaftLog(storage, GROUP)
        self.cluster = Cluster()
        self.introduced: dict[int, drillpb.PdMember] = {}
        self._snapshot = SnapshotMeta(0, 0, Configuration(frozenset(seat.first_members)))
        self._raft = Raft(seat.member_id, self._restore(), seat.options, chance)
        self.is_new = self._raft.last_index == 0
        self._transport: Transport | None = None
        self._proposals: dict[int, _Proposal] = {}
        self._confirmations: dict[bytes, list[asyncio.Future[None]]] = {}
        self._gathering: list[asyncio.Future[None]] = []
        self._rounds = 0
        self._confirmed: list[tuple[int, bytes]] = []  # waiting for their index to be applied
        self._incoming_state: dict[tuple[int, int], bytes] = {}
        self._pump_wanted = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard_at: dict[int, float] = {}
        self._asked_at: dict[int, float] = {}  # when the heartbeat went out that a member has not answered yet
        self._closed = False
        self._hand_over_ended = asyncio.Event()
        self._seen = (self._raft.role, self._raft.leader, self._raft.term)
        self.on_change: Callable[[], None] = lambda: None  # role, leader or term
        self.on_apply: Callable[[], None] = lambda: None
        self.on_round_trip: Callable[[int, float], None] = lambda member_id, seconds: None
        self.on_broken: Callable[[Exception], None] = _raise
        self.on_tick: Callable[[float], None] = lambda late_s: None

    # ---- what the rest of PD asks ----

    @property
    def leads(self) -> bool:
        return self._raft.role is Role.LEADER

    @property
    def term(self) -> int:
        return self._raft.term

    @property
    def leader(self) -> int:
        """The member that leads as far as this one knows; 0 if it knows none."""
        return self._raft.leader

    @property
    def voters(self) -> frozenset[int]:
        """The members as of the last entry applied here."""
        return electors(self._raft.configuration)

    def active(self) -> frozenset[int]:
        """The members that this one, if it leads, has heard lately, itself included."""
        since = asyncio.get_running_loop().time() - self._seat.tick_s * self._seat.options.election_ticks
        heard = {member_id for member_id, at in self._heard_at.items() if at >= since}
        return frozenset(heard & self.voters | {self._seat.member_id})

    @property
    def applied(self) -> int:
        return self._raft.applied

    @property
    def commit(self) -> int:
        return self._raft.commit

    def submit(self, command: drillpb.PdCommand) -> asyncio.Future[Outcome]:
        """Brings a command into the log; the future has its outcome, NotLeader, ProposalDropped or Undetermined."""
        return self._submit(command, None)

    def change_members(self, change: Change, command: drillpb.PdCommand) -> asyncio.Future[Outcome]:
        """Changes who belongs to the group, together with what the state says of them; else as `submit`."""
        return self._submit(command, ConfigurationChange((change,)))

    def _submit(self, command: drillpb.PdCommand, change: ConfigurationChange | None) -> asyncio.Future[Outcome]:
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        data = command.SerializeToString()
        try:
            if len(data) > MAX_COMMAND_BYTES:
                raise ProposalDropped(f"request is too large: {len(data)} bytes, at most {MAX_COMMAND_BYTES} are taken")
            if change is None:
                term, index = self._raft.propose(data)
            else:
                term, index = self._raft.propose_change(change, data)
        except ProposalDropped as error:
            answer.set_exception(error)
            answer.exception()  # seen, even if nobody waits
            return answer
        self._proposals[index] = _Proposal(term, answer)
        self._want_pump()
        return answer

    async def confirm(self) -> None:
        """Returns once it is sure that this member led at some moment after the call; raises NotLeader otherwise."""
        if not self.leads:
            raise NotLeader(self.leader)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._gathering:
            asyncio.get_running_loop().call_soon(self._ask_confirmation)
        self._gathering.append(answer)
        await answer

    # ---- life ----

    def start(self, transport: Transport) -> None:
        self._transport = transport
        self._spawn(self._tick())
        if self.is_new and self._seat.is_first:
            self._spawn(self._campaign())
        self._want_pump()

    async def resign(self) -> None:
        """Before a wanted stop: hands the lead to the member that has most of the log, if one takes it soon.

        One that ends too is not waited for: when the whole group is stopped, all of them do.
        """
        matches = [(progress.match, member_id) for member_id, progress in self._raft.progress().items()]
        loop = asyncio.get_running_loop()
        end = loop.time() + RESIGN_S
        for _, member_id in sorted(matches, reverse=True):
            if self.leads and member_id in self.active() - {self._seat.member_id}:
                with contextlib.suppress(ProposalDropped):
                    await self.hand_over(member_id, end - loop.time())

    async def hand_over(self, member_id: int, within_s: float) -> bool:
        """Makes another member lead; False if it did not take the lead in time, or is gone. Raises ProposalDropped."""
        self._hand_over_ended.clear()
        self._raft.transfer_leader(member_id)
        self._want_pump()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._hand_over_ended.wait()
        return not self.leads

    def retire(self) -> None:
        """This member is no part of the group any more: it neither speaks nor listens. What it knows can be read."""
        if not self._closed:
            self._closed = True
            for task in self._tasks:
                task.cancel()
            self._fail_all()

    def close(self) -> None:
        self.retire()

    def deliver(self, envelope: drillpb.Envelope) -> None:
        """A message of another member, for this one."""
        if self._closed:
            return
        message = raft_codec.unpack_message(envelope.message)
        now = asyncio.get_running_loop().time()
        self._heard_at[message.sender] = now
        if message.kind is MessageKind.HEARTBEAT_REPLY and message.sender in self._asked_at:
            self.on_round_trip(message.sender, now - self._asked_at.pop(message.sender))
        try:
            self._raft.step(message)
        except ProtocolBroken as error:
            self.on_broken(error)
        self._want_pump()

    async def deliver_snapshot(self, envelope: drillpb.Envelope, chunks: AsyncIterator[bytes]) -> None:
        """The state of another member, with the message that brings it."""
        data = b"".join([chunk async for chunk in chunks])
        message = raft_codec.unpack_message(envelope.message)
        if message.snapshot is not None:
            self._incoming_state[message.snapshot.index, message.snapshot.term] = data
        self.deliver(envelope)

    def report_unreachable(self, member_id: int) -> None:
        if not self._closed:
            self._heard_at.pop(member_id, None)
            self._asked_at.pop(member_id, None)
            if member_id == self._raft.transferee:
                self._hand_over_ended.set()
            self._raft.report_unreachable(member_id)
            self._want_pump()

    # ---- time ----

    async def _tick(self) -> None:
        """A process that was stopped does not catch up, or it would call elections at once.

        The ticks between two heartbeats come together: nothing is due in between, and a follower that misses its
        leader is early as often as it is late.
        """
        loop = asyncio.get_running_loop()
        ticks = self._seat.options.heartbeat_ticks
        period_s = ticks * self._seat.tick_s
        while True:
            due = loop.time() + period_s
            await asyncio.sleep(period_s)
            self.on_tick(loop.time() - due)
            for _ in range(ticks):
                self._raft.tick()
            self._want_pump()

    async def _campaign(self) -> None:
        """At first boot the first member asks for votes until someone leads: the others may not listen yet."""
        while self.leader == 0 and self._raft.last_index == 0:
            if self._raft.role is not Role.CANDIDATE:  # whose votes are on their way
                self._raft.campaign()
                self._want_pump()
            await asyncio.sleep(BOOT_CAMPAIGN_EVERY_S)

    # ---- the cycle of Readys ----

    def _want_pump(self) -> None:
        if not self._pump_wanted and not self._closed:
            self._pump_wanted = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_wanted = False
        while not self._closed and self._raft.has_ready():
            self._carry_out(self._raft.ready())
        self._incoming_state.clear()  # of snapshots that were not wanted any more
        seen = (self._raft.role, self._raft.leader, self._raft.term)
        if seen != self._seen:
            if not self.leads or seen[2] != self._seen[2]:
                self._fail_all()
            if not self.leads:
                self._hand_over_ended.set()
            self._seen = seen
            self.on_change()

    def _carry_out(self, ready: Ready) -> None:
        if ready.must_persist:
            batch = Batch()
            if ready.snapshot is not None:
                self._install(ready.snapshot, batch)
            self._raft_log.stage(batch, ready)
            self._storage.write(batch)
        for message in ready.messages:
            self._send(message)
        self._storage.when_durable(lambda: self._persisted(ready))
        for entry in ready.committed:
            self._apply(entry)
        if ready.committed:
            self._raft.applied_to(ready.committed[-1].index)
            self._compact()
            self.on_apply()
        self._confirmed.extend((read.index, read.context) for read in ready.reads)
        self._answer_confirmed()
        for context in ready.aborted_reads:
            self._fail_confirmations(self._confirmations.pop(context, []))

    def _persisted(self, ready: Ready) -> None:
        if self._closed:
            return
        self._raft.persisted(ready.number)
        for message in ready.deferred:
            self._send(message)
        self._want_pump()

    def _apply(self, entry: Entry) -> None:
        outcome = Outcome()
        if entry.change is not None:
            self._raft.apply_change(entry.change)
        if entry.data:
            outcome = self.cluster.apply(entry.data)
        proposal = self._proposals.pop(entry.index, None)
        if proposal is None or proposal.answer.done():
            return
        if proposal.term == entry.term:
            proposal.answer.set_result(outcome)
        else:
            _fail(proposal.answer, NotLeader(self.leader))  # another leader's entry took its place: it never happened

    def _fail_all(self) -> None:
        proposals, self._proposals = self._proposals, {}
        for proposal in proposals.values():
            _fail(proposal.answer, Undetermined("the lead was lost before the command was settled"))
        waiting, self._confirmations, self._confirmed = self._confirmations, {}, []
        for answers in waiting.values():
            self._fail_confirmations(answers)
        gathering, self._gathering = self._gathering, []
        self._fail_confirmations(gathering)

    # ---- reads ----

    def _ask_confirmation(self) -> None:
        answers, self._gathering = self._gathering, []
        if not answers or self._closed:
            return
        self._rounds += 1
        context = self._rounds.to_bytes(8, "big")
        self._confirmations[context] = answers
        try:
            self._raft.read_index(context)
        except ProposalDropped:
            self._fail_confirmations(self._confirmations.pop(context))
        self._want_pump()

    def _answer_confirmed(self) -> None:
        ripe = [context for index, context in self._confirmed if index <= self._raft.applied]
        if not ripe:
            return
        self._confirmed = [each for each in self._confirmed if each[0] > self._raft.applied]
        for context in ripe:
            for answer in self._confirmations.pop(context, []):
                if not answer.done():
                    answer.set_result(None)

    def _fail_confirmations(self, answers: list[asyncio.Future[None]]) -> None:
        for answer in answers:
            _fail(answer, NotLeader(self.leader))

    # ---- messages ----

    def _send(self, message: Message) -> None:
        assert self._transport is not None
        if message.kind is MessageKind.SNAPSHOT:
            # Now, not in the task: state and meta have to be of the same entry.
            complete = replace(message, snapshot=self._raft.snapshot_meta())
            self._spawn(self._send_snapshot(complete, self.cluster.to_message().SerializeToString()))
        else:
            if message.kind is MessageKind.HEARTBEAT:
                self._asked_at.setdefault(message.to, asyncio.get_running_loop().time())
            self._transport.send(message.to, self._envelope(message))

    async def _send_snapshot(self, message: Message, data: bytes) -> None:
        assert self._transport is not None

        async def chunks() -> AsyncIterator[bytes]:
            for place in range(0, max(1, len(data)), CHUNK_BYTES):
                yield data[place : place + CHUNK_BYTES]

        try:
            await self._transport.send_snapshot(message.to, self._envelope(message), chunks())
            self._raft.report_snapshot(message.to, True)
        except Exception as error:
            self._log.warn("sending a snapshot failed", to=message.to, error=str(error))
            self._raft.report_snapshot(message.to, False)
        self._want_pump()

    def _envelope(self, message: Message) -> drillpb.Envelope:
        return drillpb.Envelope(
            cluster_id=self._seat.group_id,
            region_id=GROUP,
            from_peer=metapb.Peer(id=self._seat.member_id, store_id=self._seat.member_id),
            to_peer=metapb.Peer(id=message.to, store_id=message.to),
            message=raft_codec.pack_message(message),
        )

    # ---- snapshots ----

    def _restore(self) -> Restored:
        loaded = self._raft_log.load()
        record = self._storage.get(SNAPSHOT_KEY)
        if record is not None:
            try:
                kept = drillpb.PdSnapshot.FromString(record)
            except DecodeError as error:
                raise raft_codec.MalformedRecord("the snapshot of PD's state cannot be read") from error
            self._snapshot = raft_codec.unpack_meta(kept.meta)
            self.cluster = Cluster.from_message(kept.state)
        self._remember_introductions(loaded.entries)
        return Restored(
            configuration=self._snapshot.configuration,
            hard_state=loaded.hard_state,
            snapshot_index=loaded.snapshot_index,
            snapshot_term=loaded.snapshot_term,
            entries=loaded.entries,
            applied=self._snapshot.index,
        )

    def _remember_introductions(self, entries: tuple[Entry, ...]) -> None:
        """Members that the log names, though nobody may know yet that those entries are agreed on.

        That a member was introduced with some data directory is true either way.
        """
        for entry in entries:
            command = drillpb.PdCommand.FromString(entry.data)
            if command.WhichOneof("kind") == "publish":
                self.introduced[command.publish.id] = command.publish

    def _install(self, meta: SnapshotMeta, batch: Batch) -> None:
        state = drillpb.PdState.FromString(self._incoming_state[meta.index, meta.term])
        self.cluster = Cluster.from_message(state)
        self._keep(meta, state, batch)
        self._log.info("installed a snapshot of another member", index=meta.index, term=meta.term)
        self.on_apply()

    def _keep(self, meta: SnapshotMeta, state: drillpb.PdState, batch: Batch) -> None:
        self._snapshot = meta
        record = drillpb.PdSnapshot(meta=raft_codec.pack_meta(meta), state=state)
        batch.put(SNAPSHOT_KEY, record.SerializeToString())

    def _compact(self) -> None:
        """Now and then writes the state down and forgets the log that led to it.

        The state is written before the log is cut, and both in one batch: a crash leaves both or neither.
        """
        if self._raft.applied - self._snapshot.index < SNAPSHOT_EVERY:
            return
        batch = Batch()
        self._keep(self._raft.snapshot_meta(), self.cluster.to_message(), batch)
        upto = self._snapshot.index - LOG_KEPT
        if upto >= self._raft.first_index:
            self._raft_log.compact(batch, upto)
            self._raft.compact(upto)
        self._storage.write(batch)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _raise(error: Exception) -> None:
    raise error


def _fail(answer: asyncio.Future[Outcome] | asyncio.Future[None], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # seen, even if nobody waits any more
