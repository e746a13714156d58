"""What a store keeps on disk besides its Raft logs, and the store's values as messages of the wire.

The keys of the storage: `2i` the store's identity, `2f` the first region until PD has taken it, `2r` + region id a
replica's record, `2a` + region id the index applied, `2s` + region id + number the parts of a snapshot that is
arriving; `z`, `x` or `y` + key the users' pairs of the families default, lock and write. Keys that begin with 0x01 are
the Raft logs'. Everything here translates; nothing decides.
"""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import DecodeError

from drillyard.emulator import raft_codec
from drillyard.emulator.raft.types import Entry
from drillyard.emulator.store.commands import pack_epoch, pack_peer, unpack_peer
from drillyard.emulator.store.commands import pack_region as pack_region
from drillyard.emulator.store.commands import unpack_epoch as unpack_epoch
from drillyard.emulator.store.commands import unpack_region as unpack_region
from drillyard.emulator.store.errors import (
    DiskFull,
    EpochNotMatch,
    KeyNotInRegion,
    MismatchPeerId,
    NotLeader,
    ProposalInMergingMode,
    RaftEntryTooLarge,
    ReadIndexNotReady,
    RegionError,
    RegionNotFound,
    RegionNotInitialized,
    ServerIsBusy,
    StaleCommand,
    StoreNotMatch,
)
from drillyard.emulator.store.neighbours import Pulse
from drillyard.emulator.store.region import Region
from drillyard.emulator.store.replica import Envelope, Merging
from drillyard.emulator.store.state import FAMILIES, Family, Span
from drillyard.wire import drillpb, errorpb, metapb

IDENTITY_KEY = b"2i"
FOUNDED_KEY = b"2f"
REPLICA_PREFIX = b"2r"
APPLIED_PREFIX = b"2a"
ARRIVING_PREFIX = b"2s"
_PREFIXES = {Family.DEFAULT: b"z", Family.LOCK: b"x", Family.WRITE: b"y"}
_ENDS = {family: bytes([prefix[0] + 1]) for family, prefix in _PREFIXES.items()}

NORMAL = drillpb.ReplicaRecord.State.NORMAL
INSTALLING = drillpb.ReplicaRecord.State.INSTALLING
TOMBSTONE = drillpb.ReplicaRecord.State.TOMBSTONE


def replica_key(region_id: int) -> bytes:
    return REPLICA_PREFIX + region_id.to_bytes(8, "big")


def applied_key(region_id: int) -> bytes:
    return APPLIED_PREFIX + region_id.to_bytes(8, "big")


def arriving_key(region_id: int, number: int) -> bytes:
    return ARRIVING_PREFIX + region_id.to_bytes(8, "big") + number.to_bytes(8, "big")


def arriving_range(region_id: int) -> tuple[bytes, bytes]:
    return ARRIVING_PREFIX + region_id.to_bytes(8, "big"), ARRIVING_PREFIX + (region_id + 1).to_bytes(8, "big")


def data_place(key: bytes, family: Family = Family.DEFAULT) -> bytes:
    return _PREFIXES[family] + key


def key_at(place: bytes) -> bytes:
    """The user's key whose pair is there."""
    return place[1:]


def data_range(span: Span) -> tuple[bytes, bytes]:
    """Where the pairs of the span are."""
    return _PREFIXES[span.family] + span.start, _PREFIXES[span.family] + span.end if span.end else _ENDS[span.family]


def spans_of(region: Region) -> tuple[Span, ...]:
    """All that a region holds, family by family."""
    return tuple(Span(region.start, region.end, family) for family in FAMILIES)


def pack_replica(
    region: Region, peer_id: int, state: drillpb.ReplicaRecord.State, merging: Merging | None = None
) -> bytes:
    record = drillpb.ReplicaRecord(state=state, peer_id=peer_id, region=pack_region(region), absorbed=region.absorbed)
    if merging is not None:
        record.merging.target.CopyFrom(pack_region(merging.target))
        record.merging.min_index, record.merging_index = merging.min_index, merging.index
    return record.SerializeToString()


def region_in(record: drillpb.ReplicaRecord) -> Region:
    return unpack_region(record.region, record.absorbed)


def merging_in(record: drillpb.ReplicaRecord) -> Merging | None:
    if not record.HasField("merging"):
        return None
    return Merging(unpack_region(record.merging.target), record.merging.min_index, record.merging_index)


def pack_envelope(
    envelope: Envelope, cluster_id: int, encode: Callable[[Entry], bytes] = raft_codec.encode_entry
) -> drillpb.Envelope:
    return drillpb.Envelope(
        cluster_id=cluster_id,
        region_id=envelope.region_id,
        region_epoch=pack_epoch(envelope.epoch),
        from_peer=pack_peer(envelope.sender),
        to_peer=pack_peer(envelope.to),
        message=None if envelope.message is None else raft_codec.pack_message(envelope.message, encode),
        range=None if envelope.range is None else drillpb.KeyRange(start=envelope.range[0], end=envelope.range[1]),
        rest=envelope.rest,
    )


def unpack_envelope(
    packed: drillpb.Envelope, region: Region | None = None, decode: Callable[[bytes], Entry] = raft_codec.decode_entry
) -> Envelope:
    """Raises `raft_codec.MalformedRecord` for what no peer of ours would send."""
    try:
        message = raft_codec.unpack_message(packed.message, decode) if packed.HasField("message") else None
        for entry in message.entries if message is not None else ():
            drillpb.Command.FromString(entry.data)  # once it is committed it is too late to refuse it
        return Envelope(
            packed.region_id,
            unpack_epoch(packed.region_epoch),
            unpack_peer(packed.from_peer),
            unpack_peer(packed.to_peer),
            message,
            region,
            (packed.range.start, packed.range.end) if packed.HasField("range") else None,
            packed.rest,
        )
    except (ValueError, DecodeError) as error:
        raise raft_codec.MalformedRecord(str(error)) from error


def pack_pulse(pulse: Pulse, cluster_id: int) -> drillpb.Envelope:
    return drillpb.Envelope(
        cluster_id=cluster_id,
        from_peer=metapb.Peer(store_id=pulse.sender),
        to_peer=metapb.Peer(store_id=pulse.to),
        pulse=drillpb.Pulse(
            digest=pulse.digest,
            trusted=pulse.trusted,
            is_answer=pulse.denied is not None,
            denied=pulse.denied or (),
        ),
    )


def unpack_pulse(packed: drillpb.Envelope) -> Pulse:
    said = packed.pulse
    denied = tuple(said.denied) if said.is_answer else None
    return Pulse(packed.from_peer.store_id, packed.to_peer.store_id, said.digest, tuple(said.trusted), denied)


def _span(region: Region) -> str:
    return f"[{region.start.hex().upper()}, {region.end.hex().upper()})"


def pack_error(error: RegionError) -> errorpb.Error:
    """The region error as clients know it. The message is for people; clients look at the field that is set."""
    match error:
        case NotLeader(region_id, leader):
            packed = errorpb.Error(message=f"peer is not leader for region {region_id}")
            packed.not_leader.region_id = region_id
            if leader is not None:
                packed.not_leader.leader.CopyFrom(pack_peer(leader))
            return packed
        case RegionNotFound(region_id):
            return errorpb.Error(
                message=f"region {region_id} not found", region_not_found=errorpb.RegionNotFound(region_id=region_id)
            )
        case RegionNotInitialized(region_id):
            return errorpb.Error(
                message=f"region {region_id} is not initialized",
                region_not_initialized=errorpb.RegionNotInitialized(region_id=region_id),
            )
        case KeyNotInRegion(key, region):
            return errorpb.Error(
                message=f"key {key.hex().upper()} is not in region {region.id} {_span(region)}",
                key_not_in_region=errorpb.KeyNotInRegion(
                    key=key, region_id=region.id, start_key=region.start, end_key=region.end
                ),
            )
        case EpochNotMatch(regions):
            return errorpb.Error(
                message=f"epoch not match, region {regions[0].id} is at version {regions[0].epoch.version}",
                epoch_not_match=errorpb.EpochNotMatch(current_regions=[pack_region(region) for region in regions]),
            )
        case _:
            return _pack_other(error)


def _pack_other(error: RegionError) -> errorpb.Error:
    match error:
        case StaleCommand():
            return errorpb.Error(message="stale command", stale_command=errorpb.StaleCommand())
        case StoreNotMatch(asked, actual):
            return errorpb.Error(
                message=f"to store id {asked}, mine {actual}",
                store_not_match=errorpb.StoreNotMatch(request_store_id=asked, actual_store_id=actual),
            )
        case MismatchPeerId(asked, actual):
            return errorpb.Error(
                message=f"mismatch peer id {asked} != {actual}",
                mismatch_peer_id=errorpb.MismatchPeerId(request_peer_id=asked, store_peer_id=actual),
            )
        case ServerIsBusy(reason, backoff_ms):
            return errorpb.Error(
                message="server is busy", server_is_busy=errorpb.ServerIsBusy(reason=reason, backoff_ms=backoff_ms)
            )
        case RaftEntryTooLarge(region_id, size):
            return errorpb.Error(
                message=f"raft entry is too large, region {region_id}, entry size {size}",
                raft_entry_too_large=errorpb.RaftEntryTooLarge(region_id=region_id, entry_size=size),
            )
        case ProposalInMergingMode(region_id):
            return errorpb.Error(
                message=f"region {region_id} is in merging mode",
                proposal_in_merging_mode=errorpb.ProposalInMergingMode(region_id=region_id),
            )
        case ReadIndexNotReady(region_id, reason):
            return errorpb.Error(
                message=f"read index not ready, reason {reason}, region {region_id}",
                read_index_not_ready=errorpb.ReadIndexNotReady(reason=reason, region_id=region_id),
            )
        case DiskFull(store_id, reason):
            return errorpb.Error(
                message=f"store {store_id} disk full: {reason}",
                disk_full=errorpb.DiskFull(store_id=[store_id], reason=reason),
            )
        case _:
            raise AssertionError(f"no wire form for {error}")
