"""The waits for locks on this store while they last: futures, time-outs, and word to the detector of deadlocks.

Rules: a wait begins in the same turn in which the lock was met, so that no release can fall in between. It ends by the
first of: the release of the lock, its time-out, a deadlock, a region that is not led here any more under the epoch of
the request. The detector hears of a wait when it begins, again now and then, and of its end; a wait goes on while the
detector is asked, and ends no later for one that does not answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Struct

from drillyard.emulator.store.lock_waiting import Circle, Wait, Waiter, WaitQueue
from drillyard.emulator.store.mvcc import plain_of
from drillyard.emulator.store.percolator import KeyIsLocked, Released
from drillyard.emulator.tikv.access import Access
from drillyard.emulator.tikv.deadlocks import Deadlocks
from drillyard.wire import kvrpcpb

DEFAULT_TIMEOUT_MS = 1000
WAKE_LATER_S = 0.02
LOOK_S = 0.1  # at whether the region is still led here
TELL_AGAIN_S = 1.0

End = Released | Circle | None  # None: timed out


class Waiting(Struct, frozen=True):
    """One wait that has begun."""

    waiter: Waiter
    ended: asyncio.Future[End]
    deadline_s: float


class LockWaits:
    def __init__(self, access: Access, deadlocks: Deadlocks) -> None:
        self.access = access
        self._deadlocks = deadlocks
        self._queue = WaitQueue()
        self._futures: dict[int, asyncio.Future[End]] = {}
        self._loop = asyncio.get_running_loop()
        self._number = 0

    @property
    def count(self) -> int:
        return self._queue.count

    def begin(self, start_ts: int, blocked: KeyIsLocked, deadline_s: float) -> Waiting:
        self._number += 1
        waiter = Waiter(self._number, blocked.key, start_ts, blocked.lock.start_ts)
        ended: asyncio.Future[End] = self._loop.create_future()
        self._queue.add(waiter)
        self._futures[waiter.number] = ended
        return Waiting(waiter, ended, deadline_s)

    def give_up(self, waiting: Waiting) -> None:
        """Nobody waits any more."""
        self._queue.leave(waiting.waiter)
        del self._futures[waiting.waiter.number]

    def release(self, released: Released) -> None:
        woken = self._queue.release(released)
        if woken.first is not None:
            self._wake(woken.first, released)
        for waiter in woken.later:
            self._loop.call_later(WAKE_LATER_S, self._wake, waiter, released)

    def _wake(self, waiter: Waiter, released: Released) -> None:
        ended = self._futures.get(waiter.number)
        if ended is not None and not ended.done():
            ended.set_result(released)

    async def end(self, waiting: Waiting, context: kvrpcpb.Context, *, may_deadlock: bool) -> End:
        """Returns what ended the wait; raises `Rejected` if the region is not served here any more."""
        wait = Wait(waiting.waiter.start_ts, waiting.waiter.holder_ts, plain_of(waiting.waiter.key))
        tell_at = self._loop.time() if may_deadlock else waiting.deadline_s
        asked: asyncio.Task[Circle | None] | None = None
        try:
            while True:
                now = self._loop.time()
                if now >= tell_at and asked is None and not waiting.ended.done():
                    asked = self._loop.create_task(self._deadlocks.detect(wait))
                    tell_at = now + TELL_AGAIN_S
                left_s = max(0.0, waiting.deadline_s - now)
                awaited: tuple[asyncio.Future[Any], ...] = (waiting.ended, asked) if asked else (waiting.ended,)
                await asyncio.wait(awaited, timeout=min(left_s, LOOK_S), return_when=asyncio.FIRST_COMPLETED)
                if waiting.ended.done():
                    return waiting.ended.result()
                if asked is not None and asked.done():
                    circle, asked = asked.result(), None
                    if circle is not None:
                        return circle
                if self._loop.time() >= waiting.deadline_s:
                    return None
                self.access.check(context)
        finally:
            self.give_up(waiting)
            if may_deadlock:
                self._deadlocks.leave(wait, asked)
