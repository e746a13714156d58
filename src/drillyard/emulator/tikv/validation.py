"""Asks PD about replicas that have heard no leader for long: they may have been removed, and nobody is left to say so.

Rules: a question for each such replica, one after the other, and only when PD answers at once; what is not answered is
asked again at the next look. The store decides what the answer means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from drillyard.emulator.logs import Log
from drillyard.emulator.metrics import Registry
from drillyard.emulator.store.region import Region
from drillyard.emulator.tikv.engine import Engine
from drillyard.emulator.tikv.pd import PdClient
from drillyard.emulator.tikv.records import unpack_region
from drillyard.wire import pdpb, services


class Validation:
    def __init__(self, pd: PdClient, engine: Engine, metrics: Registry, log: Log) -> None:
        self.check_s: Callable[[], float] = lambda: 300.0
        self._pd = pd
        self._engine = engine
        self._log = log
        self._verdicts = metrics.counter(
            "tikv_pd_validate_peer_total", "What PD said of peers that hear no leader.", ("type",)
        )

    async def watch_forever(self) -> None:
        while True:
            await asyncio.sleep(self.check_s())
            for region, peer_id in self._engine.store.leaderless():
                await self._ask_about(region, peer_id)

    async def _ask_about(self, region: Region, peer_id: int) -> None:
        known: dict[int, Region] = {}
        if not await self._learn(region.id, known):
            return
        covering = None
        if region.id not in known:  # it may be a part of another region by now; then all regions here matter
            by_key = pdpb.GetRegionRequest(header=pdpb.RequestHeader(), region_key=region.start)
            answer = await self._pd.attempt(services.PD.GetRegion, by_key)
            if answer is None or not answer.region.id:
                return
            covering = unpack_region(answer.region)
            for other in tuple(self._engine.store.replicas):
                if not await self._learn(other, known):
                    return
        verdict = self._engine.validate(region.id, peer_id, known, covering)
        self._verdicts.labels(verdict.value).inc()
        self._log.info(
            "asked PD about a peer without a leader", region_id=region.id, peer_id=peer_id, verdict=verdict.value
        )

    async def _learn(self, region_id: int, known: dict[int, Region]) -> bool:
        """Whether PD answered; what it knows is put into `known`."""
        request = pdpb.GetRegionByIDRequest(header=pdpb.RequestHeader(), region_id=region_id)
        answer = await self._pd.attempt(services.PD.GetRegionByID, request)
        if answer is not None and answer.region.id:
            known[region_id] = unpack_region(answer.region)
        return answer is not None
