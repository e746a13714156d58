"""What another member may send over the peer protocol, made senseless: refused, ignored, or an end by name.

A message of the same cluster, from a peer of the region to the right peer, is trusted to mean what it says: one that
contradicts what the group had promised (a commit beyond the log, another entry where one was committed) is a disk that
lost data or a broken peer, and ends the member as `ProtocolBroken`, as it ends a TiKV. Nothing else may.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fuzz_messages import fuzz, messages
from hypothesis import given
from hypothesis import strategies as st

from drillyard.emulator import raft_codec
from drillyard.emulator.logs import Log
from drillyard.emulator.raft.types import Entry, HardState, Message, MessageKind, ProtocolBroken, Restored, SnapshotMeta
from drillyard.emulator.storage import Storage, StorageOptions
from drillyard.emulator.store.commands import Put, Write, encode_write
from drillyard.emulator.store.region import Epoch, Peer, Region, configuration_of
from drillyard.emulator.store.replica import Envelope, Settings
from drillyard.emulator.store.state import MemoryState
from drillyard.emulator.store.store import RestoredReplica, Store
from drillyard.emulator.tikv.engine import Engine, Identity
from drillyard.emulator.tikv.records import pack_envelope, pack_region, unpack_envelope
from drillyard.emulator.tikv.snapshots import _framed
from drillyard.wire import drillpb, metapb
from drillyard.wire.rpc import RpcError

ME, SECOND, THIRD = Peer(3, 1), Peer(4, 2), Peer(5, 3)
REGION = Region(2, b"b", b"y", Epoch(1, 3), (ME, SECOND, THIRD))
ENTRIES = tuple(Entry(6, index, encode_write(Write((Put(b"k%d" % index, b"v"),)), REGION)) for index in range(6, 10))
RESTORED = Restored(configuration_of(REGION), HardState(6, 0, 8), 5, 5, ENTRIES, applied=8)
NEAR = st.integers(0, 12)


def store() -> Store:
    """One follower in a region of three, with a log from 6 to 9 of which 8 are committed."""
    made = Store(1, Settings(), lambda n: 0)
    made.restore(RestoredReplica(REGION, ME.id, RESTORED))
    return made


def aimed(sender: Peer, numbers: dict[str, Any], entries: list[bytes], extra: dict[str, Any]) -> drillpb.Envelope:
    """At the replica that is here, and near what it knows."""
    packed = drillpb.Envelope(
        cluster_id=1,
        region_id=REGION.id,
        region_epoch=metapb.RegionEpoch(conf_ver=3, version=1),
        from_peer=metapb.Peer(id=sender.id, store_id=sender.store_id),
        to_peer=metapb.Peer(id=ME.id, store_id=ME.store_id),
    )
    packed.message.CopyFrom(drillpb.RaftMessage(sender=sender.id, to=ME.id, **numbers, **extra))
    for number, data in enumerate(entries):  # in order, as they are sent
        entry = Entry(packed.message.term, packed.message.index + 1 + number, data)
        packed.message.entries.append(raft_codec.encode_entry(entry))
    return packed


ENVELOPES = messages(drillpb.Envelope)
EXTRA = st.fixed_dictionaries(
    {},
    optional={
        "reject": st.booleans(),
        "context": st.binary(max_size=9),
        "forced": st.booleans(),
        "snapshot": messages(drillpb.SnapshotMeta),
    },
)
DATA = st.one_of(st.sampled_from([entry.data for entry in ENTRIES]), messages(drillpb.Command), st.binary(max_size=6))
DATA = DATA.map(lambda data: data if isinstance(data, bytes) else data.SerializeToString())
AIMED = st.builds(
    aimed,
    st.sampled_from([SECOND, THIRD, Peer(9, 4)]),
    st.fixed_dictionaries(
        {"kind": st.integers(0, 16), "term": st.integers(5, 8)},
        optional=dict.fromkeys(("index", "log_term", "commit", "hint_index", "hint_term"), NEAR),
    ),
    st.lists(DATA, max_size=3),
    EXTRA,
)
# A leader's append that fits, of entries that make no sense, and commits them.
FITTING = st.builds(
    aimed,
    st.just(SECOND),
    st.fixed_dictionaries(
        {"kind": st.just(int(MessageKind.APPEND)), "term": st.sampled_from([6, 7]), "log_term": st.just(6)},
        optional={"index": st.sampled_from([8, 9]), "commit": st.integers(8, 12)},
    ),
    st.lists(DATA, min_size=1, max_size=3),
    st.just({}),
)


def play(made: Store, envelopes: list[drillpb.Envelope], ticks: int) -> None:
    state = MemoryState()
    for packed in envelopes:
        try:
            envelope = unpack_envelope(drillpb.Envelope.FromString(packed.SerializeToString()))
        except raft_codec.MalformedRecord:
            continue
        made.step(envelope)
        for _ in range(ticks):
            made.tick()
        settle(made, state)


def settle(made: Store, state: MemoryState) -> None:
    for _ in range(20):
        if not made.has_ready:
            return
        for said in made.ready(state):
            work = said.work
            for sent in (*work.messages, *work.deferred, *work.snapshots):
                pack_envelope(sent, 1)
            if work.install and work.ready is not None:
                made.installed(work.region.id, work.peer_id, work.ready.number)
            elif work.ready is not None:
                made.persisted(work.region.id, work.peer_id, work.ready.number)


@fuzz(150)
@given(st.lists(ENVELOPES | AIMED | FITTING, min_size=1, max_size=5), st.sampled_from([0, 1, 30]))
def check_store(envelopes: list[drillpb.Envelope], ticks: int) -> None:
    made = store()
    try:
        play(made, envelopes, ticks)
    except ProtocolBroken:
        return
    for replica in made.replicas.values():
        raft = replica.raft
        assert raft.applied <= raft.commit <= raft.last_index
        if replica.region.id == REGION.id:
            assert raft.commit >= 8
            assert raft.term >= 6


def test_a_store_survives_senseless_messages() -> None:
    check_store()


class Nowhere:
    def send(self, target: int, envelope: drillpb.Envelope) -> None:
        pass


PARTS = (
    _framed(drillpb.SnapshotPart(region=pack_region(REGION))),
    _framed(drillpb.SnapshotPart(pairs=[drillpb.Pair(key=b"c", value=b"v" * 50), drillpb.Pair(key=b"d")])),
    _framed(drillpb.SnapshotPart(pairs=[drillpb.Pair(key=b"e", value=b"w")])),
)
WHOLE = b"".join(PARTS)
META = SnapshotMeta(9, 6, configuration_of(REGION))
BRINGS = pack_envelope(
    Envelope(REGION.id, REGION.epoch, SECOND, ME, Message(MessageKind.SNAPSHOT, 4, 3, 6, snapshot=META)), 1
)


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    with asyncio.Runner() as runner:

        async def make() -> Engine:
            storage = Storage.open(tmp_path, "tikv", StorageOptions(reserve_bytes=0, low_water_bytes=0))
            transport: Any = Nowhere()
            made = Engine(Identity(1, 1), storage, transport, Settings(), Log(2, "fatal"))
            await made.load(lambda n: 0)
            return made

        made = runner.run(make())
        yield runner, made
        made.stop()
        made.storage.close()


def test_a_snapshot_that_is_cut_or_changed_is_refused(engine: tuple[asyncio.Runner, Engine]) -> None:
    """Whatever is done to its bytes, and wherever the carrier cuts them: refused with a status, or as good as whole."""
    runner, made = engine
    broken: list[Exception] = []
    made.on_broken = broken.append

    @fuzz(150)
    @given(
        st.binary(max_size=40) | st.just(b""),
        st.integers(0, len(WHOLE)),
        st.integers(0, len(WHOLE)),
        st.integers(1, 300),
    )
    def sends(junk: bytes, start: int, end: int, piece: int) -> None:
        data = WHOLE[:start] + junk + WHOLE[end:]

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(data), piece):
                yield data[at : at + piece]

        async def receive() -> None:
            try:
                await made.receive_snapshot(BRINGS, chunks())
            except RpcError:
                assert data != WHOLE or made.snapshot_counts()[2]

        runner.run(receive())
        assert broken == []

    sends()


def test_entries_that_cannot_be_read_are_refused_before_they_are_kept() -> None:
    """Found here: it was taken into the log, and ended the member without a name once it was committed."""
    numbers = {"kind": int(MessageKind.APPEND), "term": 7, "log_term": 6, "index": 8, "commit": 9}
    with pytest.raises(raft_codec.MalformedRecord):
        unpack_envelope(aimed(SECOND, numbers, [b"\0"], {}))


@pytest.mark.parametrize(
    "command",
    [
        drillpb.Command(version=1, mutations=[drillpb.Mutation(key=b"c", family=9)]),
        drillpb.Command(version=1, mutations=[drillpb.Mutation(key=b"c", kind=drillpb.Mutation.Kind.EXPIRE)]),
        drillpb.Command(version=1, swap=drillpb.CompareAndSwap(key=b"c", family=9)),
    ],
)
def test_an_entry_that_makes_no_sense_ends_the_member_by_name(command: drillpb.Command) -> None:
    numbers = {"kind": int(MessageKind.APPEND), "term": 7, "log_term": 6, "index": 9, "commit": 10}
    made, state = store(), MemoryState()
    state.put(b"c", b"v" * 8)
    made.step(unpack_envelope(aimed(SECOND, numbers, [command.SerializeToString()], {})))
    with pytest.raises(ProtocolBroken, match="entry 10 of region 2 makes no sense"):
        settle(made, state)
