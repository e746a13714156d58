"""One detector for all stores: asked over the wire, followed when it moves, done without when it is away."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from drillyard.emulator.store.lock_waiting import Circle, Wait
from drillyard.emulator.store.mvcc import Lock, LockKind
from drillyard.emulator.store.percolator import KeyIsLocked, Released
from drillyard.emulator.tikv.access import Access
from drillyard.emulator.tikv.deadlocks import Deadlocks
from drillyard.emulator.tikv.lock_waits import LockWaits
from drillyard.wire import drillpb, keys, kvrpcpb
from drillyard.wire.rpc import RpcError, Status
from drillyard.wire.services import DEADLOCKS


class Stores:
    """Stores in one process; PD and the wire are method calls."""

    def __init__(self, count: int) -> None:
        self.detector = 1  # by PD's word
        self.leads = 1  # in truth
        self.term = 1
        self.away: set[int] = set()
        self.closed = 0
        self.each = {number: self._make(number) for number in range(1, count + 1)}

    def _make(self, number: int) -> Deadlocks:
        stores = self

        class Replica:
            region = type("Region", (), {"id": 2, "is_initialized": True, "start": b""})()

            @property
            def raft(self) -> Any:
                return type("Raft", (), {"term": stores.term})

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


def test_a_detector_that_leads_again_begins_anew() -> None:
    """It has not heard which waits ended while another was the detector."""

    async def scenario() -> None:
        stores = Stores(3)
        assert await stores.each[1].detect(Wait(1, 2, b"b")) is None
        stores.leads, stores.term = 3, 2
        stores.leads, stores.term = 1, 3
        assert await stores.each[2].detect(Wait(2, 1, b"a")) is None
        assert await stores.each[1].detect(Wait(1, 2, b"b")) == Circle((Wait(2, 1, b"a"),))

    run(scenario)


def test_the_end_of_a_wait_is_told_after_the_question_about_it() -> None:
    async def scenario() -> None:
        stores = Stores(2)
        for asking in stores.each.values():
            asked = asyncio.create_task(asking.detect(Wait(1, 2, b"b")))  # begins after what follows
            asking.leave(Wait(1, 2, b"b"), asked)
            await asyncio.gather(*asking._tasks)
            assert asked.done()
            assert await stores.each[1].detect(Wait(2, 1, b"a")) is None
            stores.each[1].leave(Wait(2, 1, b"a"))

    run(scenario)


class SilentDetector:
    """In place of `Deadlocks`: the question is never answered."""

    def __init__(self) -> None:
        self.left: list[Wait] = []

    async def detect(self, wait: Wait) -> Circle | None:
        never: asyncio.Future[Circle | None] = asyncio.get_running_loop().create_future()
        return await never

    def leave(self, wait: Wait, asked: asyncio.Task[Circle | None] | None) -> None:
        assert asked is not None
        asked.cancel()
        self.left.append(wait)


@pytest.mark.parametrize("is_released", [True, False])
def test_a_wait_does_not_wait_for_a_detector_that_is_silent(is_released: bool) -> None:
    async def scenario() -> None:
        detector, engine = SilentDetector(), type("Engine", (), {"check": lambda _, context: None})
        waits = LockWaits(cast(Access, engine()), cast(Deadlocks, detector))
        blocked = KeyIsLocked(keys.encode(b"k"), Lock(LockKind.PUT, b"k", 5, 1000))
        waiting = waits.begin(9, blocked, asyncio.get_running_loop().time() + (1000 if is_released else 0.05))
        ending = asyncio.create_task(waits.end(waiting, kvrpcpb.Context(), may_deadlock=True))
        released = Released(keys.encode(b"k"), 5, 6)
        if is_released:
            asyncio.get_running_loop().call_later(0.01, waits.release, released)
        assert await ending == (released if is_released else None)
        assert detector.left == [Wait(9, 5, b"k")]
        assert waits.count == 0

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
