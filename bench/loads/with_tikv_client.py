"""The load that a bench puts on a cluster through tikv-client, the official Rust client with its Python binding, which
sends every operation as a call of its own. bench/load.py says what the arguments mean and what is printed.

    python with_tikv_client.py PD_ENDPOINT,... put|get|fill|scan IN_FLIGHT KEYS SECONDS
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tikv_client import asynchronous as tikv_client

VALUE = b"x" * 100
FILL_AT_ONCE = 500
SCAN_PAIRS = 100
WARM_UP_S = 0.1


async def main(endpoints: str, action: str, *numbers: str) -> None:
    in_flight, keys, seconds = int(numbers[0]), int(numbers[1]), float(numbers[2])
    client = await tikv_client.RawClient.connect(endpoints.split(","))
    if action == "fill":
        await fill(client, in_flight, keys)
        return
    act = {"put": put, "get": get, "scan": scan}[action]
    await many(lambda number: act(client, number), in_flight, keys, WARM_UP_S)  # connections and caches
    began = time.perf_counter()
    took_s = sorted(await many(lambda number: act(client, number), in_flight, keys, seconds))
    tell(len(took_s), time.perf_counter() - began, took_s)


def tell(done: int, seconds: float, took_s: list[float]) -> None:
    p50, p99 = (1000 * took_s[int(share * (len(took_s) - 1))] if took_s else 0.0 for share in (0.5, 0.99))
    print(json.dumps({"done": done, "seconds": seconds, "p50_ms": p50, "p99_ms": p99}), flush=True)


def key(number: int) -> bytes:
    return b"bench-%08d" % number


async def put(client: Any, number: int) -> None:
    await client.put(key(number), VALUE)


async def get(client: Any, number: int) -> None:
    if await client.get(key(number)) != VALUE:
        raise SystemExit(f"{key(number)!r} has another value")


async def scan(client: Any, number: int) -> None:
    await client.scan(key(number), None, SCAN_PAIRS)


async def many(act: Callable[[int], Awaitable[None]], workers: int, keys: int, seconds: float) -> list[float]:
    """So many workers do one operation after another for so long; how long each operation took."""
    took_s: list[float] = []
    until = time.perf_counter() + seconds

    async def work(number: int) -> None:
        chance = random.Random(number)
        while (began := time.perf_counter()) < until:
            await act(chance.randrange(keys))
            took_s.append(time.perf_counter() - began)

    await asyncio.gather(*(work(number) for number in range(workers)))
    return took_s


async def fill(client: Any, workers: int, keys: int) -> None:
    """Every key is written once."""
    began = time.perf_counter()
    firsts = iter(range(0, keys, FILL_AT_ONCE))

    async def work() -> None:
        for first in firsts:
            await client.batch_put({key(each): VALUE for each in range(first, min(first + FILL_AT_ONCE, keys))})

    await asyncio.gather(*(work() for _ in range(workers)))
    tell(keys, time.perf_counter() - began, [])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    os._exit(0)  # the threads of tikv-client do not survive the interpreter's end, and bring the process down with them
