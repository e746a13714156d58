"""The replicated log as one node holds it: what is in it, how much is committed, and how much is on its disk.

    compacted │ kept in memory ........................................... │
              │ first                stable                commit     last │
    ──────────┼─────────────────────────┼────────────────────┼────────────┤

Four marks divide the log. Entries up to `commit` are decided for ever: a majority has them on disk. Entries up to
`stable` are on *this* node's disk. The two are independent: a majority may be ahead of our disk, and our disk is ahead
of the majority while a proposal travels. Entries from `unsaved` on have not even been handed to the shell. Everything
before `first` has been compacted into a snapshot of the state; of it only the last index and term are remembered,
because the next append is checked against them.

Rules that the rest of the core leans on:

- Terms never fall along the log, so where two logs part can be found by bisection.
- If two logs hold an entry with the same index and term, they are equal up to there (log matching). Hence an append
  names the entry before it, and is refused unless that one is here with the same term.
- A committed entry is never replaced. An attempt means that the protocol was broken somewhere, and raises.

Writes are asynchronous: several batches may be under way to the disk at once, and a later one may replace entries of an
earlier one. A mark per batch remembers how far it makes the log durable; replacing entries lowers the marks of the
batches before, since what those wrote there is no longer what the log holds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from drillyard.emulator.raft.types import Entry, ProtocolBroken

ENTRY_OVERHEAD_BYTES = 64  # what an entry weighs besides its data, for the size limits: object and encoding


def size_of(entry: Entry) -> int:
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


class Log:
    """Entries after a compacted prefix; indices are those of the whole log."""

    __slots__ = ("_before", "_before_term", "_entries", "_marks", "bytes", "commit", "last_index", "stable", "unsaved")

    def __init__(self, before: int, before_term: int, entries: Sequence[Entry], commit: int) -> None:
        self._before = before  # the last compacted index, and its term
        self._before_term = before_term
        self._entries: list[Entry] = list(entries)
        self._marks: deque[list[int]] = deque()  # [number of the batch, index that it makes durable]
        self.bytes = sum(map(size_of, self._entries))
        self.commit = commit
        self.last_index = before + len(self._entries)
        self.stable = self.last_index
        self.unsaved = self.last_index + 1
        if commit < before or commit > self.last_index:
            raise ProtocolBroken(f"the log spans {before}..{self.last_index}, yet {commit} is known to be committed")

    # ---- looking -----------------------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        return self._before + 1

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self._before_term

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`; None when it is compacted or was never here."""
        place = index - self._before - 1
        if 0 <= place < len(self._entries):
            return self._entries[place].term
        return self._before_term if place == -1 else None

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Whether a log that ends with (`index`, `term`) holds everything that may be committed here.

        The later term wins, then the longer log: a committed entry is on a majority, so one of any majority of voters
        that answers by this rule refuses a candidate without it.
        """
        return (term, index) >= (self.last_term, self.last_index)

    def last_not_after(self, index: int, term: int) -> tuple[int, int]:
        """The last entry at or before `index` whose term is not above `term`, as (index, term).

        A follower answers a refused append with this, and the leader applies the same to the answer: in one exchange
        each side skips whole terms in which the logs cannot agree, instead of one entry per exchange. The term is 0
        when it is no longer known.
        """
        end = min(index, self.last_index) - self._before
        if end < 0:
            return index, 0
        place = bisect_right(self._entries, term, 0, end, key=_term_of)
        if place:
            return self._before + place, self._entries[place - 1].term
        return self._before, self._before_term if self._before_term <= term else 0

    def slice(self, start: int, end: int, max_bytes: int) -> tuple[Entry, ...]:
        """Entries `start`..`end`, both included, of at most `max_bytes`, but at least one."""
        first, stop = start - self._before - 1, end - self._before
        if first >= stop:
            return ()
        entries = self._entries
        room = max_bytes
        for place in range(first, stop):
            room -= len(entries[place].data) + ENTRY_OVERHEAD_BYTES
            if room < 0 and place > first:
                stop = place
                break
        return tuple(entries[first:stop])

    def has_change(self, start: int, end: int) -> bool:
        """Whether a membership change is among the entries `start`..`end`."""
        return any(entry.change is not None for entry in self._entries[start - self._before - 1 : end - self._before])

    # ---- growing -----------------------------------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        """Add the leader's own next entry. A leader never replaces anything in its own log."""
        self._entries.append(entry)
        self.last_index += 1
        self.bytes += len(entry.data) + ENTRY_OVERHEAD_BYTES

    def accept(self, index: int, term: int, entries: tuple[Entry, ...]) -> bool:
        """Take the leader's `entries`, which follow its entry (`index`, `term`); False if ours there is another.

        Entries that are here already are left alone: a message that was delayed or doubled may be shorter than the
        log, and cutting the log to it would forget entries that the leader counts on.
        """
        if self.term_at(index) != term:
            return False
        last = self.last_index
        if index < last:
            fresh = 0
            while fresh < len(entries) and self.term_at(index + 1 + fresh) == entries[fresh].term:
                fresh += 1
            entries = entries[fresh:]
            if entries and entries[0].index <= last:
                self._cut_from(entries[0].index)
        self._entries.extend(entries)
        self.last_index += len(entries)
        for entry in entries:
            self.bytes += len(entry.data) + ENTRY_OVERHEAD_BYTES
        return True

    def commit_to(self, index: int) -> bool:
        """Entries up to `index` are decided; False if that is no news."""
        if index <= self.commit:
            return False
        if index > self.last_index:
            raise ProtocolBroken(f"entry {index} is committed, but this log ends at {self.last_index}: data was lost")
        self.commit = index
        return True

    def _cut_from(self, index: int) -> None:
        if index <= self.commit:
            raise ProtocolBroken(f"entry {index} is to be replaced, but {self.commit} is committed")
        place = index - self._before - 1
        self.bytes -= sum(map(size_of, self._entries[place:]))
        del self._entries[place:]
        self.last_index = index - 1
        self._distrust_disk_from(index)
        self.unsaved = min(self.unsaved, index)

    # ---- the disk ----------------------------------------------------------------------------------------------

    @property
    def has_unsaved(self) -> bool:
        return self.unsaved <= self.last_index

    @property
    def awaits_disk(self) -> bool:
        """Whether a batch that was handed out is not yet known to be durable."""
        return bool(self._marks)

    def take_unsaved(self) -> tuple[Entry, ...]:
        """The entries for the next batch to the disk."""
        place = self.unsaved - self._before - 1
        self.unsaved = self.last_index + 1
        return tuple(self._entries[place:]) if place < len(self._entries) else ()

    def mark(self, number: int) -> None:
        """Batch `number`, once durable, makes everything that was taken so far durable."""
        self._marks.append([number, self.unsaved - 1])

    def persisted(self, number: int) -> None:
        """Every batch up to `number` is durable."""
        while self._marks and self._marks[0][0] <= number:
            self.stable = max(self.stable, self._marks.popleft()[1])

    def _distrust_disk_from(self, index: int) -> None:
        self.stable = min(self.stable, index - 1)
        for mark in self._marks:
            mark[1] = min(mark[1], index - 1)

    # ---- snapshots ---------------------------------------------------------------------------------------------

    def restore(self, index: int, term: int) -> None:
        """Start over after a snapshot that ends with (`index`, `term`); it is durable when the next mark is."""
        self._before, self._before_term = index, term
        self._entries = []
        self.last_index = index
        self.bytes = 0
        self.commit = index
        self.unsaved = index + 1
        self._distrust_disk_from(index)  # whatever older batches wrote, it makes nothing of the new log durable

    def compact(self, index: int) -> None:
        """Forget entries up to `index`, which a snapshot of the state can replace from now on."""
        if index <= self._before:
            return
        place = index - self._before
        term = self._entries[place - 1].term
        self.bytes -= sum(map(size_of, self._entries[:place]))
        del self._entries[:place]
        self._before, self._before_term = index, term


def _term_of(entry: Entry) -> int:
    return entry.term
