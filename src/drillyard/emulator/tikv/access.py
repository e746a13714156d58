"""How requests come at a region: a view of its pairs when they may be read, and the outcome of a command.

Rules: a view is taken when the leader's place was confirmed after the request came. The outcome of a command is known
when it was applied. `on_applied` hears of each outcome in the order in which the commands were applied, before anything
that comes later is applied. What the region itself answers is raised as `Rejected`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from drillyard.emulator.storage import View
from drillyard.emulator.store.commands import Proposal, Swapped, Written
from drillyard.emulator.store.region import Region
from drillyard.emulator.store.replica import Context, Outcome, Readable
from drillyard.emulator.store.state import Family, Pair, Span
from drillyard.emulator.store.transactions import Transact, Transacted
from drillyard.emulator.tikv.engine import Engine
from drillyard.emulator.tikv.records import data_place, data_range, key_at, pack_error
from drillyard.wire import errorpb, kvrpcpb

MAX_KEY_BYTES = 8 << 10
MAX_ANSWER_BYTES = 48 << 20  # of keys and values: a message, overhead included, holds 64 MiB

Value = TypeVar("Value")
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


class Rejected(Exception):
    """A region error: the client has to look elsewhere, or later."""

    def __init__(self, error: errorpb.Error) -> None:
        super().__init__(error.message)
        self.error = error


def context_of(context: kvrpcpb.Context) -> Context:
    peer = context.peer
    return Context(context.region_id, context.region_epoch.version, peer.id, peer.store_id, context.term)


class Access:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()

    # ---- reading ----

    async def read(self, context: kvrpcpb.Context, take: Callable[[Region], Value]) -> Value:
        """What `take` gives, or raises, at the moment at which the state may be read."""
        future: asyncio.Future[Value] = self._loop.create_future()

        def ticket(outcome: Outcome) -> None:
            if future.done():
                return
            if not isinstance(outcome, Readable):
                future.set_exception(_rejected(outcome))
                return
            try:
                future.set_result(take(outcome.region))
            except Exception as error:  # whatever it is, it is for whoever asked, not for the store's turn
                future.set_exception(error)

        error = self._engine.read(ticket, context_of(context))
        if error is not None:
            raise Rejected(pack_error(error))
        return await future

    @asynccontextmanager
    async def viewing(self, context: kvrpcpb.Context) -> AsyncIterator[tuple[Region, View]]:
        """A view of the region, taken when it may be read and closed at the end."""
        taken: list[View] = []  # who asked may be gone before it learns that the view was taken

        def take(region: Region) -> Region:
            taken.append(self._engine.storage.view())
            return region

        try:
            region = await self.read(context, take)
            yield region, taken[0]
        finally:
            for view in taken:
                view.close()

    @asynccontextmanager
    async def reading(self, context: kvrpcpb.Context) -> AsyncIterator[tuple[Region, ViewReading]]:
        async with self.viewing(context) as (region, view):
            yield region, ViewReading(view)

    # ---- writing ----

    async def transact(self, context: kvrpcpb.Context, command: Transact, on_applied: Applied) -> Transacted:
        def applied(outcome: Outcome) -> None:
            if isinstance(outcome, Transacted):
                on_applied(outcome)  # even if the client has gone: others may wait for what was released

        outcome = await self.propose(context, command, applied)
        assert isinstance(outcome, Transacted)
        return outcome

    async def propose(
        self,
        context: kvrpcpb.Context,
        command: Proposal,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> Written | Swapped | Transacted:
        future: asyncio.Future[Written | Swapped | Transacted] = self._loop.create_future()

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
