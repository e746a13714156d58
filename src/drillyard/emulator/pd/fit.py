"""How well a region's peers fit PD's default placement rule, and which store would serve it best.

The rule: `max-replicas` voters, spread over the stores by `location-labels`, where two stores differ the more the
earlier in the list is the first label in which they differ; a store without a label is nowhere apart. Rules of several
groups, roles and constraints, as PD can be given them, are not emulated.

A store is chosen in two stages, as PD does: first by what lasts (its state, its space, its place), then by what passes
(silence, load, the tokens of its limit). So a store that is busy now is waited for, rather than a worse place taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

from msgspec import Struct

from drillyard.emulator.pd.controller import StoreLimits
from drillyard.emulator.pd.picture import Picture, RegionView, StoreView
from drillyard.emulator.pd.steps import ADD_PEER, COST, REMOVE_PEER, Influence
from drillyard.wire import metapb

LABEL_BASE = 100


class Fit(Struct, frozen=True):
    """Which peers the rule counts, and which are beyond it."""

    count: int
    peers: tuple[metapb.Peer, ...]
    orphans: tuple[metapb.Peer, ...]

    @property
    def is_satisfied(self) -> bool:
        return len(self.peers) == self.count and not self.loose

    @property
    def loose(self) -> list[metapb.Peer]:
        """Counted, though they do not vote yet."""
        return [peer for peer in self.peers if peer.role == metapb.Learner]


def fit(region: RegionView, picture: Picture) -> Fit:
    """The peers that serve the rule best: as many as it wants, voters first, well apart, healthy, and old."""
    count = picture.placing.max_replicas
    known = [peer for peer in region.peers if picture.store(peer.store_id) is not None]
    known.sort(key=lambda peer: (-_health(region, peer), peer.id))
    lost = tuple(peer for peer in region.peers if picture.store(peer.store_id) is None)
    if len(known) <= count:
        return Fit(count, tuple(known), lost)
    best: tuple[metapb.Peer, ...] = ()
    merit: tuple[int, float] | None = None
    for chosen in combinations(known, count):
        voters = sum(1 for peer in chosen if peer.role != metapb.Learner)
        value = (voters, isolation([picture.stores[peer.store_id] for peer in chosen], picture))
        if merit is None or value > merit:
            best, merit = chosen, value
    ids = {peer.id for peer in best}
    return Fit(count, best, (*lost, *(peer for peer in known if peer.id not in ids)))


def is_replicated(region: RegionView, picture: Picture) -> bool:
    found = fit(region, picture)
    return found.is_satisfied and not found.orphans


def _health(region: RegionView, peer: metapb.Peer) -> int:
    return 0 if peer.id in region.down else 1 if peer.id in region.pending else 2


# ---- places ----


def difference(one: StoreView, other: StoreView, labels: Sequence[str]) -> int:
    """At which label two stores are apart; -1 if at none."""
    for place, label in enumerate(labels):
        mine, yours = one.labels.get(label, ""), other.labels.get(label, "")
        if mine and yours and mine.lower() != yours.lower():
            return place
    return -1


def distinctness(store: StoreView, others: Iterable[StoreView], labels: Sequence[str]) -> float:
    """How far a store is from others; more is better."""
    places = (difference(store, other, labels) for other in others if other.id != store.id)
    return sum(float(LABEL_BASE ** (len(labels) - place - 1)) for place in places if place >= 0)


def isolation(stores: Sequence[StoreView], picture: Picture) -> float:
    labels = picture.placing.location_labels
    if not labels:
        return 0.0
    return sum(distinctness(store, stores[place + 1 :], labels) for place, store in enumerate(stores))


# ---- choosing a store ----


class Chooser:
    """Chooses stores for one region, by one picture."""

    def __init__(self, picture: Picture, limits: StoreLimits, influence: Callable[[], Influence]) -> None:
        self.picture = picture
        self.unled: frozenset[int] = frozenset()  # stores that take no leader because somebody said so
        self._limits = limits
        self._influence = influence

    def score(self, store: StoreView) -> tuple[float, int, int]:
        """Less is a better place for one more peer; what is on its way there counts."""
        coming = self._influence().stores.get(store.id)
        size, count = (coming.region_size, coming.regions) if coming is not None else (0, 0)
        placing = self.picture.placing
        return store.region_score(placing.low_space_ratio, size), store.regions + count, store.id

    def may_lead(self, store: StoreView) -> bool:
        return store.is_usable and store.id not in self.unled

    def may_stay(self, store: StoreView) -> bool:
        """What lasts: whether peers may be put there at all."""
        return (
            store.is_up
            and store.is_heard
            and not store.is_down
            and not store.is_low_on_space(self.picture.placing.low_space_ratio)
        )

    def may_take(self, store: StoreView) -> bool:
        """What passes: whether it can take a peer at this moment."""
        placing = self.picture.placing
        return (
            store.is_usable
            and store.snapshots <= placing.max_snapshot_count
            and (not placing.max_pending_peer_count or store.pending <= placing.max_pending_peer_count)
            and self._limits.allows(store, ADD_PEER, COST, self.picture.now_ns)
        )

    def may_give(self, store: StoreView) -> bool:
        """Whether a peer can be moved away from it at this moment."""
        return (
            not store.is_busy
            and store.snapshots <= self.picture.placing.max_snapshot_count
            and self._limits.allows(store, REMOVE_PEER, COST, self.picture.now_ns)
        )

    def to_add(self, region: RegionView, others: Sequence[StoreView], better_than: float = -1.0) -> StoreView | None:
        """The store for one more peer beside others; further from them than `better_than`, if that is given."""
        placing = self.picture.placing
        labels = placing.location_labels
        held = region.stores
        lasting = [
            store
            for store in self.picture.stores.values()
            if store.id not in held and self.may_stay(store) and self._is_isolated(store, others)
        ]
        apart = [(distinctness(store, others, labels), store) for store in lasting]
        furthest = max((distance for distance, _ in apart), default=0.0)
        if furthest <= better_than:
            return None
        best = [store for distance, store in apart if distance == furthest and self.may_take(store)]
        return min(best, key=self.score, default=None)

    def to_replace(self, region: RegionView, counted: Fit, peer: metapb.Peer) -> StoreView | None:
        return self.to_add(region, [store for store in self._stores(counted) if store.id != peer.store_id])

    def to_improve(self, region: RegionView, counted: Fit) -> tuple[StoreView, StoreView] | None:
        """From which store to which a peer should move so that the region is better spread, if it can be."""
        labels = self.picture.placing.location_labels
        stores = self._stores(counted) if labels else []
        giving = [store for store in stores if self.may_give(store)]
        if not giving:
            return None
        worst = min(
            giving, key=lambda store: (distinctness(store, stores, labels), *(-each for each in self.score(store)))
        )
        others = [store for store in stores if store.id != worst.id]
        better = self.to_add(region, others, distinctness(worst, others, labels))
        return None if better is None else (worst, better)

    def keeps_place(self, region: RegionView, source: StoreView, target: StoreView) -> bool:
        """Whether a region is spread no worse with a peer on the target rather than on the source."""
        labels = self.picture.placing.location_labels
        known = (self.picture.store(store_id) for store_id in region.stores)
        others = [store for store in known if store is not None and store.id != source.id]
        is_far = distinctness(target, others, labels) >= distinctness(source, others, labels)
        return is_far and self._is_isolated(target, others)

    def _is_isolated(self, store: StoreView, others: Sequence[StoreView]) -> bool:
        """The isolation level, if there is one, may not be given up for any peer."""
        placing = self.picture.placing
        labels, level = placing.location_labels, placing.isolation_level
        if level not in labels:
            return True
        wanted = labels.index(level) + 1
        return all(difference(store, other, labels[:wanted]) >= 0 for other in others)

    def _stores(self, counted: Fit) -> list[StoreView]:
        return [self.picture.stores[peer.store_id] for peer in counted.peers]
