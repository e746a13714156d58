"""A simulated PD member: what the shells `consensus`, `member`, `leadership` and `grpc` do, on a simulated disk.

The replicated state, the coordinator and the oracle are the real ones; this drives them by the same contract: a command
is answered once it was applied here, the lead begins with the first entry of its term, a timestamp is granted only
after a round has shown that this member still leads, and all that the lead knew is thrown away with it.

Requests come with the way back for their answer. What is lost with the lead is never answered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Struct

from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.config import Settings
from drillyard.emulator.pd.coordinator import (
    TSO_WINDOW_MS,
    Candidate,
    Coordinator,
    Proposal,
    first_command,
    start_of,
)
from drillyard.emulator.pd.outcomes import Outcome
from drillyard.emulator.pd.timestamps import Oracle
from drillyard.emulator.raft import Raft
from drillyard.emulator.raft.types import (
    Configuration,
    Entry,
    Message,
    MessageKind,
    ProposalDropped,
    ProtocolBroken,
    Ready,
    Restored,
    Role,
    SnapshotMeta,
)
from drillyard.emulator.simulation.disks import Disk, Syncer
from drillyard.emulator.simulation.parts import Violation
from drillyard.emulator.simulation.stage import TICK_US, Stage
from drillyard.emulator.simulation.world import MILLISECOND_US, Member
from drillyard.wire import drillpb, metapb, pdpb

GROUP = 0
SNAPSHOT_EVERY = 40  # applied entries
LOG_KEPT = 8
TSO_RESERVE_MS = 1000
PATROL_US = 500 * MILLISECOND_US
EPOCH_US = 1_700_000_000_000_000
CLUSTER_ID = 7


class PdAnswer(Struct, frozen=True):
    """`term` is the term in which the member leads, 0 if it does not; then `leader` is who might."""

    term: int
    leader: int
    value: Any = None
    refusal: str = ""


Reply = Callable[[PdAnswer], None]


class Lead:
    """What a PD member has only while it leads."""

    def __init__(self, coordinator: Coordinator, oracle: Oracle, term: int) -> None:
        self.coordinator = coordinator
        self.oracle = oracle
        self.term = term
        self.is_raising = False
        self.waiting: list[Callable[[], None]] = []  # for the bound to rise


class PdMember(Member):
    def __init__(self, number: int, stage: Stage) -> None:
        super().__init__(f"pd{number}", number, stage.world)
        self.number = number
        self.disk = Disk()
        self.offset_us = 0  # of the wall clock
        self.lead: Lead | None = None
        self._stage = stage

    # ---- life ----

    def start(self) -> None:
        self.begin_life()
        voters = Configuration(frozenset(self._stage.pds))
        self._meta = SnapshotMeta(0, 0, voters)
        self.cluster = Cluster()
        kept = self.disk.record("snapshot")
        if kept is not None:
            self._meta, state = kept
            self.cluster = Cluster.from_message(drillpb.PdState.FromString(state))
        log = self.disk.log(GROUP)
        restored = Restored(
            self._meta.configuration, log.hard_state, log.before, log.before_term, log.entries, self._meta.index
        )
        self.raft = Raft(self.number, restored, self._stage.pd_raft, self.world.dice.below)
        self.lead = None
        self._syncer = Syncer(self, self.disk)
        self._proposals: dict[int, tuple[int, Callable[[Outcome | None], None]]] = {}
        self._confirmations: dict[bytes, Callable[[], None]] = {}
        self._confirmed: list[tuple[int, bytes]] = []
        self._rounds = 0
        self._incoming: dict[tuple[int, int], bytes] = {}
        self._is_woken = False
        self._seen = (self.raft.role, self.raft.term)
        self.later(self.world.dice.below(TICK_US), self._tick)
        self.later(self.world.dice.below(PATROL_US), self._patrol)
        if self.number == 1 and not self.raft.last_index:
            self.raft.campaign()
            self._wake()

    def crash(self) -> int:
        self.end_life()
        self.lead = None
        return self.disk.cut_power(self.world.dice)

    @property
    def now_ns(self) -> int:
        return (EPOCH_US + self.world.now_us + self.offset_us) * 1000

    def _tick(self) -> None:
        self.later(TICK_US - 500 + self.world.dice.below(1000), self._tick)
        self.raft.tick()
        self._wake()

    # ---- requests of stores and clients ----

    def _answer(self, value: Any = None, refusal: str = "") -> PdAnswer:
        if self.lead is None:
            return PdAnswer(0, self.raft.leader if self.raft.leader != self.number else 0)
        return PdAnswer(self.lead.term, self.number, value, refusal)

    def hear_store(self, stats: pdpb.StoreStats, reply: Reply) -> None:
        refusal = None
        if self.lead is not None:
            refusal = self.lead.coordinator.hear_store(stats, self.now_ns)
            self._carry_out_wishes()
        reply(self._answer(refusal="" if refusal is None else refusal.message))

    def hear_region(self, request: pdpb.RegionHeartbeatRequest, reply: Reply) -> None:
        if self.lead is None or request.leader.store_id not in self.cluster.stores:
            reply(self._answer(refusal="no such store"))
            return
        self.lead.coordinator.hear_region(request, self.now_ns)
        self._carry_out_wishes()

    def give_ids(self, count: int, reply: Reply) -> None:
        """All of them, or none until there are more."""
        ids = self.take_ids(count)
        reply(self._answer(ids, "" if ids else "no ids at hand"))

    def take_ids(self, count: int) -> tuple[int, ...]:
        lead = self.lead
        if lead is None:
            return ()
        ids = tuple(lead.coordinator.take_id() for _ in range(count))
        self._carry_out_wishes()
        for given in ids:
            if given:
                self._stage.witness.see_id(given)
        return ids if all(ids) else ()

    def ask_split(self, region: metapb.Region, count: int, reply: Reply) -> None:
        """The ids for a split: for each new region its own and those of its peers."""
        if stale := self.cluster.regions.staleness(region):
            reply(self._answer(refusal=stale))
            return
        width = 1 + len(region.peers)
        ids = self.take_ids(count * width)
        if self.lead is not None and ids:
            self.lead.coordinator.placement.record_split([region.id, *ids[::width]], self.now_ns)
        reply(self._answer(ids, "" if ids else "no ids at hand"))

    def is_bootstrapped(self, reply: Reply) -> None:
        reply(self._answer(self.cluster.bootstrapped))

    def submit(self, command: drillpb.PdCommand, reply: Reply) -> None:
        """A command for the replicated state, answered with its outcome."""
        if self.lead is None:
            reply(self._answer())
            return

        def done(outcome: Outcome | None) -> None:
            if outcome is not None:
                refusal = outcome.refusal
                reply(self._answer(outcome.value, "" if refusal is None else refusal.message))

        self._propose(command, done)

    def locate(self, key: bytes, reply: Reply) -> None:
        """The region that holds a key, and its leader if that is known."""
        found = None
        if self.lead is not None:
            region = self.cluster.regions.find(key)
            if region is not None:
                found = (region, self.lead.coordinator.reports.leader_of(region))
        reply(self._answer(found))

    def find(self, ids: tuple[int, ...], key: bytes, reply: Reply) -> None:
        """The regions of these ids and the one that has the key, as far as they are known."""
        regions = self.cluster.regions
        known = [found for region_id in ids if (found := regions.get(region_id)) is not None]
        reply(self._answer((known, regions.find(key)) if self.lead is not None else None))

    def timestamp(self, count: int, floor: tuple[int, int], reply: Reply) -> None:
        lead = self.lead
        if lead is None:
            reply(self._answer())
            return
        self._confirm(lambda: self._grant(lead, count, floor, reply))

    def _grant(self, lead: Lead, count: int, floor: tuple[int, int], reply: Reply) -> None:
        if self.lead is not lead:
            return
        now_ms = self.now_ns // 10**6
        stamp = lead.oracle.grant(count, now_ms)
        if stamp is None:
            lead.waiting.append(lambda: self._grant(lead, count, floor, reply))
            self._raise_bound(lead, now_ms)
            return
        if lead.oracle.is_short(now_ms, TSO_RESERVE_MS):
            self._raise_bound(lead, now_ms)
        value = (stamp.physical, stamp.logical)
        self._stage.witness.see_stamp(value, floor)
        reply(self._answer(value))

    def _raise_bound(self, lead: Lead, now_ms: int) -> None:
        if lead.is_raising:
            return
        lead.is_raising = True

        def done(outcome: Outcome | None) -> None:
            lead.is_raising = False
            if outcome is not None:
                lead.oracle.raise_bound(outcome.value)
                waiting, lead.waiting = lead.waiting, []
                for call in waiting:
                    call()

        bound_ms = lead.oracle.wanted_bound(now_ms, TSO_WINDOW_MS)
        self._propose(drillpb.PdCommand(raise_bound_ms=bound_ms), done)

    # ---- the lead ----

    def _notice_role(self) -> None:
        seen = (self.raft.role, self.raft.term)
        if seen == self._seen:
            return
        was_leader, self._seen = self._seen[0] is Role.LEADER, seen
        if was_leader:
            if self.lead is not None:
                self.world.tell(f"{self} leads PD no longer")
            self.lead = None
            self._confirmations.clear()
            self._confirmed.clear()
            proposals, self._proposals = self._proposals, {}
            for _, done in proposals.values():
                done(None)
        if self.raft.role is Role.LEADER:
            self._stage.witness.see_leader(GROUP, self.raft.term, self.number)
            command = first_command(Candidate(self.number, CLUSTER_ID), self.raft.term, self.now_ns // 10**6)
            self._propose(command, partial(self._begin_lead, self.raft.term))
            self.world.ambush("PD election", self)

    def _begin_lead(self, term: int, outcome: Outcome | None) -> None:
        if outcome is None or self.raft.term != term or self.raft.role is not Role.LEADER:
            return
        start = start_of(outcome, self.cluster)
        settings = Settings(self._stage.pd_settings, lambda: self.cluster.settings)
        coordinator = Coordinator(self.cluster, settings, start.ids)
        self.lead = Lead(coordinator, Oracle(start.first_ms, start.bound_ms), term)
        self.world.tell(f"{self} leads PD in term {term}")

    def _patrol(self) -> None:
        delay_us = PATROL_US
        if self.lead is not None:
            if self.lead.coordinator.tick(self.now_ns):
                delay_us = 1
            self._carry_out_wishes()
        self.later(delay_us, self._patrol)

    def _carry_out_wishes(self) -> None:
        lead = self.lead
        if lead is None:
            return
        output = lead.coordinator.take_output()
        for note in output.notes:
            if note.message != "send schedule command":
                self.world.tell(f"{self}: {note.message} {_words(note.fields)}")
        for proposal in output.proposals:
            self._propose(proposal.command, partial(self._settle, lead, proposal))
        for send in output.sends:
            store = self._stage.store(send.store_id)
            if store is not None:
                self._stage.network.send(self, store, partial(store.hear_pd, send.response))
        if output.wants_tick:
            self.soon(self._tick_coordinator)

    def _tick_coordinator(self) -> None:
        if self.lead is not None:
            self.lead.coordinator.tick(self.now_ns)
            self._carry_out_wishes()

    def _settle(self, lead: Lead, proposal: Proposal, outcome: Outcome | None) -> None:
        if outcome is None:
            lead.coordinator.drop(proposal)
        elif self.lead is lead:
            lead.coordinator.settle(proposal, outcome, self.now_ns)
            self._carry_out_wishes()

    # ---- consensus ----

    def _propose(self, command: drillpb.PdCommand, done: Callable[[Outcome | None], None]) -> None:
        try:
            term, index = self.raft.propose(command.SerializeToString())
        except ProposalDropped:
            done(None)
            return
        self._proposals[index] = (term, done)
        self._wake()

    def _confirm(self, call: Callable[[], None]) -> None:
        self._rounds += 1
        context = self._rounds.to_bytes(8, "big")
        try:
            self.raft.read_index(context)
        except ProposalDropped:
            return
        self._confirmations[context] = call
        self._wake()

    def transfer_leader(self, to: int) -> None:
        try:
            self.raft.transfer_leader(to)
        except ProposalDropped:
            return
        self._wake()

    def step(self, message: Message, state: bytes) -> None:
        if message.snapshot is not None:
            self._incoming[message.snapshot.index, message.snapshot.term] = state
        self.raft.step(message)
        self._wake()

    def _wake(self) -> None:
        if not self._is_woken and self.raft.has_ready():
            self._is_woken = True
            self.soon(self._pump)

    def _pump(self) -> None:
        self._is_woken = False
        try:
            while self.raft.has_ready():
                self._carry_out(self.raft.ready())
                self._notice_role()
        except ProtocolBroken as broken:
            raise Violation("PD stopped itself", f"{self}: {broken}") from broken
        self._incoming.clear()
        self._syncer.begin()

    def _carry_out(self, ready: Ready) -> None:
        if ready.must_persist:
            if ready.snapshot is not None:
                self._install(ready.snapshot)
            self.disk.write("log", GROUP, self.disk.log(GROUP).staged(ready))
            self.disk.end_batch()
        for message in ready.messages:
            self._send(message)
        if ready.waits_for_disk:
            self._syncer.when_durable(partial(self._persisted, ready))
        for entry in ready.committed:
            self._apply(entry)
        if ready.committed:
            self.raft.applied_to(ready.committed[-1].index)
            self._compact()
        self._confirmed.extend((read.index, read.context) for read in ready.reads)
        ripe = [context for index, context in self._confirmed if index <= self.raft.applied]
        self._confirmed = [each for each in self._confirmed if each[0] > self.raft.applied]
        for context in ready.aborted_reads:
            self._confirmations.pop(context, None)
        for context in ripe:
            if (call := self._confirmations.pop(context, None)) is not None:
                call()

    def _persisted(self, ready: Ready) -> None:
        self.raft.persisted(ready.number)
        for message in ready.deferred:
            self._send(message)
        self._wake()

    def _apply(self, entry: Entry) -> None:
        outcome = self.cluster.apply(entry.data) if entry.data else Outcome()
        self._stage.witness.see_pd(self.name, entry.index, self.cluster)
        term, done = self._proposals.pop(entry.index, (0, None))
        if done is not None:
            done(outcome if term == entry.term else None)

    def _install(self, meta: SnapshotMeta) -> None:
        state = self._incoming[meta.index, meta.term]
        self.cluster = Cluster.from_message(drillpb.PdState.FromString(state))
        self._meta = meta
        self.disk.write("snapshot", 0, (meta, state))
        self.world.tell(f"{self} installs PD's state as of {meta.index}")

    def _compact(self) -> None:
        if self.raft.applied - self._meta.index < SNAPSHOT_EVERY:
            return
        self._meta = self.raft.snapshot_meta()
        self.disk.write("snapshot", 0, (self._meta, self.cluster.to_message().SerializeToString()))
        upto = self._meta.index - LOG_KEPT
        if upto >= self.raft.first_index:
            self.disk.write("log", GROUP, self.disk.log(GROUP).compacted(upto))
            self.raft.compact(upto)
        self.disk.end_batch()

    def _send(self, message: Message) -> None:
        to = self._stage.pds[message.to]
        if message.kind is not MessageKind.SNAPSHOT:
            self._stage.network.send(self, to, partial(to.step, message, b""))
            return
        complete = Message(message.kind, message.sender, message.to, message.term, snapshot=self.raft.snapshot_meta())
        state = self.cluster.to_message().SerializeToString()

        def deliver() -> bool:
            to.step(complete, state)
            return True

        def done(ok: bool) -> None:
            self.raft.report_snapshot(message.to, ok)
            self._wake()

        self._stage.network.transfer(self, to, deliver, done)


def _words(fields: dict[str, Any]) -> str:
    """Without an operator's details."""
    return " ".join(f"{name}={str(value).partition(' (kind:')[0]}" for name, value in fields.items())
