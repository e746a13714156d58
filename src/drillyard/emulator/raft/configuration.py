"""Who votes, what a majority is, and how membership changes.

A group decides by majorities because any two majorities of the same voters share a voter: whatever one majority has
accepted, every later majority hears of. Membership changes threaten exactly this, since a majority of the old voters
and a majority of the new ones may be strangers. There are two safe ways across:

- a *simple* change adds or removes one voter; majorities of sets that differ by one voter always meet;
- a *joint* change moves to any other set of voters through a configuration in which both sets vote, and everything
  (an election, a commit, a confirmed read) needs a majority of `voters` and a majority of `outgoing`. A second entry,
  with no changes, leaves the joint configuration again.

Learners receive the log and do not vote. A voter that is demoted by a joint change still votes in `outgoing`, so it
waits in `learners_next` and becomes a learner when the joint configuration is left.

Everything here is arithmetic on values. When a configuration takes effect, and who may propose one, is decided by the
core.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from enum import Enum

from drillyard.emulator.raft.types import Change, ChangeKind, Configuration, ConfigurationChange


class Tally(Enum):
    """How an election stands."""

    WON = "won"
    LOST = "lost"
    OPEN = "open"


def electors(configuration: Configuration) -> frozenset[int]:
    """Every node with a vote, in either half of a joint configuration."""
    return configuration.voters | configuration.outgoing


def members(configuration: Configuration) -> frozenset[int]:
    """Every node that receives the log."""
    return configuration.voters | configuration.outgoing | configuration.learners


def is_joint(configuration: Configuration) -> bool:
    return bool(configuration.outgoing)


def agreed(configuration: Configuration, value_of: Callable[[int], int]) -> int:
    """The highest value that a quorum has reached, when every voter `n` has reached `value_of(n)`.

    With match indices this is what may be committed; with the numbers of confirmed heartbeats, which reads may be
    served. Nobody to vote agrees on nothing: 0.
    """
    reached = _majority_value([value_of(node) for node in configuration.voters])
    if configuration.outgoing:
        reached = min(reached, _majority_value([value_of(node) for node in configuration.outgoing]))
    return reached


def has_quorum(configuration: Configuration, nodes: Container[int]) -> bool:
    """Whether `nodes` hold a majority, in both halves of a joint configuration."""
    return _has_majority(configuration.voters, nodes) and (
        not configuration.outgoing or _has_majority(configuration.outgoing, nodes)
    )


def tally(configuration: Configuration, votes: Mapping[int, bool]) -> Tally:
    """How an election stands: lost as soon as one half can no longer be won."""
    granted = {node for node, vote in votes.items() if vote}
    if has_quorum(configuration, granted):
        return Tally.WON
    possible = {node for node in electors(configuration) if votes.get(node, True)}
    return Tally.OPEN if has_quorum(configuration, possible) else Tally.LOST


def changed(configuration: Configuration, change: ConfigurationChange) -> Configuration:
    """The configuration after `change`; ValueError says why a change makes no sense here."""
    if not change.changes:
        return _leave_joint(configuration)
    if is_joint(configuration):
        raise ValueError("the group is in a joint configuration: only leaving it is possible")
    if len(change.changes) == 1:
        after = _with_changes(configuration, change.changes)
    else:
        if len({one.node for one in change.changes}) < len(change.changes):
            raise ValueError("a joint change names a node twice")
        entered = Configuration(configuration.voters, configuration.learners, outgoing=configuration.voters)
        after = _with_changes(entered, change.changes)
    if not after.voters:
        raise ValueError("the change would leave the group without a voter")
    return after


def _leave_joint(configuration: Configuration) -> Configuration:
    if not is_joint(configuration):
        raise ValueError("the group is not in a joint configuration: there is nothing to leave")
    return Configuration(configuration.voters, configuration.learners | configuration.learners_next)


def _with_changes(configuration: Configuration, changes: tuple[Change, ...]) -> Configuration:
    voters, learners = set(configuration.voters), set(configuration.learners)
    learners_next: set[int] = set()
    for change in changes:
        if change.node <= 0:
            raise ValueError(f"{change.node} is not a node: they are numbered from 1")
        voters.discard(change.node)
        learners.discard(change.node)
        if change.kind is ChangeKind.ADD_VOTER:
            voters.add(change.node)
        elif change.kind is ChangeKind.ADD_LEARNER:
            (learners_next if change.node in configuration.outgoing else learners).add(change.node)
    return Configuration(frozenset(voters), frozenset(learners), configuration.outgoing, frozenset(learners_next))


def _majority_value(values: list[int]) -> int:
    """The highest value that more than half of `values` reach: in ascending order, the one with a majority after it."""
    if not values:
        return 0
    values.sort()
    return values[(len(values) - 1) // 2]


def _has_majority(voters: frozenset[int], nodes: Container[int]) -> bool:
    return sum(1 for voter in voters if voter in nodes) > len(voters) // 2
