"""The mind of PD's leader: what one lead hears, what it wants agreed on, what it sends to stores and what it logs.

Rules: it is a machine. Heartbeats, outcomes of commands and ticks go in with the time; what it wants done gathers in
one `Output`, which its driver takes after each call, and carries out in any order. A driver is the member's shell
(`leadership`) or a simulation. Region metas are taken from the replicated state, never straight from a heartbeat: a
heartbeat with a new meta waits until the command that carries the meta was applied. When the lead is lost the machine
is thrown away: nothing in it is needed by the next leader, to whom the stores report everything again.

It knows no stream, no clock and no timestamps, and what regions should look like is the business of `placement`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from drillyard.emulator.pd.cluster import Cluster, state_name
from drillyard.emulator.pd.config import Settings
from drillyard.emulator.pd.departures import Departures
from drillyard.emulator.pd.outcomes import Outcome, Refusal
from drillyard.emulator.pd.placement import Ended, Placement, response_of
from drillyard.emulator.pd.reports import Reports
from drillyard.emulator.pd.views import operator as operator_text
from drillyard.wire import drillpb, metapb, pdpb

ID_WINDOW = 1000
ID_RESERVE = 100  # ids left when the next window is asked for
TSO_WINDOW_MS = 3000
BEAT_PERSIST_NS = 5 * 10**9  # the replicated time of a store's heartbeat lags behind the heard one by no more
PATROL_BATCH = 100  # regions that one tick looks at


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


def first_command(candidate: Candidate, term: int, now_ms: int) -> drillpb.PdCommand:
    """The first entry of a lead. Once it is applied, so is everything before it: then the leader may serve."""
    lead = drillpb.PdLead(
        member_id=candidate.member_id,
        term=term,
        cluster_id=candidate.fresh_cluster_id,
        now_ms=now_ms,
        window_ms=TSO_WINDOW_MS,
        ids=ID_WINDOW,
    )
    return drillpb.PdCommand(lead=lead)


def start_of(outcome: Outcome, cluster: Cluster) -> Start:
    """What the first entry gave, read from the state that it was just applied to."""
    window = (cluster.ids_end - ID_WINDOW, cluster.ids_end)
    return Start(outcome.value, outcome.value + TSO_WINDOW_MS, window)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A command for the log. Its driver says what became of it: `settle`, or `drop` if that is not known."""

    command: drillpb.PdCommand
    heartbeat: pdpb.RegionHeartbeatRequest | None = None  # the one that brought it, and waits for it


@dataclass(frozen=True, slots=True)
class Send:
    """An answer for the store that leads a region. A store whose stream is not there hears it later or never."""

    store_id: int
    response: pdpb.RegionHeartbeatResponse


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log."""

    message: str
    fields: dict[str, Any]
    is_warning: bool = False


@dataclass(slots=True)
class Output:
    """What the machine wants done."""

    proposals: list[Proposal] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    wants_tick: bool = False  # now, rather than at the usual time


class Coordinator:
    def __init__(self, cluster: Cluster, settings: Settings, ids: tuple[int, int]) -> None:
        self.cluster = cluster
        self.settings = settings
        self.reports = Reports()
        self.placement = Placement(settings.replicas())
        self.departures = Departures()
        self._next_id, self._ids_end = ids
        self._is_widening = False
        self._beats: dict[int, int] = {}  # store -> the time of its heartbeat on its way into the log
        self._unfinished: set[int] = set()
        self._patrol: deque[int] = deque()  # what is left of the round of the patrol
        self._output = Output()

    def take_output(self) -> Output:
        taken, self._output = self._output, Output()
        return taken

    # ---- commands ----

    def settle(self, proposal: Proposal, outcome: Outcome, now_ns: int) -> None:
        """A command was applied, and this came of it."""
        if proposal.command.HasField("allot_ids"):
            self._take_window(outcome.value)
        elif proposal.heartbeat is not None and outcome.refusal is not None:
            self._refuse(proposal.heartbeat, outcome.refusal.message)
        elif proposal.heartbeat is not None:
            self._heard(proposal.heartbeat, now_ns)

    def drop(self, proposal: Proposal) -> None:
        """A command got lost, or nobody knows: its lead is over or soon will be."""
        if proposal.command.HasField("allot_ids"):
            self._is_widening = False

    # ---- ids ----

    def take_id(self) -> int:
        """A fresh id if one is at hand, else 0. It was never given before and never will be again."""
        if self._ids_end - self._next_id <= ID_RESERVE:
            self.widen_ids()
        if self._next_id == self._ids_end:
            return 0
        self._next_id += 1
        return self._next_id - 1

    def widen_ids(self) -> None:
        if not self._is_widening:
            self._is_widening = True
            self._output.proposals.append(Proposal(drillpb.PdCommand(allot_ids=ID_WINDOW)))

    def _take_window(self, end: int) -> None:
        self._is_widening = False
        if self._ids_end != end - ID_WINDOW:
            self._next_id = end - ID_WINDOW  # the windows do not meet: what is left of the old one is dropped
        self._ids_end = end

    # ---- stores ----

    def state_of(self, store: metapb.Store, now_ns: int) -> str:
        heard = metapb.Store(state=store.state, last_heartbeat=self.reports.last_heard_ns(store))
        return state_name(heard, now_ns, self.settings.down_after_ns())

    def stores_up(self, now_ns: int) -> dict[int, int]:
        """The stores that may take a peer now, with the number of regions that they hold."""
        return {
            store_id: self.cluster.regions.peers[store_id]
            for store_id, store in sorted(self.cluster.stores.items())
            if store_id in self.reports.stores and self.state_of(store, now_ns) == "Up"
        }

    def hear_store(self, stats: pdpb.StoreStats, now_ns: int) -> Refusal | None:
        """Takes a store's heartbeat in; says why not, if not."""
        store = self.cluster.stores.get(stats.store_id)
        if store is None:
            return Refusal(pdpb.UNKNOWN, f"store {stats.store_id} not found")
        if store.state == metapb.Tombstone:
            return Refusal(pdpb.STORE_TOMBSTONE, "store is tombstone")
        if store.id not in self.reports.stores or self.state_of(store, now_ns) != "Up":
            self._note("store is up", store_id=store.id, store_address=store.address)
            self._output.wants_tick = True
        self.reports.hear_store(stats, now_ns)
        if now_ns - max(store.last_heartbeat, self._beats.get(store.id, 0)) > BEAT_PERSIST_NS:
            self._beats[store.id] = now_ns
            beat = drillpb.PdStoreBeat(store_id=store.id, at_ns=now_ns)
            self._output.proposals.append(Proposal(drillpb.PdCommand(store_beat=beat)))
        return None

    # ---- regions ----

    def hear_region(self, request: pdpb.RegionHeartbeatRequest, now_ns: int) -> None:
        """Takes a region's heartbeat in; a change of its meta goes through the log first."""
        regions = self.cluster.regions
        if regions.get(request.region.id) == request.region:
            self._heard(request, now_ns)
        elif stale := regions.staleness(request.region):
            self._refuse(request, stale)
        else:
            self._output.proposals.append(Proposal(drillpb.PdCommand(put_region=request.region), request))

    def _heard(self, request: pdpb.RegionHeartbeatRequest, now_ns: int) -> None:
        if self.reports.is_outdated(request):
            self._refuse(request, f"region is stale: term {request.term} of region {request.region.id}")
            return
        self.reports.hear_region(request)
        self._place(request.region.id, "heartbeat", now_ns)

    def _refuse(self, request: pdpb.RegionHeartbeatRequest, message: str) -> None:
        response = pdpb.RegionHeartbeatResponse(target_peer=request.leader)
        response.header.error.CopyFrom(pdpb.Error(type=pdpb.UNKNOWN, message=message))
        self._send(request.leader.store_id, response)
        fields = {"region_id": request.region.id, "error": message}
        self._output.notes.append(Note("region heartbeat refused", fields, is_warning=True))

    def _place(self, region_id: int, source: str, now_ns: int) -> None:
        """Decides on a region's next step, and sends it to the region's leader."""
        meta = self.cluster.regions.get(region_id)
        view = self.reports.view_of(meta) if meta is not None else None
        if view is None:
            return
        self.placement.replicas = self.settings.replicas()
        step, ended = self.placement.decide(view, self.stores_up(now_ns), self.take_id, now_ns)
        self._note_operators(region_id, ended)
        voters = sum(1 for peer in view.meta.peers if peer.role == metapb.Voter)
        if step is not None or voters != self.placement.replicas or len(view.meta.peers) != voters:
            self._unfinished.add(region_id)
        else:
            self._unfinished.discard(region_id)
        if step is not None:
            self._send(view.leader.store_id, response_of(step, view))
            self._note("send schedule command", region_id=region_id, step=step.text, source=source)

    def _note_operators(self, region_id: int, ended: Ended) -> None:
        for message, operators in (
            ("operator finish", ended.finished),
            ("operator canceled", ended.cancelled),
            ("add operator", ended.added),
        ):
            for each in operators:
                self._note(message, region_id=region_id, operator=operator_text(each))

    # ---- the patrol ----

    def tick(self, now_ns: int) -> bool:
        """Looks again at regions that are not as they should be: a store may have come up, or a step got lost.

        One call looks at a batch. True means that the round has more to look at, so that the next call should be soon.
        """
        if not self._patrol:
            self._begin_round(now_ns)
        for _ in range(min(PATROL_BATCH, len(self._patrol))):
            self._place(self._patrol.popleft(), "active push", now_ns)
        return bool(self._patrol)

    def _begin_round(self, now_ns: int) -> None:
        for command in self.departures.look(self.cluster, self.reports, now_ns):
            self._output.proposals.append(Proposal(command))
        if len(self.reports.regions) > len(self.cluster.regions):
            self.reports.keep_only(self.cluster)
        gone = [each for each in self._unfinished if self.cluster.regions.get(each) is None]
        self._unfinished.difference_update(gone)
        self.placement.forget(gone)
        self._patrol.extend(sorted(self._unfinished))

    # ---- output ----

    def _send(self, store_id: int, response: pdpb.RegionHeartbeatResponse) -> None:
        response.header.cluster_id = self.cluster.cluster_id
        self._output.sends.append(Send(store_id, response))

    def _note(self, message: str, **fields: Any) -> None:
        self._output.notes.append(Note(message, fields))
