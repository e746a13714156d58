"""Versions of keys: how locks, commits and values of transactions lie in the three column families.

A user's key is encoded so that keys of any length keep their order with something behind them (`wire.keys`); below,
"key" means that form. A timestamp behind a key is written inverted, so that newer versions come first.

    lock     key                   the lock on the key: there is at most one
    write    key + commit ts       what became of one transaction on the key: put, delete, lock, or rolled back
    default  key + start ts        the value of a put, if it is too long to be kept in the records themselves

The records have TiKV's bytes: one for the kind, then numbers as varints and byte strings with their length, then
optional parts, each behind a letter. Parts that only asynchronous commit, change capture or TiDB's resource tags need
are not written. A rollback of transaction T is a record at T itself; where another transaction was committed at exactly
T, the record of that commit says that it covers a rollback.

What this module does not do: it decides nothing about transactions (`percolator`) nor who may read what (`reads`).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from drillyard.emulator.store.state import Family, Reading, Span
from drillyard.wire import keys

MAX_TS = (1 << 64) - 1
SHORT_VALUE_BYTES = 255  # up to here a value is kept in the lock and in the commit record
LOGICAL_BITS = 18
FIRST_WRITES = 1  # how many records are read at first, when one is likely to do
MORE_WRITES = 16
_PROTECTED = b"p"
_TS_BYTES = 8


class Damaged(Exception):
    """What lies in the families was not written by transactions, or a part of it is missing."""


class LockKind(Enum):
    PUT = b"P"
    DELETE = b"D"
    LOCK = b"L"  # keeps others from writing; changes nothing
    PESSIMISTIC = b"S"  # taken before it is known what will be written


class WriteKind(Enum):
    PUT = b"P"
    DELETE = b"D"
    LOCK = b"L"
    ROLLBACK = b"R"


class Lock(Struct, frozen=True):
    kind: LockKind
    primary: bytes  # plain, as the client wrote it
    start_ts: int
    ttl_ms: int
    short_value: bytes | None = None
    for_update_ts: int = 0  # not 0: the transaction is pessimistic
    txn_size: int = 0
    min_commit_ts: int = 0
    rollbacks: tuple[int, ...] = ()  # of other transactions, to be remembered if this one commits at the same time

    @property
    def is_pessimistic_txn(self) -> bool:
        return self.for_update_ts != 0


class Write(Struct, frozen=True):
    kind: WriteKind
    start_ts: int
    short_value: bytes | None = None
    has_overlapped_rollback: bool = False

    @property
    def is_protected(self) -> bool:
        """Whether a rollback must outlast later rollbacks of the same key."""
        return self.kind is WriteKind.ROLLBACK and self.short_value == _PROTECTED

    @property
    def is_rollback_of_itself(self) -> bool:
        """Whether, found at a transaction's own start, it says that the transaction was rolled back."""
        return self.kind is WriteKind.ROLLBACK or self.has_overlapped_rollback


class Version(Struct, frozen=True):
    commit_ts: int
    write: Write


class Fate(Struct, frozen=True):
    """What became of one transaction on one key, as far as the write family tells.

    `version`: its own record, a commit or a rollback. `covered`: without a record of its own, the commit of another
    transaction at exactly its start, which may say that it covers the rollback.
    """

    version: Version | None = None
    covered: Version | None = None

    @property
    def is_committed(self) -> bool:
        return self.version is not None and self.version.write.kind is not WriteKind.ROLLBACK

    @property
    def is_rolled_back(self) -> bool:
        if self.version is not None:
            return self.version.write.kind is WriteKind.ROLLBACK
        return self.covered is not None and self.covered.write.has_overlapped_rollback


def rollback_of(start_ts: int, *, is_protected: bool) -> Write:
    return Write(WriteKind.ROLLBACK, start_ts, _PROTECTED if is_protected else None)


def physical_ms(ts: int) -> int:
    return ts >> LOGICAL_BITS


# ---- keys ----


def plain_of(key: bytes) -> bytes:
    """The key as the user knows it."""
    try:
        plain, rest = keys.decode(key)
    except keys.BadKey as error:
        raise Damaged(str(error)) from error
    if rest:
        raise Damaged(f"{len(rest)} bytes follow the key {key.hex()}")
    return plain


def versioned(key: bytes, ts: int) -> bytes:
    return key + (MAX_TS - ts).to_bytes(_TS_BYTES, "big")


def split_versioned(place: bytes) -> tuple[bytes, int]:
    if len(place) <= _TS_BYTES:
        raise Damaged(f"a key without a timestamp: {place.hex()}")
    return place[:-_TS_BYTES], MAX_TS - int.from_bytes(place[-_TS_BYTES:], "big")


def versions_span(key: bytes, newest: int, family: Family = Family.WRITE) -> Span:
    """The versions of one key from `newest` down."""
    return Span(versioned(key, newest), key + b"\xff" * (_TS_BYTES + 1), family)


# ---- bytes ----


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode_lock(lock: Lock) -> bytes:
    out = bytearray(lock.kind.value)
    out += _varint(len(lock.primary)) + lock.primary + _varint(lock.start_ts) + _varint(lock.ttl_ms)
    if lock.short_value is not None:
        out += b"v" + bytes([len(lock.short_value)]) + lock.short_value
    for letter, number in ((b"f", lock.for_update_ts), (b"t", lock.txn_size), (b"c", lock.min_commit_ts)):
        if number:
            out += letter + number.to_bytes(8, "big")
    if lock.rollbacks:
        out += b"r" + _varint(len(lock.rollbacks))
        for ts in lock.rollbacks:
            out += ts.to_bytes(8, "big")
    return bytes(out)


def encode_write(write: Write) -> bytes:
    out = bytearray(write.kind.value) + _varint(write.start_ts)
    if write.short_value is not None:
        out += b"v" + bytes([len(write.short_value)]) + write.short_value
    if write.has_overlapped_rollback:
        out += b"R"
    return bytes(out)


class _Bytes:
    """A record while it is being read."""

    def __init__(self, record: bytes) -> None:
        self._record = record
        self._place = 0

    @property
    def is_left(self) -> bool:
        return self._place < len(self._record)

    def take(self, count: int) -> bytes:
        end = self._place + count
        if end > len(self._record):
            raise Damaged(f"a record ends early: {self._record[:64].hex()}")
        taken = self._record[self._place : end]
        self._place = end
        return taken

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if number > MAX_TS:
                raise Damaged(f"a number of more than 64 bits: {self._record[:64].hex()}")
            if byte < 0x80:
                return number
            shift += 7

    def fixed(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def short_value(self) -> bytes:
        return self.take(self.take(1)[0])


def decode_lock(record: bytes) -> Lock:
    source = _Bytes(record)
    try:
        kind = LockKind(source.take(1))
    except ValueError as error:
        raise Damaged(f"no lock: {record[:64].hex()}") from error
    lock = Lock(kind, source.take(source.varint()), source.varint(), source.varint())
    while source.is_left:
        match source.take(1):
            case b"v":
                lock = replace(lock, short_value=source.short_value())
            case b"f":
                lock = replace(lock, for_update_ts=source.fixed())
            case b"t":
                lock = replace(lock, txn_size=source.fixed())
            case b"c":
                lock = replace(lock, min_commit_ts=source.fixed())
            case b"r":
                lock = replace(lock, rollbacks=tuple(source.fixed() for _ in range(source.varint())))
            case letter:
                raise Damaged(f"a lock with an unknown part {letter!r}")
    return lock


def decode_write(record: bytes) -> Write:
    source = _Bytes(record)
    try:
        kind = WriteKind(source.take(1))
    except ValueError as error:
        raise Damaged(f"no commit record: {record[:64].hex()}") from error
    start_ts, short, covers = source.varint(), None, False
    while source.is_left:
        match source.take(1):
            case b"v":
                short = source.short_value()
            case b"R":
                covers = True
            case letter:
                raise Damaged(f"a commit record with an unknown part {letter!r}")
    return Write(kind, start_ts, short, covers)


# ---- reading one key ----


def lock_on(reading: Reading, key: bytes) -> Lock | None:
    record = reading.get(key, Family.LOCK)
    return None if record is None else decode_lock(record)


def versions(reading: Reading, key: bytes, newest: int = MAX_TS) -> Iterator[Version]:
    """The records of the key at or before a timestamp, the newest first."""
    span, limit = versions_span(key, newest), FIRST_WRITES
    while True:
        found = reading.scan(span, limit)
        for place, record in found:
            yield Version(split_versioned(place)[1], decode_write(record))
        if len(found) < limit:
            return
        span, limit = replace(span, start=found[-1][0] + b"\0"), MORE_WRITES


def newest_version(reading: Reading, key: bytes, at: int = MAX_TS) -> Version | None:
    return next(versions(reading, key, at), None)


def newest_change(reading: Reading, key: bytes, at: int = MAX_TS) -> Version | None:
    """The newest put or delete at or before a timestamp: locks and rollbacks change nothing."""
    changing = (WriteKind.PUT, WriteKind.DELETE)
    return next((version for version in versions(reading, key, at) if version.write.kind in changing), None)


def value_of(reading: Reading, key: bytes, write: Write) -> bytes | None:
    """What the key holds by this record."""
    if write.kind is not WriteKind.PUT:
        return None
    return long_value(reading, key, write.start_ts) if write.short_value is None else write.short_value


def long_value(reading: Reading, key: bytes, start_ts: int) -> bytes:
    value = reading.get(versioned(key, start_ts), Family.DEFAULT)
    if value is None:
        raise Damaged(f"default not found: key {key.hex().upper()} of transaction {start_ts}")
    return value


def value_at(reading: Reading, key: bytes, at: int) -> bytes | None:
    version = newest_change(reading, key, at)
    return None if version is None else value_of(reading, key, version.write)


def has_value_at(reading: Reading, key: bytes, at: int) -> bool:
    version = newest_change(reading, key, at)
    return version is not None and version.write.kind is WriteKind.PUT


def fate_of(reading: Reading, key: bytes, start_ts: int) -> Fate:
    """Commits come after the start, so the records from the newest down to the start are all that can tell."""
    for version in versions(reading, key):
        if version.commit_ts < start_ts:
            break
        if version.write.start_ts == start_ts:
            return Fate(version=version)
        if version.commit_ts == start_ts:
            return Fate(covered=version)
    return Fate()
