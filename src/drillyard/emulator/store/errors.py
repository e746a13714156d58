"""Why a store cannot serve a request now: the region errors, one value for each kind that errorpb.Error knows.

A client acts on the kind, so the kinds keep their promises. `NotLeader` says that nothing was proposed.
`StaleCommand` and, for a replica that was destroyed meanwhile, `RegionNotFound` say that the command may or may not
come to be applied. The shell turns these into errorpb; nothing here knows the wire.
"""

from __future__ import annotations

from msgspec import Struct

from drillyard.emulator.store.region import Peer, Region


class NotLeader(Struct, frozen=True):
    region_id: int
    leader: Peer | None = None


class RegionNotFound(Struct, frozen=True):
    region_id: int


class RegionNotInitialized(Struct, frozen=True):
    region_id: int


class KeyNotInRegion(Struct, frozen=True):
    key: bytes
    region: Region


class EpochNotMatch(Struct, frozen=True):
    regions: tuple[Region, ...]


class StaleCommand(Struct, frozen=True):
    pass


class StoreNotMatch(Struct, frozen=True):
    asked: int
    actual: int


class MismatchPeerId(Struct, frozen=True):
    asked: int
    actual: int


class ServerIsBusy(Struct, frozen=True):
    reason: str
    backoff_ms: int = 0


class RaftEntryTooLarge(Struct, frozen=True):
    region_id: int
    size: int


class ProposalInMergingMode(Struct, frozen=True):
    region_id: int


class ReadIndexNotReady(Struct, frozen=True):
    region_id: int
    reason: str


class DiskFull(Struct, frozen=True):
    store_id: int
    reason: str


RegionError = (
    NotLeader
    | RegionNotFound
    | RegionNotInitialized
    | KeyNotInRegion
    | EpochNotMatch
    | StaleCommand
    | StoreNotMatch
    | MismatchPeerId
    | ServerIsBusy
    | RaftEntryTooLarge
    | ProposalInMergingMode
    | ReadIndexNotReady
    | DiskFull
)
