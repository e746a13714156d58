"""A small HTTP/1.1 GET client over asyncio and h11, for the members' HTTP interfaces.

Rules: connections are kept and reused, several at a time when asked at once; a kept connection that turns out closed is
replaced once, because a GET may be repeated. Redirects are never followed: each member answers for itself. Bodies are
bounded. Every failure is a `CallFailed`. A general client library costs 0.4 s to import, a tenth of `up`.

Not here: what the answers mean.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import h11

from drillyard.clients import calls
from drillyard.clients.calls import CallFailed, Dial, directly

MOST_BYTES = 64 << 20
_CHUNK = 64 << 10


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    status: int
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise CallFailed(calls.MALFORMED, f"the answer is no JSON: {_start(self.body)!r}") from error

    @property
    def text(self) -> str:
        return _start(self.body)


class HttpClient:
    """GET requests to one member, known by its address and reached where `dial` says at each new connection."""

    def __init__(self, address: str, dial: Dial = directly) -> None:
        self.address = address
        self._dial = dial
        self._idle: list[_Connection] = []
        self._is_closed = False

    async def get(self, path: str, *, timeout_s: float) -> HttpAnswer:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._get(path)
        except TimeoutError:
            raise calls.timed_out(self.address, timeout_s) from None
        except OSError as error:
            raise calls.from_os_error(self.address, error) from error
        except h11.RemoteProtocolError as error:
            raise CallFailed(calls.MALFORMED, f"{self.address} does not speak HTTP: {error}") from error

    async def get_json(self, path: str, *, timeout_s: float) -> Any:
        """The decoded body of a 200; any other status is a failure that quotes the body."""
        answer = await self.get(path, timeout_s=timeout_s)
        if answer.status != 200:
            raise CallFailed(calls.STATUS, f"{self.address} answered HTTP {answer.status}: {answer.text}")
        return answer.json()

    def close(self) -> None:
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    async def _get(self, path: str) -> HttpAnswer:
        while self._idle:
            kept = self._idle.pop()
            try:
                return await self._exchange(kept, path)
            except (ConnectionError, _Stale):
                continue
        host, port = calls.split_address(self._dial(self.address))
        try:
            return await self._exchange(_Connection(*await asyncio.open_connection(host, port)), path)
        except _Stale as error:
            raise CallFailed(calls.BROKEN, f"{self.address} closed the connection") from error

    async def _exchange(self, connection: _Connection, path: str) -> HttpAnswer:
        done = False
        try:
            answer = await connection.exchange(self.address, path)
            done = connection.is_reusable and not self._is_closed
            if done:
                self._idle.append(connection)
            return answer
        finally:
            if not done:
                connection.close()


class _Stale(Exception):
    """The peer closed the connection before it said a word."""


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._machine = h11.Connection(h11.CLIENT)

    @property
    def is_reusable(self) -> bool:
        return self._machine.our_state is h11.IDLE

    async def exchange(self, host: str, path: str) -> HttpAnswer:
        request = h11.Request(method="GET", target=path, headers=[("Host", host)])
        self._writer.write((self._machine.send(request) or b"") + (self._machine.send(h11.EndOfMessage()) or b""))
        await self._writer.drain()
        status, parts, size, is_silent = 0, [], 0, True
        while True:
            event = self._machine.next_event()
            if event is h11.NEED_DATA:
                data = await self._reader.read(_CHUNK)
                if not data and is_silent:
                    raise _Stale
                is_silent = False
                self._machine.receive_data(data)
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
                size += len(event.data)
                if size > MOST_BYTES:
                    raise CallFailed(calls.MALFORMED, f"the answer to {path} is larger than {MOST_BYTES >> 20} MiB")
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                break
        if self._machine.our_state is h11.DONE and self._machine.their_state is h11.DONE:
            self._machine.start_next_cycle()
        return HttpAnswer(status, b"".join(parts))

    def close(self) -> None:
        self._writer.close()


def _start(body: bytes) -> str:
    """The beginning of a body, on one line."""
    return " ".join(body[:200].decode("utf-8", "replace").split())
