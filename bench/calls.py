"""What one call costs a member's process before anything is done for it: HTTP/2, gRPC and the message classes.

A server in a process of its own answers what it is asked at once; only its CPU time counts, so that the figure is the
same on a busy machine, whatever the clients cost.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager

import psutil
import uvloop

from bench.figures import Figure, Results
from bench.plan import BenchFailed
from drillyard.wire import kvrpcpb, tikvpb
from drillyard.wire.rpc import Channel, ServerStream, protocol_factory
from drillyard.wire.services import TIKV

CALLS = 6000
IN_FLIGHT = (1, 64, 256)
UNARY = Figure("call-unary", "CPU of the server for a unary call, by calls in flight", "µs")
MESSAGE = Figure("call-message", "CPU of the server for a message each way on a BatchCommands stream", "µs")

BatchStream = ServerStream[tikvpb.BatchCommandsRequest, tikvpb.BatchCommandsResponse]


def measure(results: Results) -> None:
    with serving() as (port, server):
        for in_flight in IN_FLIGHT:
            results.add(UNARY.of(in_flight), _cost_us(server, unary(port, in_flight)))
        results.add(MESSAGE, _cost_us(server, messages(port)))


def _cost_us(server: psutil.Process, work: Coroutine[None, None, None]) -> float:
    before = sum(server.cpu_times()[:2])
    uvloop.run(work)
    return (sum(server.cpu_times()[:2]) - before) / CALLS * 1e6


async def unary(port: int, in_flight: int) -> None:
    request = kvrpcpb.RawGetRequest(key=b"bench-00000000")

    async def ask(channel: Channel) -> None:
        for _ in range(CALLS // in_flight):
            await channel.unary(TIKV.RawGet, request, timeout_s=10)

    await _over_one_channel(port, lambda channel: asyncio.gather(*(ask(channel) for _ in range(in_flight))))


async def messages(port: int) -> None:
    request = tikvpb.BatchCommandsRequest(request_ids=[1], requests=[{"raw_get": {"key": b"bench-00000000"}}])

    async def ask(channel: Channel) -> None:
        async with channel.open(TIKV.BatchCommands) as stream:
            for _ in range(CALLS):
                await stream.send(request)
                await stream.recv()

    await _over_one_channel(port, ask)


async def _over_one_channel(port: int, ask: Callable[[Channel], Awaitable[object]]) -> None:
    channel = Channel("127.0.0.1", port)
    try:
        await ask(channel)
    finally:
        channel.close()


# ---- the server ----


@contextmanager
def serving() -> Iterator[tuple[int, psutil.Process]]:
    """The port and the process of a server, for the block."""
    command = [sys.executable, "-m", "bench.calls"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = process.stdout.readline().strip()
        if not told.isdigit():
            process.kill()
            raise BenchFailed(f"the server did not come up: {told!r}")
        try:
            yield int(told), psutil.Process(process.pid)
        finally:
            process.kill()


async def serve() -> None:
    async def raw_get(request: kvrpcpb.RawGetRequest) -> kvrpcpb.RawGetResponse:
        return kvrpcpb.RawGetResponse(value=request.key)

    async def batch_commands(stream: BatchStream) -> None:
        async for request in stream:
            answers = [{"raw_get": {"value": each.raw_get.key}} for each in request.requests]
            await stream.send(tikvpb.BatchCommandsResponse(request_ids=request.request_ids, responses=answers))

    loop = asyncio.get_running_loop()
    make = protocol_factory({TIKV.RawGet: raw_get, TIKV.BatchCommands: batch_commands})
    server = await loop.create_server(make, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
