"""The PyPI client tikv-python: each operation of its raw client, blocking and asyncio, and what it says of refusals."""

from __future__ import annotations

import asyncio

import pytest
from client_cluster import ClientCluster

import tikv

PAIRS = {b"py-%03d" % i: b"value %d" % i for i in range(700)}  # more than one of its pages and batches


def test_reads_and_writes(cluster: ClientCluster) -> None:
    with tikv.RawClient(cluster.pd_endpoints) as client:
        assert client.get(b"py") is None
        client.put(b"py", b"one")
        assert client.get(b"py") == b"one"
        client.put(b"py", b"")
        assert client.get(b"py") == b""
        client.delete(b"py")
        client.delete(b"py")
        assert client.get(b"py") is None


def test_batches_scans_and_ranges(cluster: ClientCluster) -> None:
    with tikv.RawClient(cluster.pd_endpoints) as client:
        client.put_many(PAIRS)
        assert client.get_many([*PAIRS, b"py-none"]) == PAIRS
        everything = list(client.scan(prefix=b"py-"))
        assert everything == sorted(PAIRS.items())
        assert list(client.scan(prefix=b"py-", reverse=True)) == everything[::-1]
        assert list(client.scan(b"py-010", b"py-020", limit=4)) == everything[10:14]
        assert list(client.scan(b"py-010", b"py-020", limit=4, reverse=True)) == everything[19:15:-1]
        assert list(client.scan_keys(b"py-010", b"py-013")) == [key for key, _ in everything[10:13]]
        client.delete_many(list(PAIRS)[:100])
        client.delete_range(b"py-200", b"py-300")
        kept = everything[100:200] + everything[300:]
        assert list(client.scan(prefix=b"py-")) == kept
        client.delete_range(prefix=b"py-")
        assert list(client.scan(prefix=b"py-")) == []


def test_compare_and_swap(cluster: ClientCluster) -> None:
    with tikv.RawClient(cluster.pd_endpoints, atomic=True) as client:
        assert client.compare_and_swap(b"py-swap", None, b"1") == (True, None)
        assert client.compare_and_swap(b"py-swap", None, b"2") == (False, b"1")
        assert client.compare_and_swap(b"py-swap", b"x", b"2") == (False, b"1")
        assert client.compare_and_swap(b"py-swap", b"1", b"2") == (True, b"1")
        assert client.get(b"py-swap") == b"2"
        client.delete(b"py-swap")
        assert client.compare_and_swap(b"py-swap", b"2", b"3") == (False, None)


def test_asyncio_flavour(cluster: ClientCluster) -> None:
    async def scenario() -> None:
        async with tikv.AsyncRawClient(cluster.pd_endpoints) as client:
            await asyncio.gather(*(client.put(b"aio-%d" % i, b"%d" % i) for i in range(50)))
            assert len(await client.get_many([b"aio-%d" % i for i in range(60)])) == 50
            assert [key async for key in client.scan_keys(prefix=b"aio-4")] == sorted(
                [b"aio-4", *(b"aio-%d" % i for i in range(40, 50))]
            )
            await client.delete_range(prefix=b"aio-")
            assert await client.get(b"aio-1") is None

    asyncio.run(scenario())


def test_a_value_as_large_as_tikv_takes(cluster: ClientCluster) -> None:
    large = bytes(range(256)) * (4 * 4096)  # 4 MiB
    with tikv.RawClient(cluster.pd_endpoints) as client:
        client.put(b"py-large", large)
        assert client.get(b"py-large") == large
        client.delete(b"py-large")


@pytest.mark.parametrize(
    ("key", "value"), [(b"k" * (8 * 1024 + 1), b"v"), (b"py-too-large", b"v" * (9 << 20))], ids=["key", "value"]
)
def test_what_is_too_large_is_refused_and_the_cluster_goes_on(cluster: ClientCluster, key: bytes, value: bytes) -> None:
    with tikv.RawClient(cluster.pd_endpoints, timeout=10) as client:
        with pytest.raises((tikv.ServerError, tikv.RegionError)):
            client.put(key, value)
        client.put(b"py-after", b"fine")
        assert client.get(b"py-after") == b"fine"


def test_a_time_to_live_is_refused_where_it_is_not_enabled(cluster: ClientCluster) -> None:
    with tikv.RawClient(cluster.pd_endpoints) as client, pytest.raises(tikv.ServerError, match="ttl is not enabled"):
        client.put(b"py-ttl", b"v", ttl=10)


def test_finds_the_cluster_by_any_one_endpoint(cluster: ClientCluster) -> None:
    for endpoint in cluster.pd_endpoints:
        with tikv.RawClient(endpoint) as client:
            client.put(b"py-endpoint", endpoint.encode())
            assert client.get(b"py-endpoint") == endpoint.encode()
