"""PD's checkers: what one region needs, looked at on its own.

A region is looked at in PD's order, and the first need makes an operator: leave a joint state that nobody finishes;
give up what is beyond the rule; make up what is missing; replace what is on a store that is Down (its leader reports
it, too) or Offline; promote what is not a voter yet; move to a better place. A region that lacks nothing and is small
may be merged into a neighbour.

Rules: nothing is removed before what stays is whole and healthy. A store that is merely silent is waited for, until
`max-store-down-time`. PD's switches `enable-make-up-replica` and the like belong to its older replica checker: they
count only while `enable-placement-rules` is off, as in the real one, and names are that checker's then.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from drillyard.emulator.pd.builder import Builder, Tools, leave_joint
from drillyard.emulator.pd.fit import Chooser, Fit, fit, is_replicated
from drillyard.emulator.pd.operators import CannotBuild, Kind, Level, Operator, merge_operators
from drillyard.emulator.pd.picture import Picture, RegionView
from drillyard.wire import keys, metapb

MAX_TARGET_MIB = 500  # a region that is larger is merged into by nobody
SPLIT_MIB = 96  # TiKV splits at these, so nothing is merged beyond the next:
MAX_REGION_MIB = 144
MAX_REGION_KEYS = 1_440_000


class Check(Struct, frozen=True):
    """One look at one region."""

    region: RegionView
    picture: Picture
    chooser: Chooser
    tools: Tools

    def build(self, desc: str) -> Builder:
        return Builder(desc, self.region, self.tools)


def joint_state(check: Check) -> Operator | None:
    if not check.region.is_joint:
        return None
    operator = leave_joint(check.region, check.tools)
    operator.level = Level.HIGH
    return operator


class ReplicaChecker:
    """Peers: enough of them, on the right stores, in the right roles."""

    def __init__(self) -> None:
        self._leaders_sent: dict[int, int] = {}  # how many leaders of offline stores each store was given

    def check(self, check: Check) -> Operator | None:
        counted = fit(check.region, check.picture)
        placing = check.picture.placing
        by_rules = placing.enable_placement_rules
        needs = (
            (by_rules or placing.enable_remove_extra_replica, self._give_up_orphans),
            (by_rules or placing.enable_make_up_replica, self._make_up),
            (by_rules or placing.enable_remove_down_replica, self._replace_down),
            (by_rules or placing.enable_replace_offline_replica, self._replace_offline),
            (True, self._promote),
            (by_rules or placing.enable_location_replacement, self._improve),
        )
        for is_on, need in needs:
            if is_on and (operator := _try(need, check, counted)) is not None:
                return operator
        return None

    # ---- too many ----

    def _give_up_orphans(self, check: Check, counted: Fit) -> Operator | None:
        region, picture = check.region, check.picture
        if not counted.orphans:
            return None
        sick = [peer for peer in counted.peers if not region.is_sound(peer) or _is_cut_off(peer, picture)]
        name = "remove-orphan-peer" if picture.placing.enable_placement_rules else "remove-extra-replica"
        if counted.is_satisfied and not sick:
            return check.build(name).remove(counted.orphans[0].store_id).build(Kind.NONE)
        for peer in sick if counted.is_satisfied else ():
            if (operator := self._swap(check, counted, peer)) is not None:
                return operator
        if len(counted.orphans) < 2:
            return None
        unsound = [peer for peer in counted.orphans if not region.is_sound(peer)]
        if unsound:
            return check.build("remove-unhealthy-orphan-peer").remove(unsound[0].store_id).build(Kind.NONE)
        if len(region.meta.peers) > counted.count:
            lost = [peer for peer in counted.orphans if _is_cut_off(peer, picture)]
            return check.build(name).remove((lost or counted.orphans[1:])[0].store_id).build(Kind.NONE)
        return None

    def _swap(self, check: Check, counted: Fit, sick: metapb.Peer) -> Operator | None:
        """A healthy peer too many takes the place of one whose store is cut off."""
        if not _is_cut_off(sick, check.picture):
            return None
        for orphan in counted.orphans:
            if not check.region.is_sound(orphan) or _is_cut_off(orphan, check.picture):
                continue
            if orphan.role == metapb.Learner:
                builder = check.build("replace-down-peer-with-orphan-peer").promote(orphan.store_id)
                return builder.remove(sick.store_id).build(Kind.NONE)
            return check.build("remove-replaced-orphan-peer").remove(sick.store_id).build(Kind.NONE)
        return None

    # ---- too few ----

    def _make_up(self, check: Check, counted: Fit) -> Operator | None:
        if len(counted.peers) >= counted.count:
            return None
        others = [check.picture.stores[peer.store_id] for peer in counted.peers]
        store = check.chooser.to_add(check.region, others)
        if store is None:
            return None
        name = "add-rule-peer" if check.picture.placing.enable_placement_rules else "make-up-replica"
        return _high(check.build(name).add(store.id).build(Kind.REPLICA))

    # ---- on the wrong store ----

    def _replace_down(self, check: Check, counted: Fit) -> Operator | None:
        for peer in counted.peers:
            if peer.id in check.region.down and check.picture.stores[peer.store_id].is_down:
                return self._replace(check, counted, peer, "down")
        return None

    def _replace_offline(self, check: Check, counted: Fit) -> Operator | None:
        for peer in counted.peers:
            if check.picture.stores[peer.store_id].is_offline:
                return self._replace(check, counted, peer, "offline")
        return None

    def _replace(self, check: Check, counted: Fit, peer: metapb.Peer, why: str) -> Operator | None:
        store = check.chooser.to_replace(check.region, counted, peer)
        if store is None:
            return None
        by_rules = check.picture.placing.enable_placement_rules
        leader = self._next_leader(check, peer) if check.region.leader.id == peer.id else 0
        names = (
            (f"replace-rule-{why}-peer", f"replace-rule-{why}-leader-peer")
            if by_rules
            else (f"replace-{why}-replica",) * 2
        )
        builder = check.build(names[bool(leader)]).remove(peer.store_id).add(store.id, peer.role)
        if leader:
            builder.lead(leader)
            self._leaders_sent[leader] = self._leaders_sent.get(leader, 0) + 1
        return _high(builder.build(Kind.REPLICA))

    def _next_leader(self, check: Check, peer: metapb.Peer) -> int:
        """The store that leads instead: of those able to, the one that was given the fewest leaders so far."""
        able = [
            other.store_id
            for other in check.region.peers
            if other.id != peer.id
            and other.role != metapb.Learner
            and check.region.is_sound(other)
            and (store := check.picture.store(other.store_id)) is not None
            and check.chooser.may_lead(store)
        ]
        return min(able, key=lambda store_id: (self._leaders_sent.get(store_id, 0), store_id), default=0)

    # ---- in the wrong role, in the wrong place ----

    def _promote(self, check: Check, counted: Fit) -> Operator | None:
        name = "fix-peer-role" if check.picture.placing.enable_placement_rules else "promote-learner"
        for peer in counted.loose:
            return check.build(name).promote(peer.store_id).build(Kind.NONE)
        return None

    def _improve(self, check: Check, counted: Fit) -> Operator | None:
        move = check.chooser.to_improve(check.region, counted)
        if move is None:
            return None
        worse, better = move
        return check.build("move-to-better-location").remove(worse.id).add(better.id).build(Kind.REPLICA)


class MergeChecker:
    """Small regions into their neighbours; never one that was split lately, nor soon after PD's lead began."""

    def __init__(self, began_ns: int) -> None:
        self._began_ns = began_ns
        self._split_ns: dict[int, int] = {}  # by region, the latest last

    def record_split(self, region_ids: list[int], now_ns: int, interval_ns: int) -> None:
        """What was split longer ago than the interval is forgotten: of a region that is gone nobody asks again."""
        while self._split_ns and now_ns - self._split_ns[oldest := next(iter(self._split_ns))] >= interval_ns:
            del self._split_ns[oldest]
        for region_id in region_ids:
            self._split_ns.pop(region_id, None)
            self._split_ns[region_id] = now_ns

    def check(self, check: Check) -> tuple[Operator, Operator] | None:
        region, picture = check.region, check.picture
        placing = picture.placing
        if picture.now_ns - self._began_ns < placing.split_merge_interval or self._is_fresh(region, picture):
            return None
        if region.size > placing.max_merge_region_size or region.keys > placing.max_merge_region_keys:
            return None
        if not region.is_healthy or not is_replicated(region, picture) or picture.is_hot(region.id):
            return None
        target = self._target(check)
        if target is None or target.size > MAX_TARGET_MIB:
            return None
        if target.size + region.size >= MAX_REGION_MIB or target.keys + region.keys >= MAX_REGION_KEYS:
            return None
        return merge("merge-region", check, target, Kind.MERGE)

    def _target(self, check: Check) -> RegionView | None:
        """The next region or, if it is smaller, the previous one."""
        following = check.picture.after(check.region)
        best = following if self._is_fit(check, following) else None
        if not check.picture.placing.enable_one_way_merge:
            previous = check.picture.before(check.region)
            if previous is not None and self._is_fit(check, previous) and (best is None or previous.size < best.size):
                best = previous
        return best

    def _is_fit(self, check: Check, neighbour: RegionView | None) -> bool:
        picture = check.picture
        if neighbour is None or self._is_fresh(neighbour, picture) or not neighbour.is_healthy:
            return False
        if picture.is_hot(neighbour.id):
            return False
        if not picture.placing.enable_cross_table_merge and _table(neighbour) != _table(check.region):
            return False
        for store_id in neighbour.stores - check.region.stores:
            store = picture.store(store_id)
            if store is None or store.is_offline:
                return False  # nothing more is brought to a store that is to be emptied
        return is_replicated(neighbour, picture)

    def _is_fresh(self, region: RegionView, picture: Picture) -> bool:
        split_ns = self._split_ns.get(region.id)
        if split_ns is None:
            return False
        if picture.now_ns - split_ns < picture.placing.split_merge_interval:
            return True
        del self._split_ns[region.id]
        return False


def merge(desc: str, check: Check, target: RegionView, kind: Kind) -> tuple[Operator, Operator]:
    """Both operators that merge a region into a neighbour; its peers go to the neighbour's stores first."""
    source = check.region
    roles = {peer.store_id: peer.role for peer in target.peers}
    if {peer.store_id: peer.role for peer in source.peers} == roles:
        return merge_operators(desc, source, target, kind, ())
    if source.is_joint or target.is_joint:
        raise CannotBuild("cannot merge regions which are in joint state")
    steps, _, kind = check.build("").place(roles).plan(kind)
    return merge_operators(desc, source, target, kind, steps)


def _try(need: Callable[[Check, Fit], Operator | None], check: Check, counted: Fit) -> Operator | None:
    """A need for which there is no operator now does not keep the others from being looked at."""
    try:
        return need(check, counted)
    except CannotBuild:
        return None


def _high(operator: Operator) -> Operator:
    operator.level = max(operator.level, Level.HIGH)
    return operator


def _is_cut_off(peer: metapb.Peer, picture: Picture) -> bool:
    store = picture.store(peer.store_id)
    return store is None or store.is_disconnected


def _table(region: RegionView) -> bytes:
    """The table that a region starts in, if its keys are those of a SQL layer."""
    try:
        plain, _ = keys.decode(region.meta.start_key)
    except keys.BadKey:
        plain = region.meta.start_key
    return plain[:9] if plain.startswith(b"t") and len(plain) >= 9 else b""
