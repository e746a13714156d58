"""The commands of a region's log: how they become bytes, and what applying them does to the state.

Rules: applying is a function of the region, the state and the entry alone, so every replica does the same. A command
carries the epoch under which it was proposed and has no effect under another one: a write looks at `version` (the
range), a change of peers at `conf_ver`. Writes go through `State`, and a compare-and-swap reads through the same
`State`, so it sees what the entries before it wrote. Changes of peers and of the log are carried out by the replica.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from drillyard.emulator.raft.types import ChangeKind
from drillyard.emulator.store import expiry
from drillyard.emulator.store.errors import EpochNotMatch, KeyNotInRegion, RegionError
from drillyard.emulator.store.region import Epoch, Part, Peer, PeerChange, PeerRole, Region
from drillyard.emulator.store.state import Family, Span, State
from drillyard.emulator.store.transactions import Transact, Transacted, apply_transaction, keys_of
from drillyard.wire import drillpb, metapb

ROLES = {
    PeerRole.VOTER: metapb.Voter,
    PeerRole.LEARNER: metapb.Learner,
    PeerRole.INCOMING_VOTER: metapb.IncomingVoter,
    PeerRole.DEMOTING_VOTER: metapb.DemotingVoter,
}

PUT = drillpb.Mutation.Kind.PUT
DELETE = drillpb.Mutation.Kind.DELETE
DELETE_RANGE = drillpb.Mutation.Kind.DELETE_RANGE
EXPIRE = drillpb.Mutation.Kind.EXPIRE

MEASURE_BYTES = 1 << 20


class Put(Struct, frozen=True):
    key: bytes
    value: bytes
    family: Family = Family.DEFAULT


class Delete(Struct, frozen=True):
    key: bytes
    family: Family = Family.DEFAULT


class DeleteRange(Struct, frozen=True):
    start: bytes
    end: bytes
    family: Family = Family.DEFAULT


class Expire(Struct, frozen=True):
    """Deletes the key if its value expired by then: it may have been written anew since somebody saw that."""

    key: bytes
    now_s: int
    family: Family = Family.DEFAULT


Mutation = Put | Delete | DeleteRange | Expire


class Write(Struct, frozen=True):
    """All of it or nothing, in this order."""

    mutations: tuple[Mutation, ...]


class Lifetime(Struct, frozen=True):
    """Where values carry their expiry: what time it is for the command, and when what it writes expires."""

    now_s: int
    expires_s: int


class CompareAndSwap(Struct, frozen=True):
    key: bytes
    expected: bytes | None  # None: the key must not exist
    value: bytes
    family: Family = Family.DEFAULT
    lifetime: Lifetime | None = None  # None: values are bare


class Written(Struct, frozen=True):
    """The command was applied."""


class Swapped(Struct, frozen=True):
    succeeded: bool
    previous: bytes | None


Proposal = Write | CompareAndSwap | Transact
WriteOutcome = Written | Swapped | Transacted | RegionError


class Growth(Struct):
    """What the applied writes did to a region's size, as far as it can be told without reading what was there."""

    written_bytes: int = 0
    written_keys: int = 0
    size: int = 0
    keys: int = 0
    drift: int = 0  # bytes written since the size was measured
    is_unknown: bool = False  # a range was deleted

    @property
    def is_stale(self) -> bool:
        """Whether the size should be measured: an overwritten key counts twice until then."""
        return self.is_unknown or self.drift > max(MEASURE_BYTES, self.size // 2)

    def share(self, regions: int) -> None:
        """The region was split: each part is taken for equally large until it is measured."""
        self.size //= regions
        self.keys //= regions
        self.is_unknown = True

    def add(self, other: Growth) -> None:
        """Another region became a part of this one."""
        self.size += other.size
        self.keys += other.keys
        self.is_unknown = True

    def count(self, key: bytes, value: bytes | None) -> None:
        weight = len(key) + len(value or b"")
        self.written_bytes += weight
        self.written_keys += 1
        self.drift += weight
        self.size += weight if value is not None else -weight
        self.keys += 1 if value is not None else -1


def pack_peer(peer: Peer) -> metapb.Peer:
    return metapb.Peer(id=peer.id, store_id=peer.store_id, role=ROLES[peer.role])


def unpack_peer(packed: metapb.Peer) -> Peer:
    return Peer(packed.id, packed.store_id, PeerRole(packed.role))


def pack_epoch(epoch: Epoch) -> metapb.RegionEpoch:
    return metapb.RegionEpoch(conf_ver=epoch.conf_ver, version=epoch.version)


def unpack_epoch(packed: metapb.RegionEpoch) -> Epoch:
    return Epoch(version=packed.version, conf_ver=packed.conf_ver)


def pack_region(region: Region) -> metapb.Region:
    """As PD and clients know it; what it has absorbed is told to peers only."""
    return metapb.Region(
        id=region.id,
        start_key=region.start,
        end_key=region.end,
        region_epoch=pack_epoch(region.epoch),
        peers=[pack_peer(peer) for peer in region.peers],
    )


def unpack_region(packed: metapb.Region, absorbed: Iterable[int] = ()) -> Region:
    return Region(
        packed.id,
        packed.start_key,
        packed.end_key,
        unpack_epoch(packed.region_epoch),
        tuple(unpack_peer(peer) for peer in packed.peers),
        tuple(absorbed),
    )


def first_foreign_key(command: Proposal, region: Region) -> bytes | None:
    """A key of the command that the region does not hold. A range need only begin in it: its end is cut off."""
    if isinstance(command, CompareAndSwap):
        return None if region.has_key(command.key) else command.key
    if isinstance(command, Transact):
        return next((key for key in command.keys if not region.has_key(key)), None)
    for mutation in command.mutations:
        key = mutation.start if isinstance(mutation, DeleteRange) else mutation.key
        if not region.has_key(key):
            return key
    return None


def encode_write(command: Proposal, region: Region) -> bytes:
    record = drillpb.Command(version=region.epoch.version, conf_ver=region.epoch.conf_ver)
    if isinstance(command, Transact):
        record.transaction.CopyFrom(command.record)
        return record.SerializeToString()
    if isinstance(command, CompareAndSwap):
        record.swap.key, record.swap.value = command.key, command.value
        record.swap.family = command.family
        if command.lifetime is not None:
            record.swap.now_s, record.swap.expires_s = command.lifetime.now_s, command.lifetime.expires_s
        if command.expected is not None:
            record.swap.expected = command.expected
        return record.SerializeToString()
    for mutation in command.mutations:
        if isinstance(mutation, Put):
            record.mutations.add(key=mutation.key, value=mutation.value, family=mutation.family)
        elif isinstance(mutation, Delete):
            record.mutations.add(key=mutation.key, kind=DELETE, family=mutation.family)
        elif isinstance(mutation, Expire):
            now = expiry.pack_time(mutation.now_s)
            record.mutations.add(key=mutation.key, value=now, kind=EXPIRE, family=mutation.family)
        else:
            record.mutations.add(key=mutation.start, value=mutation.end, kind=DELETE_RANGE, family=mutation.family)
    return record.SerializeToString()


def encode_compaction(index: int, region: Region) -> bytes:
    epoch = region.epoch
    return drillpb.Command(version=epoch.version, conf_ver=epoch.conf_ver, compact_to=index).SerializeToString()


def encode_split(keys: Iterable[bytes], parts: Iterable[Part], region: Region) -> bytes:
    record = drillpb.Command(version=region.epoch.version, conf_ver=region.epoch.conf_ver)
    record.split.keys.extend(keys)
    for part in parts:
        record.split.parts.add(region_id=part.region_id, peer_ids=part.peer_ids)
    return record.SerializeToString()


def decode_split(record: drillpb.Command) -> tuple[tuple[bytes, ...], tuple[Part, ...]]:
    parts = tuple(Part(part.region_id, tuple(part.peer_ids)) for part in record.split.parts)
    return tuple(record.split.keys), parts


def encode_change(changes: Iterable[PeerChange], region: Region) -> bytes:
    record = drillpb.Command(version=region.epoch.version, conf_ver=region.epoch.conf_ver)
    record.change.SetInParent()
    for change in changes:
        record.change.changes.add(kind=int(change.kind), peer=pack_peer(change.peer))
    return record.SerializeToString()


def decode_change(record: drillpb.Command) -> tuple[PeerChange, ...]:
    return tuple(PeerChange(ChangeKind(change.kind), unpack_peer(change.peer)) for change in record.change.changes)


def apply_write(record: drillpb.Command, region: Region, state: State, growth: Growth) -> WriteOutcome:
    """Applies `mutations`, `swap` or `transaction`; without effect, with a region error, if the range has changed."""
    if record.version != region.epoch.version:
        return EpochNotMatch((region,))
    if record.mutations:
        return _mutate(record.mutations, region, state, growth)
    if record.HasField("swap"):
        return _swap(record.swap, region, state, growth)
    if record.HasField("transaction"):
        for key in keys_of(record.transaction):
            if not region.has_key(key):
                return KeyNotInRegion(key, region)
        return apply_transaction(record.transaction, state, growth.count)
    return Written()


def _mutate(mutations: Iterable[drillpb.Mutation], region: Region, state: State, growth: Growth) -> WriteOutcome:
    read = [(mutation.key, mutation.kind, mutation) for mutation in mutations]  # once: each look into a message costs
    for key, _, _ in read:
        if not region.has_key(key):
            return KeyNotInRegion(key, region)
    for key, kind, mutation in read:
        if kind == PUT:
            value = mutation.value
            state.put(key, value, _family(mutation.family))
            growth.count(key, value)
        elif kind == DELETE:
            state.delete(key, _family(mutation.family))
            growth.count(key, None)
        elif kind == EXPIRE:
            _expire(mutation, state, growth)
        else:
            _delete_range(mutation, region, state, growth)
    return Written()


def _family(number: int) -> Family:
    return Family(number) if number else Family.DEFAULT


def _expire(mutation: drillpb.Mutation, state: State, growth: Growth) -> None:
    family = Family(mutation.family)
    packed = state.get(mutation.key, family)
    if packed is not None and _living(packed, expiry.unpack_time(mutation.value)) is None:
        state.delete(mutation.key, family)
        growth.count(mutation.key, None)


def _living(packed: bytes | None, now_s: int) -> bytes | None:
    """What carries no expiry was written by a store that was not told to: it stays, rather than end every replica."""
    try:
        return expiry.living(packed, now_s)
    except ValueError:
        return packed


def _delete_range(mutation: drillpb.Mutation, region: Region, state: State, growth: Growth) -> None:
    start, end = region.clip(mutation.key, mutation.value)
    if not end or start < end:
        state.delete_range(Span(start, end, Family(mutation.family)))
        growth.is_unknown = True


def _swap(swap: drillpb.CompareAndSwap, region: Region, state: State, growth: Growth) -> WriteOutcome:
    if not region.has_key(swap.key):
        return KeyNotInRegion(swap.key, region)
    family = Family(swap.family)
    previous, value = state.get(swap.key, family), swap.value
    if swap.HasField("now_s"):
        previous, value = _living(previous, swap.now_s), expiry.pack(value, swap.expires_s)
    expected = swap.expected if swap.HasField("expected") else None
    if previous != expected:
        return Swapped(False, previous)
    state.put(swap.key, value, family)
    growth.count(swap.key, value)
    return Swapped(True, previous)
