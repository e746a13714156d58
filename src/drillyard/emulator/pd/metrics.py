"""PD's metrics under their real names and labels; those of the cluster on the leader only, as the real one has them.

Rules: gauges are computed when somebody asks, from the same views as the HTTP answers, and vanish with the lead. It
measures nothing by itself and serves nothing.
"""

from __future__ import annotations

from drillyard.emulator.metrics import Family, Gauge, Registry
from drillyard.emulator.pd.cluster import UNHEALTHY_AFTER_NS
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.member import PdMember
from drillyard.emulator.pd.views import CHECKS, checked, region_score
from drillyard.emulator.version import EMULATED_VERSION, GIT_HASH
from drillyard.wire import metapb

LOW_SPACE = 0.2  # of the capacity


class PdMetrics:
    def __init__(self, member: PdMember, registry: Registry) -> None:
        self._member = member
        self._cluster = registry.gauge("pd_cluster_status", "Status of the cluster.", ("type",))
        self._regions = registry.gauge("pd_regions_status", "Status of the regions.", ("type",))
        self._stores = registry.gauge("pd_scheduler_store_status", "Store status.", ("address", "store", "type"))
        self._tso = registry.gauge("pd_cluster_tso", "Record of tso metadata.", ("dc", "group", "type"))
        self._ids = registry.gauge("pd_cluster_id", "Record of id allocator.", ("type",))
        self._leading = registry.gauge("etcd_server_is_leader", "Whether or not this member is a leader.").labels()
        self._led = registry.gauge("etcd_server_has_leader", "Whether or not a leader exists.").labels()
        self._terms = registry.gauge("pd_server_etcd_state", "Etcd raft states.", ("type",))
        info = registry.gauge("pd_server_info", "Indicate the pd server info.", ("version", "hash"))
        info.labels(f"v{EMULATED_VERSION}", GIT_HASH).set(1)
        registry.before_render(self._update)

    def _update(self) -> None:
        member, consensus = self._member, self._member.consensus
        self._leading.set(int(consensus.leads))
        self._led.set(int(consensus.leader != 0))
        self._terms.labels("term").set(consensus.term)
        self._terms.labels("appliedIndex").set(consensus.applied)
        self._terms.labels("committedIndex").set(consensus.commit)
        for family in (self._cluster, self._regions, self._stores, self._tso, self._ids):
            family.clear()
        if member.lead is None:
            return
        self._tso.labels("global", "0", "tso").set(member.lead.last_physical_ms)
        self._ids.labels("idalloc").set(consensus.cluster.ids_end - 1)
        if consensus.cluster.bootstrapped:
            self._update_stores(member.lead)
            self._update_regions(member.lead)

    def _update_stores(self, lead: Leadership) -> None:
        cluster, reports = lead.consensus.cluster, lead.reports
        counts = dict.fromkeys(
            ("up", "disconnected", "down", "unhealth", "low_space", "slow", "offline", "tombstone"), 0
        )
        nodes = dict.fromkeys(("preparing", "serving", "removing", "removed"), 0)
        sums = dict.fromkeys(("storage_capacity", "storage_size", "region_count", "leader_count", "learner_count"), 0)
        totals = reports.totals(cluster)
        for store_id, store in sorted(cluster.stores.items()):
            state = lead.state_of(store)
            counts[state.lower()] += 1
            silent_ns = lead.clock.now_ns() - reports.last_heard_ns(store)
            counts["unhealth"] += state == "Disconnected" and silent_ns > UNHEALTHY_AFTER_NS
            nodes[metapb.NodeState.Name(store.node_state).lower()] += 1
            report, total = reports.stores.get(store_id), totals[store_id]
            capacity = report.stats.capacity if report is not None else 0
            available = report.stats.available if report is not None else 0
            used = report.stats.used_size if report is not None else 0
            counts["low_space"] += bool(capacity) and available < LOW_SPACE * capacity
            sums["storage_capacity"] += capacity
            sums["storage_size"] += used
            sums["region_count"] += total.regions
            sums["leader_count"] += total.leaders
            sums["learner_count"] += total.learners
            own = {
                "leader_count": total.leaders,
                "leader_score": total.leaders,
                "leader_size": total.leader_size,
                "learner_count": total.learners,
                "region_count": total.regions,
                "region_score": region_score(capacity, available, total.region_size),
                "region_size": total.region_size,
                "store_available": available,
                "store_capacity": capacity,
                "store_used": used,
            }
            for name, value in own.items():
                self._stores.labels(store.address, store_id, name).set(value)
        _fill(self._cluster, {f"store_{name}_count": value for name, value in {**counts, **nodes}.items()})
        _fill(self._cluster, {**sums, "witness_count": 0})

    def _update_regions(self, lead: Leadership) -> None:
        replicas = self._member.settings.replicas()
        regions = list(lead.consensus.cluster.regions)
        for name in CHECKS:
            number = len(checked(name, lead.consensus.cluster, lead.reports, replicas))
            self._regions.labels(f"{name}-region-count" if name.endswith("-peer") else f"{name}-count").set(number)
        leaving = {store.id for store in lead.consensus.cluster.stores.values() if store.node_state == metapb.Removing}
        offline = sum(1 for meta in regions if any(peer.store_id in leaving for peer in meta.peers))
        _fill(self._regions, {"offline-peer-region-count": offline, "witness-leader-region-count": 0})


def _fill(family: Family[Gauge], values: dict[str, int]) -> None:
    for name, value in values.items():
        family.labels(name).set(value)
