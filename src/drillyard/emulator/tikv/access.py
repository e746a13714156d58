"""How requests come at a region: a view of its pairs when they may be read, and the outcome of a command.

Rules: a view is taken when the leader's place was confirmed after the request came. The outcome of a command is known
when it was applied. `on_applied` hears of each outcome in the order in which the commands were applied, before anything
that comes later is applied. What the region itself answers is raised as `Rejected`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from drillyard.emulator.storage import StorageFailed, View
from drillyard.emulator.store.commands import Proposal, Swapped, Write, Written
from drillyard.emulator.store.region import Region
from drillyard.emulator.store.replica import Outcome, Readable
from drillyard.emulator.store.state import Family, Pair, Span
from drillyard.emulator.store.transactions import Transact, Transacted
from drillyard.emulator.tikv.engine import Engine
from drillyard.emulator.tikv.raw import Rejected, context_of
from drillyard.emulator.tikv.records import data_place, data_range, key_at, pack_error
from drillyard.wire import kvrpcpb

Applied = Callable[[Transacted], None]


class ViewReading:
    """The families as one view shows them."""

    def __init__(self, view: View) -> None:
        self._view = view

    def get(self, key: bytes, family: Family = Family.DEFAULT) -> bytes | None:
        return self._view.get(data_place(key, family))

    def scan(self, span: Span, limit: int, reverse: bool = False) -> list[Pair]:
        pairs = self._view.scan(*data_range(span), limit, reverse=reverse)
        return [(key_at(place), value) for place, value in pairs]


class Access:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()

    @asynccontextmanager
    async def reading(self, context: kvrpcpb.Context) -> AsyncIterator[tuple[Region, ViewReading]]:
        region, view = await self._view(context)
        try:
            yield region, ViewReading(view)
        finally:
            view.close()

    async def _view(self, context: kvrpcpb.Context) -> tuple[Region, View]:
        future: asyncio.Future[tuple[Region, View]] = self._loop.create_future()

        def ticket(outcome: Outcome) -> None:
            if future.done():
                return
            if isinstance(outcome, Readable):
                try:
                    future.set_result((outcome.region, self._engine.storage.view()))
                except StorageFailed as error:
                    future.set_exception(error)
            else:
                future.set_exception(_rejected(outcome))

        error = self._engine.read(ticket, context_of(context))
        if error is not None:
            raise Rejected(pack_error(error))
        return await future

    async def transact(self, context: kvrpcpb.Context, command: Transact, on_applied: Applied) -> Transacted:
        def applied(outcome: Outcome) -> None:
            if isinstance(outcome, Transacted):
                on_applied(outcome)  # even if the client has gone: others may wait for what was released

        outcome = await self._propose(context, command, applied)
        assert isinstance(outcome, Transacted)
        return outcome

    async def write(self, context: kvrpcpb.Context, command: Write) -> None:
        await self._propose(context, command, lambda outcome: None)

    async def _propose(
        self, context: kvrpcpb.Context, command: Proposal, on_outcome: Callable[[Outcome], None]
    ) -> Outcome:
        future: asyncio.Future[Outcome] = self._loop.create_future()

        def ticket(outcome: Outcome) -> None:
            on_outcome(outcome)
            if future.done():
                return
            if isinstance(outcome, Transacted | Written | Swapped):
                future.set_result(outcome)
            else:
                future.set_exception(_rejected(outcome))

        error = self._engine.write(ticket, context_of(context), command)
        if error is not None:
            raise Rejected(pack_error(error))
        return await future

    def check(self, context: kvrpcpb.Context) -> None:
        """Raises what a request with this context would be rejected with now."""
        error = self._engine.store.refusal(context_of(context))
        if error is not None:
            raise Rejected(pack_error(error))


def _rejected(outcome: Outcome) -> Rejected:
    assert not isinstance(outcome, Written | Swapped | Transacted | Readable)
    return Rejected(pack_error(outcome))
