"""What a leader knows about one follower's log, and how fast it may send.

A leader does not know where a follower stands when it takes over, so it begins carefully and speeds up:

- PROBE: one append at a time; the answer says whether `next` is right, or how far to go back. The next probe waits for
  the answer or, should that be lost, for the next sign of life.
- REPLICATE: the logs agree up to `match`. Appends are sent one after the other without waiting, and `next` runs
  ahead of `match`; at most `window` of them may be unanswered, so that a slow follower is not buried.
- SNAPSHOT: what the follower needs has been compacted; a snapshot is under way and nothing else is sent.

`match` is knowledge (the follower has this on its disk) and never goes back; `next` is a guess.
"""

from __future__ import annotations

from collections import deque
from enum import Enum


class ProgressState(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One follower, as its leader sees it."""

    __slots__ = (
        "_inflight",
        "_snapshot_index",
        "_window",
        "acknowledged_reads",
        "answered",
        "match",
        "next",
        "node",
        "probe_sent",
        "recent_active",
        "sent_commit",
        "state",
    )

    def __init__(self, node: int, next_index: int, window: int) -> None:
        self.node = node
        self.match = 0
        self.next = next_index
        self.state = ProgressState.PROBE
        self.recent_active = True  # heard from since the last check of the quorum; a new one gets the benefit of doubt
        self.probe_sent = False
        self.sent_commit = 0  # the commit index that it was last told
        self.acknowledged_reads = 0  # the latest batch of reads for which it has confirmed the leader
        self.answered = False  # it acknowledged an append since the last regular heartbeat was sent
        self._window = window
        self._inflight: deque[int] = deque()  # the last index of each unanswered append
        self._snapshot_index = 0

    def may_send(self) -> bool:
        if self.state is ProgressState.REPLICATE:
            return len(self._inflight) < self._window
        return self.state is ProgressState.PROBE and not self.probe_sent

    def has_unanswered(self) -> bool:
        return self.next > self.match + 1

    def sent(self, last: int, commit: int) -> None:
        """An append that ends with entry `last` (an empty one: the entry before) was sent."""
        self.sent_commit = commit
        if self.state is ProgressState.PROBE:
            self.probe_sent = True
        elif last >= self.next:
            self.next = last + 1
            self._inflight.append(last)

    def acknowledge(self, index: int, first_available: int) -> bool:
        """The follower holds everything up to `index`; False if that is old news.

        `first_available` is the leader's first uncompacted index: a follower that has reached it needs no snapshot.
        """
        self.answered = True
        is_news = index > self.match
        if is_news:
            self.match = index
        if self.next <= self.match:
            self.next = self.match + 1
        if self.state is ProgressState.REPLICATE:
            inflight = self._inflight
            while inflight and inflight[0] <= index:
                inflight.popleft()
        elif index < self.match:
            return False  # an old answer; it says nothing about the probe or snapshot that is under way
        elif self.state is ProgressState.PROBE or self.match + 1 >= first_available:
            self._enter(ProgressState.REPLICATE, self.match + 1)
            return True
        return is_news

    def refuse(self, index: int, hint: int) -> bool:
        """The follower refused an append after `index`, and can agree with us at `hint` at best; False if outdated."""
        if self.state is ProgressState.REPLICATE:
            if index <= self.match:
                return False
            self._enter(ProgressState.PROBE, self.match + 1)
            return True
        if self.state is ProgressState.SNAPSHOT or index != self.next - 1:
            return False
        self.next = max(min(index, hint + 1), self.match + 1)
        self.probe_sent = False
        return True

    def lose(self) -> None:
        """Something that was sent did not arrive: find out where the follower is."""
        if self.state is ProgressState.REPLICATE:
            self._enter(ProgressState.PROBE, self.match + 1)

    def begin_snapshot(self, at_least: int) -> None:
        """A snapshot is on its way which holds entry `at_least`, perhaps more."""
        self._enter(ProgressState.SNAPSHOT, self.next)
        self._snapshot_index = at_least

    def end_snapshot(self, ok: bool) -> None:
        """The shell is done with the snapshot. The next probe waits for a sign of life, so as not to spin."""
        if self.state is ProgressState.SNAPSHOT:
            reached = max(self.match, self._snapshot_index) if ok else self.match
            self._enter(ProgressState.PROBE, reached + 1)
            self.probe_sent = True

    def _enter(self, state: ProgressState, next_index: int) -> None:
        self.state = state
        self.next = next_index
        self.probe_sent = False
        self._inflight.clear()
