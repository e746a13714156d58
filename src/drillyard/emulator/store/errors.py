"""Why a store cannot serve a request now: the region errors, one value for each kind that errorpb.Error knows.

A client acts on the kind, so the kinds keep their promises. `NotLeader` says that nothing was proposed.
`StaleCommand` and, for a replica that was destroyed meanwhile, `RegionNotFound` say that the command may or may not
come to be applied. The shell turns these into errorpb; nothing here knows the wire.
"""

from __future__ import annotations

from dataclasses import dataclass

from drillyard.emulator.store.region import Peer, Region


@dataclass(frozen=True, slots=True)
class NotLeader:
    region_id: int
    leader: Peer | None = None


@dataclass(frozen=True, slots=True)
class RegionNotFound:
    region_id: int


@dataclass(frozen=True, slots=True)
class RegionNotInitialized:
    region_id: int


@dataclass(frozen=True, slots=True)
class KeyNotInRegion:
    key: bytes
    region: Region


@dataclass(frozen=True, slots=True)
class EpochNotMatch:
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class StaleCommand:
    pass


@dataclass(frozen=True, slots=True)
class StoreNotMatch:
    asked: int
    actual: int


@dataclass(frozen=True, slots=True)
class MismatchPeerId:
    asked: int
    actual: int


@dataclass(frozen=True, slots=True)
class ServerIsBusy:
    reason: str
    backoff_ms: int = 0


@dataclass(frozen=True, slots=True)
class RaftEntryTooLarge:
    region_id: int
    size: int


@dataclass(frozen=True, slots=True)
class ProposalInMergingMode:
    region_id: int


@dataclass(frozen=True, slots=True)
class ReadIndexNotReady:
    region_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class DiskFull:
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
