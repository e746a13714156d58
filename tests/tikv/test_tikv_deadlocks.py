"""One detector for all stores: asked over the wire, followed when it moves, done without when it is away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from drillyard.emulator.store.lock_waiting import Circle, Wait
from drillyard.emulator.tikv.deadlocks import Deadlocks
from drillyard.wire import drillpb
from drillyard.wire.rpc import RpcError, Status
from drillyard.wire.services import DEADLOCKS


class Stores:
    """Stores in one process; PD and the wire are method calls."""

    def __init__(self, count: int) -> None:
        self.detector = 1  # by PD's word
        self.leads = 1  # in truth
        self.away: set[int] = set()
        self.closed = 0
        self.each = {number: self._make(number) for number in range(1, count + 1)}

    def _make(self, number: int) -> Deadlocks:
        stores = self

        class Replica:
            region = type("Region", (), {"is_initialized": True, "start": b""})()

            @property
            def is_leader(self) -> bool:
                return stores.leads == number

        class Engine:
            identity = type("Identity", (), {"cluster_id": 7, "store_id": number})()
            store = type("Store", (), {"replicas": {2: Replica()}})()

        class Transport:
            async def connect(self, target: int) -> Any:
                return Channel(stores, target)

        async def find() -> int:
            return stores.detector

        engine: Any = Engine()
        transport: Any = Transport()
        return Deadlocks(engine, transport, find)


class Channel:
    def __init__(self, stores: Stores, target: int) -> None:
        self._stores = stores
        self._target = target

    async def unary(self, method: Any, request: Any, timeout_s: float) -> Any:
        if self._target in self._stores.away:
            raise RpcError(Status.UNAVAILABLE, "nobody is there")
        return await self._stores.each[self._target].handlers()[DEADLOCKS.Detect](request)

    def close(self) -> None:
        self._stores.closed += 1


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_circle_over_three_stores() -> None:
    async def scenario() -> None:
        stores = Stores(3)
        assert await stores.each[2].detect(Wait(1, 2, b"b")) is None
        assert await stores.each[3].detect(Wait(2, 3, b"c")) is None
        assert await stores.each[1].detect(Wait(3, 1, b"a")) == Circle((Wait(1, 2, b"b"), Wait(2, 3, b"c")))
        stores.each[3].leave(Wait(2, 3, b"c"))
        await asyncio.gather(*stores.each[3]._tasks)
        assert await stores.each[2].detect(Wait(3, 1, b"a")) is None
        for each in stores.each.values():
            each.close()

    run(scenario)


def test_a_detector_that_moves_is_found_again_and_begins_anew() -> None:
    async def scenario() -> None:
        stores = Stores(3)
        assert await stores.each[2].detect(Wait(1, 2, b"b")) is None
        stores.leads = stores.detector = 3
        assert await stores.each[2].detect(Wait(2, 1, b"a")) is None  # the new one has not heard of the first wait
        assert await stores.each[2].detect(Wait(1, 2, b"b")) == Circle((Wait(2, 1, b"a"),))
        assert stores.closed == 1

    run(scenario)


@pytest.mark.parametrize("trouble", ["away", "unknown", "nobody"])
def test_without_a_detector_nobody_is_refused(trouble: str) -> None:
    async def scenario() -> None:
        stores = Stores(2)
        if trouble == "away":
            stores.away.add(1)
        elif trouble == "unknown":
            stores.detector = 0
        else:
            stores.leads = 9
        assert await stores.each[2].detect(Wait(1, 2, b"b")) is None
        assert await stores.each[2].detect(Wait(2, 1, b"a")) is None

    run(scenario)


def test_another_cluster_is_refused() -> None:
    async def scenario() -> None:
        serve = Stores(1).each[1].handlers()[DEADLOCKS.Detect]
        with pytest.raises(RpcError, match="another cluster"):
            await serve(drillpb.DetectRequest(cluster_id=8))

    run(scenario)
