"""What is packed for the disk and for peers comes back equal; what cannot be a value is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drillyard.emulator import raft_codec
from drillyard.emulator.raft.types import (
    Change,
    ChangeKind,
    Configuration,
    ConfigurationChange,
    Entry,
    HardState,
    Message,
    MessageKind,
    SnapshotMeta,
)
from drillyard.wire import drillpb

NUMBERS = st.integers(0, 2**64 - 1)
NODES = st.frozensets(NUMBERS, max_size=4)
CHANGES = st.builds(
    ConfigurationChange,
    st.lists(st.builds(Change, st.sampled_from(ChangeKind), NUMBERS), max_size=3).map(tuple),
)
ENTRIES = st.builds(Entry, NUMBERS, NUMBERS, st.binary(max_size=20), st.none() | CHANGES)
CONFIGURATIONS = st.builds(Configuration, NODES, NODES, NODES, NODES)
METAS = st.builds(SnapshotMeta, NUMBERS, NUMBERS, CONFIGURATIONS)
MESSAGES = st.builds(
    Message,
    kind=st.sampled_from(MessageKind),
    sender=NUMBERS,
    to=NUMBERS,
    term=NUMBERS,
    index=NUMBERS,
    log_term=NUMBERS,
    commit=NUMBERS,
    entries=st.lists(ENTRIES, max_size=3).map(tuple),
    reject=st.booleans(),
    hint_index=NUMBERS,
    hint_term=NUMBERS,
    context=st.binary(max_size=8),
    forced=st.booleans(),
    snapshot=st.none() | METAS,
)


@given(MESSAGES)
def test_a_message_comes_back_equal(message: Message) -> None:
    packed = drillpb.RaftMessage.FromString(raft_codec.pack_message(message).SerializeToString())
    assert raft_codec.unpack_message(packed) == message


@given(ENTRIES)
def test_an_entry_comes_back_equal(entry: Entry) -> None:
    assert raft_codec.decode_entry(raft_codec.encode_entry(entry)) == entry


@given(MESSAGES)
def test_entries_are_packed_once_and_arrive_as_the_same_bytes(message: Message) -> None:
    sender, receiver = raft_codec.EntryRecords(), raft_codec.EntryRecords()
    records = [sender.encode(entry) for entry in message.entries]
    packed = raft_codec.pack_message(message, sender.encode)
    assert list(packed.entries) == records == [raft_codec.encode_entry(entry) for entry in message.entries]
    arrived = raft_codec.unpack_message(packed, receiver.decode)
    assert arrived == message
    assert [receiver.encode(entry) for entry in arrived.entries] == records


def test_equal_entries_of_two_groups_do_not_share_their_bytes() -> None:
    records, twin = raft_codec.EntryRecords(), Entry(3, 7, b"here")
    arrived = records.decode(raft_codec.encode_entry(Entry(3, 7, b"there")))
    assert raft_codec.decode_entry(records.encode(twin)) == twin
    assert raft_codec.decode_entry(records.encode(arrived)).data == b"there"


@given(METAS)
def test_the_place_of_a_snapshot_comes_back_equal(meta: SnapshotMeta) -> None:
    assert raft_codec.unpack_meta(raft_codec.pack_meta(meta)) == meta


@given(NUMBERS, NUMBERS, NUMBERS)
def test_hard_states_and_positions_come_back_equal(first: int, second: int, third: int) -> None:
    state = HardState(first, second, third)
    assert raft_codec.decode_hard_state(raft_codec.encode_hard_state(state)) == state
    assert raft_codec.decode_position(raft_codec.encode_position(first, second)) == (first, second)


def test_leaving_the_joint_configuration_is_not_an_ordinary_entry() -> None:
    leave = Entry(3, 7, b"", ConfigurationChange())
    assert raft_codec.decode_entry(raft_codec.encode_entry(leave)).change == ConfigurationChange()
    assert raft_codec.decode_entry(raft_codec.encode_entry(Entry(3, 7))).change is None


@pytest.mark.parametrize("garbage", [b"\xff", b"\x08", b"\x1a\x7f"])
def test_garbage_is_refused(garbage: bytes) -> None:
    for decode in (raft_codec.decode_entry, raft_codec.decode_hard_state, raft_codec.decode_position):
        with pytest.raises(raft_codec.MalformedRecord):
            decode(garbage)


def test_kinds_that_do_not_exist_are_refused() -> None:
    with pytest.raises(raft_codec.MalformedRecord, match="kind 99"):
        raft_codec.unpack_message(drillpb.RaftMessage(kind=99))
    packed = drillpb.Entry(change=drillpb.ConfigurationChange(changes=[drillpb.Change(kind=9, node=1)]))
    with pytest.raises(raft_codec.MalformedRecord, match="kind 9"):
        raft_codec.unpack_entry(packed)
