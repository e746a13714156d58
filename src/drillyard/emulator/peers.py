"""Raft messages between members, over gRPC: one stream to each other member, and one more for each snapshot.

Rules
- `send` never waits. What cannot be sent soon is dropped, because Raft repeats itself and old messages help nobody:
  a queue that is full takes no more, and what waited too long for a connection is left out.
- A connection that is lost is made again, after a pause that doubles from 50 ms to 1 s and starts anew once a stream
  has lasted; a message from the other member ends the pause at once. The address is asked for each time: a member may
  come back elsewhere. With nobody to ask, the last known address is tried.
- Whoever a message is not for refuses it and ends the stream: another cluster's member, or another member at the
  address that once was ours. Both sides log it.
- A snapshot has a connection of its own, so that heartbeats need not wait behind it; it is read from its source no
  faster than the other side takes it. Its end is proven by the stream's: a stream that breaks off never looks whole.
  One whose sender falls silent is broken off here, or a sender that is stopped would keep every other one out.

What it does not do: it reads no Raft message, and it tells Raft nothing but that a member cannot be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from google.protobuf.message import DecodeError
from msgspec import Struct

from drillyard.emulator.logs import Log
from drillyard.wire import drillpb
from drillyard.wire.rpc import Channel, ClientStream, Handlers, RpcError, ServerStream, Status
from drillyard.wire.services import PEER

Resolve = Callable[[int], Awaitable[str | None]]  # member -> host:port; None or RpcError if it cannot be known now
Deliver = Callable[[drillpb.Envelope], None]
TakeSnapshot = Callable[[drillpb.Envelope, AsyncIterator[bytes]], Awaitable[None]]
OutStream = ClientStream[drillpb.Envelopes, drillpb.DeliverResponse]
InStream = ServerStream[drillpb.Envelopes, drillpb.DeliverResponse]
InSnapshot = ServerStream[drillpb.SnapshotChunk, drillpb.SnapshotResponse]

_MIB = 1 << 20


class TransportOptions(Struct, frozen=True):
    queue_bytes: int = 32 * _MIB  # to one member
    queue_envelopes: int = 8192
    batch_bytes: int = _MIB  # of one send; a single larger envelope still goes
    batch_envelopes: int = 128
    chunk_bytes: int = _MIB  # of a snapshot
    snapshots: int = 2  # at once, in either direction
    shortest_pause_s: float = 0.05
    longest_pause_s: float = 1.0
    stale_s: float = 1.0  # how long an envelope may wait for a connection
    connect_s: float = 2.0  # for finding an address, and for connecting to it
    keepalive_s: float = 2.0
    silence_s: float = 10.0  # how long the sender of a snapshot may say nothing


class Transport:
    """Sends to the other members, and serves what they send. `me` is known once the member knows who it is."""

    def __init__(
        self,
        resolve: Resolve,
        on_unreachable: Callable[[int], None],
        log: Log,
        options: TransportOptions = TransportOptions(),
    ) -> None:
        self.dropped = 0  # envelopes
        self._resolve = resolve
        self._on_unreachable = on_unreachable
        self._log = log
        self._options = options
        self._cluster_id = 0
        self._member_id = 0
        self._routes: dict[int, _Route] = {}
        self._addresses: dict[int, str] = {}
        self._sending = asyncio.Semaphore(options.snapshots)
        self._receiving = 0
        self._closed = False

    def identify(self, cluster_id: int, member_id: int) -> None:
        """Who this member is: the `store_id` of the peers here, in this cluster. Until then nothing is taken in."""
        self._cluster_id = cluster_id
        self._member_id = member_id

    # Sending

    def send(self, target: int, envelope: drillpb.Envelope) -> None:
        """Queues the envelope for the member, or drops it."""
        if self._closed:
            return
        route = self._routes.get(target)
        if route is None:
            route = self._routes[target] = _Route(self, target)
        if not route.put(envelope.SerializeToString()):
            self.dropped += 1

    def forget(self, target: int) -> None:
        """Ends the stream to a member that is no more."""
        route = self._routes.pop(target, None)
        self._addresses.pop(target, None)
        if route is not None:
            route.close()

    async def send_snapshot(self, target: int, envelope: drillpb.Envelope, chunks: AsyncIterator[bytes]) -> None:
        """Returns when the other side has taken all in; raises RpcError otherwise. Cancelling it breaks it off.

        A generator of chunks is closed in every case.
        """
        try:
            async with self._sending:
                channel = await self.connect(target)
                try:
                    await self._send_chunks(channel, envelope, chunks)
                finally:
                    channel.close()
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    async def _send_chunks(self, channel: Channel, envelope: drillpb.Envelope, chunks: AsyncIterator[bytes]) -> None:
        size = self._options.chunk_bytes
        async with channel.open(PEER.Snapshot) as stream:
            await stream.send(drillpb.SnapshotChunk(envelope=envelope))
            async for data in chunks:
                for start in range(0, len(data), size):
                    await stream.send(drillpb.SnapshotChunk(data=data[start : start + size]))
            await stream.end()
            if await stream.recv() is None:
                raise RpcError(Status.INTERNAL, f"{channel.address} ended a snapshot without an answer")

    async def connect(self, target: int) -> Channel:
        """A connected channel to where the member is now."""
        address = await self._address(target)
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise RpcError(Status.UNAVAILABLE, f"the address of member {target} is no host:port: {address!r}")
        channel = Channel(host.strip("[]"), int(port), keepalive_s=self._options.keepalive_s)
        try:
            async with asyncio.timeout(self._options.connect_s):
                await channel.connected()
        except TimeoutError:
            channel.close()
            raise RpcError(Status.UNAVAILABLE, f"{address} takes no connection") from None
        except BaseException:
            channel.close()
            raise
        return channel

    async def close(self) -> None:
        self._closed = True
        routes = tuple(self._routes.values())
        for route in routes:
            route.close()
        await asyncio.gather(*(route.task for route in routes), return_exceptions=True)

    async def _address(self, target: int) -> str:
        address = None
        with contextlib.suppress(TimeoutError, RpcError):  # whoever knows addresses may itself be away
            async with asyncio.timeout(self._options.connect_s):
                address = await self._resolve(target)
        if address is None:
            address = self._addresses.get(target)
        if address is None:
            raise RpcError(Status.UNAVAILABLE, f"nobody knows the address of member {target}")
        self._addresses[target] = address
        return address

    # Receiving

    def handlers(self, deliver: Deliver, snapshot: TakeSnapshot) -> Handlers:
        """What to serve.

        `deliver` gets each envelope for this member. `snapshot` gets the envelope and the data of one snapshot, and
        returns when it has taken it in; if the stream breaks off it is cancelled or the data raises RpcError.
        """

        async def take_envelopes(stream: InStream) -> None:
            stream.greet()
            known = 0
            async for batch in stream:
                for packed in batch.envelopes:
                    envelope = _unpack(packed)
                    self._refuse_strangers(envelope)
                    if envelope.from_peer.store_id != known:
                        known = envelope.from_peer.store_id
                        self.hurry(known)
                    deliver(envelope)
                await asyncio.sleep(0)  # what has already arrived must not keep the loop from all else

        async def take_snapshot(stream: InSnapshot) -> None:
            first = await stream.recv()
            if first is None or not first.HasField("envelope"):
                raise RpcError(Status.INVALID_ARGUMENT, "a snapshot begins with its envelope")
            self._refuse_strangers(first.envelope)
            if self._receiving >= self._options.snapshots:
                raise RpcError(Status.RESOURCE_EXHAUSTED, f"{self._receiving} snapshots are already being received")
            self._receiving += 1
            try:
                await snapshot(first.envelope, _data_of(stream, self._options.silence_s))
            finally:
                self._receiving -= 1
            await stream.send(drillpb.SnapshotResponse())

        return {PEER.Deliver: take_envelopes, PEER.Snapshot: take_snapshot}

    def _refuse_strangers(self, envelope: drillpb.Envelope) -> None:
        if self._member_id == 0:
            raise RpcError(Status.UNAVAILABLE, "this member does not know yet who it is")
        if envelope.cluster_id == self._cluster_id and envelope.to_peer.store_id == self._member_id:
            return
        reason = (
            f"this is member {self._member_id} of cluster {self._cluster_id}, not member {envelope.to_peer.store_id} "
            f"of cluster {envelope.cluster_id}"
        )
        self._log.warn("refused raft messages", reason=reason, sender=envelope.from_peer.store_id)
        raise RpcError(Status.FAILED_PRECONDITION, reason)

    def hurry(self, member: int) -> None:
        """The member has given a sign of life: a connection to it need not be waited for."""
        route = self._routes.get(member)
        if route is not None:
            route.hurry()

    # What a route needs

    @property
    def options(self) -> TransportOptions:
        return self._options

    @property
    def log(self) -> Log:
        return self._log

    def report_unreachable(self, target: int) -> None:
        if not self._closed:
            self._on_unreachable(target)


class _Route:
    """The queue and the stream to one member."""

    def __init__(self, transport: Transport, target: int) -> None:
        self._transport = transport
        self._options = transport.options
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, float]] = deque()  # packed envelope, when it came
        self._queued_bytes = 0
        self._is_overflowing = False
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._trouble = ""  # the last one that was logged
        self.task = self._loop.create_task(self._run())
        self.task.add_done_callback(self._raise_alarm)

    def put(self, packed: bytes) -> bool:
        options = self._options
        if self._queued_bytes + len(packed) > options.queue_bytes or len(self._queue) >= options.queue_envelopes:
            if not self._is_overflowing:
                self._is_overflowing = True
                # Not from within: Raft is in the middle of its own messages.
                self._loop.call_soon(self._transport.report_unreachable, self._target)
            return False
        self._queue.append((packed, self._loop.time()))
        self._queued_bytes += len(packed)
        self._wake.set()
        return True

    def hurry(self) -> None:
        self._hurry.set()

    def close(self) -> None:
        self.task.cancel()

    async def _run(self) -> None:
        options = self._options
        pause_s = options.shortest_pause_s
        while True:
            await self._wake.wait()
            began = self._loop.time()
            self._hurry.clear()  # a sign of life that comes during an attempt counts: that one may have been too early
            try:
                await self._stream()
            except RpcError as error:
                self._note_trouble(error)
            self._transport.report_unreachable(self._target)
            if self._loop.time() - began > options.longest_pause_s:
                pause_s = options.shortest_pause_s  # it had lasted
                self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._hurry.wait()
            pause_s = min(2 * pause_s, options.longest_pause_s)
            self._drop_stale()

    async def _stream(self) -> None:
        """One stream, from its connection to its end, which is always a failure."""
        channel = await self._transport.connect(self._target)
        try:
            async with channel.open(PEER.Deliver) as stream:
                # The server says nothing until it ends the stream.
                ending = self._loop.create_task(stream.recv())
                ending.add_done_callback(lambda _: self._wake.set())
                try:
                    await self._pump(stream, ending)
                finally:
                    ending.cancel()
                    await asyncio.gather(ending, return_exceptions=True)
        finally:
            channel.close()

    async def _pump(self, stream: OutStream, ending: asyncio.Task[drillpb.DeliverResponse | None]) -> None:
        is_noted = False
        while True:
            await self._wake.wait()
            if ending.done():
                ending.result()
                raise RpcError(Status.UNAVAILABLE, "the other side ended the stream")
            self._wake.clear()
            while self._queue and not ending.done():
                await stream.send(drillpb.Envelopes(envelopes=self._take()))
                if not is_noted:
                    is_noted = True
                    self._note_connected()

    def _take(self) -> list[bytes]:
        taken: list[bytes] = []
        room = self._options.batch_bytes
        while self._queue and len(taken) < self._options.batch_envelopes:
            size = len(self._queue[0][0])
            if taken and size > room:
                break
            room -= size
            taken.append(self._queue.popleft()[0])
            self._queued_bytes -= size
        self._is_overflowing = False
        return taken

    def _drop_stale(self) -> None:
        oldest = self._loop.time() - self._options.stale_s
        while self._queue and self._queue[0][1] < oldest:
            self._queued_bytes -= len(self._queue.popleft()[0])
            self._transport.dropped += 1
        self._is_overflowing = False
        if self._queue:
            self._wake.set()
        else:
            self._wake.clear()

    def _raise_alarm(self, task: asyncio.Task[None]) -> None:
        """A resolver that breaks its promise must not end in a member that is silent to one other."""
        if not task.cancelled() and (error := task.exception()) is not None:
            message = f"the raft stream to member {self._target} is given up"
            self._loop.call_exception_handler({"message": message, "exception": error, "task": task})

    def _note_trouble(self, error: RpcError) -> None:
        """Once for each different trouble, not once for each attempt."""
        text = str(error)
        if text != self._trouble:
            self._trouble = text
            self._transport.log.warn("no raft stream to a member", member=self._target, error=text)

    def _note_connected(self) -> None:
        if self._trouble:
            self._trouble = ""
            self._transport.log.info("raft stream to a member is back", member=self._target)


def _unpack(packed: bytes) -> drillpb.Envelope:
    try:
        return drillpb.Envelope.FromString(packed)
    except DecodeError as error:
        raise RpcError(Status.INVALID_ARGUMENT, f"{len(packed)} bytes that are no envelope") from error


async def _data_of(stream: InSnapshot, silence_s: float) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(silence_s):
                chunk = await stream.recv()
        except TimeoutError:
            raise RpcError(Status.ABORTED, f"nothing more of the snapshot came within {silence_s} s") from None
        if chunk is None:
            return
        yield chunk.data
