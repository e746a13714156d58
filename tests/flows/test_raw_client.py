"""The RawKV client that never retries in silence: each way to fail, and what it says about the write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from stub_cluster import PDS, StubCluster

from drillyard.clients.tikv import Outcome, RawClient, Result
from drillyard.wire import errorpb

Work = Callable[[RawClient, StubCluster], Awaitable[None]]


def with_client(directory: Path, work: Work, timeout_s: float = 20.0) -> None:
    async def run() -> None:
        async with StubCluster(directory) as stub:
            client = RawClient([stub.addresses[name] for name in PDS], timeout_s=timeout_s)
            try:
                await work(client, stub)
            finally:
                client.close()

    asyncio.run(run())


def test_reads_and_writes(tmp_path: Path) -> None:
    async def work(client: RawClient, _: StubCluster) -> None:
        assert (await client.get(b"a")).value is None
        assert (await client.put(b"a", b"1")).is_ok
        assert (await client.get(b"a")).value == b"1"
        assert (await client.put(b"b", b"")).is_ok
        assert (await client.get(b"b")).value == b"", "an empty value is no missing key"
        assert (await client.scan(b"", b"", 10)).pairs == ((b"a", b"1"), (b"b", b""))
        assert (await client.scan(b"", b"", 1)).pairs == ((b"a", b"1"),)
        assert (await client.delete(b"b")).is_ok
        assert (await client.delete_range(b"a", b"z")).is_ok
        assert (await client.scan(b"", b"", 10)).pairs == ()

    with_client(tmp_path, work)


def test_compare_and_swap_tells_what_was_there(tmp_path: Path) -> None:
    async def work(client: RawClient, _: StubCluster) -> None:
        first = await client.compare_and_swap(b"k", None, b"1")
        assert (first.swapped, first.previous) == (True, None)
        refused = await client.compare_and_swap(b"k", None, b"2")
        assert (refused.is_ok, refused.swapped, refused.previous) == (True, False, b"1")
        second = await client.compare_and_swap(b"k", b"1", b"2")
        assert (second.swapped, second.previous) == (True, b"1")

    with_client(tmp_path, work)


REFUSALS = [
    (errorpb.Error(not_leader=errorpb.NotLeader(region_id=2)), Result.FAILED, "not_leader"),
    (errorpb.Error(epoch_not_match=errorpb.EpochNotMatch()), Result.FAILED, "epoch_not_match"),
    (errorpb.Error(server_is_busy=errorpb.ServerIsBusy(reason="full")), Result.FAILED, "server_is_busy"),
    (errorpb.Error(stale_command=errorpb.StaleCommand()), Result.UNKNOWN, "stale_command"),
]


@pytest.mark.parametrize(("error", "result", "kind"), REFUSALS, ids=[kind for _, _, kind in REFUSALS])
def test_a_region_error_is_told_once_and_never_retried(
    tmp_path: Path, error: errorpb.Error, result: Result, kind: str
) -> None:
    async def work(client: RawClient, stub: StubCluster) -> None:
        stub.world.refusal = error
        outcome = await client.put(b"a", b"1")
        assert (outcome.result, outcome.kind) == (result, kind)
        assert outcome.store == stub.addresses["tikv0"]
        assert stub.world.puts == 1
        stub.world.refusal = None
        assert (await client.put(b"a", b"1")).is_ok, "the next call looks the region up again"

    with_client(tmp_path, work)


def test_a_write_without_an_answer_is_unknown_and_a_read_failed(tmp_path: Path) -> None:
    async def work(client: RawClient, stub: StubCluster) -> None:
        assert (await client.put(b"a", b"1")).is_ok
        stub.world.hanging = {"tikv0"}
        lost = await client.put(b"a", b"2")
        assert (lost.result, lost.kind) == (Result.UNKNOWN, "timed-out")
        assert (await client.get(b"a")).result is Result.FAILED

    with_client(tmp_path, work, timeout_s=1.0)


def test_a_write_that_was_never_sent_failed(tmp_path: Path) -> None:
    async def work(client: RawClient, stub: StubCluster) -> None:
        await stub.cut("tikv0")
        outcome: Outcome = await client.put(b"a", b"1")
        assert (outcome.result, outcome.kind) == (Result.FAILED, "refused")

    with_client(tmp_path, work)


def test_without_a_leader_nothing_is_sent(tmp_path: Path) -> None:
    async def work(client: RawClient, stub: StubCluster) -> None:
        stub.world.leader = dict.fromkeys(PDS, "")
        outcome = await client.put(b"a", b"1")
        assert (outcome.result, outcome.kind) == (Result.FAILED, "no-leader")
        assert stub.world.puts == 0

    with_client(tmp_path, work)
