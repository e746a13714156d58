"""PD's schedulers: what is better for the cluster as a whole, though no region lacks anything.

Rules: a scheduler runs when its time has come: again after 10 ms while it finds work, and ever less often, down to
every five seconds, while it finds none. It holds back while as many operators as its limit allows run on its account.
Balance is calm: a peer or a leader is moved only if its source stays the fuller one by more than a tolerance, counting
what is already on its way against the move at both ends. So two stores never pass the same thing back and forth.

Which schedulers there are is agreed on among PD's members, as `scheduler.<name>` in the settings; that somebody paused
one is known to the leader alone, as in the real PD. What the real one has beyond these is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from msgspec import Struct

from drillyard.emulator.pd.builder import Builder, Tools
from drillyard.emulator.pd.controller import Controller
from drillyard.emulator.pd.fit import Chooser, is_replicated
from drillyard.emulator.pd.hot_balance import Flows, Freedom
from drillyard.emulator.pd.operators import CannotBuild, Kind, Level, Operator
from drillyard.emulator.pd.picture import NEW_CLUSTER_REGIONS, Picture, RegionView, StoreView
from drillyard.emulator.pd.settings import Placing
from drillyard.emulator.pd.steps import SECOND_NS, Influence
from drillyard.wire import metapb

MIN_INTERVAL_NS = 10**7
MAX_INTERVAL_NS = 5 * SECOND_NS
GROWTH = 1.3
TRIES = 10  # regions that are looked at for one store
LEADER_BATCH = 4
EVICT_BATCH = 3
LEADER_TOLERANCE = 5.0
AMPLIFIED = 5  # what is on its way counts so many times when regions are balanced
SLOW_SCORE = 80
STATE_PREFIX = "scheduler."
ALL_KEYS = {"start-key": "", "end-key": ""}
Json = Any


class Scene(Struct, frozen=True):
    """What a scheduler works with. `chance(n)` is a number below n."""

    picture: Picture
    controller: Controller
    chooser: Chooser
    tools: Tools
    chance: Callable[[int], int]
    flows: Flows

    def pick(self, region_ids: Sequence[int]) -> list[RegionView]:
        """Some of the regions, by chance, that can be worked on: nothing is being done to them."""
        left = list(region_ids)
        picked: list[RegionView] = []
        while left and len(picked) < TRIES:
            region_id = left.pop(self.chance(len(left)))
            region = self.picture.region(region_id)
            if region is not None and region_id not in self.controller.running and not region.is_joint:
                picked.append(region)
        return picked

    def shuffled(self, stores: Sequence[StoreView]) -> list[StoreView]:
        left = list(stores)
        return [left.pop(self.chance(len(left))) for _ in range(len(left))]

    def may_give_leaders(self, store: StoreView) -> bool:
        return not store.is_down and not store.is_disconnected and store.id not in self.chooser.unled


class Condition(Enum):
    """What a scheduler is at, in the words of the real PD's diagnosis."""

    DISABLED = "disabled"  # there is none
    PAUSED = "paused"
    PENDING = "pending"  # its limit is reached
    SCHEDULING = "scheduling"
    NORMAL = "normal"  # there is nothing to do


class Scheduler:
    """One of them. `limit` names the setting that holds it back, `kind` what it is counted as."""

    limit = "leader_schedule_limit"
    kind = Kind.LEADER

    def __init__(self, name: str, args: Mapping[str, Json]) -> None:
        self.name = name
        self.args = args
        self.interval_ns = MIN_INTERVAL_NS
        self.next_ns = 0
        self.has_run = self.has_scheduled = False  # ever, and when it ran last

    @property
    def type(self) -> str:
        return self.name.removesuffix("-scheduler")

    def unled(self) -> frozenset[int]:
        """Stores whose leaders nobody else may bring or take."""
        return frozenset()

    def is_due(self, scene: Scene) -> bool:
        return scene.picture.now_ns >= self.next_ns and self.is_allowed(scene.picture.placing, scene.controller)

    def is_allowed(self, placing: Placing, controller: Controller) -> bool:
        """Whether fewer than its limit run on its account."""
        limit: int = getattr(placing, self.limit)
        return controller.count(self.kind) < limit

    def run(self, scene: Scene) -> list[Operator]:
        """What it wants done now; its next time follows from that."""
        try:
            operators = self.schedule(scene)
        except CannotBuild:
            operators = []
        self.has_run, self.has_scheduled = True, bool(operators)
        self.interval_ns = MIN_INTERVAL_NS if operators else min(int(self.interval_ns * GROWTH), MAX_INTERVAL_NS)
        self.next_ns = scene.picture.now_ns + self.interval_ns
        return operators

    def schedule(self, scene: Scene) -> list[Operator]:
        raise NotImplementedError

    def transfer(self, scene: Scene, region: RegionView, target: int, *others: int, forced: bool = False) -> Operator:
        builder = Builder(self.type, region, scene.tools).lead(target, *others, is_forced=forced)
        return builder.build(self.kind)

    def move(self, scene: Scene, region: RegionView, source: int, target: int) -> Operator:
        peer = region.on(source)
        assert peer is not None
        return Builder(self.type, region, scene.tools).remove(source).add(target, peer.role).build(self.kind)


# ---- balance ----


class Scales:
    """Compares two stores by what they hold, with a tolerance, and with what is on its way to and from them."""

    def __init__(self, picture: Picture, influence: Influence, by_leaders: bool) -> None:
        self.picture = picture
        self.influence = influence
        self.by_leaders = by_leaders
        self.tolerance = self._tolerance()

    def _tolerance(self) -> int:
        placing = self.picture.placing
        ratio = placing.tolerant_size_ratio
        if self.by_leaders and placing.leader_schedule_policy == "count":
            return int(ratio or LEADER_TOLERANCE)
        most = max((store.regions for store in self.picture.stores.values()), default=0)
        return int(self.picture.average_region_size * (ratio or max(1.0, most * 0.005)))

    def score(self, store: StoreView, delta: int | None = None) -> float:
        placing = self.picture.placing
        if self.by_leaders:
            change = self._coming(store) if delta is None else delta
            return store.leader_score(placing.leader_schedule_policy, change)
        return store.region_score(placing.low_space_ratio, self._coming(store) if delta is None else delta)

    def should_move(self, source: StoreView, target: StoreView) -> bool:
        amplified = 1 if self.by_leaders else AMPLIFIED
        leaving = -abs(self._coming(source)) * amplified - self.tolerance
        arriving = abs(self._coming(target)) * amplified + self.tolerance
        return self.score(source, leaving) > self.score(target, arriving)

    def _coming(self, store: StoreView) -> int:
        change = self.influence.stores.get(store.id)
        if change is None:
            return 0
        if not self.by_leaders:
            return change.region_size
        return change.leaders if self.picture.placing.leader_schedule_policy == "count" else change.leader_size


class BalanceLeader(Scheduler):
    def schedule(self, scene: Scene) -> list[Operator]:
        scales = Scales(scene.picture, scene.controller.influence(scene.picture), by_leaders=True)
        made: list[Operator] = []
        while (
            len(made) < self.args.get("batch", LEADER_BATCH)
            and (operator := self._one(scene, scales, made)) is not None
        ):
            made.append(operator)
            region = scene.picture.region(operator.region_id)
            assert region is not None
            operator.total(scales.influence, region)
        return made

    def _one(self, scene: Scene, scales: Scales, made: list[Operator]) -> Operator | None:
        """From the store that leads most to one of its followers, or to the one that leads least from its leader."""
        used = {each.region_id for each in made}
        stores = sorted(scene.picture.stores.values(), key=scales.score)
        givers = [each for each in reversed(stores) if scene.may_give_leaders(each)]
        takers = [each for each in stores if scene.chooser.may_lead(each)]
        if not any(scales.should_move(giver, taker) for giver in givers for taker in takers):
            return None
        for store in givers:
            for region in scene.pick(scene.picture.led_by(store.id)):
                if region.id not in used and (operator := self._out(scene, scales, store, region)) is not None:
                    return operator
        for store in takers:
            for region in scene.pick(scene.picture.followed_by(store.id)):
                source = scene.picture.store(region.leader.store_id)
                if source is None or region.id in used or not self._is_fit(scene, region):
                    continue
                if scene.may_give_leaders(source) and scales.should_move(source, store):
                    return self.transfer(scene, region, store.id)
        return None

    def _out(self, scene: Scene, scales: Scales, source: StoreView, region: RegionView) -> Operator | None:
        if not self._is_fit(scene, region):
            return None
        followers = [scene.picture.store(peer.store_id) for peer in region.peers if peer.role == metapb.Voter]
        targets = [store for store in followers if store is not None and store.id != source.id]
        for target in sorted((store for store in targets if scene.chooser.may_lead(store)), key=scales.score):
            if scales.should_move(source, target):
                return self.transfer(scene, region, target.id)
        return None

    def _is_fit(self, scene: Scene, region: RegionView) -> bool:
        return region.is_healthy and not scene.picture.is_hot(region.id)


class BalanceRegion(Scheduler):
    limit = "region_schedule_limit"
    kind = Kind.REGION

    def schedule(self, scene: Scene) -> list[Operator]:
        picture = scene.picture
        scales = Scales(picture, scene.controller.influence(picture, with_done=True), by_leaders=False)
        stores = sorted(picture.stores.values(), key=scales.score, reverse=True)
        for place, source in enumerate(stores[:-1]):
            if not scene.chooser.may_give(source):
                continue
            targets = [store for store in reversed(stores[place + 1 :]) if scene.chooser.may_take(store)]
            targets = [
                store for store in targets if scene.chooser.may_stay(store) and scales.should_move(source, store)
            ]
            if targets and (operator := self._from(scene, source, targets)) is not None:
                return [operator]
        return []

    def _from(self, scene: Scene, source: StoreView, targets: list[StoreView]) -> Operator | None:
        """A region that has a pending peer there first, then one that follows, then one that leads."""
        picture = scene.picture
        pending = [each for each in scene.pick(picture.pending_on(source.id)) if not each.down]
        sound = [
            region
            for ids in (picture.followed_by(source.id), picture.led_by(source.id))
            for region in scene.pick(ids)
            if region.is_healthy
        ]
        for region in [*pending, *sound]:
            is_worth_it = region.size > 1 or picture.region_count < NEW_CLUSTER_REGIONS
            if not is_worth_it or scene.picture.is_hot(region.id) or not is_replicated(region, picture):
                continue
            for target in targets:
                if target.id not in region.stores and scene.chooser.keeps_place(region, source, target):
                    return self.move(scene, region, source.id, target.id)
        return None


class BalanceHotRegion(Scheduler):
    """One kind of flow at a time, by chance; who goes where is decided in `hot_balance`."""

    limit = "hot_region_schedule_limit"
    kind = Kind.HOT_REGION

    def schedule(self, scene: Scene) -> list[Operator]:
        kinds = ("write", "read")
        move = scene.flows.relief(kinds[scene.chance(2)], scene.picture, self._freedom(scene))
        if move is None or move.region_id in scene.controller.running:
            return []
        region = scene.picture.region(move.region_id)
        peer = region.on(move.source) if region is not None else None
        if region is None or peer is None or not region.is_healthy or not is_replicated(region, scene.picture):
            return []
        if move.is_transfer:
            name = f"transfer-hot-{move.kind}-leader"
            builder = Builder(name, region, scene.tools).lead(move.target)
        else:
            is_led = move.kind == "read" and region.leader.id == peer.id
            name = f"move-hot-{move.kind}-{'leader' if is_led else 'peer'}"
            builder = Builder(name, region, scene.tools).remove(move.source).add(move.target, peer.role)
            if is_led:
                builder.lead(move.target)
        operator = builder.build(self.kind)
        operator.level = Level.HIGH
        scene.flows.note(move, scene.picture.now_ns)
        return [operator]

    def _freedom(self, scene: Scene) -> Freedom:
        chooser = scene.chooser

        def may_transfer(region: RegionView, source: StoreView, target: StoreView) -> bool:
            peer = region.voter_on(target.id)
            return peer is not None and region.is_sound(peer) and chooser.may_lead(target)

        def may_move(region: RegionView, source: StoreView, target: StoreView) -> bool:
            is_free = target.id not in region.stores and chooser.may_stay(target) and chooser.may_take(target)
            return is_free and chooser.keeps_place(region, source, target)

        return Freedom(may_transfer, may_move)


# ---- leaders away from, or to, stores that somebody names ----


def _stores_of(args: Mapping[str, Json]) -> list[int]:
    return sorted(int(each) for each in args.get("store-id-ranges", {}))


def _evict(scheduler: Scheduler, scene: Scene, store_ids: Sequence[int]) -> list[Operator]:
    made: dict[int, Operator] = {}
    for store_id in store_ids:
        regions = scene.pick(scene.picture.led_by(store_id))
        for region in [
            *(each for each in regions if each.is_healthy),
            *(each for each in regions if not each.is_healthy),
        ]:
            followers = [peer for peer in region.peers if peer.role == metapb.Voter and peer.store_id != store_id]
            sound = [peer.store_id for peer in followers if region.is_sound(peer)]
            able = [each for each in sound if (store := scene.picture.store(each)) and scene.chooser.may_lead(store)]
            if able and region.id not in made and len(made) < EVICT_BATCH:
                operator = scheduler.transfer(scene, region, able[scene.chance(len(able))], *able)
                operator.level = Level.URGENT
                made[region.id] = operator
    return list(made.values())


class EvictLeader(Scheduler):
    def unled(self) -> frozenset[int]:
        return frozenset(_stores_of(self.args))

    def schedule(self, scene: Scene) -> list[Operator]:
        return _evict(self, scene, _stores_of(self.args))


class GrantLeader(Scheduler):
    def unled(self) -> frozenset[int]:
        return frozenset(_stores_of(self.args))

    def schedule(self, scene: Scene) -> list[Operator]:
        made: list[Operator] = []
        for store_id in _stores_of(self.args):
            for region in scene.pick(scene.picture.followed_by(store_id))[:1]:
                peer = region.on(store_id)
                if peer is not None and region.is_sound(peer) and peer.role == metapb.Voter:
                    made.append(self.transfer(scene, region, store_id, forced=True))
        return made


class EvictSlowStore(Scheduler):
    """Takes the leaders of one store whose own slow score is at the top; of one only, or there would be no end."""

    def schedule(self, scene: Scene) -> list[Operator]:
        scores = scene.picture.slow_scores
        slow = [store_id for store_id, score in scores.items() if score >= SLOW_SCORE]
        return _evict(self, scene, slow) if len(slow) == 1 and len(scores) > 2 else []


# ---- disorder on request ----


class ShuffleLeader(Scheduler):
    def schedule(self, scene: Scene) -> list[Operator]:
        for store in scene.shuffled([each for each in scene.picture.stores.values() if scene.chooser.may_lead(each)]):
            for region in scene.pick(scene.picture.followed_by(store.id)):
                if region.is_healthy:
                    return [self.transfer(scene, region, store.id)]
        return []


class ShuffleRegion(Scheduler):
    limit = "region_schedule_limit"
    kind = Kind.REGION

    def schedule(self, scene: Scene) -> list[Operator]:
        picture = scene.picture
        for source in scene.shuffled([each for each in picture.stores.values() if scene.chooser.may_give(each)]):
            for region in scene.pick([*picture.followed_by(source.id), *picture.led_by(source.id)]):
                if not region.is_healthy or not is_replicated(region, picture):
                    continue
                for target in scene.shuffled(
                    [each for each in picture.stores.values() if each.id not in region.stores]
                ):
                    if scene.chooser.may_stay(target) and scene.chooser.may_take(target):
                        return [self.move(scene, region, source.id, target.id)]
        return []


class Idle(Scheduler):
    """`label` acts on label properties, of which the emulator has none."""

    def schedule(self, scene: Scene) -> list[Operator]:
        return []


# ---- which there are ----


DEFAULTS = (
    "balance-region-scheduler",
    "balance-leader-scheduler",
    "balance-hot-region-scheduler",
    "evict-slow-store-scheduler",
)
KINDS: dict[str, type[Scheduler]] = {
    "balance-region-scheduler": BalanceRegion,
    "balance-leader-scheduler": BalanceLeader,
    "evict-slow-store-scheduler": EvictSlowStore,
    "evict-leader-scheduler": EvictLeader,
    "grant-leader-scheduler": GrantLeader,
    "shuffle-leader-scheduler": ShuffleLeader,
    "shuffle-region-scheduler": ShuffleRegion,
    "label-scheduler": Idle,
    "balance-hot-region-scheduler": BalanceHotRegion,
}


PER_STORE = ("evict-leader-scheduler", "grant-leader-scheduler")


def existing(settings: Mapping[str, str]) -> dict[str, Json]:
    """The schedulers that were agreed on, by name, with their arguments: PD's own unless removed, then those added."""
    states: dict[str, Json] = {name: {} for name in DEFAULTS}
    for key, text in settings.items():
        if key.startswith(STATE_PREFIX):
            name, args = key.removeprefix(STATE_PREFIX), json.loads(text)
            if args is None:
                states.pop(name, None)
            else:
                states[name] = args
    return states


class Schedulers:
    """Those of one leader. They follow what is agreed on; pauses are the leader's own."""

    def __init__(self) -> None:
        self.all: dict[str, Scheduler] = {}
        self._paused: dict[str, tuple[int, int]] = {}  # from when until when
        self._seen: dict[str, Json] | None = None

    def follow(self, settings: Mapping[str, str]) -> None:
        states = existing(settings)
        if states == self._seen:
            return
        self._seen = states
        former, self.all = self.all, {}
        for name, args in states.items():
            known = former.get(name)
            if known is not None and known.args == args:
                self.all[name] = known
            elif (kind := KINDS.get(name)) is not None:
                self.all[name] = kind(name, args)
        self._paused = {name: span for name, span in self._paused.items() if name in states}

    def unled(self) -> frozenset[int]:
        return frozenset().union(*(each.unled() for each in self.all.values()))

    def pause(self, name: str, now_ns: int, delay_s: int) -> None:
        """For so many seconds; none ends a pause."""
        self._paused[name] = (now_ns, now_ns + delay_s * SECOND_NS)

    def pause_of(self, name: str, now_ns: int) -> tuple[int, int] | None:
        span = self._paused.get(name)
        return span if span is not None and now_ns < span[1] else None

    def run(self, name: str, scene: Scene) -> None:
        """One scheduler's turn, if it is its time and nobody paused it."""
        scheduler = self.all.get(name)
        if scheduler is None or self.pause_of(name, scene.picture.now_ns) is not None or not scheduler.is_due(scene):
            return
        for operator in scheduler.run(scene):
            scene.controller.add(scene.picture, operator)
