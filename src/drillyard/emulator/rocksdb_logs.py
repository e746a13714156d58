"""Looks through RocksDB's logs for the two things that RocksDB does not get over.

The write-ahead log and the MANIFEST are records in blocks of 32 KiB, each record behind a header of seven bytes: a
checksum, the length, the type. Garbage where a header should be is skipped by RocksDB up to the next block, unless its
type happens to be that of a *recyclable* record: then its reader looks at the same place for ever, with Python's lock
in its hand (facebook/rocksdb issues 11968 and 13333; seen with 9.8.4). We never switch recycling on, so such a type is
damage.

A header of zeros is padding to RocksDB: it says nothing and goes on with the next block. After a power cut it may be a
page that never arrived, and what stands behind that hole would come back without what stood in it. Our logs are never
padded, so in a write-ahead log it is where the log ends.

Rules: this follows every header that RocksDB may come upon, and more, because it computes no checksums. It finds no
other damage; that is RocksDB's. What it does not do: it changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

_BLOCK = 32 << 10
_HEADER = struct.Struct("<IHB")
_RECYCLABLE = frozenset((5, 6, 7, 8, 11, 131))


def find_snare(log: Path) -> int | None:
    """Where in the file the first header is that would catch RocksDB; None if it can be read."""
    return _find(log, lambda length, kind: kind in _RECYCLABLE)


def find_end(log: Path) -> int | None:
    """Where a write-ahead log ends before its file does: at a snare or at a hole; None if there is neither."""
    return _find(log, lambda length, kind: kind in _RECYCLABLE or (kind == 0 and length == 0))


def _find(log: Path, is_wanted: Callable[[int, int], bool]) -> int | None:
    with log.open("rb") as file:
        start = 0
        while block := file.read(_BLOCK):
            place = _find_in_block(block, is_wanted)
            if place is not None:
                return start + place
            start += len(block)
    return None


def _find_in_block(block: bytes, is_wanted: Callable[[int, int], bool]) -> int | None:
    place, last = 0, len(block) - _HEADER.size
    while place <= last:
        _, length, kind = _HEADER.unpack_from(block, place)
        if is_wanted(length, kind):
            return place
        place += _HEADER.size + length  # beyond the block if it is garbage: then RocksDB drops the rest of the block
    return None
