"""Carries out what the pure store asks for: disk, peers, snapshots and answers.

Rules:
- One turn takes each region's `ready`, writes its log, its record and the users' pairs in one batch, sends what may go
  at once, and answers tickets. What promises something to a peer goes out when the storage says that it is durable.
- The writes of a turn are visible to reads when the ticket is answered; a ticket reads at once or takes a view.
- Nothing here takes longer than a few milliseconds at a time: a long tail of entries is applied over several turns of
  the loop, snapshots are made and installed in parts.
- A failure of the storage, or a broken promise of the group, ends the member; nothing goes on after it.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left, insort
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import cast

from msgspec import Struct

from drillyard.emulator import raft_codec
from drillyard.emulator.logs import Log
from drillyard.emulator.peers import Transport
from drillyard.emulator.raft.types import ProtocolBroken, Ready, Restored, SnapshotMeta
from drillyard.emulator.storage import Batch, RaftLog, Storage, StorageFailed, View
from drillyard.emulator.store.commands import Proposal
from drillyard.emulator.store.errors import DiskFull, RegionError
from drillyard.emulator.store.region import Region, configuration_of
from drillyard.emulator.store.replica import (
    FIRST_STATE,
    Answer,
    Context,
    Envelope,
    Made,
    Merging,
    Outcome,
    RegionReady,
    Settings,
)
from drillyard.emulator.store.state import Family, Pair, Span
from drillyard.emulator.store.store import RestoredReplica, Step, Store, StoreReady, Verdict, beginning
from drillyard.emulator.tikv.records import (
    ARRIVING_PREFIX,
    FOUNDED_KEY,
    INSTALLING,
    NORMAL,
    REPLICA_PREFIX,
    TOMBSTONE,
    applied_key,
    arriving_range,
    data_place,
    data_range,
    key_at,
    merging_in,
    pack_envelope,
    pack_pulse,
    pack_region,
    pack_replica,
    region_in,
    replica_key,
    spans_of,
    unpack_envelope,
    unpack_pulse,
    unpack_region,
)
from drillyard.emulator.tikv.snapshots import Snapshots, move_into_place, parts_of
from drillyard.wire import drillpb, metapb
from drillyard.wire.rpc import RpcError, Status

Ticket = Callable[[Outcome], None]

TURN_S = 0.004
SNAPSHOTS_IN_LINE = 16  # to be sent; each holds a view, which keeps files from being removed
RECORDS_AT_ONCE = 64  # read at the start
KEPT_REFUSALS = 64
APPEND_FLOOR_BYTES = 16 << 20  # with less free space a follower takes no more entries, so as not to break its storage


class Identity(Struct, frozen=True):
    cluster_id: int
    store_id: int


class _Pairs:
    """The users' pairs as the pure store sees them: the storage, under the writes of the batch that is being made."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._fresh: dict[bytes, bytes | None] = {}
        self._order: list[bytes] = []  # the places of `_fresh`, sorted
        self._deleted: list[tuple[bytes, bytes]] = []
        self._batch = Batch()
        self._view: View | None = None

    def get(self, key: bytes, family: Family = Family.DEFAULT) -> bytes | None:
        place = data_place(key, family)
        if place in self._fresh:
            return self._fresh[place]
        return None if self._is_deleted(place) else self._storage.get(place)

    def scan(self, span: Span, limit: int, reverse: bool = False) -> list[Pair]:
        low, high = data_range(span)
        found: list[Pair] = []
        while len(found) < limit:
            wanted = limit - len(found)
            stored = self._view_of_storage().scan(low, high, wanted, reverse=reverse)
            # What was read reaches from here to there; the fresh pairs that lie between belong into it.
            is_last = len(stored) < wanted
            edge = None if is_last else stored[-1][0]
            reach = (edge or low, high) if reverse else (low, high if edge is None else edge + b"\0")
            found += self._overlaid(stored, reach, reverse)
            if is_last:
                break
            low, high = (low, reach[0]) if reverse else (reach[1], high)
        return [(key_at(place), value) for place, value in found[:limit]]

    def _view_of_storage(self) -> View:
        """One for all scans of a batch: making one costs more than a short scan. Nothing is written meanwhile."""
        if self._view is None:
            self._view = self._storage.view()
        return self._view

    def _overlaid(self, stored: list[Pair], reach: tuple[bytes, bytes], reverse: bool) -> list[Pair]:
        first, last = bisect_left(self._order, reach[0]), bisect_left(self._order, reach[1])
        fresh = self._order[first:last]
        if not fresh and not self._deleted:
            return stored
        merged: dict[bytes, bytes | None] = {
            place: value for place, value in stored if not self._deleted or not self._is_deleted(place)
        }
        merged |= {place: self._fresh[place] for place in fresh}
        ordered = sorted(merged, reverse=reverse) if fresh else merged
        return [(place, value) for place in ordered if (value := merged[place]) is not None]

    def _is_deleted(self, place: bytes) -> bool:
        return any(start <= place < end for start, end in self._deleted)

    def put(self, key: bytes, value: bytes, family: Family = Family.DEFAULT) -> None:
        place = data_place(key, family)
        self._batch.put(place, value)
        self._remember(place, value)

    def delete(self, key: bytes, family: Family = Family.DEFAULT) -> None:
        place = data_place(key, family)
        self._batch.delete(place)
        self._remember(place, None)

    def _remember(self, place: bytes, value: bytes | None) -> None:
        if place not in self._fresh:
            insort(self._order, place)
        self._fresh[place] = value

    def delete_range(self, span: Span) -> None:
        low, high = data_range(span)
        self._batch.delete_range(low, high)
        self._deleted.append((low, high))
        for place in self._order[bisect_left(self._order, low) : bisect_left(self._order, high)]:
            self._fresh[place] = None

    def take(self) -> Batch:
        """The writes so far; the next ones go into a new batch, on top of a storage that holds these."""
        batch, self._batch = self._batch, Batch()
        if self._view is not None:
            self._view.close()
            self._view = None
        self._fresh.clear()
        self._order.clear()
        self._deleted.clear()
        return batch


class Engine:
    def __init__(
        self, identity: Identity, storage: Storage, transport: Transport, settings: Settings, log: Log
    ) -> None:
        self.identity = identity
        self.storage = storage
        self.on_reports_due: Callable[[set[int]], None] = lambda due: None
        self.on_split: Callable[[tuple[Region, ...], bool], None] = lambda regions, leads: None
        self.on_snapshot: Callable[[str, str, int], None] = lambda kind, status, size: None
        self.on_broken: Callable[[Exception], None] = lambda error: None
        self.on_tick: Callable[[float], None] = lambda late_s: None
        self._log = log
        self._transport = transport
        self._settings = settings
        self._pairs = _Pairs(storage)
        self._logs: dict[int, RaftLog] = {}
        self._is_woken = False
        self._is_stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._installing: dict[int, asyncio.Task[None]] = {}
        self._sending = 0
        self._refused: dict[int, str] = {}  # why a peer took no snapshot the last time, the latest last
        self._records = raft_codec.EntryRecords()
        self._loop = asyncio.get_running_loop()
        self._snapshots = Snapshots(storage)
        self.store: Store

    # ---- start ----

    async def load(self, chance: Callable[[int], int]) -> None:
        """Takes up everything that is on disk."""
        tombstones: dict[int, int] = {}
        living: list[tuple[Region, int, Merging | None]] = []
        async for record in self._replica_records():
            region = region_in(record)
            if record.state == TOMBSTONE:
                tombstones[region.id] = record.peer_id
                continue
            if record.state == INSTALLING:
                await self._install(region, record.peer_id)
            living.append((region, record.peer_id, merging_in(record)))
        leftover = Batch()
        leftover.delete_range(ARRIVING_PREFIX, _after(ARRIVING_PREFIX))
        self.storage.write(leftover)
        self.store = Store(self.identity.store_id, self._settings, chance, tombstones)
        for region, peer_id, merging in living:
            await asyncio.sleep(0)
            loaded = self._raft_log(region.id).load()
            restored = Restored(
                configuration_of(region),
                loaded.hard_state,
                loaded.snapshot_index,
                loaded.snapshot_term,
                loaded.entries,
                self._applied(region.id),
            )
            self.store.restore(RestoredReplica(region, peer_id, restored, merging))
        self.wake()

    async def _replica_records(self) -> AsyncIterator[drillpb.ReplicaRecord]:
        """All replicas' records, a few at a time."""
        cursor, end = REPLICA_PREFIX, _after(REPLICA_PREFIX)
        while found := self.storage.scan(cursor, end, RECORDS_AT_ONCE):
            for _, packed in found:
                yield drillpb.ReplicaRecord.FromString(packed)
            cursor = found[-1][0] + b"\0"
            await asyncio.sleep(0)

    async def found(self, region: Region) -> None:
        """Writes the first region down, durably, before PD is told of it."""
        batch = Batch()
        mine = region.peer_on(self.identity.store_id)
        assert mine is not None
        self._begin(batch, Made(region, mine.id, FIRST_STATE))
        batch.put(FOUNDED_KEY, pack_region(region).SerializeToString())
        self.storage.write(batch)
        await self.storage.durable()

    def _begin(self, batch: Batch, made: Made) -> None:
        """The records of a region that begins on this store."""
        region = made.region
        start = beginning(region, made.state)
        meta = SnapshotMeta(start.snapshot_index, start.snapshot_term, start.configuration)
        self._raft_log(region.id).stage(batch, Ready(0, hard_state=start.hard_state, snapshot=meta))
        batch.put(replica_key(region.id), pack_replica(region, made.peer_id, NORMAL))
        self._put_applied(batch, region.id, start.applied)

    def founded(self) -> Region | None:
        """The first region that was written down and of which it is not yet known whether PD took it."""
        packed = self.storage.get(FOUNDED_KEY)
        return unpack_region(metapb.Region.FromString(packed)) if packed is not None else None

    async def settle(self, region: Region, taken: bool) -> None:
        """PD has taken the founded region, or has another one: then ours is dropped. It was never served."""
        batch = Batch()
        batch.delete(FOUNDED_KEY)
        if not taken:
            self._raft_log(region.id).destroy(batch)
            del self._logs[region.id]
            batch.delete(replica_key(region.id))
            batch.delete(applied_key(region.id))
        self.storage.write(batch)
        await self.storage.durable()

    def _applied(self, region_id: int) -> int:
        packed = self.storage.get(applied_key(region_id))
        return drillpb.AppliedRecord.FromString(packed).index if packed is not None else 0

    # ---- requests and steps ----

    def write(self, ticket: Ticket, context: Context, command: Proposal) -> RegionError | None:
        """None: the ticket is called later. An error: nothing was proposed."""
        if self.storage.is_almost_full():
            return DiskFull(self.identity.store_id, f"{self.storage.available >> 20} MiB are left on the disk")
        error = self.store.write(ticket, context, command)
        self.wake()
        return error

    def read(self, ticket: Ticket, context: Context) -> RegionError | None:
        error = self.store.read(ticket, context)
        self.wake()
        return error

    def obey(self, step: Step) -> str:
        reason = self.store.obey(step)
        self.wake()
        return reason

    def reconfigure(self, settings: Settings) -> None:
        """Other timings and limits, from the next tick on."""
        self._settings = settings
        self.store.reconfigure(settings)

    def validate(self, region_id: int, peer_id: int, known: Mapping[int, Region], covering: Region | None) -> Verdict:
        verdict = self.store.validate(region_id, peer_id, known, covering)
        self.wake()
        return verdict

    def snapshot_counts(self) -> tuple[int, int, int]:
        """Being sent, received and installed."""
        return self._sending, self._snapshots.count, len(self._installing)

    # ---- running ----

    async def tick_forever(self) -> None:
        """A member that was paused goes on where it was: missed ticks are not made up for.

        While all regions here sleep, those between two heartbeats come together: nothing is due but the pulses.
        """
        ticks, due = 1, self._loop.time() + self._settings.tick_ms / 1000
        while True:
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            self.on_tick(self._loop.time() - due)
            for _ in range(ticks):
                self._guard(self.store.tick)
            ticks = 1 if self.store.awake else self._settings.raft.heartbeat_ticks
            due = max(due + ticks * self._settings.tick_ms / 1000, self._loop.time())

    def wake(self) -> None:
        """Some replica has something to do; it is done in the loop's next turn, together with what else comes up."""
        if not self._is_woken and not self._is_stopped:
            self._is_woken = True
            self._loop.call_soon(self._turn)

    def stop(self) -> None:
        self._is_stopped = True
        for task in self._tasks:
            task.cancel()

    def deliver(self, packed: drillpb.Envelope) -> None:
        """A message from another store."""
        if packed.HasField("pulse"):
            self._guard(lambda: self.store.hear(unpack_pulse(packed)))
            return
        if packed.message.entries and self.storage.available < APPEND_FLOOR_BYTES:
            return
        try:
            envelope = unpack_envelope(packed, decode=self._records.decode)
        except raft_codec.MalformedRecord as error:
            self._records.clear()
            self._log.warn("malformed message from a peer is ignored", err=error)
            return
        self._guard(lambda: self._step(envelope))

    async def receive_snapshot(self, packed: drillpb.Envelope, chunks: AsyncIterator[bytes]) -> None:
        """A snapshot from another store; returns when the replica has taken it up or refused it."""
        region_id = packed.region_id
        if region_id in self._installing or self.store.has_to_take_up(region_id):
            raise RpcError(Status.ABORTED, f"a snapshot of region {region_id} is being installed")
        if self.storage.is_almost_full():
            raise RpcError(Status.RESOURCE_EXHAUSTED, "the disk is almost full")
        region = await self._snapshots.receive(region_id, chunks)
        try:
            envelope = unpack_envelope(packed, region)
            if not _brings(envelope, region):
                raise raft_codec.MalformedRecord("the message does not bring the snapshot that came with it")
        except raft_codec.MalformedRecord as error:
            self._snapshots.drop(region_id)
            raise RpcError(Status.INVALID_ARGUMENT, str(error)) from error
        self._guard(lambda: self._step(envelope))
        self._turn()
        # A turn that has too much to do ends before it comes to this region; one of the next does.
        while self.store.has_to_take_up(region_id) and not self._is_stopped:  # noqa: ASYNC110
            await asyncio.sleep(0)
        if region_id not in self._installing:
            self._snapshots.drop(region_id)  # the replica had no use for it

    def unreachable(self, store_id: int) -> None:
        self._guard(lambda: self.store.report_unreachable(store_id))

    def _step(self, envelope: Envelope) -> None:
        for answer in self.store.step(envelope):
            self._transport.send(answer.to.store_id, pack_envelope(answer, self.identity.cluster_id))

    def _guard(self, call: Callable[[], object]) -> None:
        """Runs one call into the store; what it cannot survive ends the member."""
        if self._is_stopped:
            return
        try:
            call()
        except (ProtocolBroken, StorageFailed, AssertionError, ValueError) as error:
            self._break(error)
            return
        if self.store.has_output:
            self.wake()

    def _break(self, error: Exception) -> None:
        self.stop()
        self.on_broken(error)

    # ---- one turn ----

    def _turn(self) -> None:
        self._is_woken = False
        if self._is_stopped:
            return
        until = self._loop.time() + TURN_S
        try:
            for said in self.store.ready(self._pairs):
                self._carry_out(said)
                if self._loop.time() >= until:  # many regions at once: others want the loop, too
                    break
        except (ProtocolBroken, StorageFailed, AssertionError, ValueError) as error:
            self._break(error)
            return
        self._records.clear()
        for pulse in self.store.take_pulses():
            self._transport.send(pulse.to, pack_pulse(pulse, self.identity.cluster_id))
        due = self.store.reports_due()
        if due:
            self.on_reports_due(due)
        if self.store.has_ready:
            self.wake()

    def _carry_out(self, said: StoreReady) -> None:
        work = said.work
        self._write(work)
        for envelope in work.messages:
            self._send(envelope)
        for envelope in work.snapshots:
            self._queue_snapshot(envelope)
        if work.install:
            self._begin_install(work)
        elif work.ready is not None and work.ready.waits_for_disk:
            self.storage.when_durable(lambda: self._persisted(work))
        if work.made:
            replica = self.store.replicas.get(work.region.id)
            leads = replica is not None and replica.is_leader
            self.on_split((*(made.region for made in work.made), work.region), leads)
        for note in said.notes:
            self._log.info(note)
        self._answer(said.answers)

    def _write(self, work: RegionReady) -> None:
        """One batch: all of it, or nothing, survives a power cut."""
        batch = self._pairs.take()
        region_id = work.region.id
        if work.destroyed:
            self._erase(batch, work)
        else:
            log = self._raft_log(region_id)
            if work.ready is not None:
                log.stage(batch, work.ready, self._records.encode)
            if work.compact_to:
                log.compact(batch, work.compact_to)
            if work.has_record:
                state = INSTALLING if work.install else NORMAL
                batch.put(replica_key(region_id), pack_replica(work.region, work.peer_id, state, work.merging))
            if work.applied:
                self._put_applied(batch, region_id, work.applied)
        for made in work.made:  # also by a replica that applied its own removal right after the split
            self._begin(batch, made)
        for source, peer_id in work.merged:
            self._bury(batch, source, peer_id)
        if len(batch):
            self.storage.write(batch, lazily=work.is_lazy)

    def _erase(self, batch: Batch, work: RegionReady) -> None:
        if work.region.is_initialized:
            for span in spans_of(work.region):
                batch.delete_range(*data_range(span))
        self._bury(batch, work.region, work.peer_id)

    def _bury(self, batch: Batch, region: Region, peer_id: int) -> None:
        """All of a replica but its data."""
        self._raft_log(region.id).destroy(batch)
        del self._logs[region.id]
        batch.delete(applied_key(region.id))
        batch.put(replica_key(region.id), pack_replica(region, peer_id, TOMBSTONE))

    def _persisted(self, work: RegionReady) -> None:
        assert work.ready is not None
        number = work.ready.number
        for envelope in work.deferred:
            self._send(envelope)
        self._guard(lambda: self.store.persisted(work.region.id, work.peer_id, number))

    def _answer(self, answers: tuple[Answer, ...]) -> None:
        for ticket, outcome in answers:
            cast(Ticket, ticket)(outcome)

    def _send(self, envelope: Envelope) -> None:
        packed = pack_envelope(envelope, self.identity.cluster_id, self._records.encode)
        self._transport.send(envelope.to.store_id, packed)

    # ---- snapshots ----

    def _queue_snapshot(self, envelope: Envelope) -> None:
        """Raft asks again for what is not taken into the line."""
        if self._sending >= SNAPSHOTS_IN_LINE:
            region_id, peer_id = envelope.region_id, envelope.to.id
            self._loop.call_soon(lambda: self._guard(lambda: self.store.report_snapshot(region_id, peer_id, ok=False)))
            return
        self._sending += 1
        self._keep(self._send_snapshot(envelope, self.storage.view()))

    async def _send_snapshot(self, envelope: Envelope, view: View) -> None:
        assert envelope.region is not None
        region_id, peer = envelope.region_id, envelope.to
        packed = pack_envelope(envelope, self.identity.cluster_id)
        size, ok = 0, False

        async def parts(region: Region) -> AsyncIterator[bytes]:
            nonlocal size
            async with contextlib.aclosing(parts_of(region, view)) as walk:
                async for part in walk:
                    size += len(part)
                    yield part

        try:
            await self._transport.send_snapshot(peer.store_id, packed, parts(envelope.region))
            ok = True
            self._refused.pop(peer.id, None)
            self._log.info("snapshot sent", region_id=region_id, to_peer_id=peer.id)
        except RpcError as error:
            if self._refused.get(peer.id) != str(error):  # Raft tries again soon: one line for each reason
                self._refused.pop(peer.id, None)
                self._refused[peer.id] = str(error)
                if len(self._refused) > KEPT_REFUSALS:  # a forgotten one costs a line of the log
                    del self._refused[next(iter(self._refused))]
                self._log.warn("failed to send snapshot", region_id=region_id, to_peer_id=peer.id, err=error)
        finally:
            self._sending -= 1
            view.close()
        self.on_snapshot("generate", "success" if ok else "fail", size)
        self._guard(lambda: self.store.report_snapshot(region_id, peer.id, ok))

    def _begin_install(self, work: RegionReady) -> None:
        async def install() -> None:
            assert work.ready is not None
            try:
                await self.storage.durable()
                await self._install(work.region, work.peer_id)
            except StorageFailed as error:
                self._break(error)
                return
            del self._installing[work.region.id]
            number = work.ready.number
            for envelope in work.deferred:
                self._send(envelope)
            self.on_snapshot("apply", "success", 0)
            self._log.info("snapshot installed", region_id=work.region.id, index=work.applied)
            self._guard(lambda: self.store.installed(work.region.id, work.peer_id, number))

        self._installing[work.region.id] = self._keep(install())

    async def _install(self, region: Region, peer_id: int) -> None:
        """Moves what has arrived into place. It can be begun again: the record says so until all of it is there."""
        await move_into_place(self.storage, region)
        batch = Batch()
        batch.delete_range(*arriving_range(region.id))
        batch.put(replica_key(region.id), pack_replica(region, peer_id, NORMAL))
        self.storage.write(batch)
        await self.storage.durable()

    # ---- pieces ----

    def _keep(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _raft_log(self, region_id: int) -> RaftLog:
        log = self._logs.get(region_id)
        if log is None:
            log = self._logs[region_id] = RaftLog(self.storage, region_id)
        return log

    @staticmethod
    def _put_applied(batch: Batch, region_id: int, index: int) -> None:
        batch.put(applied_key(region_id), drillpb.AppliedRecord(index=index).SerializeToString())


def _brings(envelope: Envelope, region: Region) -> bool:
    """Whether the message says where the snapshot of the region stands, and agrees with it on who votes."""
    snapshot = envelope.message.snapshot if envelope.message is not None else None
    return snapshot is not None and snapshot.configuration == configuration_of(region)


def _after(prefix: bytes) -> bytes:
    """The first key behind all that begin with the prefix."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
