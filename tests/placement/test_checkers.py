"""What one region needs: a table of cases for each checker."""

from __future__ import annotations

from typing import Any

import pytest
from placement_bench import HOUR_NS, SECOND_NS, Bench, Health, steps, told

from drillyard.emulator.pd.operators import Kind, Operator
from drillyard.emulator.pd.steps import TransferLeader
from drillyard.wire import metapb

OFFLINE = metapb.Offline
DOWN_S = 2000  # longer than max-store-down-time


# ---- peers ----


@pytest.mark.parametrize(
    ("peers", "health", "expected"),
    [
        ("1 2 3", Health(), []),
        ("1", Health(), ["add-rule-peer: add peer: store [2]"]),
        ("1 2", Health(), ["add-rule-peer: add peer: store [3]"]),
        ("1 2 3L", Health(), ["fix-peer-role: promote peer: store [3]"]),
        ("1 2 3L", Health(pending=(3,)), []),  # it has not caught up
        ("1 2 3 4", Health(), ["remove-orphan-peer: rm peer: store [4]"]),
        ("1 2 3 4L", Health(), ["remove-orphan-peer: rm peer: store [4]"]),
        ("1 2 3 4", Health(pending=(2,)), ["remove-orphan-peer: rm peer: store [2]"]),  # three others are well
        ("1 2 3", Health(pending=(3,)), []),
        ("1 2 3", Health(down=(3,)), []),  # it is not gone for long enough
        ("1- 2+ 3 4", Health(leader=3), ["leave-joint-state: promote peer: store [2]"]),
    ],
)
def test_with_all_stores_up(peers: str, health: Health, expected: list[str]) -> None:
    bench = Bench().stores(1, 2, 3, 4)
    bench.region(7, peers, health)
    assert told(bench.wanted(7)) == expected


@pytest.mark.parametrize(
    ("peers", "health", "expected"),
    [
        ("1 2 3", Health(down=(3,), pending=(3,)), ["replace-rule-down-peer: mv peer: store [3] to [4]"]),
        ("1 2 3", Health(pending=(3,)), []),  # its leader has to say so, too
        ("1 2 4", Health(), []),
        ("1 2 3 4", Health(down=(3,), pending=(3,)), ["remove-orphan-peer: rm peer: store [3]"]),
        (
            "1 2 4L 3",
            Health(down=(3,), pending=(3,)),
            ["replace-down-peer-with-orphan-peer: promote peer: store [3], rm peer: store [4]"],
        ),
    ],
)
def test_with_a_store_that_is_down(peers: str, health: Health, expected: list[str]) -> None:
    bench = Bench().stores(1, 2, 4)
    bench.store(3, silent_s=DOWN_S)
    bench.region(7, peers, health)
    assert told(bench.wanted(7)) == expected


@pytest.mark.parametrize(
    ("peers", "health", "expected"),
    [
        ("1 2 3", Health(), ["replace-rule-offline-peer: mv peer: store [3] to [4]"]),
        ("3 1 2", Health(), ["replace-rule-offline-leader-peer: mv peer: store [3] to [4]"]),
        ("1 2 4", Health(), []),
        ("1 2 3 4", Health(), ["remove-orphan-peer: rm peer: store [4]"]),
    ],
)
def test_with_a_store_that_is_told_to_go(peers: str, health: Health, expected: list[str]) -> None:
    bench = Bench().stores(1, 2, 4)
    bench.store(3, state=OFFLINE)
    bench.region(7, peers, health)
    assert told(bench.wanted(7)) == expected


def test_without_another_store_nothing_is_replaced() -> None:
    bench = Bench().stores(1, 2)
    bench.store(3, state=OFFLINE)
    bench.region(7, "1 2 3")
    assert bench.wanted(7) == []


@pytest.mark.parametrize(
    "stats",
    [
        {"silent_s": 30},
        {"is_busy": True},
        {"sending_snap_count": 65},
        {"receiving_snap_count": 65},
        {"available": 1 << 30},
        {"state": OFFLINE},
        {"state": metapb.Tombstone},
    ],
)
def test_a_store_that_takes_no_peer(stats: dict[str, Any]) -> None:
    bench = Bench().stores(1, 2)
    bench.store(3, **stats)
    bench.region(7, "1 2")
    assert bench.wanted(7) == []


def test_a_store_that_was_not_heard_yet_takes_no_peer() -> None:
    bench = Bench().stores(1, 2, 3)
    del bench.reports.stores[3]
    bench.region(7, "1 2")
    assert bench.wanted(7) == []


def test_too_many_pending_peers() -> None:
    bench = Bench(max_pending_peer_count=1).stores(1, 2, 3)
    for region_id in (7, 8):
        bench.region(region_id, "1 3L", Health(pending=(3,)), keys=(b"%d" % region_id, b"%d" % (region_id + 1)))
    bench.region(9, "1 2", keys=(b"9", b""))
    assert bench.wanted(9) == []


def test_the_limit_of_a_store() -> None:
    bench = Bench().stores(1, 2, 3)
    for region_id in (7, 8):
        bench.region(region_id, "1 2", size=50, keys=(b"%d" % region_id, b"%d" % (region_id + 1)))
    assert bench.placement.controller.add(bench.picture(), *bench.wanted(7))
    assert bench.wanted(8) == []
    bench.now_ns += 4 * 10**9  # fifteen a minute
    assert told(bench.wanted(8)) == ["add-rule-peer: add peer: store [3]"]


@pytest.mark.parametrize(
    ("replicas", "peers", "expected"),
    [
        (1, "1 2 3", ["remove-orphan-peer: rm peer: store [2]"]),
        (5, "1 2 3", ["add-rule-peer: add peer: store [4]"]),
        (2, "1 2", []),
    ],
)
def test_another_number_of_replicas(replicas: int, peers: str, expected: list[str]) -> None:
    bench = Bench(max_replicas=replicas).stores(1, 2, 3, 4, 5)
    bench.region(7, peers)
    assert told(bench.wanted(7)) == expected


@pytest.mark.parametrize(
    ("settings", "peers", "expected"),
    [
        ({"enable_make_up_replica": False}, "1 2", ["add-rule-peer: add peer: store [4]"]),  # rules do not ask it
        ({"enable_placement_rules": False}, "1 2", ["make-up-replica: add peer: store [4]"]),
        ({"enable_placement_rules": False, "enable_make_up_replica": False}, "1 2", []),
        ({"enable_placement_rules": False}, "1 2 3", ["replace-offline-replica: mv peer: store [3] to [4]"]),
        ({"enable_placement_rules": False, "enable_replace_offline_replica": False}, "1 2 3", []),
        ({"enable_placement_rules": False}, "1 2 4 5", ["remove-extra-replica: rm peer: store [5]"]),
        ({"enable_placement_rules": False, "enable_remove_extra_replica": False}, "1 2 4 5", []),
        ({"enable_placement_rules": False}, "1 2 4L", ["promote-learner: promote peer: store [4]"]),
    ],
)
def test_switches_count_without_placement_rules_only(settings: dict[str, Any], peers: str, expected: list[str]) -> None:
    bench = Bench(**settings).stores(1, 2, 4, 5)
    bench.store(3, state=OFFLINE)
    bench.region(7, peers)
    assert told(bench.wanted(7)) == expected


# ---- places ----


@pytest.mark.parametrize(
    ("peers", "settings", "expected"),
    [
        ("1 3", {}, ["add-rule-peer: add peer: store [5]"]),  # a zone of its own, though it is the fullest store
        ("1 2 3", {}, ["move-to-better-location: mv peer: store [2] to [5]"]),
        ("1 3 5", {}, []),
        ("1 2", {"isolation_level": "zone"}, ["add-rule-peer: add peer: store [3]"]),
        ("1 2 3", {"enable_placement_rules": False, "enable_location_replacement": False}, []),
    ],
)
def test_location_labels(peers: str, settings: dict[str, Any], expected: list[str]) -> None:
    bench = Bench(location_labels=("zone",), **settings)
    bench.stores(1, 2, 3, 4, 5, labels={1: "a", 2: "a", 3: "b", 4: "b", 5: "c"})
    bench.region(8, "5", size=400, keys=(b"m", b""))
    bench.region(7, peers, keys=(b"", b"m"))
    assert told(bench.wanted(7)) == expected


def test_an_isolation_level_is_not_given_up_for_a_third_peer() -> None:
    bench = Bench(location_labels=("zone",), isolation_level="zone")
    bench.stores(1, 2, 3, labels={1: "a", 2: "b", 3: "b"})
    bench.region(7, "1 2")
    assert bench.wanted(7) == []


def test_a_store_without_the_label_is_nowhere_apart() -> None:
    bench = Bench(location_labels=("zone",))
    bench.stores(1, 2, 4, labels={1: "a", 2: "b", 4: "b"})
    bench.store(3)
    bench.region(7, "1 2")
    assert told(bench.wanted(7)) == ["add-rule-peer: add peer: store [4]"]


# ---- steps ----


def test_a_move_is_one_joint_change_between_learner_and_removal() -> None:
    bench = Bench().stores(1, 2, 4)
    bench.store(3, state=OFFLINE)
    bench.region(7, "1 2 3")
    (operator,) = bench.wanted(7)
    change = "promote learner peer 1000 on store 4 to voter, demote voter peer 703 on store 3 to learner"
    assert steps(operator) == [
        "add learner peer 1000 on store 4",
        f"use joint consensus, {change}",
        f"leave joint state, {change}",
        "remove peer on store 3",
    ]
    assert operator.kind.text == "replica,region"
    assert operator.timeout_ns == 17 * 60 * 10**9


def test_a_leader_hands_over_before_its_peer_goes() -> None:
    bench = Bench().stores(1, 2, 4)
    bench.store(3, state=OFFLINE)
    bench.region(7, "3 1 2")
    (operator,) = bench.wanted(7)
    assert steps(operator)[1] == "transfer leader from store 3 to store 1"
    assert operator.kind.text == "replica,region,leader"


def test_without_joint_consensus_changes_are_made_one_by_one() -> None:
    bench = Bench(enable_joint_consensus=False).stores(1, 2, 4)
    bench.store(3, state=OFFLINE)
    bench.region(7, "3 1 2")
    (operator,) = bench.wanted(7)
    assert steps(operator) == [
        "add learner peer 1000 on store 4",
        "promote learner peer 1000 on store 4 to voter",
        "transfer leader from store 3 to store 1",
        "remove peer on store 3",
    ]


# ---- merges ----


def small(**settings: Any) -> Bench:
    """Three small regions, an hour and a bit after PD's lead began."""
    bench = Bench(**settings).stores(1, 2, 3, 4)
    bench.region(7, "1 2 3", size=5, keys=(b"", b"b"))
    bench.region(8, "1 2 3", size=3, keys=(b"b", b"c"))
    bench.region(9, "1 2 4", size=4, keys=(b"c", b""))
    assert bench.wanted(8) == []
    bench.now_ns += HOUR_NS + 10**9
    for store_id in (1, 2, 3, 4):
        bench.store(store_id)
    return bench


def test_a_small_region_is_merged_into_the_smaller_neighbour() -> None:
    bench = small()
    first, second = bench.wanted(8)
    assert (first.region_id, second.region_id) == (8, 9)
    assert told([first, second]) == ["merge-region: merge: region 8 to 9"] * 2
    assert steps(first)[0] == "add learner peer 1000 on store 4"
    assert steps(first)[-1] == "merge region 8 into region 9"
    assert steps(second) == ["merge region 8 into region 9"]
    assert first.timeout_ns == second.timeout_ns


def test_neighbours_on_the_same_stores_are_merged_at_once() -> None:
    bench = small()
    assert steps(bench.wanted(7)[0]) == ["merge region 7 into region 8"]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_merge_region_size": 2},
        {"max_merge_region_size": 0},
        {"max_merge_region_keys": 100},
        {"merge_schedule_limit": 0},
        {"split_merge_interval": 2 * HOUR_NS},
    ],
)
def test_nothing_is_merged(settings: dict[str, Any]) -> None:
    assert small(**settings).wanted(8) == []


def test_a_region_is_not_merged_soon_after_a_split() -> None:
    bench = small()
    bench.placement.record_split([9, 7], bench.now_ns)
    assert bench.wanted(8) == []
    bench.now_ns += HOUR_NS
    for store_id in (1, 2, 3, 4):
        bench.store(store_id)
    assert len(bench.wanted(8)) == 2


def test_splits_of_long_ago_are_forgotten_also_of_regions_that_are_gone() -> None:
    bench = Bench(split_merge_interval=60 * SECOND_NS)
    for region_id in range(1000):
        bench.placement.record_split([1, region_id], bench.now_ns)
        bench.now_ns += SECOND_NS
    assert len(bench.placement._merge_checker(bench.now_ns)._split_ns) <= 62


def test_what_was_done_lately_is_forgotten_though_nothing_is_balanced() -> None:
    bench = Bench().stores(1, 2, 3)
    bench.region(7, "1 2 3")
    controller = bench.placement.controller
    for _ in range(100):
        region = bench.view(7)
        step = TransferLeader(source=2, target=1)  # it leads already: done at once
        assert controller.add(bench.picture(), Operator("a", "b", 7, region.epoch, Kind.ADMIN, 10, (step,)))
        assert not controller.running
        bench.now_ns += SECOND_NS
    assert len(controller._just_done) <= 11


def test_one_way_merges_go_to_the_next_region() -> None:
    bench = small(enable_one_way_merge=True)
    assert bench.wanted(8)[1].region_id == 9
    assert bench.wanted(9) == []


@pytest.mark.parametrize(("health", "stores"), [(Health(pending=(3,)), "1 2 3"), (Health(down=(3,)), "1 2 3")])
def test_a_sick_region_is_not_merged(health: Health, stores: str) -> None:
    bench = small()
    bench.region(8, stores, health, size=3, keys=(b"b", b"c"))
    assert bench.wanted(8) == []


def test_what_would_be_too_large_is_not_merged() -> None:
    bench = small()
    for region_id, keys in ((7, (b"", b"b")), (9, (b"c", b""))):
        bench.region(region_id, "1 2 3", size=142, keys=keys)
    assert bench.wanted(8) == []
