"""The alert rules that PD and TiKV publish for Prometheus, as far as the emulator's metrics can satisfy them.

Facts, from the rule files of the two projects: name, expression, and how long it has to hold. `NEVER` are rules that
cannot fire here, or nowhere, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    expression: str
    for_s: int = 60


def _on_leader(metric: str, above: int) -> str:
    return f"(sum({metric}) by (instance) > {above}) and (sum(etcd_server_is_leader) by (instance) > 0)"


def _stores(kind: str) -> str:
    return _on_leader(f'pd_cluster_status{{type="store_{kind}_count"}}', 0)


def _slower_than_a_second(histogram: str, by: str, share: str = "0.99") -> str:
    return f"histogram_quantile({share}, sum(rate({histogram}[1m])) by ({by})) > 1"


RULES = {
    rule.name: rule
    for rule in (
        Rule("PD_cluster_down_tikv_nums", _stores("down")),
        Rule("PD_cluster_lost_connect_tikv_nums", _stores("disconnected")),
        Rule("PD_cluster_unhealthy_tikv_nums", _stores("unhealth")),
        Rule("PD_cluster_low_space", _stores("low_space")),
        Rule("PD_cluster_slow_tikv_nums", _stores("slow")),
        Rule("PD_down_peer_region_nums", _on_leader('pd_regions_status{type="down-peer-region-count"}', 0)),
        Rule("PD_pending_peer_region_count", _on_leader('pd_regions_status{type="pending-peer-region-count"}', 100)),
        Rule(
            "PD_etcd_write_disk_latency",
            _slower_than_a_second("etcd_disk_wal_fsync_duration_seconds_bucket", "instance,job,le"),
        ),
        Rule(
            "PD_etcd_network_peer_latency",
            _slower_than_a_second("etcd_network_peer_round_trip_time_seconds_bucket", "To,instance,job,le"),
        ),
        Rule("PD_leader_change", 'count(changes(pd_tso_events{type="save"}[10m]) > 0) >= 2'),
        Rule(
            "TiKV_space_used_more_than_80%",
            'sum(pd_cluster_status{type="storage_size"}) / sum(pd_cluster_status{type="storage_capacity"}) * 100 > 80',
        ),
        Rule("PD_system_time_slow", 'changes(pd_tso_events{type="system_time_slow"}[10m]) >= 1'),
        Rule("PD_node_restart", 'changes(process_start_time_seconds{job="pd"}[5m]) > 0'),
        Rule("PD_cpu_quota", 'irate(process_cpu_seconds_total{job="pd"}[30s]) / pd_service_maxprocs > 0.8', 45),
        Rule(
            "PD_memory_quota",
            'process_resident_memory_bytes{job="pd"} / pd_service_memory_quota_bytes > 0.8',
            15,
        ),
        Rule("TiKV_node_restart", 'changes(process_start_time_seconds{job="tikv"}[5m]) > 0'),
        Rule(
            "TiKV_memory_used_too_fast",
            'process_resident_memory_bytes{job=~"tikv",instance=~".*"} - '
            '(process_resident_memory_bytes{job=~"tikv",instance=~".*"} offset 5m) > 5*1024*1024*1024',
            300,
        ),
        Rule(
            "TiKV_server_report_failure_msg_total",
            'sum(rate(tikv_server_report_failure_msg_total{type="unreachable"}[10m])) BY (store_id) > 10',
        ),
        Rule(
            "TiKV_raft_append_log_duration_secs",
            _slower_than_a_second("tikv_raftstore_append_log_duration_seconds_bucket", "le, instance"),
        ),
        Rule(
            "TiKV_low_space_and_add_region",
            'count((sum(tikv_store_size_bytes{type="available"}) by (instance) / '
            'sum(tikv_store_size_bytes{type="capacity"}) by (instance) < 0.2) and '
            '(sum(tikv_raftstore_snapshot_traffic_total{type="applying"}) by (instance) > 0)) > 0',
        ),
        Rule("TiKV_scheduler_context_total", "abs(delta(tikv_scheduler_contex_total[5m])) > 1000"),
    )
}
NEVER = {
    "PD_miss_peer_region_count": "asks for miss_peer_region_count, and PD has written miss-peer-region-count for years",
    "PD_no_store_for_making_replica": "asks for the replica checker, which placement rules have replaced",
    "TiKV_leader_drops": "asks for tikv_pd_heartbeat_tick_total, which TiKV no longer has",
    "PD_tidb_handle_requests_duration": "measured in TiDB",
    "TiDB_tikvclient_gc_action_fail": "measured in TiDB",
    "TiKV_GC_can_not_work": "holds wherever nothing is collected for a day; the emulator has no such worker",
    "TiKV_channel_full_total": "there are no channels between threads in the emulator",
    "TiKV_write_stall": "RocksDB's stalls are not read",
    "TiKV_raftstore_thread_cpu_seconds_total": "one thread does it all",
    "TiKV_thread_apply_worker_cpu_seconds": "one thread does it all",
    "TiKV_pending_task": "one thread does it all",
    "TiKV_coprocessor_*": "there is no coprocessor",
}
