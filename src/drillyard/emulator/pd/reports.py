"""What PD's leader has heard in heartbeats: the live side of stores and regions.

Rules: nothing here is replicated; a new leader starts empty and hears it all again, because stores report everything to
a new leader. A report about a region counts only while the replicated meta has the epoch of the report, and never from
an older term than an earlier one. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field

from drillyard.emulator.pd.cluster import Cluster
from drillyard.wire import metapb, pdpb

MIB = 1 << 20


class StoreReport(Struct, frozen=True):
    stats: pdpb.StoreStats
    at_ns: int


class RegionReport(Struct, frozen=True):
    """The last heartbeat of a region. `size_mib` is at least 1: PD calls no region smaller."""

    request: pdpb.RegionHeartbeatRequest
    size_mib: int

    @property
    def leader(self) -> metapb.Peer:
        return self.request.leader


class StoreTotals(Struct):
    """What one store holds, summed over the regions known now."""

    regions: int = 0
    leaders: int = 0
    learners: int = 0
    region_size: int = 0
    leader_size: int = 0
    keys: int = 0
    leader_keys: int = 0


class Holding(Struct):
    """What one store holds of the regions that were heard: their ids, in the order of the last heartbeats."""

    led: dict[int, None] = field(default_factory=dict)
    followed: dict[int, None] = field(default_factory=dict)
    pending: dict[int, None] = field(default_factory=dict)
    region_size: int = 0
    leader_size: int = 0


class Reports:
    def __init__(self) -> None:
        self.stores: dict[int, StoreReport] = {}
        self.regions: dict[int, RegionReport] = {}
        self.held: dict[int, Holding] = {}  # by store; kept up with every heartbeat, for placement
        self._size = 0

    def hear_store(self, stats: pdpb.StoreStats, now_ns: int) -> None:
        self.stores[stats.store_id] = StoreReport(stats, now_ns)

    def is_outdated(self, request: pdpb.RegionHeartbeatRequest) -> bool:
        """Whether a leader of an earlier term sent it: a later one was heard already."""
        known = self.regions.get(request.region.id)
        return known is not None and request.term < known.request.term

    def average_size(self) -> float:
        """Of the regions heard, in MiB; 0 if there are none."""
        return self._size / len(self.regions) if self.regions else 0.0

    def hear_region(self, request: pdpb.RegionHeartbeatRequest) -> None:
        known = self.regions.get(request.region.id)
        size = max(1, request.approximate_size // MIB)
        if not request.approximate_size and known is not None:
            size = known.size_mib
        self.forget(request.region.id)
        self.regions[request.region.id] = RegionReport(request, size)
        self._count(self.regions[request.region.id], 1)

    def forget(self, region_id: int) -> None:
        """A region is not there any more."""
        if (report := self.regions.pop(region_id, None)) is not None:
            self._count(report, -1)

    def keep_only(self, cluster: Cluster) -> None:
        """Forgets regions that the replicated state no longer has."""
        for region_id in [each for each in self.regions if cluster.regions.get(each) is None]:
            self.forget(region_id)

    def _count(self, report: RegionReport, sign: int) -> None:
        """Adds what a report says to its stores' holdings, or takes it away again."""
        region_id, size = report.request.region.id, sign * report.size_mib
        self._size += size
        pending = {peer.id for peer in report.request.pending_peers}
        for peer in report.request.region.peers:
            held = self.held.setdefault(peer.store_id, Holding())
            held.region_size += size
            is_leader = peer.id == report.leader.id
            held.leader_size += size if is_leader else 0
            kinds = [held.led if is_leader else held.followed] if peer.role != metapb.Learner else []
            for kind in [*kinds, held.pending] if peer.id in pending else kinds:
                if sign > 0:
                    kind[region_id] = None
                else:
                    kind.pop(region_id, None)

    def last_heard_ns(self, store: metapb.Store) -> int:
        report = self.stores.get(store.id)
        return max(store.last_heartbeat, report.at_ns if report is not None else 0)

    def leader_of(self, region: metapb.Region) -> metapb.Peer | None:
        """The region's leader, if it was heard and is still one of the peers."""
        report = self.regions.get(region.id)
        if report is None or all(peer.id != report.leader.id for peer in region.peers):
            return None
        return report.leader

    def totals(self, cluster: Cluster, regions: Iterable[metapb.Region] | None = None) -> dict[int, StoreTotals]:
        """Totals of every store, for views; a walk over these regions, or over all."""
        totals = {store_id: StoreTotals() for store_id in cluster.stores}
        for region in cluster.regions if regions is None else regions:
            report = self.regions.get(region.id)
            size, keys = (report.size_mib, report.request.approximate_keys) if report is not None else (0, 0)
            leader = self.leader_of(region)
            for peer in region.peers:
                total = totals.setdefault(peer.store_id, StoreTotals())
                total.regions += 1
                total.region_size += size
                total.keys += keys
                total.learners += peer.role == metapb.Learner
                if leader is not None and leader.id == peer.id:
                    total.leaders += 1
                    total.leader_size += size
                    total.leader_keys += keys
        return totals
