"""A store: every replica that lives on one member, and the rules between them. Pure: tick, step, ready.

The shell brings time (`tick`), Raft messages (`step`), clients' requests (`write`, `read`) and PD's steps (`obey`),
then takes `ready` until there is none, and reports what became durable.

Rules:
- A replica is made by a message from a peer of its region, and never again under the same or a lower peer id once it
  was destroyed: PD gives each peer id away once, so `tombstones` keeps the highest dead id for each region.
- A replica leaves when it applies its own removal, when a newer peer of the region on this store is spoken to, or when
  a peer with a newer epoch says that it is out.
- PD's steps are taken only by the leader and only under exactly the epoch that they name: PD repeats them, and a
  repeated step must have no effect. A step that is declined says why, and changes nothing.
- A snapshot that overlaps another region here is refused; the sender tries again when the ranges have settled.
- A split is an entry of the region's log: each store that applies it has the new regions' replicas from then on, all
  at the same place of their logs. Who is spoken to for a region that a split here has still to cut off does not make
  the replica; a candidate's question is kept, and answered when the split has been applied.
- A merge is decided by two logs (see `merging`); every store pursues those whose source it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from drillyard.emulator.raft import Raft
from drillyard.emulator.raft.types import HardState, MessageKind, Restored
from drillyard.emulator.store import proposals
from drillyard.emulator.store.campaigns import Campaigns
from drillyard.emulator.store.commands import Growth, Proposal
from drillyard.emulator.store.errors import (
    EpochNotMatch,
    MismatchPeerId,
    NotLeader,
    ProposalInMergingMode,
    RegionError,
    RegionNotFound,
    StaleCommand,
    StoreNotMatch,
)
from drillyard.emulator.store.merging import Fate, fate_of
from drillyard.emulator.store.neighbours import Pulse
from drillyard.emulator.store.questions import Questions
from drillyard.emulator.store.region import Epoch, Peer, Region, configuration_of
from drillyard.emulator.store.replica import (
    FIRST_INDEX,
    FIRST_STATE,
    FIRST_TERM,
    Answer,
    Context,
    Envelope,
    Made,
    Merging,
    Outbox,
    RegionReady,
    RegionReport,
    Replica,
    Settings,
)
from drillyard.emulator.store.sleep import Sleep
from drillyard.emulator.store.state import State
from drillyard.emulator.store.steps import ChangePeers, Merge, Split, Step, TransferLeader, Unsupported, Verdict

FOUNDING_KINDS = frozenset(
    {MessageKind.APPEND, MessageKind.HEARTBEAT, MessageKind.SNAPSHOT, MessageKind.VOTE, MessageKind.PRE_VOTE}
)


__all__ = [
    "ChangePeers",
    "Merge",
    "RestoredReplica",
    "Split",
    "Step",
    "Store",
    "StoreReady",
    "TransferLeader",
    "Unsupported",
    "Verdict",
    "beginning",
    "first_region",
]

Said = TypeVar("Said")
CANDIDATES = frozenset({MessageKind.VOTE, MessageKind.PRE_VOTE})


class RestoredReplica(Struct, frozen=True):
    """One replica as found on disk."""

    region: Region
    peer_id: int
    raft: Restored
    merging: Merging | None = None


class StoreReady(Struct, frozen=True):
    """One region's work, and what there is to say. Answers: each ticket with its outcome, in order."""

    work: RegionReady
    answers: tuple[Answer, ...]
    notes: tuple[str, ...]


def first_region(region_id: int, peer: Peer) -> Region:
    return Region(region_id, b"", b"", Epoch(version=1, conf_ver=1), (peer,))


def beginning(region: Region, state: HardState = FIRST_STATE) -> Restored:
    """What the log of a region is restored from when the region is new."""
    return Restored(configuration_of(region), state, FIRST_INDEX, FIRST_TERM, applied=FIRST_INDEX)


class Store:
    def __init__(
        self,
        store_id: int,
        settings: Settings,
        chance: Callable[[int], int],
        tombstones: Mapping[int, int] | None = None,
    ) -> None:
        self.id = store_id
        self.settings = settings
        self.replicas: dict[int, Replica] = {}
        self._chance = chance
        self._box = Outbox(tombstones=dict(tombstones or {}))
        self._touched: dict[int, None] = {}
        self._sleep = Sleep((store_id, settings), self.replicas, self._touch)
        self._campaigns = Campaigns(store_id, self._sleep.hears_quorum)
        self._questions = Questions()

    @property
    def tombstones(self) -> dict[int, int]:
        """The highest peer id that died here, for each region."""
        return self._box.tombstones

    def reconfigure(self, settings: Settings) -> None:
        """Other timings and limits from now on, for every replica."""
        self.settings = settings
        self._sleep.reconfigure(settings)
        for replica in self.replicas.values():
            replica.settings = settings
            replica.raft.reconfigure(settings.raft)

    def restore(self, found: RestoredReplica) -> Replica:
        """Takes up a replica from disk, or the first region that was just written there."""
        peer = found.region.peer(found.peer_id) or Peer(found.peer_id, self.id)
        raft = Raft(found.peer_id, found.raft, self.settings.raft, self._chance)
        replica = Replica(found.region, peer, raft, self.settings)
        replica.merging = found.merging
        replica.growth.is_unknown = found.region.is_initialized
        self.replicas[found.region.id] = replica
        if [voter.id for voter in found.region.peers] == [found.peer_id]:
            raft.campaign()  # nobody else can have led meanwhile
        self._touched[found.region.id] = None
        self._sleep.greet(replica)
        return replica

    # ---- time and messages ----

    @property
    def awake(self) -> Set[int]:
        """The regions whose replicas here do not sleep."""
        return self._sleep.awake

    def tick(self) -> None:
        self._sleep.tick(self._box)
        self._questions.tick(self.settings.raft.election_ticks)
        awake = [(region_id, self.replicas[region_id]) for region_id in sorted(self._sleep.awake)]
        impatient = {region_id: replica for region_id, replica in awake if replica.raft.is_impatient}
        admitted = self._campaigns.admit(impatient, self.replicas, self.settings.raft.election_ticks)
        for region_id, replica in awake:
            if replica.is_installing:
                continue
            if region_id in impatient and region_id not in admitted:
                continue
            replica.tick()
            replica.resume()
            replica.notice_report(self._box)
            self._sleep.consider(replica)
            self._notice_work(replica)
            if replica.merging is not None and replica.watch.ticks % self.settings.merge_check_ticks == 0:
                self._pursue(replica)

    def _touch(self, region_id: int) -> None:
        self._touched[region_id] = None

    def _notice_work(self, replica: Replica) -> None:
        """Much of what is said to a replica, such as an acknowledgement that decides nothing, leaves nothing to do."""
        region_id = replica.region.id
        is_due = replica.has_ready or replica.has_told_pending or replica.is_destroyed
        if is_due and region_id not in self._touched:
            self._touched[region_id] = None

    def take_pulses(self) -> list[Pulse]:
        """Signs of life for other stores, to be sent as soon as may be."""
        return self._sleep.take_pulses()

    def hear(self, pulse: Pulse) -> None:
        if pulse.to == self.id:
            self._sleep.take_pulse(pulse)

    def step(self, envelope: Envelope) -> tuple[Envelope, ...]:
        """Takes a message from another store; what comes back is to be sent at once."""
        if envelope.to.store_id != self.id:
            return ()
        self._sleep.hear(envelope)
        if envelope.message is None:
            self._leave(envelope)
            return ()
        if envelope.to.id <= self.tombstones.get(envelope.region_id, 0):
            return ()
        replica = self.replicas.get(envelope.region_id)
        if replica is not None and envelope.to.id > replica.me.id:
            if not replica.is_installing:
                self._destroy(replica)
            return ()  # the sender will say it again when the old replica is gone
        if replica is None:
            if envelope.message.kind not in FOUNDING_KINDS or self._must_wait(envelope):
                return ()
            replica = self._found(envelope)
        elif envelope.to.id < replica.me.id or replica.is_destroyed:
            return ()
        elif self._is_out(envelope, replica):
            return (Envelope(replica.region.id, replica.region.epoch, replica.me, envelope.sender, None),)
        if envelope.message.kind is MessageKind.SNAPSHOT and not self._has_room_for(envelope):
            return ()
        self._sleep.before_step(replica, envelope)
        replica.step(envelope)
        self._sleep.after_step(replica, envelope)
        self._notice_work(replica)
        return ()

    @staticmethod
    def _is_out(envelope: Envelope, replica: Replica) -> bool:
        """Whether the sender was removed from the region and does not know it. Equal epochs mean equal peers."""
        region = replica.region
        stale = envelope.epoch.conf_ver <= region.epoch.conf_ver
        return region.is_initialized and stale and region.peer(envelope.sender.id) is None

    def _found(self, envelope: Envelope) -> Replica:
        """A replica that holds nothing yet; the leader will send it a snapshot.

        It carries the epoch of who spoke to it, under which it is in the region: a peer that has not heard of it yet
        has an older one, and must not take it for removed. By the range that was spoken of it learns what became of
        the region when nobody speaks to it any more.
        """
        start, end = envelope.range or (b"", b"")
        unknown = Region(envelope.region_id, start, end, envelope.epoch)
        return self.restore(RestoredReplica(unknown, envelope.to.id, Restored(configuration_of(unknown))))

    def _must_wait(self, envelope: Envelope) -> bool:
        """Whether the range that the sender speaks of is another region's here, or has been merged into one."""
        here = [replica.region for replica in self.replicas.values() if replica.region.is_initialized]
        if any(envelope.region_id in region.absorbed for region in here):
            return True
        if envelope.range is None:
            return False
        spoken_of = Region(envelope.region_id, *envelope.range)
        if not any(region.overlaps(spoken_of) for region in here):
            return False
        assert envelope.message is not None
        if envelope.message.kind in CANDIDATES:
            self._questions.keep(envelope)
        return True

    def _leave(self, envelope: Envelope) -> None:
        replica = self.replicas.get(envelope.region_id)
        if replica is None or replica.me.id != envelope.to.id or replica.is_installing:
            return
        if envelope.epoch.conf_ver >= replica.region.epoch.conf_ver:
            self._destroy(replica)

    def _has_room_for(self, envelope: Envelope) -> bool:
        wanted = envelope.region
        if wanted is None:
            return False
        for region_id, other in self.replicas.items():
            if region_id == wanted.id:
                continue
            is_absorbed = region_id in wanted.absorbed
            if is_absorbed and not other.is_installing and not other.awaits_install:
                continue
            if is_absorbed or (other.region.is_initialized and other.region.overlaps(wanted)):
                self._box.notes.append(f"region {wanted.id}: a snapshot overlaps region {region_id} and is refused")
                return False
        return True

    def _destroy(self, replica: Replica) -> None:
        self._sleep.forget(replica)
        replica.destroy(self._box)
        self._touched[replica.region.id] = None

    def report_unreachable(self, store_id: int) -> None:
        self._sleep.doubt(store_id)
        for region_id, replica in self.replicas.items():
            if replica.rest.is_asleep:
                continue  # nothing was under way
            peer = replica.region.peer_on(store_id)
            if peer is not None and replica.is_leader:
                replica.raft.report_unreachable(peer.id)
                self._touched[region_id] = None

    def report_snapshot(self, region_id: int, peer_id: int, ok: bool) -> None:
        replica = self.replicas.get(region_id)
        if replica is not None:
            self._sleep.wake(replica)
            replica.raft.report_snapshot(peer_id, ok)
            self._touched[region_id] = None

    # ---- requests ----

    def write(self, ticket: object, context: Context, command: Proposal) -> RegionError | None:
        """None: the ticket is answered by a later `ready`. An error: nothing was proposed."""
        replica = self._replica_for(context)
        if not isinstance(replica, Replica):
            return replica
        error = replica.write(ticket, context, command)
        if error is None:
            self._sleep.wake(replica, has_work=True)
            self._touched[context.region_id] = None
        return self._with_neighbours(error)

    def read(self, ticket: object, context: Context) -> RegionError | None:
        """None: the ticket is answered by a later `ready`, with `Readable` or an error."""
        replica = self._replica_for(context)
        if not isinstance(replica, Replica):
            return replica
        error = replica.read(ticket, context)
        if error is None:
            self._sleep.wake(replica, has_work=True)
            self._touched[context.region_id] = None
        return self._with_neighbours(error)

    def refusal(self, context: Context) -> RegionError | None:
        """What a request with this context would be refused with now, if anything."""
        replica = self._replica_for(context)
        if not isinstance(replica, Replica):
            return replica
        if context.version != replica.region.epoch.version:
            return self._with_neighbours(EpochNotMatch((replica.region,)))
        return None

    def check(self, context: Context, conf_ver: int) -> Region | RegionError:
        """The region, if this store leads it and the request knows it as it is: for requests that change a region."""
        replica = self._replica_for(context)
        if not isinstance(replica, Replica):
            return replica
        if replica.region.epoch != Epoch(context.version, conf_ver):
            return self._with_neighbours(EpochNotMatch((replica.region,)))
        return replica.region if replica.merging is None else ProposalInMergingMode(context.region_id)

    def _replica_for(self, context: Context) -> Replica | RegionError:
        if context.store_id != self.id:
            return StoreNotMatch(context.store_id, self.id)
        replica = self.replicas.get(context.region_id)
        if replica is None or replica.is_destroyed:
            return RegionNotFound(context.region_id)
        if not replica.is_leader:
            return NotLeader(context.region_id, replica.leader)
        if context.peer_id != replica.me.id:
            return MismatchPeerId(context.peer_id, replica.me.id)
        if context.term and replica.raft.term > context.term + 1:
            return StaleCommand()
        return replica

    def _with_neighbours(self, outcome: Said) -> Said | EpochNotMatch:
        """A client whose region changed its range is told of all regions here that took part of it over."""
        if not isinstance(outcome, EpochNotMatch):
            return outcome
        known = {region.id for region in outcome.regions}
        others = (replica.region for region_id, replica in self.replicas.items() if region_id not in known)
        near = tuple(region for region in others if self._touches(region, outcome.regions[0]))
        return EpochNotMatch(outcome.regions + near)

    @staticmethod
    def _touches(region: Region, other: Region) -> bool:
        if not region.is_initialized:
            return False
        return bool(region.end and region.end == other.start) or bool(other.end and other.end == region.start)

    # ---- PD ----

    def obey(self, step: Step) -> str:
        """Carries out one of PD's steps. The answer is empty, or why the step is declined."""
        replica = self.replicas.get(step.region_id)
        if replica is None or replica.is_destroyed:
            return "the region is not here"
        if not replica.is_leader or replica.me.id != step.peer_id:
            return "this peer does not lead the region"
        if step.epoch != replica.region.epoch:
            return f"the step is for epoch {_show(step.epoch)}, the region is at {_show(replica.region.epoch)}"
        self._sleep.pass_time(replica)
        reason = self._carry_out(step, replica)
        if not reason:  # PD repeats what is declined: that is no work
            self._sleep.wake(replica, has_work=True)
            self._touched[step.region_id] = None
        return reason

    def _carry_out(self, step: Step, replica: Replica) -> str:
        if isinstance(step.action, ChangePeers):
            return proposals.change(replica, step.action.changes)
        if isinstance(step.action, TransferLeader):
            return proposals.transfer(replica, step.action.to)
        if isinstance(step.action, Split):
            return proposals.split(replica, step.action.keys, step.action.parts)
        if isinstance(step.action, Merge):
            return self._begin_merge(replica, step.action.target)
        return f"{step.action.name} is not supported"

    def _begin_merge(self, source: Replica, wanted: Region) -> str:
        target = self.replicas.get(wanted.id)
        if target is None or not target.region.is_initialized or target.is_destroyed or target.is_installing:
            return f"the target region {wanted.id} is not here"
        if any(other.merging is not None and other.merging.target.id == source.region.id for other in self._living()):
            return "another region is being merged into this one"
        return proposals.merge(source, target, wanted)

    def _living(self) -> Iterable[Replica]:
        return (replica for replica in self.replicas.values() if not replica.is_destroyed)

    def _pursue(self, source: Replica) -> None:
        """Brings a merge to its end, as far as this store can."""
        merging = source.merging
        if merging is None or source.is_destroyed or source.is_installing:
            return
        fate = fate_of(source.region.id, merging, (replica.region for replica in self._living()))
        if fate is Fate.OPEN:
            target = self.replicas[merging.target.id]
            if not target.is_installing:
                if target.is_leader:
                    self._sleep.wake(target, has_work=True)
                proposals.commit_merge(target, source)
                self._touched[target.region.id] = None
        elif fate is Fate.VOID:
            proposals.roll_back(source)
            self._touched[source.region.id] = None
        elif source.is_leader:
            self._let_another_decide(source)

    def _let_another_decide(self, source: Replica) -> None:
        """The target is not here any more, or far behind; the store of another peer may know how the merge ended."""
        if source.watch.ticks % (self.settings.merge_check_ticks * self.settings.raft.election_ticks):
            return
        others = [peer for peer in source.region.peers if peer.id != source.me.id and peer.id in source.recent()]
        if others:
            proposals.transfer(source, others[self._chance(len(others))])

    def reports_due(self) -> set[int]:
        """The regions of which PD is to hear at once."""
        due, self._box.reports_due = self._box.reports_due, set()
        return due

    def report(self, region_id: int) -> RegionReport | None:
        replica = self.replicas.get(region_id)
        if replica is None or replica.is_destroyed:
            return None
        self._sleep.pass_time(replica)
        return replica.report()

    def leaderless(self) -> list[tuple[Region, int]]:
        """Replicas, with their peers' ids, of which PD is to say whether they still belong to their regions."""
        limit = self.settings.leader_missing_ticks
        return [
            (replica.region, replica.me.id)
            for replica in self._living()
            if replica.leaderless_ticks >= limit and not replica.is_installing
        ]

    def validate(self, region_id: int, peer_id: int, known: Mapping[int, Region], covering: Region | None) -> Verdict:
        """What PD knows: the regions that have replicas here, and which one has the first key of the leaderless one.

        A peer that a newer epoch lacks is destroyed. So is one of a region that PD has forgotten while a newer region
        has its range: it was merged into that one. But then a replica of the target that is behind may still be here,
        and could not go on without it; so that waits until nobody here is behind. PD may have heard of the target's
        children alone, and then shows it as it was: a source that knows its target sees for itself where that is.
        """
        replica = self._same(region_id, peer_id)
        if replica is None or replica.is_destroyed or replica.is_installing or replica.leaderless_ticks == 0:
            return Verdict.VALID
        replica.leaderless_ticks = 0  # it is asked again after as long
        mine, now = replica.region, known.get(region_id)
        if now is None:
            is_newer = covering is not None and covering.epoch.version > mine.epoch.version
            is_awaited = self._is_awaited(replica)
            if not is_newer or is_awaited or any(self._is_behind(other, known) for other in self._living()):
                return Verdict.UNKNOWN
        elif now.epoch.version < mine.epoch.version or now.epoch.conf_ver < mine.epoch.conf_ver:
            return Verdict.EPOCH_ERROR
        elif now.peer(peer_id) is not None:
            return Verdict.VALID
        self._destroy(replica)
        return Verdict.STALE

    def _is_awaited(self, source: Replica) -> bool:
        """Whether the target is here, and has not come to where the merge is decided."""
        merging = source.merging
        if merging is None or all(other.region.id != merging.target.id for other in self._living()):
            return False
        fate = fate_of(source.region.id, merging, (other.region for other in self._living()))
        return fate in (Fate.UNDECIDED, Fate.OPEN)

    @staticmethod
    def _is_behind(replica: Replica, known: Mapping[int, Region]) -> bool:
        now = known.get(replica.region.id)
        is_member = now is not None and now.peer(replica.me.id) is not None
        return is_member and now is not None and now.epoch.version > replica.region.epoch.version

    def unmeasured(self) -> list[Region]:
        """Regions whose size is no longer known well enough."""
        return [
            replica.region
            for replica in self._living()
            if replica.is_leader and replica.merging is None and self._is_unmeasured(replica.growth)
        ]

    def _is_unmeasured(self, growth: Growth) -> bool:
        """A region that seems too large is looked at after every bit of growth."""
        is_large = self.settings.split.is_exceeded(growth.size, growth.keys)
        return growth.is_stale or (is_large and growth.drift > 0)

    def measured(self, region_id: int, size: int, keys: int) -> None:
        """The shell has counted what the region holds."""
        replica = self.replicas.get(region_id)
        if replica is not None:
            growth = replica.growth
            growth.size, growth.keys, growth.drift, growth.is_unknown = size, keys, 0, False

    # ---- output ----

    @property
    def has_ready(self) -> bool:
        return bool(self._touched)

    @property
    def has_output(self) -> bool:
        """Whether there is anything to take: by `ready`, `take_pulses` or `reports_due`."""
        return bool(self._touched or self._box.reports_due or self._sleep.has_pulses)

    def has_to_take_up(self, region_id: int) -> bool:
        """Whether a snapshot of the region has come that no `ready` has dealt with yet."""
        replica = self.replicas.get(region_id)
        is_due = replica is not None and replica.awaits_install and not replica.is_destroyed
        return is_due and region_id in self._touched

    def ready(self, state: State) -> Iterable[StoreReady]:
        """The work of every region that has some, one at a time: carry each out before taking the next.

        Who stops half-way finds the rest later.
        """
        for region_id in tuple(self._touched):
            del self._touched[region_id]
            replica = self.replicas.get(region_id)
            if replica is None:
                continue
            if replica.is_destroyed:
                yield self._bury(replica, RegionReady(replica.region, replica.me.id, destroyed=True, has_record=True))
                continue
            if replica.has_ready:
                leads, merging = replica.is_leader, replica.merging
                work = replica.ready(state, self._box, self.replicas)
                for made in work.made:
                    self._take_up(made, leads)
                said = self._merge_into(work)
                replica.notice_report(self._box)
                try:
                    yield self._bury(replica, said) if said.destroyed else self._say(said)
                finally:
                    if replica.merging is not None:
                        self._hold_on(replica, is_new=merging is None)
                    if replica.has_ready:
                        self._touched[region_id] = None
            elif replica.has_told_pending:
                replica.notice_report(self._box)  # the answer that caught it up may have left nothing else to do

    def _take_up(self, made: Made, leads: bool) -> None:
        """A region that was cut off one here, whose beginning the shell writes with the split.

        Who led the old region asks for votes at once: the others apply the split at about the same time.
        """
        region = made.region
        known = self.replicas.get(region.id)
        number = known.raft.number if known is not None else 0
        if known is not None:
            self._sleep.forget(known)
            known.destroy(self._box)
        start = replace(beginning(region, made.state), number=number)
        replica = self.restore(RestoredReplica(region, made.peer_id, start))
        if leads:
            replica.raft.campaign()
        for question in self._questions.take(region.id):
            if question.to.id == made.peer_id:
                replica.step(question)

    def _merge_into(self, work: RegionReady) -> RegionReady:
        """The regions that became a part of this one are no more."""
        for region, peer_id in work.merged:
            self.tombstones[region.id] = max(self.tombstones.get(region.id, 0), peer_id)
            self._sleep.forget(self.replicas[region.id])
            del self.replicas[region.id]
        return work

    def _hold_on(self, source: Replica, is_new: bool) -> None:
        """A region that is being merged: its target may wait for it, and it need not wait for the next tick."""
        assert source.merging is not None
        if is_new:
            self._pursue(source)
        target = self.replicas.get(source.merging.target.id)
        if target is not None:
            target.resume()
            self._touched[target.region.id] = None

    def _bury(self, replica: Replica, work: RegionReady) -> StoreReady:
        region_id = replica.region.id
        self.tombstones[region_id] = max(self.tombstones.get(region_id, 0), replica.me.id)
        self._sleep.forget(replica)
        del self.replicas[region_id]
        self._box.notes.append(f"region {region_id}: peer {replica.me.id} is destroyed")
        return self._say(work)

    def _say(self, work: RegionReady) -> StoreReady:
        answers = tuple((ticket, self._with_neighbours(outcome)) for ticket, outcome in self._box.answers)
        said = StoreReady(work, answers, tuple(self._box.notes))
        self._box.answers.clear()
        self._box.notes.clear()
        return said

    def persisted(self, region_id: int, peer_id: int, number: int) -> None:
        replica = self._same(region_id, peer_id)
        if replica is not None:
            replica.raft.persisted(number)
            self._notice_work(replica)

    def installed(self, region_id: int, peer_id: int, number: int) -> None:
        replica = self._same(region_id, peer_id)
        if replica is not None:
            replica.installed(number)
            self._touched[region_id] = None

    def _same(self, region_id: int, peer_id: int) -> Replica | None:
        """The replica that the shell means, unless it was destroyed meanwhile."""
        replica = self.replicas.get(region_id)
        return replica if replica is not None and replica.me.id == peer_id else None


def _show(epoch: Epoch) -> str:
    return f"version {epoch.version} conf_ver {epoch.conf_ver}"
