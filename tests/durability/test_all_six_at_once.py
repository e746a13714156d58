"""All six members die in the same moment, and what was acknowledged is there when they are back.

SIGKILL leaves the page cache, a power cut does not: in its variants each write-ahead log is cut to what was durable at
its last completed sync, or has garbage behind it. A cluster whose stores acknowledge before the disk must not pass.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from six_members import SixMembers, Writer

PAGE = 4096


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[SixMembers]:
    cluster = SixMembers(tmp_path)
    yield cluster
    cluster.kill_all()


def nothing_behind(durable: bytes, lost: bytes) -> bytes:
    return durable


def pages_missing(durable: bytes, lost: bytes) -> bytes:
    """Pages arrive in any order, or hold what was there before."""
    pages = [lost[start : start + PAGE] for start in range(0, len(lost), PAGE)]
    return durable + b"".join(page if random.random() < 0.5 else random.randbytes(len(page)) for page in pages)


def test_sigkill_of_all_six_loses_nothing_that_was_acknowledged(cluster: SixMembers) -> None:
    async def scenario() -> None:
        writer = Writer(cluster)
        for _ in range(2):
            cluster.start()
            await writer.write_until(acknowledged=400)
        cluster.start()
        assert len(writer.acknowledged) >= 800
        assert await writer.lost() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("disk", [nothing_behind, pages_missing])
def test_a_power_cut_for_all_six_loses_nothing_that_was_acknowledged(
    cluster: SixMembers, disk: Callable[[bytes, bytes], bytes]
) -> None:
    async def scenario() -> None:
        writer = Writer(cluster)
        for _ in range(2):
            cluster.start()
            await writer.write_until(acknowledged=400)
            cluster.lose_what_was_not_synced(disk)
        cluster.start()
        assert len(writer.acknowledged) >= 800
        assert await writer.lost() == []

    asyncio.run(scenario())


def test_stores_that_acknowledge_before_the_disk_are_caught(cluster: SixMembers) -> None:
    async def scenario() -> None:
        writer = Writer(cluster)
        cluster.start()
        await cluster.until_three_voters()
        await writer.write_until(acknowledged=100)  # a cluster to come back to
        cluster.start(bug=True)
        await writer.write_until(acknowledged=400)
        assert cluster.lose_what_was_not_synced(nothing_behind) > 0
        cluster.start()
        assert await writer.lost() != []

    asyncio.run(scenario())
