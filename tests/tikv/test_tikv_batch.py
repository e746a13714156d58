"""One BatchCommands stream against clients that do not read, go away, or ask for more than a message may hold."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest

from drillyard.emulator.metrics import Registry
from drillyard.emulator.tikv import service as tikv_service
from drillyard.emulator.tikv.service import MAX_IN_FLIGHT, SEND_BYTES, Service
from drillyard.wire import kvrpcpb, tikvpb
from drillyard.wire.rpc import RpcError, Status

Send = Callable[[tikvpb.BatchCommandsResponse], Any]


class Raw:
    """Answers each get at once, with a value of the size that the key says."""

    def __getattr__(self, name: str) -> Any:
        async def answer(request: Any) -> Any:
            return kvrpcpb.RawGetResponse(value=b"v" * int(request.key))

        return answer


class Stream:
    """A client that asks for values and then waits, without closing its side."""

    def __init__(self, keys: list[bytes], send: Send) -> None:
        self.asked = 0
        self.sent: list[tikvpb.BatchCommandsResponse] = []
        self._keys = keys
        self._send = send

    def greet(self) -> None:
        pass

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> tikvpb.BatchCommandsRequest:
        if self.asked == len(self._keys):
            await asyncio.Event().wait()
        key = self._keys[self.asked]
        self.asked += 1
        request = tikvpb.BatchCommandsRequest.Request(raw_get=kvrpcpb.RawGetRequest(key=key))
        return tikvpb.BatchCommandsRequest(requests=[request], request_ids=[self.asked])

    async def send(self, message: tikvpb.BatchCommandsResponse) -> None:
        await self._send(message)
        self.sent.append(message)


def serving(stream: Stream) -> asyncio.Task[None]:
    service = Service(Raw(), MagicMock(), MagicMock(), Registry())  # type: ignore[arg-type]
    return asyncio.create_task(service.batch_commands(stream))  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_a_client_that_reads_no_answers_is_not_read_further() -> None:
    async def never(message: tikvpb.BatchCommandsResponse) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        stream = Stream([b"1"] * (3 * MAX_IN_FLIGHT), never)
        task = serving(stream)
        for _ in range(3 * MAX_IN_FLIGHT):
            await settle()
        assert stream.asked <= MAX_IN_FLIGHT + 1
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(scenario())


def test_answers_that_are_large_together_are_sent_apart() -> None:
    async def scenario() -> None:
        async def take(message: tikvpb.BatchCommandsResponse) -> None:
            await asyncio.sleep(0)

        size = SEND_BYTES // 3
        stream = Stream([b"%d" % size] * 10, take)
        task = serving(stream)
        async with asyncio.timeout(10):
            while sum(len(message.request_ids) for message in stream.sent) < 10:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert max(message.ByteSize() for message in stream.sent) <= SEND_BYTES + size
        assert sorted(number for message in stream.sent for number in message.request_ids) == list(range(1, 11))
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(scenario())


def test_an_answer_that_cannot_be_sent_ends_the_stream_at_once() -> None:
    async def refuse(message: tikvpb.BatchCommandsResponse) -> None:
        raise RpcError(Status.RESOURCE_EXHAUSTED, "too large")

    async def scenario() -> None:
        with pytest.raises(RpcError, match="too large"):
            async with asyncio.timeout(10):
                await serving(Stream([b"1"], refuse))

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", range(12))
def test_a_client_that_leaves_while_it_is_answered_harms_nobody(turns: int) -> None:
    """Whatever the order in which sender and handler learn of it: an exception that nobody fetched ends a member."""

    async def gone(message: tikvpb.BatchCommandsResponse) -> None:
        raise RpcError(Status.UNAVAILABLE, "the stream is closed")

    async def scenario() -> list[dict[str, Any]]:
        alarms: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: alarms.append(context))
        task = serving(Stream([b"1"], gone))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        del task
        await settle()
        gc.collect()
        return alarms

    assert asyncio.run(scenario()) == []


def test_an_answer_without_a_field_for_the_refusal_ends_the_stream_and_not_the_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As an arm would that a later version of the protocol adds."""

    def no_field(answer: Any, name: str) -> None:
        raise RpcError(Status.UNIMPLEMENTED, name)

    monkeypatch.setattr(tikv_service, "refuse", no_field)

    async def scenario() -> None:
        alarms: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: alarms.append(context))
        batch: Any = Stream([b"1"], lambda message: asyncio.sleep(0))
        asked = tikvpb.BatchCommandsRequest.Request(coprocessor={})
        request = tikvpb.BatchCommandsRequest(requests=[asked], request_ids=[1])

        async def once() -> tikvpb.BatchCommandsRequest:
            if batch.asked:
                await asyncio.Event().wait()
            batch.asked = 1
            return request

        batch.__class__ = type("Once", (Stream,), {"__anext__": lambda self: once()})
        with pytest.raises(RpcError, match="coprocessor"):
            async with asyncio.timeout(10):
                await serving(batch)
        gc.collect()
        assert alarms == []

    asyncio.run(scenario())
