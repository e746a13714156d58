"""The one placement rule: steps to three voters, repeated until they are taken, on stores that are up."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drillyard.emulator.pd.placement import Placement, RegionView, Step, response_of
from drillyard.wire import eraftpb, metapb

V, L = metapb.Voter, metapb.Learner


def view(*peers: tuple[int, int, metapb.PeerRole], conf_ver: int = 1, pending: tuple[int, ...] = ()) -> RegionView:
    """Peers are (id, store, role); the first one leads."""
    meta = metapb.Region(
        id=2,
        region_epoch=metapb.RegionEpoch(version=1, conf_ver=conf_ver),
        peers=[metapb.Peer(id=peer, store_id=store, role=role) for peer, store, role in peers],
    )
    return RegionView(meta, meta.peers[0], frozenset(pending))


def ids(start: int = 100) -> Callable[[], int]:
    return count(start).__next__


def told(step: Step | None) -> list[tuple[int, int, int]]:
    """(change, peer, store) of each change."""
    return [] if step is None else [(kind, peer.id, peer.store_id) for kind, peer in step.changes]


def test_a_new_region_gets_two_more_voters_step_by_step() -> None:
    placement, take_id = Placement(3), ids()
    up = {1: 1, 2: 0, 3: 0}

    def decide(region: RegionView) -> list[tuple[int, int, int]]:
        return told(placement.decide(region, up, take_id, 0)[0])

    learner, voter = eraftpb.AddLearnerNode, eraftpb.AddNode
    first = view((10, 1, V))
    assert decide(first) == [(learner, 100, 2)]
    assert decide(first) == [(learner, 100, 2)], "a repeat is the same step, ids and all"
    assert decide(view((10, 1, V), (100, 2, L), conf_ver=2, pending=(100,))) == [], "it has not caught up yet"
    assert decide(view((10, 1, V), (100, 2, L), conf_ver=2)) == [(voter, 100, 2)]
    second = view((10, 1, V), (100, 2, V), conf_ver=3)
    assert decide(second) == [(learner, 101, 3)]
    assert decide(view((10, 1, V), (100, 2, V), (101, 3, L), conf_ver=4)) == [(voter, 101, 3)]
    assert decide(view((10, 1, V), (100, 2, V), (101, 3, V), conf_ver=5)) == []
    assert not placement.running
    assert [(each.name, each.success) for each in placement.records] == [("add-rule-peer", True)] * 2


def test_the_store_with_the_fewest_regions_is_chosen() -> None:
    step, _ = Placement(3).decide(view((10, 1, V)), {1: 0, 2: 7, 3: 4, 4: 4}, ids(), 0)
    assert told(step)[0][2] == 3


def test_regions_on_their_way_count() -> None:
    placement, take_id = Placement(3), ids()
    other = view((20, 1, V))
    other.meta.id = 9
    placement.decide(view((10, 1, V)), {2: 0, 3: 0}, take_id, 0)
    step, _ = placement.decide(other, {2: 0, 3: 0}, take_id, 0)
    assert told(step)[0][2] == 3


def test_without_a_free_store_nothing_happens() -> None:
    placement = Placement(3)
    assert placement.decide(view((10, 1, V)), {1: 1}, ids(), 0)[0] is None
    assert not placement.running


def test_without_an_id_nothing_happens() -> None:
    placement = Placement(3)
    assert placement.decide(view((10, 1, V)), {2: 0}, lambda: 0, 0)[0] is None
    assert not placement.running


def test_another_store_is_chosen_when_the_first_goes_away() -> None:
    placement, take_id = Placement(3), ids()
    placement.decide(view((10, 1, V)), {2: 0, 3: 0}, take_id, 0)
    step, ended = placement.decide(view((10, 1, V)), {3: 0}, take_id, 5)
    assert told(step) == [(eraftpb.AddLearnerNode, 101, 3)]
    assert [each.success for each in ended.cancelled] == [False]


def test_the_id_of_a_peer_that_came_and_went_is_not_used_again() -> None:
    placement, take_id = Placement(3), ids()
    placement.decide(view((10, 1, V)), {2: 0}, take_id, 0)
    step, _ = placement.decide(view((10, 1, V), conf_ver=3), {2: 0}, take_id, 0)
    assert told(step) == [(eraftpb.AddLearnerNode, 101, 2)]


def test_a_new_leader_of_pd_promotes_the_learner_that_it_finds() -> None:
    step, ended = Placement(3).decide(view((10, 1, V), (11, 2, L), conf_ver=2), {2: 1, 3: 0}, ids(), 0)
    assert told(step) == [(eraftpb.AddNode, 11, 2)]
    assert [each.name for each in ended.added] == ["promote-learner"]


def test_a_learner_on_a_lost_store_does_not_hold_up_the_rest() -> None:
    region = view((10, 1, V), (11, 2, V), (12, 3, L), conf_ver=4, pending=(12,))
    step, _ = Placement(3).decide(region, {4: 0}, ids(), 0)
    assert told(step) == [(eraftpb.AddLearnerNode, 100, 4)]


def test_a_learner_too_many_is_removed() -> None:
    placement = Placement(3)
    full = ((10, 1, V), (11, 2, V), (12, 4, V))
    step, _ = placement.decide(view(*full, (13, 3, L), conf_ver=6), {}, ids(), 0)
    assert told(step) == [(eraftpb.RemoveNode, 13, 3)]
    assert placement.decide(view(*full, conf_ver=7), {}, ids(), 0)[0] is None
    assert [each.name for each in placement.records] == ["remove-orphan-peer"]


def test_a_joint_configuration_is_left() -> None:
    joint = view((10, 1, metapb.DemotingVoter), (11, 2, metapb.IncomingVoter), (12, 3, V))
    step, _ = Placement(3).decide(joint, {}, ids(), 0)
    assert step is not None
    assert step.changes == ()


def test_a_step_as_it_is_sent() -> None:
    region = view((10, 1, V))
    step, _ = Placement(3).decide(region, {2: 0}, ids(), 0)
    assert step is not None
    response = response_of(step, region)
    assert (response.region_id, response.region_epoch, response.target_peer) == (
        2,
        region.meta.region_epoch,
        region.leader,
    )
    (change,) = response.change_peer_v2.changes
    assert (change.change_type, change.peer) == (
        eraftpb.AddLearnerNode,
        metapb.Peer(id=100, store_id=2, role=metapb.Learner),
    )


@pytest.mark.parametrize("replicas", [1, 3, 5])
@given(chance=st.lists(st.tuples(st.booleans(), st.integers(0, 63)), max_size=80))
def test_every_region_comes_to_its_voters_and_stays_there(replicas: int, chance: list[tuple[bool, int]]) -> None:
    """Steps get lost and stores come and go; at the end all are up, and the region must be whole in a few rounds."""
    placement, take_id = Placement(replicas), ids()
    region = view((10, 1, V))
    used = {10}

    def turn(up: dict[int, int], *, arrives: bool) -> None:
        step, _ = placement.decide(region, up, take_id, 0)
        if step is None or not arrives:
            return
        for kind, peer in step.changes:
            others = [each for each in region.meta.peers if each.id != peer.id]
            if kind == eraftpb.AddLearnerNode:
                assert peer.id not in used, "an id was given to two peers"
                used.add(peer.id)
            if kind != eraftpb.RemoveNode:
                others.append(
                    metapb.Peer(id=peer.id, store_id=peer.store_id, role=L if kind == eraftpb.AddLearnerNode else V)
                )
            del region.meta.peers[:]
            region.meta.peers.extend(others)
            region.meta.region_epoch.conf_ver += 1
        stores = [each.store_id for each in region.meta.peers]
        assert len(stores) == len(set(stores)), "two peers of a region on one store"

    for arrives, mask in chance:
        turn({store: 0 for store in range(1, 7) if mask >> (store - 1) & 1}, arrives=arrives)
    for _ in range(4 * replicas + 8):
        turn(dict.fromkeys(range(1, 7), 0), arrives=True)
    assert [peer.role for peer in region.meta.peers] == [V] * replicas
    assert not placement.running
