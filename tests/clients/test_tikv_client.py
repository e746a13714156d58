"""The PyPI client tikv-client (Rust inside): every raw operation, and service through faults.

It repeats by itself, so it is no witness of linearizability; what it says was written must be there afterwards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from client_cluster import SERVED_S, ClientCluster
from client_faults import FAULTS, Fault
from tikv_client import asynchronous as tikv_client

CALL_S = 5.0  # a call may hang on a member that is paused


def test_every_raw_operation(cluster: ClientCluster) -> None:
    async def scenario() -> None:
        client = await tikv_client.RawClient.connect(cluster.pd_endpoints)
        assert await client.get(b"rust-0") is None
        await client.put(b"rust-0", b"zero")
        assert await client.get(b"rust-0") == b"zero"
        await client.batch_put({b"rust-%d" % i: b"%d" % i for i in range(1, 6)})
        found = dict(await client.batch_get([b"rust-1", b"rust-5", b"rust-9"]))
        assert found == {b"rust-1": b"1", b"rust-5": b"5"}
        assert await client.scan(b"rust-1", b"rust-4", 10) == [(b"rust-%d" % i, b"%d" % i) for i in (1, 2, 3)]
        assert await client.scan(b"rust-1", b"rust-4", 2) == [(b"rust-1", b"1"), (b"rust-2", b"2")]
        assert await client.scan_keys(b"rust-", b"rust.", 10) == [b"rust-%d" % i for i in range(6)]
        await client.delete(b"rust-0")
        await client.batch_delete([b"rust-1", b"rust-2"])
        await client.delete_range(b"rust-3", b"rust-5")
        assert await client.scan_keys(b"rust-", b"rust.", 10) == [b"rust-5"]

    asyncio.run(scenario())


def test_timestamps_never_go_back(cluster: ClientCluster) -> None:
    """Killed, not paused: this client waits without end for a paused member when it connects."""

    async def scenario() -> None:
        granted: list[int] = []
        await grant(cluster, granted, 50)
        victim = await asyncio.to_thread(cluster.pd_leader)
        await asyncio.to_thread(cluster.cluster.kill, victim)
        try:
            await grant(cluster, granted, 50)
        finally:
            await asyncio.to_thread(cluster.start, victim)
        await grant(cluster, granted, 50)
        await asyncio.to_thread(cluster.heal)
        assert granted == sorted(set(granted)), "each timestamp is later than the one before"

    asyncio.run(scenario())


async def grant(cluster: ClientCluster, granted: list[int], more: int) -> None:
    """That many timestamps; a client whose stream has ended does not always open another, so a new one is taken."""
    deadline = time.monotonic() + SERVED_S
    goal = len(granted) + more
    errors: list[str] = []
    while len(granted) < goal:
        assert time.monotonic() < deadline, f"no timestamps within {SERVED_S:g} s: {errors[-3:]}"
        try:
            async with asyncio.timeout(CALL_S):
                client = await tikv_client.TransactionClient.connect(cluster.pd_endpoints)
                while len(granted) < goal:
                    granted.append(await client.current_timestamp())
        except Exception as error:  # the extension raises plain Exceptions
            errors.append(f"{type(error).__name__}: {error}"[:200])
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_served_again_and_nothing_acknowledged_is_lost(cluster: ClientCluster, fault: Fault) -> None:
    async def scenario() -> None:
        client = await tikv_client.RawClient.connect(cluster.pd_endpoints)
        writer = Writer(client, prefix=fault.name)
        writing = asyncio.create_task(writer.run())
        try:
            await writer.acknowledged(20, "before the fault")
            victim = await asyncio.to_thread(fault.choose, cluster)
            await asyncio.to_thread(fault.strike, cluster.cluster, victim)
            try:
                await writer.acknowledged(20, f"without {victim}")
            finally:
                await asyncio.to_thread(fault.undo, cluster.cluster, victim)
            await writer.acknowledged(20, f"after {victim} came back")
        finally:
            writer.is_stopped = True
            await writing
        await asyncio.to_thread(cluster.heal)
        keys = sorted(writer.done)
        found = dict(await asyncio.wait_for(client.batch_get(keys), CALL_S))
        assert found == {key: key for key in keys}

    asyncio.run(scenario())


class Writer:
    """Puts one key after the other; a failed or late one is left behind, it may be there or not."""

    def __init__(self, client: tikv_client.RawClient, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self.done: list[bytes] = []
        self.errors: list[str] = []
        self.is_stopped = False

    async def run(self) -> None:
        for number in range(5000):
            if self.is_stopped:
                return
            key = f"{self._prefix} {number:05}".encode()
            if await self._tried(lambda key=key: self._client.put(key, key)):  # type: ignore[misc]
                self.done.append(key)
            await asyncio.sleep(0.004)

    async def _tried(self, act: Callable[[], Awaitable[None]]) -> bool:
        try:
            async with asyncio.timeout(CALL_S):
                await act()
        except Exception as error:  # the extension raises plain Exceptions
            self.errors.append(f"{type(error).__name__}: {error}"[:200])
            return False
        return True

    async def acknowledged(self, more: int, when: str) -> None:
        goal = len(self.done) + more
        deadline = time.monotonic() + SERVED_S
        while len(self.done) < goal:
            assert time.monotonic() < deadline, f"not served {when} within {SERVED_S:g} s: {self.errors[-3:]}"
            await asyncio.sleep(0.02)
