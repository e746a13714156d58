"""The HTTP ports of PD and of a store under what no client should send: an answer or an end, and no harm."""

from __future__ import annotations

import http.client
import json
import socket
from urllib.parse import quote

import pytest
from fuzz_members import CALL_S, Members
from fuzz_messages import fuzz
from hypothesis import given
from hypothesis import strategies as st

V1 = "/pd/api/v1"
PARTS = (
    *("pd", "api", "v1", "v2", "config", "store", "stores", "region", "regions", "members", "leader", "operators"),
    *("schedulers", "hotspot", "labels", "gc", "admin", "metrics", "status", "id", "key", "name", "limit", "weight"),
    *("state", "label", "replicate", "schedule", "rules", "rule", "check", "transfer", "resign", "health", "safepoint"),
    *("1", "0", "-1", "18446744073709551616", "%00", "%ff", "..", "é", "a" * 300, ""),
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
PATHS = st.lists(st.sampled_from(PARTS), max_size=5).map(lambda parts: "/" + "/".join(parts))
KNOWN_PATHS = PATHS.map(lambda path: V1 + path)
QUERIES = st.sampled_from(
    ["", "?", "?limit=-1", "?limit=x", "?state=", "?key=%zz", "?full=1", "?a&b&&=c", "?limit=1e9"]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["true", "1h", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "id", "store_id"]), inner),
    max_leaves=4,
)
NAMES = (
    "name",
    "region_id",
    "store_id",
    "to_store_id",
    "max-replicas",
    "leader",
    "raftstore.raft-log-gc-threshold",
    "a",
)
BODIES = st.one_of(
    st.binary(max_size=20),
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3).map(lambda document: json.dumps(document).encode()),
    st.sampled_from([b"", b"[" * 2000, b"{}", b"null", b'{"name":"balance-leader-scheduler"}', b"\xef\xbb\xbf{}"]),
)


def ports(members: Members) -> tuple[int, int]:
    return members.pd_port, members.status_port


def raw(port: int, *pieces: bytes) -> bytes:
    """All that comes back until the member ends the connection, as it does once the client has sent its last."""
    with socket.create_connection(("127.0.0.1", port), CALL_S) as connection:
        connection.settimeout(CALL_S)
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65536):
                answer += data
        except (ConnectionResetError, BrokenPipeError):
            pass
    return answer


@fuzz(60)
@given(path=PATHS | KNOWN_PATHS, query=QUERIES, method=st.sampled_from(METHODS), body=BODIES)
def check_requests(members: Members, path: str, query: str, method: str, body: bytes) -> None:
    for port in ports(members):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_S)
        target = quote(path + query, safe="/?&=%")
        connection.putrequest(method, target, skip_accept_encoding=True)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        status = connection.getresponse().status
        connection.close()
        assert 200 <= status < 600
        assert status != 500 or port == members.pd_port or "config" in path


def test_any_path_with_any_method_and_body(members: Members) -> None:
    check_requests(members)
    members.check()


@fuzz(60)
@given(data=st.binary(max_size=300))
def check_bytes(members: Members, data: bytes) -> None:
    for port in ports(members):
        answer = raw(port, data)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 ", b"\0\0"))  # or a frame of HTTP/2


def test_random_bytes(members: Members) -> None:
    check_bytes(members)
    members.check()


WHOLE = b"POST /pd/api/v1/config HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"


@fuzz(60)
@given(first=st.integers(0, len(WHOLE)), second=st.integers(0, len(WHOLE)))
def check_cuts(members: Members, first: int, second: int) -> None:
    start, end = sorted((first, second))
    for port in ports(members):
        assert raw(port, WHOLE[:start], WHOLE[start:end], WHOLE[end:]).startswith(b"HTTP/1.1 ")
        raw(port, WHOLE[:start])  # and one that ends too early


def test_requests_cut_at_any_place(members: Members) -> None:
    check_cuts(members)
    members.check()


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 20_000 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", b""),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", b""),
    ],
)
def test_heads_that_are_none(members: Members, head: bytes, code: bytes) -> None:
    for port in ports(members):
        answer = raw(port, head)
        assert answer.startswith(b"HTTP/1.1 " + code) or answer == b""
    members.check()


def test_many_requests_at_once_are_answered_in_order(members: Members) -> None:
    one = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"
    other = b"GET /no/such HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = raw(members.status_port, (one + other) * 50)
    codes = [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    codes += [
        line.rpartition(b"HTTP/1.1 ")[2].split()[0] for line in answer.split(b"\r\n") if b"foundHTTP/1.1 " in line
    ]
    assert len(codes) == 100
    assert codes.count(b"404") == 50


@pytest.mark.parametrize(
    "host", [b"evil.example", b"evil.example:2379", b"localhost.evil.example", b"", b"127.0.0.1.x"]
)
def test_a_write_under_a_foreign_name_is_refused(members: Members, host: bytes) -> None:
    for port, path in ((members.pd_port, b"/pd/api/v1/config"), (members.status_port, b"/config")):
        request = b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 2\r\n\r\n{}" % (path, host)
        assert raw(port, request).startswith(b"HTTP/1.1 403 ")
