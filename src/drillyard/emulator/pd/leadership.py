"""One lead of one PD member, from the entry that began it to its loss: what only the leader may do.

Rules: ids come from windows, and timestamps from a bound, that the group agreed on before; a timestamp is granted only
after a round of messages has shown that this member still led when it was asked. Region metas are taken from the
replicated state, never straight from a heartbeat. When the lead is lost all of this is thrown away, and every store is
told so by the end of its stream.

It speaks no protocol: `grpc` and `http` do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from drillyard.emulator.logs import Log
from drillyard.emulator.pd.cluster import Outcome, Refusal, state_name
from drillyard.emulator.pd.config import Settings
from drillyard.emulator.pd.consensus import Consensus
from drillyard.emulator.pd.placement import Ended, Placement, response_of
from drillyard.emulator.pd.reports import Reports
from drillyard.emulator.pd.timestamps import Oracle, Stamp
from drillyard.emulator.pd.views import operator as operator_text
from drillyard.emulator.raft.types import NotLeader
from drillyard.wire import drillpb, metapb, pdpb

ID_WINDOW = 1000
ID_RESERVE = 100  # ids left when the next window is asked for
TSO_WINDOW_MS = 3000
TSO_RESERVE_MS = 1000
BEAT_PERSIST_NS = 5 * 10**9  # the replicated time of a store's heartbeat lags behind the heard one by no more
PATROL_S = 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who takes over the lead. The cluster id counts only for the first leader ever."""

    member_id: int
    fresh_cluster_id: int


@dataclass(frozen=True, slots=True)
class Start:
    """Where the timestamps and the ids of one lead begin, and how far they were agreed on."""

    first_ms: int
    bound_ms: int
    ids: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Clock:
    """The wall clock, for what people and clients read. Nothing safe depends on it."""

    now_ns: Callable[[], int]

    def now_ms(self) -> int:
        return self.now_ns() // 10**6


@dataclass(frozen=True, slots=True)
class Means:
    """What a member works with."""

    settings: Settings
    clock: Clock
    log: Log


class Outlet:
    """What goes down to one store over its heartbeat stream."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[pdpb.RegionHeartbeatResponse] = asyncio.Queue()


class Leadership:
    def __init__(self, consensus: Consensus, means: Means, start: Start) -> None:
        self.consensus = consensus
        self.clock = means.clock
        self.settings = means.settings
        self.reports = Reports()
        self.placement = Placement(self.settings.replicas())
        self.ended = asyncio.Event()
        self._log = means.log
        self._oracle = Oracle(start.first_ms, start.bound_ms)
        self._next_id, self._ids_end = start.ids
        self._more_ids: asyncio.Future[Outcome] | None = None
        self._more_time: asyncio.Future[Outcome] | None = None
        self._outlets: dict[int, Outlet] = {}
        self._unfinished: set[int] = set()
        self._beats: dict[int, int] = {}  # store -> the time of its heartbeat on its way into the log
        self._patrol_soon = asyncio.Event()
        self._patrol_task = asyncio.get_running_loop().create_task(self._patrol())
        self._patrol_task.add_done_callback(_raise_alarm)

    def end(self) -> None:
        self.ended.set()
        self._patrol_task.cancel()

    # ---- ids ----

    async def ids(self, count: int) -> list[int]:
        """Fresh ids, in order; they were never given before and never will be again."""
        taken: list[int] = []
        while len(taken) < count:
            if self._next_id == self._ids_end:
                await asyncio.shield(self._widen_ids())  # others wait for it, too
                continue
            taken.append(self.take_id())
        return taken

    def take_id(self) -> int:
        """A fresh id if one is at hand, else 0."""
        if self._ids_end - self._next_id <= ID_RESERVE:
            self._widen_ids()
        if self._next_id == self._ids_end:
            return 0
        self._next_id += 1
        return self._next_id - 1

    def _widen_ids(self) -> asyncio.Future[Outcome]:
        if self._more_ids is None:
            self._more_ids = self.consensus.submit(drillpb.PdCommand(allot_ids=ID_WINDOW))
            self._more_ids.add_done_callback(self._take_window)
        return self._more_ids

    def _take_window(self, answer: asyncio.Future[Outcome]) -> None:
        self._more_ids = None
        if answer.exception() is None:
            end = answer.result().value
            if self._ids_end != end - ID_WINDOW:
                self._next_id = end - ID_WINDOW  # the windows do not meet: what is left of the old one is dropped
            self._ids_end = end

    # ---- timestamps ----

    @property
    def last_physical_ms(self) -> int:
        return self._oracle.physical_ms

    async def timestamp(self, count: int) -> Stamp:
        await self.consensus.confirm()
        while True:
            now_ms = self.clock.now_ms()
            stamp = self._oracle.grant(count, now_ms)
            if stamp is None:
                await asyncio.shield(self._raise_bound(now_ms))
                continue
            if self._oracle.is_short(now_ms, TSO_RESERVE_MS):
                self._raise_bound(now_ms)
            return stamp

    def _raise_bound(self, now_ms: int) -> asyncio.Future[Outcome]:
        if self._more_time is None:
            bound_ms = self._oracle.wanted_bound(now_ms, TSO_WINDOW_MS)
            self._more_time = self.consensus.submit(drillpb.PdCommand(raise_bound_ms=bound_ms))
            self._more_time.add_done_callback(self._take_bound)
        return self._more_time

    def _take_bound(self, answer: asyncio.Future[Outcome]) -> None:
        self._more_time = None
        if answer.exception() is None:
            self._oracle.raise_bound(answer.result().value)

    # ---- stores ----

    def state_of(self, store: metapb.Store) -> str:
        heard = metapb.Store(state=store.state, last_heartbeat=self.reports.last_heard_ns(store))
        return state_name(heard, self.clock.now_ns(), self.settings.down_after_ns())

    def stores_up(self) -> dict[int, int]:
        """The stores that may take a peer now, with the number of regions that they hold."""
        cluster = self.consensus.cluster
        return {
            store_id: cluster.regions.peers[store_id]
            for store_id, store in sorted(cluster.stores.items())
            if store_id in self.reports.stores and self.state_of(store) == "Up"
        }

    def hear_store(self, stats: pdpb.StoreStats) -> Refusal | None:
        """Takes a store's heartbeat in; says why not, if not."""
        store = self.consensus.cluster.stores.get(stats.store_id)
        if store is None:
            return Refusal(pdpb.UNKNOWN, f"store {stats.store_id} not found")
        if store.state == metapb.Tombstone:
            return Refusal(pdpb.STORE_TOMBSTONE, f"store {store.id} is tombstone")
        now_ns = self.clock.now_ns()
        if store.id not in self.reports.stores or self.state_of(store) != "Up":
            self._log.info("store is up", store_id=store.id, store_address=store.address)
            self._patrol_soon.set()
        self.reports.hear_store(stats, now_ns)
        if now_ns - max(store.last_heartbeat, self._beats.get(store.id, 0)) > BEAT_PERSIST_NS:
            self._beats[store.id] = now_ns
            beat = drillpb.PdStoreBeat(store_id=store.id, at_ns=now_ns)
            self.consensus.submit(drillpb.PdCommand(store_beat=beat))
        return None

    # ---- regions ----

    def bind(self, store_id: int, outlet: Outlet) -> None:
        """From now on this stream is the way to the store. The empty answer tells the store that it is heard."""
        self._outlets[store_id] = outlet
        outlet.queue.put_nowait(self._stamped(pdpb.RegionHeartbeatResponse()))

    def unbind(self, outlet: Outlet) -> None:
        for store_id in [each for each, bound in self._outlets.items() if bound is outlet]:
            del self._outlets[store_id]

    def hear_region(self, request: pdpb.RegionHeartbeatRequest, outlet: Outlet) -> None:
        """Takes a region's heartbeat in; a change of its meta goes through the log first."""
        regions = self.consensus.cluster.regions
        if regions.get(request.region.id) == request.region:
            self._heard(request, outlet)
            return
        if stale := regions.staleness(request.region):
            self._answer_error(request, outlet, stale)
            return
        answer = self.consensus.submit(drillpb.PdCommand(put_region=request.region))
        answer.add_done_callback(partial(self._settled, request, outlet))

    def _settled(self, request: pdpb.RegionHeartbeatRequest, outlet: Outlet, answer: asyncio.Future[Outcome]) -> None:
        if self.ended.is_set() or answer.exception() is not None:
            return  # the stream ends with the lead, and the store tells the next leader
        if (refusal := answer.result().refusal) is not None:
            self._answer_error(request, outlet, refusal.message)
        else:
            self._heard(request, outlet)

    def _heard(self, request: pdpb.RegionHeartbeatRequest, outlet: Outlet) -> None:
        if self.reports.is_outdated(request):
            self._answer_error(request, outlet, f"region is stale: term {request.term} of region {request.region.id}")
            return
        self.reports.hear_region(request)
        self._place(request.region.id, "heartbeat")

    def _answer_error(self, request: pdpb.RegionHeartbeatRequest, outlet: Outlet, message: str) -> None:
        error = pdpb.Error(type=pdpb.UNKNOWN, message=message)
        response = self._stamped(pdpb.RegionHeartbeatResponse(target_peer=request.leader))
        response.header.error.CopyFrom(error)
        outlet.queue.put_nowait(response)
        self._log.warn("region heartbeat refused", region_id=request.region.id, error=message)

    def _place(self, region_id: int, source: str) -> None:
        """Decides on a region's next step, and sends it to the region's leader."""
        meta = self.consensus.cluster.regions.get(region_id)
        view = self.reports.view_of(meta) if meta is not None else None
        if view is None:
            return
        self.placement.replicas = self.settings.replicas()
        step, ended = self.placement.decide(view, self.stores_up(), self.take_id, self.clock.now_ns())
        self._log_operators(region_id, ended)
        voters = sum(1 for peer in view.meta.peers if peer.role == metapb.Voter)
        if step is not None or voters != self.placement.replicas or len(view.meta.peers) != voters:
            self._unfinished.add(region_id)
        else:
            self._unfinished.discard(region_id)
        outlet = self._outlets.get(view.leader.store_id)
        if step is not None and outlet is not None:
            outlet.queue.put_nowait(self._stamped(response_of(step, view)))
            self._log.info("send schedule command", region_id=region_id, step=step.text, source=source)

    def _log_operators(self, region_id: int, ended: Ended) -> None:
        for message, operators in (
            ("operator finish", ended.finished),
            ("operator canceled", ended.cancelled),
            ("add operator", ended.added),
        ):
            for each in operators:
                self._log.info(message, region_id=region_id, operator=operator_text(each))

    async def _patrol(self) -> None:
        """Looks again at the regions that are not as they should be: a store may have come up, or a step got lost."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._patrol_soon.wait(), PATROL_S)
            self._patrol_soon.clear()
            cluster = self.consensus.cluster
            if len(self.reports.regions) > len(cluster.regions):
                self.reports.keep_only(cluster)
            gone = [each for each in self._unfinished if cluster.regions.get(each) is None]
            self._unfinished.difference_update(gone)
            self.placement.forget(gone)
            for count, region_id in enumerate(sorted(self._unfinished), 1):
                self._place(region_id, "active push")
                if count % 100 == 0:
                    await asyncio.sleep(0)  # never a long slice

    def _stamped(self, response: pdpb.RegionHeartbeatResponse) -> pdpb.RegionHeartbeatResponse:
        response.header.cluster_id = self.consensus.cluster.cluster_id
        return response


def _raise_alarm(task: asyncio.Task[None]) -> None:
    """A leader whose patrol broke would look sound, and leave regions as they are for ever."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "the patrol of regions broke", "exception": error})


async def begin(consensus: Consensus, clock: Clock, candidate: Candidate) -> Start:
    """The first entry of a lead: where its timestamps and ids start.

    Once it is applied, so is everything before it: from then on the leader may serve.
    """
    term = consensus.term
    lead = drillpb.PdLead(
        member_id=candidate.member_id,
        term=term,
        cluster_id=candidate.fresh_cluster_id,
        now_ms=clock.now_ms(),
        window_ms=TSO_WINDOW_MS,
        ids=ID_WINDOW,
    )
    outcome = await consensus.submit(drillpb.PdCommand(lead=lead))
    if consensus.term != term:
        raise NotLeader(consensus.leader)
    cluster = consensus.cluster
    window = (cluster.ids_end - ID_WINDOW, cluster.ids_end)
    return Start(outcome.value, outcome.value + TSO_WINDOW_MS, window)
