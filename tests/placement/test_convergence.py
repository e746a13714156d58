"""Clusters by seed: stores that die and come back, steps that get lost or come late, leaders of PD that change.

After the trouble every region must be whole and in its place, leaders and peers in balance, no operator left; and then
nothing may move any more.
"""

from __future__ import annotations

from collections.abc import Callable

import placement_world
import pytest
from placement_world import Trouble, V, World

from drillyard.emulator.pd import checkers, placement
from drillyard.emulator.pd.builder import Builder
from drillyard.emulator.pd.checkers import Check, ReplicaChecker
from drillyard.emulator.pd.controller import Controller
from drillyard.emulator.pd.coordinator import Start
from drillyard.emulator.pd.fit import Chooser, Fit
from drillyard.emulator.pd.operators import Kind, Operator, Status, merge_operators
from drillyard.emulator.pd.picture import RegionView, StoreView
from drillyard.emulator.pd.schedulers import Scales
from drillyard.emulator.pd.steps import AddLearner, Influence, LeaveJoint, RemovePeer

SEEDS = range(12)
REPLICAS = (1, 3, 3, 3, 5)
LEADER_GAP = 10  # two stores that differ by more are out of balance: PD's tolerance at both ends


class Broken(AssertionError):
    """A promise that was not kept."""


def troubled(seed: int) -> tuple[World, int]:
    """A cluster in trouble for two minutes, with whatever the seed brings."""
    dice = World(seed, 1).chance
    replicas = REPLICAS[dice.below(len(REPLICAS))]
    stores = max(replicas, 3 + dice.below(4))
    size = (1, 3, 30)[dice.below(3)]
    interval = ("1h", "20s")[dice.below(2)]  # after which small regions are merged
    settings: dict[str, object] = {
        "max-replicas": replicas,
        "max-store-down-time": "60s",
        "split-merge-interval": interval,
    }
    if dice.below(4) == 0:
        settings["enable-joint-consensus"] = "false"
    if dice.below(4) == 0:
        settings["enable-placement-rules"] = "false"
    if dice.below(4) == 0:
        settings["location-labels"] = "zone"
    world = World(seed, stores, settings)
    world.bootstrap(1 + dice.below(30), size)
    for store_id in world.stores:
        world.label(store_id, zone=f"z{store_id % 3}")
    world.trouble = Trouble(lost_steps=30, lost_beats=20, late_steps=50)
    for _ in range(12):
        world.run(10)
        mishap(world, replicas)
    return world, replicas


def mishap(world: World, replicas: int) -> None:
    kind = world.chance.below(6)
    alive = [store.id for store in world.stores.values() if store.is_alive]
    dead = [store.id for store in world.stores.values() if not store.is_alive]
    if kind == 0 and len(alive) > max(1, replicas // 2 + 1):
        world.kill(alive[world.chance.below(len(alive))])
    elif kind == 1 and dead:
        world.revive(dead[0])
    elif kind == 2:
        world.lead()
    elif kind == 3:
        regions = sorted(world.regions)
        region = world.regions[regions[world.chance.below(len(regions))]]
        key = (region.meta.start_key or b"a") + b"%d" % world.chance.below(10)
        if not region.meta.end_key or key < region.meta.end_key:
            world.split(region, key)
    elif kind == 4 and world.chance.below(2):
        evicted: dict[str, dict[str, list[str]]] = {"store-id-ranges": {str(alive[0]): []}}
        world.set({"scheduler.evict-leader-scheduler": evicted if world.chance.below(2) else None})
    elif kind == 4:
        world.set({"max-replicas": max(1, min(replicas, len(alive)) - 2 * world.chance.below(2))})


def heal(world: World, replicas: int) -> None:
    """All stores come back, nothing gets lost; ends when nothing moves for half a minute, or with a verdict."""
    world.trouble = Trouble()
    world.set({"max-replicas": replicas, "scheduler.evict-leader-scheduler": None})
    for store in world.stores.values():
        if not store.is_alive:
            world.revive(store.id)
    quiet = 0
    for _ in range(50):
        before = len(world.orders)
        world.run(15)
        quiet = 0 if len(world.orders) > before else quiet + 1
        if quiet == 3:
            break


def zones(store_ids: set[int]) -> set[int]:
    """Where stores are, as `troubled` labels them."""
    return {store_id % 3 for store_id in store_ids}


def judge(world: World, replicas: int) -> None:
    if complaints := world.complaints(replicas):
        raise Broken(f"not healed: {complaints[:3]}")
    leaders = world.leaders()
    for region in world.regions.values():
        mine = region.peer(region.leader)
        assert mine is not None
        for peer in region.meta.peers:
            if leaders[mine.store_id] - leaders[peer.store_id] > LEADER_GAP and peer.role == V:
                raise Broken(f"leaders are not in balance: {leaders}")
    sizes = dict.fromkeys(world.stores, 0)
    for region in world.regions.values():
        for peer in region.meta.peers:
            sizes[peer.store_id] += region.size
    is_labelled = bool(world.mind.settings.placing().location_labels)
    average = sum(region.size for region in world.regions.values()) / len(world.regions)
    for region in world.regions.values():
        held = {peer.store_id for peer in region.meta.peers}
        for source in held:
            for target in set(sizes) - held:
                may_move = not is_labelled or len(zones(held - {source} | {target})) >= len(zones(held))
                if may_move and sizes[source] - sizes[target] > 2 * (average + region.size) + 2:
                    raise Broken(f"regions are not in balance: {sizes}")
    before = len(world.orders)
    world.run(60)
    if len(world.orders) > before:
        raise Broken(f"something moves still: {world.orders[-1]}")


def live(seed: int) -> None:
    world, replicas = troubled(seed)
    heal(world, replicas)
    judge(world, replicas)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_cluster_comes_to_rest(seed: int) -> None:
    live(seed)


# ---- planted bugs: the same clusters must show each of them ----

Patch = Callable[[pytest.MonkeyPatch], None]


def learners_count_as_voters(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fit, "loose", property(lambda self: []))


def orphans_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReplicaChecker, "_give_up_orphans", lambda self, check, counted: None)


def learners_are_promoted_before_they_caught_up(patch: pytest.MonkeyPatch) -> None:
    def is_finished(self: AddLearner, region: RegionView) -> bool:
        peer = region.learner_on(self.store_id)
        return peer is not None and peer.id == self.peer_id

    patch.setattr(AddLearner, "is_finished", is_finished)


def leaders_do_not_hand_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Builder, "_transfer", lambda self, target: None)
    patch.setattr(RemovePeer, "hindrance", lambda self, region, stores: "")
    patch.setattr(LeaveJoint, "hindrance", lambda self, region, stores: "")


def balance_without_tolerance(patch: pytest.MonkeyPatch) -> None:
    def should_move(self: Scales, source: StoreView, target: StoreView) -> bool:
        return self.score(source) >= self.score(target)

    patch.setattr(Scales, "should_move", should_move)


def balance_by_what_reports_say_alone(patch: pytest.MonkeyPatch) -> None:
    """Peers on their way to the emptiest store do not count, and there is no limit on how many go there."""
    patch.setattr(Controller, "influence", lambda self, picture, with_done=False: Influence())
    patch.setattr(Chooser, "may_take", lambda self, store: True)
    patch.setattr(Chooser, "may_give", lambda self, store: True)
    patch.setattr(Controller, "_fits_limits", lambda self, picture, operators: True)
    patch.setattr(Scales, "_tolerance", lambda self: 0)


def merges_without_aligning(patch: pytest.MonkeyPatch) -> None:
    def merge(desc: str, check: Check, target: RegionView, kind: Kind) -> tuple[Operator, Operator]:
        return merge_operators(desc, check.region, target, kind, ())

    patch.setattr(checkers, "merge", merge)


def operators_of_merged_regions_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Controller, "_disappear", lambda self, operator, now_ns: None)

    def remove(self: Controller, operator: Operator, status: Status, reason: str, now_ns: int, **_: bool) -> None:
        self._drop(operator)
        self._bury(operator, status, reason, now_ns)

    patch.setattr(Controller, "_remove", remove)


def ids_from_the_beginning(patch: pytest.MonkeyPatch) -> None:
    """Every lead begins its ids where the first one did."""
    patch.setattr(placement_world, "start_of", lambda outcome, cluster: Start(outcome.value, outcome.value, (1, 1001)))


def a_joint_state_is_left_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(placement, "joint_state", lambda check: None)


BUGS: list[Patch] = [
    learners_count_as_voters,
    orphans_stay,
    learners_are_promoted_before_they_caught_up,
    leaders_do_not_hand_over,
    balance_without_tolerance,
    balance_by_what_reports_say_alone,
    merges_without_aligning,
    operators_of_merged_regions_stay,
    ids_from_the_beginning,
    a_joint_state_is_left_alone,
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    for seed in range(30):
        try:
            live(seed)
        except AssertionError:
            return
    pytest.fail("it lived through thirty seeds")
