"""The store's own garbage collection: when PD's safe point has moved, old versions of the regions led here are dropped.

Rules: whoever moves the safe point has resolved the locks before it. Deletions go through the region's log, so that all
replicas drop the same. A region that changes its range or its leader meanwhile is left to the next round, and a round
goes on at its own pace: it hurries nobody.
"""

from __future__ import annotations

import asyncio

from drillyard.emulator.logs import Log
from drillyard.emulator.store.commands import pack_peer
from drillyard.emulator.tikv.access import Rejected
from drillyard.emulator.tikv.engine import Engine
from drillyard.emulator.tikv.pd import PdClient
from drillyard.emulator.tikv.transactions import TxnKv
from drillyard.wire import kvrpcpb, metapb, pdpb, services
from drillyard.wire.rpc import RpcError

POLL_S = 10.0


class GarbageCollector:
    def __init__(self, engine: Engine, pd: PdClient, txn: TxnKv, log: Log) -> None:
        self._engine = engine
        self._pd = pd
        self._txn = txn
        self._log = log
        self._done: dict[int, tuple[int, int]] = {}  # region -> its version and the safe point of its last round

    async def run_forever(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            request = pdpb.GetGCSafePointRequest(header=pdpb.RequestHeader())
            try:
                safe_point = (await self._pd.call(services.PD.GetGCSafePoint, request)).safe_point
            except RpcError as error:  # a PD that knows no safe point: nothing is ever garbage then
                self._log.warn("failed to get safe point", err=error)
                return
            if safe_point:
                await self.collect(safe_point)

    async def collect(self, safe_point: int) -> None:
        contexts = self._led()
        self._done = {region_id: done for region_id, done in self._done.items() if region_id in contexts}
        count = 0
        for region_id, context in contexts.items():
            mark = (context.region_epoch.version, safe_point)
            if self._done.get(region_id) == mark:
                continue
            try:
                count += await self._txn.collect(context, safe_point)
                self._done[region_id] = mark
            except Rejected as rejected:
                self._log.info("a region is collected later", region_id=region_id, reason=rejected)
        if count:
            self._log.info("garbage collected", safe_point=safe_point, keys=count)

    def _led(self) -> dict[int, kvrpcpb.Context]:
        """How to address the regions that are led here."""
        contexts: dict[int, kvrpcpb.Context] = {}
        for region_id, replica in self._engine.store.replicas.items():
            if replica.is_leader and replica.region.is_initialized:
                epoch = replica.region.epoch
                contexts[region_id] = kvrpcpb.Context(
                    region_id=region_id,
                    region_epoch=metapb.RegionEpoch(conf_ver=epoch.conf_ver, version=epoch.version),
                    peer=pack_peer(replica.me),
                )
        return contexts
