"""PD's replicated state: what all PD members agree on, and the commands that change it.

Rules: a command does the same on every member, whatever its clock says, so times come inside the command. A command
that may not be carried out changes nothing and is answered with a `Refusal`. A region's meta only moves forward: one
with an older epoch than what is known, or than what it would cover, is refused.

What is not here: reports of heartbeats (`pd_reports`), which only the leader hears and nobody needs after it;
timestamps (`timestamps`), of which only the bound is agreed on; and any decision about placement (`placement`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator

from drillyard.emulator.pd.outcomes import DONE, Outcome, Refusal, refuse
from drillyard.emulator.pd.stores import StoreBook, parse_version
from drillyard.wire import drillpb, metapb, pdpb

NOT_BOOTSTRAPPED = "cluster is not bootstrapped"
ALREADY_BOOTSTRAPPED = "cluster is already bootstrapped"
DISCONNECTED_AFTER_NS = 20 * 10**9
UNHEALTHY_AFTER_NS = 600 * 10**9
GC_WORKER = "gc_worker"
FOREVER_S = (1 << 63) - 1


class RegionTree:
    """Region metas by id and by key. The regions never overlap; they may leave holes."""

    def __init__(self) -> None:
        self._by_id: dict[int, metapb.Region] = {}
        self._starts: list[bytes] = []
        self._ids: list[int] = []  # of the region at the same place in `_starts`
        self.peers: Counter[int] = Counter()  # how many each store holds

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[metapb.Region]:
        """In the order of their keys."""
        return (self._by_id[region_id] for region_id in self._ids)

    def get(self, region_id: int) -> metapb.Region | None:
        return self._by_id.get(region_id)

    def find(self, key: bytes) -> metapb.Region | None:
        """The region that holds a key."""
        place = bisect_right(self._starts, key) - 1
        if place < 0:
            return None
        region = self._by_id[self._ids[place]]
        return region if not region.end_key or key < region.end_key else None

    def before(self, key: bytes) -> metapb.Region | None:
        """The region that ends where the one holding `key` starts."""
        region = self.find(key)
        if region is None or not region.start_key:
            return None
        place = bisect_left(self._starts, region.start_key) - 1
        if place < 0:
            return None
        previous = self._by_id[self._ids[place]]
        return previous if previous.end_key == region.start_key else None

    def after(self, region: metapb.Region) -> metapb.Region | None:
        """The region that starts where this one ends."""
        if not region.end_key:
            return None
        following = self.find(region.end_key)
        return following if following is not None and following.start_key == region.end_key else None

    def scan(self, start: bytes, end: bytes, limit: int) -> list[metapb.Region]:
        """The regions that meet [start, end); no end means to the last, no positive limit means all."""
        first = self.find(start)
        place = bisect_left(self._starts, start if first is None else first.start_key)
        found: list[metapb.Region] = []
        while place < len(self._starts) and (not end or self._starts[place] < end) and not 0 < limit <= len(found):
            found.append(self._by_id[self._ids[place]])
            place += 1
        return found

    def staleness(self, region: metapb.Region) -> str:
        """What is newer than this meta, in PD's words; nothing if it may be taken in."""
        version = region.region_epoch.version
        newer = [other for other in self.overlapping(region) if other.region_epoch.version > version]
        known = self._by_id.get(region.id)
        if known is not None and is_older(region.region_epoch, known.region_epoch) and not _is_recreated(region):
            newer.insert(0, known)
        return f"region is stale: region {describe(region)} origin {describe(newer[0])}" if newer else ""

    def put(self, region: metapb.Region) -> str:
        """Takes a meta in and drops what it covers; says what is newer if it is stale, else nothing."""
        if stale := self.staleness(region):
            return stale
        for other in self.overlapping(region):
            self._remove(other)
        if (known := self._by_id.get(region.id)) is not None:
            self._remove(known)
        place = bisect_left(self._starts, region.start_key)
        self._starts.insert(place, region.start_key)
        self._ids.insert(place, region.id)
        self._by_id[region.id] = region
        self.peers.update(peer.store_id for peer in region.peers)
        return ""

    def overlapping(self, region: metapb.Region) -> list[metapb.Region]:
        return [other for other in self.scan(region.start_key, region.end_key, 0) if other.id != region.id]

    def _remove(self, region: metapb.Region) -> None:
        place = bisect_left(self._starts, region.start_key)
        del self._starts[place], self._ids[place], self._by_id[region.id]
        self.peers.subtract(peer.store_id for peer in region.peers)


class Cluster:
    """The state itself. `apply` is the only way to change it; everything else reads."""

    def __init__(self) -> None:
        self.cluster_id = 0  # 0: not agreed on yet
        self.lead = drillpb.PdLead()
        self.members: dict[int, drillpb.PdMember] = {}
        self.ids_end = 1
        self.bound_ms = 0
        self.bootstrapped = False
        self.bootstrapped_at_ns = 0
        self.book = StoreBook()
        self.stores = self.book.metas
        self.regions = RegionTree()
        self.safe_point = 0
        self.service_safe_points: dict[str, drillpb.PdServiceSafePoint] = {}
        self.settings: dict[str, str] = {}
        self.cluster_version = "0.0.0"
        self.priorities: dict[int, int] = {}  # of members, as leaders
        self.removed_members: set[int] = set()

    def apply(self, data: bytes) -> Outcome:
        command = drillpb.PdCommand.FromString(data)
        kind = command.WhichOneof("kind")
        if kind is None:
            return DONE
        outcome: Outcome = getattr(self, f"_{kind}")(getattr(command, kind))
        return outcome

    # ---- commands ----

    def _lead(self, lead: drillpb.PdLead) -> Outcome:
        """A new leader takes over: its timestamps start after all that any leader may have given away."""
        self.lead = lead
        self.cluster_id = self.cluster_id or lead.cluster_id
        first = max(lead.now_ms, self.bound_ms)
        self.bound_ms = first + lead.window_ms
        self.ids_end += lead.ids
        return Outcome(first)

    def _publish(self, member: drillpb.PdMember) -> Outcome:
        if member.id in self.removed_members:
            return refuse(f"member {member.id} has been removed from the cluster")
        known = self.members.get(member.id)
        if known is not None and known.incarnation != member.incarnation:
            return refuse(f"member {member.id} has already been bootstrapped with another data directory")
        self.members[member.id] = member
        return DONE

    def _remove_member(self, member_id: int) -> Outcome:
        self.members.pop(member_id, None)
        self.priorities.pop(member_id, None)
        self.removed_members.add(member_id)
        return DONE

    def _member_priority(self, wanted: drillpb.PdMemberPriority) -> Outcome:
        self.priorities[wanted.member_id] = wanted.priority
        return DONE

    def _allot_ids(self, count: int) -> Outcome:
        self.ids_end += count
        return Outcome(self.ids_end)

    def _raise_bound_ms(self, bound_ms: int) -> Outcome:
        self.bound_ms = max(self.bound_ms, bound_ms)
        return Outcome(self.bound_ms)

    def _bootstrap(self, request: drillpb.PdBootstrap) -> Outcome:
        if self.bootstrapped:
            return Outcome(refusal=Refusal(pdpb.ALREADY_BOOTSTRAPPED, ALREADY_BOOTSTRAPPED))
        self.bootstrapped = True
        self.bootstrapped_at_ns = request.now_ns
        self.book.take(request.store)
        self._raise_version()
        self.regions.put(request.region)
        return DONE

    def _put_store(self, store: metapb.Store) -> Outcome:
        if not self.bootstrapped:
            return Outcome(refusal=Refusal(pdpb.NOT_BOOTSTRAPPED, NOT_BOOTSTRAPPED))
        outcome = self.book.put(store, self.cluster_version)
        self._raise_version()
        return outcome

    def _store_beat(self, beat: drillpb.PdStoreBeat) -> Outcome:
        return self.book.beat(beat.store_id, beat.at_ns)

    def _remove_store(self, removal: drillpb.PdStoreRemoval) -> Outcome:
        return self.book.remove(removal)

    def _raise_store(self, store_id: int) -> Outcome:
        return self.book.rise(store_id)

    def _bury_store(self, store_id: int) -> Outcome:
        outcome = self.book.bury(store_id, self.regions.peers[store_id])
        self._raise_version()
        return outcome

    def _forget_store(self, store_id: int) -> Outcome:
        return self.book.forget(store_id, self.regions.peers[store_id])

    def _label_store(self, wanted: drillpb.PdStoreLabels) -> Outcome:
        return self.book.label(wanted)

    def _weigh_store(self, wanted: drillpb.PdStoreWeight) -> Outcome:
        return self.book.weigh(wanted)

    def _limit_store(self, wanted: drillpb.PdStoreLimit) -> Outcome:
        return self.book.limit(wanted)

    def _cluster_version(self, version: str) -> Outcome:
        self.cluster_version = version
        return DONE

    def _raise_version(self) -> None:
        """The cluster is of the oldest release of its stores, and never goes back by itself."""
        lowest, text = self.book.lowest_version()
        if lowest > (parse_version(self.cluster_version) or (0, 0, 0)):
            self.cluster_version = text.removeprefix("v")

    def _put_region(self, region: metapb.Region) -> Outcome:
        covered = tuple(other.id for other in self.regions.overlapping(region))
        stale = self.regions.put(region)
        return refuse(stale) if stale else Outcome(covered=covered)

    def _safe_point(self, safe_point: int) -> Outcome:
        self.safe_point = max(self.safe_point, safe_point)
        return Outcome(self.safe_point)

    def _service_safe_point(self, wanted: drillpb.PdServiceSafePoint) -> Outcome:
        """Keeps what a service still needs; one that would fall behind the lowest is not taken in.

        The collector itself is such a service from the first time on: without it nothing may be collected.
        """
        collector = drillpb.PdServiceSafePoint(service_id=GC_WORKER, expires_s=FOREVER_S)
        self.service_safe_points.setdefault(GC_WORKER, collector)
        for service in [each for each in self.service_safe_points.values() if each.expires_s < wanted.now_s]:
            del self.service_safe_points[service.service_id]
        if wanted.expires_s <= wanted.now_s:
            self.service_safe_points.pop(wanted.service_id, None)
        elif wanted.safe_point >= self.lowest_service_safe_point():
            self.service_safe_points[wanted.service_id] = wanted
        return Outcome(self.lowest_service_safe_point())

    def _remove_service_safe_point(self, service_id: str) -> Outcome:
        self.service_safe_points.pop(service_id, None)
        return DONE

    def _setting(self, setting: drillpb.PdSetting) -> Outcome:
        self.settings[setting.key] = setting.value
        return DONE

    # ---- views ----

    def lowest_service_safe_point(self) -> int:
        return min((each.safe_point for each in self.service_safe_points.values()), default=0)

    def to_message(self) -> drillpb.PdState:
        return drillpb.PdState(
            cluster_id=self.cluster_id,
            lead=self.lead,
            members=self.members.values(),
            ids_end=self.ids_end,
            bound_ms=self.bound_ms,
            bootstrapped=self.bootstrapped,
            bootstrapped_at_ns=self.bootstrapped_at_ns,
            stores=self.stores.values(),
            regions=self.regions,
            safe_point=self.safe_point,
            service_safe_points=self.service_safe_points.values(),
            settings=[drillpb.PdSetting(key=key, value=value) for key, value in self.settings.items()],
            cluster_version=self.cluster_version,
            store_profiles=self.book.profiles(),
            member_priorities=[
                drillpb.PdMemberPriority(member_id=member_id, priority=priority)
                for member_id, priority in self.priorities.items()
            ],
            removed_members=sorted(self.removed_members),
        )

    @classmethod
    def from_message(cls, state: drillpb.PdState) -> Cluster:
        cluster = cls()
        cluster.cluster_id = state.cluster_id
        cluster.lead = state.lead
        cluster.members = {member.id: member for member in state.members}
        cluster.ids_end = state.ids_end
        cluster.bound_ms = state.bound_ms
        cluster.bootstrapped = state.bootstrapped
        cluster.bootstrapped_at_ns = state.bootstrapped_at_ns
        cluster.book.load(state.stores, state.store_profiles)
        for region in state.regions:
            cluster.regions.put(region)
        cluster.safe_point = state.safe_point
        cluster.service_safe_points = {each.service_id: each for each in state.service_safe_points}
        cluster.priorities = {each.member_id: each.priority for each in state.member_priorities}
        cluster.removed_members = set(state.removed_members)
        cluster.settings = {setting.key: setting.value for setting in state.settings}
        cluster.cluster_version = state.cluster_version
        return cluster


def state_name(store: metapb.Store, now_ns: int, down_after_ns: int) -> str:
    """What PD calls a store. One that never sent a heartbeat was last heard of in 1970."""
    if store.state != metapb.Up:
        return metapb.StoreState.Name(store.state)
    silence_ns = now_ns - store.last_heartbeat
    if silence_ns > down_after_ns:
        return "Down"
    return "Disconnected" if silence_ns > DISCONNECTED_AFTER_NS else "Up"


def is_older(epoch: metapb.RegionEpoch, than: metapb.RegionEpoch) -> bool:
    """Whether an epoch lags behind another in either of its parts."""
    return epoch.version < than.version or epoch.conf_ver < than.conf_ver


def describe(region: metapb.Region) -> str:
    epoch = region.region_epoch
    return (
        f"{{id: {region.id}, range: [{region.start_key.hex().upper()}, {region.end_key.hex().upper()}), "
        f"epoch: {epoch.conf_ver}/{epoch.version}}}"
    )


def bootstrap_mistake(request: pdpb.BootstrapRequest, cluster_id: int) -> str:
    """What is wrong with a request to bootstrap, in PD's words; nothing if it may go into the log."""
    store, region = request.store, request.region
    if not request.HasField("store"):
        return f"missing store meta for bootstrap {cluster_id}"
    if store.id == 0:
        return "invalid zero store id"
    if not request.HasField("region"):
        return f"missing region meta for bootstrap {cluster_id}"
    if region.start_key or region.end_key:
        return f"invalid first region key range, must all be empty for bootstrap {cluster_id}"
    if region.id == 0:
        return "invalid zero region id"
    if len(region.peers) != 1:
        return f"invalid first region peer count {len(region.peers)}, must be 1 for bootstrap {cluster_id}"
    if region.peers[0].store_id != store.id:
        return f"invalid peer store id {region.peers[0].store_id} != {store.id} for bootstrap {cluster_id}"
    return "" if region.peers[0].id else "invalid zero peer id"


def _is_recreated(region: metapb.Region) -> bool:
    """Made anew by an operator who lost the old one: such a region starts again at the first epoch."""
    epoch = region.region_epoch
    return epoch.version == 1 and epoch.conf_ver == 1 and bool(region.start_key or region.end_key)
