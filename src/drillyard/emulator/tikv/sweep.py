"""Deletes what has expired, on a store whose values carry their expiry (`storage.enable-ttl`).

Rules: nothing depends on it but the disk's space, since what has expired is shown to nobody. The leader of a region
looks through it in slices and proposes to delete what it found; the entry carries the time, and a key that was written
anew meanwhile stays. So all replicas hold the same pairs. TiKV does it below its log instead, as it compacts, and its
replicas differ until each has compacted. A proposal that is refused is not repeated: the next round finds its keys
again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from drillyard.emulator.logs import Log
from drillyard.emulator.store import expiry
from drillyard.emulator.store.commands import Expire, Write
from drillyard.emulator.store.region import Peer, Region
from drillyard.emulator.store.replica import Context, Outcome
from drillyard.emulator.tikv.engine import Engine
from drillyard.emulator.tikv.records import data_range, key_at, spans_of

SLICE_PAIRS = 256
SLICE_BYTES = 256 << 10
MOST_KEYS = 512  # of one proposal
MOST_BYTES = 256 << 10


class Sweep:
    def __init__(self, engine: Engine, clock: Callable[[], int], period_s: Callable[[], float], log: Log) -> None:
        self._engine = engine
        self._clock = clock
        self._period_s = period_s
        self._log = log

    async def run_forever(self) -> None:
        while True:
            await asyncio.sleep(self._period_s())
            for replica in tuple(self._engine.store.replicas.values()):
                if replica.is_leader:
                    await self.sweep(replica.region, replica.me)

    async def sweep(self, region: Region, leader: Peer) -> int:
        """How many keys it proposed to delete."""
        now_s, view = self._clock(), self._engine.storage.view()
        found: list[Expire] = []
        proposed = seen = size = walked = 0
        try:
            for span in spans_of(region):
                for place, packed in view.walk(*data_range(span)):
                    seen, walked = seen + 1, walked + len(place) + len(packed)
                    if _is_over(packed, now_s):
                        found.append(Expire(key_at(place), now_s, span.family))
                        size += len(place)
                    if len(found) >= MOST_KEYS or size >= MOST_BYTES:
                        proposed += await self._delete(found, region, leader)
                        found, size = [], 0
                    if seen >= SLICE_PAIRS or walked >= SLICE_BYTES:
                        seen = walked = 0
                        await asyncio.sleep(0)
            proposed += await self._delete(found, region, leader)
        finally:
            view.close()
        if proposed:
            self._log.info("expired pairs are deleted", region_id=region.id, keys=proposed)
        return proposed

    async def _delete(self, found: list[Expire], region: Region, leader: Peer) -> int:
        """Waits for the outcome, so that the sweep fills no log."""
        if not found:
            return 0
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        context = Context(region.id, region.epoch.version, leader.id, leader.store_id)
        refused = self._engine.write(
            lambda outcome: None if done.done() else done.set_result(outcome), context, Write(tuple(found))
        )
        if refused is not None:
            return 0
        await done
        return len(found)


def _is_over(packed: bytes, now_s: int) -> bool:
    try:
        return expiry.unpack(packed).is_over(now_s)
    except ValueError:
        return False
