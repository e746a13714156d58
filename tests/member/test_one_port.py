"""One port, two protocols: what tells them apart, and what misbehaving clients get."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from drillyard.emulator import http, member
from drillyard.emulator.http import HttpRequest, HttpResponse, Router, json_response, text_response
from drillyard.emulator.logs import Log, open_log
from drillyard.emulator.member import Listener, NamedStop
from drillyard.wire import kvrpcpb, services

PATIENCE_S = 30.0


def loops() -> list[Any]:
    import uvloop

    return [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=loops(), ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    def run_on(test: Awaitable[None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(test, PATIENCE_S))

    return run_on


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return open_log(tmp_path / "member.log")


async def store(request: HttpRequest) -> HttpResponse:
    return json_response({"id": request.params["id"], "asked": request.first("x"), "body": request.body.decode()})


async def defect(request: HttpRequest) -> HttpResponse:
    raise ValueError("secret")


async def large(request: HttpRequest) -> HttpResponse:
    return text_response("x" * (4 << 20))


async def raw_get(request: kvrpcpb.RawGetRequest) -> kvrpcpb.RawGetResponse:
    return kvrpcpb.RawGetResponse(value=request.key)


@asynccontextmanager
async def listening(log: Log) -> AsyncIterator[Listener]:
    router = Router(["pd0.local"])
    router.add("GET", "/store/{id}", store)
    router.add("POST", "/store/{id}", store)
    router.add("GET", "/defect", defect)
    router.add("GET", "/large", large)
    listener = Listener(log)
    await listener.start("127.0.0.1", 0, {services.TIKV.RawGet: raw_get}, router)
    yield listener
    await listener.close()


async def get_over_grpc(port: int) -> bytes:
    from drillyard.wire.rpc import Channel

    channel = Channel("127.0.0.1", port)
    answer = await channel.unary(services.TIKV.RawGet, kvrpcpb.RawGetRequest(key=b"k"), timeout_s=10)
    channel.close()
    return answer.value


async def say(port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Sends pieces and gives all that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            if writer.is_closing():  # uvloop raises no ConnectionError for a write after that
                break
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        answer = await reader.read()
    writer.close()
    return answer


def test_both_protocols_on_one_port(run: Any, log: Log) -> None:
    async def check() -> None:
        async with listening(log) as listener, httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.port}") as web:
            assert await get_over_grpc(listener.port) == b"k"
            answer = await web.get("/store/4", params={"x": "ü/ <&"})
            assert answer.json() == {"id": "4", "asked": "ü/ <&", "body": ""}
            assert answer.headers["content-type"] == "application/json; charset=UTF-8"
            assert (await web.post("/store/a%2Fb", content=b"hello")).json()["id"] == "a/b"
            assert len((await web.get("/large")).content) == 4 << 20

    run(check())


def test_the_official_grpc_client_on_the_shared_port(log: Log) -> None:
    async def check() -> None:
        async with listening(log) as listener, grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
            call = channel.unary_unary(
                services.TIKV.RawGet.path,
                request_serializer=kvrpcpb.RawGetRequest.SerializeToString,
                response_deserializer=kvrpcpb.RawGetResponse.FromString,
            )
            assert (await call(kvrpcpb.RawGetRequest(key=b"k"))).value == b"k"

    asyncio.run(asyncio.wait_for(check(), PATIENCE_S))


@pytest.mark.parametrize("size", [1, 3, 14, 24])
def test_a_preface_in_pieces_is_still_grpc(run: Any, log: Log, size: int) -> None:
    async def check() -> None:
        async with listening(log) as listener:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
            for start in range(0, len(preface), size):
                writer.write(preface[start : start + size])
                await writer.drain()
                await asyncio.sleep(0.002)
            assert (await reader.readexactly(9))[3] == 4  # a SETTINGS frame
            writer.close()

    run(check())


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "body"),
    [
        ("GET", "/nothing", {}, 404, "404 page not found\n"),
        ("GET", "/store/4/", {}, 404, "404 page not found\n"),
        ("GET", "/store/", {}, 404, "404 page not found\n"),
        ("GET", "//[", {}, 404, "404 page not found\n"),
        ("DELETE", "/store/4", {}, 405, ""),
        ("GET", "/defect", {}, 500, "ValueError in the handler; see the member's log\n"),
        ("GET", "/store/4", {"Host": "evil.example"}, 200, None),
        ("POST", "/store/4", {"Host": "evil.example"}, 403, None),
        ("POST", "/store/4", {"Host": ""}, 403, None),
        ("POST", "/store/4", {"Host": "pd0.local:2379"}, 200, None),
        ("POST", "/store/4", {"Host": "[::1]:2379"}, 200, None),
        ("POST", "/store/4", {"Host": "localhost"}, 200, None),
        ("POST", "/store/4", {"Origin": "http://evil.example"}, 403, None),
        ("POST", "/store/4", {"Origin": "null"}, 403, None),
    ],
)
def test_statuses(log: Log, method: str, path: str, headers: dict[str, str], status: int, body: str | None) -> None:
    async def check() -> None:
        async with listening(log) as listener:
            fields = {"Host": f"127.0.0.1:{listener.port}", "Connection": "close", **headers}
            head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            answer = await say(listener.port, f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())
            first, _, rest = answer.decode().partition("\r\n")
            assert first.split()[1] == str(status)
            if body is not None:
                assert rest.partition("\r\n\r\n")[2] == body

    asyncio.run(asyncio.wait_for(check(), PATIENCE_S))


def test_a_handler_that_breaks_is_logged_and_the_connection_lives_on(run: Any, log: Log, tmp_path: Path) -> None:
    async def check() -> None:
        async with listening(log) as listener, httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.port}") as web:
            assert (await web.get("/defect")).status_code == 500
            assert (await web.get("/store/4")).status_code == 200
            assert listener.connections == 1

    run(check())
    assert 'request="GET /defect"' in (tmp_path / "member.log").read_text()
    assert "secret" in (tmp_path / "member.log").read_text()


def test_head_answers_without_the_body(run: Any, log: Log) -> None:
    async def check() -> None:
        async with listening(log) as listener:
            request = b"HEAD /store/4 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            head, _, body = (await say(listener.port, request)).partition(b"\r\n\r\n")
            assert b"200 OK" in head
            assert b"Content-Length: 45" in head
            assert body == b""

    run(check())


def test_requests_in_one_piece_are_answered_in_order(run: Any, log: Log) -> None:
    async def check() -> None:
        async with listening(log) as listener:
            many = b"".join(b"GET /store/%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(20))
            last = b"GET /store/last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            answer = await say(listener.port, many + last)
            ids = [json.loads(part.partition(b"\r\n\r\n")[2])["id"] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
            assert ids == [*map(str, range(20)), "last"]

    run(check())


def test_a_client_that_closes_after_asking_still_gets_its_answer(run: Any, log: Log) -> None:
    async def check() -> None:
        async with listening(log) as listener:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(b"GET /store/4 HTTP/1.1\r\nHost: x\r\n\r\n")
            writer.write_eof()
            assert b'"id": "4"' in await reader.read()
            writer.close()
            await gone(listener)

    run(check())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"\x00\x01\x02\x03\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 50 + b"\r\n\r\n", 400),  # a TLS hello
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", 400),
        (b"POST /store/4 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * (http.MAX_HEAD + 1), 431),
        (b"POST /store/4 HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 8_500_000, 413),
        (b"PRI * HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_what_is_no_http_is_refused_and_the_others_live_on(run: Any, log: Log, sent: bytes, status: int) -> None:
    async def check() -> None:
        async with listening(log) as listener:
            answer = await say(listener.port, sent)
            assert answer.split()[1] == str(status).encode()
            assert answer.startswith(b"HTTP/1.1 ")
            await gone(listener)
            assert await get_over_grpc(listener.port) == b"k"

    run(check())


def test_a_port_without_http_closes_on_it(run: Any, log: Log) -> None:
    async def check() -> None:
        listener = Listener(log)
        await listener.start("127.0.0.1", 0, {services.TIKV.RawGet: raw_get})
        assert await say(listener.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        assert await get_over_grpc(listener.port) == b"k"
        await listener.close()

    run(check())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # the listener has no event for it, and needs none
        await asyncio.sleep(0.01)


async def gone(listener: Listener) -> None:
    """Until the server has forgotten every connection."""
    await until(lambda: listener.connections == 0)


@pytest.mark.parametrize("opening", [b"", b"P", b"PRI * HTTP/2", b"GET /store/4 HTT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_half_open_connections_are_given_up(
    run: Any, log: Log, monkeypatch: pytest.MonkeyPatch, opening: bytes
) -> None:
    monkeypatch.setattr(member, "SNIFF_S", 0.1)
    monkeypatch.setattr(http, "HEAD_S", 0.1)

    async def check() -> None:
        async with listening(log) as listener:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(opening)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            await gone(listener)

    run(check())


def test_a_head_that_trickles_in_is_given_up(run: Any, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not buy more time."""
    monkeypatch.setattr(http, "HEAD_S", 0.2)

    async def check() -> None:
        async with listening(log) as listener:
            trickle = [b"GET /store/4 HTTP/1.1\r\n", *[b"X-%d: y\r\n" % n for n in range(100)]]
            assert await say(listener.port, *trickle, pause_s=0.02) == b""
            await gone(listener)

    run(check())


def test_a_body_that_trickles_in_is_given_up(run: Any, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.2)

    async def check() -> None:
        async with listening(log) as listener:
            head = b"POST /store/4 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            assert await say(listener.port, head, *[b"x"] * 100, pause_s=0.02) == b""
            await gone(listener)

    run(check())


def test_an_idle_connection_is_given_up(run: Any, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IDLE_S", 0.1)

    async def check() -> None:
        async with listening(log) as listener:
            answer = await say(listener.port, b"GET /store/4 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in answer

    run(check())


def test_a_client_that_does_not_read_is_given_up(run: Any, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DRAIN_S", 0.2)

    async def check() -> None:
        async with listening(log) as listener:
            _, writer = await asyncio.open_connection("127.0.0.1", listener.port, limit=1024)
            writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 8)
            await until(lambda: listener.connections > 0)
            await gone(listener)
            writer.close()

    run(check())


def test_a_grpc_connection_that_shows_no_life_is_given_up(run: Any, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "SILENCE_S", 0.05)

    async def check() -> None:
        async with listening(log) as listener:
            answer = await say(listener.port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert answer[3] == 4  # SETTINGS, then pings, then the end
            await gone(listener)

    run(check())


def test_too_many_connections_are_turned_away(
    run: Any, log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(member, "MAX_CONNECTIONS", 5)

    async def check() -> None:
        async with listening(log) as listener:
            held = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(5)]
            await until(lambda: listener.connections == 5)
            assert await say(listener.port, b"GET /store/4 HTTP/1.1\r\nHost: x\r\n\r\n") == b""
            for _, writer in held:
                writer.close()
            await gone(listener)
            assert await get_over_grpc(listener.port) == b"k"

    run(check())
    assert "too many connections" in (tmp_path / "member.log").read_text()


def test_closing_ends_every_connection(run: Any, log: Log) -> None:
    async def check() -> None:
        async with listening(log) as listener:
            connections = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(3)]
            connections[1][1].write(b"GET /store/4 HTTP/1.1\r\nHost: x\r\n\r\n")
            await connections[1][0].readuntil(b"}\n")
            connections[2][1].write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            await connections[2][0].readexactly(9)
            await listener.close()
            for reader, writer in connections:
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()
            await gone(listener)

    run(check())


def test_a_taken_port_is_a_named_stop(run: Any, log: Log) -> None:
    async def check() -> None:
        async with listening(log) as first:
            with pytest.raises(NamedStop, match=rf"cannot listen on 127.0.0.1:{first.port}: .*in use"):
                await Listener(log).start("127.0.0.1", first.port, {})

    run(check())
