"""What people ask of PD by hand: what they are told, and what is begun."""

from __future__ import annotations

from typing import Any

import pytest
from placement_bench import Bench, Health, steps, told

from drillyard.emulator.pd.operators import Operator
from drillyard.emulator.pd.requests import CANNOT_ADD, Desk, Refused
from drillyard.wire import metapb


def cluster() -> Bench:
    bench = Bench().stores(1, 2, 3, 4)
    bench.store(5, silent_s=700)
    bench.store(6, state=metapb.Tombstone)
    bench.region(7, "1 2 3", keys=(b"", b"b"))
    bench.region(8, "1 2 4", keys=(b"b", b"c"))
    bench.region(9, "1 2", keys=(b"c", b"d"))
    bench.region(10, "1 2 3L", keys=(b"d", b""))
    return bench


def ask(bench: Bench, name: str, **wanted: Any) -> list[Operator]:
    answer = Desk.at(bench.placement, bench.now_ns).add({"name": name, **wanted})
    assert answer is None
    return bench.placement.controller.take_doings().added


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        ("transfer-leader", {"region_id": 7, "to_store_id": 2}, "admin-transfer-leader: transfer leader: store 1 to 2"),
        (
            "transfer-peer",
            {"region_id": 7, "from_store_id": 3, "to_store_id": 4},
            "admin-move-peer: mv peer: store [3] to [4]",
        ),
        ("add-peer", {"region_id": 7, "store_id": 4}, "admin-add-peer: add peer: store [4]"),
        ("add-learner", {"region_id": 7.0, "store_id": 4}, "admin-add-learner: add peer: store [4]"),
        ("remove-peer", {"region_id": 7, "store_id": 3}, "admin-remove-peer: rm peer: store [3]"),
        (
            "split-region",
            {"region_id": 7, "policy": "approximate"},
            "admin-split-region: split: region 7 use policy APPROXIMATE",
        ),
        (
            "split-region",
            {"region_id": 7, "policy": "usekey", "keys": ["6162"]},
            "admin-split-region: split: region 7 use policy USEKEY and keys [6162]",
        ),
        (
            "transfer-region",
            {"region_id": 7, "to_store_ids": [2, 3, 4], "peer_roles": ["voter", "leader", "learner"]},
            "admin-move-region: mv peer: store [1] to [4]",
        ),
    ],
)
def test_what_is_begun(name: str, wanted: dict[str, Any], expected: str) -> None:
    (operator,) = ask(cluster(), name, **wanted)
    assert told([operator]) == [expected]
    assert operator.kind.text.startswith("admin")


def test_a_merge_is_two_operators_with_the_peers_aligned() -> None:
    first, second = ask(cluster(), "merge-region", source_region_id=7, target_region_id=8)
    assert first.kind.text == "admin,merge,region"
    assert steps(first)[0] == "add learner peer 1000 on store 4"
    assert steps(second) == ["merge region 7 into region 8"]


@pytest.mark.parametrize(
    ("wanted", "status", "message"),
    [
        ({}, 400, "missing operator name"),
        ({"name": "turn-over"}, 400, "unknown operator"),
        ({"name": "add-peer", "store_id": 4}, 400, "missing region id"),
        ({"name": "add-peer", "region_id": True, "store_id": 4}, 400, "missing region id"),
        ({"name": "add-peer", "region_id": 7}, 400, "invalid store id to transfer peer to"),
        ({"name": "add-peer", "region_id": 99, "store_id": 4}, 500, "[PD:region:ErrRegionNotFound]region 99 not found"),
        ({"name": "add-peer", "region_id": 7, "store_id": 3}, 500, "region already has peer in store 3"),
        ({"name": "add-peer", "region_id": 7, "store_id": 99}, 500, "[PD:core:ErrStoreNotFound]store 99 not found"),
        ({"name": "add-peer", "region_id": 7, "store_id": 5}, 500, "[PD:core:ErrStoreUnhealthy]store 5 is unhealthy"),
        ({"name": "add-peer", "region_id": 7, "store_id": 6}, 500, "[PD:core:ErrStoreRemoved]store 6 has been removed"),
        ({"name": "remove-peer", "region_id": 7, "store_id": 4}, 500, "region has no peer in store 4"),
        ({"name": "transfer-leader", "region_id": 7}, 400, "missing store id to transfer leader to"),
        ({"name": "transfer-leader", "region_id": 7, "to_store_id": 4}, 500, "region has no voter in store 4"),
        ({"name": "transfer-leader", "region_id": 10, "to_store_id": 3}, 500, "region has no voter in store 3"),
        (
            {"name": "transfer-peer", "region_id": 7, "from_store_id": 4, "to_store_id": 1},
            500,
            "region has no peer in store 4",
        ),
        (
            {"name": "transfer-region", "region_id": 7, "to_store_ids": []},
            400,
            "missing store ids to transfer region to",
        ),
        (
            {"name": "transfer-region", "region_id": 7, "to_store_ids": "4"},
            400,
            "invalid store ids to transfer region to",
        ),
        (
            {"name": "transfer-region", "region_id": 7, "to_store_ids": [4]},
            500,
            "transfer region without peer role is not supported when placement rules enabled",
        ),
        ({"name": "split-region", "region_id": 7}, 400, "missing split policy"),
        ({"name": "split-region", "region_id": 7, "policy": "luck"}, 500, "check policy luck is not supported"),
        (
            {"name": "split-region", "region_id": 7, "policy": "usekey", "keys": ["zz"]},
            500,
            "split key zz is not in hex format",
        ),
        ({"name": "merge-region", "source_region_id": 7}, 400, "invalid target region id to merge to"),
        (
            {"name": "merge-region", "source_region_id": 9, "target_region_id": 8},
            500,
            "[PD:region:ErrRegionAbnormalPeer]region 9 has abnormal peer",
        ),
        ({"name": "scatter-region", "region_id": 9}, 500, "region 9 is not fully replicated"),
        ({"name": "scatter-regions"}, 400, "region_ids is invalid"),
    ],
)
def test_what_is_refused(wanted: dict[str, Any], status: int, message: str) -> None:
    bench = cluster()
    with pytest.raises(Refused) as refused:
        Desk.at(bench.placement, bench.now_ns).add(wanted)
    assert (refused.value.status, refused.value.message) == (status, message)
    assert not bench.placement.controller.running


def test_the_first_and_the_last_region_are_not_adjacent() -> None:
    bench = Bench().stores(1, 2, 3)
    for region_id, keys in ((7, (b"", b"b")), (8, (b"b", b"c")), (9, (b"c", b""))):
        bench.region(region_id, "1 2 3", keys=keys)
    with pytest.raises(Refused, match="two regions are not adjacent"):
        ask(bench, "merge-region", source_region_id=9, target_region_id=7)


def test_one_operator_a_region() -> None:
    bench = cluster()
    ask(bench, "add-peer", region_id=7, store_id=4)
    with pytest.raises(Refused) as refused:
        ask(bench, "transfer-leader", region_id=7, to_store_id=2)
    assert refused.value.message == CANNOT_ADD


def test_what_is_asked_for_takes_the_place_of_what_pd_does_by_itself() -> None:
    bench = cluster()
    bench.placement.controller.add(bench.picture(), *bench.wanted(9))
    bench.placement.controller.take_doings()
    (mine,) = ask(bench, "add-peer", region_id=9, store_id=4)
    former = bench.placement.controller.records[-1]
    assert (former.desc, former.status.name) == ("add-rule-peer", "REPLACED")
    assert bench.placement.controller.running[9] is mine


def test_several_are_scattered_and_the_answer_says_how_many() -> None:
    bench = cluster()
    answer = Desk.at(bench.placement, bench.now_ns).add({"name": "scatter-regions", "region_ids": [7, 8, 9, 99]})
    assert answer == {"processed-percentage": 50, "error": ""}


def test_a_removed_leader_hands_over_first() -> None:
    (operator,) = ask(cluster(), "remove-peer", region_id=7, store_id=1)
    assert steps(operator) == ["transfer leader from store 1 to store 2", "remove peer on store 1"]


def test_the_last_voter_is_not_removed() -> None:
    bench = Bench(max_replicas=1).stores(1, 2)
    bench.region(7, "1")
    with pytest.raises(Refused, match="target peers have no voter"):
        ask(bench, "remove-peer", region_id=7, store_id=1)


def test_a_joint_region_is_left_alone() -> None:
    bench = cluster()
    bench.region(10, "1- 2+ 3 4", Health(leader=3), keys=(b"d", b""))
    with pytest.raises(Refused, match="region which is in joint state"):
        ask(bench, "remove-peer", region_id=10, store_id=3)
