"""gRPC for members and clients, over the streams of `http2`.

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
from enum import IntEnum
from types import TracebackType
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote, unquote

from google.protobuf.message import DecodeError, Message

from drillyard.wire.http2 import ErrorCodes, Headers, Stream, StreamClosed, Wire
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

_PREFIX = struct.Struct(">BI")
_CONTENT_TYPE = "application/grpc"
_GREETING: Headers = [(":status", "200"), ("content-type", _CONTENT_TYPE)]
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_TIMEOUT_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_UNQUOTED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Handlers = Mapping[Method[Any, Any], Callable[[Any], Awaitable[Any]]]


class Status(IntEnum):
    """How a call ended, by gRPC's numbers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_HTTP_STATUS = {"404": Status.UNIMPLEMENTED, "502": Status.UNAVAILABLE, "503": Status.UNAVAILABLE}
_HTTP_STATUS |= {"429": Status.UNAVAILABLE, "504": Status.UNAVAILABLE}


class RpcError(Exception):
    """How an RPC failed. Clients raise it; a handler that raises it answers with it."""

    def __init__(self, status: Status, message: str = "") -> None:
        super().__init__(f"{status.name}: {message}" if message else status.name)
        self.status = status
        self.message = message


# ---- messages on a stream ----


async def _next_body(stream: Stream) -> bytes | None:
    """The next message's bytes; None when the other side has ended the stream."""
    while True:
        received = stream.received
        if len(received) >= _PREFIX.size:
            compressed, length = _PREFIX.unpack_from(received)
            if compressed:
                raise RpcError(Status.UNIMPLEMENTED, "compressed messages are not supported")
            if length > MAX_MESSAGE:
                raise RpcError(
                    Status.RESOURCE_EXHAUSTED, f"message of {length} bytes; at most {MAX_MESSAGE} are accepted"
                )
            end = _PREFIX.size + length
            if len(received) >= end:
                body = bytes(memoryview(received)[_PREFIX.size : end])
                stream.take(end)
                return body
        if stream.failure is not None:
            raise RpcError(Status.UNAVAILABLE, stream.failure)
        if stream.ended:
            if received:
                raise RpcError(Status.INTERNAL, "the stream ended inside a message")
            return None
        await stream.arrival()


async def _receive(stream: Stream, kind: type[Request]) -> Request | None:
    body = await _next_body(stream)
    if body is None:
        return None
    try:
        return kind.FromString(body)
    except DecodeError as error:
        name = kind.DESCRIPTOR.full_name
        raise RpcError(Status.INTERNAL, f"{len(body)} bytes that are no {name}: {error}") from error


async def _send(stream: Stream, message: Message, *, end: bool = False) -> None:
    body = message.SerializeToString()
    if len(body) > MAX_MESSAGE:
        raise RpcError(Status.RESOURCE_EXHAUSTED, f"message of {len(body)} bytes; at most {MAX_MESSAGE} are sent")
    try:
        await stream.write(_PREFIX.pack(0, len(body)) + body, end=end)
    except StreamClosed as closed:
        raise RpcError(Status.UNAVAILABLE, str(closed)) from closed


# ---- server ----


class ServerStream(Generic[Request, Response]):
    """What the handler of a streaming method gets: iterate over it for requests, `send` answers.

    Several tasks may send; their messages go out whole, in the order of the calls.
    """

    __slots__ = ("_greeted", "_method", "_stream")

    def __init__(self, stream: Stream, method: Method[Request, Response]) -> None:
        self._stream = stream
        self._method = method
        self._greeted = False

    async def recv(self) -> Request | None:
        """The next request; None when the client has sent its last."""
        return await _receive(self._stream, self._method.request)

    def __aiter__(self) -> AsyncIterator[Request]:
        return self

    async def __anext__(self) -> Request:
        message = await self.recv()
        if message is None:
            raise StopAsyncIteration
        return message

    async def send(self, message: Response) -> None:
        if not isinstance(message, self._method.response):
            raise TypeError(f"{self._method.path} answers {self._method.response.__name__}, not {type(message)}")
        self.greet()
        await _send(self._stream, message)

    def greet(self) -> None:
        """Tells the client that its stream has been taken; `send` does so by itself."""
        if not self._greeted:
            self._greeted = True
            self._stream.send_headers(_GREETING)

    def finish(self, status: Status, message: str = "") -> None:
        headers = [] if self._greeted else list(_GREETING)
        headers.append(("grpc-status", str(status.value)))
        if message:
            headers.append(("grpc-message", quote(message, safe=_UNQUOTED)))
        self._stream.send_headers(headers, end=True)
        self._stream.reset(ErrorCodes.NO_ERROR)  # only if the client has more to send, which nobody will read


def _log_failure(path: str, error: Exception) -> None:
    logging.getLogger(__name__).error("handler of %s failed", path, exc_info=error)


class _Routes:
    """Which handler serves which path."""

    def __init__(self, handlers: Handlers, on_error: Callable[[str, Exception], None]) -> None:
        self._routes = {method.path: (method, handler) for method, handler in handlers.items()}
        self.on_error = on_error

    def find(self, path: str) -> tuple[Method[Any, Any], Callable[[Any], Awaitable[Any]]]:
        found = self._routes.get(path)
        if found is None:
            raise RpcError(Status.UNIMPLEMENTED, f"unknown method {path}")
        return found


class _Call:
    """One call while it is served, and what its end looks like on the wire."""

    __slots__ = ("_deadline", "_is_late", "_routes", "_stream", "_task")

    def __init__(self, routes: _Routes, stream: Stream) -> None:
        self._routes = routes
        self._stream = stream
        self._deadline: asyncio.TimerHandle | None = None
        self._is_late = False
        self._task = stream.wire.loop.create_task(self._serve())
        self._task.add_done_callback(self._done)
        stream.on_reset = self._task.cancel

    async def _serve(self) -> None:
        stream, headers = self._stream, dict(self._stream.headers or ())
        if headers.get(":method") != "POST" or not headers.get("content-type", "").startswith(_CONTENT_TYPE):
            stream.send_headers([(":status", "415"), ("content-type", "text/plain")], end=True)
            stream.reset(ErrorCodes.NO_ERROR)
            return
        path = headers.get(":path", "")
        answers: ServerStream[Any, Any] = ServerStream(stream, _NO_METHOD)
        try:
            method, handler = self._routes.find(path)
            answers = ServerStream(stream, method)
            self._set_deadline(headers.get("grpc-timeout"))
            await self._handle(method, handler, answers)
        except RpcError as error:
            answers.finish(error.status, error.message)
        except (Exception, asyncio.CancelledError) as error:
            if self._is_late:
                answers.finish(Status.DEADLINE_EXCEEDED, "the deadline passed before the answer was ready")
                return
            if isinstance(error, asyncio.CancelledError):
                raise
            self._routes.on_error(path, error)
            answers.finish(Status.UNKNOWN, f"{type(error).__name__} in the handler; see the member's log")
        else:
            answers.finish(Status.OK)

    @staticmethod
    async def _handle(
        method: Method[Any, Any], handler: Callable[[Any], Awaitable[Any]], stream: ServerStream[Any, Any]
    ) -> None:
        if method.kind is not Kind.UNARY:
            await handler(stream)
            return
        request = await stream.recv()
        if request is None:
            raise RpcError(Status.INTERNAL, "the request has no message")
        await stream.send(await handler(request))

    def _set_deadline(self, text: str | None) -> None:
        if text is None:
            return
        match = _TIMEOUT.fullmatch(text)
        if match is None:
            raise RpcError(Status.INTERNAL, f"malformed grpc-timeout {text!r}")
        left_s = int(match[1]) * _TIMEOUT_UNITS[match[2]]
        self._deadline = self._stream.wire.loop.call_later(left_s, self._be_late)

    def _be_late(self) -> None:
        self._is_late = True
        self._task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._stream.wire.release(self._stream)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._routes.on_error("(connection)", cast(Exception, error))


_NO_METHOD: Method[Any, Any] = Method("", Message, Message, Kind.UNARY)


def protocol_factory(
    handlers: Handlers, on_error: Callable[[str, Exception], None] = _log_failure
) -> Callable[[], Wire]:
    """Makes the server's protocol for each connection. `on_error(path, exception)` hears what a handler did not expect.

    Closing the transport, or `end_connection()` on the protocol, cancels the calls in progress.
    """
    routes = _Routes(handlers, on_error)

    def accept(stream: Stream) -> None:
        _Call(routes, stream)

    return lambda: Wire(accept)


# ---- client ----


class ClientStream(Generic[Request, Response]):
    """A streaming call: `send` requests, `end` after the last, `recv` or iterate for answers.

    Leaving the context of `Channel.open` before the server has ended the call cancels it.
    """

    def __init__(self, stream: Stream, method: Method[Request, Response]) -> None:
        self._stream = stream
        self._method = method

    async def send(self, message: Request, *, end: bool = False) -> None:
        try:
            await _send(self._stream, message, end=end)
        except RpcError:
            if self._stream.ended:
                self._raise_for_status()  # why the server would not read on
            raise

    async def end(self) -> None:
        self._stream.end()

    async def recv(self) -> Response | None:
        """The next answer; None when the server has ended the call with OK, `RpcError` when with anything else."""
        message = await _receive(self._stream, self._method.response)
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
        first = dict(self._stream.headers or ())
        last = dict(self._stream.trailers or first)
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
        self._stream: Stream

    async def __aenter__(self) -> ClientStream[Request, Response]:
        wire = await self._channel.connected()
        try:
            self._stream = await wire.open(self._headers())
        except StreamClosed as closed:
            raise RpcError(Status.UNAVAILABLE, f"{self._channel.address}: {closed}") from closed
        return ClientStream(self._stream, self._method)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._stream.ended:
            self._stream.reset(ErrorCodes.CANCEL)
        self._stream.wire.release(self._stream)

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
                _, wire = await loop.create_connection(Wire, host, port)
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
