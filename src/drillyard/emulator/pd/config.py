"""PD's configuration: what flags and file say, what was changed since, and the document that `config` shows.

Rules: names, order and formatting are those of PD 8.1, booleans written as strings in the same places. What the
emulator does not act on is shown at the real default, because clients read it; what it does act on is in `Options` and
`Settings`. Changed settings come from the replicated state, so all members show the same.

It reads no file and knows no flags: `server` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.schedulers import DEFAULTS, existing
from drillyard.emulator.pd.settings import SECOND_NS, Placing, placing_of
from drillyard.emulator.pd.views import duration
from drillyard.wire import metapb

Json = Any
TYPES = {"balance-hot-region-scheduler": "hot-region"}  # where PD's configuration has another word


class Options(Struct, frozen=True):
    """One PD member as it was started."""

    name: str
    data_dir: str
    client_urls: str
    advertise_client_urls: str
    peer_urls: str
    advertise_peer_urls: str
    initial_cluster: str
    initial_cluster_token: str = "pd-cluster"  # noqa: S105  # the word is PD's; it is no secret
    log_file: str = ""
    log_level: str = "info"
    lease_s: int = 3
    tick_ns: int = 500 * 10**6
    election_ns: int = 3 * SECOND_NS
    heartbeat_ns: int = 0  # between two heartbeats of the leader; 0: every tick
    max_replicas: int = 3
    max_store_down_ns: int = 1800 * SECOND_NS
    join: str = ""
    priority_check_s: float = 60.0


class Settings:
    """The settings that PD acts on, as they are now."""

    def __init__(self, options: Options, changed: Callable[[], Mapping[str, str]]) -> None:
        self.options = options
        self.log_level = options.log_level  # of this member alone
        self._changed = changed
        self._first = Placing(max_replicas=options.max_replicas, max_store_down_time=options.max_store_down_ns)
        self._seen: tuple[tuple[str, str], ...] = ()
        self._placing = self._first

    def placing(self) -> Placing:
        changed = tuple(self._changed().items())
        if changed != self._seen:
            self._seen, self._placing = changed, placing_of(self._first, dict(changed))
        return self._placing

    def down_after_ns(self) -> int:
        return self.placing().max_store_down_time

    def replicas(self) -> int:
        return self.placing().max_replicas


# ---- the document ----


def _text(is_on: bool) -> str:
    return "true" if is_on else "false"


def store_limits(cluster: Cluster) -> dict[int, Json]:
    """Of the stores that are no tombstones: how many steps a minute each takes."""
    living = [store.id for store in cluster.stores.values() if store.state != metapb.Tombstone]
    profiles = [cluster.book.profile(store_id) for store_id in sorted(living)]
    return {each.store_id: {"add-peer": each.add_peer, "remove-peer": each.remove_peer} for each in profiles}


def schedulers(cluster: Cluster) -> Json:
    """PD's own, also those that were removed, and those that were added; each with the stores that it works on."""
    there = existing(cluster.settings)
    shown = []
    for name in dict.fromkeys((*DEFAULTS, *there)):
        kind = TYPES.get(name, name.removesuffix("-scheduler"))
        stores = list((there.get(name) or {}).get("store-id-ranges", {})) or None
        shown.append({"type": kind, "args": stores, "disable": name not in there, "args-payload": ""})
    return shown


def schedule(settings: Settings, cluster: Cluster) -> Json:
    limits = {str(store_id): limit for store_id, limit in store_limits(cluster).items()}
    now = settings.placing()
    return {
        "max-snapshot-count": now.max_snapshot_count,
        "max-pending-peer-count": now.max_pending_peer_count,
        "max-merge-region-size": now.max_merge_region_size,
        "max-merge-region-keys": now.max_merge_region_keys,
        "split-merge-interval": duration(now.split_merge_interval),
        "switch-witness-interval": "1h0m0s",
        "enable-one-way-merge": _text(now.enable_one_way_merge),
        "enable-cross-table-merge": _text(now.enable_cross_table_merge),
        "patrol-region-interval": duration(now.patrol_region_interval),
        "max-store-down-time": duration(now.max_store_down_time),
        "max-store-preparing-time": "48h0m0s",
        "leader-schedule-limit": now.leader_schedule_limit,
        "leader-schedule-policy": now.leader_schedule_policy,
        "region-schedule-limit": now.region_schedule_limit,
        "witness-schedule-limit": 4,
        "replica-schedule-limit": now.replica_schedule_limit,
        "merge-schedule-limit": now.merge_schedule_limit,
        "hot-region-schedule-limit": now.hot_region_schedule_limit,
        "hot-region-cache-hits-threshold": now.hot_region_cache_hits_threshold,
        "store-limit": limits,
        "tolerant-size-ratio": now.tolerant_size_ratio,
        "low-space-ratio": now.low_space_ratio,
        "high-space-ratio": 0.7,
        "region-score-formula-version": "v2",
        "scheduler-max-waiting-operator": 5,
        "enable-remove-down-replica": _text(now.enable_remove_down_replica),
        "enable-replace-offline-replica": _text(now.enable_replace_offline_replica),
        "enable-make-up-replica": _text(now.enable_make_up_replica),
        "enable-remove-extra-replica": _text(now.enable_remove_extra_replica),
        "enable-location-replacement": _text(now.enable_location_replacement),
        "enable-debug-metrics": "false",
        "enable-joint-consensus": _text(now.enable_joint_consensus),
        "enable-tikv-split-region": "true",
        "enable-heartbeat-breakdown-metrics": "true",
        "schedulers-v2": schedulers(cluster),
        "schedulers-payload": None,
        "hot-regions-write-interval": "10m0s",
        "hot-regions-reserved-days": 7,
        "max-movable-hot-peer-size": 512,
        "enable-diagnostic": "true",
        "enable-witness": "false",
        "slow-store-evicting-affected-store-ratio-threshold": 0.3,
        "store-limit-version": "v1",
    }


def replication(settings: Settings) -> Json:
    now = settings.placing()
    return {
        "max-replicas": now.max_replicas,
        "location-labels": ",".join(now.location_labels),
        "strictly-match-label": _text(now.strictly_match_label),
        "enable-placement-rules": _text(now.enable_placement_rules),
        "enable-placement-rules-cache": "false",
        "isolation-level": now.isolation_level,
    }


PD_SERVER: Json = {
    "use-region-storage": "true",
    "max-gap-reset-ts": "24h0m0s",
    "key-type": "table",
    "runtime-services": "",
    "metric-storage": "",
    "dashboard-address": "auto",
    "flow-round-by-digit": 3,
    "min-resolved-ts-persistence-interval": "1s",
    "server-memory-limit": 0,
    "server-memory-limit-gc-trigger": 0.7,
    "enable-gogc-tuner": "false",
    "gc-tuner-threshold": 0.6,
    "block-safe-point-v1": "false",
}
REPLICATION_MODE: Json = {
    "replication-mode": "majority",
    "dr-auto-sync": {
        "label-key": "",
        "primary": "",
        "dr": "",
        "primary-replicas": 0,
        "dr-replicas": 0,
        "wait-store-timeout": "1m0s",
        "wait-recover-timeout": "0s",
        "pause-region-split": "false",
    },
}
_SECURITY: Json = {
    "cacert-path": "",
    "cert-path": "",
    "key-path": "",
    "cert-allowed-cn": None,
    "SSLCABytes": None,
    "SSLCertBytes": None,
    "SSLKEYBytes": None,
    "redact-info-log": False,
    "encryption": {
        "data-encryption-method": "plaintext",
        "data-key-rotation-period": "168h0m0s",
        "master-key": {"type": "plaintext", "key-id": "", "region": "", "endpoint": "", "path": ""},
    },
}
_DASHBOARD: Json = {
    "tidb-cacert-path": "",
    "tidb-cert-path": "",
    "tidb-key-path": "",
    "public-path-prefix": "",
    "internal-proxy": False,
    "enable-telemetry": False,
    "enable-experimental": False,
}
_CONTROLLER: Json = {
    "degraded-mode-wait-duration": "0s",
    "ltb-max-wait-duration": "30s",
    "request-unit": {
        "read-base-cost": 0.125,
        "read-per-batch-base-cost": 0.5,
        "read-cost-per-byte": 0.0000152587890625,
        "write-base-cost": 1,
        "write-per-batch-base-cost": 1,
        "write-cost-per-byte": 0.0009765625,
        "read-cpu-ms-cost": 0.3333333333333333,
    },
    "enable-controller-trace-log": "false",
}


def _log_section(settings: Settings) -> Json:
    return {
        "level": settings.log_level,
        "format": "text",
        "disable-timestamp": False,
        "file": {"filename": settings.options.log_file, "max-size": 0, "max-days": 0, "max-backups": 0},
        "development": False,
        "disable-caller": False,
        "disable-stacktrace": False,
        "disable-error-verbose": True,
        "sampling": None,
        "error-output-path": "",
    }


def document(settings: Settings, cluster: Cluster) -> Json:
    """The answer of `config`."""
    options = settings.options
    return {
        "client-urls": options.client_urls,
        "peer-urls": options.peer_urls,
        "advertise-client-urls": options.advertise_client_urls,
        "advertise-peer-urls": options.advertise_peer_urls,
        "name": options.name,
        "data-dir": options.data_dir,
        "force-new-cluster": False,
        "enable-grpc-gateway": True,
        "initial-cluster": options.initial_cluster,
        "initial-cluster-state": "existing" if options.join else "new",
        "initial-cluster-token": options.initial_cluster_token,
        "join": options.join,
        "lease": options.lease_s,
        "log": _log_section(settings),
        "max-concurrent-tso-proxy-streamings": 5000,
        "tso-proxy-recv-from-client-timeout": "1h0m0s",
        "tso-save-interval": "3s",
        "tso-update-physical-interval": "50ms",
        "enable-local-tso": False,
        "metric": {"job": options.name, "address": "", "interval": "15s"},
        "schedule": schedule(settings, cluster),
        "replication": replication(settings),
        "pd-server": PD_SERVER,
        "cluster-version": cluster.cluster_version,
        "labels": {},
        "quota-backend-bytes": "8GiB",
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention-v2": "1h",
        "TickInterval": duration(options.tick_ns),
        "ElectionInterval": duration(options.election_ns),
        "PreVote": True,
        "max-request-bytes": 157286400,
        "security": _SECURITY,
        "label-property": {},
        "WarningMsgs": None,
        "DisableStrictReconfigCheck": False,
        "HeartbeatStreamBindInterval": "1m0s",
        "LeaderPriorityCheckInterval": duration(round(options.priority_check_s * SECOND_NS)),
        "dashboard": _DASHBOARD,
        "replication-mode": REPLICATION_MODE,
        "keyspace": {
            "pre-alloc": None,
            "wait-region-split": True,
            "wait-region-split-timeout": "30s",
            "check-region-split-interval": "50ms",
        },
        "micro-service": {"enable-scheduling-fallback": "true"},
        "controller": _CONTROLLER,
    }
