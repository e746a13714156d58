"""Our server, asked by the official grpcio client and by raw HTTP/2 frames."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes

from drillyard.wire import drillpb, kvrpcpb, pdpb, services, tikvpb
from drillyard.wire.rpc import MAX_MESSAGE, Handlers, RpcError, ServerStream, Status, protocol_factory

PATIENCE_S = 20.0
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
TIKV = services.TIKV


class Store:
    """Handlers, and what they saw."""

    def __init__(self) -> None:
        self.broken: list[tuple[str, Exception]] = []
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()
        self.delivered: list[bytes] = []

    def handlers(self) -> Handlers:
        return {
            TIKV.RawGet: self.raw_get,
            TIKV.BatchCommands: self.batch_commands,
            services.PD.Tso: self.tso,
            services.PEER.Snapshot: self.snapshot,
        }

    def on_error(self, path: str, error: Exception) -> None:
        self.broken.append((path, error))

    async def raw_get(self, request: kvrpcpb.RawGetRequest) -> kvrpcpb.RawGetResponse:
        if request.key == b"wait":
            self.started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        if request.key == b"refuse":
            raise RpcError(Status.FAILED_PRECONDITION, "mismatch cluster id, 100% sure: ü\n")
        if request.key == b"defect":
            raise ValueError("secret details")
        if request.key == b"time":
            raise TimeoutError("the handler's own")
        if request.key == b"nothing":
            return None  # type: ignore[return-value]
        return kvrpcpb.RawGetResponse(value=request.key)

    async def batch_commands(
        self, stream: ServerStream[tikvpb.BatchCommandsRequest, tikvpb.BatchCommandsResponse]
    ) -> None:
        async for request in stream:
            await stream.send(tikvpb.BatchCommandsResponse(request_ids=request.request_ids))

    async def tso(self, stream: ServerStream[pdpb.TsoRequest, pdpb.TsoResponse]) -> None:
        async for request in stream:
            if request.count == 13:
                raise RpcError(Status.UNAVAILABLE, "not leader")
            self.started.set()
            try:
                await stream.send(pdpb.TsoResponse(count=request.count))
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    async def snapshot(self, stream: ServerStream[drillpb.SnapshotChunk, drillpb.SnapshotResponse]) -> None:
        self.delivered = [chunk.data async for chunk in stream]
        await stream.send(drillpb.SnapshotResponse())


@asynccontextmanager
async def serving(store: Store) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol_factory(store.handlers(), store.on_error), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


def ask(store_test: Callable[[Store, grpc.aio.Channel], Awaitable[None]]) -> None:
    async def run() -> None:
        store = Store()
        async with serving(store) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
            await store_test(store, channel)

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def unary(channel: grpc.aio.Channel, method: Any) -> Any:
    return channel.unary_unary(
        method.path,
        request_serializer=lambda request: request if isinstance(request, bytes) else request.SerializeToString(),
        response_deserializer=method.response.FromString,
    )


def streaming(channel: grpc.aio.Channel, method: Any) -> Any:
    return channel.stream_stream(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )


def get(key: bytes) -> kvrpcpb.RawGetRequest:
    return kvrpcpb.RawGetRequest(key=key)


def test_unary() -> None:
    async def check(store: Store, channel: grpc.aio.Channel) -> None:
        answer = await unary(channel, TIKV.RawGet)(get(b"k"))
        assert answer.value == b"k"

    ask(check)


def test_large_messages_both_ways() -> None:
    async def check(store: Store, channel: grpc.aio.Channel) -> None:
        for size in (0, 1, 16_384, 65_536, 17 << 20):
            answer = await unary(channel, TIKV.RawGet)(get(b"x" * size))
            assert len(answer.value) == size

    ask(check)


@pytest.mark.parametrize(
    ("key", "status", "message"),
    [
        (b"refuse", grpc.StatusCode.FAILED_PRECONDITION, "mismatch cluster id, 100% sure: ü\n"),
        (b"defect", grpc.StatusCode.UNKNOWN, "ValueError in the handler; see the member's log"),
        (b"time", grpc.StatusCode.UNKNOWN, "TimeoutError in the handler; see the member's log"),
        (b"nothing", grpc.StatusCode.UNKNOWN, "TypeError in the handler; see the member's log"),
    ],
)
def test_failures_have_a_status_and_the_connection_lives_on(key: bytes, status: grpc.StatusCode, message: str) -> None:
    async def check(store: Store, channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await unary(channel, TIKV.RawGet)(get(key))
        assert (failed.value.code(), failed.value.details()) == (status, message)
        assert [path for path, _ in store.broken] == ([] if key == b"refuse" else [TIKV.RawGet.path])
        assert (await unary(channel, TIKV.RawGet)(get(b"k"))).value == b"k"

    ask(check)


def test_malformed_protobuf_is_refused_and_nothing_else_suffers() -> None:
    async def check(store: Store, channel: grpc.aio.Channel) -> None:
        beside = asyncio.ensure_future(unary(channel, TIKV.RawGet)(get(b"wait")))
        await store.started.wait()
        for garbage in (b"\xff", b"\x0a\x05x", b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await unary(channel, TIKV.RawGet)(garbage)
            assert failed.value.code() is grpc.StatusCode.INTERNAL
            assert "no kvrpcpb.RawGetRequest" in failed.value.details()
        assert not beside.done()
        beside.cancel()
        assert store.broken == []

    ask(check)


def test_unknown_methods() -> None:
    async def check(store: Store, channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await unary(channel, TIKV.RawPut)(get(b"k"))
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert failed.value.details() == "unknown method /tikvpb.Tikv/RawPut"

    ask(check)


def test_a_deadline_ends_the_handler() -> None:
    async def check(store: Store, channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await unary(channel, TIKV.RawGet)(get(b"wait"), timeout=0.2)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await store.cancelled.wait()
        assert store.broken == []

    ask(check)


def test_a_client_that_gives_up_cancels_the_handler() -> None:
    async def check(store: Store, channel: grpc.aio.Channel) -> None:
        call = unary(channel, TIKV.RawGet)(get(b"wait"))
        await store.started.wait()
        call.cancel()
        await store.cancelled.wait()
        assert store.broken == []

    ask(check)


def test_streams_both_ways_and_their_end() -> None:
    async def check(store: Store, channel: grpc.aio.Channel) -> None:
        call = streaming(channel, TIKV.BatchCommands)()
        for number in range(50):
            await call.write(tikvpb.BatchCommandsRequest(request_ids=[number, number + 1]))
            assert list((await call.read()).request_ids) == [number, number + 1]
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

    ask(check)


def test_a_stream_may_fail_half_way() -> None:
    async def check(store: Store, channel: grpc.aio.Channel) -> None:
        call = streaming(channel, services.PD.Tso)()
        await call.write(pdpb.TsoRequest(count=1))
        assert (await call.read()).count == 1
        await call.write(pdpb.TsoRequest(count=13))
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert (await call.code(), await call.details()) == (grpc.StatusCode.UNAVAILABLE, "not leader")

    ask(check)


def test_many_streams_on_one_connection() -> None:
    async def check(store: Store, channel: grpc.aio.Channel) -> None:
        calls = [streaming(channel, TIKV.BatchCommands)() for _ in range(300)]
        for number, call in enumerate(calls):
            await call.write(tikvpb.BatchCommandsRequest(request_ids=[number]))
        answers = [await call.read() for call in calls]
        assert [answer.request_ids[0] for answer in answers] == list(range(300))

    ask(check)


def test_client_streaming() -> None:
    async def check(store: Store, channel: grpc.aio.Channel) -> None:
        call = channel.stream_unary(
            services.PEER.Snapshot.path,
            request_serializer=drillpb.SnapshotChunk.SerializeToString,
            response_deserializer=drillpb.SnapshotResponse.FromString,
        )
        pieces = [b"", b"x" * 200_000, b"y"]
        await call(iter([drillpb.SnapshotChunk(data=piece) for piece in pieces]))
        assert store.delivered == pieces

    ask(check)


# ---- what no gRPC library sends ----


class RawClient:
    """Frames by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = H2Connection(H2Configuration(header_encoding="utf-8", validate_outbound_headers=False))
        self.h2.initiate_connection()
        self.events: list[Any] = []

    def headers(self, **changes: str) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": TIKV.RawGet.path,
            ":authority": "x",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        fields |= {name.replace("_", "-"): value for name, value in changes.items()}
        self.h2.send_headers(stream_id, list(fields.items()))
        return stream_id

    async def status(self, stream_id: int) -> tuple[str, str]:
        """gRPC (or else HTTP) status and message of a stream that the server ends."""
        while True:
            self.writer.write(self.h2.data_to_send())
            for event in self.events:
                if getattr(event, "stream_id", None) == stream_id and getattr(event, "headers", None):
                    fields = dict(event.headers)
                    if "grpc-status" in fields or fields.get(":status", "200") != "200":
                        return str(fields.get("grpc-status", fields.get(":status"))), str(
                            fields.get("grpc-message", "")
                        )
            data = await self.reader.read(65536)
            assert data, "the server closed the connection"
            self.events += self.h2.receive_data(data)


def raw(test: Callable[[Store, RawClient], Awaitable[None]]) -> None:
    async def run() -> None:
        store = Store()
        async with serving(store) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await test(store, RawClient(reader, writer))
            writer.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_an_oversized_message_is_refused_before_it_arrives() -> None:
    async def check(store: Store, client: RawClient) -> None:
        stream = client.headers()
        client.h2.send_data(stream, b"\x00" + (MAX_MESSAGE + 1).to_bytes(4, "big"))
        status, message = await client.status(stream)
        assert status == str(Status.RESOURCE_EXHAUSTED.value)
        assert str(MAX_MESSAGE) in message

    raw(check)


@pytest.mark.parametrize(
    ("changes", "data", "expected"),
    [
        ({}, b"\x01\x00\x00\x00\x01x", Status.UNIMPLEMENTED),  # compressed
        ({}, b"\x00\x00\x00\x00\x09half", Status.INTERNAL),
        ({}, b"", Status.INTERNAL),  # no message at all
        ({"grpc_timeout": "soon"}, b"\x00\x00\x00\x00\x00", Status.INTERNAL),
        ({":method": "GET"}, b"", 415),
        ({"content_type": "application/json"}, b"{}", 415),
    ],
)
def test_requests_that_are_no_grpc(changes: dict[str, str], data: bytes, expected: Status | int) -> None:
    async def check(store: Store, client: RawClient) -> None:
        stream = client.headers(**changes)
        client.h2.send_data(stream, data, end_stream=True)
        status, _ = await client.status(stream)
        assert status == str(expected.value if isinstance(expected, Status) else expected)
        good = client.headers()
        client.h2.send_data(good, b"\x00\x00\x00\x00\x03\x12\x01k", end_stream=True)
        assert await client.status(good) == ("0", "")

    raw(check)


def test_garbage_after_the_preface_ends_that_connection_alone() -> None:
    async def run() -> None:
        store = Store()
        async with serving(store) as port:
            other, other_writer = await asyncio.open_connection("127.0.0.1", port)
            client = RawClient(other, other_writer)
            for garbage in (
                b"\x00" * 64,
                b"\xff" * (2 << 20),
                b"\x00\x00\x05\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff\xff",
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + garbage)
                with contextlib.suppress(ConnectionError):
                    while await reader.read(65536):
                        pass
                writer.close()
            stream = client.headers()
            client.h2.send_data(stream, b"\x00\x00\x00\x00\x03\x12\x01k", end_stream=True)
            assert await client.status(stream) == ("0", "")
            other_writer.close()
            assert store.broken == []

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_a_client_that_does_not_read_holds_up_only_itself() -> None:
    """Answers wait for the client's window; the other stream of the same connection goes on."""

    async def check(store: Store, client: RawClient) -> None:
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})  # of which nothing is given back
        stuck, other = client.headers(), client.headers()
        body = get(b"x" * 10_000).SerializeToString()
        client.h2.send_data(stuck, b"\x00" + len(body).to_bytes(4, "big") + body, end_stream=True)
        client.h2.send_data(other, b"\x00\x00\x00\x00\x03\x12\x01k", end_stream=True)
        assert await client.status(other) == ("0", "")
        assert sum(len(event.data) for event in client.events if getattr(event, "data", b"")) < 2000

    raw(check)


def test_losing_the_connection_cancels_its_handlers() -> None:
    async def run() -> None:
        store = Store()
        async with serving(store) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            client = RawClient(reader, writer)
            stream = client.headers()
            body = get(b"wait").SerializeToString()
            client.h2.send_data(stream, b"\x00" + len(body).to_bytes(4, "big") + body, end_stream=True)
            writer.write(client.h2.data_to_send())
            await store.started.wait()
            writer.transport.abort()
            await store.cancelled.wait()
            assert store.broken == []

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
