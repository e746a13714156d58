"""Measures the regions that this store leads, and has those cut that are too large, or that somebody wants cut.

Rules: a region is walked over in slices, on a view, and only when the estimate of its size says that it should be. The
ids of the new regions come from PD; a split that PD does not answer is given up, and comes up again at the next look.
One split of a region is under way at a time. Who asked is answered when the split was applied here.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec.structs import replace

from drillyard.emulator.logs import Log
from drillyard.emulator.storage import Storage
from drillyard.emulator.store.errors import EpochNotMatch, RegionError, ServerIsBusy
from drillyard.emulator.store.region import Part, Region
from drillyard.emulator.store.replica import Context
from drillyard.emulator.store.split_keys import SplitLimits, Survey, valid_keys
from drillyard.emulator.store.store import Split, Step
from drillyard.emulator.tikv.engine import Engine
from drillyard.emulator.tikv.pd import PdClient
from drillyard.emulator.tikv.records import data_range, pack_error, pack_region, spans_of
from drillyard.wire import errorpb, keys, kvrpcpb, pdpb, services

SLICE = 500  # pairs
SLICE_BYTES = 256 << 10
APPLY_TIMEOUT_S = 10.0
NO_KEY = "no valid key found for split."


async def survey(storage: Storage, region: Region, limits: SplitLimits) -> Survey:
    """Walks over what the region holds now, the families side by side, in the order of the keys."""
    found, pause_at = Survey(limits), 0
    view = storage.view()
    try:
        walks = [view.walk(*data_range(span)) for span in spans_of(region)]
        for place, value in heapq.merge(*walks, key=lambda pair: pair[0][1:]):
            found.pass_by(place[1:], len(place) - 1 + len(value))
            if found.count % SLICE == 0 or found.size >= pause_at:
                pause_at = found.size + SLICE_BYTES
                await asyncio.sleep(0)
    finally:
        view.close()
    return found


class Splitting:
    def __init__(self, pd: PdClient, engine: Engine, log: Log) -> None:
        self.check_s: Callable[[], float] = lambda: 10.0
        self._pd = pd
        self._engine = engine
        self._log = log
        self._under_way: set[int] = set()
        self._waiting: dict[int, asyncio.Future[tuple[Region, ...]]] = {}  # by the region that is split
        self._tasks: set[asyncio.Task[Any]] = set()
        engine.on_split = self._applied

    # ---- size ----

    async def watch_forever(self) -> None:
        while True:
            await asyncio.sleep(self.check_s())
            for region in self._engine.store.unmeasured():
                await self._look_at(region)

    async def _look_at(self, region: Region) -> None:
        limits = self._engine.store.settings.split
        found = await survey(self._engine.storage, region, limits)
        store = self._engine.store
        replica = store.replicas.get(region.id)
        if replica is None or replica.region != region:
            return  # it has changed meanwhile, and is looked at again
        store.measured(region.id, found.size, found.count)
        cuts = found.oversize_keys(region) if limits.is_exceeded(found.size, found.count) else ()
        if cuts:
            replica.growth.drift = 1  # until it is cut, it is looked at again
            self.begin(Step(region.id, region.epoch, replica.me.id, Split(cuts)), pdpb.SplitReason.SIZE)

    # ---- somebody's wish ----

    def begin(self, step: Step, reason: pdpb.SplitReason = pdpb.SplitReason.ADMIN) -> None:
        """Carries out a split, with keys or without, in the background."""
        self._keep(self._split(step, reason))

    async def on_request(self, request: kvrpcpb.SplitRegionRequest) -> kvrpcpb.SplitRegionResponse:
        """A client's SplitRegion; its keys are plain unless they are RawKV's."""
        asked = [request.split_key] if request.split_key else list(request.split_keys)
        context = request.context
        epoch, peer = context.region_epoch, context.peer
        region = self._engine.store.check(
            Context(context.region_id, epoch.version, peer.id, peer.store_id, context.term), epoch.conf_ver
        )
        if not isinstance(region, Region):
            return kvrpcpb.SplitRegionResponse(region_error=pack_error(region))
        cuts = valid_keys(region, asked if request.is_raw_kv else [keys.encode(key) for key in asked])
        if not cuts:
            return kvrpcpb.SplitRegionResponse(region_error=errorpb.Error(message=NO_KEY))
        outcome = await self._split(Step(region.id, region.epoch, peer.id, Split(cuts)), pdpb.SplitReason.ADMIN)
        if not isinstance(outcome, tuple):
            return kvrpcpb.SplitRegionResponse(region_error=pack_error(outcome))
        answer = kvrpcpb.SplitRegionResponse(regions=[pack_region(part) for part in outcome])
        if len(outcome) == 2:
            answer.left.CopyFrom(answer.regions[0])
            answer.right.CopyFrom(answer.regions[1])
        return answer

    # ---- the split ----

    async def _split(self, step: Step, reason: pdpb.SplitReason) -> tuple[Region, ...] | RegionError:
        region_id = step.region_id
        if region_id in self._under_way:
            return ServerIsBusy("another split of the region is under way")
        self._under_way.add(region_id)
        try:
            return await self._cut(step, reason)
        finally:
            self._under_way.discard(region_id)
            self._waiting.pop(region_id, None)

    async def _cut(self, step: Step, reason: pdpb.SplitReason) -> tuple[Region, ...] | RegionError:
        engine, region_id = self._engine, step.region_id
        replica = engine.store.replicas.get(region_id)
        if replica is None or replica.region.epoch != step.epoch:
            return EpochNotMatch((replica.region,)) if replica is not None else ServerIsBusy("the region is gone")
        region = replica.region
        assert isinstance(step.action, Split)
        cuts = step.action.keys
        if not cuts:
            cuts = (await survey(engine.storage, region, engine.store.settings.split)).middle_key(region)
        parts = await self._ask_for_parts(region, len(cuts), reason) if cuts else ()
        if not parts:
            self._log.info("not splitting", region_id=region_id, reason=NO_KEY if not cuts else "PD gives no ids")
            return ServerIsBusy(NO_KEY if not cuts else "PD gives no ids")
        applied: asyncio.Future[tuple[Region, ...]] = asyncio.get_running_loop().create_future()
        self._waiting[region_id] = applied
        declined = engine.obey(replace(step, action=Split(cuts, parts)))
        self._log.info("splitting", region_id=region_id, step=Split(cuts), declined=declined or "no")
        if declined:
            now = engine.store.replicas.get(region_id)
            return EpochNotMatch((now.region if now is not None else region,))
        try:
            async with asyncio.timeout(APPLY_TIMEOUT_S):
                return await applied
        except TimeoutError:
            return ServerIsBusy("the split is not applied yet")

    async def _ask_for_parts(self, region: Region, count: int, reason: pdpb.SplitReason) -> tuple[Part, ...]:
        request = pdpb.AskBatchSplitRequest(split_count=count, region=pack_region(region), reason=reason)
        answer = await self._pd.attempt(services.PD.AskBatchSplit, request)
        if answer is None:
            return ()
        return tuple(Part(given.new_region_id, tuple(given.new_peer_ids)) for given in answer.ids)

    def _applied(self, regions: tuple[Region, ...], leads: bool) -> None:
        """A split was applied on this store, whoever asked for it; who leads tells PD."""
        waiting = self._waiting.get(regions[-1].id)
        if waiting is not None and not waiting.done():
            waiting.set_result(regions)
        if leads:
            request = pdpb.ReportBatchSplitRequest(regions=[pack_region(region) for region in regions])
            self._keep(self._pd.attempt(services.PD.ReportBatchSplit, request))

    def _keep(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
