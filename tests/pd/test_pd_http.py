"""What PD's HTTP interface answers, field by field, as a real PD 8.1 was seen to answer: on leader and follower."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from fake_stores import PdClient
from pd_processes import PdProcesses

V1 = "/pd/api/v1"
JSON = "application/json; charset=UTF-8"
BYTES = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
NOT_BOOTSTRAPPED = b'"[PD:cluster:ErrNotBootstrapped]TiKV cluster not bootstrapped, please start TiKV first"\n'
MEMBER = {
    "name": str,
    "member_id": int,
    "peer_urls": [str],
    "client_urls": [str],
    "deploy_path": str,
    "binary_version": str,
    "git_hash": str,
}
LEADER = {"name": str, "member_id": int, "peer_urls": [str], "client_urls": [str]}
STORE = {
    "store": {
        "id": int,
        "address": str,
        "version": str,
        "peer_address": str,
        "status_address": str,
        "git_hash": str,
        "start_timestamp": int,
        "deploy_path": str,
        "last_heartbeat": int,
        "node_state": int,
        "state_name": str,
    },
    "status": {
        "capacity": str,
        "available": str,
        "used_size": str,
        "leader_count": int,
        "leader_weight": int,
        "leader_score": int,
        "leader_size": int,
        "region_count": int,
        "region_weight": int,
        "region_score": float,
        "region_size": int,
        "start_ts": str,
        "last_heartbeat_ts": str,
        "uptime": str,
    },
}
PEER = {"role_name": str, "id": int, "store_id": int}
REGION = {
    "id": int,
    "start_key": str,
    "end_key": str,
    "epoch": {"conf_ver": int, "version": int},
    "peers": [PEER],
    "leader": PEER,
    "cpu_usage": int,
    "written_bytes": int,
    "read_bytes": int,
    "written_keys": int,
    "read_keys": int,
    "approximate_size": int,
    "approximate_keys": int,
}
REGIONS = {"count": int, "regions": [REGION]}
REPLICATE = {
    "max-replicas": int,
    "location-labels": str,
    "strictly-match-label": str,
    "enable-placement-rules": str,
    "enable-placement-rules-cache": str,
    "isolation-level": str,
}
HISTOGRAM = [{"start": int, "end": int, "count": int}]
# Path -> content type and shape, once there is a cluster of three stores with one whole region.
ANSWERS: dict[str, tuple[str, Any]] = {
    f"{V1}/health": (JSON, [{"name": str, "member_id": int, "client_urls": [str], "health": bool}]),
    "/pd/health": (JSON, [{"name": str, "member_id": int, "client_urls": [str], "health": bool}]),
    f"{V1}/members": (
        JSON,
        {"header": {"cluster_id": int}, "members": [MEMBER], "leader": MEMBER, "etcd_leader": MEMBER},
    ),
    f"{V1}/leader": (JSON, LEADER),
    f"{V1}/version": (JSON, {"version": str, "build_time": str, "hash": str, "branch": str}),
    f"{V1}/status": (JSON, {"build_ts": str, "version": str, "git_hash": str, "start_timestamp": int}),
    f"{V1}/cluster": (JSON, {"id": int, "max_peer_count": int}),
    f"{V1}/cluster/status": (
        JSON,
        {"raft_bootstrap_time": str, "is_initialized": bool, "replication_status": str},
    ),
    f"{V1}/config/replicate": (JSON, REPLICATE),
    f"{V1}/config/cluster-version": (JSON, str),
    f"{V1}/stores": (JSON, {"count": int, "stores": [STORE]}),
    f"{V1}/store/1": (JSON, STORE),
    f"{V1}/stores/check?state=up": (JSON, {"count": int, "stores": [STORE]}),
    f"{V1}/regions": (BYTES, REGIONS),
    f"{V1}/regions/key?key=&limit=5": (BYTES, REGIONS),
    f"{V1}/regions/store/1": (BYTES, REGIONS),
    f"{V1}/regions/size": (BYTES, REGIONS),
    f"{V1}/regions/check/empty-region": (BYTES, REGIONS),
    f"{V1}/region/id/4": (BYTES, REGION),
    f"{V1}/region/key/abc": (BYTES, REGION),
    f"{V1}/region/key/616263?format=hex": (BYTES, REGION),
    f"{V1}/regions/check/hist-size": (JSON, HISTOGRAM),
    f"{V1}/regions/check/hist-keys": (JSON, HISTOGRAM),
    f"{V1}/operators/records": (JSON, [str]),
}
# Path -> status, content type and body, where the body is known byte for byte.
EXACT: dict[str, tuple[int, str, bytes]] = {
    "/ping": (404, TEXT, b"404 page not found\n"),
    "/nosuch": (404, TEXT, b"404 page not found\n"),
    f"{V1}/nosuch": (404, TEXT, b"404 page not found\n"),
    "/pd/ping": (200, "", b""),
    f"{V1}/ping": (200, "", b""),
    "/health": (200, TEXT, b'{"health":"true"}'),
    f"{V1}/store/99": (404, JSON, b'"[PD:core:ErrStoreNotFound]store 99 not found"\n'),
    f"{V1}/store/abc": (
        400,
        JSON,
        b'{\n  "code": "input",\n  "msg": "strconv.ParseUint: parsing \\"abc\\": invalid syntax",\n  "data": {}\n}\n',
    ),
    f"{V1}/regions/count": (200, JSON, b'{\n  "count": 1,\n  "regions": null\n}\n'),
    f"{V1}/regions/sibling/99": (404, JSON, b'"[PD:region:ErrRegionNotFound]region 99 not found"\n'),
    f"{V1}/regions/range-holes": (200, JSON, b"[]\n"),
    f"{V1}/operators": (200, JSON, b"[]\n"),
    f"{V1}/schedulers": (
        200,
        JSON,
        b'[\n  "balance-region-scheduler",\n  "balance-leader-scheduler",\n  "balance-hot-region-scheduler",\n'
        b'  "evict-slow-store-scheduler"\n]\n',
    ),
    f"{V1}/schedulers?status=paused": (200, JSON, b"[]\n"),
    f"{V1}/scheduler-config/nosuch/list": (404, "text/plain; charset=utf-8", b"404 page not found\n"),
    f"{V1}/checker/merge": (200, JSON, b'{\n  "paused": false\n}\n'),
    f"{V1}/operators/99": (500, JSON, b'"[PD:operator:ErrOperatorNotFound]operator not found"\n'),
    f"{V1}/config/label-property": (200, JSON, b"{}\n"),
    f"{V1}/config/cluster-version": (200, JSON, b'"8.1.0"\n'),
    f"{V1}/gc/safepoint": (200, JSON, b'{\n  "service_gc_safe_points": [],\n  "gc_safe_point": 0\n}\n'),
    f"{V1}/labels": (200, JSON, b"null\n"),
    **{
        f"{V1}/regions/check/{kind}": (200, BYTES, b'{"count":0,"regions":[]}')
        for kind in ("miss-peer", "extra-peer", "pending-peer", "down-peer", "learner-peer", "offline-peer")
    },
    f"{V1}/region/id/99": (
        200,
        BYTES,
        b'{"id":0,"start_key":"","end_key":"","leader":{"role_name":""},"cpu_usage":0,"written_bytes":0,'
        b'"read_bytes":0,"written_keys":0,"read_keys":0,"approximate_size":0,"approximate_keys":0}',
    ),
}
# The sections of the whole configuration, in order, with those of some sub-sections.
CONFIG_KEYS = [
    "client-urls",
    "peer-urls",
    "advertise-client-urls",
    "advertise-peer-urls",
    "name",
    "data-dir",
    "force-new-cluster",
    "enable-grpc-gateway",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "join",
    "lease",
    "log",
    "max-concurrent-tso-proxy-streamings",
    "tso-proxy-recv-from-client-timeout",
    "tso-save-interval",
    "tso-update-physical-interval",
    "enable-local-tso",
    "metric",
    "schedule",
    "replication",
    "pd-server",
    "cluster-version",
    "labels",
    "quota-backend-bytes",
    "auto-compaction-mode",
    "auto-compaction-retention-v2",
    "TickInterval",
    "ElectionInterval",
    "PreVote",
    "max-request-bytes",
    "security",
    "label-property",
    "WarningMsgs",
    "DisableStrictReconfigCheck",
    "HeartbeatStreamBindInterval",
    "LeaderPriorityCheckInterval",
    "dashboard",
    "replication-mode",
    "keyspace",
    "micro-service",
    "controller",
]


def shape_of(value: Any, like: Any) -> Any:
    """The types in a value, with fields in their order; an integer may stand where Go has a whole float."""
    if isinstance(value, dict):
        inside = like if isinstance(like, dict) else {}
        return {key: shape_of(each, inside.get(key)) for key, each in value.items()}
    if isinstance(value, list):
        wanted = like[0] if isinstance(like, list) else None
        shapes = [shape_of(each, wanted) for each in value]
        return shapes[:1] if all(each == shapes[0] for each in shapes) else shapes
    return float if like is float and isinstance(value, int) else type(value)


def one_of_each(servers: PdProcesses) -> tuple[int, int]:
    leader = servers.wait_for_leader()
    return leader, (leader + 1) % 3


@pytest.mark.parametrize("path", ANSWERS)
def test_shapes(whole: PdProcesses, path: str) -> None:
    kind, wanted = ANSWERS[path]
    for place in one_of_each(whole):
        status, content_type, body = whole.get(place, path)
        assert (status, content_type) == (200, kind)
        found = shape_of(json.loads(body), wanted)
        assert json.dumps(found, default=str) == json.dumps(wanted, default=str)


@pytest.mark.parametrize("path", EXACT)
def test_bytes(whole: PdProcesses, path: str) -> None:
    for place in one_of_each(whole):
        assert whole.get(place, path) == EXACT[path]


@pytest.mark.parametrize("path", [f"{V1}/stores", f"{V1}/regions", f"{V1}/region/id/2", f"{V1}/operators"])
def test_before_bootstrap(fresh: PdProcesses, path: str) -> None:
    for place in one_of_each(fresh):
        assert fresh.get(place, path) == (500, JSON, NOT_BOOTSTRAPPED)


def test_the_status_before_bootstrap(fresh: PdProcesses) -> None:
    assert fresh.ask(0, f"{V1}/cluster/status") == {
        "raft_bootstrap_time": "0001-01-01T00:00:00Z",
        "is_initialized": False,
        "replication_status": "",
    }
    assert fresh.ask(1, f"{V1}/config/cluster-version") == "0.0.0"
    assert all(each["health"] for each in fresh.ask(2, f"{V1}/health"))


def test_the_configuration_is_the_leaders(fresh: PdProcesses) -> None:
    leader, follower = one_of_each(fresh)
    document = fresh.ask(follower, f"{V1}/config")
    assert list(document) == CONFIG_KEYS
    assert document["name"] == fresh.names[leader]
    assert document["initial-cluster"] == fresh.initial_cluster
    assert (document["TickInterval"], document["ElectionInterval"]) == ("100ms", "1s")
    assert document["schedule"]["max-store-down-time"] == "30m0s"
    assert document["schedule"]["enable-make-up-replica"] == "true"
    assert document["replication"] == fresh.ask(leader, f"{V1}/config/replicate")


def test_members_stand_in_the_order_of_their_ids(fresh: PdProcesses) -> None:
    ids = [each["member_id"] for each in fresh.told(0, f"{V1}/members")["members"]]
    assert ids == sorted(ids)


def test_pretty_json_ends_with_a_line_and_compact_json_does_not(whole: PdProcesses) -> None:
    _, _, stores = whole.get(0, f"{V1}/stores")
    assert stores.startswith(b'{\n  "count": 3,\n  "stores": [\n    {\n      "store": {\n        "id": 1,\n')
    assert stores.endswith(b"}\n")
    _, _, regions = whole.get(0, f"{V1}/regions")
    assert regions.startswith(b'{"count":1,"regions":[{"id":4,"start_key":"","end_key":"","epoch":{"conf_ver":5,')
    assert regions.endswith(b"}]}")
    assert stores.count(b'"state_name": "Up"') == 3
    assert b'"capacity": "100GiB"' in stores


def test_a_follower_says_what_the_leader_says(whole: PdProcesses) -> None:
    leader, follower = one_of_each(whole)
    for path in (f"{V1}/regions", f"{V1}/members", f"{V1}/leader", f"{V1}/config"):
        assert whole.get(leader, path) == whole.get(follower, path)


def test_a_request_is_passed_on_once(fresh: PdProcesses) -> None:
    _, follower = one_of_each(fresh)
    status, _, body = fresh.get(follower, f"{V1}/leader", {"PD-Redirector": "somebody"})
    assert (status, body) == (500, b"[PD:apiutil:ErrRedirectToNotLeader]redirect to not leader\n")


def test_a_follower_answers_for_itself_when_asked_to(fresh: PdProcesses) -> None:
    leader, follower = one_of_each(fresh)
    status, _, body = fresh.get(follower, f"{V1}/leader", {"PD-Allow-follower-handle": "true"})
    assert (status, json.loads(body)["name"]) == (200, fresh.names[leader])


def test_headers_for_browsers(fresh: PdProcesses) -> None:
    for place in one_of_each(fresh):
        for path in (f"{V1}/members", "/nosuch", "/metrics"):
            head = raw(fresh.client_ports[place], f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            assert head.count(b"Access-Control-Allow-Origin: *\r\n") == 1


def raw(port: int, data: bytes) -> bytes:
    """What comes back for some bytes, until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GARBAGE GARBAGE GARBAGE\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello", b"400"),
    ],
)
def test_garbage_is_refused_and_the_member_lives_on(fresh: PdProcesses, data: bytes, status: bytes) -> None:
    answer = raw(fresh.client_ports[0], data)
    assert status in answer.partition(b"\r\n")[0]
    assert fresh.get(0, f"{V1}/ping")[0] == 200


def test_half_open_connections_hold_nobody_up(fresh: PdProcesses) -> None:
    idle = [socket.create_connection(("127.0.0.1", fresh.client_ports[0])) for _ in range(50)]
    idle[0].sendall(b"PRI * HT")
    idle[1].sendall(b"GET /pd/api/v1/mem")
    assert fresh.get(0, f"{V1}/ping")[0] == 200
    for each in idle:
        each.close()


def test_settings_that_pd_acts_on_can_be_changed(whole: PdProcesses) -> None:
    leader, follower = one_of_each(whole)

    def post(place: int, body: bytes) -> bytes:
        head = (
            f"POST {V1}/config HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return raw(whole.client_ports[place], head.encode() + body).partition(b"\r\n\r\n")[2]

    assert post(follower, b'{"max-store-down-time": "1h30m"}') == b'"The config is updated."\n'
    assert whole.told(leader, f"{V1}/config/schedule")["max-store-down-time"] == "1h30m0s"
    assert post(leader, b'{"foo": 1}') == b'"config item foo not found"\n'
    assert b"cannot be" in post(leader, b'{"max-store-down-time": "zz"}')
    assert b"cannot be" in post(leader, b'{"max-replicas": 0}')
    assert b"invalid character" in post(leader, b"garbage")
    assert post(leader, b'{"schedule.max-store-down-time": "30m"}') == b'"The config is updated."\n'


def test_metrics(whole: PdProcesses) -> None:
    leader, follower = one_of_each(whole)
    status, content_type, body = whole.get(leader, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=0.0.4")
    lines = body.decode().splitlines()
    for line in (
        'pd_cluster_status{type="store_up_count"} 3',
        'pd_cluster_status{type="store_down_count"} 0',
        'pd_cluster_status{type="region_count"} 3',
        'pd_cluster_status{type="leader_count"} 1',
        'pd_regions_status{type="miss-peer-region-count"} 0',
        'pd_regions_status{type="down-peer-region-count"} 0',
        'pd_scheduler_store_status{address="127.0.0.1:30160",store="1",type="leader_count"} 1',
        "etcd_server_is_leader 1",
        "etcd_server_has_leader 1",
    ):
        assert line in lines
    followers = whole.get(follower, "/metrics")[2].decode().splitlines()
    assert "etcd_server_is_leader 0" in followers
    assert not [line for line in followers if line.startswith("pd_cluster_status{")]


def test_one_port_speaks_both(fresh: PdProcesses) -> None:
    async def members() -> int:
        client = PdClient(fresh.client_ports)
        try:
            return await client.find_leader()
        finally:
            client.close()

    assert asyncio.run(members()) == fresh.client_ports[fresh.wait_for_leader()]
