"""What PD wants of a store's regions, and what it says of a peer that nobody leads."""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from drillyard.emulator.raft.types import ChangeKind
from drillyard.emulator.store.region import Epoch, Part, Peer, PeerChange, Region


class ChangePeers(Struct, frozen=True):
    changes: tuple[PeerChange, ...]

    def __str__(self) -> str:
        words = {ChangeKind.ADD_VOTER: "add voter", ChangeKind.ADD_LEARNER: "add learner", ChangeKind.REMOVE: "remove"}
        named = [f"{words[change.kind]} {change.peer.id} on store {change.peer.store_id}" for change in self.changes]
        return ", ".join(named) or "leave the joint state"


class TransferLeader(Struct, frozen=True):
    to: Peer

    def __str__(self) -> str:
        return f"transfer leadership to {self.to.id} on store {self.to.store_id}"


class Split(Struct, frozen=True):
    """Without parts it only asks whether it would be carried out: the new ids come from PD."""

    keys: tuple[bytes, ...]
    parts: tuple[Part, ...] = ()

    def __str__(self) -> str:
        return f"split at {', '.join(key.hex().upper() for key in self.keys) or 'some key'}"


class Merge(Struct, frozen=True):
    """Ends the region, and makes it a part of this one, which has to be exactly so."""

    target: Region

    def __str__(self) -> str:
        return f"merge into region {self.target.id}"


class Unsupported(Struct, frozen=True):
    """A step that this store knows of and does not carry out."""

    name: str

    def __str__(self) -> str:
        return self.name


class Step(Struct, frozen=True):
    """What PD wants of one region, and the epoch and peer that it means."""

    region_id: int
    epoch: Epoch
    peer_id: int
    action: ChangePeers | TransferLeader | Split | Merge | Unsupported


class Verdict(Enum):
    """On a peer that has heard no leader for long; the words are those of TiKV's metric."""

    VALID = "peer valid"
    STALE = "peer stale"
    EPOCH_ERROR = "region epoch error"
    UNKNOWN = "region not found"
