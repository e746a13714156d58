"""Two transports on loopback: delivery in order, loss and return of a target, full queues, snapshots that break off."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from drillyard.emulator.logs import Log
from drillyard.emulator.peers import Transport, TransportOptions
from drillyard.wire import drillpb, metapb
from drillyard.wire.rpc import Channel, RpcError, Status, protocol_factory
from drillyard.wire.services import PEER

CLUSTER = 77
QUICK = TransportOptions(shortest_pause_s=0.01, longest_pause_s=0.05, connect_s=1)
MIB = 1 << 20


def envelope(number: int, *, to: int = 2, cluster: int = CLUSTER, size: int = 0) -> drillpb.Envelope:
    message = drillpb.RaftMessage(index=number, context=b"x" * size)
    return drillpb.Envelope(
        cluster_id=cluster,
        region_id=1,
        from_peer=metapb.Peer(id=11, store_id=1),
        to_peer=metapb.Peer(id=12, store_id=to),
        message=message,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@dataclass
class Address:
    """What PD would know; `known` is what it answers, or raises."""

    known: str | RpcError | None = None
    asked: int = 0

    async def resolve(self, member: int) -> str | None:
        self.asked += 1
        if isinstance(self.known, RpcError):
            raise self.known
        return self.known


@dataclass
class Lines:
    """A log that can be read."""

    path: Path

    def __post_init__(self) -> None:
        self.log = Log(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), owns=True)

    def count(self, text: str) -> int:
        return self.path.read_text().count(text)


@dataclass
class Receiver:
    """Member 2: a server whose transport takes things in."""

    member: int = 2
    options: TransportOptions = QUICK
    arrived: list[int] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    problems: list[Exception] = field(default_factory=list)
    server: asyncio.Server | None = None
    connections: list[Any] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, lines: Lines, port: int = 0) -> str:
        self.transport = Transport(Address().resolve, lambda member: None, lines.log, self.options)
        self.transport.identify(CLUSTER, self.member)
        handlers = self.transport.handlers(self._deliver, self._snapshot)
        make = protocol_factory(handlers, lambda path, error: self.problems.append(error))

        def connection() -> asyncio.Protocol:
            self.connections.append(make())
            return self.connections[-1]  # type: ignore[no-any-return]

        self.server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", port)
        host, port = self.server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def stop(self) -> None:
        assert self.server is not None
        self.server.close()
        for connection in self.connections:
            connection.transport.abort()
        await self.transport.close()

    def _deliver(self, envelope: drillpb.Envelope) -> None:
        self.arrived.append(envelope.message.index)

    async def _snapshot(self, envelope: drillpb.Envelope, data: AsyncIterator[bytes]) -> None:
        self.states.append("begun")
        try:
            await self.gate.wait()
            async for chunk in data:
                assert len(chunk) <= self.options.chunk_bytes
                self.data += chunk
        except BaseException:
            self.states.append("broken off")
            raise
        self.states.append(f"whole {envelope.message.index}")


@dataclass
class Scene:
    lines: Lines
    address: Address
    receiver: Receiver
    sender: Transport
    unreachable: list[int]


def play(scenario: Callable[[Scene], Awaitable[None]], options: TransportOptions = QUICK) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            lines, address, receiver = Lines(Path(scratch) / "log"), Address(), Receiver(options=options)
            address.known = await receiver.start(lines)
            unreachable: list[int] = []
            sender = Transport(address.resolve, unreachable.append, lines.log, options)
            try:
                await scenario(Scene(lines, address, receiver, sender, unreachable))
            finally:
                await sender.close()
                await receiver.stop()
                lines.log.close()

    asyncio.run(run())


# Messages


def test_envelopes_arrive_in_order_over_one_stream() -> None:
    async def scenario(scene: Scene) -> None:
        for number in range(1000):
            scene.sender.send(2, envelope(number))
        await until(lambda: len(scene.receiver.arrived) == 1000)
        scene.sender.send(2, envelope(1000, size=3 * MIB))  # larger than a batch
        await until(lambda: len(scene.receiver.arrived) == 1001)
        assert scene.receiver.arrived == list(range(1001))
        assert len(scene.receiver.connections) == 1
        assert scene.sender.dropped == 0
        assert scene.unreachable == []

    play(scenario)


def test_a_target_that_goes_and_comes_back_elsewhere_is_found_again() -> None:
    async def scenario(scene: Scene) -> None:
        scene.sender.send(2, envelope(1))
        await until(lambda: scene.receiver.arrived == [1])
        await scene.receiver.stop()

        def is_tried_again() -> bool:
            scene.sender.send(2, envelope(2))
            return len(scene.unreachable) >= 3

        await until(is_tried_again)
        assert set(scene.unreachable) == {2}
        other = Receiver()
        scene.address.known = await other.start(scene.lines)

        def arrives() -> bool:
            scene.sender.send(2, envelope(3))
            return 3 in other.arrived

        await until(arrives)
        assert scene.lines.count("no raft stream to a member") >= 1
        assert scene.lines.count("is back") == 1
        await other.stop()

    play(scenario)


def test_an_idle_stream_that_ends_is_noticed_before_the_next_envelope() -> None:
    async def scenario(scene: Scene) -> None:
        scene.sender.send(2, envelope(1))
        await until(lambda: scene.receiver.arrived == [1])
        for connection in scene.receiver.connections:
            connection.transport.abort()
        await until(lambda: scene.unreachable == [2])
        scene.sender.send(2, envelope(2))
        await until(lambda: scene.receiver.arrived == [1, 2])

    play(scenario)


def test_with_nobody_to_ask_the_last_known_address_is_tried() -> None:
    async def scenario(scene: Scene) -> None:
        scene.sender.send(2, envelope(1))
        await until(lambda: scene.receiver.arrived == [1])
        for answer in (RpcError(Status.UNAVAILABLE, "PD is away"), None):
            scene.address.known = answer
            asked = scene.address.asked
            for connection in scene.receiver.connections:
                connection.transport.abort()
            await until(lambda: bool(scene.unreachable))
            scene.unreachable.clear()
            scene.receiver.arrived.clear()
            scene.sender.send(2, envelope(2))
            await until(lambda: scene.receiver.arrived == [2])
            assert scene.address.asked > asked

    play(scenario)


@pytest.mark.parametrize("answer", [None, RpcError(Status.UNAVAILABLE, "PD is away"), "nonsense", ":1", "host:port"])
def test_a_member_without_a_usable_address_is_unreachable(answer: str | RpcError | None) -> None:
    async def scenario(scene: Scene) -> None:
        working, scene.address.known = scene.address.known, answer
        scene.sender.send(2, envelope(1))
        await until(lambda: len(scene.unreachable) >= 2)
        assert scene.lines.count("no raft stream to a member") == 1  # not for each attempt
        scene.address.known = working
        scene.sender.send(2, envelope(2))
        await until(lambda: 2 in scene.receiver.arrived)

    play(scenario)


def test_a_resolver_that_fails_in_an_unknown_way_is_not_silent() -> None:
    async def scenario(scene: Scene) -> None:
        problems: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context["exception"]))

        async def broken(member: int) -> str | None:
            raise KeyError(member)

        scene.sender._resolve = broken
        scene.sender.send(2, envelope(1))
        await until(lambda: [type(problem) for problem in problems] == [KeyError])

    play(scenario)


def test_envelopes_that_waited_too_long_for_a_connection_are_left_out() -> None:
    async def scenario(scene: Scene) -> None:
        working, scene.address.known = scene.address.known, None
        scene.sender.send(2, envelope(1))
        await until(lambda: scene.sender.dropped == 1)
        scene.address.known = working
        scene.sender.send(2, envelope(2))
        await until(lambda: bool(scene.receiver.arrived))
        assert scene.receiver.arrived == [2]

    play(scenario, replace(QUICK, stale_s=0))


def test_a_message_from_the_other_side_ends_the_pause() -> None:
    async def scenario(scene: Scene) -> None:
        """The pause would last longer than the test."""
        server = await asyncio.get_running_loop().create_server(
            protocol_factory(scene.sender.handlers(lambda each: None, scene.receiver._snapshot)), "127.0.0.1", 0
        )
        scene.sender.identify(CLUSTER, 1)
        working, scene.address.known = scene.address.known, None
        scene.sender.send(2, envelope(1))
        await until(lambda: scene.unreachable == [2])
        scene.address.known = working
        own = server.sockets[0].getsockname()
        back = Transport(Address(f"{own[0]}:{own[1]}").resolve, lambda member: None, scene.lines.log, QUICK)
        answer = envelope(5, to=1)
        answer.from_peer.store_id = 2
        back.send(1, answer)
        await until(lambda: scene.receiver.arrived == [1])
        await back.close()
        server.close()

    play(scenario, replace(QUICK, shortest_pause_s=1000, longest_pause_s=1000, stale_s=1000))


def test_a_sign_of_life_during_an_attempt_that_fails_ends_the_pause_after_it() -> None:
    async def scenario(scene: Scene) -> None:
        """The pause would last longer than the test."""
        attempts: list[int] = []

        async def nowhere(member: int) -> str | None:
            attempts.append(member)
            if len(attempts) == 1:
                scene.sender.hurry(member)
            return None

        scene.sender._resolve = nowhere
        scene.sender.send(2, envelope(1))
        await until(lambda: scene.unreachable == [2, 2])
        assert len(attempts) == 2

    play(scenario, replace(QUICK, shortest_pause_s=1000, longest_pause_s=1000, stale_s=1000))


def test_a_full_queue_drops_and_says_so_and_sending_never_waits() -> None:
    async def scenario(scene: Scene) -> None:
        gate = asyncio.Event()
        arrived: list[int] = []

        async def slow(stream: Any) -> None:
            stream.greet()
            await gate.wait()
            async for batch in stream:
                arrived.extend(drillpb.Envelope.FromString(each).message.index for each in batch.envelopes)

        server = await asyncio.get_running_loop().create_server(protocol_factory({PEER.Deliver: slow}), "127.0.0.1", 0)
        scene.address.known = "{}:{}".format(*server.sockets[0].getsockname())
        number = 0
        while scene.sender.dropped < 10:
            scene.sender.send(2, envelope(number, size=100_000))
            number += 1
            await asyncio.sleep(0)
        assert number < 500  # what is queued and under way is bounded
        await until(lambda: scene.unreachable == [2])  # once, and not for each
        gate.set()
        await until(lambda: len(arrived) == number - 10)
        scene.sender.send(2, envelope(12345))
        await until(lambda: arrived[-1] == 12345)
        assert arrived == sorted(arrived)
        server.close()

    play(scenario, replace(QUICK, queue_bytes=2 * MIB))


def test_a_queue_is_bounded_in_envelopes_too() -> None:
    async def scenario(scene: Scene) -> None:
        for number in range(25):
            scene.sender.send(2, envelope(number))
        assert scene.sender.dropped == 15
        await until(lambda: scene.receiver.arrived == list(range(10)))

    play(scenario, replace(QUICK, queue_envelopes=10))


@pytest.mark.parametrize("stranger", [envelope(1, cluster=CLUSTER + 1), envelope(1, to=3)])
def test_messages_for_another_cluster_or_member_are_refused_and_logged(stranger: drillpb.Envelope) -> None:
    async def scenario(scene: Scene) -> None:
        scene.sender.send(2, stranger)
        await until(lambda: bool(scene.unreachable))
        assert scene.lines.count("refused raft messages") >= 1
        assert scene.lines.count("FAILED_PRECONDITION") >= 1
        assert scene.receiver.arrived == []
        with pytest.raises(RpcError) as raised:
            await scene.sender.send_snapshot(2, stranger, chunks(10))
        assert raised.value.status is Status.FAILED_PRECONDITION
        assert scene.receiver.states == []
        scene.sender.send(2, envelope(2))  # the next stream is as good as any
        await until(lambda: scene.receiver.arrived == [2])

    play(scenario)


def test_a_member_that_does_not_know_yet_who_it_is_takes_nothing_in() -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.transport.identify(0, 0)
        scene.sender.send(2, envelope(0, cluster=0, to=0))
        await until(lambda: bool(scene.unreachable))
        scene.receiver.transport.identify(CLUSTER, 2)
        scene.sender.send(2, envelope(1))
        await until(lambda: 1 in scene.receiver.arrived)
        assert 0 not in scene.receiver.arrived

    play(scenario)


def test_bytes_that_are_no_envelope_end_their_stream_only() -> None:
    async def scenario(scene: Scene) -> None:
        assert isinstance(scene.address.known, str)
        host, port = scene.address.known.split(":")
        channel = Channel(host, int(port))
        async with channel.open(PEER.Deliver) as stream:
            await stream.send(drillpb.Envelopes(envelopes=[b"\xff\xff"]))
            with pytest.raises(RpcError) as raised:
                await stream.recv()
        assert raised.value.status is Status.INVALID_ARGUMENT
        channel.close()
        scene.sender.send(2, envelope(1))
        await until(lambda: scene.receiver.arrived == [1])

    play(scenario)


def test_a_forgotten_member_is_not_tried_any_more() -> None:
    async def scenario(scene: Scene) -> None:
        scene.sender.send(2, envelope(1))
        await until(lambda: scene.receiver.arrived == [1])
        scene.sender.forget(2)
        scene.sender.forget(3)
        await until(lambda: not scene.receiver.connections[0].alive)
        await scene.sender.close()
        scene.sender.send(2, envelope(2))
        assert scene.sender._routes == {}

    play(scenario)


# Snapshots


class Source:
    """Chunks of data, which knows how far it was read and that it was closed."""

    def __init__(self, sizes: list[int], error: Exception | None = None) -> None:
        self.sizes = sizes
        self.read = 0
        self.closed = False
        self.error = error

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            for size in self.sizes:
                self.read += size
                yield bytes([self.read % 251]) * size
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


def chunks(*sizes: int) -> AsyncIterator[bytes]:
    return Source(list(sizes)).chunks()


def test_a_snapshot_arrives_whole_in_small_chunks() -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.gate.set()
        source = Source([10, 3 * MIB + 1, 0, 500])
        await scene.sender.send_snapshot(2, envelope(9), source.chunks())
        assert scene.receiver.states == ["begun", "whole 9"]
        assert len(scene.receiver.data) == 3 * MIB + 511
        assert source.closed
        await scene.sender.send_snapshot(2, envelope(10), chunks())  # no data at all
        assert scene.receiver.states[-1] == "whole 10"

    play(scenario)


def test_a_slow_receiver_slows_the_source() -> None:
    async def scenario(scene: Scene) -> None:
        source = Source([MIB // 2] * 200)
        sending = asyncio.create_task(scene.sender.send_snapshot(2, envelope(9), source.chunks()))
        reads = [-1]

        def stands_still() -> bool:
            reads.append(source.read)
            return source.read > 0 and reads[-1] == reads[-100:][0]

        await until(stands_still)
        assert source.read < 40 * MIB
        scene.sender.send(2, envelope(1))  # messages do not wait behind it
        await until(lambda: scene.receiver.arrived == [1])
        scene.receiver.gate.set()
        await sending
        assert len(scene.receiver.data) == 100 * MIB

    play(scenario)


@pytest.mark.parametrize("stage", ["before it is read", "while it is read"])
def test_a_snapshot_that_its_sender_gives_up_never_looks_whole(stage: str) -> None:
    async def scenario(scene: Scene) -> None:
        if stage == "while it is read":
            scene.receiver.gate.set()
        never = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            try:
                yield b"x" * MIB
                await never.wait()
            finally:
                scene.receiver.states.append("source closed")

        sending = asyncio.create_task(scene.sender.send_snapshot(2, envelope(9), stuck()))
        await until(lambda: "begun" in scene.receiver.states)
        if stage == "while it is read":
            await until(lambda: len(scene.receiver.data) == MIB)
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        await until(lambda: "broken off" in scene.receiver.states)
        assert "source closed" in scene.receiver.states
        scene.receiver.gate.set()
        await scene.sender.send_snapshot(2, envelope(10), chunks(5))  # nothing is in its way
        assert scene.receiver.states[-1] == "whole 10"
        assert scene.receiver.transport._receiving == 0

    play(scenario)


def test_a_snapshot_whose_sender_falls_silent_is_broken_off_where_it_arrives() -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.gate.set()

        async def stuck() -> AsyncIterator[bytes]:
            yield b"x" * MIB
            await asyncio.Event().wait()

        sending = asyncio.create_task(scene.sender.send_snapshot(2, envelope(9), stuck()))
        await until(lambda: scene.receiver.states == ["begun", "broken off"])
        await scene.sender.send_snapshot(2, envelope(10), chunks(5))  # nothing is in its way
        assert scene.receiver.states[-1] == "whole 10"
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending

    play(scenario, replace(QUICK, silence_s=0.2))


def test_a_source_that_fails_breaks_the_snapshot_off() -> None:
    async def scenario(scene: Scene) -> None:
        scene.receiver.gate.set()
        with pytest.raises(OSError, match="the disk"):
            await scene.sender.send_snapshot(2, envelope(9), Source([MIB], OSError("the disk")).chunks())
        await until(lambda: scene.receiver.states == ["begun", "broken off"])

    play(scenario)


def test_a_receiver_that_dies_or_refuses_is_an_error_for_the_sender() -> None:
    async def scenario(scene: Scene) -> None:
        source = Source([MIB] * 100)
        sending = asyncio.create_task(scene.sender.send_snapshot(2, envelope(9), source.chunks()))
        await until(lambda: scene.receiver.states == ["begun"])
        await scene.receiver.stop()
        with pytest.raises(RpcError) as raised:
            await sending
        assert raised.value.status is Status.UNAVAILABLE
        assert source.closed
        source = Source([1])
        with pytest.raises(RpcError) as raised:
            await scene.sender.send_snapshot(2, envelope(9), source.chunks())
        assert raised.value.status is Status.UNAVAILABLE

    play(scenario)


def test_only_a_few_snapshots_are_sent_and_received_at_once() -> None:
    async def scenario(scene: Scene) -> None:
        second = Transport(scene.address.resolve, lambda member: None, scene.lines.log, QUICK)
        tasks = [asyncio.create_task(scene.sender.send_snapshot(2, envelope(n), chunks(5))) for n in range(3)]
        await until(lambda: scene.receiver.states == ["begun"] * 2)
        with pytest.raises(RpcError) as raised:
            await second.send_snapshot(2, envelope(9), chunks(5))
        assert raised.value.status is Status.RESOURCE_EXHAUSTED
        scene.receiver.gate.set()
        await asyncio.gather(*tasks)
        assert scene.receiver.states.count("begun") == 3
        await second.close()

    play(scenario)


def test_a_snapshot_must_begin_with_its_envelope() -> None:
    async def scenario(scene: Scene) -> None:
        assert isinstance(scene.address.known, str)
        host, port = scene.address.known.split(":")
        channel = Channel(host, int(port))
        async with channel.open(PEER.Snapshot) as stream:
            await stream.send(drillpb.SnapshotChunk(data=b"data"))
            with pytest.raises(RpcError) as raised:
                await stream.recv()
        assert raised.value.status is Status.INVALID_ARGUMENT
        channel.close()

    play(scenario)
