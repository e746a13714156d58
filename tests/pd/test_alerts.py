"""The stock alert rules on what members export: each fires in its state, and none in a healthy cluster."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from alert_rules import NEVER, RULES
from pd_processes import PdProcesses, until
from promql import History, fires

from drillyard.emulator.metrics import Registry
from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.config import Options, Settings
from drillyard.emulator.pd.coordinator import Coordinator
from drillyard.emulator.pd.events import Events
from drillyard.emulator.pd.member import PdMember
from drillyard.emulator.pd.metrics import PdMetrics
from drillyard.wire import drillpb, metapb, pdpb

SECOND = 10**9
GIB = 1 << 30
STARTED = 1_800_000_000


class Pd:
    """One PD leader's metrics, over a cluster and a clock of the test's own: three stores, one region."""

    def __init__(self, regions: int = 1) -> None:
        self.now_s = float(STARTED)
        self.history = History()
        self.registry = Registry()
        self.cluster = Cluster()
        options = Options("pd0", "", "", "", "", "", "")
        self.settings = Settings(options, lambda: self.cluster.settings)
        self.events = Events()
        self.coordinator = Coordinator(self.cluster, self.settings, (1, 1000))
        self.metrics = PdMetrics(self._member(), self.registry)
        self._fill(regions)

    def _member(self) -> PdMember:
        """As much of a member as metrics look at."""
        consensus = SimpleNamespace(leads=True, leader=1, term=5, applied=9, commit=9, cluster=self.cluster)
        lead = SimpleNamespace(
            consensus=consensus,
            reports=self.coordinator.reports,
            departures=self.coordinator.departures,
            hot={"write": self.coordinator.written, "read": self.coordinator.read},
            clock=SimpleNamespace(now_ns=self.now_ns),
            last_physical_ms=0,
        )
        return cast(
            PdMember,
            SimpleNamespace(consensus=consensus, lead=lead, settings=self.settings, events=self.events),
        )

    def now_ns(self) -> int:
        return int(self.now_s * SECOND)

    def apply(self, **command: Any) -> None:
        assert self.cluster.apply(drillpb.PdCommand(**command).SerializeToString()).refusal is None

    def _fill(self, regions: int) -> None:
        for store_id in (1, 2, 3):
            store = metapb.Store(id=store_id, address=f"127.0.0.1:2016{store_id}", version="8.1.0")
            if store_id == 1:
                self.apply(bootstrap=drillpb.PdBootstrap(store=store, region=self._region(1, regions)))
            self.apply(put_store=store)
        for place in range(1, regions + 1):
            self.apply(put_region=self._region(place, regions))
        self.hear(1, 2, 3)
        for region in list(self.cluster.regions):
            self.report(region)

    def _region(self, place: int, regions: int) -> metapb.Region:
        return metapb.Region(
            id=place + 100,
            start_key=b"" if place == 1 else place.to_bytes(2, "big"),
            end_key=b"" if place == regions else (place + 1).to_bytes(2, "big"),
            region_epoch=metapb.RegionEpoch(version=place + 1, conf_ver=5),
            peers=[metapb.Peer(id=place * 10 + store, store_id=store) for store in (1, 2, 3)],
        )

    def hear(self, *stores: int, **stats: int) -> None:
        kept = {"capacity": 100 * GIB, "available": 80 * GIB, "used_size": GIB, "slow_score": 1, **stats}
        for store_id in stores:
            self.coordinator.hear_store(pdpb.StoreStats(store_id=store_id, **kept), self.now_ns())  # type: ignore[arg-type]

    def report(self, region: metapb.Region, **fields: Any) -> None:
        self.coordinator.reports.hear_region(
            pdpb.RegionHeartbeatRequest(region=region, leader=region.peers[0], term=6, **fields)
        )

    def report_all(self, **fields: Any) -> None:
        for region in list(self.cluster.regions):
            self.report(region, **fields)

    def scrape(self) -> None:
        self.history.add(self.now_s, "pd0", "pd", self.registry.render().decode())

    def wait(self, seconds: float, *heard: int) -> None:
        """Time passes; some stores were heard at its end."""
        self.now_s += seconds
        self.hear(*heard)


def down(pd: Pd) -> None:
    pd.wait(1801, 1, 2)


def disconnected(pd: Pd) -> None:
    pd.wait(30, 1, 2)


def unhealthy(pd: Pd) -> None:
    pd.wait(601, 1, 2)


def low_on_space(pd: Pd) -> None:
    pd.hear(3, available=7 * GIB)


def slow(pd: Pd) -> None:
    pd.hear(3, slow_score=90)


def down_peer(pd: Pd) -> None:
    region = next(iter(pd.cluster.regions))
    pd.report(region, down_peers=[pdpb.PeerStats(peer=region.peers[2], down_seconds=600)])


def pending_peers(pd: Pd) -> None:
    for region in list(pd.cluster.regions):
        pd.report(region, pending_peers=[region.peers[2]])


def slow_disk(pd: Pd) -> None:
    for _ in range(5):
        pd.metrics.synced(3.0)


def slow_network(pd: Pd) -> None:
    for _ in range(5):
        pd.metrics.answered(2, 3.0)


def clock_behind(pd: Pd) -> None:
    pd.events.timestamps["system_time_slow"] += 1


def full(pd: Pd) -> None:
    pd.hear(1, 2, 3, used_size=90 * GIB, available=10 * GIB)


STATES: dict[str, Callable[[Pd], None]] = {
    "PD_cluster_down_tikv_nums": down,
    "PD_cluster_lost_connect_tikv_nums": disconnected,
    "PD_cluster_unhealthy_tikv_nums": unhealthy,
    "PD_cluster_low_space": low_on_space,
    "PD_cluster_slow_tikv_nums": slow,
    "PD_down_peer_region_nums": down_peer,
    "PD_pending_peer_region_count": pending_peers,
    "PD_etcd_write_disk_latency": slow_disk,
    "PD_etcd_network_peer_latency": slow_network,
    "PD_system_time_slow": clock_behind,
    "TiKV_space_used_more_than_80%": full,
}


def watched(spoil: Callable[[Pd], None] | None) -> History:
    """Two scrapes, a minute apart, of a PD that was healthy at the first."""
    pd = Pd(regions=101)
    pd.events.timestamps["system_time_slow"] += 1  # long ago
    pd.events.timestamps["save"] += 1
    pd.metrics.synced(0.003)
    pd.metrics.answered(2, 0.001)
    pd.scrape()
    pd.wait(60, 1, 2, 3)
    pd.metrics.synced(0.003)
    pd.metrics.answered(2, 0.001)
    pd.events.timestamps["save"] += 1
    if spoil is not None:
        spoil(pd)
    pd.scrape()
    return pd.history


@pytest.mark.parametrize("name", STATES)
def test_a_rule_fires_in_its_state(name: str) -> None:
    history = watched(STATES[name])
    if name in ("PD_cluster_down_tikv_nums", "PD_cluster_unhealthy_tikv_nums"):
        history.scrapes = history.scrapes[-1:]  # the first is too old for a window of a minute
    assert fires(history, RULES[name].expression)


def test_no_rule_fires_in_a_healthy_cluster() -> None:
    history = watched(None)
    # The clock of the test is not that of the process; what is measured of the process is looked at in `test_members`.
    of_process = {"PD_cpu_quota"}
    assert [name for name, rule in RULES.items() if name not in of_process and fires(history, rule.expression)] == []


@pytest.mark.parametrize("name", [name for name in STATES if STATES[name] in (down, unhealthy, disconnected, slow)])
def test_a_store_is_counted_once(name: str) -> None:
    """Of the rules about the state of a store, only the worst that fits fires."""
    history = watched(STATES[name])
    states = [each for each, spoil in STATES.items() if spoil in (down, unhealthy, disconnected, slow)]
    assert [each for each in states if fires(history, RULES[each].expression)] == [name]


def store_metrics(at_s: float, *, started: float = 1, resident: int = 100 << 20, failures: int = 0, **more: int) -> str:
    """A TiKV's metrics as far as the rules look at them, in the form in which members write them."""
    registry = Registry()
    failed = registry.counter("tikv_server_report_failure_msg_total", "-", ("type", "store_id"))
    failed.labels("unreachable", 4).inc(failures)
    sizes = registry.gauge("tikv_store_size_bytes", "-", ("type",))
    sizes.labels("available").set(more.get("available", 80 * GIB))
    sizes.labels("capacity").set(100 * GIB)
    registry.gauge("tikv_raftstore_snapshot_traffic_total", "-", ("type",)).labels("applying").set(
        more.get("applying", 0)
    )
    registry.gauge("tikv_scheduler_contex_total", "-").labels().set(more.get("contexts", 3))
    appended = registry.histogram("tikv_raftstore_append_log_duration_seconds", "-").labels()
    for _ in range(more.get("slow_syncs", 0)):
        appended.observe(2.0)
    text = registry.render().decode()
    own = [f"process_start_time_seconds {started}", f"process_resident_memory_bytes {resident}"]
    kept = [line for line in text.splitlines() if not line.startswith(("process_start", "process_resident"))]
    return "\n".join([*kept, *own])


@pytest.mark.parametrize(
    ("name", "span_s", "later"),
    [
        ("TiKV_node_restart", 60, {"started": 2}),
        ("TiKV_memory_used_too_fast", 300, {"resident": 6 << 30}),
        ("TiKV_server_report_failure_msg_total", 600, {"failures": 6001}),
        ("TiKV_raft_append_log_duration_secs", 60, {"slow_syncs": 3}),
        ("TiKV_low_space_and_add_region", 60, {"available": 10 * GIB, "applying": 1}),
        ("TiKV_scheduler_context_total", 60, {"contexts": 2000}),
    ],
)
def test_a_rule_about_tikv_fires_for_what_it_is_for(name: str, span_s: int, later: dict[str, Any]) -> None:
    for spoiled in (False, True):
        history = History()
        history.add(0, "tikv0", "tikv", store_metrics(0))
        history.add(span_s, "tikv0", "tikv", store_metrics(span_s, **(later if spoiled else {})))
        fired = [each for each, rule in RULES.items() if fires(history, rule.expression)]
        assert fired == ([name] if spoiled else [])


@pytest.mark.parametrize(
    ("expression", "is_true"),
    [
        ("a > 3", True),
        ("a > 4", False),
        ('a{x="1"} == 1', True),
        ('a{x!="1"} == 4', True),
        ('a{x=~"1|2"} > 5', False),
        ("sum(a) == 5", True),
        ("sum(a) by (instance) == 4", True),
        ("count(a) == 2", True),
        ("a / b > 1", False),  # not the same labels
        ("sum(a) / sum(b) == 0.5", True),
        ("b - (b offset 1m) == 6", True),
        ("rate(b[1m]) == 0.1", True),
        ("increase(b[1m]) > 6", False),
        ("delta(a[1m]) < -10", True),
        ("increase(a[1m]) == 1", True),  # it fell: it began again
        ("changes(a[1m]) > 0", True),
        ("changes(c[1m]) > 0", False),
        ("(sum(a) > 3) and (sum(b) > 99)", False),
        ("(sum(a) > 3) and (sum(b) > 9)", True),
        ("histogram_quantile(0.5, sum(rate(h_bucket[1m])) by (le)) == 1.5", True),
        (
            "histogram_quantile(0.99, sum(rate(h_bucket[1m])) by (le)) > 2",
            False,
        ),  # nothing is known above the last bound
        ("-1 * 2 + 3 == 1", True),
    ],
)
def test_the_evaluator(expression: str, is_true: bool) -> None:
    history = History()
    history.add(
        0, "i", "j", 'a{x="1"} 21\na{x="2"} 4\nb 4\nc 1\nh_bucket{le="1"} 0\nh_bucket{le="2"} 0\nh_bucket{le="+Inf"} 0'
    )
    history.add(60, "i", "j", 'a{x="1"} 1\nb 10\nc 1\nh_bucket{le="1"} 2\nh_bucket{le="2"} 6\nh_bucket{le="+Inf"} 8')
    history.add(60, "k", "j", 'a{x="2"} 4')
    assert fires(history, expression) is is_true


def test_every_rule_is_looked_at_somewhere() -> None:
    here = set(STATES) | {name for name in RULES if name.startswith("TiKV_")}
    in_processes = {"PD_leader_change", "PD_node_restart", "PD_cpu_quota", "PD_memory_quota"}
    assert here | in_processes == set(RULES)
    assert not set(NEVER) & set(RULES)


def test_members(whole: PdProcesses) -> None:
    """Three PD members as processes: nothing fires while all is well; a restart and a change of leaders are seen."""
    history = History()

    def scrape(at_s: float) -> None:
        for place, name in enumerate(whole.names):
            history.add(at_s, name, "pd", whole.get(place, "/metrics")[2].decode())

    def saves(place: int) -> float:
        lines = whole.get(place, "/metrics")[2].decode().splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith("pd_tso_events") and 'type="save"' in line
        )

    def next_leader(last: int | None = None) -> int:
        """One that gives timestamps: it leads before it has saved how far they may go."""

        def found() -> tuple[int] | None:
            leader = whole.leader()
            return (leader,) if leader is not None and leader != last and saves(leader) else None

        (leader,) = until(found, "a leader that gives timestamps")
        return int(leader)

    leader = next_leader()
    about_stores = {name for name in RULES if "tikv_nums" in name}  # those here were told to send no more heartbeats
    scrape(0)
    scrape(60)
    of_pd = {name: rule for name, rule in RULES.items() if name.startswith("PD_") and name not in about_stores}
    assert [name for name, rule in of_pd.items() if fires(history, rule.expression)] == []
    whole.kill(leader)
    new = next_leader(leader)
    whole.start(leader)
    scrape(90)
    assert whole.send(new, "POST", "/pd/api/v1/leader/resign")[0] == 200
    next_leader(new)
    scrape(120)
    fired = {name for name, rule in of_pd.items() if fires(history, rule.expression)}
    assert {"PD_leader_change", "PD_node_restart"} <= fired
    rest = fired - {"PD_leader_change", "PD_node_restart", "PD_system_time_slow"}  # a quick new leader runs ahead
    assert rest == set()
    resident = "process_resident_memory_bytes"
    history.add(180, "pd0", "pd", f"{resident} 90\npd_service_memory_quota_bytes 100")
    assert fires(history, RULES["PD_memory_quota"].expression)
    history.add(240, "pd0", "pd", "process_cpu_seconds_total 100\npd_service_maxprocs 2")
    history.add(250, "pd0", "pd", "process_cpu_seconds_total 118\npd_service_maxprocs 2")
    assert fires(history, RULES["PD_cpu_quota"].expression)
