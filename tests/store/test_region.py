"""Ranges, epochs and membership of a region, as tables."""

from __future__ import annotations

import pytest

from drillyard.emulator.raft.types import ChangeKind, Configuration
from drillyard.emulator.store.region import (
    ChangeRefused,
    Epoch,
    Peer,
    PeerChange,
    PeerRole,
    Region,
    change_peers,
    configuration_of,
)

V, L, IN, OUT = PeerRole.VOTER, PeerRole.LEARNER, PeerRole.INCOMING_VOTER, PeerRole.DEMOTING_VOTER
ADD, REMOVE, LEARN = ChangeKind.ADD_VOTER, ChangeKind.REMOVE, ChangeKind.ADD_LEARNER
WHOLE = Region(1, b"", b"")
MIDDLE = Region(1, b"g", b"p")


def region(*peers: tuple[int, int, PeerRole], conf_ver: int = 5) -> Region:
    return Region(1, b"", b"", Epoch(3, conf_ver), tuple(Peer(*peer) for peer in peers))


def change(kind: ChangeKind, peer: int, store: int) -> PeerChange:
    return PeerChange(kind, Peer(peer, store, L if kind is LEARN else V))


@pytest.mark.parametrize(
    ("where", "key", "has"),
    [
        (WHOLE, b"", True),
        (WHOLE, b"\xff\xff", True),
        (MIDDLE, b"g", True),
        (MIDDLE, b"o\xff", True),
        (MIDDLE, b"p", False),
        (MIDDLE, b"f\xff", False),
        (MIDDLE, b"", False),
        (Region(1, b"g", b""), b"z", True),
        (Region(1, b"", b"g"), b"g", False),
    ],
)
def test_keys_belong_to_a_region(where: Region, key: bytes, has: bool) -> None:
    assert where.has_key(key) is has


@pytest.mark.parametrize(
    ("where", "asked", "clipped"),
    [
        (WHOLE, (b"", b""), (b"", b"")),
        (WHOLE, (b"a", b"c"), (b"a", b"c")),
        (MIDDLE, (b"", b""), (b"g", b"p")),
        (MIDDLE, (b"a", b"k"), (b"g", b"k")),
        (MIDDLE, (b"k", b""), (b"k", b"p")),
        (MIDDLE, (b"k", b"z"), (b"k", b"p")),
        (MIDDLE, (b"a", b"b"), (b"g", b"g")),
        (MIDDLE, (b"x", b"z"), (b"x", b"x")),
        (Region(1, b"g", b""), (b"a", b""), (b"g", b"")),
    ],
)
def test_ranges_are_cut_off_at_the_ends(
    where: Region, asked: tuple[bytes, bytes], clipped: tuple[bytes, bytes]
) -> None:
    assert where.clip(*asked) == clipped


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (WHOLE, MIDDLE, True),
        (MIDDLE, Region(2, b"p", b""), False),
        (MIDDLE, Region(2, b"", b"g"), False),
        (MIDDLE, Region(2, b"o", b""), True),
        (Region(1, b"", b"a"), Region(2, b"b", b""), False),
    ],
)
def test_overlaps(one: Region, other: Region, overlap: bool) -> None:
    assert one.overlaps(other) is overlap
    assert other.overlaps(one) is overlap


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        (region((1, 1, V)), (change(LEARN, 2, 2),), region((1, 1, V), (2, 2, L), conf_ver=6)),
        (region((1, 1, V), (2, 2, L)), (change(ADD, 2, 2),), region((1, 1, V), (2, 2, V), conf_ver=6)),
        (region((1, 1, V)), (change(ADD, 2, 2),), region((1, 1, V), (2, 2, V), conf_ver=6)),
        (region((1, 1, V), (2, 2, V)), (change(REMOVE, 2, 2),), region((1, 1, V), conf_ver=6)),
        (region((1, 1, V), (2, 2, L)), (change(REMOVE, 2, 2),), region((1, 1, V), conf_ver=6)),
        (region((1, 1, V), (2, 2, V)), (change(LEARN, 2, 2),), region((1, 1, V), (2, 2, L), conf_ver=6)),
        (
            region((1, 1, V), (2, 2, V), (3, 3, L)),
            (change(ADD, 3, 3), change(LEARN, 2, 2)),
            region((1, 1, V), (2, 2, OUT), (3, 3, IN), conf_ver=7),
        ),
        (
            region((1, 1, V), (2, 2, OUT), (3, 3, IN), conf_ver=7),
            (),
            region((1, 1, V), (2, 2, L), (3, 3, V), conf_ver=9),
        ),
    ],
)
def test_changes_of_peers(before: Region, changes: tuple[PeerChange, ...], after: Region) -> None:
    assert change_peers(before, changes) == after


@pytest.mark.parametrize(
    ("before", "changes", "word"),
    [
        (region((1, 1, V)), (), "not in a joint state"),
        (region((1, 1, V), (2, 2, OUT), (3, 3, IN)), (change(REMOVE, 2, 2),), "joint state"),
        (region((1, 1, V)), (change(REMOVE, 9, 9),), "not in the region"),
        (region((1, 1, V)), (change(REMOVE, 1, 1),), "no voter"),
        (region((1, 1, V)), (change(LEARN, 1, 1),), "no voter"),
        (region((1, 1, V), (2, 2, V)), (change(ADD, 2, 2),), "voter already"),
        (region((1, 1, V), (2, 2, L)), (change(LEARN, 2, 2),), "learner already"),
        (region((1, 1, V), (2, 2, L)), (change(LEARN, 3, 2),), "store 2 already"),
        (region((1, 1, V), (2, 2, L)), (change(ADD, 2, 3),), "on store 2"),
        (region((1, 1, V), (2, 2, L)), (change(ADD, 2, 2), change(REMOVE, 2, 2)), "same peer"),
        (region((1, 1, V), (2, 2, V)), (change(REMOVE, 2, 2), change(LEARN, 3, 3)), "demoted"),
    ],
)
def test_changes_that_do_not_fit(before: Region, changes: tuple[PeerChange, ...], word: str) -> None:
    with pytest.raises(ChangeRefused, match=word):
        change_peers(before, changes)


def test_who_votes_follows_from_the_roles() -> None:
    simple = region((1, 1, V), (2, 2, L))
    assert configuration_of(simple) == Configuration(voters=frozenset({1}), learners=frozenset({2}))
    joint = region((1, 1, V), (2, 2, OUT), (3, 3, IN), (4, 4, L))
    assert configuration_of(joint) == Configuration(
        voters=frozenset({1, 3}),
        learners=frozenset({4}),
        outgoing=frozenset({1, 2}),
        learners_next=frozenset({2}),
    )
