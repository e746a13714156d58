"""Raft's plain values as bytes, for the disk and for the network between members.

Rules: an entry has one encoding, the same on disk and on the wire, so that it is packed once. Every decoder refuses
bytes that it does not understand with `MalformedRecord`; it never guesses. The layout is part of the on-disk format:
changing it means a new ON_DISK_FORMAT.

What it does not do: it knows no files, no streams and no regions.
"""

from __future__ import annotations

import struct

from drillyard.emulator.raft.types import Change, ChangeKind, ConfigurationChange, Entry, HardState

_ENTRY = struct.Struct(">QQh")  # term, index, number of membership changes (-1: an ordinary entry)
_CHANGE = struct.Struct(">BQ")
_HARD_STATE = struct.Struct(">QQQ")  # term, vote, commit
_POSITION = struct.Struct(">QQ")  # index, term
_ORDINARY = -1


class MalformedRecord(ValueError):
    """Bytes from a disk or a peer that are not what they should be."""


def encode_entry(entry: Entry) -> bytes:
    if entry.change is None:
        return _ENTRY.pack(entry.term, entry.index, _ORDINARY) + entry.data
    changes = entry.change.changes
    head = _ENTRY.pack(entry.term, entry.index, len(changes))
    return b"".join((head, *(_CHANGE.pack(change.kind, change.node) for change in changes), entry.data))


def decode_entry(record: bytes) -> Entry:
    try:
        term, index, count = _ENTRY.unpack_from(record)
        if count == _ORDINARY:
            return Entry(term, index, record[_ENTRY.size :])
        end = _ENTRY.size + count * _CHANGE.size
        if count < 0 or end > len(record):
            raise MalformedRecord(f"a log entry announces {count} membership changes in {len(record)} bytes")
        changes = tuple(Change(ChangeKind(kind), node) for kind, node in _CHANGE.iter_unpack(record[_ENTRY.size : end]))
    except (struct.error, ValueError) as error:
        raise MalformedRecord(f"a log entry cannot be read: {error}") from error
    return Entry(term, index, record[end:], ConfigurationChange(changes))


def encode_hard_state(state: HardState) -> bytes:
    return _HARD_STATE.pack(state.term, state.vote, state.commit)


def decode_hard_state(record: bytes) -> HardState:
    try:
        return HardState(*_HARD_STATE.unpack(record))
    except struct.error as error:
        raise MalformedRecord(f"a hard state cannot be read: {error}") from error


def encode_position(index: int, term: int) -> bytes:
    return _POSITION.pack(index, term)


def decode_position(record: bytes) -> tuple[int, int]:
    try:
        index, term = _POSITION.unpack(record)
    except struct.error as error:
        raise MalformedRecord(f"a log position cannot be read: {error}") from error
    return index, term
