"""gRPC for members and clients: the only file that knows grpclib.

grpclib's connection layer (HTTP/2 events, streams and flow control, over the h2 library) is used, its request layer is
not: that one has no message limit, wakes waiting tasks by cancelling them, and writes three times for a unary answer.

Rules
- A handler that raises `RpcError` answers with that status; any other exception answers UNKNOWN and goes to `on_error`.
  Neither ends the connection. A stream that its client leaves, or a connection that is lost, cancels the handler.
- Bytes that are no message of the method's type answer INTERNAL, messages over `MAX_MESSAGE` RESOURCE_EXHAUSTED.
- A client sees every failure as `RpcError`: UNAVAILABLE when the other side is not there or goes away,
  DEADLINE_EXCEEDED when `timeout_s` passes. Nothing is retried.
- No TLS, no compression, no metadata: nobody here uses them.

Server: `loop.create_server(protocol_factory({services.TIKV.RawGet: raw_get}), host, port)`.
Client: `channel = Channel(host, port); answer = await channel.unary(services.PD.GetMembers, request, timeout_s=1)`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote, unquote

from google.protobuf.message import DecodeError, Message
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.protocol import AbstractHandler, Buffer, Connection, EventsProcessor, H2Protocol, Stream
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error, TooManyStreamsError
from h2.settings import SettingCodes, Settings

from drillyard.wire.method import Kind, Method

__all__ = [
    "MAX_MESSAGE",
    "Channel",
    "ClientStream",
    "Handlers",
    "RpcError",
    "ServerStream",
    "Status",
    "Wire",
    "protocol_factory",
]

MAX_MESSAGE = 64 << 20  # bytes of one message, either way
MAX_STREAMS = 4096  # that one connection may have open
FRAME = 512 << 10
STREAM_WINDOW = 8 << 20
CONNECTION_WINDOW = 32 << 20
ACKNOWLEDGE = 1 << 20  # bytes taken from a stream before its window is refilled
WRITE_BUFFER = 1 << 20  # unsent bytes of a connection after which its senders wait
_DEFAULT_WINDOW = 65535

_PREFIX = struct.Struct(">BI")
_CONTENT_TYPE = "application/grpc"
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_TIMEOUT_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_UNQUOTED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_HTTP_STATUS = {"404": Status.UNIMPLEMENTED, "502": Status.UNAVAILABLE, "503": Status.UNAVAILABLE}
_HTTP_STATUS |= {"429": Status.UNAVAILABLE, "504": Status.UNAVAILABLE}

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Handlers = Mapping[Method[Any, Any], Callable[[Any], Awaitable[Any]]]
Headers = list[tuple[str, str]]


class RpcError(Exception):
    """How an RPC failed. Clients raise it; a handler that raises it answers with it."""

    def __init__(self, status: Status, message: str = "") -> None:
        super().__init__(f"{status.name}: {message}" if message else status.name)
        self.status = status
        self.message = message


class _Inbox:
    """Puts a stream's DATA back together to messages, and lets the other side send more as they are taken.

    It stands in for grpclib's stream buffer, whose duck it is: `add`, `eof` and `unacked_size`.
    """

    def __init__(self, wire: Wire, stream_id: int) -> None:
        self._wire = wire
        self._stream_id = stream_id
        self._data = bytearray()
        self._unacknowledged = 0  # bytes that came and were not given back to the window, taken or not
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False
        self.failure: str | None = None

    def add(self, data: bytes, ack_size: int) -> None:
        self._data += data
        self._unacknowledged += ack_size
        self._wire.unacknowledged += ack_size
        self.wake()

    def eof(self) -> None:
        self.ended = True
        self.wake()

    def fail(self, reason: str) -> None:
        if not self.ended and self.failure is None:
            self.failure = reason
        self.wake()

    def unacked_size(self) -> int:
        """Gives up the count: the caller gives the bytes back to the window."""
        size, self._unacknowledged = self._unacknowledged, 0
        self._wire.unacknowledged -= size
        return size

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> bytes | None:
        """The next message's bytes; None when the other side has ended the stream."""
        while True:
            body = self._take()
            if body is not None:
                return body
            if self.failure is not None:
                raise RpcError(Status.UNAVAILABLE, self.failure)
            if self.ended:
                if self._data:
                    raise RpcError(Status.INTERNAL, "the stream ended inside a message")
                return None
            if self._data:  # the rest of this message may need the whole window
                self._wire.acknowledge(self._stream_id, self.unacked_size())
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _take(self) -> bytes | None:
        if len(self._data) < _PREFIX.size:
            return None
        compressed, length = _PREFIX.unpack_from(self._data)
        if compressed:
            raise RpcError(Status.UNIMPLEMENTED, "compressed messages are not supported")
        if length > MAX_MESSAGE:
            raise RpcError(Status.RESOURCE_EXHAUSTED, f"message of {length} bytes; at most {MAX_MESSAGE} are accepted")
        end = _PREFIX.size + length
        if len(self._data) < end:
            return None
        body = bytes(memoryview(self._data)[_PREFIX.size : end])
        del self._data[:end]
        if not self._data and self._unacknowledged >= (0 if self._wire.is_crowded else ACKNOWLEDGE):
            self._wire.acknowledge(self._stream_id, self.unacked_size())  # not for each message: it is dear
        return body


class Wire(H2Protocol):
    """One HTTP/2 connection, of either side. `on_lost` is called once it is gone."""

    transport: asyncio.Transport
    on_lost: Callable[[], None] | None = None

    def __init__(self, handler: AbstractHandler, client_side: bool) -> None:
        config = H2Configuration(
            client_side=client_side,
            header_encoding="latin-1",  # never fails; what is no ASCII is refused where it is read
            validate_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_inbound_headers=False,
            normalize_outbound_headers=False,
        )
        super().__init__(handler, Configuration(), config)
        self.h2 = H2Connection(config=config)
        settings = {
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingCodes.MAX_FRAME_SIZE: FRAME,
            SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            SettingCodes.MAX_HEADER_LIST_SIZE: 64 << 10,
            SettingCodes.ENABLE_PUSH: 0,
        }
        self.h2.local_settings = Settings(client=client_side, initial_values=settings)
        self.h2.max_inbound_frame_size = FRAME
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        self._beat: asyncio.TimerHandle | None = None
        self.unacknowledged = 0  # bytes of all streams that were not given back to the connection's window
        self._without_event = 0  # bytes since the last HTTP/2 event

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(CONNECTION_WINDOW - _DEFAULT_WINDOW)
        self.connection = Connection(self.h2, self.transport, config=self.config)
        self.processor = EventsProcessor(self.handler, self.connection)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        try:
            events = self.connection.feed(data)
        except Exception as error:  # h2 and hpack meet garbage with more than their own exceptions
            self.drop(f"the other side broke HTTP/2: {error or type(error).__name__}")
            return
        self._without_event = 0 if events else self._without_event + len(data)
        if self._without_event > 2 * FRAME:  # h2 believes a frame's length until all of it has come
            self.drop("the other side sends no frames")
            return
        self.flush()
        for event in events:
            known = getattr(self.processor, "processors", {})  # gone once closed
            if type(event) in known:
                self.processor.process(event)
        self.flush()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self.processor.close(reason=f"connection lost: {exc}" if exc else "connection lost")
        self._wake_senders()
        if self.on_lost is not None:
            self.on_lost()

    @property
    def is_crowded(self) -> bool:
        """Streams that each keep a little would together starve the connection."""
        return self.unacknowledged >= CONNECTION_WINDOW // 2

    @property
    def alive(self) -> bool:
        return not self.connection.is_closing()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def acknowledge(self, stream_id: int, size: int) -> None:
        if size and self.alive:
            self.h2.acknowledge_received_data(size, stream_id)
            self.flush()

    def drop(self, reason: str) -> None:
        """Ends the connection; what h2 still wants to say (why) is sent first."""
        self.flush()
        self.processor.close(reason=reason)
        self._wake_senders()

    def _wake_senders(self) -> None:
        """They find out by trying."""
        self.connection.write_ready.set()
        self.connection.stream_close_waiter.set()

    def end_connection(self) -> None:
        """Says goodbye and closes; calls in progress end."""
        if self.alive:
            self.h2.close_connection()
            self.drop("connection closed")

    def keep_alive(self, period_s: float) -> None:
        """Asks the other side for a sign of life after each silent period, and gives it up after three."""
        silent_s = self._loop.time() - self.heard_at
        if not self.alive:
            return
        if silent_s > 3 * period_s:
            self.drop(f"no sign of life for {silent_s:.1f} s")
            return
        if silent_s >= period_s:
            self.h2.ping(b"drillyrd")
            self.flush()
        self._beat = self._loop.call_later(period_s, self.keep_alive, period_s)


class _Pipe:
    """Messages over one stream, either way. grpclib tells it through `cancel` that the stream is no more."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.stream: Stream
        self.id = 0
        self.inbox: _Inbox
        self._sending = asyncio.Lock()  # one message's frames stay together

    def attach(self, stream: Stream) -> None:
        assert stream.id is not None
        self.stream = stream
        self.id = stream.id
        self.inbox = _Inbox(self.wire, self.id)
        stream.buffer = cast(Buffer, self.inbox)
        stream.wrapper = cast(Wrapper, self)

    def cancel(self, error: Exception) -> None:
        self.inbox.fail(str(error))
        self.stream.window_updated.set()

    @property
    def open(self) -> bool:
        return self.wire.alive and bool(self.stream.closable)

    async def receive(self, kind: type[Request]) -> Request | None:
        body = await self.inbox.next()
        if body is None:
            return None
        try:
            return kind.FromString(body)
        except DecodeError as error:
            name = kind.DESCRIPTOR.full_name
            raise RpcError(Status.INTERNAL, f"{len(body)} bytes that are no {name}: {error}") from error

    async def send(self, message: Message, *, end: bool = False, hold: bool = False) -> None:
        """Sends one message; `hold` leaves its last frame to the next flush."""
        body = message.SerializeToString()
        if len(body) > MAX_MESSAGE:
            raise RpcError(Status.RESOURCE_EXHAUSTED, f"message of {len(body)} bytes; at most {MAX_MESSAGE} are sent")
        data = _PREFIX.pack(0, len(body)) + body
        async with self._sending:
            try:
                await self._send_frames(data, end, hold)
            except H2Error as error:
                raise RpcError(Status.UNAVAILABLE, self.inbox.failure or f"the stream is closed: {error}") from error

    async def _send_frames(self, data: bytes, end: bool, hold: bool) -> None:
        h2, sent = self.wire.h2, 0
        while True:
            await self.wire.connection.write_ready.wait()
            if not self.open:
                raise RpcError(Status.UNAVAILABLE, self.inbox.failure or "the stream is closed")
            window = h2.local_flow_control_window(self.id)
            if window <= 0:
                self.stream.window_updated.clear()
                self.wire.flush()
                await self.stream.window_updated.wait()
                continue
            size = min(window, h2.max_outbound_frame_size, len(data) - sent)
            chunk = data if size == len(data) else data[sent : sent + size]
            sent += size
            h2.send_data(self.id, chunk, end_stream=end and sent == len(data))
            if sent < len(data) or not hold:
                self.wire.flush()
            if sent == len(data):
                return

    def send_headers(self, headers: Headers, *, end: bool = False) -> None:
        """Queues headers; whoever ends or waits next flushes them."""
        if self.open:
            self.wire.h2.send_headers(self.id, headers, end_stream=end)

    def reset(self, code: ErrorCodes) -> None:
        if self.open:
            self.wire.h2.reset_stream(self.id, error_code=code)
        self.wire.flush()


# ---- server ----


class ServerStream(Generic[Request, Response]):
    """What the handler of a streaming method gets: iterate over it for requests, `send` answers.

    Several tasks may send; their messages go out whole, in the order of the calls.
    """

    def __init__(self, pipe: _Pipe, method: Method[Request, Response]) -> None:
        self._pipe = pipe
        self._method = method
        self._greeted = False

    async def recv(self) -> Request | None:
        """The next request; None when the client has sent its last."""
        return await self._pipe.receive(self._method.request)

    def __aiter__(self) -> AsyncIterator[Request]:
        return self

    async def __anext__(self) -> Request:
        message = await self.recv()
        if message is None:
            raise StopAsyncIteration
        return message

    async def send(self, message: Response, *, hold: bool = False) -> None:
        if not isinstance(message, self._method.response):
            raise TypeError(f"{self._method.path} answers {self._method.response.__name__}, not {type(message)}")
        self.greet()
        await self._pipe.send(message, hold=hold)

    def greet(self) -> None:
        """Tells the client that its stream has been taken; `send` does so by itself."""
        if not self._greeted:
            self._greeted = True
            self._pipe.send_headers([(":status", "200"), ("content-type", _CONTENT_TYPE)])

    def finish(self, status: Status, message: str = "") -> None:
        headers: Headers = []
        if not self._greeted:
            headers = [(":status", "200"), ("content-type", _CONTENT_TYPE)]
        headers.append(("grpc-status", str(status.value)))
        if message:
            headers.append(("grpc-message", quote(message, safe=_UNQUOTED)))
        self._pipe.send_headers(headers, end=True)
        self._pipe.reset(ErrorCodes.NO_ERROR)  # only if the client has more to send, which nobody will read


def _log_failure(path: str, error: Exception) -> None:
    logging.getLogger(__name__).error("handler of %s failed", path, exc_info=error)


class _Calls(AbstractHandler):
    """The calls in progress on one connection."""

    def __init__(self, routes: _Routes) -> None:
        self._routes = routes
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.wire: Wire

    def accept(self, stream: Stream, headers: Headers, release_stream: Callable[[], None]) -> None:
        pipe = _Pipe(self.wire)
        pipe.attach(stream)
        task = asyncio.get_running_loop().create_task(self._routes.serve(pipe, dict(headers)))
        self._tasks[pipe.id] = task

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.pop(pipe.id, None)
            release_stream()
            if not task.cancelled() and (error := task.exception()) is not None:
                self._routes.on_error("(connection)", cast(Exception, error))

        task.add_done_callback(done)

    def cancel(self, stream: Stream) -> None:
        task = self._tasks.get(stream.id or 0)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        for task in tuple(self._tasks.values()):
            task.cancel()


class _Routes:
    """Which handler serves which path, and what a call's end looks like on the wire."""

    def __init__(self, handlers: Handlers, on_error: Callable[[str, Exception], None]) -> None:
        self._routes = {method.path: (method, handler) for method, handler in handlers.items()}
        self.on_error = on_error

    async def serve(self, pipe: _Pipe, headers: dict[str, str]) -> None:
        path = headers.get(":path", "")
        if headers.get(":method") != "POST" or not headers.get("content-type", "").startswith(_CONTENT_TYPE):
            pipe.send_headers([(":status", "415"), ("content-type", "text/plain")], end=True)
            pipe.reset(ErrorCodes.NO_ERROR)
            return
        method, handler = self._routes.get(path, (None, None))
        stream: ServerStream[Any, Any] = ServerStream(pipe, method or _NO_METHOD)
        deadline = asyncio.timeout(None)
        try:
            if method is None or handler is None:
                raise RpcError(Status.UNIMPLEMENTED, f"unknown method {path}")
            async with deadline:
                _set_deadline(deadline, headers)
                await self._call(method, handler, stream)
        except RpcError as error:
            stream.finish(error.status, error.message)
        except Exception as error:
            if deadline.expired():
                stream.finish(Status.DEADLINE_EXCEEDED, "the deadline passed before the answer was ready")
                return
            self.on_error(path, error)
            stream.finish(Status.UNKNOWN, f"{type(error).__name__} in the handler; see the member's log")
        else:
            stream.finish(Status.OK)

    async def _call(
        self, method: Method[Any, Any], handler: Callable[[Any], Awaitable[Any]], stream: ServerStream[Any, Any]
    ) -> None:
        if method.kind is not Kind.UNARY:
            await handler(stream)
            return
        request = await stream.recv()
        if request is None:
            raise RpcError(Status.INTERNAL, "the request has no message")
        await stream.send(await handler(request), hold=True)


_NO_METHOD: Method[Any, Any] = Method("", Message, Message, Kind.UNARY)


def _set_deadline(deadline: asyncio.Timeout, headers: dict[str, str]) -> None:
    text = headers.get("grpc-timeout")
    if text is None:
        return
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise RpcError(Status.INTERNAL, f"malformed grpc-timeout {text!r}")
    deadline.reschedule(asyncio.get_running_loop().time() + int(match[1]) * _TIMEOUT_UNITS[match[2]])


def protocol_factory(
    handlers: Handlers, on_error: Callable[[str, Exception], None] = _log_failure
) -> Callable[[], Wire]:
    """Makes the server's protocol for each connection. `on_error(path, exception)` hears what a handler did not expect.

    Closing the transport, or `end_connection()` on the protocol, cancels the calls in progress.
    """
    routes = _Routes(handlers, on_error)

    def make() -> Wire:
        calls = _Calls(routes)
        calls.wire = Wire(calls, client_side=False)
        return calls.wire

    return make


# ---- client ----


class _Nothing(AbstractHandler):
    """A client takes no calls."""

    def accept(self, stream: Stream, headers: Headers, release_stream: Callable[[], None]) -> None:
        release_stream()

    def cancel(self, stream: Stream) -> None:
        pass

    def close(self) -> None:
        pass


class ClientStream(Generic[Request, Response]):
    """A streaming call: `send` requests, `end` after the last, `recv` or iterate for answers.

    Leaving the context of `Channel.open` before the server has ended the call cancels it.
    """

    def __init__(self, pipe: _Pipe, method: Method[Request, Response]) -> None:
        self._pipe = pipe
        self._method = method

    async def send(self, message: Request, *, end: bool = False) -> None:
        try:
            await self._pipe.send(message, end=end)
        except RpcError:
            if self._pipe.inbox.ended:
                self._raise_for_status()  # why the server would not read on
            raise

    async def end(self) -> None:
        if self._pipe.open:
            self._pipe.wire.h2.end_stream(self._pipe.id)
            self._pipe.wire.flush()

    async def recv(self) -> Response | None:
        """The next answer; None when the server has ended the call with OK, `RpcError` when with anything else."""
        message = await self._pipe.receive(self._method.response)
        if message is None:
            self._raise_for_status()
        return message

    def __aiter__(self) -> AsyncIterator[Response]:
        return self

    async def __anext__(self) -> Response:
        message = await self.recv()
        if message is None:
            raise StopAsyncIteration
        return message

    def _raise_for_status(self) -> None:
        first = dict(self._pipe.stream.headers or ())
        last = dict(self._pipe.stream.trailers or first)
        http_status = first.get(":status")
        if http_status != "200":
            raise RpcError(_HTTP_STATUS.get(http_status or "", Status.UNKNOWN), f"HTTP status {http_status}")
        try:
            status = Status(int(last["grpc-status"]))
        except (KeyError, ValueError):
            raise RpcError(Status.UNKNOWN, "the server named no gRPC status") from None
        if status is not Status.OK:
            raise RpcError(status, unquote(last.get("grpc-message", "")))


class _Opening(AbstractAsyncContextManager[ClientStream[Request, Response]]):
    def __init__(self, channel: Channel, method: Method[Request, Response], timeout_s: float | None) -> None:
        self._channel = channel
        self._method = method
        self._timeout_s = timeout_s
        self._release: Callable[[], None] | None = None

    async def __aenter__(self) -> ClientStream[Request, Response]:
        wire = await self._channel.connected()
        headers = self._headers()
        while True:
            if not wire.alive:
                raise RpcError(Status.UNAVAILABLE, f"{self._channel.address}: connection lost")
            try:
                stream_id = wire.h2.get_next_available_stream_id()
                wire.h2.send_headers(stream_id, headers)
                break
            except TooManyStreamsError:
                wire.connection.stream_close_waiter.clear()
                await wire.connection.stream_close_waiter.wait()
            except H2Error as error:
                wire.drop(str(error))
                raise RpcError(Status.UNAVAILABLE, f"{self._channel.address}: {error}") from error
        self._pipe = _Pipe(wire)
        stream = wire.connection.create_stream(stream_id=stream_id)
        self._pipe.attach(stream)
        self._release = wire.processor.register(stream)
        if self._method.kind is not Kind.UNARY:
            wire.flush()
        return ClientStream(self._pipe, self._method)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._pipe.inbox.ended:
            self._pipe.reset(ErrorCodes.CANCEL)
        if self._release is not None:
            self._release()

    def _headers(self) -> Headers:
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", self._method.path),
            (":authority", self._channel.address),
            ("te", "trailers"),
            ("content-type", _CONTENT_TYPE),
            ("user-agent", "drillyard"),
        ]
        if self._timeout_s is not None:
            headers.append(("grpc-timeout", f"{min(99999999, max(1, int(self._timeout_s * 1000)))}m"))
        return headers


class Channel:
    """Calls to one address, over one connection that is made when first needed and again after it was lost.

    `keepalive_s` asks a silent server for a sign of life, so that a stream to a paused member ends with UNAVAILABLE
    after three such periods; real PD drops clients that ask more often than every five seconds. `dial` says, at each
    new connection, where the address is reached when that is elsewhere.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        keepalive_s: float | None = None,
        dial: Callable[[], tuple[str, int]] | None = None,
    ) -> None:
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._dial = dial or (lambda: (host, port))
        self._keepalive_s = keepalive_s
        self._wire: Wire | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def unary(
        self, method: Method[Request, Response], request: Request, *, timeout_s: float | None = None
    ) -> Response:
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline, _Opening(self, method, timeout_s) as stream:
                await stream.send(request, end=True)
                answer = await stream.recv()
                if answer is None:
                    raise RpcError(Status.INTERNAL, f"{method.path} ended without an answer")
                await stream.recv()  # the status comes after the answer
                return answer
        except TimeoutError:
            raise RpcError(
                Status.DEADLINE_EXCEEDED, f"{self.address} did not answer {method.name} in {timeout_s} s"
            ) from None

    def open(self, method: Method[Request, Response]) -> AbstractAsyncContextManager[ClientStream[Request, Response]]:
        return _Opening(self, method, None)

    async def connected(self) -> Wire:
        """The connection, made anew if need be."""
        async with self._connecting:
            if self._closed:
                raise RpcError(Status.UNAVAILABLE, f"the channel to {self.address} is closed")
            if self._wire is not None and self._wire.alive:
                return self._wire
            loop = asyncio.get_running_loop()
            try:
                host, port = self._dial()
                _, wire = await loop.create_connection(lambda: Wire(_Nothing(), client_side=True), host, port)
            except OSError as error:
                raise RpcError(Status.UNAVAILABLE, f"{self.address}: {error.strerror or error}") from error
            self._wire = wire
            if self._closed:
                wire.end_connection()
                raise RpcError(Status.UNAVAILABLE, f"the channel to {self.address} is closed")
            if self._keepalive_s is not None:
                wire.keep_alive(self._keepalive_s)
            return wire

    def close(self) -> None:
        """Ends the connection; calls in progress end with UNAVAILABLE."""
        self._closed = True
        if self._wire is not None:
            self._wire.end_connection()
            self._wire = None
