"""A store's shell against snapshots that are not what they say: refused, without harm to what is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from drillyard.emulator import raft_codec
from drillyard.emulator.logs import Log
from drillyard.emulator.raft.types import Message, MessageKind, SnapshotMeta
from drillyard.emulator.storage import Batch, Storage, StorageOptions
from drillyard.emulator.store.region import Epoch, Peer, Region, configuration_of
from drillyard.emulator.store.replica import Envelope, Settings
from drillyard.emulator.store.state import Family
from drillyard.emulator.tikv import engine as engine_module
from drillyard.emulator.tikv.engine import KEPT_REFUSALS, RECORDS_AT_ONCE, Engine, Identity
from drillyard.emulator.tikv.records import NORMAL, pack_envelope, pack_region, pack_replica, replica_key
from drillyard.emulator.tikv.snapshots import MAX_PART_BYTES, _framed
from drillyard.wire import drillpb
from drillyard.wire.rpc import RpcError, Status

REGION = Region(7, b"", b"", Epoch(1, 2), (Peer(3, 1), Peer(4, 2)))
META = SnapshotMeta(9, 6, configuration_of(REGION))
SNAPSHOT = Message(MessageKind.SNAPSHOT, 3, 4, 6, snapshot=META)
PAIRS = _framed(
    drillpb.SnapshotPart(
        pairs=[drillpb.Pair(key=b"k", value=b"v"), drillpb.Pair(key=b"k", value=b"l", family=Family.LOCK)]
    )
)


class Nowhere:
    """In place of a transport: nobody is there."""

    def send(self, target: int, envelope: drillpb.Envelope) -> None:
        pass

    async def send_snapshot(self, target: int, envelope: drillpb.Envelope, parts: AsyncIterator[bytes]) -> None:
        raise RpcError(Status.UNAVAILABLE, f"nobody takes a snapshot for peer {envelope.to_peer.id}")


def play(scenario: Callable[[Engine], Awaitable[None]], home: Path) -> None:
    async def run() -> None:
        storage = Storage.open(home, "tikv", StorageOptions(reserve_bytes=0, low_water_bytes=0))
        transport: Any = Nowhere()
        engine = Engine(Identity(1, 2), storage, transport, Settings(), Log(2, "fatal"))
        broken: list[Exception] = []
        engine.on_broken = broken.append
        await engine.load(lambda n: 0)
        try:
            await scenario(engine)
            assert broken == []
        finally:
            engine.stop()
            storage.close()

    asyncio.run(run())


def packed(message: Message) -> drillpb.Envelope:
    return pack_envelope(Envelope(REGION.id, REGION.epoch, Peer(3, 1), Peer(4, 2), message), 1)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    yield _framed(drillpb.SnapshotPart(region=pack_region(REGION)))
    for part in parts:
        yield part


async def installed(engine: Engine) -> None:
    def arrived() -> bool:
        return (engine.storage.get(b"zk"), engine.storage.get(b"xk")) == (b"v", b"l")

    async with asyncio.timeout(10):
        while not arrived() or engine.snapshot_counts() != (0, 0, 0):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_a_snapshot_is_moved_into_place(tmp_path: Path) -> None:
    async def scenario(engine: Engine) -> None:
        await engine.receive_snapshot(packed(SNAPSHOT), chunks(PAIRS))
        await installed(engine)

    play(scenario, tmp_path)


def test_a_snapshot_is_kept_until_a_busy_store_comes_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn ends when its time is up, here after one region; the others' work comes first."""
    monkeypatch.setattr(engine_module, "TURN_S", -1.0)

    async def scenario(engine: Engine) -> None:
        for region_id in range(100, 120):
            beat = Message(MessageKind.HEARTBEAT, 1000, 2000, 6)
            engine.deliver(pack_envelope(Envelope(region_id, Epoch(1, 2), Peer(1000, 1), Peer(2000, 2), beat), 1))
        await engine.receive_snapshot(packed(SNAPSHOT), chunks(PAIRS))
        await installed(engine)

    play(scenario, tmp_path)


ODD = {
    "no position": packed(Message(MessageKind.SNAPSHOT, 3, 4, 6)),
    "no message": pack_envelope(Envelope(REGION.id, REGION.epoch, Peer(3, 1), Peer(4, 2), None), 1),
    "other voters": packed(
        Message(
            MessageKind.SNAPSHOT,
            3,
            4,
            6,
            snapshot=SnapshotMeta(9, 6, raft_codec.unpack_configuration(drillpb.Configuration(voters=[3, 99]))),
        )
    ),
}


@pytest.mark.parametrize("envelope", ODD.values(), ids=ODD)
def test_a_message_that_brings_no_such_snapshot_is_refused(tmp_path: Path, envelope: drillpb.Envelope) -> None:
    async def scenario(engine: Engine) -> None:
        with pytest.raises(RpcError) as raised:
            await engine.receive_snapshot(envelope, chunks(PAIRS))
        assert raised.value.status is Status.INVALID_ARGUMENT
        await engine.receive_snapshot(packed(SNAPSHOT), chunks(PAIRS))
        await installed(engine)

    play(scenario, tmp_path)


def test_a_part_that_says_it_is_larger_than_any_can_be_is_refused_before_it_is_gathered(tmp_path: Path) -> None:
    async def scenario(engine: Engine) -> None:
        with pytest.raises(RpcError, match="part of the snapshot") as raised:
            await engine.receive_snapshot(packed(SNAPSHOT), chunks((MAX_PART_BYTES + 1).to_bytes(4, "big")))
        assert raised.value.status is Status.INVALID_ARGUMENT
        await engine.receive_snapshot(packed(SNAPSHOT), chunks(PAIRS))
        await installed(engine)

    play(scenario, tmp_path)


def test_a_part_that_cannot_be_read_is_refused_before_anything_is_replaced(tmp_path: Path) -> None:
    """On disk under a promise to install it, it would stop the store at every start."""

    async def scenario(engine: Engine) -> None:
        with pytest.raises(RpcError) as raised:
            await engine.receive_snapshot(packed(SNAPSHOT), chunks(PAIRS, b"\0\0\0\3\xff\xff\xff"))
        assert raised.value.status is Status.INVALID_ARGUMENT
        await engine.receive_snapshot(packed(SNAPSHOT), chunks(PAIRS))
        await installed(engine)

    play(scenario, tmp_path)


def test_many_replicas_are_taken_up_in_parts(tmp_path: Path) -> None:
    async def scenario(engine: Engine) -> None:
        count = 3 * RECORDS_AT_ONCE
        batch = Batch()
        for region_id in range(1, count + 1):
            region = Region(region_id, b"%06d" % region_id, b"%06d" % (region_id + 1), Epoch(1, 1), REGION.peers)
            batch.put(replica_key(region_id), pack_replica(region, 4, NORMAL))
        engine.storage.write(batch)
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.get_running_loop().create_task(count_turns())
        await engine.load(lambda n: 0)
        counting.cancel()
        assert len(engine.store.replicas) == count
        assert turns > count

    play(scenario, tmp_path)


def test_why_snapshots_were_refused_is_not_remembered_for_ever(tmp_path: Path) -> None:
    async def scenario(engine: Engine) -> None:
        for peer_id in range(100, 100 + 2 * KEPT_REFUSALS):
            message = Message(MessageKind.SNAPSHOT, 3, peer_id, 6, snapshot=META)
            engine._queue_snapshot(Envelope(REGION.id, REGION.epoch, Peer(3, 2), Peer(peer_id, 1), message, REGION))
            while engine.snapshot_counts() != (0, 0, 0):  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert len(engine._refused) == KEPT_REFUSALS

    play(scenario, tmp_path)
