"""Which store keeps the graph of waiting transactions, and how the others ask it.

The detector is the store that leads the region at the start of the key space, as with TiKV. When it changes, the new
one begins with an empty graph, also when it was the detector before (it has not heard which waits ended meanwhile), and
those who still wait tell it again. A detector that cannot be asked says nothing: the wait then ends by its time-out at
the latest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from drillyard.emulator.peers import Transport
from drillyard.emulator.store.lock_waiting import Circle, Wait, WaitForGraph
from drillyard.emulator.tikv.engine import Engine
from drillyard.wire import drillpb
from drillyard.wire.rpc import Channel, Handlers, RpcError, Status
from drillyard.wire.services import DEADLOCKS

ASK_S = 1.0
FindDetector = Callable[[], Awaitable[int]]  # the store that leads the first region, by PD's word; 0: unknown


class Deadlocks:
    def __init__(self, engine: Engine, transport: Transport, find: FindDetector) -> None:
        self._engine = engine
        self._transport = transport
        self._find = find
        self._graph = WaitForGraph()
        self._reign = (0, 0)  # the region and the term of its leader in which the graph was begun
        self._detector: tuple[int, Channel] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def handlers(self) -> Handlers:
        return {DEADLOCKS.Detect: self._serve}

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._forget_detector()

    async def detect(self, wait: Wait) -> Circle | None:
        """The circle that the wait would close."""
        graph = self._own_graph()
        if graph is not None:
            return graph.detect(wait, self._now_ms())
        answer = await self._ask(drillpb.DetectRequest(cluster_id=self._engine.identity.cluster_id, wait=_pack(wait)))
        return Circle(tuple(map(_unpack, answer.circle))) if answer is not None and answer.circle else None

    def leave(self, wait: Wait, asked: asyncio.Task[Circle | None] | None = None) -> None:
        """The wait is over. Nobody waits for this to be heard. A question about it that is under way (`asked`) comes
        first, or the detector would keep what it asks about."""
        graph = self._own_graph()
        if graph is not None and (asked is None or asked.done()):
            graph.leave(wait)
            return
        task = self._loop.create_task(self._tell_end(wait, asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_end(self, wait: Wait, asked: asyncio.Task[Circle | None] | None) -> None:
        if asked is not None:
            await asyncio.wait((asked,))
        graph = self._own_graph()
        if graph is not None:
            graph.leave(wait)
        else:
            cluster_id = self._engine.identity.cluster_id
            await self._ask(drillpb.DetectRequest(cluster_id=cluster_id, wait=_pack(wait), ends=True))

    def _own_graph(self) -> WaitForGraph | None:
        """The graph, if this store is the detector: a new one with each time that it begins to lead."""
        for replica in self._engine.store.replicas.values():
            if replica.is_leader and replica.region.is_initialized and not replica.region.start:
                reign = (replica.region.id, replica.raft.term)
                if reign != self._reign:
                    self._graph, self._reign = WaitForGraph(), reign
                return self._graph
        return None

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    async def _ask(self, request: drillpb.DetectRequest) -> drillpb.DetectResponse | None:
        with contextlib.suppress(RpcError, TimeoutError):
            async with asyncio.timeout(ASK_S):
                for _ in range(2):  # the first may be one that led before
                    channel = await self._channel()
                    if channel is None:
                        return None
                    answer = await channel.unary(DEADLOCKS.Detect, request, timeout_s=ASK_S)
                    if answer.is_detector:
                        return answer
                    self._forget_detector()
                return None
        self._forget_detector()
        return None

    async def _channel(self) -> Channel | None:
        if self._detector is None:
            store_id = await self._find()
            if store_id in (0, self._engine.identity.store_id):
                return None
            channel = await self._transport.connect(store_id)
            if self._detector is None:
                self._detector = (store_id, channel)
            else:  # somebody else was faster
                channel.close()
        return self._detector[1]

    def _forget_detector(self) -> None:
        if self._detector is not None:
            self._detector[1].close()
            self._detector = None

    async def _serve(self, request: drillpb.DetectRequest) -> drillpb.DetectResponse:
        if request.cluster_id != self._engine.identity.cluster_id:
            raise RpcError(Status.FAILED_PRECONDITION, "this store is of another cluster")
        graph = self._own_graph()
        if graph is None:
            return drillpb.DetectResponse()
        wait = _unpack(request.wait)
        if request.ends:
            graph.leave(wait)
            return drillpb.DetectResponse(is_detector=True)
        now_ms = self._now_ms()
        graph.forget(now_ms)
        circle = graph.detect(wait, now_ms)
        return drillpb.DetectResponse(circle=map(_pack, circle.waits) if circle else (), is_detector=True)


def _pack(wait: Wait) -> drillpb.WaitFor:
    return drillpb.WaitFor(txn=wait.txn, holder=wait.holder, key=wait.key)


def _unpack(packed: drillpb.WaitFor) -> Wait:
    return Wait(packed.txn, packed.holder, packed.key)
