"""The load that a bench puts on a cluster through tikv-client, the official Rust client with its Python binding, which
sends every operation as a call of its own. bench/load.py says what the arguments mean and what is printed.

    python with_tikv_client.py PD_ENDPOINT,... put|get|scan|fill|txn-put|transfer IN_FLIGHT KEYS SECONDS
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tikv_client import asynchronous as tikv_client

VALUE = b"x" * 100
FILL_AT_ONCE = 500
SCAN_PAIRS = 100
WARM_UP_S = 0.1

Act = Callable[[Any, int], Awaitable[None]]  # of a client and the number of a key


async def main(endpoints: str, action: str, *numbers: str) -> None:
    in_flight, keys, seconds = int(numbers[0]), int(numbers[1]), float(numbers[2])
    pd = endpoints.split(",")
    if action == "fill":
        await fill(await tikv_client.RawClient.connect(pd), in_flight, keys)
        return
    if action in TRANSACTIONS:
        act, own = partial(TRANSACTIONS[action], await tikv_client.TransactionClient.connect(pd)), in_flight
    else:
        act, own = partial(RAW[action], await tikv_client.RawClient.connect(pd)), 1
    load = Load(act, in_flight, keys // own, own)
    cpu_s = time.process_time()
    warmed = await load.many(WARM_UP_S)  # connections and caches
    began = time.perf_counter()
    took_s = sorted(await load.many(seconds))
    tell(took_s, time.perf_counter() - began, len(warmed), time.process_time() - cpu_s)


def tell(took_s: list[float], seconds: float, warmed: int, cpu_s: float) -> None:
    p50, p99 = (1000 * took_s[int(share * (len(took_s) - 1))] for share in (0.5, 0.99))
    told = {"done": len(took_s), "seconds": seconds, "p50_ms": p50, "p99_ms": p99}
    print(json.dumps(told | {"warmed": warmed, "cpu_s": cpu_s}), flush=True)


def key(number: int) -> bytes:
    return b"bench-%08d" % number


async def put(client: Any, number: int) -> None:
    await client.put(key(number), VALUE)


async def get(client: Any, number: int) -> None:
    if await client.get(key(number)) != VALUE:
        raise SystemExit(f"{key(number)!r} has another value")


async def scan(client: Any, number: int) -> None:
    await client.scan(key(number), None, SCAN_PAIRS)


async def txn_put(client: Any, number: int) -> None:
    transaction = await client.begin()
    await transaction.put(key(number), VALUE)
    await transaction.commit()


async def transfer(client: Any, number: int) -> None:
    """Between two accounts that are in no other transfer."""
    transaction = await client.begin(pessimistic=True)
    accounts = key(number), b"to-" + key(number)
    for account in accounts:
        await transaction.get_for_update(account)
    for account in accounts:
        await transaction.put(account, VALUE)
    await transaction.commit()


RAW: Mapping[str, Act] = {"put": put, "get": get, "scan": scan}
TRANSACTIONS: Mapping[str, Act] = {"txn-put": txn_put, "transfer": transfer}


@dataclass(frozen=True, slots=True)
class Load:
    """Workers that do one operation after another, each on a number drawn of so many; where an operation would conflict
    with another's, each has numbers of its own: every `own`-th."""

    act: Callable[[int], Awaitable[None]]
    workers: int
    numbers: int
    own: int

    async def many(self, seconds: float) -> list[float]:
        """How long each operation took that began within these seconds."""
        took_s: list[float] = []
        until = time.perf_counter() + seconds

        async def work(worker: int) -> None:
            chance = random.Random(worker)
            while (began := time.perf_counter()) < until:
                await self.act(chance.randrange(self.numbers) * self.own + worker % self.own)
                took_s.append(time.perf_counter() - began)

        await asyncio.gather(*(work(number) for number in range(self.workers)))
        return took_s


async def fill(client: Any, workers: int, keys: int) -> None:
    """Every key is written once."""
    began = time.perf_counter()
    firsts = iter(range(0, keys, FILL_AT_ONCE))

    async def work() -> None:
        for first in firsts:
            await client.batch_put({key(each): VALUE for each in range(first, min(first + FILL_AT_ONCE, keys))})

    await asyncio.gather(*(work() for _ in range(workers)))
    print(json.dumps({"done": keys, "seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    os._exit(0)  # the threads of tikv-client do not survive the interpreter's end, and bring the process down with them
