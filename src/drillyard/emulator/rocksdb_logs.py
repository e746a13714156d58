"""Looks through RocksDB's logs for what RocksDB does not get over, or does not see.

The write-ahead log and the MANIFEST are records in blocks of 32 KiB, each record behind a header of seven bytes: a
checksum, the length, the type. Garbage where a header should be is skipped by RocksDB up to the next block, unless its
type happens to be that of a *recyclable* record: then its reader looks at the same place for ever, with Python's lock
in its hand (facebook/rocksdb issues 11968 and 13333; seen with 9.8.4). We never switch recycling on, so such a type is
damage.

A header of zeros is padding to RocksDB: it says nothing and goes on with the next block. After a power cut it may be a
page that never arrived, and what stands behind that hole would come back without what stood in it. Our logs are never
padded, so in a write-ahead log it is where the log ends.

A record of the MANIFEST that does not check out, RocksDB takes for the torn end of what it was writing, and opens the
database as it was before: tables that it had promised are gone, and the logs that they were made of are too. Whoever
knows how long the MANIFEST was when it was last synced asks `intact_length`.

Rules: the search for headers follows every one that RocksDB may come upon, and more, because it computes no checksums.
It finds no other damage; that is RocksDB's. What this does not do: it changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

_BLOCK = 32 << 10
_HEADER = struct.Struct("<IHB")
_WHOLE_OR_PART = frozenset((1, 2, 3, 4))
_RECYCLABLE = frozenset((5, 6, 7, 8, 11, 131))


def find_snare(log: Path) -> int | None:
    """Where in the file the first header is that would catch RocksDB; None if it can be read."""
    return _find(log, lambda length, kind: kind in _RECYCLABLE)


def find_end(log: Path) -> int | None:
    """Where a write-ahead log ends before its file does: at a snare or at a hole; None if there is neither."""
    return _find(log, lambda length, kind: kind in _RECYCLABLE or (kind == 0 and length == 0))


def intact_length(log: Path) -> int:
    """Up to where every record of the file checks out."""
    content = log.read_bytes()
    place = 0
    while place + _HEADER.size <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER.size:
            place += left  # too little for a header: the rest of the block is padding
            continue
        masked, length, kind = _HEADER.unpack_from(content, place)
        body = content[place + 6 : place + _HEADER.size + length]  # the type is part of what is summed
        if kind not in _WHOLE_OR_PART or _HEADER.size + length > left or len(body) != length + 1:
            return place
        if _masked(_crc32c(body)) != masked:
            return place
        place += _HEADER.size + length
    return min(place, len(content))


def _masked(crc: int) -> int:
    """As RocksDB keeps a CRC, so that the CRC of what holds CRCs is sound."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C = tuple(_row(byte) for byte in range(256))


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
