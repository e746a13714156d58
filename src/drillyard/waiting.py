"""The clock, the one wait helper (every wait of ours goes through `until`), and what must not be left half done.

Rules: a wait looks, and looks again when it is woken by an event or when the poll interval is over, until what it waits
for is there or its deadline has passed. An event that arrives during a look cuts that look short, because what it would
answer is already old; the look after that one is left to finish, so that events in quick succession cannot keep a wait
from seeing anything. Nothing sleeps and hopes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

POLL_S = 0.05


class Clock:
    """This machine's clocks. `now` is for records, `monotonic` for measuring and deadlines, `since_boot` goes on while
    the machine sleeps."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def since_boot(self) -> float:
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Wake:
    """Something happened: wakes the wait that holds it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def rouse(self) -> None:
        self._event.set()

    def rest(self) -> None:
        self._event.clear()

    async def wait(self) -> None:
        await self._event.wait()


@dataclass(frozen=True, slots=True)
class Deadline:
    clock: Clock
    at: float  # monotonic

    @classmethod
    def after(cls, clock: Clock, timeout_s: float) -> Deadline:
        return cls(clock, clock.monotonic() + timeout_s)

    @property
    def left_s(self) -> float:
        return max(0.0, self.at - self.clock.monotonic())


async def until(
    look: Callable[[], Awaitable[T | None]], deadline: Deadline, *, wake: Wake | None = None, poll_s: float = POLL_S
) -> T | None:
    """What `look` brings as soon as it brings something, or None when the deadline passes first."""
    wake = wake or Wake()
    was_cut = False
    while True:
        wake.rest()
        found, was_cut = await _look_once(look, deadline, None if was_cut else wake)
        if found is not None or not deadline.left_s:
            return found
        if was_cut:
            continue
        try:
            async with asyncio.timeout(min(poll_s, deadline.left_s)):
                await wake.wait()
        except TimeoutError:
            continue


async def _look_once(
    look: Callable[[], Awaitable[T | None]], deadline: Deadline, wake: Wake | None
) -> tuple[T | None, bool]:
    """One look, given up when the deadline passes or `wake` is roused: what it brought, whether it was cut short."""
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(look())]
    if wake is not None:
        tasks.append(asyncio.ensure_future(wake.wait()))
    looking = tasks[0]
    try:
        await asyncio.wait(tasks, timeout=deadline.left_s, return_when=asyncio.FIRST_COMPLETED)
        return (looking.result(), False) if looking.done() else (None, True)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Done to its end, however often the caller is cancelled meanwhile: for what must not be left half done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # looked at, so that nobody is told that it was not
        raise
