"""The mind of PD's leader: what one lead hears, what it wants agreed on, what it sends to stores and what it logs.

Rules: it is a machine. Heartbeats, outcomes of commands and ticks go in with the time; what it wants done gathers in
one `Output`, which its driver takes after each call, and carries out in any order. A driver is the member's shell
(`leadership`) or a simulation. Region metas are taken from the replicated state, never straight from a heartbeat: a
heartbeat with a new meta waits until the command that carries the meta was applied. When the lead is lost the machine
is thrown away: nothing in it is needed by the next leader, to whom the stores report everything again.

It knows no stream, no clock and no timestamps, and what regions should look like is the business of `placement`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from msgspec import Struct, field

from drillyard.emulator.pd.cluster import Cluster, state_name
from drillyard.emulator.pd.config import Settings
from drillyard.emulator.pd.departures import Departures
from drillyard.emulator.pd.events import Events
from drillyard.emulator.pd.hotspots import READ, WRITE, Flow, HotPeers
from drillyard.emulator.pd.operators import Operator, Status
from drillyard.emulator.pd.outcomes import Outcome, Refusal
from drillyard.emulator.pd.placement import Placement
from drillyard.emulator.pd.reports import Reports
from drillyard.emulator.pd.views import operator as operator_text
from drillyard.wire import drillpb, metapb, pdpb

ID_WINDOW = 1000
ID_RESERVE = 100  # ids left when the next window is asked for
TSO_WINDOW_MS = 3000
LOOK_EVERY_NS = 5 * 10**8
BEAT_PERSIST_NS = 5 * 10**9  # the replicated time of a store's heartbeat lags behind the heard one by no more
BEAT_ALONG_NS = BEAT_PERSIST_NS // 2  # from here on it is written along when that of another store has to be


class Candidate(Struct, frozen=True):
    """Who takes over the lead. The cluster id counts only for the first leader ever."""

    member_id: int
    fresh_cluster_id: int


class Start(Struct, frozen=True):
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


class Proposal(Struct, frozen=True):
    """A command for the log. Its driver says what became of it: `settle`, or `drop` if that is not known."""

    command: drillpb.PdCommand
    heartbeat: pdpb.RegionHeartbeatRequest | None = None  # the one that brought it, and waits for it


class Send(Struct, frozen=True):
    """An answer for the store that leads a region. A store whose stream is not there hears it later or never."""

    store_id: int
    response: pdpb.RegionHeartbeatResponse


class Note(Struct, frozen=True):
    """A line for the log."""

    message: str
    fields: dict[str, Any]
    is_warning: bool = False


class Output(Struct):
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
        self.placement = Placement(cluster, self.reports, settings.placing, self.take_id)
        self.departures = Departures()
        self.events = Events()
        self._looked_ns = 0
        self.written, self.read = HotPeers(WRITE), HotPeers(READ)
        self.placement.flows.watch(self.written, self.read)
        self._next_id, self._ids_end = ids
        self._is_widening = False
        self._under_way: Counter[int] = Counter()  # region -> its heartbeats on their way through the log
        self._beats: dict[int, int] = {}  # store -> the time of its heartbeat on its way into the log
        self._output = Output()

    def take_output(self) -> Output:
        """What is to be done; due after every call, also after one that asked `placement` for something."""
        self._take_doings()
        taken, self._output = self._output, Output()
        return taken

    # ---- commands ----

    def settle(self, proposal: Proposal, outcome: Outcome, now_ns: int) -> None:
        """A command was applied, and this came of it."""
        if proposal.command.HasField("allot_ids"):
            self._take_window(outcome.value)
        if proposal.heartbeat is None:
            return
        self._leave_log(proposal.heartbeat)
        if outcome.refusal is not None:
            self._refuse(proposal.heartbeat, outcome.refusal.message)
            return
        for region_id in outcome.covered:
            self.reports.forget(region_id)
        self._heard(proposal.heartbeat, now_ns)

    def drop(self, proposal: Proposal) -> None:
        """A command got lost, or nobody knows: its lead is over or soon will be."""
        if proposal.command.HasField("allot_ids"):
            self._is_widening = False
        if proposal.heartbeat is not None:
            self._leave_log(proposal.heartbeat)

    def _leave_log(self, heartbeat: pdpb.RegionHeartbeatRequest) -> None:
        region_id = heartbeat.region.id
        self._under_way[region_id] -= 1
        if not self._under_way[region_id]:
            del self._under_way[region_id]

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
        self._hear_reads(stats, now_ns)
        if now_ns - self._kept_beat_ns(store) > BEAT_PERSIST_NS:
            self._keep_beats()
        return None

    def _keep_beats(self) -> None:
        """Those of all stores at once, because it is rounds of the log that are dear."""
        for store in self.cluster.stores.values():
            heard_ns = self.reports.last_heard_ns(store)
            if heard_ns - self._kept_beat_ns(store) > BEAT_ALONG_NS:
                self._beats[store.id] = heard_ns
                beat = drillpb.PdStoreBeat(store_id=store.id, at_ns=heard_ns)
                self._output.proposals.append(Proposal(drillpb.PdCommand(store_beat=beat)))

    def _kept_beat_ns(self, store: metapb.Store) -> int:
        return max(store.last_heartbeat, self._beats.get(store.id, 0))

    def _hear_reads(self, stats: pdpb.StoreStats, now_ns: int) -> None:
        span = stats.interval.end_timestamp - stats.interval.start_timestamp
        for each in stats.peer_stats:
            region = self.cluster.regions.get(each.region_id)
            report = self.reports.regions.get(each.region_id)
            if region is not None and report is not None:
                flow = Flow(each.read_bytes, each.read_keys, span, now_ns)
                self.read.hear(region, report.leader, stats.store_id, flow)

    # ---- regions ----

    def hear_region(self, request: pdpb.RegionHeartbeatRequest, now_ns: int) -> None:
        """Takes a region's heartbeat in; a change of its meta goes through the log first.

        None overtakes an earlier one of its region there: what that one says would be believed last.
        """
        self.events.heartbeat(self.cluster.stores.get(request.leader.store_id), "recv")
        regions = self.cluster.regions
        if regions.get(request.region.id) == request.region and not self._under_way[request.region.id]:
            self._heard(request, now_ns)
        elif stale := regions.staleness(request.region):
            self._refuse(request, stale)
        else:
            self._under_way[request.region.id] += 1
            self._output.proposals.append(Proposal(drillpb.PdCommand(put_region=request.region), request))

    def _heard(self, request: pdpb.RegionHeartbeatRequest, now_ns: int) -> None:
        if self.reports.is_outdated(request):
            self._refuse(request, f"region is stale: term {request.term} of region {request.region.id}")
            return
        self.events.heartbeat(self.cluster.stores.get(request.leader.store_id), "ok")
        self.reports.hear_region(request)
        span = request.interval.end_timestamp - request.interval.start_timestamp
        flow = Flow(request.bytes_written, request.keys_written, span, now_ns)
        for peer in request.region.peers:
            self.written.hear(request.region, request.leader, peer.store_id, flow)
        self.placement.hear(request.region.id, now_ns)

    def _refuse(self, request: pdpb.RegionHeartbeatRequest, message: str) -> None:
        response = pdpb.RegionHeartbeatResponse(target_peer=request.leader)
        response.header.error.CopyFrom(pdpb.Error(type=pdpb.UNKNOWN, message=message))
        self.events.heartbeat(self.cluster.stores.get(request.leader.store_id), "err")
        self._send(request.leader.store_id, response)
        fields = {"region_id": request.region.id, "error": message}
        self._output.notes.append(Note("region heartbeat refused", fields, is_warning=True))

    # ---- the passing of time ----

    def tick(self, now_ns: int) -> bool:
        """Steps are sent again, regions looked at, the cluster balanced, each when its time has come.

        One call does little. True means that the next call should be soon.
        """
        if now_ns - self._looked_ns >= LOOK_EVERY_NS:
            self._looked_ns = now_ns
            self._look(now_ns)
        return self.placement.tick(now_ns)

    def _look(self, now_ns: int) -> None:
        """What is heard of is compared with what is there."""
        if len(self.reports.regions) > len(self.cluster.regions):
            self.reports.keep_only(self.cluster)
        for hot in (self.written, self.read):
            hot.keep(self.cluster.regions.get, now_ns)
        for command in self.departures.look(self.cluster, self.reports, now_ns):
            self._output.proposals.append(Proposal(command))

    # ---- output ----

    def _take_doings(self) -> None:
        doings = self.placement.controller.take_doings()
        for operator in doings.added:
            self.events.operators[operator.desc, "create"] += 1
            self._note("add operator", region_id=operator.region_id, operator=operator_text(operator))
        for operator in doings.ended:
            self._note_end(operator)
        for each in doings.dispatches:
            self._note("send schedule command", region_id=each.region.id, step=each.step.text, source=each.source)
            if each.order is not None:
                response = pdpb.RegionHeartbeatResponse(
                    region_id=each.region.id, region_epoch=each.region.meta.region_epoch, target_peer=each.region.leader
                )
                response.MergeFrom(each.order)
                self._send(each.region.leader.store_id, response)

    def _note_end(self, operator: Operator) -> None:
        if not operator.started_ns:
            return  # it was never let in
        if operator.status is Status.SUCCESS:
            spent_s = (operator.ended_ns - operator.started_ns) / 10**9
            self.events.operator_finished(operator.desc, spent_s)
        else:
            self.events.operators[operator.desc, _EVENTS[operator.status]] += 1
        fields = {"region_id": operator.region_id, "operator": operator_text(operator)}
        if operator.reason:
            fields["reason"] = operator.reason
        self._note(_ENDS[operator.status], **fields)

    def _send(self, store_id: int, response: pdpb.RegionHeartbeatResponse) -> None:
        response.header.cluster_id = self.cluster.cluster_id
        self._output.sends.append(Send(store_id, response))

    def _note(self, message: str, **fields: Any) -> None:
        self._output.notes.append(Note(message, fields))


_ENDS = {
    Status.SUCCESS: "operator finish",
    Status.CANCELED: "operator canceled",
    Status.REPLACED: "replace old operator",
    Status.TIMEOUT: "operator timeout",
    Status.EXPIRED: "operator expired",
}
_EVENTS = {
    Status.CANCELED: "cancel",
    Status.REPLACED: "replace",
    Status.TIMEOUT: "timeout",
    Status.EXPIRED: "expire",
}
