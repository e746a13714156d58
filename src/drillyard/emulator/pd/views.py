"""PD's state as its HTTP interface shows it: field names, their order, and Go's way to write numbers and times.

Rules: shapes are those of PD 8.1. Dictionaries keep the order in which the real one writes its fields. A time that is
compared with a clock is an argument. Nothing here serves or decides anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from drillyard.emulator.pd.cluster import Cluster, state_name
from drillyard.emulator.pd.operators import Operator, Status
from drillyard.emulator.pd.picture import fullness
from drillyard.emulator.pd.reports import RegionReport, Reports, StoreTotals
from drillyard.wire import drillpb, metapb, pdpb

Json = Any
StoreFilter = Callable[[metapb.Store], bool]
GIB = float(1 << 30)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OVERSIZED_MIB = 144
UNDERSIZED_MIB = 20
MIN_WEIGHT = 1e-6  # what a weight of zero counts as
ZERO_TIME = "0001-01-01T00:00:00Z"


# ---- Go's formats ----


def go_json(value: Json, *, indent: bool = True) -> bytes:
    """JSON as Go's encoder writes it; indented output ends with a line feed, compact output does not."""
    separators = (",", ": ") if indent else (",", ":")
    text = json.dumps(_plain(value), indent=2 if indent else None, ensure_ascii=False, separators=separators)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return (text + "\n" if indent else text).encode()


def _plain(value: Json) -> Json:
    """Go writes a float without a fraction as a whole number."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def byte_size(size: int) -> str:
    """Four significant digits and a binary unit, such as 100GiB or 79.12MiB."""
    value, units = float(size), iter(("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    unit = next(units)
    while value >= 1024 and unit != "EiB":
        value, unit = value / 1024, next(units)
    return f"{value:.4g}{unit}"


def duration(nanoseconds: int) -> str:
    """A span as Go writes it, such as 10m0s, 1m20.5s, 500ms or 0s."""
    if nanoseconds == 0:
        return "0s"
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    for unit, size in (("ns", 1), ("\u00b5s", 10**3), ("ms", 10**6)):
        if rest < size * 1000:
            return f"{sign}{_fraction(rest, size)}{unit}"
    minutes, rest = divmod(rest, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{text}{_fraction(rest, 10**9)}s"


def _fraction(value: int, size: int) -> str:
    whole, part = divmod(value, size)
    digits = len(str(size)) - 1
    return f"{whole}.{part:0{digits}d}".rstrip("0").rstrip(".") if part else str(whole)


def timestamp(nanoseconds: int) -> str:
    """A point in time as RFC 3339 with as many decimals as it needs."""
    seconds, part = divmod(nanoseconds, 10**9)
    text = (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    return text + (f".{part:09d}".rstrip("0") if part else "") + "Z"


def go_time(nanoseconds: int) -> str:
    """A point in time as Go prints it in an operator's text."""
    seconds, part = divmod(nanoseconds, 10**9)
    text = (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")
    return text + (f".{part:09d}".rstrip("0") if part else "") + " +0000 UTC"


# ---- members ----


def member(record: drillpb.PdMember, priority: int = 0) -> Json:
    fields: dict[str, Json] = {"name": record.name, "member_id": record.id}
    fields["peer_urls"] = list(record.peer_urls)
    if record.client_urls:
        fields["client_urls"] = list(record.client_urls)
    if priority:
        fields["leader_priority"] = priority
    for key in ("deploy_path", "binary_version", "git_hash"):
        if value := getattr(record, key):
            fields[key] = value
    return fields


def members(records: list[drillpb.PdMember], cluster: Cluster, leader: drillpb.PdMember | None) -> Json:
    shown = [member(each, cluster.priorities.get(each.id, 0)) for each in records]
    view: dict[str, Json] = {"header": {"cluster_id": cluster.cluster_id}, "members": shown}
    if leader is not None:
        view |= {"leader": member(leader), "etcd_leader": member(leader)}
    return view


def leader(record: drillpb.PdMember) -> Json:
    view = member(record)
    return {key: view[key] for key in ("name", "member_id", "peer_urls", "client_urls") if key in view}


def health(records: list[drillpb.PdMember], healthy: set[int]) -> Json:
    return [
        {
            "name": each.name,
            "member_id": each.id,
            "client_urls": list(each.client_urls) or None,
            "health": each.id in healthy,
        }
        for each in records
    ]


# ---- stores ----


def store_meta(store: metapb.Store, last_heard_ns: int, name: str) -> Json:
    """The fields of a store; those at their zero are left out, as Go's `omitempty` does."""
    fields: dict[str, Json] = {
        "id": store.id,
        "address": store.address,
        "state": int(store.state),
        "labels": [{"key": label.key, "value": label.value} for label in store.labels],
        "version": store.version,
        "peer_address": store.peer_address,
        "status_address": store.status_address,
        "git_hash": store.git_hash,
        "start_timestamp": store.start_timestamp,
        "deploy_path": store.deploy_path,
        "last_heartbeat": last_heard_ns,
        "physically_destroyed": store.physically_destroyed,
        "node_state": int(store.node_state),
    }
    return {key: value for key, value in fields.items() if value} | {"state_name": name}


class StoreViews:
    """The stores at one instant."""

    def __init__(self, cluster: Cluster, reports: Reports, now_ns: int, down_after_ns: int) -> None:
        self._cluster = cluster
        self._reports = reports
        self._now_ns = now_ns
        self._down_after_ns = down_after_ns
        self._totals = reports.totals(cluster)

    def state_of(self, store: metapb.Store) -> str:
        heard = metapb.Store(state=store.state, last_heartbeat=self._reports.last_heard_ns(store))
        return state_name(heard, self._now_ns, self._down_after_ns)

    def _status(self, store: metapb.Store, heard_ns: int) -> Json:
        report, totals = self._reports.stores.get(store.id), self._totals[store.id]
        profile = self._cluster.book.profile(store.id)
        stats = report.stats if report is not None else None
        capacity, available = (stats.capacity, stats.available) if stats is not None else (0, 0)
        status: dict[str, Json] = {
            "capacity": byte_size(capacity),
            "available": byte_size(available),
            "used_size": byte_size(stats.used_size if stats is not None else 0),
            "leader_count": totals.leaders,
            "leader_weight": profile.leader_weight,
            "leader_score": totals.leaders / max(profile.leader_weight, MIN_WEIGHT),
            "leader_size": totals.leader_size,
            "region_count": totals.regions,
            "region_weight": profile.region_weight,
            "region_score": fullness(capacity, available, totals.region_size) / max(profile.region_weight, MIN_WEIGHT),
            "region_size": totals.region_size,
        }
        if totals.learners:
            status["learner_count"] = totals.learners
        if stats is not None:
            for key in ("slow_score", "sending_snap_count", "receiving_snap_count", "is_busy"):
                if value := getattr(stats, key):
                    status[key] = value
        status["start_ts"] = timestamp(store.start_timestamp * 10**9)
        status["last_heartbeat_ts"] = timestamp(heard_ns)
        uptime_ns = heard_ns - store.start_timestamp * 10**9
        if uptime_ns > 0:
            status["uptime"] = duration(uptime_ns)
        return status

    def one(self, store: metapb.Store) -> Json:
        heard_ns = self._reports.last_heard_ns(store)
        return {
            "store": store_meta(store, heard_ns, self.state_of(store)),
            "status": self._status(store, heard_ns),
        }

    def all(self, states: set[int] | None = None) -> Json:
        """Every store but tombstones, or those in the states asked for (0 Up, 1 Offline, 2 Tombstone)."""
        wanted = {int(metapb.Up), int(metapb.Offline)} if states is None else states
        stores = [store for _, store in sorted(self._cluster.stores.items()) if int(store.state) in wanted]
        return {"count": len(stores), "stores": [self.one(store) for store in stores]}


# ---- regions ----


def hex_key(key: bytes) -> str:
    return key.hex().upper()


def peer(record: metapb.Peer) -> Json:
    fields: dict[str, Json] = {"role_name": metapb.PeerRole.Name(record.role)}
    if record.role == metapb.Learner:
        fields["is_learner"] = True
    for key in ("id", "store_id", "role", "is_witness"):
        if value := getattr(record, key):
            fields[key] = value
    return fields


NO_REGION: Json = {
    "id": 0,
    "start_key": "",
    "end_key": "",
    "leader": {"role_name": ""},
    "cpu_usage": 0,
    "written_bytes": 0,
    "read_bytes": 0,
    "written_keys": 0,
    "read_keys": 0,
    "approximate_size": 0,
    "approximate_keys": 0,
}


def region(meta: metapb.Region, report: RegionReport | None, leader_peer: metapb.Peer | None) -> Json:
    epoch = {key: value for key in ("conf_ver", "version") if (value := getattr(meta.region_epoch, key))}
    view: dict[str, Json] = {"id": meta.id, "start_key": hex_key(meta.start_key), "end_key": hex_key(meta.end_key)}
    view |= {"epoch": epoch, "peers": [peer(each) for each in meta.peers]}
    view["leader"] = {"role_name": ""} if leader_peer is None else peer(leader_peer)
    if report is not None and report.request.down_peers:
        view["down_peers"] = [
            {"peer": peer(stats.peer), "down_seconds": stats.down_seconds} for stats in report.request.down_peers
        ]
    if report is not None and report.request.pending_peers:
        view["pending_peers"] = [peer(each) for each in report.request.pending_peers]
    request = report.request if report is not None else None
    view["cpu_usage"] = request.cpu_usage if request is not None else 0
    view["written_bytes"] = request.bytes_written if request is not None else 0
    view["read_bytes"] = request.bytes_read if request is not None else 0
    view["written_keys"] = request.keys_written if request is not None else 0
    view["read_keys"] = request.keys_read if request is not None else 0
    view["approximate_size"] = report.size_mib if report is not None else 0
    view["approximate_keys"] = request.approximate_keys if request is not None else 0
    return view


def regions(views: list[Json]) -> Json:
    return {"count": len(views), "regions": views}


# What makes a region one of those that `regions/check/<name>` lists. Only regions that were heard of are looked at.
CHECKS: Mapping[str, Callable[[metapb.Region, RegionReport, int], bool]] = {
    "miss-peer": lambda meta, report, replicas: len(meta.peers) < replicas,
    "extra-peer": lambda meta, report, replicas: len(meta.peers) > replicas,
    "pending-peer": lambda meta, report, replicas: bool(report.request.pending_peers),
    "down-peer": lambda meta, report, replicas: bool(report.request.down_peers),
    "learner-peer": lambda meta, report, replicas: any(each.role == metapb.Learner for each in meta.peers),
    "empty-region": lambda meta, report, replicas: report.size_mib <= 1,
    "oversized-region": lambda meta, report, replicas: report.size_mib >= OVERSIZED_MIB,
    "undersized-region": lambda meta, report, replicas: report.size_mib <= UNDERSIZED_MIB,
}


def checked(kind: str, cluster: Cluster, reports: Reports, replicas: int) -> list[metapb.Region]:
    """The regions that one of the checks lists."""
    check = CHECKS[kind]
    known = [(meta, reports.regions.get(meta.id)) for meta in cluster.regions]
    return [meta for meta, report in known if report is not None and check(meta, report, replicas)]


def histogram(values: list[int], width: int) -> Json:
    """How many regions fall into each stretch of sizes or keys."""
    counts: dict[int, int] = {}
    for value in values:
        counts[value // width] = counts.get(value // width, 0) + 1
    return [
        {"start": place * width, "end": (place + 1) * width - 1, "count": counts[place]} for place in sorted(counts)
    ]


def statistics(cluster: Cluster, reports: Reports, regions: Sequence[metapb.Region]) -> Json:
    """The sums of `stats/region` over these regions. One that was never heard of is empty."""
    totals = {store_id: total for store_id, total in sorted(reports.totals(cluster, regions).items()) if total.regions}
    known = [reports.regions[each.id] for each in regions if each.id in reports.regions]
    filled = sum(1 for report in known if report.size_mib > 1)

    def per_store(pick: Callable[[StoreTotals], int], *, leading: bool) -> Json:
        return {str(store_id): pick(each) for store_id, each in totals.items() if each.leaders or not leading}

    return {
        "count": len(regions),
        "empty_count": len(regions) - filled,
        "storage_size": sum(report.size_mib for report in known),
        "user_storage_size": 0,
        "storage_keys": sum(report.request.approximate_keys for report in known),
        "store_leader_count": per_store(lambda each: each.leaders, leading=True),
        "store_peer_count": per_store(lambda each: each.regions, leading=False),
        "store_leader_size": per_store(lambda each: each.leader_size, leading=True),
        "store_leader_keys": per_store(lambda each: each.leader_keys, leading=True),
        "store_peer_size": per_store(lambda each: each.region_size, leading=False),
        "store_peer_keys": per_store(lambda each: each.keys, leading=False),
    }


def operator(shown: Operator) -> str:
    """An operator as one line of PD's own."""
    steps = ", ".join(f"{place}:{{{step.text}}}" for place, step in enumerate(shown.steps))
    version, conf_ver = shown.epoch
    started = go_time(shown.started_ns) if shown.started_ns else "0001-01-01 00:00:00 +0000 UTC"
    text = (
        f"{shown.desc} {{{shown.brief}}} (kind:{shown.kind.text}, region:{shown.region_id}({version}, {conf_ver}), "
        f"createAt:{go_time(shown.created_ns)}, startAt:{started}, currentStep:{shown.current}, size:{shown.size}, "
        f"steps:[{steps}], timeout:[{duration(shown.timeout_ns)}])"
    )
    ends = {Status.SUCCESS: " finished", Status.TIMEOUT: " timeout"}
    return text + ends.get(shown.status, "")


def operator_object(shown: Operator) -> Json:
    """An operator as fields, for those who ask for objects."""
    version, conf_ver = shown.epoch
    return {
        "desc": shown.desc,
        "brief": shown.brief,
        "region_id": shown.region_id,
        "region_epoch": {"conf_ver": conf_ver, "version": version},
        "kind": int(shown.kind),
        "timeout": duration(shown.timeout_ns),
        "status": int(shown.status),
    }


def operator_status(shown: Operator) -> str:
    """An operator with what became of it."""
    return f"status: {pdpb.OperatorStatus.Name(shown.status.on_the_wire)}, operator: {operator(shown)}"


def operator_record(done: Operator) -> str:
    return f"{operator(done)} (finishAt:{go_time(done.ended_ns)}, duration:{duration(done.age_ns)})"
