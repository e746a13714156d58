"""A simulated store: what the shells `engine`, `heartbeats` and `server` do around the pure store, on a simulated disk.

The contract is that of `RegionReady`: one batch for each region's work, messages at once, deferred ones and `persisted`
when the batch is durable, a view for each snapshot right after the batch, snapshots installed in several batches that a
restart can take up again. A fresh store asks PD for its identity and, if nobody has done so, founds the first region.

All that the store says goes past the witness.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgspec.structs import replace

from drillyard.emulator.raft.types import ProtocolBroken, Ready, Role, SnapshotMeta
from drillyard.emulator.simulation.disks import Disk, LogRecord, Syncer
from drillyard.emulator.simulation.parts import Violation
from drillyard.emulator.simulation.pds import PdAnswer, PdMember
from drillyard.emulator.simulation.stage import REGION_PERIOD_US, STORE_PERIOD_US, TICK_US, Stage
from drillyard.emulator.simulation.world import MILLISECOND_US, Member
from drillyard.emulator.store.commands import CompareAndSwap, Write, pack_peer
from drillyard.emulator.store.neighbours import Pulse
from drillyard.emulator.store.region import Part, Peer, Region, configuration_of
from drillyard.emulator.store.replica import (
    FIRST_STATE,
    Context,
    Envelope,
    Made,
    Merging,
    Outcome,
    Readable,
    RegionReady,
    RegionReport,
)
from drillyard.emulator.store.split_keys import Survey
from drillyard.emulator.store.state import FAMILIES, Family, Pair, Span
from drillyard.emulator.store.store import (
    RestoredReplica,
    Split,
    Step,
    Store,
    StoreReady,
    beginning,
    first_region,
)
from drillyard.emulator.tikv.records import pack_region, unpack_region
from drillyard.emulator.tikv.steps import step_of
from drillyard.wire import drillpb, metapb, pdpb

NORMAL, INSTALLING, TOMBSTONE = "normal", "installing", "tombstone"
RETRY_US = 300 * MILLISECOND_US
MEASURE_US = 1_000 * MILLISECOND_US
VALIDATE_US = 2_000 * MILLISECOND_US
PART_PAIRS = 3  # of one part of a snapshot: small, so that an installation has many batches
Parts = tuple[tuple[tuple[Family, bytes, bytes], ...], ...]


def spans_of(region: Region) -> tuple[Span, ...]:
    return tuple(Span(region.start, region.end, family) for family in FAMILIES)


class StoreMember(Member):
    def __init__(self, slot: int, stage: Stage) -> None:
        super().__init__(f"store{slot}", 10 + slot, stage.world)
        self.disk = Disk()
        self.store: Store | None = None
        self.store_id = 0
        self._stage = stage

    @property
    def leads_any(self) -> bool:
        return self.store is not None and any(replica.is_leader for replica in self.store.replicas.values())

    # ---- life ----

    def start(self) -> None:
        self.begin_life()
        self.store = None
        self._syncer = Syncer(self, self.disk)
        self._is_woken = False
        self._installing: set[int] = set()
        self._arriving: set[int] = set()
        self._splitting: set[int] = set()
        self._pd = self.world.dice.pick(sorted(self._stage.pds))
        self._pd_term = 0  # of the lead to which all regions were reported
        self._pd_heard_us = self.world.now_us
        self._become(self.disk.record("identity") or 0)
        if self.store_id:
            self._come_up()
        else:
            self._ask_identity()

    def crash(self) -> int:
        self.end_life()
        self.store = None
        return self.disk.cut_power(self.world.dice)

    def _ask_identity(self) -> None:
        def given(answer: PdAnswer) -> None:
            if self.store_id or not answer.value:
                return
            self._become(answer.value[0])
            self.disk.write("identity", 0, self.store_id)
            self.disk.end_batch()
            self._once_durable(self._come_up)

        if not self.store_id:
            self._ask(lambda pd, reply: pd.give_ids(1, reply), given)
            self.later(RETRY_US, self._ask_identity)

    def _become(self, store_id: int) -> None:
        self._stage.known.pop(self.store_id, None)
        self.store_id = store_id
        if store_id:
            self._stage.known[store_id] = self

    def _come_up(self) -> None:
        """Bootstraps the cluster if nobody has, and loads what is on disk."""
        if self.disk.record("founded") is not None:
            self._offer_first_region()
            return

        def told(answer: PdAnswer) -> None:
            if self.store is not None or self.disk.record("founded") is not None:
                return
            if answer.value:
                self._load()
            elif answer.term:
                self._ask(lambda pd, reply: pd.give_ids(2, reply), self._found)

        if self.store is None:
            self._ask(lambda pd, reply: pd.is_bootstrapped(reply), told)
            self.later(RETRY_US, self._come_up)

    def _found(self, answer: PdAnswer) -> None:
        if self.store is not None or self.disk.record("founded") is not None or not answer.value:
            return
        region = first_region(answer.value[0], Peer(answer.value[1], self.store_id))
        self._begin(Made(region, answer.value[1], FIRST_STATE))
        self.disk.write("founded", 0, region)
        self.disk.end_batch()
        self._once_durable(self._offer_first_region)

    def _offer_first_region(self) -> None:
        region: Region | None = self.disk.record("founded")
        if region is None:
            return

        def answered(answer: PdAnswer) -> None:
            if answer.refusal:  # perhaps because this store did it itself, and did not hear of it
                self._ask(lambda pd, reply: pd.locate(b"", reply), compared)
            elif answer.term:
                self._settle_first_region(region, is_taken=True)

        def compared(answer: PdAnswer) -> None:
            if answer.value is not None:
                self._settle_first_region(region, is_taken=answer.value[0].id == region.id)

        bootstrap = drillpb.PdBootstrap(store=self._meta(), region=pack_region(region), now_ns=1)
        command = drillpb.PdCommand(bootstrap=bootstrap)
        self._ask(lambda pd, reply: pd.submit(command, reply), answered)
        self.later(RETRY_US, self._offer_first_region)

    def _settle_first_region(self, region: Region, *, is_taken: bool) -> None:
        if self.disk.record("founded") is None:
            return
        self.disk.erase("founded", 0)
        if is_taken:
            self._stage.witness.see_regions((region,))
            self.world.tell(f"{self} founded the first region {region.id}")
        else:
            for name in ("log", "replica", "applied"):
                self.disk.erase(name, region.id)
        self.disk.end_batch()
        self._once_durable(self._load)

    def _meta(self) -> metapb.Store:
        return metapb.Store(id=self.store_id, address=f"{self}:20160", version="7.1.0")

    def _load(self) -> None:
        if self.store is not None:
            return
        tombstones: dict[int, int] = {}
        living: list[tuple[Region, int, Merging | None]] = []
        for region_id, (state, region, peer_id, merging) in self.disk.named("replica"):
            if state == TOMBSTONE:
                tombstones[region_id] = peer_id
                continue
            if state == INSTALLING:
                self._finish_install(region, peer_id)
            living.append((region, peer_id, merging))
        for number, _ in self.disk.named("arriving"):
            self.disk.erase("arriving", number)
        self.disk.end_batch()
        store = self.store = Store(self.store_id, self._stage.store_settings, self.world.dice.below, tombstones)
        for region, peer_id, merging in living:
            self._stage.witness.see_written(self.store_id, region.id, peer_id)
            restored = self.disk.log(region.id).restored(
                configuration_of(region), self.disk.record("applied", region.id) or 0
            )
            store.restore(RestoredReplica(region, peer_id, restored, merging))
        self.wake()
        self.later(self.world.dice.below(TICK_US), self._tick)
        self.later(self.world.dice.below(STORE_PERIOD_US), self._beat)
        self.later(self.world.dice.below(REGION_PERIOD_US), self._report_all)
        self.later(MEASURE_US, self._measure)
        self.later(VALIDATE_US, self._validate)
        command = drillpb.PdCommand(put_store=self._meta())
        self._register(command)

    def _register(self, command: drillpb.PdCommand) -> None:
        is_known = False

        def known(answer: PdAnswer) -> None:
            nonlocal is_known
            is_known = is_known or bool(answer.term)

        def again() -> None:
            if not is_known:
                self._ask(lambda pd, reply: pd.submit(command, reply), known)
                self.later(RETRY_US, again)

        again()

    # ---- time ----

    def _tick(self) -> None:
        self.later(TICK_US - 500 + self.world.dice.below(1000), self._tick)
        assert self.store is not None
        self._guard(self.store.tick)

    def _measure(self) -> None:
        self.later(MEASURE_US, self._measure)
        assert self.store is not None
        limits = self._stage.store_settings.split
        for region in self.store.unmeasured():
            found = self._survey(region)
            self.store.measured(region.id, found.size, found.count)
            cuts = found.oversize_keys(region) if limits.is_exceeded(found.size, found.count) else ()
            mine = region.peer_on(self.store_id)
            if cuts and mine is not None:
                self.obey(Step(region.id, region.epoch, mine.id, Split(cuts)))

    def _survey(self, region: Region) -> Survey:
        found = Survey(self._stage.store_settings.split)
        for key, value in self.pairs_of(region):
            found.pass_by(key, len(key) + len(value))
        return found

    def _once_durable(self, call: Callable[[], object]) -> None:
        self._syncer.when_durable(call)
        self._syncer.begin()

    def _guard(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments)
        except (ProtocolBroken, AssertionError, ValueError) as broken:
            raise Violation("the store stopped itself", f"{self}: {broken}") from broken
        self.wake()

    # ---- PD ----

    def _ask(
        self, question: Callable[[PdMember, Callable[[PdAnswer], None]], None], answered: Callable[[PdAnswer], None]
    ) -> None:
        """Asks the PD that this store takes for the leader; who does not lead says who may."""

        def heard(answer: PdAnswer) -> None:
            self._hear_term(answer)
            answered(answer)

        if self.world.now_us - self._pd_heard_us > 3 * RETRY_US:  # silence: look for another
            self._pd_heard_us = self.world.now_us
            self._pd = self.world.dice.pick(sorted(self._stage.pds))
        pd = self._stage.pds[self._pd]
        self._stage.network.ask(self, pd, partial(question, pd), heard)

    def _hear_term(self, answer: PdAnswer) -> None:
        if not answer.term:
            self._pd = answer.leader or self.world.dice.pick(sorted(self._stage.pds))
            return
        self._pd_heard_us = self.world.now_us
        if answer.term > self._pd_term:  # a new leader knows nothing
            self._pd_term = answer.term
            if self.store is not None:
                self._report(self._led())

    def _beat(self) -> None:
        self.later(STORE_PERIOD_US, self._beat)
        assert self.store is not None
        count = sum(replica.region.is_initialized for replica in self.store.replicas.values())
        used = sum(len(key) + len(value) for key, value in self.disk.pairs[Family.DEFAULT].items())
        stats = pdpb.StoreStats(
            store_id=self.store_id,
            capacity=1 << 40,
            available=(1 << 40) - used,
            used_size=used,
            region_count=count,
            receiving_snap_count=len(self._arriving),
            applying_snap_count=len(self._installing),
        )
        self._ask(lambda pd, reply: pd.hear_store(stats, reply), lambda answer: None)

    def _led(self) -> set[int]:
        assert self.store is not None
        return {region_id for region_id, replica in self.store.replicas.items() if replica.is_leader}

    def _report_all(self) -> None:
        self.later(REGION_PERIOD_US, self._report_all)
        self._report(self._led())

    def _report(self, regions: set[int]) -> None:
        assert self.store is not None
        for region_id in sorted(regions):
            report = self.store.report(region_id)
            if report is not None:
                request = _request(report)
                self._ask(partial(_hear_region, request), lambda answer: None)

    def hear_pd(self, response: pdpb.RegionHeartbeatResponse) -> None:
        step = step_of(response)
        if step is not None:
            self.obey(step)

    def obey(self, step: Step) -> str:
        store = self.store
        if store is None:
            return "the store is not up yet"
        reason = store.obey(step)
        self.world.note(f"{self} obeys {step.region_id} {step.action}: {reason or 'yes'}")
        if not reason:
            self.world.tell(f"{self} takes a step for region {step.region_id}: {step.action}")
            self._tempt(step.region_id, "step")
        if not reason and isinstance(step.action, Split) and not step.action.parts:
            self._ask_split(step, step.action)
        self.wake()
        return reason

    def _ask_split(self, step: Step, split: Split) -> None:
        assert self.store is not None
        replica = self.store.replicas.get(step.region_id)
        if replica is None or step.region_id in self._splitting:
            return
        if not split.keys:
            split = replace(split, keys=self._survey(replica.region).middle_key(replica.region))
        if not split.keys:
            return
        self._splitting.add(step.region_id)
        self.later(RETRY_US, lambda: self._splitting.discard(step.region_id))
        meta, count = pack_region(replica.region), len(split.keys)
        width = 1 + len(replica.region.peers)

        def given(answer: PdAnswer) -> None:
            ids = answer.value
            if self.store is None or not ids:
                return
            parts = tuple(
                Part(ids[place], tuple(ids[place + 1 : place + width])) for place in range(0, count * width, width)
            )
            self.obey(replace(step, action=replace(split, parts=parts)))

        self._ask(lambda pd, reply: pd.ask_split(meta, count, reply), given)

    def _validate(self) -> None:
        """Asks PD about replicas that have heard no leader for long."""
        self.later(VALIDATE_US, self._validate)
        assert self.store is not None
        for region, peer_id in self.store.leaderless():
            ids = tuple(self.store.replicas)
            self._ask(partial(_find, ids, region.start), partial(self._validated, region.id, peer_id))

    def _validated(self, region_id: int, peer_id: int, answer: PdAnswer) -> None:
        if self.store is None or answer.value is None:
            return
        metas, found = answer.value
        known = {meta.id: unpack_region(meta) for meta in metas}
        covering = unpack_region(found) if found is not None else None
        store = self.store
        self._guard(store.validate, region_id, peer_id, known, covering)

    # ---- clients ----

    def write(self, context: Context, command: Write | CompareAndSwap, reply: Callable[[object], None]) -> None:
        if self.store is None:
            return  # nobody listens yet: the client is told nothing
        error = self.store.write(reply, context, command)
        if error is not None:
            reply(error)
        self.wake()

    def read(
        self,
        context: Context,
        take: Callable[[Disk, Region], list[Pair]],
        reply: Callable[[object], None],
    ) -> None:
        if self.store is None:
            return

        def ticket(outcome: Outcome) -> None:
            if isinstance(outcome, Readable):
                reply(take(self.disk, outcome.region))
            else:
                reply(outcome)

        error = self.store.read(ticket, context)
        if error is not None:
            reply(error)
        self.wake()

    # ---- peers ----

    def hear(self, envelope: Envelope) -> None:
        if self.store is not None:
            self._guard(self._step, envelope)

    def _step(self, envelope: Envelope) -> None:
        assert self.store is not None
        for answer in self.store.step(envelope):
            self._send(answer)

    def _send(self, envelope: Envelope) -> None:
        to = self._stage.store(envelope.to.store_id)
        if to is None:
            return
        is_linked = self._stage.network.send(self, to, partial(to.hear, envelope))
        if not is_linked or not to.is_up:
            self._miss(to)

    def _miss(self, to: StoreMember) -> None:
        """A connection that broke may be noticed, and only some of the time."""
        store = self.store
        if store is not None and self.world.dice.happens(100):
            self.soon(partial(self._guard, store.report_unreachable, to.store_id))

    def _send_pulse(self, pulse: Pulse) -> None:
        to = self._stage.store(pulse.to)
        if to is not None:
            self._stage.network.send(self, to, partial(to.hear_pulse, pulse))

    def hear_pulse(self, pulse: Pulse) -> None:
        store = self.store
        if store is not None:
            self._guard(store.hear, pulse)

    def _send_snapshot(self, envelope: Envelope) -> None:
        """The view is taken now; it travels for a while."""
        assert envelope.region is not None
        to = self._stage.store(envelope.to.store_id)
        region_id, peer_id = envelope.region_id, envelope.to.id
        pairs = [
            (span.family, key, value)
            for span in spans_of(envelope.region)
            for key, value in self.disk.scan(span, 1 << 30)
        ]
        parts = tuple(tuple(pairs[place : place + PART_PAIRS]) for place in range(0, len(pairs), PART_PAIRS))

        def done(ok: bool) -> None:
            if self.store is not None:
                store = self.store
                self._guard(store.report_snapshot, region_id, peer_id, ok)

        if to is None:
            self.later(RETRY_US, lambda: done(False))
            return
        self._stage.network.transfer(self, to, lambda: to.receive(envelope, parts), done)

    def receive(self, envelope: Envelope, parts: Parts) -> bool:
        region_id = envelope.region_id
        if self.store is None or region_id in self._installing:
            return False
        for number, part in enumerate(parts):
            self.disk.write("arriving", region_id * 1000 + number, part)
            self.disk.end_batch()
        self._guard(self._step, envelope)
        self._turn()
        if region_id not in self._installing:
            self._drop_arriving(region_id)
            self.disk.end_batch()
        return True

    def _drop_arriving(self, region_id: int) -> None:
        for number, _ in self.disk.named("arriving"):
            if number // 1000 == region_id:
                self.disk.erase("arriving", number)

    def _begin_install(self, work: RegionReady) -> None:
        self._installing.add(work.region.id)
        self._tempt(work.region.id, "installation")
        self._syncer.when_durable(partial(self.soon, partial(self._install, work)))

    def _install(self, work: RegionReady) -> None:
        self._finish_install(work.region, work.peer_id)
        self._once_durable(partial(self._installed, work))

    def _finish_install(self, region: Region, peer_id: int) -> None:
        """Moves what has arrived into place, in several batches."""
        for span in spans_of(region):
            self.disk.delete_range(span)
        self.disk.end_batch()
        for number, part in self.disk.named("arriving"):
            if number // 1000 == region.id:
                for family, key, value in part:
                    self.disk.put(key, value, family)
                self.disk.end_batch()
        self._drop_arriving(region.id)
        self.disk.write("replica", region.id, (NORMAL, region, peer_id, None))
        self.disk.end_batch()
        applied = self.disk.record("applied", region.id)
        self._stage.witness.see_state(applied, region, self.pairs_of(region))

    def _installed(self, work: RegionReady) -> None:
        assert work.ready is not None
        assert self.store is not None
        self._installing.discard(work.region.id)
        for envelope in work.deferred:
            self._send(envelope)
        store, number = self.store, work.ready.number
        self._guard(store.installed, work.region.id, work.peer_id, number)

    # ---- turns ----

    def wake(self) -> None:
        if not self._is_woken and self.store is not None and self.store.has_output:
            self._is_woken = True
            self.soon(self._turn)

    def _turn(self) -> None:
        self._is_woken = False
        store = self.store
        if store is None:
            return
        try:
            for said in store.ready(self.disk):
                self._carry_out(said)
        except (ProtocolBroken, AssertionError, ValueError) as broken:
            raise Violation("the store stopped itself", f"{self}: {broken!r}") from broken
        for pulse in store.take_pulses():
            self._send_pulse(pulse)
        due = store.reports_due()
        if due:
            self._report(due)
        self._syncer.begin()
        self.wake()

    def _carry_out(self, said: StoreReady) -> None:
        work = said.work
        self._write(work)
        self._show(work)
        for envelope in work.messages:
            self._send(envelope)
        for envelope in work.snapshots:
            self._send_snapshot(envelope)
        if work.install:
            self._begin_install(work)
        elif work.ready is not None and work.ready.waits_for_disk:
            self._syncer.when_durable(partial(self._persisted, work))
        elif work.destroyed or work.merged:
            self._syncer.when_durable(partial(self._destroyed, work))
        for note in said.notes:
            self.world.tell(f"{self}: {note}")
        for ticket, outcome in said.answers:
            ticket(outcome)  # type: ignore[operator]

    def _write(self, work: RegionReady) -> None:
        disk, region_id = self.disk, work.region.id
        if work.destroyed:
            self._erase(work)
        else:
            if work.ready is not None and work.ready.must_persist:
                disk.write("log", region_id, disk.log(region_id).staged(work.ready))
            if work.compact_to:
                disk.write("log", region_id, disk.log(region_id).compacted(work.compact_to))
            if work.has_record:
                state = INSTALLING if work.install else NORMAL
                disk.write("replica", region_id, (state, work.region, work.peer_id, work.merging))
            if work.applied:
                disk.write("applied", region_id, work.applied)
        for made in work.made:
            self._begin(made)
        for source, peer_id in work.merged:
            self._bury(source, peer_id)
        disk.end_batch(lazily=work.is_lazy)

    def _begin(self, made: Made) -> None:
        """The records of a region that begins on this store."""
        region = made.region
        start = beginning(region, made.state)
        meta = SnapshotMeta(start.snapshot_index, start.snapshot_term, start.configuration)
        self.disk.write("log", region.id, LogRecord().staged(Ready(0, hard_state=start.hard_state, snapshot=meta)))
        self.disk.write("replica", region.id, (NORMAL, region, made.peer_id, None))
        self.disk.write("applied", region.id, start.applied)

    def _erase(self, work: RegionReady) -> None:
        if work.region.is_initialized:
            for span in spans_of(work.region):
                self.disk.delete_range(span)
        self._bury(work.region, work.peer_id)

    def _bury(self, region: Region, peer_id: int) -> None:
        self.disk.erase("log", region.id)
        self.disk.erase("applied", region.id)
        self.disk.write("replica", region.id, (TOMBSTONE, region, peer_id, None))

    def _persisted(self, work: RegionReady) -> None:
        assert work.ready is not None
        self._destroyed(work)
        for envelope in work.deferred:
            self._send(envelope)
        if self.store is not None:
            store, number = self.store, work.ready.number
            self._guard(store.persisted, work.region.id, work.peer_id, number)

    def _destroyed(self, work: RegionReady) -> None:
        """What the batch put an end to is dead for ever."""
        gone = [*work.merged, *([(work.region, work.peer_id)] if work.destroyed else [])]
        for region, peer_id in gone:
            self._stage.witness.see_destroyed(self.store_id, region.id, peer_id)

    # ---- the witness ----

    def _show(self, work: RegionReady) -> None:
        witness, region = self._stage.witness, work.region
        if work.destroyed:
            witness.see_regions(
                (*(made.region for made in work.made), region)
            )  # it may be the first to apply its removal
            witness.see_condemned(region.id, work.peer_id)
            self.world.tell(f"{self} destroys peer {work.peer_id} of region {region.id}")
            return
        witness.see_written(self.store_id, region.id, work.peer_id)
        store = self.store
        assert store is not None
        if work.has_record or work.made:
            witness.see_regions((*(made.region for made in work.made), region))
            witness.see_store(self.store_id, (replica.region for replica in store.replicas.values()))
            for source, peer_id in work.merged:
                self.world.tell(f"{self} has peer {peer_id} of region {source.id} merged into region {region.id}")
            if region.is_initialized:
                self.world.tell(f"{self} has {_show(region)} as of {work.applied}")
        if work.applied and not work.install:
            witness.see_state(work.applied, region, self.pairs_of(region))
        ready = work.ready
        if ready is not None and ready.role is Role.LEADER:
            replica = store.replicas.get(region.id)
            if (
                replica is not None
                and replica.is_leader
                and witness.see_leader(region.id, replica.raft.term, work.peer_id)
            ):
                self.world.tell(f"{self} leads region {region.id} in term {replica.raft.term}")
                self._tempt(region.id, "election")

    def pairs_of(self, region: Region) -> tuple[Pair, ...]:
        return tuple(self.disk.scan(Span(region.start, region.end), 1 << 30))

    def _tempt(self, region_id: int, occasion: str) -> None:
        self.world.ambush(f"{occasion} of region {region_id}", self)


def _show(region: Region) -> str:
    roles = "VLID"
    peers = " ".join(f"{peer.id}@{peer.store_id}{roles[peer.role]}" for peer in region.peers)
    bounds = f"[{region.start.decode()}, {region.end.decode()})"
    return f"region {region.id} {bounds} {region.epoch.version}/{region.epoch.conf_ver} {peers}"


def _hear_region(request: pdpb.RegionHeartbeatRequest, pd: PdMember, reply: Callable[[PdAnswer], None]) -> None:
    pd.hear_region(request, reply)


def _find(ids: tuple[int, ...], key: bytes, pd: PdMember, reply: Callable[[PdAnswer], None]) -> None:
    pd.find(ids, key, reply)


def _request(report: RegionReport) -> pdpb.RegionHeartbeatRequest:
    return pdpb.RegionHeartbeatRequest(
        region=pack_region(report.region),
        leader=pack_peer(report.leader),
        term=report.term,
        down_peers=[pdpb.PeerStats(peer=pack_peer(peer), down_seconds=seconds) for peer, seconds in report.down],
        pending_peers=[pack_peer(peer) for peer in report.pending],
        bytes_written=report.written_bytes,
        keys_written=report.written_keys,
        approximate_size=report.size,
        approximate_keys=report.keys,
    )
