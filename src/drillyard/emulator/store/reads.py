"""Reading as of a timestamp, and looking through a range in slices.

A reader at T sees of each key the newest put or delete that was committed at or before T. A lock of a transaction that
began at or before T may become a commit at or before T, so it stands in the way, unless it changes nothing (a lock or a
pessimistic one), can only be committed after T (`min_commit_ts`), or the client already knows how its transaction
ended: `resolved` ones were rolled back or will commit later than T, `committed` ones are read through their locks.
Isolation level RC looks at no lock at all.

A scan is cut into slices by the caller: each call reads a bounded number of records and says where to go on, so that
the caller can do something else in between. What is found depends on the state alone, not on where it is cut, as long
as the state stays the same: the caller holds one view.
"""

from __future__ import annotations

from itertools import groupby

from msgspec import Struct
from msgspec.structs import replace

from drillyard.emulator.store.mvcc import (
    MAX_TS,
    Lock,
    LockKind,
    Version,
    WriteKind,
    decode_lock,
    decode_write,
    lock_on,
    long_value,
    newest_change,
    plain_of,
    split_versioned,
    value_of,
)
from drillyard.emulator.store.percolator import KeyIsLocked, Refused
from drillyard.emulator.store.state import Family, Pair, Reading, Span

SLICE_RECORDS = 256
SLICE_BYTES = 512 << 10
_BEHIND = b"\xff" * 9  # behind all versions of a key


class Reader(Struct, frozen=True):
    """Who reads, and what the client has learnt of the locks that it met."""

    reading: Reading
    at: int
    ignores_locks: bool = False
    resolved: frozenset[int] = frozenset()
    committed: frozenset[int] = frozenset()


class Found(Struct, frozen=True):
    """A key that exists, or one of which it cannot be said because of a lock."""

    key: bytes
    value: bytes = b""
    blocked: KeyIsLocked | None = None


class Slice(Struct, frozen=True):
    found: tuple[Found, ...]
    rest: Span | None  # where to go on; None: this was all


class Value(Struct, frozen=True):
    value: bytes
    commit_ts: int  # 0: read through the lock of a transaction that the client knows to be committed


def get(reader: Reader, key: bytes) -> Value | None:
    """Raises `Refused` with the lock that stands in the way."""
    lock = None if reader.ignores_locks else lock_on(reader.reading, key)
    at = reader.at
    if lock is not None:
        if is_read_through(reader, lock):
            held = _value_under(reader, key, lock)
            return None if held is None else Value(held, 0)
        beside = time_beside(reader, key, lock)
        if beside is None:
            raise Refused(KeyIsLocked(key, lock))
        at = beside
    version = newest_change(reader.reading, key, at)
    value = None if version is None else value_of(reader.reading, key, version.write)
    return None if version is None or value is None else Value(value, version.commit_ts)


def is_read_through(reader: Reader, lock: Lock) -> bool:
    changes = lock.kind in (LockKind.PUT, LockKind.DELETE)
    return changes and lock.start_ts <= reader.at and lock.start_ts in reader.committed


def time_beside(reader: Reader, key: bytes, lock: Lock) -> int | None:
    """The time as of which to read a key in spite of a lock on it. None: the lock is in the way."""
    if lock.start_ts > reader.at or lock.kind in (LockKind.LOCK, LockKind.PESSIMISTIC):
        return reader.at
    if lock.min_commit_ts > reader.at or lock.start_ts in reader.resolved:
        return reader.at
    if reader.at == MAX_TS and plain_of(key) == lock.primary:
        return lock.start_ts - 1  # "the newest" may be what is committed now, and the primary is not
    return None


def _value_under(reader: Reader, key: bytes, lock: Lock) -> bytes | None:
    if lock.kind is LockKind.DELETE:
        return None
    return long_value(reader.reading, key, lock.start_ts) if lock.short_value is None else lock.short_value


# ---- slices ----


class _Window(Struct, frozen=True):
    """Some keys in a row with their records; `newest first` within a key. None: too many, look them up one by one."""

    records: dict[bytes, tuple[Version, ...] | None]
    span: Span
    rest: Span | None


def _window(reading: Reading, span: Span, reverse: bool) -> _Window:
    span = replace(span, family=Family.WRITE)
    pairs = reading.scan(span, SLICE_RECORDS, reverse)
    grouped: list[tuple[bytes, list[Version]]] = []
    for key, group in groupby(map(_parted, pairs), key=lambda parted: parted[0]):
        records = [version for _, version in group]
        grouped.append((key, records[::-1] if reverse else records))
    records_of: dict[bytes, tuple[Version, ...] | None] = {key: tuple(records) for key, records in grouped}
    if len(pairs) < SLICE_RECORDS:
        return _Window(records_of, span, None)
    if len(grouped) == 1:
        records_of[grouped[0][0]] = None
        edge = grouped[0][0]
    else:
        del records_of[grouped[-1][0]]  # it may have more
        edge = grouped[-2][0]
    covered, rest = cut_behind(span, edge, reverse)
    return _Window(records_of, covered, rest)


def _parted(pair: Pair) -> tuple[bytes, Version]:
    key, commit_ts = split_versioned(pair[0])
    return key, Version(commit_ts, decode_write(pair[1]))


def cut_behind(span: Span, key: bytes, reverse: bool) -> tuple[Span, Span | None]:
    """The span up to and with all versions of the key, and what is left of it."""
    if reverse:
        covered, rest = replace(span, start=max(key, span.start)), replace(span, end=key)
    else:
        covered, rest = replace(span, end=key + _BEHIND), replace(span, start=key + _BEHIND)
    is_empty = bool(rest.end) and rest.start >= rest.end
    return covered, None if is_empty or (reverse and not rest.end) else rest


class Wanted(Struct, frozen=True):
    limit: int
    reverse: bool = False
    key_only: bool = False


def scan_slice(reader: Reader, span: Span, wanted: Wanted) -> Slice:
    """The next keys of the span that exist or are locked, at most `limit`."""
    window = _window(reader.reading, span, wanted.reverse)
    locks, window = _locks_in(reader, window, wanted.reverse)
    found: list[Found] = []
    size = 0
    for key in sorted({*window.records, *locks}, reverse=wanted.reverse):
        one = _look_at(reader, key, locks.get(key), window)
        if one is None:
            continue
        found.append(replace(one, value=b"") if wanted.key_only else one)
        size += len(one.value)
        if len(found) >= wanted.limit:
            break
        if size >= SLICE_BYTES:
            return Slice(tuple(found), cut_behind(span, key, wanted.reverse)[1])
    return Slice(tuple(found), window.rest)


def _locks_in(reader: Reader, window: _Window, reverse: bool) -> tuple[dict[bytes, Lock], _Window]:
    """The locks of the window; if there are too many, a smaller window."""
    if reader.ignores_locks:
        return {}, window
    pairs = reader.reading.scan(replace(window.span, family=Family.LOCK), SLICE_RECORDS, reverse)
    locks = {key: decode_lock(record) for key, record in pairs}
    if len(pairs) < SLICE_RECORDS:
        return locks, window
    whole = window.span if window.rest is None else _joined(window.span, window.rest, reverse)
    covered, rest = cut_behind(whole, pairs[-1][0], reverse)
    edge = pairs[-1][0]
    kept = {key: records for key, records in window.records.items() if (key >= edge if reverse else key <= edge)}
    return locks, _Window(kept, covered, rest)


def _joined(covered: Span, rest: Span, reverse: bool) -> Span:
    return replace(covered, start=rest.start) if reverse else replace(covered, end=rest.end)


def _look_at(reader: Reader, key: bytes, lock: Lock | None, window: _Window) -> Found | None:
    at = reader.at
    if lock is not None:
        if is_read_through(reader, lock):
            value = _value_under(reader, key, lock)
            return None if value is None else Found(key, value)
        beside = time_beside(reader, key, lock)
        if beside is None:
            return Found(key, blocked=KeyIsLocked(key, lock))
        at = beside
    version = _visible(reader, key, at, window)
    if version is None or version.write.kind is not WriteKind.PUT:
        return None
    return Found(key, value_of(reader.reading, key, version.write) or b"")


def _visible(reader: Reader, key: bytes, at: int, window: _Window) -> Version | None:
    records = window.records.get(key, ())
    if records is None:
        return newest_change(reader.reading, key, at)
    changing = (WriteKind.PUT, WriteKind.DELETE)
    return next((record for record in records if record.commit_ts <= at and record.write.kind in changing), None)


# ---- what resolving and garbage collection look for ----


class Locks(Struct, frozen=True):
    locks: tuple[tuple[bytes, Lock], ...]
    rest: Span | None


def locks_slice(reading: Reading, span: Span, max_ts: int) -> Locks:
    """The next locks of transactions that began at or before `max_ts`."""
    pairs = reading.scan(replace(span, family=Family.LOCK), SLICE_RECORDS)
    found = ((key, decode_lock(record)) for key, record in pairs)
    kept = tuple((key, lock) for key, lock in found if lock.start_ts <= max_ts)
    rest = None if len(pairs) < SLICE_RECORDS else replace(span, start=pairs[-1][0] + b"\0")
    return Locks(kept, rest)


class Garbage(Struct, frozen=True):
    keys: tuple[bytes, ...]
    rest: Span | None


def garbage_slice(reading: Reading, span: Span, safe_point: int) -> Garbage:
    """The next keys of which the collection would drop something."""
    window = _window(reading, span, reverse=False)
    return Garbage(
        tuple(key for key, records in window.records.items() if records is None or _has_garbage(records, safe_point)),
        window.rest,
    )


def _has_garbage(records: tuple[Version, ...], safe_point: int) -> bool:
    old = [record.write.kind for record in records if record.commit_ts <= safe_point]
    return len(old) > 1 or (len(old) == 1 and old[0] is not WriteKind.PUT)
