"""Requests whose client has gone: no wait for a lock and no view is left of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from drillyard.emulator.metrics import Registry
from drillyard.emulator.store.messages import Readable
from drillyard.emulator.store.mvcc import Lock, LockKind
from drillyard.emulator.store.percolator import KeyIsLocked
from drillyard.emulator.store.region import Region
from drillyard.emulator.store.transactions import Transacted
from drillyard.emulator.tikv.access import Access
from drillyard.emulator.tikv.lock_waits import LockWaits
from drillyard.emulator.tikv.transactions import TxnKv
from drillyard.emulator.tikv.txn_metrics import TxnMetrics
from drillyard.wire import kvrpcpb

BLOCKED = Transacted(kvrpcpb.PessimisticLockResponse(), blocked=KeyIsLocked(b"k", Lock(LockKind.PUT, b"k", 5, 1000)))


class Proposals:
    """In place of an engine: keeps the ticket of what is proposed."""

    def __init__(self) -> None:
        self.tickets: list[Any] = []

    def write(self, ticket: Any, context: Any, command: Any) -> None:
        self.tickets.append(ticket)


@pytest.mark.parametrize("is_applied_first", [False, True])
def test_nobody_waits_for_a_client_that_has_gone(is_applied_first: bool) -> None:
    async def scenario() -> None:
        engine: Any = Proposals()
        nobody: Any = None
        waits = LockWaits(Access(engine), nobody)
        kv = TxnKv(waits, nobody, TxnMetrics(Registry()), has_ttl=False)
        request = kvrpcpb.PessimisticLockRequest(start_version=9, primary_lock=b"k", wait_timeout=1000)
        request.mutations.add(op=kvrpcpb.Op.PessimisticLock, key=b"k")
        asked = asyncio.create_task(kv.pessimistic_lock(request))
        while not engine.tickets:  # noqa: ASYNC110
            await asyncio.sleep(0)
        if is_applied_first:
            engine.tickets[0](BLOCKED)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        if not is_applied_first:
            engine.tickets[0](BLOCKED)
        assert waits.count == 0

    asyncio.run(scenario())


def test_no_view_is_kept_for_a_client_that_has_gone() -> None:
    class View:
        is_open = True

        def close(self) -> None:
            self.is_open = False

    class Reads(Proposals):
        view = View()
        storage = type("Storage", (), {"view": lambda _: Reads.view})()

        def read(self, ticket: Any, context: Any) -> None:
            self.tickets.append(ticket)

    async def scenario() -> None:
        engine: Any = Reads()

        async def ask() -> None:
            async with Access(engine).viewing(kvrpcpb.Context()):
                pass

        asked = asyncio.create_task(ask())
        await asyncio.sleep(0)
        engine.tickets[0](Readable(Region(7)))
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert not Reads.view.is_open

    asyncio.run(scenario())
