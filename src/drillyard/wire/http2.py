"""One HTTP/2 connection, of either side, and its streams: the only file that knows h2.

Rules
- What was queued in one turn of the loop goes out together in the next: a call to the kernel is dearer than a frame.
  More than `FLUSH_BYTES` do not wait, so that whoever writes meets the transport's limit.
- What arrived is given back to the other side's window late, because it is dear, but never so late that a stream or the
  connection stands still for it.
- A stream is closed when both sides have ended it, when either has reset it, or with its connection. Writing to it then
  raises `StreamClosed`; whoever waits on it is woken. `on_reset` is called when it was not for its own end.
- What breaks HTTP/2 ends the connection, and that alone.

What it does not do: it knows no gRPC. No priorities, no push, no metadata beyond the headers as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error, TooManyStreamsError
from h2.settings import SettingCodes, Settings

__all__ = ["ErrorCodes", "Headers", "Stream", "StreamClosed", "Wire"]

MAX_STREAMS = 4096  # that one connection may have open
FRAME = 512 << 10
STREAM_WINDOW = 8 << 20
CONNECTION_WINDOW = 32 << 20
ACKNOWLEDGE = 1 << 20  # bytes taken from a stream before its window is refilled
WRITE_BUFFER = 1 << 20  # unsent bytes of a connection after which its senders wait
FLUSH_BYTES = 64 << 10  # queued bytes that do not wait for the end of the loop's turn
_DEFAULT_WINDOW = 65535

Headers = list[tuple[str, str]]


class StreamClosed(Exception):
    """Nothing can be written any more; says why."""


class Stream:
    """The bytes and headers of one stream, both ways."""

    __slots__ = (
        "_is_closed",
        "_is_ended_here",
        "_sending",
        "_unacknowledged",
        "_waiter",
        "_window_waiter",
        "ended",
        "failure",
        "headers",
        "id",
        "on_reset",
        "received",
        "trailers",
        "wire",
    )

    def __init__(self, wire: Wire, stream_id: int) -> None:
        self.wire = wire
        self.id = stream_id
        self.headers: Headers | None = None
        self.trailers: Headers | None = None
        self.received = bytearray()  # and not taken yet
        self.ended = False  # by the other side
        self.failure: str | None = None  # why no more will arrive, though the other side has not ended
        self.on_reset: Callable[[], object] | None = None
        self._is_ended_here = False
        self._is_closed = False
        self._unacknowledged = 0  # bytes that came and were not given back to the window, taken or not
        self._waiter: asyncio.Future[None] | None = None
        self._window_waiter: asyncio.Future[None] | None = None
        self._sending = asyncio.Lock()  # one message's frames stay together

    @property
    def open(self) -> bool:
        return not self._is_closed and self.wire.alive

    # ---- what arrives ----

    async def arrival(self) -> None:
        """Waits for more bytes, the end, or a failure."""
        if self.received:  # the rest of what is being waited for may need the whole window
            self.wire.acknowledge(self.id, self.unacknowledged())
        self._waiter = self.wire.loop.create_future()
        await self._waiter

    def take(self, size: int) -> None:
        """Drops the first bytes, which the caller has read."""
        del self.received[:size]
        if not self.received and self._unacknowledged >= (0 if self.wire.is_crowded else ACKNOWLEDGE):
            self.wire.acknowledge(self.id, self.unacknowledged())

    def unacknowledged(self) -> int:
        """Gives up the count: the caller gives the bytes back to the window."""
        size, self._unacknowledged = self._unacknowledged, 0
        return size

    def hear(self, data: bytes, size: int) -> None:
        self.received += data
        self._unacknowledged += size
        _wake(self._waiter)

    def hear_end(self) -> None:
        self.ended = True
        self._is_closed = self._is_closed or self._is_ended_here
        _wake(self._waiter)

    def fail(self, reason: str) -> None:
        """The stream is no more."""
        self._is_closed = True
        if not self.ended and self.failure is None:
            self.failure = reason
        _wake(self._waiter)
        _wake(self._window_waiter)

    def widen(self) -> None:
        _wake(self._window_waiter)

    # ---- what is sent ----

    async def write(self, data: bytes, *, end: bool = False) -> None:
        """Queues the bytes; waits while the other side's window or the transport is full."""
        async with self._sending:
            try:
                await self._write(data, end)
            except H2Error as error:
                raise StreamClosed(self.failure or f"the stream is closed: {error}") from error

    async def _write(self, data: bytes, end: bool) -> None:
        wire, h2, sent = self.wire, self.wire.h2, 0
        while True:
            if not wire.may_write.is_set():
                await wire.may_write.wait()
            if not self.open:
                raise StreamClosed(self.failure or "the stream is closed")
            window = h2.local_flow_control_window(self.id)
            if window <= 0:
                self._window_waiter = wire.loop.create_future()
                await self._window_waiter
                continue
            size = min(window, h2.max_outbound_frame_size, len(data) - sent)
            chunk = data if size == len(data) else data[sent : sent + size]
            sent += size
            h2.send_data(self.id, chunk, end_stream=end and sent == len(data))
            wire.queued(size)
            if sent == len(data):
                if end:
                    self._end_here()
                return

    def end(self) -> None:
        if self.open and not self._is_ended_here:
            self.wire.h2.end_stream(self.id)
            self._end_here()
            self.wire.queued(0)

    def send_headers(self, headers: Headers, *, end: bool = False) -> None:
        if self.open and not self._is_ended_here:
            self.wire.h2.send_headers(self.id, headers, end_stream=end)
            if end:
                self._end_here()
            self.wire.queued(0)

    def reset(self, code: ErrorCodes) -> None:
        if self.open:
            self.wire.h2.reset_stream(self.id, error_code=code)
            self._is_closed = True
            self.wire.queued(0)

    def _end_here(self) -> None:
        self._is_ended_here = True
        self._is_closed = self._is_closed or self.ended


class Wire(asyncio.Protocol):
    """One HTTP/2 connection, of either side. `accept` gets each stream that the other side opens; `on_lost` is called
    once the connection is gone."""

    transport: asyncio.Transport
    on_lost: Callable[[], None] | None = None

    def __init__(self, accept: Callable[[Stream], None] | None = None) -> None:
        """Without `accept` this is the client's side."""
        config = H2Configuration(
            client_side=accept is None,
            header_encoding="latin-1",  # never fails; what is no ASCII is refused where it is read
            validate_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_inbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = H2Connection(config=config)
        settings = {
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingCodes.MAX_FRAME_SIZE: FRAME,
            SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            SettingCodes.MAX_HEADER_LIST_SIZE: 64 << 10,
            SettingCodes.ENABLE_PUSH: 0,
        }
        self.h2.local_settings = Settings(client=accept is None, initial_values=settings)
        self.h2.max_inbound_frame_size = FRAME
        self.loop = asyncio.get_running_loop()
        self.may_write = asyncio.Event()  # the transport takes more
        self.may_write.set()
        self._accept = accept
        self._streams: dict[int, Stream] = {}
        self._freed = asyncio.Event()  # a stream of ours has ended
        self._beat: asyncio.TimerHandle | None = None
        self._is_heard = True  # since the last beat
        self._silent_beats = 0
        self._queued = 0  # bytes since the last flush
        self._is_flush_due = False
        self._unacknowledged = 0  # bytes of all streams that were not given back to the connection's window
        self._owed = 0  # those of them whose streams are gone
        self._without_event = 0  # bytes since the last HTTP/2 event

    # ---- the transport ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(CONNECTION_WINDOW - _DEFAULT_WINDOW)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._is_heard = True
        try:
            heard = self.h2.receive_data(data)
        except Exception as error:  # h2 and hpack meet garbage with more than their own exceptions
            self.drop(f"the other side broke HTTP/2: {error or type(error).__name__}")
            return
        self._without_event = 0 if heard else self._without_event + len(data)
        if self._without_event > 2 * FRAME:  # h2 believes a frame's length until all of it has come
            self.drop("the other side sends no frames")
            return
        for event in heard:
            hear = _HEARS.get(type(event))
            if hear is not None and self.alive:
                hear(self, event)
        self.flush()  # h2 answers settings and pings by itself

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self._fail_all(f"connection lost: {exc}" if exc else "connection lost")
        if self.on_lost is not None:
            self.on_lost()

    # ---- its life ----

    @property
    def alive(self) -> bool:
        return not self.transport.is_closing()

    def drop(self, reason: str) -> None:
        """Ends the connection; what h2 still wants to say (why) is sent first."""
        self.flush()
        self.transport.close()
        self._fail_all(reason)

    def end_connection(self) -> None:
        """Says goodbye and closes; calls in progress end."""
        if self.alive:
            self.h2.close_connection()
            self.drop("connection closed")

    def keep_alive(self, period_s: float) -> None:
        """Asks the other side for a sign of life after each silent period, and gives it up after three.

        The periods are counted, not timed: what stood still may have been this process, and then the answer waits in
        the socket.
        """
        if not self.alive:
            return
        self._silent_beats = 0 if self._is_heard else self._silent_beats + 1
        self._is_heard = False
        if self._silent_beats == 3:
            self.drop(f"no sign of life for {self._silent_beats * period_s:.1f} s")
            return
        if self._silent_beats:
            self.h2.ping(b"drillyrd")
            self.flush()
        self._beat = self.loop.call_later(period_s, self.keep_alive, period_s)

    def _fail_all(self, reason: str) -> None:
        for stream in tuple(self._streams.values()):
            if stream.on_reset is not None:
                stream.on_reset()
            stream.fail(reason)
        self.may_write.set()  # those who wait find out by trying
        self._freed.set()

    # ---- sending ----

    def queued(self, size: int) -> None:
        """So many more bytes of data are with h2."""
        self._queued += size
        if self._queued >= FLUSH_BYTES:
            self.flush()
        elif not self._is_flush_due:
            self._is_flush_due = True
            self.loop.call_soon(self._flush_due)

    def flush(self) -> None:
        self._queued = 0
        data = self.h2.data_to_send()
        if data and self.alive:
            self.transport.write(data)

    def _flush_due(self) -> None:
        self._is_flush_due = False
        self.flush()

    # ---- streams ----

    async def open(self, headers: Headers) -> Stream:
        """A stream of ours; waits while the other side takes no more of them."""
        while True:
            if not self.alive:
                raise StreamClosed("connection lost")
            try:
                stream_id = self.h2.get_next_available_stream_id()
                self.h2.send_headers(stream_id, headers)
                break
            except TooManyStreamsError:
                self._freed.clear()
                await self._freed.wait()
            except H2Error as error:
                self.drop(str(error))
                raise StreamClosed(str(error)) from error
        self.queued(0)
        stream = self._streams[stream_id] = Stream(self, stream_id)
        return stream

    def release(self, stream: Stream) -> None:
        """Nobody reads it any more."""
        self._streams.pop(stream.id, None)
        self._freed.set()
        self._owed += stream.unacknowledged()
        if self._owed >= ACKNOWLEDGE:  # not for each stream: it is dear
            owed, self._owed = self._owed, 0
            self.acknowledge(stream.id, owed)

    # ---- the windows of what arrives ----

    @property
    def is_crowded(self) -> bool:
        """Streams that each keep a little would together starve the connection."""
        return self._unacknowledged >= CONNECTION_WINDOW // 2

    def acknowledge(self, stream_id: int, size: int) -> None:
        self._unacknowledged -= size
        if size and self.alive:
            self.h2.acknowledge_received_data(size, stream_id)
            self.queued(0)

    # ---- what h2 has heard ----

    def _hear_request(self, event: events.RequestReceived) -> None:
        assert self._accept is not None
        stream = self._streams[event.stream_id] = Stream(self, event.stream_id)
        stream.headers = cast(Headers, event.headers)
        self._accept(stream)

    def _hear_response(self, event: events.ResponseReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.headers = cast(Headers, event.headers)

    def _hear_trailers(self, event: events.TrailersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.trailers = cast(Headers, event.headers)

    def _hear_data(self, event: events.DataReceived) -> None:
        size = event.flow_controlled_length
        self._unacknowledged += size
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.hear(event.data, size)
        else:
            self.acknowledge(event.stream_id, size)

    def _hear_end(self, event: events.StreamEnded) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.hear_end()

    def _hear_reset(self, event: events.StreamReset) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.fail(
                f"the other side reset it: {_name(event.error_code)}" if event.remote_reset else "Protocol error"
            )
            if stream.on_reset is not None:
                stream.on_reset()

    def _hear_window(self, event: events.WindowUpdated) -> None:
        if event.stream_id:
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.widen()
        else:
            self._widen_all()

    def _hear_settings(self, event: events.RemoteSettingsChanged) -> None:
        if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
            self._widen_all()

    def _hear_goodbye(self, event: events.ConnectionTerminated) -> None:
        self.drop(f"the other side ended the connection: {_name(event.error_code)}")

    def _widen_all(self) -> None:
        for stream in self._streams.values():
            stream.widen()


_HEARS: dict[type[Any], Callable[[Wire, Any], None]] = {
    events.RequestReceived: Wire._hear_request,
    events.ResponseReceived: Wire._hear_response,
    events.TrailersReceived: Wire._hear_trailers,
    events.DataReceived: Wire._hear_data,
    events.StreamEnded: Wire._hear_end,
    events.StreamReset: Wire._hear_reset,
    events.WindowUpdated: Wire._hear_window,
    events.RemoteSettingsChanged: Wire._hear_settings,
    events.ConnectionTerminated: Wire._hear_goodbye,
}


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _name(code: ErrorCodes | int | None) -> str:
    return code.name if isinstance(code, ErrorCodes) else str(code)
