"""A simulated disk: batches written in order, some of them durable, the rest lost at a crash.

Rules: a batch is whole or not there. What was written is seen at once; a sync makes durable what was written before it
began. A crash keeps all that was synced and, of the batches since, any number of the first: the system may or may not
have written them back by itself. The disk remembers how to undo what is not durable, so it holds everything only once.

It holds records (under a name and a number) and the users' pairs by family; for the pure store it is the `State`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from drillyard.emulator.raft.types import Configuration, Entry, HardState, Ready, Restored
from drillyard.emulator.simulation.parts import Dice
from drillyard.emulator.simulation.world import Member
from drillyard.emulator.store.state import FAMILIES, Family, Pair, Span

_ABSENT = object()


class LogRecord(Struct, frozen=True):
    """One group's log and hard state, as a value."""

    hard_state: HardState = field(default_factory=HardState)
    before: int = 0
    before_term: int = 0
    entries: tuple[Entry, ...] = ()

    def staged(self, ready: Ready) -> LogRecord:
        hard_state = ready.hard_state or self.hard_state
        before, before_term, entries = self.before, self.before_term, self.entries
        if ready.snapshot is not None:
            before, before_term, entries = ready.snapshot.index, ready.snapshot.term, ()
        if ready.entries:
            first = ready.entries[0].index
            if not before < first <= before + len(entries) + 1:
                raise ValueError(f"entries from {first} do not join a log that ends at {before + len(entries)}")
            entries = entries[: first - before - 1] + ready.entries
        return LogRecord(hard_state, before, before_term, entries)

    def compacted(self, upto: int) -> LogRecord:
        if upto <= self.before:
            return self
        kept = upto - self.before
        return replace(self, before=upto, before_term=self.entries[kept - 1].term, entries=self.entries[kept:])

    def restored(self, configuration: Configuration, applied: int) -> Restored:
        return Restored(configuration, self.hard_state, self.before, self.before_term, self.entries, applied)


class Disk:
    def __init__(self) -> None:
        self.records: dict[tuple[str, int], Any] = {}
        self.pairs: dict[Family, dict[bytes, bytes]] = {family: {} for family in FAMILIES}
        self.written = 0  # batches
        self.wanted = 0  # the last of them that is to be synced for its own sake
        self.synced = 0
        self._undo: deque[list[tuple[dict[Any, Any], Any, Any]]] = deque()
        self._open: list[tuple[dict[Any, Any], Any, Any]] = []

    # ---- records ----

    def record(self, name: str, number: int = 0) -> Any:
        return self.records.get((name, number))

    def log(self, group: int) -> LogRecord:
        found: LogRecord = self.records.get(("log", group)) or LogRecord()
        return found

    def write(self, name: str, number: int, value: object) -> None:
        self._set(self.records, (name, number), value)

    def erase(self, name: str, number: int) -> None:
        self._set(self.records, (name, number), _ABSENT)

    def named(self, name: str) -> list[tuple[int, Any]]:
        return sorted((key[1], value) for key, value in self.records.items() if key[0] == name)

    # ---- pairs: the pure store's State ----

    def get(self, key: bytes, family: Family = Family.DEFAULT) -> bytes | None:
        return self.pairs[family].get(key)

    def scan(self, span: Span, limit: int, reverse: bool = False) -> list[Pair]:
        start, end = span.start, span.end
        pairs = self.pairs[span.family].items()
        found = [pair for pair in pairs if start <= pair[0] and (not end or pair[0] < end)]
        found.sort(reverse=reverse)
        return found[:limit]

    def put(self, key: bytes, value: bytes, family: Family = Family.DEFAULT) -> None:
        self._set(self.pairs[family], key, value)

    def delete(self, key: bytes, family: Family = Family.DEFAULT) -> None:
        self._set(self.pairs[family], key, _ABSENT)

    def delete_range(self, span: Span) -> None:
        pairs = self.pairs[span.family]
        for key in [key for key in pairs if span.has(key)]:
            self._set(pairs, key, _ABSENT)

    # ---- batches ----

    def _set(self, where: dict[Any, Any], key: Any, value: object) -> None:
        self._open.append((where, key, where.get(key, _ABSENT)))
        if value is _ABSENT:
            where.pop(key, None)
        else:
            where[key] = value

    def end_batch(self, *, lazily: bool = False) -> None:
        """What was set since the last end is one batch. `lazily`: nobody is promised it (see `Storage.write`)."""
        if self._open:
            self._undo.append(self._open)
            self._open = []
            self.written += 1
            if not lazily:
                self.wanted = self.written

    def make_durable(self, upto: int) -> None:
        while self.synced < upto:
            self._undo.popleft()
            self.synced += 1

    def cut_power(self, dice: Dice) -> int:
        """Loses what a crash may lose; the number of batches lost."""
        self.end_batch()
        kept = dice.below(len(self._undo) + 1)
        lost = len(self._undo) - kept
        while len(self._undo) > kept:
            for where, key, before in reversed(self._undo.pop()):
                if before is _ABSENT:
                    where.pop(key, None)
                else:
                    where[key] = before
        self._undo.clear()
        self.written = self.wanted = self.synced = self.written - lost
        return lost


class Syncer:
    """A member's one thread that syncs: each sync covers what is written when it begins."""

    def __init__(self, member: Member, disk: Disk) -> None:
        self._member = member
        self._disk = disk
        self._waiting: deque[tuple[int, Callable[[], object]]] = deque()
        self._is_syncing = False

    def when_durable(self, call: Callable[[], object]) -> None:
        """Once all that is written so far, but for lazy batches, is durable; in order. Somebody has to `begin`."""
        self._waiting.append((self._disk.wanted, call))

    def begin(self) -> None:
        """A turn is over: what was written in it shares a sync, unless one is running; that one is followed by another.

        What waits for nothing is called now.
        """
        disk = self._disk
        while self._waiting and not self._is_syncing:
            if disk.wanted > disk.synced:
                world = self._member.world
                self._is_syncing = True
                self._member.later(20 + world.dice.below(world.weather.sync_us), partial(self._end, disk.written))
                return
            self._call(disk.synced)

    def _end(self, upto: int) -> None:
        self._disk.make_durable(upto)
        self._call(upto)
        self._is_syncing = False
        self.begin()

    def _call(self, upto: int) -> None:
        while self._waiting and self._waiting[0][0] <= upto:
            self._waiting.popleft()[1]()
