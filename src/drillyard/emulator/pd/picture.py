"""The cluster as one placement decision sees it: regions as their leaders report them, stores with what they hold.

Rules: a picture is of one instant, and reads what the leader of PD has heard and what is agreed on; it changes
nothing. Shapes come from the replicated state; leaders, sizes and health from heartbeats. A region whose leader was
not heard in this lead has no view, and a store that was not heard takes no peer: what is not known is not acted on.

What to do about any of it is decided elsewhere: by `checkers` for one region, by `schedulers` for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct, field

from drillyard.emulator.pd.cluster import DISCONNECTED_AFTER_NS, UNHEALTHY_AFTER_NS, Cluster
from drillyard.emulator.pd.reports import Holding, Reports
from drillyard.emulator.pd.settings import Placing
from drillyard.wire import metapb

GIB = float(1 << 30)
NEW_CLUSTER_REGIONS = 100  # with fewer regions a store is not called low on space while it has this much:
NEW_CLUSTER_SPACE = 8 << 30
DEFAULT_LIMIT = 15.0  # steps a minute that a store takes, unless somebody set it
LOW_SPACE_RATIO = 0.8
MIN_WEIGHT = 1e-6
JOINT = (metapb.IncomingVoter, metapb.DemotingVoter)


class RegionView(Struct, frozen=True):
    """A region as its leader reports it. Pending and down are ids of peers; the size is in MiB."""

    meta: metapb.Region
    leader: metapb.Peer
    pending: frozenset[int] = frozenset()
    down: frozenset[int] = frozenset()
    size: int = 1
    keys: int = 0

    @property
    def id(self) -> int:
        return self.meta.id

    @property
    def peers(self) -> Iterator[metapb.Peer]:
        return iter(self.meta.peers)

    @property
    def stores(self) -> frozenset[int]:
        return frozenset(peer.store_id for peer in self.meta.peers)

    @property
    def epoch(self) -> tuple[int, int]:
        """Version and conf_ver, in the order in which PD writes them."""
        return self.meta.region_epoch.version, self.meta.region_epoch.conf_ver

    @property
    def is_joint(self) -> bool:
        return any(peer.role in JOINT for peer in self.meta.peers)

    @property
    def is_healthy(self) -> bool:
        return not self.pending and not self.down

    def on(self, store_id: int) -> metapb.Peer | None:
        return next((peer for peer in self.meta.peers if peer.store_id == store_id), None)

    def voter_on(self, store_id: int) -> metapb.Peer | None:
        """The peer on a store if it votes, in whichever half of a joint configuration."""
        peer = self.on(store_id)
        return None if peer is None or peer.role == metapb.Learner else peer

    def learner_on(self, store_id: int) -> metapb.Peer | None:
        peer = self.on(store_id)
        return peer if peer is not None and peer.role == metapb.Learner else None

    def is_sound(self, peer: metapb.Peer) -> bool:
        return peer.id not in self.pending and peer.id not in self.down


class StoreView(Struct, frozen=True):
    """A store, what it holds and what it can take."""

    id: int
    state: metapb.StoreState = metapb.Up
    silent_ns: int = 0
    down_after_ns: int = 1800 * 10**9
    is_heard: bool = True
    is_busy: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    regions: int = 0
    leaders: int = 0
    region_size: int = 0
    leader_size: int = 0
    pending: int = 0
    capacity: int = 0
    available: int = 0
    snapshots: int = 0  # the more of those that are sent and those that are received
    leader_weight: float = 1.0
    region_weight: float = 1.0
    add_limit: float = DEFAULT_LIMIT
    remove_limit: float = DEFAULT_LIMIT

    @property
    def is_up(self) -> bool:
        """Whether it is to stay: it was neither removed nor told to go."""
        return self.state == metapb.Up

    @property
    def is_offline(self) -> bool:
        return self.state == metapb.Offline

    @property
    def is_down(self) -> bool:
        return self.silent_ns > self.down_after_ns

    @property
    def is_disconnected(self) -> bool:
        return self.silent_ns > DISCONNECTED_AFTER_NS

    @property
    def is_unhealthy(self) -> bool:
        return self.silent_ns > UNHEALTHY_AFTER_NS

    @property
    def is_usable(self) -> bool:
        """Up, heard, and neither silent nor overloaded at the moment."""
        return self.is_up and self.is_heard and not self.is_down and not self.is_disconnected and not self.is_busy

    def is_low_on_space(self, low_space_ratio: float) -> bool:
        if not self.capacity or (self.regions < NEW_CLUSTER_REGIONS and self.available > NEW_CLUSTER_SPACE):
            return False
        return self.available / self.capacity < 1 - low_space_ratio

    def leader_score(self, policy: str, delta: float = 0) -> float:
        amount = self.leaders if policy == "count" else self.leader_size
        return (amount + delta) / max(self.leader_weight, MIN_WEIGHT)

    def region_score(self, low_space_ratio: float, delta: float = 0) -> float:
        """What it holds, weighed by how little space it has left.

        Where a delta takes away more than there is, the real one leaves the delta out; on small regions that makes
        a store look fuller for every peer that leaves it, so here nothing is left.
        """
        size = max(0.0, self.region_size + delta)
        return fullness(self.capacity, self.available, size, low_space_ratio) / max(self.region_weight, MIN_WEIGHT)


def fullness(capacity: int, available: int, size_mib: float, low_space_ratio: float = LOW_SPACE_RATIO) -> float:
    """How full a store is for balancing, by PD's second formula: its size, until space becomes scarce."""
    whole, free = capacity / GIB, available / GIB
    low = max(50.0, whole * (1 - low_space_ratio))
    if free >= whole or whole < 1:
        return float(size_mib)
    if free > low:
        return (1 + 256 * (math.log(whole) - math.log(free - low + 1)) / (whole - free + low - 1)) * size_mib
    return (1 + 256 * math.log(whole) / whole) * size_mib + 1e10 * (low - free) / low


class Picture:
    """All of it at one instant."""

    def __init__(self, cluster: Cluster, reports: Reports, placing: Placing, now_ns: int) -> None:
        self.placing = placing
        self.now_ns = now_ns
        self._cluster = cluster
        self._reports = reports
        self.hot_regions: Callable[[], frozenset[int]] = frozenset
        self._hot: frozenset[int] | None = None
        self._stores: dict[int, StoreView] | None = None

    # ---- stores ----

    @property
    def stores(self) -> Mapping[int, StoreView]:
        """Every store but the tombstones, in the order of their ids."""
        if self._stores is None:
            known = sorted(self._cluster.stores.items())
            self._stores = {store_id: self._view(store) for store_id, store in known if store.state != metapb.Tombstone}
        return self._stores

    def store(self, store_id: int) -> StoreView | None:
        return self.stores.get(store_id)

    def is_tombstone(self, store_id: int) -> bool:
        store = self._cluster.stores.get(store_id)
        return store is not None and store.state == metapb.Tombstone

    def _view(self, store: metapb.Store) -> StoreView:
        reports = self._reports
        held = reports.held.get(store.id) or Holding()
        report = reports.stores.get(store.id)
        stats = report.stats if report is not None else None
        profile = self._cluster.book.profile(store.id)
        return StoreView(
            id=store.id,
            state=store.state,
            silent_ns=self.now_ns - reports.last_heard_ns(store),
            down_after_ns=self.placing.max_store_down_time,
            is_heard=stats is not None,
            is_busy=stats is not None and stats.is_busy,
            labels={label.key: label.value for label in store.labels},
            regions=self._cluster.regions.peers[store.id],
            leaders=len(held.led),
            region_size=held.region_size,
            leader_size=held.leader_size,
            pending=len(held.pending),
            capacity=stats.capacity if stats is not None else 0,
            available=stats.available if stats is not None else 0,
            snapshots=max(stats.sending_snap_count, stats.receiving_snap_count) if stats is not None else 0,
            leader_weight=profile.leader_weight,
            region_weight=profile.region_weight,
            add_limit=profile.add_peer,
            remove_limit=profile.remove_peer,
        )

    # ---- regions ----

    @property
    def region_count(self) -> int:
        return len(self._cluster.regions)

    def region(self, region_id: int) -> RegionView | None:
        meta = self._cluster.regions.get(region_id)
        return None if meta is None else self.view_of(meta)

    def is_gone(self, region_id: int) -> bool:
        """Whether there is no such region any more, rather than nobody who leads it."""
        return self._cluster.regions.get(region_id) is None

    def view_of(self, meta: metapb.Region) -> RegionView | None:
        """The region as placement needs it; None while its leader is not known."""
        leader = self._reports.leader_of(meta)
        if leader is None:
            return None
        report = self._reports.regions[meta.id]
        request = report.request
        pending = frozenset(peer.id for peer in request.pending_peers)
        down = frozenset(stats.peer.id for stats in request.down_peers)
        return RegionView(meta, leader, pending, down, report.size_mib, request.approximate_keys)

    def find(self, key: bytes) -> RegionView | None:
        meta = self._cluster.regions.find(key)
        return None if meta is None else self.view_of(meta)

    def before(self, region: RegionView) -> RegionView | None:
        meta = self._cluster.regions.before(region.meta.start_key)
        return None if meta is None else self.view_of(meta)

    def after(self, region: RegionView) -> RegionView | None:
        meta = self._cluster.regions.after(region.meta)
        return None if meta is None else self.view_of(meta)

    def within(self, start: bytes, end: bytes) -> list[RegionView]:
        """The regions that meet a range, as far as their leaders are known."""
        views = (self.view_of(meta) for meta in self._cluster.regions.scan(start, end, 0))
        return [view for view in views if view is not None]

    def led_by(self, store_id: int) -> list[int]:
        """Ids of the regions whose leader is on a store, in the order in which they were heard."""
        held = self._reports.held.get(store_id)
        return list(held.led) if held is not None else []

    def followed_by(self, store_id: int) -> list[int]:
        """Ids of the regions that have a voter on a store which does not lead."""
        held = self._reports.held.get(store_id)
        return list(held.followed) if held is not None else []

    def pending_on(self, store_id: int) -> list[int]:
        held = self._reports.held.get(store_id)
        return list(held.pending) if held is not None else []

    def is_hot(self, region_id: int) -> bool:
        """Whether much was written to or read from a region for some time."""
        if self._hot is None:
            self._hot = self.hot_regions()
        return region_id in self._hot

    @property
    def slow_scores(self) -> dict[int, int]:
        """How slow each store that is up calls itself, from 1 to 100."""
        heard = self._reports.stores
        return {each: heard[each].stats.slow_score for each, store in self.stores.items() if store.is_usable}

    @property
    def average_region_size(self) -> float:
        return self._reports.average_size()
