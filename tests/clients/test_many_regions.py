"""Regions that split while clients write, by size and on request; other people's clients then see every row."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import grpc
import pytest
from client_cluster import ClientCluster, eventually
from tikv_client import asynchronous as tikv_client

import tikv
from drillyard.wire import keys, kvrpcpb, metapb
from drillyard.wire.services import TIKV

SMALL = {
    "coprocessor.region-split-size": "32KiB",
    "coprocessor.region-max-size": "48KiB",
    "raftstore.split-region-check-tick-interval": "200ms",
}
ROWS = {b"row-%04d" % number: b"%04d" % number * 25 for number in range(2000)}


def reconfigure(cluster: ClientCluster, values: dict[str, str]) -> None:
    for row in cluster.cluster.status().members:
        if row.role == "tikv":
            url = f"http://{row.addresses['status']}/config"
            request = urllib.request.Request(url, json.dumps(values).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=5) as answer:
                assert answer.status == 200


def regions(cluster: ClientCluster) -> list[dict[str, Any]]:
    found = (cluster.ask("regions") or {}).get("regions") or []
    return sorted(found, key=lambda region: str(region["start_key"]))


@contextmanager
def load(cluster: ClientCluster) -> Iterator[dict[bytes, bytes]]:
    """Rows that are written while the regions change; what was acknowledged is in the mapping."""
    written: dict[bytes, bytes] = {}
    is_over = threading.Event()

    def write() -> None:
        with tikv.RawClient(cluster.pd_endpoints) as client:
            number = 0
            while not is_over.is_set():
                key = b"row-%04d-%d" % (number * 37 % 2000, number)
                client.put(key, b"late")
                written[key] = b"late"
                number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        is_over.set()
        writer.join(30)
        assert not writer.is_alive()


@pytest.fixture(scope="module")
def rows(cluster: ClientCluster) -> dict[bytes, bytes]:
    """What the cluster holds once it has been split by size under load."""
    reconfigure(cluster, SMALL)
    with load(cluster) as written, tikv.RawClient(cluster.pd_endpoints) as client:
        client.put_many(ROWS)
        eventually(lambda: len(regions(cluster)) >= 5, "the rows are in five regions or more")
    return {**ROWS, **written}


def are_whole(found: list[dict[str, Any]]) -> bool:
    """Regions without a gap, each led and on three stores; PD hears of the two halves of a split one by one."""
    return (
        bool(found)
        and found[0]["start_key"] == found[-1]["end_key"] == ""
        and all(left["end_key"] == right["start_key"] for left, right in pairwise(found))
        and all(region.get("leader") and len(region["peers"]) == 3 for region in found)
    )


def check(cluster: ClientCluster, rows: dict[bytes, bytes]) -> None:
    eventually(lambda: are_whole(regions(cluster)), "the regions tile the keys, each led and on three stores")
    with tikv.RawClient(cluster.pd_endpoints) as client:
        assert list(client.scan(prefix=b"row-")) == sorted(rows.items())
        assert list(client.scan(prefix=b"row-", reverse=True)) == sorted(rows.items(), reverse=True)


def test_every_row_is_seen_once_over_many_regions(cluster: ClientCluster, rows: dict[bytes, bytes]) -> None:
    check(cluster, rows)

    async def scan() -> Any:
        client = await tikv_client.RawClient.connect(cluster.pd_endpoints)
        return await client.scan(b"row-", b"row.", 10_000)

    assert asyncio.run(scan()) == sorted(rows.items())


def test_a_client_has_a_region_split(cluster: ClientCluster, rows: dict[bytes, bytes]) -> None:
    stores = {s["store"]["id"]: s["store"]["address"] for s in (cluster.ask("stores") or {})["stores"]}
    at = [b"row-zz", b"row-zzz"]

    def request_of(region: dict[str, Any]) -> kvrpcpb.SplitRegionRequest:
        epoch = metapb.RegionEpoch(**region["epoch"])
        peer = metapb.Peer(id=region["leader"]["id"], store_id=region["leader"]["store_id"])
        context = kvrpcpb.Context(region_id=region["id"], region_epoch=epoch, peer=peer)
        return kvrpcpb.SplitRegionRequest(context=context, split_keys=at, is_raw_kv=True)

    def split(request: kvrpcpb.SplitRegionRequest) -> kvrpcpb.SplitRegionResponse:
        with grpc.insecure_channel(stores[request.context.peer.store_id]) as channel:
            call = channel.unary_unary(
                TIKV.SplitRegion.path,
                request_serializer=kvrpcpb.SplitRegionRequest.SerializeToString,
                response_deserializer=kvrpcpb.SplitRegionResponse.FromString,
            )
            answer: kvrpcpb.SplitRegionResponse = call(request, timeout=10)
            return answer

    def split_last() -> tuple[kvrpcpb.SplitRegionRequest, kvrpcpb.SplitRegionResponse] | None:
        """Not while PD's picture of the last region is old: under the load it may be split by size at any moment."""
        found = regions(cluster)
        if not are_whole(found):
            return None
        request = request_of(found[-1])
        answer = split(request)
        if answer.region_error.HasField("epoch_not_match") or answer.region_error.HasField("not_leader"):
            return None
        return request, answer

    with load(cluster) as written:
        request, answer = eventually(split_last, "the last region is split")
        assert not answer.HasField("region_error"), answer.region_error
        assert [region.end_key for region in answer.regions] == [*at, b""]
        assert {each.region_epoch.version for each in answer.regions} == {request.context.region_epoch.version + 2}
        again = split(request)
        assert {r.id for r in again.region_error.epoch_not_match.current_regions} >= {request.context.region_id}
        eventually(lambda: regions(cluster)[-1]["start_key"] == keys.to_hex(at[-1]), "PD knows the new regions")
    rows |= written
    check(cluster, rows)


def test_all_of_it_is_there_after_every_member_was_killed(cluster: ClientCluster, rows: dict[bytes, bytes]) -> None:
    cluster.kill_all()
    cluster.start(*cluster.all_members())
    cluster.heal()
    check(cluster, rows)


def test_a_range_over_many_regions_is_deleted_and_no_more(cluster: ClientCluster, rows: dict[bytes, bytes]) -> None:
    start, end = b"row-0100", b"row-1900"
    assert sum(start < keys.from_hex(region["start_key"]) < end for region in regions(cluster)) >= 3
    with tikv.RawClient(cluster.pd_endpoints) as client:
        client.delete_range(start, end)
    check(cluster, {key: value for key, value in rows.items() if not start <= key < end})
