"""A long load at a bounded rate, and what the members hold meanwhile: memory, open files, and the bytes of their data.

The load is of all that a client does: puts of values of several sizes over a bounded set of keys, gets, deletes,
compare-and-swaps, scans; and each sample comes with new connections, so that what a connection leaves behind is seen
too. A member that keeps nothing for ever is level once its caches, logs and tables have their size. So the
growth is told from the first quarter's end on.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.deployment import memory_mb, pd_addresses, standing
from bench.figures import Figure, Results
from bench.plan import BenchFailed
from drillyard.clients.pd import PdClient
from drillyard.clients.tikv import RawClient

TOGETHER = Figure("soak-memory", "memory of the six together under load, proportional, the most", "MB", 1000.0)
GROWTH = Figure("soak-growth", "growth of a member under load, an hour, the most", "MB")
FILES = Figure("soak-files", "open files of a member under load, the most", "")
DATA = Figure("soak-data", "data on a member's disk under load, the most", "MB")

WORKERS, RATE = 16, 200  # calls a second, of all workers
KEYS = 20_000
VALUE_BYTES = (16, 100, 1000, 8000)
SCAN_PAIRS = 100
SAMPLES = 60
SHORTEST_PERIOD_S = 1.0
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One member at one moment."""

    at_s: float
    member: str
    pss_mb: float
    open_files: int
    data_mb: float


@dataclass(slots=True)
class Load:
    """What was done and what failed; a failure ends nothing, because a soak is long and elections happen."""

    done: int = 0
    failed: int = 0
    last_failure: str = ""


def measure(minutes: float, results: Results) -> None:
    """Loads for so long, and tells the growth an hour and the most of everything, of the member that has most."""
    with standing() as deployment:
        members = deployment.members()
        samples, load = asyncio.run(_run(members, minutes * 60))
    if load.failed > load.done / 100:
        raise BenchFailed(f"{load.failed} of {load.done} calls failed under load: {load.last_failure}")
    by_member = [[sample for sample in samples if sample.member == name] for name in members]
    together = [sum(sample.pss_mb for sample in moment) for moment in zip(*by_member, strict=True)]
    results.add(TOGETHER, max(together))
    results.add(GROWTH, max(_mb_an_hour(each) for each in by_member))
    results.add(FILES, max(sample.open_files for sample in samples))
    results.add(DATA, max(sample.data_mb for sample in samples))


def _mb_an_hour(samples: list[Sample]) -> float:
    """From the first quarter's end on, when caches and tables have their size."""
    early, last = samples[len(samples) // 4], samples[-1]
    return (last.pss_mb - early.pss_mb) * 3600 / max(last.at_s - early.at_s, 1.0)


async def _run(members: dict[str, dict[str, Any]], for_s: float) -> tuple[list[Sample], Load]:
    addresses = pd_addresses(members)
    client = RawClient(addresses, timeout_s=TIMEOUT_S)
    began, load = time.monotonic(), Load()
    chance = random.Random(1)  # the same load each time
    workers = [asyncio.create_task(_work(client, load, chance, (began, for_s, WORKERS / RATE))) for _ in range(WORKERS)]
    samples: list[Sample] = []
    period_s = max(SHORTEST_PERIOD_S, for_s / SAMPLES)
    while (gone_s := time.monotonic() - began) < for_s:
        samples += await asyncio.to_thread(_sample, members, gone_s)
        await _connect_anew(addresses)
        print(f"bench: {gone_s / 60:.1f} min: {_said(samples[-len(members) :])}", file=sys.stderr, flush=True)
        await asyncio.sleep(min(period_s, max(0.0, for_s - (time.monotonic() - began))))
    await asyncio.gather(*workers)
    client.close()
    samples += _sample(members, time.monotonic() - began)
    return samples, load


async def _work(client: RawClient, load: Load, chance: random.Random, pace: tuple[float, float, float]) -> None:
    began, for_s, pause_s = pace
    due = time.monotonic() + chance.random() * pause_s
    while time.monotonic() - began < for_s:
        outcome = await _act(client, chance)
        load.done += 1
        if not outcome.is_ok:
            load.failed += 1
            load.last_failure = outcome.reason
        due = max(due + pause_s, time.monotonic() - pause_s)  # what is late is not made up for
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def _act(client: RawClient, chance: random.Random) -> Any:
    key = b"soak-%d" % chance.randrange(KEYS)
    match chance.randrange(20):
        case 0:
            return await client.delete(key)
        case 1:
            return await client.scan(key, b"", SCAN_PAIRS)
        case 2:
            return await client.compare_and_swap(key, None, b"first")
        case number if number < 12:
            return await client.put(key, b"x" * chance.choice(VALUE_BYTES))
        case _:
            return await client.get(key)


async def _connect_anew(addresses: list[str]) -> None:
    """A client that comes, asks every PD member, writes, reads, and goes."""
    client = RawClient(addresses, timeout_s=TIMEOUT_S)
    pds = [PdClient(address, address) for address in addresses]
    try:
        await client.put(b"soak-visitor", b"x")
        for pd in pds:
            await pd.members(timeout_s=TIMEOUT_S)
    finally:
        client.close()
        for pd in pds:
            pd.close()


def _sample(members: dict[str, dict[str, Any]], at_s: float) -> list[Sample]:
    return [_sample_of(name, row, at_s) for name, row in members.items()]


def _sample_of(name: str, row: dict[str, Any], at_s: float) -> Sample:
    _, pss_mb = memory_mb(row["pid"])
    data = Path(row["log_path"]).parents[1] / "data" / name
    return Sample(at_s, name, pss_mb, psutil.Process(row["pid"]).num_fds(), _bytes_under(data) / 1e6)


def _bytes_under(directory: Path) -> int:
    """As they are on the disk now; files may go while they are counted."""
    total = 0
    for file in directory.rglob("*"):
        try:
            total += file.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def _said(samples: Iterable[Sample]) -> str:
    return ", ".join(f"{sample.member} {sample.pss_mb:.0f} MB {sample.open_files} files" for sample in samples)
