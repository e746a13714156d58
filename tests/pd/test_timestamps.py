"""Timestamps never repeat and never go back: over batches, clocks that jump, bounds, leaders and restarts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.timestamps import LOGICAL_END, Oracle
from drillyard.wire import drillpb

WINDOW_MS = 3000


def test_a_batch_is_answered_with_its_last_stamp() -> None:
    oracle = Oracle(1000, 4000)
    stamps = [oracle.grant(count, 1500) for count in (3, 1, 5)]
    assert [(stamp.physical, stamp.logical) for stamp in stamps if stamp] == [(1500, 3), (1500, 4), (1500, 9)]


def test_time_stands_still_when_the_clock_goes_back() -> None:
    oracle = Oracle(1000, 4000)
    assert oracle.grant(1, 2000) is not None
    stamp = oracle.grant(1, 1200)
    assert stamp is not None
    assert (stamp.physical, stamp.logical) == (2000, 2)


def test_a_full_counter_takes_the_next_millisecond() -> None:
    oracle = Oracle(1000, 4000)
    oracle.grant(LOGICAL_END - 2, 1000)
    stamps = [oracle.grant(1, 1000), oracle.grant(1, 1000)]
    assert [(stamp.physical, stamp.logical) for stamp in stamps if stamp] == [(1000, LOGICAL_END - 1), (1001, 1)]


def test_nothing_is_granted_at_the_bound() -> None:
    oracle = Oracle(1000, 2000)
    assert oracle.grant(1, 2000) is None
    assert oracle.is_short(1500, 1000)
    oracle.raise_bound(oracle.wanted_bound(2000, WINDOW_MS))
    assert oracle.bound_ms == 5000
    assert oracle.grant(1, 2000) is not None
    assert not oracle.is_short(2000, 1000)


def test_the_bound_never_falls() -> None:
    oracle = Oracle(1000, 2000)
    oracle.raise_bound(1500)
    assert oracle.bound_ms == 2000


@pytest.mark.parametrize("count", [0, -1, LOGICAL_END])
def test_batches_of_an_impossible_size(count: int) -> None:
    with pytest.raises(ValueError, match="a batch holds"):
        Oracle(1000, 2000).grant(count, 1000)


class Members:
    """Leaders that come and go, each with a clock of its own; only the replicated state is common to them."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.oracles: list[Oracle] = []

    def lead(self, now_ms: int) -> None:
        command = drillpb.PdCommand(lead=drillpb.PdLead(member_id=1, now_ms=now_ms, window_ms=WINDOW_MS))
        first = self.cluster.apply(command.SerializeToString()).value
        self.oracles.append(Oracle(first, first + WINDOW_MS))

    def grant(self, count: int, now_ms: int) -> tuple[int, int]:
        """The newest leader grants."""
        oracle = self.oracles[-1]
        stamp = oracle.grant(count, now_ms)
        while stamp is None:
            command = drillpb.PdCommand(raise_bound_ms=oracle.wanted_bound(now_ms, WINDOW_MS))
            oracle.raise_bound(self.cluster.apply(command.SerializeToString()).value)
            stamp = oracle.grant(count, now_ms)
        return stamp.physical, stamp.logical

    def grant_old(self, count: int, now_ms: int) -> tuple[int, int] | None:
        """A deposed leader that has not noticed: it has its window, and cannot widen it."""
        stamp = self.oracles[-2].grant(count, now_ms) if len(self.oracles) > 1 else None
        return None if stamp is None else (stamp.physical, stamp.logical)


MOVES = st.lists(
    st.tuples(st.sampled_from(["grant", "lead", "restart", "old"]), st.integers(1, 300_000), st.integers(0, 40_000)),
    max_size=60,
)


@given(MOVES)
def test_stamps_grow_over_leaders_restarts_and_clocks(moves: list[tuple[str, int, int]]) -> None:
    members = Members()
    members.lead(10_000)
    last = (0, 0)
    given_ranges: list[tuple[int, int, int]] = []
    for move, count, now_ms in moves:
        count = min(count, LOGICAL_END - 1)
        if move == "lead":
            members.lead(now_ms)
        elif move == "restart":  # of all members: what is left is the record of the state
            record = members.cluster.to_message().SerializeToString()
            members.cluster = Cluster.from_message(drillpb.PdState.FromString(record))
            members.oracles.clear()
            members.lead(now_ms)
        elif move == "grant":
            stamp = members.grant(count, now_ms)
            assert (stamp[0], stamp[1] - count) >= last
            last = stamp
            given_ranges.append((stamp[0], stamp[1] - count, stamp[1]))
        elif (late := members.grant_old(count, now_ms)) is not None:
            given_ranges.append((late[0], late[1] - count, late[1]))
    given_ranges.sort()
    for (physical, _, end), (other, start, _) in itertools.pairwise(given_ranges):
        assert physical < other or end <= start, "a stamp was given twice"
