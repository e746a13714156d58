"""One lead of one PD member, from the entry that began it to its loss: what only the leader may do.

Rules: ids come from windows, and timestamps from a bound, that the group agreed on before; a timestamp is granted only
after a round of messages has shown that this member still led when it was asked. When the lead is lost all of this is
thrown away, and every store is told so by the end of its stream.

It drives the `Coordinator`, which decides; here are the clock, the log, the streams and the way into consensus. It
speaks no protocol: `grpc` and `http` do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

from msgspec import Struct, field

from drillyard.emulator.logs import Log
from drillyard.emulator.pd.config import Settings
from drillyard.emulator.pd.consensus import Consensus
from drillyard.emulator.pd.coordinator import (
    TSO_WINDOW_MS,
    Candidate,
    Coordinator,
    Output,
    Proposal,
    Start,
    first_command,
    start_of,
)
from drillyard.emulator.pd.departures import Departures
from drillyard.emulator.pd.events import Events
from drillyard.emulator.pd.hotspots import HotPeers
from drillyard.emulator.pd.outcomes import Outcome, Refusal
from drillyard.emulator.pd.placement import Placement
from drillyard.emulator.pd.reports import Reports
from drillyard.emulator.pd.timestamps import Oracle, Stamp
from drillyard.emulator.raft.types import NotLeader
from drillyard.wire import drillpb, metapb, pdpb

TSO_RESERVE_MS = 1000
TICK_S = 0.2
OUTLET_RESPONSES = 1024  # that wait for one store to read them, as in the real PD


class Clock(Struct, frozen=True):
    """The wall clock, for what people and clients read. Nothing safe depends on it."""

    now_ns: Callable[[], int]

    def now_ms(self) -> int:
        return self.now_ns() // 10**6


class Means(Struct, frozen=True):
    """What a member works with."""

    settings: Settings
    clock: Clock
    log: Log
    events: Events = field(default_factory=Events)


class Outlet:
    """What goes down to one store over its heartbeat stream.

    A store that stands still reads nothing: what does not fit is dropped. PD says a step again when the region's next
    heartbeat shows that it has not been taken.
    """

    def __init__(self) -> None:
        self.queue: asyncio.Queue[pdpb.RegionHeartbeatResponse] = asyncio.Queue(OUTLET_RESPONSES)

    def put(self, response: pdpb.RegionHeartbeatResponse) -> bool:
        """Whether there was room."""
        if self.queue.full():
            return False
        self.queue.put_nowait(response)
        return True


class Leadership:
    def __init__(self, consensus: Consensus, means: Means, start: Start) -> None:
        self.consensus = consensus
        self.clock = means.clock
        self.settings = means.settings
        self.coordinator = Coordinator(consensus.cluster, means.settings, start.ids)
        self.events = self.coordinator.events = means.events
        self.events.timestamps["save"] += 1  # the first entry of the lead agreed on a bound
        self.ended = asyncio.Event()
        self._log = means.log
        self._oracle = Oracle(start.first_ms, start.bound_ms)
        self._more_ids: asyncio.Future[Outcome] | None = None
        self._more_time: asyncio.Future[Outcome] | None = None
        self._outlets: dict[int, Outlet] = {}
        self._tick_soon = asyncio.Event()
        self._ticking = asyncio.get_running_loop().create_task(self._tick())
        self._ticking.add_done_callback(_raise_alarm)

    @property
    def reports(self) -> Reports:
        return self.coordinator.reports

    @property
    def hot(self) -> dict[str, HotPeers]:
        return {"write": self.coordinator.written, "read": self.coordinator.read}

    @property
    def departures(self) -> Departures:
        return self.coordinator.departures

    @property
    def placement(self) -> Placement:
        return self.coordinator.placement

    def end(self) -> None:
        self.ended.set()
        self._ticking.cancel()

    def _see_that_it_goes_on(self) -> None:
        """A member that leads again has another lead: what this one was asked for before is not its to give."""
        if self.ended.is_set():
            raise NotLeader(self.consensus.leader)

    # ---- the coordinator's wishes ----

    def carry_out(self) -> None:
        """Does what the coordinator wants done; due after every call that may have changed its mind."""
        output: Output = self.coordinator.take_output()
        for note in output.notes:
            (self._log.warn if note.is_warning else self._log.info)(note.message, **note.fields)
        for proposal in output.proposals:
            answer = self.consensus.submit(proposal.command)
            if proposal.command.HasField("allot_ids"):
                self._more_ids = answer
            answer.add_done_callback(partial(self._settle, proposal))
        for send in output.sends:
            if (outlet := self._outlets.get(send.store_id)) is not None:
                status = "ok" if outlet.put(send.response) else "err"
                self.events.message(self.consensus.cluster.stores.get(send.store_id), "push", status)
        if output.wants_tick:
            self._tick_soon.set()

    def _settle(self, proposal: Proposal, answer: asyncio.Future[Outcome]) -> None:
        if answer is self._more_ids:
            self._more_ids = None
        if answer.exception() is not None:
            self.coordinator.drop(proposal)  # the streams end with the lead, and the stores tell the next leader
        elif not self.ended.is_set():
            self.coordinator.settle(proposal, answer.result(), self.clock.now_ns())
            self.carry_out()

    # ---- ids ----

    async def ids(self, count: int) -> list[int]:
        """Fresh ids, in order; they were never given before and never will be again."""
        taken: list[int] = []
        while len(taken) < count:
            self._see_that_it_goes_on()
            if fresh := self.coordinator.take_id():
                taken.append(fresh)
                continue
            self.carry_out()
            if self._more_ids is not None:
                await _settled(self._more_ids)
        self.carry_out()
        return taken

    # ---- timestamps ----

    @property
    def last_physical_ms(self) -> int:
        return self._oracle.physical_ms

    async def timestamp(self, count: int) -> Stamp:
        await self.consensus.confirm()
        while True:
            self._see_that_it_goes_on()
            now_ms = self.clock.now_ms()
            stamp = self._oracle.grant(count, now_ms)
            if stamp is None:
                await _settled(self._raise_bound(now_ms))
                continue
            if self._oracle.is_short(now_ms, TSO_RESERVE_MS):
                self._raise_bound(now_ms)
            return stamp

    def _raise_bound(self, now_ms: int) -> asyncio.Future[Outcome]:
        if self._more_time is None:
            bound_ms = self._oracle.wanted_bound(now_ms, TSO_WINDOW_MS)
            self._more_time = self.consensus.submit(drillpb.PdCommand(raise_bound_ms=bound_ms))
            self._more_time.add_done_callback(self._take_bound)
            if now_ms < self._oracle.physical_ms:
                self.events.timestamps["system_time_slow"] += 1
        return self._more_time

    def _take_bound(self, answer: asyncio.Future[Outcome]) -> None:
        self._more_time = None
        if answer.exception() is None:
            self.events.timestamps["save"] += 1
            self._oracle.raise_bound(answer.result().value)

    # ---- stores ----

    def state_of(self, store: metapb.Store) -> str:
        return self.coordinator.state_of(store, self.clock.now_ns())

    def hear_store(self, stats: pdpb.StoreStats) -> Refusal | None:
        """Takes a store's heartbeat in; says why not, if not."""
        refusal = self.coordinator.hear_store(stats, self.clock.now_ns())
        self.carry_out()
        return refusal

    def bind(self, store_id: int, outlet: Outlet) -> None:
        """From now on this stream is the way to the store. The empty answer tells the store that it is heard."""
        self._outlets[store_id] = outlet
        self.events.heartbeat(self.consensus.cluster.stores.get(store_id), "bind")
        greeting = pdpb.RegionHeartbeatResponse()
        greeting.header.cluster_id = self.consensus.cluster.cluster_id
        outlet.put(greeting)

    def count_keep_alive(self, outlet: Outlet) -> None:
        for store_id, bound in self._outlets.items():
            if bound is outlet:
                self.events.message(self.consensus.cluster.stores.get(store_id), "keepalive")

    def unbind(self, outlet: Outlet) -> None:
        for store_id in [each for each, bound in self._outlets.items() if bound is outlet]:
            del self._outlets[store_id]

    # ---- regions ----

    def hear_region(self, request: pdpb.RegionHeartbeatRequest) -> None:
        """Takes the heartbeat of a region in whose leader's store is bound; what it leads to goes down its outlet."""
        self.coordinator.hear_region(request, self.clock.now_ns())
        self.carry_out()

    async def _tick(self) -> None:
        """Ticks the coordinator, in slices."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):  # `wait_for` may lose a cancellation before Python 3.12
                    await self._tick_soon.wait()
            self._tick_soon.clear()
            while self.coordinator.tick(self.clock.now_ns()):
                self.carry_out()
                await asyncio.sleep(0)  # never a long slice
            self.carry_out()


async def _settled(answer: asyncio.Future[Outcome]) -> None:
    """Waits until an answer was taken in. Others wait for it, too: who gives up does not take it from them."""
    await asyncio.shield(answer)
    await asyncio.sleep(0)  # one that is there but not taken in yet would be met again and again, without a pause


def _raise_alarm(task: asyncio.Task[None]) -> None:
    """A leader that does not tick any more would look sound, and leave regions as they are for ever."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "the placement of regions broke", "exception": error})


async def begin(consensus: Consensus, clock: Clock, candidate: Candidate) -> Start:
    """Brings the first entry of a lead into the log; raises if the lead was lost meanwhile."""
    term = consensus.term
    outcome = await consensus.submit(first_command(candidate, term, clock.now_ms()))
    if consensus.term != term:
        raise NotLeader(consensus.leader)
    return start_of(outcome, consensus.cluster)
