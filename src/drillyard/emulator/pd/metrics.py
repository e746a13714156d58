"""PD's metrics under their real names and labels; those of the cluster on the leader only, as the real one has them.

Rules: gauges are computed when somebody asks, from the same views as the HTTP answers, and vanish with the lead.
Counts come from `events` and outlive it. Nothing is shown that is not measured. It serves nothing.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from drillyard.emulator.metrics import Counter, Family, Gauge, Registry
from drillyard.emulator.pd.cluster import UNHEALTHY_AFTER_NS, state_name
from drillyard.emulator.pd.events import Events
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.member import PdMember
from drillyard.emulator.pd.picture import NEW_CLUSTER_REGIONS, NEW_CLUSTER_SPACE, fullness
from drillyard.emulator.pd.reports import StoreReport
from drillyard.emulator.pd.views import CHECKS, checked
from drillyard.emulator.version import EMULATED_VERSION, GIT_HASH
from drillyard.wire import metapb
from drillyard.wire.rpc import Handlers, RpcError

SLOW_SCORE = 80
STORE = ("address", "store")


class PdMetrics:
    def __init__(self, member: PdMember, registry: Registry) -> None:
        self._member = member
        gauge, counter, histogram = registry.gauge, registry.counter, registry.histogram
        self._cluster = gauge("pd_cluster_status", "Status of the cluster.", ("type",))
        self._regions = gauge("pd_regions_status", "Status of the regions.", ("type",))
        self._stores = gauge("pd_scheduler_store_status", "Store status.", (*STORE, "type"))
        self._hotspots = gauge("pd_hotspot_status", "Status of the hotspot.", (*STORE, "type"))
        self._progress = gauge("pd_cluster_progress", "How far a store has come.", (*STORE, "action"))
        self._speed = gauge("pd_cluster_speed", "MiB a second that leave a store.", (*STORE, "action"))
        self._eta = gauge("pd_cluster_eta", "Seconds until a store is done.", (*STORE, "action"))
        self._tso = gauge("pd_cluster_tso", "Record of tso metadata.", ("dc", "group", "type"))
        self._ids = gauge("pd_cluster_id", "Record of id allocator.", ("type",))
        self._leading = gauge("etcd_server_is_leader", "Whether or not this member is a leader.").labels()
        self._led = gauge("etcd_server_has_leader", "Whether or not a leader exists.").labels()
        self._terms = gauge("pd_server_etcd_state", "Etcd raft states.", ("type",))
        self._operators = counter("pd_schedule_operators_count", "Counter of schedule operators.", ("type", "event"))
        self._spent = histogram(
            "pd_schedule_finish_operators_duration_seconds", "Time that finished operators took.", ("type",), _MINUTES
        )
        self._heartbeats = counter(
            "pd_scheduler_region_heartbeat", "Counter of region heartbeats.", (*STORE, "type", "status")
        )
        self._messages = counter(
            "pd_hbstream_region_message", "Counter of messages to stores.", (*STORE, "type", "status")
        )
        self._tso_events = counter("pd_tso_events", "Counter of tso events.", ("dc", "group", "type"))
        syncs = histogram("etcd_disk_wal_fsync_duration_seconds", "How long the log took to be durable.").labels()
        self.synced: Callable[[float], None] = syncs.observe
        self._round_trips = histogram(
            "etcd_network_peer_round_trip_time_seconds", "From a heartbeat to its answer.", ("To",)
        )
        info = gauge("pd_server_info", "Indicate the pd server info.", ("version", "hash"))
        info.labels(f"v{EMULATED_VERSION}", GIT_HASH).set(1)
        gauge("pd_service_maxprocs", "The number of CPUs that may be used.").labels().set(os.cpu_count() or 1)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        gauge("pd_service_memory_quota_bytes", "The memory that may be used.").labels().set(memory)
        registry.before_render(self._update)

    def answered(self, member_id: int, seconds: float) -> None:
        """Another member has answered a heartbeat after so long."""
        self._round_trips.labels(f"{member_id:x}").observe(seconds)

    def _update(self) -> None:
        member, consensus = self._member, self._member.consensus
        self._leading.set(int(consensus.leads))
        self._led.set(int(consensus.leader != 0))
        self._terms.labels("term").set(consensus.term)
        self._terms.labels("appliedIndex").set(consensus.applied)
        self._terms.labels("committedIndex").set(consensus.commit)
        self._count(member.events)
        for family in (
            *(self._cluster, self._regions, self._stores, self._hotspots, self._progress, self._speed, self._eta),
            *(self._tso, self._ids),
        ):
            family.clear()
        if member.lead is None:
            return
        self._tso.labels("global", "0", "tso").set(member.lead.last_physical_ms)
        self._ids.labels("idalloc").set(consensus.cluster.ids_end - 1)
        if consensus.cluster.bootstrapped:
            self._update_stores(member.lead)
            self._update_regions(member.lead)
            self._update_hotspots(member.lead)

    def _count(self, events: Events) -> None:
        for (kind, event), number in events.operators.items():
            self._operators.labels(kind, event).value = number
        for kind, seconds in events.finished_s:
            self._spent.labels(kind).observe(seconds)
        events.finished_s.clear()
        for (address, store_id, status), number in events.heartbeats.items():
            self._heartbeats.labels(address, store_id, "report", status).value = number
        for (address, store_id, kind, status), number in events.messages.items():
            self._messages.labels(address, store_id, kind, status).value = number
        for name, number in events.timestamps.items():
            self._tso_events.labels("global", "0", name).value = number

    # ---- stores ----

    def _update_stores(self, lead: Leadership) -> None:
        cluster, reports = lead.consensus.cluster, lead.reports
        states = dict.fromkeys(
            ("up", "disconnected", "down", "unhealth", "low_space", "slow", "offline", "tombstone"), 0
        )
        nodes = dict.fromkeys(("preparing", "serving", "removing", "removed"), 0)
        sums = dict.fromkeys(("storage_capacity", "storage_size", "region_count", "leader_count", "learner_count"), 0)
        totals = reports.totals(cluster)
        for store_id, store in sorted(cluster.stores.items()):
            report, total = reports.stores.get(store_id), totals[store_id]
            state = self._state_of(store, lead)
            states[state] += 1
            nodes[metapb.NodeState.Name(store.node_state).lower()] += 1
            if state == "tombstone":
                continue  # only counted
            states["low_space"] += state != "down" and self._is_low(report, total.regions)
            capacity, available, used = _space(report)
            sums["storage_capacity"] += capacity
            sums["storage_size"] += used
            sums["region_count"] += total.regions
            sums["leader_count"] += total.leaders
            sums["learner_count"] += total.learners
            profile = cluster.book.profile(store_id)
            own = {
                "leader_count": total.leaders,
                "leader_score": total.leaders / max(profile.leader_weight, 1e-6),
                "leader_size": total.leader_size,
                "learner_count": total.learners,
                "region_count": total.regions,
                "region_score": fullness(capacity, available, total.region_size) / max(profile.region_weight, 1e-6),
                "region_size": total.region_size,
                "store_available": available,
                "store_capacity": capacity,
                "store_used": used,
            }
            for name, value in own.items():
                self._stores.labels(store.address, store_id, name).set(value)
        _fill(self._cluster, {f"store_{name}_count": value for name, value in {**states, **nodes}.items()})
        _fill(self._cluster, {**sums, "witness_count": 0})
        for store_id, progress in lead.departures.progress().items():
            labels = (cluster.stores[store_id].address, store_id, "removing")
            self._progress.labels(*labels).set(progress.fraction)
            self._speed.labels(*labels).set(progress.speed)
            self._eta.labels(*labels).set(progress.left_s)

    def _state_of(self, store: metapb.Store, lead: Leadership) -> str:
        """The one state under which a store is counted, from the worst to the best that fits."""
        heard_ns, now_ns = lead.reports.last_heard_ns(store), lead.clock.now_ns()
        heard = metapb.Store(state=store.state, last_heartbeat=heard_ns)
        state = state_name(heard, now_ns, self._member.settings.down_after_ns()).lower()
        if state == "disconnected" and now_ns - heard_ns > UNHEALTHY_AFTER_NS:
            return "unhealth"
        report = lead.reports.stores.get(store.id)
        if state == "up" and report is not None and report.stats.slow_score >= SLOW_SCORE:
            return "slow"
        return state

    def _is_low(self, report: StoreReport | None, regions: int) -> bool:
        """Whether a store is short of space; a new and small one is not while it has some gigabytes."""
        capacity, available, _ = _space(report)
        if not capacity or (regions < NEW_CLUSTER_REGIONS and available > NEW_CLUSTER_SPACE):
            return False
        return available / capacity < 1 - self._member.settings.placing().low_space_ratio

    # ---- regions ----

    def _update_regions(self, lead: Leadership) -> None:
        replicas = self._member.settings.replicas()
        regions = list(lead.consensus.cluster.regions)
        for name in CHECKS:
            number = len(checked(name, lead.consensus.cluster, lead.reports, replicas))
            self._regions.labels(f"{name}-region-count" if name.endswith("-peer") else f"{name}-count").set(number)
        leaving = {store.id for store in lead.consensus.cluster.stores.values() if store.node_state == metapb.Removing}
        offline = sum(1 for meta in regions if any(peer.store_id in leaving for peer in meta.peers))
        _fill(self._regions, {"offline-peer-region-count": offline, "witness-leader-region-count": 0})

    def _update_hotspots(self, lead: Leadership) -> None:
        hits = self._member.settings.placing().hot_region_cache_hits_threshold
        stores = lead.consensus.cluster.stores
        for kind, participle in (("write", "written"), ("read", "read")):
            for store_id, peers in lead.hot[kind].hot(hits).items():
                if (store := stores.get(store_id)) is None:
                    continue
                for role, chosen in (("peer", peers), ("leader", [peer for peer in peers if peer.is_leader])):
                    values = {
                        f"total_{participle}_bytes_as_{role}": sum(peer.byte_rate for peer in chosen),
                        f"total_{participle}_keys_as_{role}": sum(peer.key_rate for peer in chosen),
                        f"hot_{participle}_region_as_{role}": len(chosen),
                    }
                    for name, value in values.items():
                        self._hotspots.labels(store.address, store_id, name).set(value)


_MINUTES = (0.5, 1, 2, 4, 8, 16, 20, 40, 60, 90, 120, 180, 240, 300, 480, 600, 720, 900, 1200, 1800, 3600)


def counted(handlers: Handlers, registry: Registry) -> Handlers:
    """The same handlers, with every call counted when it starts and when it has ended."""
    labels = ("grpc_type", "grpc_service", "grpc_method")
    started = registry.counter("grpc_server_started_total", "RPCs started on the server.", labels)
    handled = registry.counter("grpc_server_handled_total", "RPCs completed on the server.", (*labels, "grpc_code"))

    def wrapped(
        names: tuple[str, str, str], handle: Callable[[Any], Awaitable[Any]]
    ) -> Callable[[Any], Awaitable[Any]]:
        start, end = started.labels(*names), _Codes(handled, names)

        async def call(request: Any) -> Any:
            start.inc()
            try:
                answer = await handle(request)
            except RpcError as error:
                end.count(_code(error))
                raise
            end.count("OK")
            return answer

        return call

    kinds = {"UNARY": "unary", "CLIENT_STREAM": "client_stream", "SERVER_STREAM": "server_stream"}
    return {
        method: wrapped((kinds.get(method.kind.name, "bidi_stream"), method.service, method.name), handle)
        for method, handle in handlers.items()
    }


class _Codes:
    """The ends of one method's calls, by code."""

    def __init__(self, family: Family[Counter], names: tuple[str, str, str]) -> None:
        self._family, self._names = family, names
        self._by_code: dict[str, Counter] = {}

    def count(self, code: str) -> None:
        if code not in self._by_code:
            self._by_code[code] = self._family.labels(*self._names, code)
        self._by_code[code].inc()


def _code(error: RpcError) -> str:
    return "".join(part.capitalize() for part in error.status.name.split("_"))


def _space(report: StoreReport | None) -> tuple[int, int, int]:
    """Capacity, what is available, and what is used."""
    if report is None:
        return 0, 0, 0
    return report.stats.capacity, report.stats.available, report.stats.used_size


def _fill(family: Family[Gauge], values: dict[str, int]) -> None:
    for name, value in values.items():
        family.labels(name).set(value)
