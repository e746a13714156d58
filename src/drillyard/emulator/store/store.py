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
- A region is split only while it has a single peer, so that no other store has to follow; merges are not carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from drillyard.emulator.raft import Raft
from drillyard.emulator.raft.types import ChangeKind, HardState, MessageKind, Restored
from drillyard.emulator.store.commands import Proposal
from drillyard.emulator.store.errors import (
    EpochNotMatch,
    MismatchPeerId,
    NotLeader,
    RegionError,
    RegionNotFound,
    StaleCommand,
    StoreNotMatch,
)
from drillyard.emulator.store.region import Epoch, Part, Peer, PeerChange, Region, configuration_of
from drillyard.emulator.store.replica import (
    Answer,
    Context,
    Envelope,
    Outbox,
    RegionReady,
    RegionReport,
    Replica,
    Settings,
)
from drillyard.emulator.store.state import State

# A region begins behind this index, so no log holds its beginning and every new peer starts from a snapshot.
FIRST_INDEX = 5
FIRST_TERM = 5

FOUNDING_KINDS = frozenset(
    {MessageKind.APPEND, MessageKind.HEARTBEAT, MessageKind.SNAPSHOT, MessageKind.VOTE, MessageKind.PRE_VOTE}
)


@dataclass(frozen=True, slots=True)
class RestoredReplica:
    """One replica as found on disk."""

    region: Region
    peer_id: int
    raft: Restored


@dataclass(frozen=True, slots=True)
class ChangePeers:
    changes: tuple[PeerChange, ...]

    def __str__(self) -> str:
        words = {ChangeKind.ADD_VOTER: "add voter", ChangeKind.ADD_LEARNER: "add learner", ChangeKind.REMOVE: "remove"}
        named = [f"{words[change.kind]} {change.peer.id} on store {change.peer.store_id}" for change in self.changes]
        return ", ".join(named) or "leave the joint state"


@dataclass(frozen=True, slots=True)
class TransferLeader:
    to: Peer

    def __str__(self) -> str:
        return f"transfer leadership to {self.to.id} on store {self.to.store_id}"


@dataclass(frozen=True, slots=True)
class Split:
    """Without parts it only asks whether it would be carried out: the new ids come from PD."""

    keys: tuple[bytes, ...]
    parts: tuple[Part, ...] = ()

    def __str__(self) -> str:
        return f"split at {', '.join(key.hex().upper() for key in self.keys) or 'some key'}"


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A step that this store knows of and does not carry out."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Step:
    """What PD wants of one region, and the epoch and peer that it means."""

    region_id: int
    epoch: Epoch
    peer_id: int
    action: ChangePeers | TransferLeader | Split | Unsupported


@dataclass(frozen=True, slots=True)
class StoreReady:
    """One region's work, and what there is to say. Answers: each ticket with its outcome, in order."""

    work: RegionReady
    answers: tuple[Answer, ...]
    notes: tuple[str, ...]


def first_region(region_id: int, peer: Peer) -> Region:
    return Region(region_id, b"", b"", Epoch(version=1, conf_ver=1), (peer,))


def beginning(region: Region) -> Restored:
    """What the log of a region is restored from when the region is new."""
    state = HardState(FIRST_TERM, 0, FIRST_INDEX)
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
        self.tombstones = dict(tombstones or {})
        self.replicas: dict[int, Replica] = {}
        self._chance = chance
        self._box = Outbox()
        self._touched: dict[int, None] = {}

    def reconfigure(self, settings: Settings) -> None:
        """Other timings and limits from now on, for every replica."""
        self.settings = settings
        for replica in self.replicas.values():
            replica.settings = settings
            replica.raft.reconfigure(settings.raft)

    def restore(self, found: RestoredReplica) -> Replica:
        """Takes up a replica from disk, or the first region that was just written there."""
        peer = found.region.peer(found.peer_id) or Peer(found.peer_id, self.id)
        raft = Raft(found.peer_id, found.raft, self.settings.raft, self._chance)
        replica = Replica(found.region, peer, raft, self.settings)
        replica.growth.is_unknown = found.region.is_initialized
        self.replicas[found.region.id] = replica
        if [voter.id for voter in found.region.peers] == [found.peer_id]:
            raft.campaign()  # nobody else can have led meanwhile
        self._touched[found.region.id] = None
        return replica

    # ---- time and messages ----

    def tick(self) -> None:
        for region_id, replica in self.replicas.items():
            if replica.is_installing:
                continue
            replica.tick()
            replica.notice_report(self._box)
            self._touched[region_id] = None

    def step(self, envelope: Envelope) -> tuple[Envelope, ...]:
        """Takes a message from another store; what comes back is to be sent at once."""
        if envelope.to.store_id != self.id:
            return ()
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
            if envelope.message.kind not in FOUNDING_KINDS:
                return ()
            replica = self._found(envelope)
        elif envelope.to.id < replica.me.id or replica.is_destroyed:
            return ()
        elif self._is_out(envelope, replica):
            return (Envelope(replica.region.id, replica.region.epoch, replica.me, envelope.sender, None),)
        if envelope.message.kind is MessageKind.SNAPSHOT and not self._has_room_for(envelope):
            return ()
        replica.step(envelope)
        self._touched[envelope.region_id] = None
        return ()

    @staticmethod
    def _is_out(envelope: Envelope, replica: Replica) -> bool:
        """Whether the sender was removed from the region and does not know it. Equal epochs mean equal peers."""
        region = replica.region
        stale = envelope.epoch.conf_ver <= region.epoch.conf_ver
        return region.is_initialized and stale and region.peer(envelope.sender.id) is None

    def _found(self, envelope: Envelope) -> Replica:
        """A replica that knows nothing yet; the leader will send it a snapshot.

        It carries the epoch of who spoke to it, under which it is in the region: a peer that has not heard of it yet
        has an older one, and must not take it for removed.
        """
        unknown = Region(envelope.region_id, epoch=envelope.epoch)
        return self.restore(RestoredReplica(unknown, envelope.to.id, Restored(configuration_of(unknown))))

    def _leave(self, envelope: Envelope) -> None:
        replica = self.replicas.get(envelope.region_id)
        if replica is None or replica.me.id != envelope.to.id or replica.is_installing:
            return
        if envelope.epoch.conf_ver >= replica.region.epoch.conf_ver:
            self._destroy(replica)

    def _has_room_for(self, envelope: Envelope) -> bool:
        if envelope.region is None:
            return False
        wanted = envelope.region
        for region_id, other in self.replicas.items():
            if region_id != wanted.id and other.region.is_initialized and other.region.overlaps(wanted):
                self._box.notes.append(f"region {wanted.id}: a snapshot overlaps region {region_id} and is refused")
                return False
        return True

    def _destroy(self, replica: Replica) -> None:
        replica.destroy(self._box)
        self._touched[replica.region.id] = None

    def report_unreachable(self, store_id: int) -> None:
        for region_id, replica in self.replicas.items():
            peer = replica.region.peer_on(store_id)
            if peer is not None and replica.is_leader:
                replica.raft.report_unreachable(peer.id)
                self._touched[region_id] = None

    def report_snapshot(self, region_id: int, peer_id: int, ok: bool) -> None:
        replica = self.replicas.get(region_id)
        if replica is not None:
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
            self._touched[context.region_id] = None
        return self._with_neighbours(error)

    def read(self, ticket: object, context: Context) -> RegionError | None:
        """None: the ticket is answered by a later `ready`, with `Readable` or an error."""
        replica = self._replica_for(context)
        if not isinstance(replica, Replica):
            return replica
        error = replica.read(ticket, context)
        if error is None:
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

    def _with_neighbours(self, error: RegionError | None) -> RegionError | None:
        """A client whose region changed its range is told of all regions here that took part of it over."""
        if not isinstance(error, EpochNotMatch):
            return error
        known = {region.id for region in error.regions}
        others = (replica.region for region_id, replica in self.replicas.items() if region_id not in known)
        near = tuple(region for region in others if self._touches(region, error.regions[0]))
        return EpochNotMatch(error.regions + near)

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
        self._touched[step.region_id] = None
        if isinstance(step.action, ChangePeers):
            return replica.change(step.action.changes)
        if isinstance(step.action, TransferLeader):
            return replica.transfer(step.action.to)
        if isinstance(step.action, Split):
            return replica.split(step.action.keys, step.action.parts)
        return f"{step.action.name} is not supported"

    def reports_due(self) -> set[int]:
        """The regions of which PD is to hear at once."""
        due, self._box.reports_due = self._box.reports_due, set()
        return due

    def report(self, region_id: int) -> RegionReport | None:
        replica = self.replicas.get(region_id)
        return None if replica is None or replica.is_destroyed else replica.report()

    def unmeasured(self) -> list[Region]:
        """Regions whose size is no longer known well enough."""
        return [replica.region for replica in self.replicas.values() if replica.growth.is_stale and replica.is_leader]

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

    def ready(self, state: State) -> Iterable[StoreReady]:
        """The work of every region that has some, one at a time: carry each out before taking the next."""
        touched, self._touched = self._touched, {}
        for region_id in touched:
            replica = self.replicas.get(region_id)
            if replica is None:
                continue
            if replica.is_destroyed:
                yield self._bury(replica, RegionReady(replica.region, replica.me.id, destroyed=True, has_record=True))
                continue
            if replica.has_ready:
                work = replica.ready(state, self._box)
                for region in work.made:
                    self._take_up(region)
                replica.notice_report(self._box)
                yield self._bury(replica, work) if work.destroyed else self._say(work)
                if replica.has_ready:
                    self._touched[region_id] = None

    def _take_up(self, region: Region) -> None:
        """A region that was cut off one here, whose beginning the shell writes with the split."""
        peer = region.peer_on(self.id)
        assert peer is not None
        self.restore(RestoredReplica(region, peer.id, beginning(region)))

    def _bury(self, replica: Replica, work: RegionReady) -> StoreReady:
        region_id = replica.region.id
        self.tombstones[region_id] = max(self.tombstones.get(region_id, 0), replica.me.id)
        del self.replicas[region_id]
        self._box.notes.append(f"region {region_id}: peer {replica.me.id} is destroyed")
        return self._say(work)

    def _say(self, work: RegionReady) -> StoreReady:
        said = StoreReady(work, tuple(self._box.answers), tuple(self._box.notes))
        self._box.answers.clear()
        self._box.notes.clear()
        return said

    def persisted(self, region_id: int, peer_id: int, number: int) -> None:
        replica = self._same(region_id, peer_id)
        if replica is not None:
            replica.raft.persisted(number)
            self._touched[region_id] = None

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
