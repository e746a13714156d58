"""Waiting for locks: who waits on this store for which lock, and the graph of who waits for whom in the cluster.

A pessimistic lock that meets another transaction's lock waits on the leader of its region, outside of the log. When
the lock is released, the oldest transaction that waits for it is woken at once, and the others a moment later, so that
it comes first. Woken ones are told of a conflict, because what they know of the key may be old, and try again. A wait
ends as well by its time-out, or because the region is not led here any more.

Two transactions that wait for each other would wait until then. So before a transaction waits, one store, the detector,
is told; it keeps the graph and refuses the wait that would close a circle. The graph may be lost with its store: those
who wait tell it again from time to time, and what nobody repeats is forgotten.

Pure: time comes in, and the words "wake" and "tell" mean return values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from msgspec import Struct

from drillyard.emulator.store.percolator import Released

FORGET_AFTER_MS = 3000


def hash_of(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


class Waiter(Struct, frozen=True):
    """One request that waits. `key` is encoded; `number` tells two waits of one transaction apart."""

    number: int
    key: bytes
    start_ts: int
    holder_ts: int


class Woken(Struct, frozen=True):
    first: Waiter | None = None
    later: tuple[Waiter, ...] = ()


class WaitQueue:
    """Who waits on this store."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, dict[int, Waiter]] = {}
        self.count = 0

    def add(self, waiter: Waiter) -> None:
        self._waiting.setdefault(waiter.key, {})[waiter.number] = waiter
        self.count += 1

    def leave(self, waiter: Waiter) -> None:
        """The wait has ended in some other way, or has been told of its end."""
        queue = self._waiting.get(waiter.key, {})
        if queue.pop(waiter.number, None) is not None:
            self.count -= 1
        if not queue:
            self._waiting.pop(waiter.key, None)

    def release(self, released: Released) -> Woken:
        """Takes those out who wait for this lock; who waits for a later lock on the key stays."""
        queue = self._waiting.get(released.key, {})
        ready = [waiter for waiter in queue.values() if waiter.holder_ts == released.start_ts]
        for waiter in ready:
            self.leave(waiter)
        ready.sort(key=lambda waiter: (waiter.start_ts, waiter.number))
        return Woken(ready[0], tuple(ready[1:])) if ready else Woken()


class Wait(Struct, frozen=True):
    """That one transaction waits for another, on this key (plain)."""

    txn: int
    holder: int
    key: bytes


class Circle(Struct, frozen=True):
    """The waits that lead from the transaction that is waited for back to the one that wanted to wait."""

    waits: tuple[Wait, ...]


class WaitForGraph:
    """The detector's picture of the cluster."""

    def __init__(self) -> None:
        self._waits: dict[int, dict[tuple[int, bytes], int]] = {}  # waiter -> (holder, key) -> when it was told, in ms

    def __len__(self) -> int:
        return sum(map(len, self._waits.values()))

    def detect(self, wait: Wait, now_ms: int) -> Circle | None:
        """Takes the wait into the graph, unless it would close a circle."""
        path = self._path(wait.holder, wait.txn, now_ms)
        if path is not None:
            return Circle(path)
        self._waits.setdefault(wait.txn, {})[wait.holder, wait.key] = now_ms
        return None

    def leave(self, wait: Wait) -> None:
        waits = self._waits.get(wait.txn, {})
        waits.pop((wait.holder, wait.key), None)
        if not waits:
            self._waits.pop(wait.txn, None)

    def forget(self, now_ms: int) -> None:
        """Drops what was not repeated for long."""
        for txn, waits in list(self._waits.items()):
            for place, told_ms in list(waits.items()):
                if now_ms - told_ms > FORGET_AFTER_MS:
                    self.leave(Wait(txn, *place))

    def _path(self, start: int, goal: int, now_ms: int) -> tuple[Wait, ...] | None:
        """The shortest chain of waits from one transaction to another."""
        if start == goal:
            return None  # a transaction that meets its own lock does not wait
        came_by: dict[int, Wait | None] = {start: None}
        frontier: Iterable[int] = (start,)
        while frontier:
            following: list[int] = []
            for txn in frontier:
                for (holder, key), told_ms in self._waits.get(txn, {}).items():
                    if holder in came_by or now_ms - told_ms > FORGET_AFTER_MS:
                        continue
                    came_by[holder] = Wait(txn, holder, key)
                    if holder == goal:
                        return _chain(came_by, goal)
                    following.append(holder)
            frontier = following
        return None


def _chain(came_by: dict[int, Wait | None], goal: int) -> tuple[Wait, ...]:
    chain: list[Wait] = []
    step = came_by[goal]
    while step is not None:
        chain.append(step)
        step = came_by[step.txn]
    return tuple(reversed(chain))
