"""Stores whose values expire (`storage.enable-ttl`), as clients see them, and as their directories remember it."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_pd import FakePd
from tikv_cluster import Cluster
from tikv_members import TikvProcess, call, wait_until

from drillyard.emulator.store import expiry
from drillyard.emulator.store.checksum import Crc64
from drillyard.wire import kvrpcpb
from drillyard.wire.services import TIKV

LONG_S = 1000
SHORT_S = 1


class TtlProcess(TikvProcess):
    config = '\n[storage]\nenable-ttl = true\nttl-check-poll-interval = "200ms"\n'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One store is enough: what expires is decided in its log."""
    home = tmp_path_factory.mktemp("mortal")
    with FakePd() as pd:
        member = TtlProcess(home / "tikv0", pd.endpoints).start()
        try:
            cluster = Cluster(pd, [member])
            wait_until("the region is led", lambda: pd.snapshot(lambda mind: mind.leader))
            yield cluster
        finally:
            member.kill()


def ask(store: Cluster, method: Any, request: Any) -> Any:
    place = store.place()
    request.context.MergeFrom(place.context())
    answer = call(place.address, method, request)
    assert not answer.HasField("region_error"), answer
    return answer


def put(store: Cluster, key: bytes, value: bytes, ttl: int = 0) -> None:
    answer = ask(store, TIKV.RawPut, kvrpcpb.RawPutRequest(key=key, value=value, ttl=ttl))
    assert not answer.error


def ttl_of(store: Cluster, key: bytes) -> kvrpcpb.RawGetKeyTTLResponse:
    answer: kvrpcpb.RawGetKeyTTLResponse = ask(store, TIKV.RawGetKeyTTL, kvrpcpb.RawGetKeyTTLRequest(key=key))
    return answer


def test_how_long_keys_live(store: Cluster) -> None:
    put(store, b"for ever", b"v")
    put(store, b"long", b"v", LONG_S)
    assert ttl_of(store, b"for ever") == kvrpcpb.RawGetKeyTTLResponse()
    assert LONG_S - 60 < ttl_of(store, b"long").ttl <= LONG_S
    assert ttl_of(store, b"missing") == kvrpcpb.RawGetKeyTTLResponse(not_found=True)
    assert ask(store, TIKV.RawGet, kvrpcpb.RawGetRequest(key=b"long")).value == b"v"


def test_one_ttl_for_all_pairs_or_one_for_each(store: Cluster) -> None:
    pairs = [kvrpcpb.KvPair(key=key, value=b"v") for key in (b"b1", b"b2", b"b3")]
    for ttls, lives in (([LONG_S], [True] * 3), ([0, LONG_S, 0], [False, True, False]), ([], [False] * 3)):
        assert not ask(store, TIKV.RawBatchPut, kvrpcpb.RawBatchPutRequest(pairs=pairs, ttls=ttls)).error
        assert [ttl_of(store, pair.key).ttl > 0 for pair in pairs] == lives
    wrong = ask(store, TIKV.RawBatchPut, kvrpcpb.RawBatchPutRequest(pairs=pairs, ttls=[1, 2]))
    assert wrong.error == "The length of ttls does not equal to the length of pairs"


def test_what_expired_is_shown_nowhere_and_swept(store: Cluster) -> None:
    put(store, b"x1", b"stays")
    put(store, b"x2", b"goes", SHORT_S)
    put(store, b"x3", b"goes", SHORT_S)
    ranges = [kvrpcpb.KeyRange(start_key=b"x", end_key=b"y")]
    get = kvrpcpb.RawGetRequest(key=b"x2")
    wait_until("the second is over", lambda: ask(store, TIKV.RawGet, get).not_found)
    assert ttl_of(store, b"x2").not_found
    both = kvrpcpb.RawBatchGetRequest(keys=[b"x1", b"x2"])
    assert [pair.key for pair in ask(store, TIKV.RawBatchGet, both).pairs] == [b"x1"]
    for reverse in (False, True):
        start, end = (b"y", b"x") if reverse else (b"x", b"y")
        scan = kvrpcpb.RawScanRequest(start_key=start, end_key=end, limit=9, reverse=reverse, key_only=reverse)
        assert [pair.key for pair in ask(store, TIKV.RawScan, scan).kvs] == [b"x1"]
    batch = kvrpcpb.RawBatchScanRequest(ranges=ranges, each_limit=9)
    assert [pair.value for pair in ask(store, TIKV.RawBatchScan, batch).kvs] == [b"stays"]
    summed = ask(store, TIKV.RawChecksum, kvrpcpb.RawChecksumRequest(ranges=ranges))
    crc = Crc64()
    crc.update(b"x1stays")
    assert (summed.checksum, summed.total_kvs, summed.total_bytes) == (crc.value, 1, 7)
    swap = kvrpcpb.RawCASRequest(key=b"x3", previous_not_exist=True, value=b"new", ttl=LONG_S)
    assert ask(store, TIKV.RawCompareAndSwap, swap).succeed
    assert ttl_of(store, b"x3").ttl > 0
    wait_until("it is swept", lambda: "expired pairs are deleted" in store.members[0].log_text)


def test_a_directory_remembers_whether_its_values_expire(tmp_path: Path) -> None:
    with FakePd() as pd:
        bare = TikvProcess(tmp_path / "tikv0", pd.endpoints).start()
        wait_until("it serves", lambda: "ready to serve" in bare.log_text)
        bare.kill()
        mortal = TtlProcess(bare.home, pd.endpoints).start()
        code, said = mortal.ends()
    assert code == 1
    assert "can't enable ttl on a non-ttl instance" in said


def test_settings_change_while_it_runs(store: Cluster) -> None:
    """What is changed is in effect and shown; what may not change says so in TiKV's words."""
    base = f"http://127.0.0.1:{store.members[0].status_port}"

    def post(change: Any, path: str = "/config") -> tuple[int, str]:
        body = change if isinstance(change, bytes) else json.dumps(change).encode()
        request = urllib.request.Request(base + path, body, method="PUT" if path == "/log-level" else "POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def shown(query: str = "") -> Any:
        with urllib.request.urlopen(f"{base}/config{query}", timeout=10) as answer:
            return json.load(answer)

    assert post({"raftstore.raft-log-gc-threshold": "77", "raftstore.max-peer-down-duration": "5m"}) == (200, "")
    assert shown()["raftstore"]["raft-log-gc-threshold"] == 77
    assert "raft-base-tick-interval" not in shown()["raftstore"]
    assert post({"raftstore.raft-base-tick-interval": "90ms"}) == (200, "")
    assert shown("?full=true")["raftstore"]["raft-base-tick-interval"] == "90ms"
    failed = "failed to update, error: "
    assert post({"storage.enable-ttl": False}) == (500, failed + '"config enable_ttl can not be changed"')
    assert post({"storage.no-such": "1"}) == (500, failed + '"unexpect fields: no_such"')
    assert post({"raftstore.raft-log-gc-threshold": "many"}) == (500, failed + '"failed to parse: many"')
    assert post({"raftstore.raft-election-timeout-ticks": 1})[0] == 500
    assert post([]) == (500, 'failed to decode, error: "wrong format"')
    assert post({"a": []}) == (500, 'failed to decode, error: "array type are not supported"')
    assert post(b"\xff{")[0] == 500
    assert post({"log_level": "debug"}, "/log-level") == (200, "")
    assert shown()["log"]["level"] == "debug"
    assert post({"log_level": "loud"}, "/log-level")[0] == 400


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/region/4242", 404, "region(4242) not found"),
        ("/region/x", 404, "path /region/x not found"),
        ("/region/99999999999999999999", 400, "invalid region id: number too large to fit in target type"),
        ("/no/such", 404, "path not found"),
        ("/config?full=maybe", 400, "provided string was not `true` or `false`"),
    ],
)
def test_what_the_status_server_refuses(store: Cluster, path: str, code: int, text: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{store.members[0].status_port}{path}", timeout=10)
    assert (refused.value.code, refused.value.read().decode()) == (code, text)


def test_a_region_is_shown_as_tikv_shows_it(store: Cluster) -> None:
    place = store.place()
    url = f"http://127.0.0.1:{store.members[0].status_port}/region/{place.region.id}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        meta = json.load(answer)
    assert meta["raft_status"]["soft_state"] == {"leader_id": place.leader.id, "raft_state": "Leader"}
    assert meta["raft_apply"]["applied_index"] >= 5
    assert meta["region_state"]["peers"] == [
        {"id": place.leader.id, "store_id": place.leader.store_id, "role": "Voter", "is_witness": False}
    ]
    assert (meta["group_state"], meta["region_state"]["start_key"]) == ("Ordered", [])


def test_the_clock_of_expiries_is_that_of_the_machine(store: Cluster) -> None:
    put(store, b"clock", b"v", LONG_S)
    left = ttl_of(store, b"clock").ttl
    assert abs(expiry.expiry_of(left, int(time.time())) - expiry.expiry_of(LONG_S, int(time.time()))) <= 60
