"""HTTP/1.1 for members, over h11: one protocol for a connection, one router for a server.

Rules
- Answers look like those of Go's servers where clients can tell: 404 is "404 page not found", JSON is indented by two.
- Limits, because anybody can connect: the head of a request within `HEAD_S` seconds and 64 KiB, its body within
  `BODY_S` and `MAX_BODY`; a client that does not read its answer is dropped. What is no HTTP gets 400, and the
  connection ends.
- A request that may write must name a host that is an address or our own name, and come from no foreign page: a browser
  can be made to post to loopback.
- A handler that fails answers 500 and goes to `on_error`; the connection lives on.
No TLS, no upgrades, no request bodies as streams.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast
from urllib.parse import parse_qs, unquote

import h11
from msgspec import Struct, field

HEAD_S = 10.0
BODY_S = 30.0
IDLE_S = 120.0
DRAIN_S = 30.0
LINGER_S = 2.0  # a refused client may finish sending, so that it reads why instead of meeting a reset
MAX_HEAD = 64 << 10
MAX_BODY = 8 << 20
JSON = "application/json; charset=UTF-8"
TEXT = "text/plain; charset=utf-8"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_REASONS = {200: "OK", 204: "No Content", 400: "Bad Request", 403: "Forbidden", 404: "Not Found"}
_REASONS |= {405: "Method Not Allowed", 408: "Request Timeout", 413: "Request Entity Too Large"}
_REASONS |= {406: "Not Acceptable", 431: "Request Header Fields Too Large", 500: "Internal Server Error"}
_REASONS |= {503: "Service Unavailable"}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class HttpRequest(Struct, frozen=True):
    method: str
    path: str  # decoded
    target: str  # as it was sent, with the query
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]  # names in lower case
    body: bytes = b""
    params: Mapping[str, str] = field(default_factory=dict)  # what the pattern's {names} matched

    def first(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return self.query.get(name, [default])[0]


class HttpResponse(Struct, frozen=True):
    status: int = 200
    body: bytes = b""
    content_type: str = ""  # none is sent for an empty body without one
    headers: Sequence[tuple[str, str]] = ()


HttpHandler = Callable[[HttpRequest], Awaitable[HttpResponse]]


def json_response(value: Any, status: int = 200) -> HttpResponse:
    return HttpResponse(status, json_bytes(value, indent=2) + b"\n", JSON)


def text_response(text: str, status: int = 200) -> HttpResponse:
    return HttpResponse(status, text.encode(), TEXT)


def error_response(text: str, status: int) -> HttpResponse:
    """As Go's `http.Error`: the text and a line end."""
    return HttpResponse(status, text.encode() + b"\n", TEXT, (("X-Content-Type-Options", "nosniff"),))


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """JSON as Go writes it: what HTML could misread is escaped, everything else is UTF-8."""
    separators = (",", ": ") if indent else (",", ":")
    text = json.dumps(value, indent=indent, ensure_ascii=False, separators=separators)
    for character in "<>&\u2028\u2029":
        if character in text:
            text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace")


NOT_FOUND = error_response("404 page not found", 404)


class Router:
    """Which handler serves which path. Patterns hold literal segments and `{name}`, which matches one segment."""

    """`missing` is what a server answers that has one answer for all that it does not know, methods included."""

    def __init__(self, hosts: Sequence[str] = (), missing: HttpResponse | None = None) -> None:
        self._missing = missing
        self._routes: list[tuple[str, tuple[str, ...], HttpHandler]] = []
        self._hosts = frozenset({"localhost", *(host.lower() for host in hosts)})

    def add(self, method: str, pattern: str, handler: HttpHandler) -> None:
        self._routes.append((method, tuple(pattern.split("/")), handler))

    async def answer(self, request: HttpRequest) -> HttpResponse:
        segments = _raw_path(request.target).split("/")
        allowed: set[str] = set()
        wanted = "GET" if request.method == "HEAD" else request.method
        for method, pattern, handler in self._routes:
            params = _matched(pattern, segments)
            if params is None:
                continue
            allowed.add(method)
            if method == wanted:
                refusal = self._refusal(request)
                if refusal is not None:
                    return error_response(refusal, 403)
                return await handler(_with_params(request, params))
        if self._missing is not None:
            return self._missing
        if allowed:
            return HttpResponse(405, headers=(("Allow", ", ".join(sorted(allowed))),))
        return NOT_FOUND

    def _refusal(self, request: HttpRequest) -> str | None:
        if request.method in SAFE_METHODS:
            return None
        host = _host_of(request.headers.get("host", ""))
        if host not in self._hosts and not _is_address(host):
            return f"writes are taken for an address or localhost, not for the host {host!r}"
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
            return f"writes are not taken from pages of {origin!r}"
        return None


class HttpProtocol(asyncio.Protocol):
    """One HTTP/1.1 connection, kept alive from request to request. `on_lost` is called once it is gone."""

    on_lost: Callable[[], None] | None = None

    def __init__(self, router: Router, on_error: Callable[[str, Exception], None]) -> None:
        self._router = router
        self._on_error = on_error
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._loop = asyncio.get_running_loop()
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._refused = False
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._expect(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        self._writable.set()
        if self._task is not None:
            self._task.cancel()
        if self.on_lost is not None:
            self.on_lost()

    def end_connection(self) -> None:
        """Closes at once; an answer on its way is lost."""
        self._transport.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def eof_received(self) -> bool:
        self._ended = True
        if self._task is None:
            self._feed(b"")
        return self._task is not None  # an answer on its way may still be written

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._http.their_state is h11.IDLE and not self._http.trailing_data[0]:
            self._expect(HEAD_S)
        self._feed(data)

    def _feed(self, data: bytes | None) -> None:
        """Takes what has arrived (empty at the end, None for nothing new) and does what it completes."""
        try:
            if data is not None:
                self._http.receive_data(data)
            self._advance()
        except h11.RemoteProtocolError as error:
            self._refuse(error_response(f"{error.error_status_hint} {error}", error.error_status_hint))

    def _advance(self) -> None:
        while self._task is None and not self._refused:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                if _size_of(event) > MAX_HEAD:  # h11 counts only what it waits for, and this came at once
                    self._refuse(error_response(f"431 a request's head has at most {MAX_HEAD} bytes", 431))
                    return
                self._request = event
                self._body.clear()
                self._expect(BODY_S)
                if self._http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > MAX_BODY:
                    self._refuse(error_response(f"413 a request body has at most {MAX_BODY} bytes", 413))
            elif isinstance(event, h11.EndOfMessage):
                self._expect(None)
                self._transport.pause_reading()
                self._task = self._loop.create_task(self._serve(cast(h11.Request, self._request)))
            elif isinstance(event, h11.ConnectionClosed):
                self._transport.close()
                return
            else:  # more data is needed, or the answer to the last request
                return

    async def _serve(self, head: h11.Request) -> None:
        request = _request_of(head, bytes(self._body))
        try:
            response = await self._router.answer(request)
        except Exception as error:
            self._on_error(f"{request.method} {request.path}", error)
            response = error_response(f"{type(error).__name__} in the handler; see the member's log", 500)
        self._write(response, is_head=request.method == "HEAD")
        self._expect(DRAIN_S)
        await self._writable.wait()
        self._task = None
        if self._ended or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self._transport.close()
            return
        self._http.start_next_cycle()
        self._expect(IDLE_S)
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._feed(None)  # the next request may have come with this one

    def _write(self, response: HttpResponse, *, is_head: bool = False) -> None:
        headers = [*response.headers, ("Date", _date()), ("Content-Length", str(len(response.body)))]
        if response.content_type:
            headers.append(("Content-Type", response.content_type))
        reason = _REASONS.get(response.status, "")
        self._send(h11.Response(status_code=response.status, headers=headers, reason=reason))
        if response.body and not is_head:
            self._send(h11.Data(data=response.body))
        self._send(h11.EndOfMessage())

    def _send(self, event: Any) -> None:
        data = self._http.send(event)
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _refuse(self, response: HttpResponse) -> None:
        """Answers if an answer is still due, and ends the connection."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            closing = HttpResponse(response.status, response.body, response.content_type, (("Connection", "close"),))
            self._write(closing)
        self._refused = True
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        self._expect(LINGER_S)

    def _expect(self, within_s: float | None) -> None:
        """The connection ends unless it comes further in time."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if within_s is None else self._loop.call_later(within_s, self._transport.abort)


def _size_of(head: h11.Request) -> int:
    return len(head.target) + sum(len(name) + len(value) + 4 for name, value in head.headers)


def _request_of(head: h11.Request, body: bytes) -> HttpRequest:
    target = head.target.decode("latin-1")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    query = parse_qs(target.partition("?")[2], keep_blank_values=True)
    return HttpRequest(head.method.decode("latin-1"), unquote(_raw_path(target)), target, query, headers, body)


def _raw_path(target: str) -> str:
    """The path of a request target, which proxies send with scheme and host before it."""
    path = target.partition("?")[0]
    if path.startswith("/"):
        return path
    return "/" + path.partition("://")[2].partition("/")[2]


def _with_params(request: HttpRequest, params: Mapping[str, str]) -> HttpRequest:
    return HttpRequest(
        request.method, request.path, request.target, request.query, request.headers, request.body, params
    )


def _matched(pattern: tuple[str, ...], segments: Sequence[str]) -> dict[str, str] | None:
    if len(pattern) != len(segments):
        return None
    params: dict[str, str] = {}
    for wanted, segment in zip(pattern, segments, strict=True):
        if wanted.startswith("{"):
            if not segment:
                return None
            params[wanted[1:-1]] = unquote(segment)
        elif wanted != unquote(segment):
            return None
    return params


def _host_of(header: str) -> str:
    """The host without its port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _date() -> str:
    now = time.gmtime()
    clock = f"{now.tm_hour:02d}:{now.tm_min:02d}:{now.tm_sec:02d}"
    return f"{_DAYS[now.tm_wday]}, {now.tm_mday:02d} {_MONTHS[now.tm_mon - 1]} {now.tm_year} {clock} GMT"
