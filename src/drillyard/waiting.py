"""The clock, and the one wait helper: every wait of ours goes through `until`.

Rules: a wait looks, and looks again when it is woken by an event or when the poll interval is over, until what it waits
for is there or its deadline has passed. An event that arrives during a look cuts that look short, because what it would
answer is already old. Nothing sleeps and hopes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.05


class Clock:
    """This machine's clocks. `now` is for records, `monotonic` for measuring and deadlines."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


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
    while True:
        wake.rest()
        found = await _look_once(look, deadline, wake)
        if found is not None or not deadline.left_s:
            return found
        try:
            async with asyncio.timeout(min(poll_s, deadline.left_s)):
                await wake.wait()
        except TimeoutError:
            continue


async def _look_once(look: Callable[[], Awaitable[T | None]], deadline: Deadline, wake: Wake) -> T | None:
    """One look, given up when an event arrives or the deadline passes."""
    looking = asyncio.ensure_future(look())
    waking = asyncio.ensure_future(wake.wait())
    try:
        await asyncio.wait({looking, waking}, timeout=deadline.left_s, return_when=asyncio.FIRST_COMPLETED)
        return looking.result() if looking.done() else None
    finally:
        for task in (looking, waking):
            task.cancel()
        await asyncio.gather(looking, waking, return_exceptions=True)
