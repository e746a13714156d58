"""Quorum arithmetic against brute force, and membership changes against what makes them safe."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drillyard.emulator.raft import Change, ChangeKind, Configuration, ConfigurationChange
from drillyard.emulator.raft.configuration import Tally, agreed, changed, electors, has_quorum, members, tally

nodes = st.integers(1, 6)
sets = st.frozensets(nodes, max_size=5)
configurations = st.builds(Configuration, voters=st.frozensets(nodes, min_size=1, max_size=5), outgoing=sets)
changes = st.lists(st.builds(Change, st.sampled_from(ChangeKind), nodes), min_size=1, max_size=4)


def quorums(configuration: Configuration) -> list[frozenset[int]]:
    """Every set of electors that is a quorum, by the definition."""
    everybody = sorted(electors(configuration))
    subsets = chain.from_iterable(combinations(everybody, size) for size in range(len(everybody) + 1))
    halves = [half for half in (configuration.voters, configuration.outgoing) if half]
    return [
        frozenset(subset)
        for subset in subsets
        if halves and all(2 * len(half.intersection(subset)) > len(half) for half in halves)
    ]


@given(configurations, sets)
def test_a_quorum_is_a_majority_of_each_half(configuration: Configuration, some: frozenset[int]) -> None:
    assert has_quorum(configuration, some) == any(quorum <= some for quorum in quorums(configuration))


@given(configurations, st.lists(st.integers(0, 9), min_size=7, max_size=7))
def test_agreed_is_the_best_that_some_quorum_has_reached(configuration: Configuration, reached: list[int]) -> None:
    best = max(min(reached[node] for node in quorum) for quorum in quorums(configuration))
    assert agreed(configuration, reached.__getitem__) == best


@given(configurations, st.dictionaries(nodes, st.booleans()))
def test_tally_knows_the_outcome_as_soon_as_it_is_certain(configuration: Configuration, votes: dict[int, bool]) -> None:
    granted = {node for node, vote in votes.items() if vote}
    refused = {node for node, vote in votes.items() if not vote}
    outcome = tally(configuration, votes)
    is_won = any(quorum <= granted for quorum in quorums(configuration))
    is_possible = any(not quorum & refused for quorum in quorums(configuration))
    assert outcome is (Tally.WON if is_won else Tally.OPEN if is_possible else Tally.LOST)


@given(st.frozensets(nodes, min_size=1, max_size=5), st.lists(changes, max_size=6))
def test_quorums_of_neighbouring_configurations_always_meet(voters: frozenset[int], steps: list[list[Change]]) -> None:
    configuration = Configuration(voters)
    for step in steps:
        try:
            after = changed(configuration, ConfigurationChange(tuple(step)))
        except ValueError:
            after = configuration
        else:
            assert all(one & other for one in quorums(configuration) for other in quorums(after))
        if after.outgoing:
            left = changed(after, ConfigurationChange())
            assert all(one & other for one in quorums(after) for other in quorums(left))
            assert not left.outgoing
            assert not left.learners_next
            after = left
        assert after.voters
        assert not after.voters & after.learners
        configuration = after


def test_nobody_agrees_on_nothing() -> None:
    assert agreed(Configuration(), lambda node: 7) == 0
    assert not has_quorum(Configuration(), {1, 2})
    assert tally(Configuration(), {1: True}) is Tally.LOST


def test_a_voter_that_is_demoted_votes_in_the_old_half_until_the_joint_state_is_left() -> None:
    before = Configuration(frozenset({1, 2, 3}))
    demote = ConfigurationChange((Change(ChangeKind.ADD_LEARNER, 3), Change(ChangeKind.ADD_VOTER, 4)))
    joint = changed(before, demote)
    assert joint == Configuration(frozenset({1, 2, 4}), frozenset(), frozenset({1, 2, 3}), frozenset({3}))
    assert members(joint) == {1, 2, 3, 4}
    assert changed(joint, ConfigurationChange()) == Configuration(frozenset({1, 2, 4}), frozenset({3}))


@pytest.mark.parametrize(
    ("configuration", "change", "reason"),
    [
        (Configuration(frozenset({1})), ConfigurationChange(), "nothing to leave"),
        (Configuration(frozenset({1})), ConfigurationChange((Change(ChangeKind.REMOVE, 1),)), "without a voter"),
        (Configuration(frozenset({1})), ConfigurationChange((Change(ChangeKind.ADD_VOTER, 0),)), "numbered from 1"),
        (
            Configuration(frozenset({1}), outgoing=frozenset({1, 2})),
            ConfigurationChange((Change(ChangeKind.ADD_VOTER, 3),)),
            "only leaving",
        ),
        (
            Configuration(frozenset({1, 2})),
            ConfigurationChange((Change(ChangeKind.ADD_VOTER, 3), Change(ChangeKind.REMOVE, 3))),
            "twice",
        ),
    ],
)
def test_a_change_that_makes_no_sense_says_why(
    configuration: Configuration, change: ConfigurationChange, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        changed(configuration, change)
