"""What a store knows of one region: its key range, its epoch and its peers; and what a membership change makes of it.

Rules: values are immutable, a change gives a new `Region`. A peer id never comes back once it was given away, so it
names one replica for ever. The Raft configuration is never stored: it follows from the peers and their roles. Key
bounds are compared as plain bytes, and an empty end means "to the end of the key space". Nothing here knows Raft's log.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from msgspec import Struct
from msgspec.structs import replace

from drillyard.emulator.raft.types import Change, ChangeKind, Configuration, ConfigurationChange


class PeerRole(IntEnum):
    """The numbers are those of metapb.PeerRole."""

    VOTER = 0
    LEARNER = 1
    INCOMING_VOTER = 2
    DEMOTING_VOTER = 3


_MASK = (1 << 64) - 1
JOINT_ROLES = frozenset({PeerRole.INCOMING_VOTER, PeerRole.DEMOTING_VOTER})


class Peer(Struct, frozen=True):
    id: int
    store_id: int
    role: PeerRole = PeerRole.VOTER


class Epoch(Struct, frozen=True, order=True):
    """`version` counts changes of the range, `conf_ver` changes of the peers."""

    version: int = 0
    conf_ver: int = 0


class PeerChange(Struct, frozen=True):
    kind: ChangeKind
    peer: Peer


class ChangeRefused(Exception):
    """The membership change does not fit the region as it is now."""


class Region(Struct, frozen=True):
    """A region without peers is one whose first snapshot has not arrived yet: epoch and range are hearsay."""

    id: int
    start: bytes = b""
    end: bytes = b""
    epoch: Epoch = Epoch()
    peers: tuple[Peer, ...] = ()
    absorbed: tuple[int, ...] = ()  # the regions that were merged into this one, sorted; ids never come back

    @property
    def is_initialized(self) -> bool:
        return bool(self.peers)

    @property
    def is_joint(self) -> bool:
        return any(peer.role in JOINT_ROLES for peer in self.peers)

    def has_key(self, key: bytes) -> bool:
        return key >= self.start and (not self.end or key < self.end)

    def clip(self, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """The part of [start, end) that is this region's; both ends may come back equal to say "nothing"."""
        low = max(start, self.start)
        high = min(end, self.end) if end and self.end else end or self.end
        return (low, high) if not high or low < high else (low, low)

    def overlaps(self, other: Region) -> bool:
        return (not self.end or other.start < self.end) and (not other.end or self.start < other.end)

    def peer(self, peer_id: int) -> Peer | None:
        for peer in self.peers:
            if peer.id == peer_id:
                return peer
        return None

    def peer_on(self, store_id: int) -> Peer | None:
        for peer in self.peers:
            if peer.store_id == store_id:
                return peer
        return None


class Part(Struct, frozen=True):
    """The ids that a new region gets when one is split; the peers' in the order of the old region's."""

    region_id: int
    peer_ids: tuple[int, ...]


def split_region(region: Region, keys: tuple[bytes, ...], parts: tuple[Part, ...]) -> tuple[Region, ...]:
    """The region cut at the keys: the new ones from the left, then the old one with the rightmost part."""
    if not keys or list(keys) != sorted(set(keys)) or len(keys) != len(parts):
        raise ChangeRefused("the keys are not in order, or not as many as the new regions")
    if not all(region.has_key(key) and key > region.start for key in keys):
        raise ChangeRefused("a key to split at is not inside the region")
    if any(len(part.peer_ids) != len(region.peers) for part in parts):
        raise ChangeRefused("a new region has not as many peers as the old one")
    epoch = replace(region.epoch, version=region.epoch.version + len(parts))
    starts = (region.start, *keys)
    made = tuple(
        Region(
            part.region_id,
            start,
            end,
            epoch,
            tuple(replace(peer, id=new) for peer, new in zip(region.peers, part.peer_ids, strict=True)),
        )
        for part, start, end in zip(parts, starts, keys, strict=False)
    )
    return (*made, replace(region, start=keys[-1], epoch=epoch))


def configuration_of(region: Region) -> Configuration:
    """Who votes, by the roles. In a joint state the plain voters count on both sides."""
    of_role = {role: frozenset(peer.id for peer in region.peers if peer.role is role) for role in PeerRole}
    voters, demoting = of_role[PeerRole.VOTER], of_role[PeerRole.DEMOTING_VOTER]
    return Configuration(
        voters=voters | of_role[PeerRole.INCOMING_VOTER],
        learners=of_role[PeerRole.LEARNER],
        outgoing=voters | demoting if region.is_joint else frozenset(),
        learners_next=demoting,
    )


def raft_change(changes: Iterable[PeerChange]) -> ConfigurationChange:
    return ConfigurationChange(tuple(Change(change.kind, change.peer.id) for change in changes))


def change_peers(region: Region, changes: tuple[PeerChange, ...]) -> Region:
    """The region after the change: none leaves the joint state, one is simple, two or more enter a joint state."""
    if not changes:
        return _leave_joint(region)
    if region.is_joint:
        raise ChangeRefused("the region is in a joint state; only leaving it is possible")
    joint = len(changes) > 1
    touched = [change.peer.id for change in changes]
    if len(set(touched)) != len(touched):
        raise ChangeRefused("two changes name the same peer")
    peers = list(region.peers)
    for change in changes:
        peers = _change_one(peers, change, joint)
    if not any(peer.role in (PeerRole.VOTER, PeerRole.INCOMING_VOTER) for peer in peers):
        raise ChangeRefused("no voter would be left")
    epoch = replace(region.epoch, conf_ver=region.epoch.conf_ver + len(changes))
    return replace(region, peers=tuple(peers), epoch=epoch)


def _change_one(peers: list[Peer], change: PeerChange, joint: bool) -> list[Peer]:
    wanted = change.peer
    present = next((peer for peer in peers if peer.id == wanted.id), None)
    neighbour = next((peer for peer in peers if peer.store_id == wanted.store_id and peer.id != wanted.id), None)
    if change.kind is ChangeKind.REMOVE:
        if present is None:
            raise ChangeRefused(f"peer {wanted.id} is not in the region")
        if joint and present.role is not PeerRole.LEARNER:
            raise ChangeRefused(f"voter {wanted.id} has to be demoted before it is removed in a joint change")
        return [peer for peer in peers if peer.id != wanted.id]
    if neighbour is not None:
        raise ChangeRefused(f"store {wanted.store_id} already has peer {neighbour.id} of the region")
    if present is not None and present.store_id != wanted.store_id:
        raise ChangeRefused(f"peer {wanted.id} is on store {present.store_id}, not {wanted.store_id}")
    role = _role_after(change.kind, present, joint)
    if present is None:
        return [*peers, replace(wanted, role=role)]
    return [replace(peer, role=role) if peer.id == wanted.id else peer for peer in peers]


def _role_after(kind: ChangeKind, present: Peer | None, joint: bool) -> PeerRole:
    if kind is ChangeKind.ADD_VOTER:
        if present is not None and present.role is PeerRole.VOTER:
            raise ChangeRefused(f"peer {present.id} is a voter already")
        return PeerRole.INCOMING_VOTER if joint else PeerRole.VOTER
    if present is not None and present.role is PeerRole.LEARNER:
        raise ChangeRefused(f"peer {present.id} is a learner already")
    return PeerRole.DEMOTING_VOTER if joint and present is not None else PeerRole.LEARNER


def _leave_joint(region: Region) -> Region:
    if not region.is_joint:
        raise ChangeRefused("the region is not in a joint state")
    settled = {PeerRole.INCOMING_VOTER: PeerRole.VOTER, PeerRole.DEMOTING_VOTER: PeerRole.LEARNER}
    moved = sum(peer.role in settled for peer in region.peers)
    peers = tuple(replace(peer, role=settled.get(peer.role, peer.role)) for peer in region.peers)
    epoch = replace(region.epoch, conf_ver=region.epoch.conf_ver + moved)
    return replace(region, peers=peers, epoch=epoch)


def scattered(region_id: int, salt: int = 0) -> int:
    """A number that is as good as drawn by chance, and the same for everybody: PD gives region ids away in strides."""
    mixed = (region_id * 0x9E3779B97F4A7C15 + salt * 0xC2B2AE3D27D4EB4F) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
