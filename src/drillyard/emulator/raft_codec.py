"""Raft's plain values as drillpb messages, for the network between members and for the disk.

Rules: what was packed is unpacked to an equal value. Bytes that cannot be one are refused with `MalformedRecord`,
never guessed at. What it does not do: it knows no files, no streams and no regions.
"""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import DecodeError

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


class MalformedRecord(ValueError):
    """Bytes from a disk or a peer that are not what they should be."""


def pack_entry(entry: Entry) -> drillpb.Entry:
    packed = drillpb.Entry(term=entry.term, index=entry.index, data=entry.data)
    if entry.change is not None:
        packed.change.SetInParent()  # a change that leaves the joint configuration is present and empty
        for change in entry.change.changes:
            packed.change.changes.add(kind=change.kind, node=change.node)
    return packed


def unpack_entry(packed: drillpb.Entry) -> Entry:
    if not packed.HasField("change"):
        return Entry(packed.term, packed.index, packed.data)
    changes = tuple(Change(_kind_of_change(change.kind), change.node) for change in packed.change.changes)
    return Entry(packed.term, packed.index, packed.data, ConfigurationChange(changes))


def encode_entry(entry: Entry) -> bytes:
    return pack_entry(entry).SerializeToString()


def decode_entry(record: bytes) -> Entry:
    try:
        return unpack_entry(drillpb.Entry.FromString(record))
    except DecodeError as error:
        raise MalformedRecord("a log entry cannot be read") from error


class EntryRecords:
    """Entries on their way as bytes: made once for the disk and every follower, and not anew for a follower's disk.

    What is known of an entry is known of that very object; `clear` is called as soon as those on their way have gone.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, tuple[Entry, bytes]] = {}  # by the entry's identity, which it keeps while it is here

    def encode(self, entry: Entry) -> bytes:
        known = self._known.get(id(entry))
        if known is None:
            known = self._known[id(entry)] = entry, encode_entry(entry)
        return known[1]

    def decode(self, record: bytes) -> Entry:
        entry = decode_entry(record)
        self._known[id(entry)] = entry, record
        return entry

    def clear(self) -> None:
        self._known.clear()


def encode_hard_state(state: HardState) -> bytes:
    return drillpb.HardState(term=state.term, vote=state.vote, commit=state.commit).SerializeToString()


def decode_hard_state(record: bytes) -> HardState:
    try:
        packed = drillpb.HardState.FromString(record)
    except DecodeError as error:
        raise MalformedRecord("a hard state cannot be read") from error
    return HardState(packed.term, packed.vote, packed.commit)


def encode_position(index: int, term: int) -> bytes:
    return drillpb.SnapshotMeta(index=index, term=term).SerializeToString()


def decode_position(record: bytes) -> tuple[int, int]:
    try:
        packed = drillpb.SnapshotMeta.FromString(record)
    except DecodeError as error:
        raise MalformedRecord("a log position cannot be read") from error
    return packed.index, packed.term


def pack_configuration(configuration: Configuration) -> drillpb.Configuration:
    return drillpb.Configuration(
        voters=sorted(configuration.voters),
        learners=sorted(configuration.learners),
        outgoing=sorted(configuration.outgoing),
        learners_next=sorted(configuration.learners_next),
    )


def unpack_configuration(packed: drillpb.Configuration) -> Configuration:
    return Configuration(
        frozenset(packed.voters),
        frozenset(packed.learners),
        frozenset(packed.outgoing),
        frozenset(packed.learners_next),
    )


def pack_meta(meta: SnapshotMeta) -> drillpb.SnapshotMeta:
    return drillpb.SnapshotMeta(index=meta.index, term=meta.term, configuration=pack_configuration(meta.configuration))


def unpack_meta(packed: drillpb.SnapshotMeta) -> SnapshotMeta:
    return SnapshotMeta(packed.index, packed.term, unpack_configuration(packed.configuration))


def pack_message(message: Message, encode: Callable[[Entry], bytes] = encode_entry) -> drillpb.RaftMessage:
    return drillpb.RaftMessage(
        kind=message.kind,
        sender=message.sender,
        to=message.to,
        term=message.term,
        index=message.index,
        log_term=message.log_term,
        commit=message.commit,
        entries=[encode(entry) for entry in message.entries],
        reject=message.reject,
        hint_index=message.hint_index,
        hint_term=message.hint_term,
        context=message.context,
        forced=message.forced,
        snapshot=None if message.snapshot is None else pack_meta(message.snapshot),
    )


def unpack_message(packed: drillpb.RaftMessage, decode: Callable[[bytes], Entry] = decode_entry) -> Message:
    try:
        kind = MessageKind(packed.kind)
    except ValueError as error:
        raise MalformedRecord(f"no Raft message has kind {packed.kind}") from error
    return Message(
        kind=kind,
        sender=packed.sender,
        to=packed.to,
        term=packed.term,
        index=packed.index,
        log_term=packed.log_term,
        commit=packed.commit,
        entries=tuple(decode(record) for record in packed.entries),
        reject=packed.reject,
        hint_index=packed.hint_index,
        hint_term=packed.hint_term,
        context=packed.context,
        forced=packed.forced,
        snapshot=unpack_meta(packed.snapshot) if packed.HasField("snapshot") else None,
    )


def _kind_of_change(number: int) -> ChangeKind:
    try:
        return ChangeKind(number)
    except ValueError as error:
        raise MalformedRecord(f"no membership change has kind {number}") from error
