"""The small HTTP client against servers that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from drillyard.clients import calls
from drillyard.clients import http as http_client
from drillyard.clients.calls import CallFailed
from drillyard.clients.http import HttpAnswer, HttpClient

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Server:
    """A server whose every connection is handed to `serve`; counts them."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.connections = 0

    async def __aenter__(self) -> HttpClient:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self._client = HttpClient(f"127.0.0.1:{port}")
        return self._client

    async def __aexit__(self, *_: object) -> None:
        self._client.close()
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self._serve(reader, writer)


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def get_once(serve: Serve, timeout_s: float = 60.0) -> HttpAnswer:
    async def run() -> HttpAnswer:
        async with Server(serve) as client:
            return await client.get("/x", timeout_s=timeout_s)

    return asyncio.run(run())


def answering(answer: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(answer)
        writer.close()

    return serve


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, b"hi"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"hi"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nold", b"old"),
    ],
    ids=["length", "chunked", "to the end", "1.0"],
)
def test_every_way_to_end_a_body(answer: bytes, body: bytes) -> None:
    assert get_once(answering(answer)) == HttpAnswer(200, body)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", calls.MALFORMED, "does not speak HTTP"),
        (b"", calls.BROKEN, "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", calls.MALFORMED, "does not speak HTTP"),
    ],
    ids=["another protocol", "nothing", "half a body"],
)
def test_what_is_no_answer_is_told_as_what_it_is(answer: bytes, kind: str, words: str) -> None:
    with pytest.raises(CallFailed, match=words) as raised:
        get_once(answering(answer))
    assert raised.value.kind == kind


def test_a_server_that_hangs_is_given_up() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    with pytest.raises(CallFailed, match="no answer within 20 ms") as raised:
        get_once(serve, timeout_s=0.02)
    assert raised.value.kind == calls.TIMED_OUT


def test_a_body_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MOST_BYTES", 1 << 20)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(bytes(1 << 16))
            try:
                await writer.drain()
            except ConnectionError:
                return

    with pytest.raises(CallFailed, match="is larger than 1 MiB"):
        get_once(serve)


def test_a_connection_is_kept_and_one_more_made_when_asked_at_once() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            writer.write(OK)

    async def run() -> tuple[int, int]:
        server = Server(serve)
        async with server as client:
            for _ in range(3):
                await client.get("/x", timeout_s=60)
            one_by_one = server.connections
            await asyncio.gather(*(client.get("/x", timeout_s=60) for _ in range(2)))
            return one_by_one, server.connections

    assert asyncio.run(run()) == (1, 2)


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(OK)  # and then closes, without having said so
        writer.close()

    async def run() -> int:
        server = Server(serve)
        async with server as client:
            for _ in range(3):
                assert (await client.get("/x", timeout_s=60)).body == b"hi"
            return server.connections

    assert asyncio.run(run()) == 3


def test_a_redirect_is_an_answer_and_not_followed() -> None:
    async def run() -> None:
        async with Server(answering(b"HTTP/1.1 307 Temporary\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n")) as client:
            with pytest.raises(CallFailed, match="answered HTTP 307") as raised:
                await client.get_json("/x", timeout_s=60)
            assert raised.value.kind == calls.STATUS

    asyncio.run(run())
