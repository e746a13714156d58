"""One replica as the status server shows it under /region/{id}, in TiKV's shape.

What TiKV keeps and this store does not is shown as absent or as TiKV's zero: the merge, the tablet, the buckets. Keys
are lists of numbers, as Rust writes bytes.
"""

from __future__ import annotations

from typing import Any

from drillyard.emulator.raft.progress import Progress
from drillyard.emulator.raft.types import Role
from drillyard.emulator.store.region import Peer, PeerRole, Region
from drillyard.emulator.store.replica import Replica

ROLES = {
    Role.FOLLOWER: "Follower",
    Role.PRE_CANDIDATE: "PreCandidate",
    Role.CANDIDATE: "Candidate",
    Role.LEADER: "Leader",
}
PEER_ROLES = {
    PeerRole.VOTER: "Voter",
    PeerRole.LEARNER: "Learner",
    PeerRole.INCOMING_VOTER: "IncomingVoter",
    PeerRole.DEMOTING_VOTER: "DemotingVoter",
}


def region_meta(replica: Replica) -> dict[str, Any]:
    raft = replica.raft
    truncated = raft.first_index - 1
    return {
        "group_state": "Ordered",  # no replica sleeps here
        "raft_status": _raft_status(replica),
        "raft_apply": {
            "applied_index": raft.applied,
            "commit_index": raft.commit,
            "commit_term": raft.term_at(raft.commit) or 0,
            "truncated_state": {"index": truncated, "term": raft.term_at(truncated) or 0},
        },
        "region_state": _region_state(replica.region),
        "bucket_keys": [],
    }


def _raft_status(replica: Replica) -> dict[str, Any]:
    raft = replica.raft
    voters = raft.configuration.voters | raft.configuration.outgoing
    progress = raft.progress()
    return {
        "id": replica.me.id,
        "hard_state": {"term": raft.term, "vote": raft.vote, "commit": raft.commit},
        "soft_state": {"leader_id": raft.leader, "raft_state": ROLES[raft.role]},
        "applied": raft.applied,
        "voters": {str(node): _progress(one) for node, one in progress.items() if node in voters},
        "learners": {str(node): _progress(one) for node, one in progress.items() if node not in voters},
        "last_index": raft.last_index,
        "persisted_index": raft.durable_index,
    }


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "matched": progress.match,
        "next_idx": progress.next,
        "state": progress.state.value.capitalize(),
        "paused": progress.probe_sent,
        "pending_snapshot": 0,
        "pending_request_snapshot": 0,
        "recent_active": progress.recent_active,
    }


def _region_state(region: Region) -> dict[str, Any]:
    return {
        "id": region.id,
        "start_key": list(region.start),
        "end_key": list(region.end),
        "epoch": {"conf_ver": region.epoch.conf_ver, "version": region.epoch.version},
        "peers": [_peer(peer) for peer in region.peers],
        "merge_state": None,
        "tablet_index": 0,
    }


def _peer(peer: Peer) -> dict[str, Any]:
    return {"id": peer.id, "store_id": peer.store_id, "role": PEER_ROLES[peer.role], "is_witness": False}
