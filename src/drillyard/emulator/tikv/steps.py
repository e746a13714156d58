"""PD's answers to heartbeats, as steps for the store. Pure: it translates, and the store decides."""

from __future__ import annotations

from drillyard.emulator.raft.types import ChangeKind
from drillyard.emulator.store.commands import unpack_peer
from drillyard.emulator.store.region import PeerChange
from drillyard.emulator.store.store import ChangePeers, Merge, Split, Step, TransferLeader, Unsupported
from drillyard.emulator.tikv.records import unpack_epoch, unpack_region
from drillyard.wire import metapb, pdpb


def step_of(answer: pdpb.RegionHeartbeatResponse) -> Step | None:
    """The step in PD's answer; None for an answer that only keeps the stream alive."""
    action = _action_of(answer)
    if action is None:
        return None
    return Step(answer.region_id, unpack_epoch(answer.region_epoch), answer.target_peer.id, action)


def kind_of(step: Step) -> str:
    """The step as TiKV's metrics name it."""
    match step.action:
        case ChangePeers():
            return "change peer"
        case TransferLeader():
            return "transfer leader"
        case Split():
            return "split region"
        case Merge():
            return "merge"
        case Unsupported(name):
            return name


def _action_of(
    answer: pdpb.RegionHeartbeatResponse,
) -> ChangePeers | TransferLeader | Split | Merge | Unsupported | None:
    if answer.HasField("change_peer_v2"):
        return ChangePeers(tuple(_change_of(change) for change in answer.change_peer_v2.changes))
    if answer.HasField("change_peer"):
        return ChangePeers((_change_of(answer.change_peer),))
    if answer.HasField("transfer_leader"):
        peer = answer.transfer_leader.peer
        return TransferLeader(unpack_peer(peer if peer.id else _first(answer.transfer_leader)))
    if answer.HasField("split_region"):
        return Split(tuple(answer.split_region.keys))
    if answer.HasField("merge"):
        return Merge(unpack_region(answer.merge.target))
    if "switch_witnesses" in answer.DESCRIPTOR.fields_by_name and answer.HasField("switch_witnesses"):
        return Unsupported("switch witnesses")
    return None


def _first(transfer: pdpb.TransferLeader) -> metapb.Peer:
    return transfer.peers[0] if transfer.peers else transfer.peer


def _change_of(change: pdpb.ChangePeer) -> PeerChange:
    return PeerChange(ChangeKind(change.change_type), unpack_peer(change.peer))
