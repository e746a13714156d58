"""The users' pairs as the pure store sees them: three column families, each in the order of its keys.

RawKV keeps its pairs in `default`. Transactions keep values in `default`, locks in `lock` and what was committed or
rolled back in `write` (see `mvcc`). A region owns its range in all three families. What was written is read back at
once, by scans too. `MemoryState` is for tests and simulations; a member's is made of its storage and of the batch that
is being written.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from enum import IntEnum
from typing import Protocol

from msgspec import Struct

Pair = tuple[bytes, bytes]


class Family(IntEnum):
    """The numbers are written to disk."""

    DEFAULT = 0
    LOCK = 1
    WRITE = 2


FAMILIES = tuple(Family)
FAMILY_NAMES: Mapping[str, Family] = {"": Family.DEFAULT} | {family.name.lower(): family for family in Family}


class Span(Struct, frozen=True):
    """The keys from `start` up to and without `end` of one family. An empty end is the end of the key space."""

    start: bytes
    end: bytes
    family: Family = Family.DEFAULT

    def has(self, key: bytes) -> bool:
        return key >= self.start and (not self.end or key < self.end)


class Reading(Protocol):
    """The half of a state that does not change it; a view of a storage has it too."""

    def get(self, key: bytes, family: Family = Family.DEFAULT) -> bytes | None: ...
    def scan(self, span: Span, limit: int, reverse: bool = False) -> list[Pair]:
        """The first pairs of the span, or the last ones from its end backwards."""


class State(Reading, Protocol):
    def put(self, key: bytes, value: bytes, family: Family = Family.DEFAULT) -> None: ...
    def delete(self, key: bytes, family: Family = Family.DEFAULT) -> None: ...
    def delete_range(self, span: Span) -> None: ...


class MemoryState:
    """All of it in memory."""

    def __init__(self) -> None:
        self.pairs: dict[Family, dict[bytes, bytes]] = {family: {} for family in FAMILIES}
        self._keys: dict[Family, list[bytes]] = {family: [] for family in FAMILIES}

    def get(self, key: bytes, family: Family = Family.DEFAULT) -> bytes | None:
        return self.pairs[family].get(key)

    def scan(self, span: Span, limit: int, reverse: bool = False) -> list[Pair]:
        pairs = self.pairs[span.family]
        first, last = self._places(span)
        if reverse:
            chosen = self._keys[span.family][max(first, last - limit) : last][::-1]
        else:
            chosen = self._keys[span.family][first : min(last, first + limit)]
        return [(key, pairs[key]) for key in chosen]

    def put(self, key: bytes, value: bytes, family: Family = Family.DEFAULT) -> None:
        if key not in self.pairs[family]:
            insort(self._keys[family], key)
        self.pairs[family][key] = value

    def delete(self, key: bytes, family: Family = Family.DEFAULT) -> None:
        if self.pairs[family].pop(key, None) is not None:
            keys = self._keys[family]
            del keys[bisect_left(keys, key)]

    def delete_range(self, span: Span) -> None:
        first, last = self._places(span)
        for key in self._keys[span.family][first:last]:
            del self.pairs[span.family][key]
        del self._keys[span.family][first:last]

    def _places(self, span: Span) -> tuple[int, int]:
        keys = self._keys[span.family]
        first = bisect_left(keys, span.start)
        return first, max(first, bisect_left(keys, span.end) if span.end else len(keys))
