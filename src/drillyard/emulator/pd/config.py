"""PD's configuration: what flags and file say, what was changed since, and the document that `config` shows.

Rules: names, order and formatting are those of PD 8.1, booleans written as strings in the same places. What the
emulator does not act on is shown at the real default, because clients read it; what it does act on is in `Options` and
`Settings`. Changed settings come from the replicated state, so all members show the same.

It reads no file and knows no flags: `server` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from drillyard.emulator import flags
from drillyard.emulator.pd.views import duration

Json = Any
SECOND_NS = 10**9


@dataclass(frozen=True, slots=True)
class Options:
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


# What may be changed while PD runs, with the check that its new value must pass.
def _is_span(value: Json) -> bool:
    return isinstance(value, str) and parse_duration(value) is not None


def _is_count(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 7


CHANGEABLE: Mapping[str, Callable[[Json], bool]] = {
    "schedule.max-store-down-time": _is_span,
    "replication.max-replicas": _is_count,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that PD acts on, as they are now."""

    options: Options
    changed: Callable[[], Mapping[str, str]]

    def down_after_ns(self) -> int:
        text = self.changed().get("schedule.max-store-down-time")
        span = parse_duration(json.loads(text)) if text is not None else None
        return self.options.max_store_down_ns if span is None else span

    def replicas(self) -> int:
        text = self.changed().get("replication.max-replicas")
        return self.options.max_replicas if text is None else int(json.loads(text))


def parse_duration(text: str) -> int | None:
    """Nanoseconds of a span such as 1h30m, 10s or 100ms; None if it is none."""
    try:
        return round(flags.duration(text) * SECOND_NS)
    except ValueError:
        return None


def full_name(key: str) -> str | None:
    """The name of a changeable setting, which clients may also give without its section."""
    return next((name for name in CHANGEABLE if key in (name, name.partition(".")[2])), None)


# ---- the document ----


def schedule(settings: Settings, stores: list[int]) -> Json:
    limits = {str(store_id): {"add-peer": 15, "remove-peer": 15} for store_id in stores}
    return {
        "max-snapshot-count": 64,
        "max-pending-peer-count": 64,
        "max-merge-region-size": 20,
        "max-merge-region-keys": 200000,
        "split-merge-interval": "1h0m0s",
        "switch-witness-interval": "1h0m0s",
        "enable-one-way-merge": "false",
        "enable-cross-table-merge": "true",
        "patrol-region-interval": "10ms",
        "max-store-down-time": duration(settings.down_after_ns()),
        "max-store-preparing-time": "48h0m0s",
        "leader-schedule-limit": 4,
        "leader-schedule-policy": "count",
        "region-schedule-limit": 2048,
        "witness-schedule-limit": 4,
        "replica-schedule-limit": 64,
        "merge-schedule-limit": 8,
        "hot-region-schedule-limit": 4,
        "hot-region-cache-hits-threshold": 3,
        "store-limit": limits,
        "tolerant-size-ratio": 0,
        "low-space-ratio": 0.8,
        "high-space-ratio": 0.7,
        "region-score-formula-version": "v2",
        "scheduler-max-waiting-operator": 5,
        "enable-remove-down-replica": "true",
        "enable-replace-offline-replica": "true",
        "enable-make-up-replica": "true",
        "enable-remove-extra-replica": "true",
        "enable-location-replacement": "true",
        "enable-debug-metrics": "false",
        "enable-joint-consensus": "true",
        "enable-tikv-split-region": "true",
        "enable-heartbeat-breakdown-metrics": "true",
        "schedulers-v2": [
            {"type": name, "args": None, "disable": False, "args-payload": ""}
            for name in ("balance-region", "balance-leader", "hot-region", "evict-slow-store")
        ],
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
    return {
        "max-replicas": settings.replicas(),
        "location-labels": "",
        "strictly-match-label": "false",
        "enable-placement-rules": "true",
        "enable-placement-rules-cache": "false",
        "isolation-level": "",
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


def _log_section(options: Options) -> Json:
    return {
        "level": options.log_level,
        "format": "text",
        "disable-timestamp": False,
        "file": {"filename": options.log_file, "max-size": 0, "max-days": 0, "max-backups": 0},
        "development": False,
        "disable-caller": False,
        "disable-stacktrace": False,
        "disable-error-verbose": True,
        "sampling": None,
        "error-output-path": "",
    }


def document(settings: Settings, stores: list[int], cluster_version: str) -> Json:
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
        "initial-cluster-state": "new",
        "initial-cluster-token": options.initial_cluster_token,
        "join": "",
        "lease": options.lease_s,
        "log": _log_section(options),
        "max-concurrent-tso-proxy-streamings": 5000,
        "tso-proxy-recv-from-client-timeout": "1h0m0s",
        "tso-save-interval": "3s",
        "tso-update-physical-interval": "50ms",
        "enable-local-tso": False,
        "metric": {"job": options.name, "address": "", "interval": "15s"},
        "schedule": schedule(settings, stores),
        "replication": replication(settings),
        "pd-server": PD_SERVER,
        "cluster-version": cluster_version,
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
        "LeaderPriorityCheckInterval": "1m0s",
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
