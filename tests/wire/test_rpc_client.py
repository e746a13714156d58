"""Our client, against the official grpcio server, against our own, and against sockets that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from drillyard.wire import drillpb, kvrpcpb, pdpb, services, tikvpb
from drillyard.wire.method import Method
from drillyard.wire.rpc import Channel, ClientStream, RpcError, ServerStream, Status, protocol_factory

PATIENCE_S = 20.0
TIKV, PD, PEER = services.TIKV, services.PD, services.PEER


async def raw_get(request: kvrpcpb.RawGetRequest, context: Any) -> kvrpcpb.RawGetResponse:
    if request.key == b"wait":
        await asyncio.Event().wait()
    if request.key == b"refuse":
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "mismatch cluster id, 100% sure: ü")
    return kvrpcpb.RawGetResponse(value=request.key)


async def tso(requests: AsyncIterator[pdpb.TsoRequest], context: Any) -> AsyncIterator[pdpb.TsoResponse]:
    async for request in requests:
        if request.count == 13:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not leader")
        yield pdpb.TsoResponse(count=request.count)


async def snapshot(chunks: AsyncIterator[drillpb.SnapshotChunk], context: Any) -> drillpb.SnapshotResponse:
    async for chunk in chunks:
        if chunk.data == b"13":
            await context.abort(grpc.StatusCode.NOT_FOUND, "stranger")
    return drillpb.SnapshotResponse()


@asynccontextmanager
async def official_server() -> AsyncIterator[int]:
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=options)
    kinds: list[tuple[Method[Any, Any], Any, Any]] = [
        (TIKV.RawGet, grpc.unary_unary_rpc_method_handler, raw_get),
        (PD.Tso, grpc.stream_stream_rpc_method_handler, tso),
        (PEER.Snapshot, grpc.stream_unary_rpc_method_handler, snapshot),
    ]
    for method, kind, handler in kinds:
        rpc = kind(
            handler,
            request_deserializer=method.request.FromString,
            response_serializer=method.response.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(method.service, {method.name: rpc}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(None)


def ask(test: Callable[[Channel], Awaitable[None]]) -> None:
    async def run() -> None:
        async with official_server() as port:
            channel = Channel("127.0.0.1", port)
            await test(channel)
            channel.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def get(key: bytes) -> kvrpcpb.RawGetRequest:
    return kvrpcpb.RawGetRequest(key=key)


def test_unary_and_large_messages() -> None:
    async def check(channel: Channel) -> None:
        for size in (0, 1, 16_384, 17 << 20):
            answer = await channel.unary(TIKV.RawGet, get(b"x" * size), timeout_s=10)
            assert len(answer.value) == size

    ask(check)


def test_many_calls_at_once_share_one_connection() -> None:
    async def check(channel: Channel) -> None:
        answers = await asyncio.gather(*(channel.unary(TIKV.RawGet, get(b"%d" % n)) for n in range(500)))
        assert [answer.value for answer in answers] == [b"%d" % n for n in range(500)]

    ask(check)


def test_statuses_arrive_with_their_message() -> None:
    async def check(channel: Channel) -> None:
        with pytest.raises(RpcError) as failed:
            await channel.unary(TIKV.RawGet, get(b"refuse"))
        assert (failed.value.status, failed.value.message) == (
            Status.FAILED_PRECONDITION,
            "mismatch cluster id, 100% sure: ü",
        )
        with pytest.raises(RpcError) as failed:
            await channel.unary(TIKV.RawPut, kvrpcpb.RawPutRequest())
        assert failed.value.status is Status.UNIMPLEMENTED

    ask(check)


def test_deadlines() -> None:
    async def check(channel: Channel) -> None:
        with pytest.raises(RpcError) as failed:
            await channel.unary(TIKV.RawGet, get(b"wait"), timeout_s=0.2)
        assert failed.value.status is Status.DEADLINE_EXCEEDED
        assert (await channel.unary(TIKV.RawGet, get(b"k"))).value == b"k"

    ask(check)


def test_streams_both_ways() -> None:
    async def check(channel: Channel) -> None:
        async with channel.open(PD.Tso) as stream:
            for count in (1, 2, 3):
                await stream.send(pdpb.TsoRequest(count=count))
                answer = await stream.recv()
                assert answer is not None
                assert answer.count == count
            await stream.end()
            assert await stream.recv() is None

    ask(check)


def test_a_stream_that_fails_says_why() -> None:
    async def check(channel: Channel) -> None:
        async with channel.open(PD.Tso) as stream:
            await stream.send(pdpb.TsoRequest(count=13))
            with pytest.raises(RpcError, match="UNAVAILABLE: not leader"):
                await stream.recv()

    ask(check)


def test_a_server_that_ends_a_client_stream_early_is_heard_by_the_sender() -> None:
    async def check(channel: Channel) -> None:
        async def send_on(stream: ClientStream[drillpb.SnapshotChunk, drillpb.SnapshotResponse]) -> None:
            for _ in range(100_000):
                await stream.send(drillpb.SnapshotChunk(data=b"13"))
                await asyncio.sleep(0)

        async with channel.open(PEER.Snapshot) as stream:
            with pytest.raises(RpcError, match="NOT_FOUND: stranger"):
                await send_on(stream)

    ask(check)


def test_leaving_a_stream_cancels_it() -> None:
    async def run() -> None:
        came, left = asyncio.Event(), asyncio.Event()

        async def serve(stream: ServerStream[pdpb.TsoRequest, pdpb.TsoResponse]) -> None:
            try:
                async for _ in stream:
                    came.set()
            finally:
                left.set()

        async with our_server({PD.Tso: serve}) as port:
            channel = Channel("127.0.0.1", port)
            async with channel.open(PD.Tso) as stream:
                await stream.send(pdpb.TsoRequest())
                await came.wait()
            await left.wait()
            channel.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


@asynccontextmanager
async def our_server(handlers: Any) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(protocol_factory(handlers), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@asynccontextmanager
async def socket_that(behaves: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[int]:
    server = await asyncio.start_server(behaves, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


def failure_against(behaves: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], timeout_s: float) -> RpcError:
    async def run() -> RpcError:
        async with socket_that(behaves) as port:
            channel = Channel("127.0.0.1", port)
            with pytest.raises(RpcError) as failed:
                await channel.unary(TIKV.RawGet, get(b"k"), timeout_s=timeout_s)
            channel.close()
            return failed.value

    return asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_nobody_there_is_unavailable() -> None:
    async def run() -> None:
        async with our_server({}) as port:
            pass
        channel = Channel("127.0.0.1", port)
        for _ in range(2):
            with pytest.raises(RpcError) as failed:
                await channel.unary(TIKV.RawGet, get(b"k"), timeout_s=5)
            assert failed.value.status is Status.UNAVAILABLE
        channel.close()
        with pytest.raises(RpcError, match="is closed"):
            await channel.unary(TIKV.RawGet, get(b"k"))

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_a_lost_connection_is_unavailable_and_made_anew() -> None:
    async def run() -> None:
        wires: list[Any] = []
        asked = asyncio.Event()

        async def handler(request: kvrpcpb.RawGetRequest) -> kvrpcpb.RawGetResponse:
            if request.key == b"wait":
                asked.set()
                await asyncio.Event().wait()
            return kvrpcpb.RawGetResponse(value=request.key)

        make = protocol_factory({TIKV.RawGet: handler})

        def remembered() -> Any:
            wires.append(make())
            return wires[-1]

        server = await asyncio.get_running_loop().create_server(remembered, "127.0.0.1", 0)
        channel = Channel("127.0.0.1", server.sockets[0].getsockname()[1])
        call = asyncio.ensure_future(channel.unary(TIKV.RawGet, get(b"wait")))
        await asked.wait()
        wires[0].transport.abort()
        with pytest.raises(RpcError) as failed:
            await call
        assert failed.value.status is Status.UNAVAILABLE
        assert (await channel.unary(TIKV.RawGet, get(b"k"))).value == b"k"
        wires[1].end_connection()
        with contextlib.suppress(RpcError):  # the goodbye may not have arrived yet
            await channel.unary(TIKV.RawGet, get(b"k"))
        assert (await channel.unary(TIKV.RawGet, get(b"k"), timeout_s=5)).value == b"k"
        channel.close()
        server.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_a_socket_that_says_nothing_is_a_passed_deadline() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    assert failure_against(silent, 0.3).status is Status.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    "says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 100, b""], ids=["http", "zeros", "bye"]
)
def test_a_socket_that_speaks_something_else_is_unavailable(says: bytes) -> None:
    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        await writer.drain()
        writer.close()

    assert failure_against(stranger, 5).status is Status.UNAVAILABLE


def test_keepalive_gives_up_a_connection_that_stands_still() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def run() -> None:
        async with socket_that(mute) as port:
            channel = Channel("127.0.0.1", port, keepalive_s=0.05)
            with pytest.raises(RpcError, match="no sign of life"):
                await channel.unary(TIKV.RawGet, get(b"k"))
            channel.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_keepalive_leaves_a_living_connection_alone() -> None:
    async def run() -> None:
        release = asyncio.Event()

        async def slow(request: kvrpcpb.RawGetRequest) -> kvrpcpb.RawGetResponse:
            await release.wait()
            return kvrpcpb.RawGetResponse(value=request.key)

        async with our_server({TIKV.RawGet: slow}) as port:
            channel = Channel("127.0.0.1", port, keepalive_s=0.02)
            asyncio.get_running_loop().call_later(0.3, release.set)
            assert (await channel.unary(TIKV.RawGet, get(b"k"))).value == b"k"
            channel.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_a_cancelled_call_leaves_the_task_sane_and_the_channel_usable() -> None:
    """A lost stream must not count as a cancellation of the task, or task groups after it break."""

    async def check(channel: Channel) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.unary(TIKV.RawGet, get(b"wait")), 0.1)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert (await channel.unary(TIKV.RawGet, get(b"k"))).value == b"k"

    ask(check)


def test_many_streams_that_each_take_a_little_do_not_starve_the_connection() -> None:
    """Windows are given back late, because it is dear; never so late that the connection stands still."""

    async def run() -> None:
        async def serve(stream: ServerStream[tikvpb.BatchCommandsRequest, tikvpb.BatchCommandsResponse]) -> None:
            async for request in stream:
                await stream.send(tikvpb.BatchCommandsResponse(request_ids=request.request_ids))

        async with our_server({TIKV.BatchCommands: serve}) as port, contextlib.AsyncExitStack() as stack:
            channel = Channel("127.0.0.1", port)
            request = tikvpb.BatchCommandsRequest(requests=[{"raw_put": {"value": b"x" * 16_367}}], request_ids=[1])
            assert request.ByteSize() + 5 == 1 << 14  # so that the window is used up at the end of a message
            for _ in range(66):  # half a MiB each, 33 MiB in all; the connection's window is 32
                stream = await stack.enter_async_context(channel.open(TIKV.BatchCommands))
                for _ in range(32):
                    await stream.send(request)
                    answer = await stream.recv()
                    assert answer is not None
            channel.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_closing_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Calls in flight, then the end: no warning, no complaint about tasks or sockets."""

    async def run() -> None:
        async with official_server() as port:
            channel = Channel("127.0.0.1", port)
            calls = [asyncio.ensure_future(channel.unary(TIKV.RawGet, get(b"wait"))) for _ in range(5)]
            await channel.unary(TIKV.RawGet, get(b"k"))
            channel.close()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} == {RpcError}

    gc.collect()  # what other tests left
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
        gc.collect()
    assert [str(warning.message) for warning in said if warning.category is ResourceWarning] == []
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
