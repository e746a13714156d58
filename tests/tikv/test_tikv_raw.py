"""RawKV as clients see it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tikv_cluster import Cluster
from tikv_members import call, kind_of, wait_until

from drillyard.emulator.store.checksum import Crc64
from drillyard.wire import health, kvrpcpb, metapb, pdpb, tikvpb
from drillyard.wire.services import HEALTH, TIKV
from tikv import RawClient

NO_TTL = "ttl is not enabled, but get put request with ttl"


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Any]:
    client = RawClient(cluster.pd.endpoints)
    client.delete_range(b"")
    yield client
    client.close()


def test_put_get_delete(client: Any) -> None:
    assert client.get(b"k") is None
    client.put(b"k", b"v")
    assert client.get(b"k") == b"v"
    client.put(b"k", b"")
    assert client.get(b"k") == b""
    client.delete(b"k")
    client.delete(b"k")
    assert client.get(b"k") is None


def test_batches(client: Any) -> None:
    pairs = {b"k%04d" % number: b"v%d" % number for number in range(1000)}
    client.put_many(pairs)
    assert client.get_many([*pairs, b"missing"]) == pairs
    client.delete_many([b"k0000", b"k0001", b"missing"])
    assert client.get_many([b"k0000", b"k0001", b"k0002"]) == {b"k0002": b"v2"}


def test_scans_both_ways(client: Any) -> None:
    pairs = [(b"k%04d" % number, b"v%d" % number) for number in range(700)]
    client.put_many(dict(pairs))
    client.put(b"j", b"before")
    client.put(b"l", b"behind")
    assert list(client.scan(b"k", b"l")) == pairs
    assert list(client.scan(b"k", b"l", reverse=True)) == pairs[::-1]
    assert list(client.scan(b"k0100", b"k0103")) == pairs[100:103]
    assert list(client.scan(b"k0100", b"k0103", reverse=True)) == pairs[100:103][::-1]
    assert list(client.scan(b"k", limit=3)) == pairs[:3]
    assert list(client.scan()) == [(b"j", b"before"), *pairs, (b"l", b"behind")]
    assert list(client.scan_keys(b"k0697")) == [b"k0697", b"k0698", b"k0699", b"l"]


def test_delete_range(client: Any) -> None:
    client.put_many({b"k%d" % number: b"" for number in range(10)})
    client.delete_range(b"k3", b"k7")
    assert list(client.scan_keys()) == [b"k0", b"k1", b"k2", b"k7", b"k8", b"k9"]
    client.delete_range(b"k8")
    assert list(client.scan_keys()) == [b"k0", b"k1", b"k2", b"k7"]
    client.put(b"k4", b"again")
    assert client.get(b"k4") == b"again"


def test_compare_and_swap(cluster: Cluster, client: Any) -> None:
    client = RawClient(cluster.pd.endpoints, atomic=True)
    first = client.compare_and_swap(b"k", None, b"1")
    again = client.compare_and_swap(b"k", None, b"2")
    right = client.compare_and_swap(b"k", b"1", b"2")
    wrong = client.compare_and_swap(b"k", b"1", b"3")
    assert [result.swapped for result in (first, again, right, wrong)] == [True, False, True, False]
    assert [result.previous for result in (first, again, right, wrong)] == [None, b"1", b"1", b"2"]
    assert client.get(b"k") == b"2"
    client.close()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"region_id": 999999}, "region_not_found"),
        ({"peer": metapb.Peer(store_id=99)}, "store_not_match"),
        ({"peer": metapb.Peer(id=99)}, "mismatch_peer_id"),
        ({"region_epoch": metapb.RegionEpoch(version=99)}, "epoch_not_match"),
    ],
)
def test_requests_in_the_wrong_place(cluster: Cluster, change: dict[str, Any], kind: str) -> None:
    place = cluster.place()
    context = place.context(**change)
    get = call(place.address, TIKV.RawGet, kvrpcpb.RawGetRequest(context=context, key=b"k"))
    put = call(place.address, TIKV.RawPut, kvrpcpb.RawPutRequest(context=context, key=b"k", value=b"v"))
    scan = call(place.address, TIKV.RawScan, kvrpcpb.RawScanRequest(context=context, limit=1))
    assert [kind_of(answer.region_error) for answer in (get, put, scan)] == [kind] * 3
    if kind == "epoch_not_match":
        (known,) = get.region_error.epoch_not_match.current_regions
        assert known == place.region


def test_a_follower_names_the_leader(cluster: Cluster) -> None:
    place = cluster.place()
    follower = next(peer for peer in place.region.peers if peer.id != place.leader.id)
    context = place.context()
    context.peer.CopyFrom(follower)
    address = cluster.member(follower.store_id).address
    answer = call(address, TIKV.RawGet, kvrpcpb.RawGetRequest(context=context, key=b"k"))
    assert answer.region_error.not_leader.leader == place.leader


@pytest.mark.parametrize(
    ("request_", "method", "text"),
    [
        (kvrpcpb.RawPutRequest(key=b"k", ttl=5), TIKV.RawPut, NO_TTL),
        (kvrpcpb.RawCASRequest(key=b"k", ttl=5), TIKV.RawCompareAndSwap, NO_TTL),
        (kvrpcpb.RawBatchPutRequest(pairs=[kvrpcpb.KvPair(key=b"k")], ttls=[5]), TIKV.RawBatchPut, NO_TTL),
        (kvrpcpb.RawGetKeyTTLRequest(key=b"k"), TIKV.RawGetKeyTTL, "get ttl on non-ttl store"),
        (kvrpcpb.RawPutRequest(key=b"k", cf="raft"), TIKV.RawPut, "invalid cf name: raft"),
        (kvrpcpb.RawGetRequest(key=b"k", cf="nosuch"), TIKV.RawGet, "invalid cf name: nosuch"),
        (kvrpcpb.RawPutRequest(key=b"k" * 8193), TIKV.RawPut, "max key size exceeded, size: 8193, limit: 8192"),
        (
            kvrpcpb.RawDeleteRequest(key=b"k" * 8193),
            TIKV.RawDelete,
            "max key size exceeded, size: 8193, limit: 8192",
        ),
        (
            kvrpcpb.RawChecksumRequest(algorithm=7),  # type: ignore[arg-type]
            TIKV.RawChecksum,
            "unknown checksum algorithm 7",
        ),
    ],
)
def test_requests_that_no_store_serves(cluster: Cluster, request_: Any, method: Any, text: str) -> None:
    place = cluster.place()
    request_.context.CopyFrom(place.context())
    answer = call(place.address, method, request_)
    assert answer.error == text
    assert not answer.HasField("region_error")


def test_another_api_version_is_refused(cluster: Cluster) -> None:
    place = cluster.place()
    context = place.context(api_version=kvrpcpb.APIVersion.V2)
    answer = call(place.address, TIKV.RawGet, kvrpcpb.RawGetRequest(context=context, key=b"k"))
    assert answer.error == (
        "Api version in request does not match with TiKV storage, cmd: raw_get, storage: V1, request: V2"
    )
    scan = call(place.address, TIKV.RawScan, kvrpcpb.RawScanRequest(context=context, limit=1))
    assert scan.kvs[0].error.abort == (
        "Error(ApiVersionNotMatched { cmd: raw_scan, storage_api_version: V1, req_api_version: V2 })"
    )


def test_a_version_that_is_none_counts_as_the_first(cluster: Cluster) -> None:
    place = cluster.place()
    context = kvrpcpb.Context.FromString(place.context().SerializeToString() + b"\xa8\x01\x63")  # api_version = 99
    assert context.api_version == 99
    assert not call(place.address, TIKV.RawGet, kvrpcpb.RawGetRequest(context=context, key=b"k")).error


def test_a_range_that_ends_before_it_starts(cluster: Cluster) -> None:
    place = cluster.place()
    delete = kvrpcpb.RawDeleteRangeRequest(context=place.context(), start_key=b"b", end_key=b"a")
    refused = call(place.address, TIKV.RawDeleteRange, delete).region_error
    assert refused.message == "invalid delete range command, start_key: [98], end_key: [97]"
    ranges = [kvrpcpb.KeyRange(start_key=b"b", end_key=b"a")]
    scan = kvrpcpb.RawBatchScanRequest(context=place.context(), ranges=ranges, each_limit=1)
    assert "Invalid KeyRanges" in call(place.address, TIKV.RawBatchScan, scan).kvs[0].error.abort


def test_a_batch_of_scans(cluster: Cluster, client: Any) -> None:
    client.put_many({b"k%d" % number: b"v%d" % number for number in range(10)})
    place = cluster.place()

    def scanned(*bounds: tuple[bytes, bytes], reverse: bool = False) -> list[bytes]:
        ranges = [kvrpcpb.KeyRange(start_key=start, end_key=end) for start, end in bounds]
        request = kvrpcpb.RawBatchScanRequest(
            context=place.context(), ranges=ranges, each_limit=2, key_only=True, reverse=reverse
        )
        answer = call(place.address, TIKV.RawBatchScan, request)
        assert not any(pair.value for pair in answer.kvs)
        return [pair.key for pair in answer.kvs]

    assert scanned((b"k0", b"k1"), (b"k5", b"k9")) == [b"k0", b"k5", b"k6"]
    assert scanned((b"k8", b""), (b"k9", b"")) == [b"k8", b"k9"]  # an open end is the next one's start
    assert scanned((b"k9", b"k5"), (b"k2", b"k0"), reverse=True) == [b"k8", b"k7", b"k1", b"k0"]


def test_checksums(cluster: Cluster, client: Any) -> None:
    client.put_many({b"k1": b"v1", b"k2": b"v2", b"k3": b"x" * 100_000})
    place = cluster.place()

    def summed(*bounds: tuple[bytes, bytes]) -> tuple[int, int, int]:
        ranges = [kvrpcpb.KeyRange(start_key=start, end_key=end) for start, end in bounds]
        answer = call(
            place.address, TIKV.RawChecksum, kvrpcpb.RawChecksumRequest(context=place.context(), ranges=ranges)
        )
        return answer.checksum, answer.total_kvs, answer.total_bytes

    first, second = crc_of(b"k1v1"), crc_of(b"k2v2")
    assert summed((b"k1", b"k3")) == (first ^ second, 2, 8)
    assert summed((b"k1", b"k2"), (b"k2", b"k3")) == (first ^ second, 2, 8)
    assert summed((b"", b"")) == (first ^ second ^ crc_of(b"k3" + b"x" * 100_000), 3, 8 + 100_002)
    assert summed((b"z", b"")) == (0, 0, 0)


def crc_of(data: bytes) -> int:
    crc = Crc64()
    crc.update(data)
    return crc.value


def test_health(cluster: Cluster) -> None:
    address = cluster.place().address
    assert call(address, HEALTH.Check, health.HealthCheckRequest()).status == 1
    with pytest.raises(grpc.RpcError) as unknown:
        call(address, HEALTH.Check, health.HealthCheckRequest(service="no such"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    with grpc.insecure_channel(address) as channel:
        stub = channel.unary_stream(
            HEALTH.Watch.path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=health.HealthCheckResponse.FromString,
        )
        for service, status in (("", 1), ("no such", 3)):
            watch = stub(health.HealthCheckRequest(service=service), timeout=10)
            assert next(watch).status == status
            watch.cancel()


def test_the_largest_keys_and_values(cluster: Cluster) -> None:
    place = cluster.place()
    key = b"k" * 8192
    fits = kvrpcpb.RawPutRequest(context=place.context(), key=key, value=b"v" * ((8 << 20) - 9000))
    assert not call(place.address, TIKV.RawPut, fits).HasField("region_error")
    over = kvrpcpb.RawPutRequest(context=place.context(), key=b"k", value=b"v" * (8 << 20))
    answer = call(place.address, TIKV.RawPut, over)
    assert answer.region_error.raft_entry_too_large.entry_size > 8 << 20
    delete = kvrpcpb.RawDeleteRequest(context=place.context(), key=key)
    assert not call(place.address, TIKV.RawDelete, delete).HasField("region_error")


def test_an_answer_that_no_message_holds_is_refused(cluster: Cluster) -> None:
    place = cluster.place()
    context = place.context()
    keys = [b"large%d" % number for number in range(7)]
    for key in keys:
        put = kvrpcpb.RawPutRequest(context=context, key=key, value=b"v" * ((8 << 20) - 9000))
        assert not call(place.address, TIKV.RawPut, put).HasField("region_error")
    scan = kvrpcpb.RawScanRequest(context=context, start_key=b"large", limit=10)
    assert "ask for less" in call(place.address, TIKV.RawScan, scan).kvs[0].error.abort
    several = kvrpcpb.RawBatchGetRequest(context=context, keys=keys)
    assert "ask for less" in call(place.address, TIKV.RawBatchGet, several).pairs[0].error.abort
    ranges = [kvrpcpb.KeyRange(start_key=b"large0", end_key=b"large4"), kvrpcpb.KeyRange(start_key=b"large4")]
    apart = kvrpcpb.RawBatchScanRequest(context=context, ranges=ranges, each_limit=5)
    assert "ask for less" in call(place.address, TIKV.RawBatchScan, apart).kvs[0].error.abort
    keys_only = kvrpcpb.RawScanRequest(context=context, start_key=b"large", limit=7, key_only=True)
    assert [pair.key for pair in call(place.address, TIKV.RawScan, keys_only).kvs] == keys
    remove = kvrpcpb.RawBatchDeleteRequest(context=context, keys=keys)
    assert not call(place.address, TIKV.RawBatchDelete, remove).HasField("region_error")


def test_bytes_that_are_no_message(cluster: Cluster) -> None:
    place = cluster.place()
    with grpc.insecure_channel(place.address) as channel:
        stub = channel.unary_unary(TIKV.RawPut.path)
        with pytest.raises(grpc.RpcError) as raised:
            stub(b"\xff\xff\xff", timeout=5)
        assert raised.value.code() is grpc.StatusCode.INTERNAL
        unknown = channel.unary_unary("/tikvpb.Tikv/NoSuchMethod")
        with pytest.raises(grpc.RpcError) as raised:
            unknown(b"", timeout=5)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    empty = call(place.address, TIKV.RawPut, kvrpcpb.RawPutRequest())
    assert kind_of(empty.region_error) == "store_not_match"


# ---- BatchCommands ----


def batch(address: str, messages: list[tikvpb.BatchCommandsRequest]) -> dict[int, Any]:
    """Every answer by its request id."""
    wanted = {request_id for message in messages for request_id in message.request_ids}
    answers: dict[int, Any] = {}
    method = TIKV.BatchCommands
    with grpc.insecure_channel(address) as channel:
        stub = channel.stream_stream(
            method.path,
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=method.response.FromString,
        )
        for message in stub(iter(messages), timeout=20):
            answers |= dict(zip(message.request_ids, message.responses, strict=True))
            if answers.keys() >= wanted:
                break
    return answers


def test_a_batch_carries_many_requests(cluster: Cluster) -> None:
    place = cluster.place()
    context = place.context()
    request = tikvpb.BatchCommandsRequest.Request
    puts = tikvpb.BatchCommandsRequest(
        requests=[
            request(raw_put=kvrpcpb.RawPutRequest(context=context, key=b"b%d" % number, value=b"v%d" % number))
            for number in range(300)
        ],
        request_ids=range(1000, 1300),
    )
    answers = batch(place.address, [puts])
    assert {answer.WhichOneof("cmd") for answer in answers.values()} == {"raw_put"}
    assert not any(answer.raw_put.HasField("region_error") for answer in answers.values())
    mixed = tikvpb.BatchCommandsRequest(
        requests=[
            request(raw_get=kvrpcpb.RawGetRequest(context=context, key=b"b7")),
            request(empty=tikvpb.BatchCommandsEmptyRequest(test_id=42)),
            request(raw_scan=kvrpcpb.RawScanRequest(context=context, start_key=b"b1", end_key=b"b2", limit=2)),
            request(raw_delete_range=kvrpcpb.RawDeleteRangeRequest(context=context, start_key=b"x", end_key=b"y")),
            request(get=kvrpcpb.GetRequest(context=context, key=b"k", version=1)),
            request(prewrite=kvrpcpb.PrewriteRequest(context=context)),
            request(coprocessor={"context": context}),
        ],
        request_ids=[5, 6, 7, 8, 9, 10, 11],
    )
    answers = batch(place.address, [mixed])
    arms = {number: answer.WhichOneof("cmd") for number, answer in answers.items()}
    assert arms == {
        5: "raw_get",
        6: "empty",
        7: "raw_scan",
        8: "raw_delete_range",
        9: "get",
        10: "prewrite",
        11: "coprocessor",
    }
    assert answers[5].raw_get.value == b"v7"
    assert answers[6].empty.test_id == 42
    assert [pair.key for pair in answers[7].raw_scan.kvs] == [b"b1", b"b10"]
    assert answers[9].get.not_found
    assert not answers[10].prewrite.errors
    assert "does not serve coprocessor" in answers[11].coprocessor.other_error


@pytest.mark.parametrize("method", [TIKV.KvImport, TIKV.Coprocessor])
def test_what_is_not_served_is_refused_in_words(cluster: Cluster, method: Any) -> None:
    answer = call(cluster.place().address, method, method.request())
    assert "does not serve" in str(answer)


# ---- what else it answers ----


def test_the_status_server(cluster: Cluster) -> None:
    member = cluster.members[0]

    def page(path: str) -> tuple[int, bytes]:
        with urllib.request.urlopen(f"http://127.0.0.1:{member.status_port}{path}", timeout=5) as answer:
            return answer.status, answer.read()

    assert page("/status") == (200, b"")
    metrics = page("/metrics")[1].decode()
    for name in (
        'tikv_server_info{version="8.1.0"',
        'tikv_store_size_bytes{type="capacity"}',
        'tikv_raftstore_region_count{type="leader"}',
        "process_start_time_seconds",
        "tikv_grpc_msg_duration_seconds",
    ):
        assert name in metrics
    assert b'"region-split-size"' in page("/config")[1]
    assert b'"engine":"raft-kv"' in page("/config")[1]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        page("/nosuch")


def test_health_is_serving(cluster: Cluster) -> None:
    from drillyard.wire import health
    from drillyard.wire.services import HEALTH

    answer = call(cluster.members[0].address, HEALTH.Check, health.HealthCheckRequest())
    assert answer.status == health.HealthCheckResponse.SERVING


def test_pd_is_told_what_it_decides_by(cluster: Cluster) -> None:
    stores = cluster.pd.snapshot(lambda mind: dict(mind.stores))
    assert len(stores) == 3
    for store in stores.values():
        assert store.version == "8.1.0"
        assert store.git_hash.startswith("drillyard-")
        assert store.status_address
        assert store.start_timestamp > 0

    def beats() -> list[pdpb.StoreStats]:
        return list(cluster.pd.snapshot(lambda mind: dict(mind.beats)).values())

    wait_until("the next heartbeats", lambda: [stats.region_count for stats in beats()] == [1, 1, 1])
    for stats in beats():
        assert stats.capacity > stats.available > 0
