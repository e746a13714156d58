"""What `drillyard conformance` has the PyPI client tikv-python do, in a process of its own: its raw interface, blocking
and asyncio. Usage: with_tikv_python.py raw|raw-asyncio PD_ENDPOINT,… Each check is told by one line of JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from functools import partial

import tikv

PAIRS = {b"py-%03d" % i: b"value %d" % i for i in range(700)}  # more than one of its pages and batches


def tell(name: str, act: Callable[[], None]) -> None:
    try:
        act()
    except Exception as error:
        print(json.dumps({"check": name, "passed": False, "why": f"{type(error).__name__}: {error}"}), flush=True)
    else:
        print(json.dumps({"check": name, "passed": True}), flush=True)


def expect(got: object, wanted: object) -> None:
    if got != wanted:
        raise AssertionError(f"got {got!r:.200}, wanted {wanted!r:.200}")


def reads_and_writes(client: tikv.RawClient) -> None:
    expect(client.get(b"py"), None)
    client.put(b"py", b"one")
    expect(client.get(b"py"), b"one")
    client.put(b"py", b"")
    expect(client.get(b"py"), b"")
    client.delete(b"py")
    client.delete(b"py")
    expect(client.get(b"py"), None)


def batches_and_scans(client: tikv.RawClient) -> None:
    client.put_many(PAIRS)
    expect(client.get_many([*PAIRS, b"py-none"]), PAIRS)
    everything = list(client.scan(prefix=b"py-"))
    expect(everything, sorted(PAIRS.items()))
    expect(list(client.scan(prefix=b"py-", reverse=True)), everything[::-1])
    expect(list(client.scan(b"py-010", b"py-020", limit=4)), everything[10:14])
    expect(list(client.scan(b"py-010", b"py-020", limit=4, reverse=True)), everything[19:15:-1])
    expect(list(client.scan_keys(b"py-010", b"py-013")), [key for key, _ in everything[10:13]])


def deletes(client: tikv.RawClient) -> None:
    client.delete_many(list(PAIRS)[:100])
    client.delete_range(b"py-200", b"py-300")
    everything = sorted(PAIRS.items())
    expect(list(client.scan(prefix=b"py-")), everything[100:200] + everything[300:])
    client.delete_range(prefix=b"py-")
    expect(list(client.scan(prefix=b"py-")), [])


def compares_and_swaps(endpoints: list[str]) -> None:
    with tikv.RawClient(endpoints, atomic=True) as client:
        client.delete(b"py-swap")
        expect(client.compare_and_swap(b"py-swap", None, b"1"), (True, None))
        expect(client.compare_and_swap(b"py-swap", None, b"2"), (False, b"1"))
        expect(client.compare_and_swap(b"py-swap", b"1", b"2"), (True, b"1"))
        expect(client.get(b"py-swap"), b"2")


def checksums(client: tikv.RawClient) -> None:
    client.put(b"py-sum-1", b"one")
    client.put(b"py-sum-2", b"two")
    told = client.checksum(prefix=b"py-sum-")
    expect((told.keys, told.size), (2, 22))


def large_values(client: tikv.RawClient) -> None:
    large = bytes(range(256)) * (4 * 4096)  # 4 MiB
    client.put(b"py-large", large)
    expect(client.get(b"py-large") == large, True)
    client.delete(b"py-large")


def refuses_a_time_to_live(client: tikv.RawClient) -> None:
    try:
        client.put(b"py-ttl", b"v", ttl=10)
    except tikv.ServerError as error:
        expect("ttl is not enabled" in str(error), True)
    else:
        raise AssertionError("it was taken where it is not enabled")


def finds_by(endpoint: str) -> None:
    with tikv.RawClient(endpoint) as client:
        expect(client.get(b"py-none"), None)


def asyncio_flavour(endpoints: list[str]) -> None:
    async def scenario() -> None:
        async with tikv.AsyncRawClient(endpoints) as client:
            await asyncio.gather(*(client.put(b"aio-%02d" % i, b"%d" % i) for i in range(50)))
            expect(len(await client.get_many([b"aio-%02d" % i for i in range(60)])), 50)
            expect([key async for key in client.scan_keys(prefix=b"aio-4")], [b"aio-4%d" % i for i in range(10)])
            await client.delete_range(prefix=b"aio-")
            expect(await client.get(b"aio-01"), None)

    asyncio.run(scenario())


def main(area: str, endpoints: list[str]) -> None:
    if area == "raw-asyncio":
        tell("50 puts at once, reads, scan, delete range", lambda: asyncio_flavour(endpoints))
        return
    with tikv.RawClient(endpoints) as client:
        tell("get, put, delete", lambda: reads_and_writes(client))
        tell("put_many, get_many, scans both ways", lambda: batches_and_scans(client))
        tell("delete_many, delete_range", lambda: deletes(client))
        tell("compare_and_swap", lambda: compares_and_swaps(endpoints))
        tell("checksum", lambda: checksums(client))
        tell("a value of 4 MiB", lambda: large_values(client))
        tell("a time to live is refused where it is not enabled", lambda: refuses_a_time_to_live(client))
    for number, endpoint in enumerate(endpoints, start=1):
        tell(f"the cluster is found by its endpoint {number}", partial(finds_by, endpoint))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","))
