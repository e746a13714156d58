"""Reads on their way: not asked about yet, asked about with the other peers, or waiting for their entry to be applied.

Rules: all reads that have come since the last round of heartbeats share the next one. A read is answered once all
that was committed when it was confirmed is applied, under the range that the reader knew. A read that cannot be
confirmed any more is refused: it has had no effect.
"""

from __future__ import annotations

from collections import deque

from msgspec import Struct

from drillyard.emulator.raft import Raft
from drillyard.emulator.raft.types import NotLeader as RaftNotLeader
from drillyard.emulator.raft.types import Ready
from drillyard.emulator.store.errors import EpochNotMatch, RegionError
from drillyard.emulator.store.messages import Answer, Readable
from drillyard.emulator.store.region import Region


class _Read(Struct, frozen=True):
    ticket: object
    version: int


class ReadQueue:
    __slots__ = ("_asked", "_asks", "_confirmed", "_unasked")

    def __init__(self) -> None:
        self._unasked: list[_Read] = []
        self._asked: dict[bytes, list[_Read]] = {}
        self._confirmed: deque[tuple[int, list[_Read]]] = deque()
        self._asks = 0

    @property
    def has_unasked(self) -> bool:
        return bool(self._unasked)

    @property
    def is_empty(self) -> bool:
        return not (self._unasked or self._asked or self._confirmed)

    def add(self, ticket: object, version: int) -> None:
        self._unasked.append(_Read(ticket, version))

    def ask(self, raft: Raft, refusal: RegionError) -> list[Answer]:
        if not self._unasked:
            return []
        reads, self._unasked = self._unasked, []
        self._asks += 1
        context = self._asks.to_bytes(8, "big")
        try:
            raft.read_index(context)
        except RaftNotLeader:
            return [(read.ticket, refusal) for read in reads]
        self._asked[context] = reads
        return []

    def settle(self, ready: Ready | None, applied: int, region: Region, refusal: RegionError) -> list[Answer]:
        answers: list[Answer] = []
        if ready is not None:
            for context in ready.aborted_reads:
                answers += [(read.ticket, refusal) for read in self._asked.pop(context, ())]
            for confirmed in ready.reads:
                reads = self._asked.pop(confirmed.context, None)
                if reads is not None:
                    self._confirmed.append((confirmed.index, reads))
        readable, stale = Readable(region), EpochNotMatch((region,))
        while self._confirmed and self._confirmed[0][0] <= applied:
            _, reads = self._confirmed.popleft()
            answers += [(read.ticket, readable if read.version == region.epoch.version else stale) for read in reads]
        return answers

    def fail(self, error: RegionError) -> list[Answer]:
        """The replica is gone."""
        waiting = [*self._unasked, *(read for reads in self._asked.values() for read in reads)]
        waiting += [read for _, reads in self._confirmed for read in reads]
        self._unasked = []
        self._asked.clear()
        self._confirmed.clear()
        return [(read.ticket, error) for read in waiting]
