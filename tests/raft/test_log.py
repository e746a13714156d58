"""The log against a plain list, and its disk marks against a disk that is written in order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drillyard.emulator.raft import Entry, ProtocolBroken
from drillyard.emulator.raft.log import ENTRY_OVERHEAD_BYTES, Log, size_of

rising = st.lists(st.integers(1, 4), max_size=8).map(sorted)


def entries_of(terms: list[int], first: int = 1) -> tuple[Entry, ...]:
    return tuple(Entry(term, index, b"x" * index) for index, term in enumerate(terms, first))


@given(rising, rising, st.integers(0, 9))
def test_accept_makes_the_log_agree_or_refuses(ours: list[int], theirs: list[int], index: int) -> None:
    log = Log(0, 0, entries_of(ours), 0)
    leader = (0, *theirs)
    index = min(index, len(theirs))
    entries = entries_of(theirs)[index:]
    if log.accept(index, leader[index], entries):
        assert (index == 0) or ours[index - 1] == leader[index]
        kept = [log.term_at(place) for place in range(1, index + len(entries) + 1)]
        assert kept[index:] == theirs[index:]
        if ours[index : len(theirs)] == theirs[index:]:
            assert log.last_index == max(len(ours), len(theirs)), "an old message must not shorten the log"
        assert log.bytes == sum(map(size_of, log.slice(1, log.last_index, 1 << 20)))
    else:
        assert index > len(ours) or ours[index - 1] != leader[index]
        assert log.last_index == len(ours)


@given(rising, rising)
def test_the_hints_lead_to_agreement_without_passing_it(ours: list[int], theirs: list[int]) -> None:
    follower, leader = Log(0, 0, entries_of(ours), 0), Log(0, 0, entries_of(theirs), 0)
    following, exchanges = len(theirs), 0
    while follower.term_at(following) != leader.term_at(following):
        index, term = follower.last_not_after(following, leader.term_at(following) or 0)
        after, _ = leader.last_not_after(index, term) if term else (index, 0)
        assert after < following
        for place in range(after + 1, min(following, len(ours)) + 1):
            assert ours[place - 1] != theirs[place - 1], "an entry on which both agree must not be passed"
        following, exchanges = after, exchanges + 1
    assert exchanges <= len(set(ours) | set(theirs)) + 1


@given(rising, st.integers(0, 9), st.integers(1, 5))
def test_last_not_after_by_brute_force(terms: list[int], index: int, term: int) -> None:
    log = Log(0, 0, entries_of(terms), 0)
    fitting = [place for place in range(1, min(index, len(terms)) + 1) if terms[place - 1] <= term]
    expected = max(fitting, default=0)
    assert log.last_not_after(index, term) == (expected, terms[expected - 1] if expected else 0)


@given(rising, st.integers(1, 9), st.integers(0, 9), st.integers(0, 400))
def test_slice_is_a_prefix_within_the_limit(terms: list[int], start: int, end: int, limit: int) -> None:
    log = Log(0, 0, entries_of(terms), 0)
    end = min(end, len(terms))
    cut = log.slice(start, end, limit)
    assert list(cut) == list(entries_of(terms)[start - 1 : end])[: len(cut)]
    assert bool(cut) == (start <= end)
    assert len(cut) <= 1 or sum(map(size_of, cut)) <= limit


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from("atmps"), st.integers(1, 8), st.integers(0, 3)), max_size=25))
def test_stable_never_claims_what_the_disk_does_not_hold(steps: list[tuple[str, int, int]]) -> None:
    """The disk takes batches in order and whole; `stable` may claim only what it holds with the very same terms."""
    log = Log(0, 0, (), 0)
    disk: list[Entry] = []
    batches: list[tuple[int, tuple[Entry, ...]]] = []
    number, term, done = 0, 1, 0
    for kind, index, back in steps:
        if kind == "a":
            log.append(Entry(term, log.last_index + 1))
        elif kind == "t" and log.last_index:  # a leader of some term replaces the tail, perhaps with an older term
            index = min(index, log.last_index)
            term += 1
            new = max(term - back, log.term_at(index - 1) or 0)
            log.accept(index - 1, log.term_at(index - 1) or 0, (Entry(new, index),))
        elif kind == "m" and log.has_unsaved:
            number += 1
            batches.append((number, log.take_unsaved()))
            log.mark(number)
        elif kind == "p" and batches:
            done, entries = batches.pop(0)
            disk[entries[0].index - 1 :] = entries
            log.persisted(done)
        elif kind == "s":
            log.persisted(done)
        assert log.stable <= len(disk)
        assert [one.term for one in disk[: log.stable]] == [log.term_at(at) for at in range(1, log.stable + 1)]
    for done, entries in batches:
        disk[entries[0].index - 1 :] = entries
        log.persisted(done)
    if not log.has_unsaved:
        assert log.stable == log.last_index == len(disk)


def test_an_overwritten_batch_does_not_count_when_the_same_entry_comes_back() -> None:
    log = Log(0, 0, (), 0)
    for number, term in enumerate((1, 2, 1), 1):
        log.accept(0, 0, (Entry(term, 1),))
        log.take_unsaved()
        log.mark(number)
    log.persisted(1)
    assert log.stable == 0, "batch 2 may still overwrite what batch 1 wrote"
    log.persisted(3)
    assert log.stable == 1


def test_compaction_forgets_the_front_and_remembers_its_end() -> None:
    log = Log(0, 0, entries_of([1, 1, 2, 3]), 4)
    log.compact(3)
    log.compact(1)
    assert (log.first_index, log.last_index, log.term_at(3), log.term_at(2)) == (4, 4, 2, None)
    assert log.bytes == ENTRY_OVERHEAD_BYTES + 4
    assert log.accept(3, 2, ())
    assert log.last_not_after(2, 9) == (2, 0)
    assert log.last_not_after(4, 1) == (3, 0)


def test_a_snapshot_replaces_everything_and_is_durable_with_its_own_batch() -> None:
    log = Log(0, 0, entries_of([1, 1, 1, 1]), 1)
    log.append(Entry(2, 5))
    log.take_unsaved()
    log.mark(1)
    log.restore(3, 2)
    log.mark(2)
    assert (log.first_index, log.last_index, log.commit, log.bytes) == (4, 3, 3, 0)
    log.persisted(1)
    assert log.stable < 3
    log.persisted(2)
    assert log.stable == 3


def test_what_is_committed_is_never_replaced_and_never_missing() -> None:
    log = Log(0, 0, entries_of([1, 1]), 2)
    with pytest.raises(ProtocolBroken, match="is committed"):
        log.accept(1, 1, (Entry(2, 2),))
    with pytest.raises(ProtocolBroken, match="data was lost"):
        log.commit_to(3)
    with pytest.raises(ProtocolBroken, match="the log spans"):
        Log(0, 0, entries_of([1]), 2)
