"""One turn of each scheduler, and of scattering: what is moved, what is left alone, and what holds a scheduler back."""

from __future__ import annotations

from typing import Any

import pytest
from placement_bench import Bench, Health, told

from drillyard.emulator.pd.operators import CannotBuild, Operator
from drillyard.emulator.pd.schedulers import KINDS, Schedulers, existing
from drillyard.wire import drillpb, metapb


def filled(leaders: dict[int, int], others: str = "1 2 3", **placing: Any) -> Bench:
    """Regions on three stores, of which each store leads so many; a fourth store is empty."""
    bench = Bench(**placing).stores(1, 2, 3, 4)
    region_id = 10
    for store_id, number in leaders.items():
        for _ in range(number):
            keys = (b"%d" % region_id, b"%d" % (region_id + 1))
            bench.region(region_id, others, Health(leader=store_id), keys=keys)
            region_id += 1
    return bench


def turn(bench: Bench, name: str, args: dict[str, Any] | None = None) -> list[Operator]:
    scene = bench.scene()
    scheduler = KINDS[f"{name}-scheduler"](f"{name}-scheduler", args or {})
    scene.chooser.unled = scheduler.unled()
    return scheduler.run(scene) if scheduler.is_due(scene) else []


# ---- balance ----


@pytest.mark.parametrize(
    ("leaders", "expected"),
    [
        ({1: 5, 2: 5, 3: 5}, 0),
        ({1: 10, 2: 5, 3: 1}, 0),  # within PD's tolerance of five at both ends
        ({1: 12, 2: 5, 3: 1}, 1),  # one move, then it is
        ({1: 30, 2: 0, 3: 0}, 4),  # a batch
    ],
)
def test_leaders(leaders: dict[int, int], expected: int) -> None:
    moved = turn(filled(leaders), "balance-leader")
    assert len(moved) == expected
    for operator in moved:
        assert operator.desc == "balance-leader"
        assert operator.brief.startswith("transfer leader: store 1 to")
        assert operator.kind.text == "leader"


def test_leaders_by_size() -> None:
    bench = filled({1: 4, 2: 4, 3: 4}, leader_schedule_policy="size")
    for region_id in (10, 11, 12, 13):
        bench.region(region_id, "1 2 3", size=200, keys=(b"%d" % region_id, b"%d" % (region_id + 1)))
    assert len(turn(bench, "balance-leader")) > 0


@pytest.mark.parametrize("setting", [{"leader_schedule_limit": 0}, {"tolerant_size_ratio": 20.0}])
def test_what_holds_leader_balance_back(setting: dict[str, Any]) -> None:
    assert turn(filled({1: 30, 2: 0, 3: 0}, **setting), "balance-leader") == []


def test_leaders_are_not_moved_to_a_store_that_is_silent_or_sick() -> None:
    bench = filled({1: 30, 2: 0, 3: 0})
    bench.store(2, silent_s=30)
    bench.store(3, is_busy=True)
    assert turn(bench, "balance-leader") == []


def test_regions_go_to_the_empty_store() -> None:
    (operator,) = turn(filled({1: 4, 2: 4, 3: 4}), "balance-region")
    assert operator.desc == "balance-region"
    assert operator.brief.endswith("to [4]")
    assert operator.kind.text in ("region", "region,leader")


@pytest.mark.parametrize("setting", [{"region_schedule_limit": 0}, {"tolerant_size_ratio": 50.0}, {"max_replicas": 5}])
def test_what_holds_region_balance_back(setting: dict[str, Any]) -> None:
    assert turn(filled({1: 4, 2: 4, 3: 4}, **setting), "balance-region") == []


def test_balance_keeps_regions_apart() -> None:
    bench = Bench(location_labels=("zone",))
    bench.stores(1, 2, 3, 4, labels={1: "a", 2: "b", 3: "c", 4: "c"})
    for region_id in range(10, 20):
        bench.region(region_id, "1 2 3", keys=(b"%d" % region_id, b"%d" % (region_id + 1)))
    (operator,) = turn(bench, "balance-region")
    assert operator.brief == "mv peer: store [3] to [4]"


def test_weights() -> None:
    bench = filled({1: 20, 2: 20, 3: 20})
    weight = drillpb.PdStoreWeight(store_id=1, leader=0.1, region=1)
    bench.cluster.apply(drillpb.PdCommand(weigh_store=weight).SerializeToString())
    assert {each.brief.split(" to ")[0] for each in turn(bench, "balance-leader")} == {"transfer leader: store 1"}


# ---- hot regions ----


def relieve(bench: Bench) -> list[Operator]:
    """Reads or writes are looked at by chance: one of a few turns is about writes."""
    for _ in range(8):
        if moved := turn(bench, "balance-hot-region"):
            return moved
    return []


def test_a_hot_leader_goes_to_the_least_loaded_follower() -> None:
    bench = filled({1: 3, 2: 1, 3: 1})
    for region_id, rate in ((10, 5), (11, 4), (13, 2)):
        bench.flow(region_id, rate)
    (operator,) = relieve(bench)
    assert told([operator]) == ["transfer-hot-write-leader: transfer leader: store 1 to 3"]
    assert operator.kind.text == "hot-region,leader"
    assert bench.placement.controller.add(bench.picture(), operator)
    for _ in range(4):
        for other in relieve(bench):
            assert other.region_id != operator.region_id, "what it brings is waited for"
            assert "leader" not in other.desc, "leaders are even now"


def test_a_hot_peer_moves_to_the_idle_store_when_leaders_are_even() -> None:
    bench = filled({1: 2, 2: 2, 3: 2})
    for region_id in (10, 12, 14):
        bench.flow(region_id, 5)
    (operator,) = relieve(bench)
    assert operator.desc == "move-hot-write-peer"
    assert operator.brief.endswith("to [4]")


def test_one_hot_region_alone_is_left_where_it_is() -> None:
    bench = Bench().stores(1, 2, 3)
    bench.region(7, "1 2 3")
    bench.flow(7, 50)
    assert relieve(bench) == []
    assert bench.picture().is_hot(7)


def test_hot_regions_are_nobody_elses_business() -> None:
    bench = filled({1: 30, 2: 0, 3: 0})
    for region_id in range(10, 40):
        bench.flow(region_id, 1)
    assert turn(bench, "balance-leader") == []
    assert turn(bench, "balance-region") == []
    with pytest.raises(CannotBuild, match="region 10 is hot"):
        bench.placement.scatterer.scatter(bench.placement.check_of(bench.view(10), bench.picture()), "")


# ---- what people ask for ----


def test_leaders_are_evicted() -> None:
    moved = turn(filled({1: 5, 2: 0, 3: 0}), "evict-leader", {"store-id-ranges": {"1": []}})
    assert len(moved) == 3
    for operator in moved:
        assert operator.brief.startswith("evict leader: from store 1 to one in [2 3], or to ")


def test_nobody_brings_leaders_to_an_evicted_store() -> None:
    bench = filled({1: 0, 2: 30, 3: 0})
    scene = bench.scene()
    scene.chooser.unled = frozenset({1})
    moved = KINDS["balance-leader-scheduler"]("balance-leader-scheduler", {}).run(scene)
    assert {each.brief for each in moved} == {"transfer leader: store 2 to 3"}


def test_leaders_are_granted() -> None:
    (operator,) = turn(filled({1: 5, 2: 0, 3: 0}), "grant-leader", {"store-id-ranges": {"3": []}})
    assert told([operator]) == ["grant-leader: transfer leader: store 1 to 3"]


def test_a_slow_store_loses_its_leaders() -> None:
    bench = filled({1: 3, 2: 3, 3: 3})
    assert turn(bench, "evict-slow-store") == []
    bench.store(2, slow_score=100)
    assert len(turn(bench, "evict-slow-store")) == 3
    bench.store(3, slow_score=100)
    assert turn(bench, "evict-slow-store") == [], "of two slow stores none is emptied"


@pytest.mark.parametrize("name", ["shuffle-leader", "shuffle-region"])
def test_disorder(name: str) -> None:
    assert len(turn(filled({1: 2, 2: 2, 3: 2}), name)) == 1


# ---- when ----


def test_a_scheduler_that_finds_nothing_comes_back_later_and_later() -> None:
    bench = filled({1: 1, 2: 1, 3: 1})
    scheduler = KINDS["balance-leader-scheduler"]("balance-leader-scheduler", {})
    waits: list[int] = []
    for _ in range(40):
        scheduler.run(bench.scene())
        waits.append(scheduler.next_ns - bench.now_ns)
        assert not scheduler.is_due(bench.scene())
        bench.now_ns = scheduler.next_ns
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (13 * 10**6, 5 * 10**9)


def test_which_there_are_is_agreed_on() -> None:
    defaults = list(existing({}))
    assert defaults[:2] == ["balance-region-scheduler", "balance-leader-scheduler"]
    settings = {"scheduler.balance-region-scheduler": "null", "scheduler.shuffle-leader-scheduler": "{}", "x": "1"}
    assert list(existing(settings)) == [*defaults[1:], "shuffle-leader-scheduler"]


def test_a_pause_ends_by_itself_or_when_somebody_says_so() -> None:
    schedulers = Schedulers()
    schedulers.follow({})
    schedulers.pause("balance-leader-scheduler", 5, 10)
    assert schedulers.pause_of("balance-leader-scheduler", 6) == (5, 5 + 10 * 10**9)
    assert schedulers.pause_of("balance-leader-scheduler", 6 + 10 * 10**9) is None
    schedulers.pause("balance-leader-scheduler", 5, 0)
    assert schedulers.pause_of("balance-leader-scheduler", 6) is None


# ---- scattering ----


def test_a_group_is_spread_evenly() -> None:
    bench = filled({1: 8, 2: 0, 3: 0})
    for region_id in range(10, 18):
        bench.placement.scatterer.scatter(bench.placement.check_of(bench.view(region_id), bench.picture()), "g")
    group = bench.placement.scatterer._groups["g"]
    assert {store_id: group.peers[store_id] for store_id in (1, 2, 3, 4)} == {1: 6, 2: 6, 3: 6, 4: 6}
    assert {store_id: group.leaders[store_id] for store_id in (1, 2, 3, 4)} == {1: 2, 2: 2, 3: 2, 4: 2}


def test_what_is_not_whole_is_not_scattered() -> None:
    bench = Bench().stores(1, 2, 3)
    bench.region(7, "1 2")
    with pytest.raises(CannotBuild, match="region 7 is not fully replicated"):
        bench.placement.scatterer.scatter(bench.placement.check_of(bench.view(7), bench.picture()), "")


def test_a_region_alone_stays_where_it_is() -> None:
    bench = Bench().stores(1, 2, 3)
    bench.region(7, "1 2 3")
    assert bench.placement.scatterer.scatter(bench.placement.check_of(bench.view(7), bench.picture()), "") is None
    assert bench.cluster.stores[1].state == metapb.Up
