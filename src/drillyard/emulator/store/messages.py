"""What goes in and out of a store: requests' contexts, outcomes, envelopes between peers, and work for the shell."""

from __future__ import annotations

from msgspec import Struct, field

from drillyard.emulator.raft.types import HardState, Message, Ready
from drillyard.emulator.store.commands import Swapped, Written
from drillyard.emulator.store.errors import RegionError
from drillyard.emulator.store.region import Epoch, Peer, Region
from drillyard.emulator.store.transactions import Transacted


class Context(Struct, frozen=True):
    """What a request says about where it believes it belongs."""

    region_id: int
    version: int
    peer_id: int
    store_id: int
    term: int = 0


class Readable(Struct, frozen=True):
    """The state may be read now, synchronously or through a view taken now, within the region's range."""

    region: Region


Outcome = Written | Swapped | Transacted | Readable | RegionError
Answer = tuple[object, Outcome]


class Envelope(Struct, frozen=True):
    """One Raft message with the address of the group and the two peers.

    No message at all tells `to` that it is not in the region any more, as of `epoch`. With a snapshot comes the
    region as the snapshot holds it. `range` comes with what may make a replica at the receiver.
    `rest` speaks of sleep: a leader's heartbeat asks for it, a reply agrees.
    """

    region_id: int
    epoch: Epoch
    sender: Peer
    to: Peer
    message: Message | None
    region: Region | None = None
    range: tuple[bytes, bytes] | None = None
    rest: bool = False


class Merging(Struct, frozen=True):
    """A region that has ended for the sake of its neighbour, and is not yet a part of it."""

    target: Region  # as it has to be when the merge is committed
    min_index: int  # every peer has the log before this entry
    index: int  # of the entry that ended it


class Made(Struct, frozen=True):
    """A replica of a region that a split cut off, and what its log begins with.

    A peer of the region may have been here before, not knowing its range yet; what it promised is kept in `state`.
    """

    region: Region
    peer_id: int
    state: HardState


class RegionReady(Struct, frozen=True):
    """Work for the shell on one region.

    Stage `ready` in the Raft log (none: nothing to stage), and `record` and `applied` with it, in the batch that the
    writes to `State` went into. Send `messages` at once; take a view for each of `snapshots` right after the batch is
    written; send `deferred` and report `persisted(number)` once the batch is durable. `install`: the snapshot that
    came with this region is to be moved into place, then `Store.installed` is to be called instead of `persisted`.
    `made`: new regions that a split cut off; their beginnings are to be written in the same batch (see `beginning`).
    `merged`: regions that have become part of this one, with their peers' ids; their logs go and their records say that
    they are destroyed, in the same batch, but their data stays. `destroyed`: the log and the data of the region are to
    be deleted; the record says so already. `merging` belongs into the record.
    """

    region: Region
    peer_id: int
    ready: Ready | None = None
    has_record: bool = False
    applied: int = 0
    compact_to: int = 0
    messages: tuple[Envelope, ...] = ()
    deferred: tuple[Envelope, ...] = ()
    snapshots: tuple[Envelope, ...] = ()
    made: tuple[Made, ...] = ()
    merged: tuple[tuple[Region, int], ...] = ()
    merging: Merging | None = None
    install: bool = False
    destroyed: bool = False

    @property
    def is_lazy(self) -> bool:
        """Whether its batch needs no sync of its own: what was only applied is in the log, which is durable, and would
        be applied again.
        """
        is_applied_only = self.ready is not None and not self.ready.must_persist
        return is_applied_only and not self.has_record and not self.destroyed


class RegionReport(Struct, frozen=True):
    """What a leader tells PD about its region."""

    region: Region
    leader: Peer
    term: int
    down: tuple[tuple[Peer, int], ...]  # with the seconds
    pending: tuple[Peer, ...]
    written_bytes: int
    written_keys: int
    size: int
    keys: int


class Outbox(Struct):
    """What all replicas of a store have to say between two calls of the shell."""

    answers: list[Answer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reports_due: set[int] = field(default_factory=set)
    tombstones: dict[int, int] = field(default_factory=dict)

    def may_begin(self, region_id: int, peer_id: int) -> bool:
        return peer_id > self.tombstones.get(region_id, 0)
