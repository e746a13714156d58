"""What PD wants of a region, as proposals of its leader: changes of peers and of leadership, splits and merges.

Rules: a step that would stop the region, or that nobody could carry out, is declined in words and changes nothing. What
is proposed takes effect when it is applied, if the epoch is still the one under which it was proposed. Merges have two
more proposals than PD asks for: the target's, which completes one, and the source's, which undoes it.
"""

from __future__ import annotations

import contextlib

from drillyard.emulator.raft.types import Configuration, ProposalDropped
from drillyard.emulator.store import merging as merges
from drillyard.emulator.store.commands import encode_change, encode_split
from drillyard.emulator.store.region import (
    ChangeRefused,
    Part,
    Peer,
    PeerChange,
    PeerRole,
    Region,
    change_peers,
    configuration_of,
    raft_change,
    split_region,
)
from drillyard.emulator.store.replica import Replica


def change(replica: Replica, changes: tuple[PeerChange, ...]) -> str:
    """Proposes a change of peers. The answer is empty, or why it is declined."""
    if replica.merging is not None:
        return "the region is being merged"
    try:
        changed = change_peers(replica.region, changes)
    except ChangeRefused as refusal:
        return str(refusal)
    mine = changed.peer(replica.me.id)
    if mine is None or mine.role is PeerRole.LEARNER:
        return "it would remove or demote the leader"
    if not _would_work(replica, configuration_of(changed)):
        return "the peers it would leave are not recent enough to make a quorum"
    try:
        replica.raft.propose_change(raft_change(changes), encode_change(changes, replica.region))
    except ProposalDropped as refusal:
        return str(refusal) or "another change is under way"
    return ""


def transfer(replica: Replica, to: Peer) -> str:
    target = replica.region.peer(to.id)
    if target is None or target.store_id != to.store_id:
        return f"peer {to.id} is not in the region"
    if target.role not in (PeerRole.VOTER, PeerRole.INCOMING_VOTER):
        return f"peer {to.id} may not lead"
    if target.id == replica.me.id:
        return "it leads already"
    if target.id not in replica.recent():
        return f"peer {to.id} is not recent enough to lead"
    try:
        replica.raft.transfer_leader(target.id)
    except ProposalDropped as refusal:
        return str(refusal) or "leadership is on its way to another peer"
    return ""


def _would_work(replica: Replica, configuration: Configuration) -> bool:
    """Whether the log could still be committed at once under the new configuration."""
    recent = replica.recent()
    halves = [configuration.voters, configuration.outgoing]
    return all(len(half & recent) * 2 > len(half) for half in halves if half)


def split(replica: Replica, keys: tuple[bytes, ...], parts: tuple[Part, ...]) -> str:
    """Proposes to cut the region at the keys. Without parts it only tells whether it would."""
    if replica.merging is not None:
        return "the region is being merged"
    try:
        nobody = tuple(0 for _ in replica.region.peers)
        if keys or parts:
            split_region(replica.region, keys, parts or tuple(Part(0, nobody) for _ in keys))
        if parts:
            replica.raft.propose(encode_split(keys, parts, replica.region))
    except (ChangeRefused, ProposalDropped) as refusal:
        return str(refusal) or "leadership is on its way to another peer"
    return ""


def merge(source: Replica, target: Replica, wanted: Region) -> str:
    """Proposes to end this region for the sake of the target."""
    if source.merging is not None or target.merging is not None:
        return "one of the regions is being merged already"
    reason = merges.why_not(source.region, target.region, wanted)
    if reason:
        return reason
    least = merges.least_index(source.raft, source.settings)
    if not least:
        return "some peer lacks too much of the log"
    try:
        source.raft.propose(merges.encode_prepare(target.region, least, source.region))
    except ProposalDropped as refusal:
        return str(refusal) or "leadership is on its way to another peer"
    return ""


def commit_merge(replica: Replica, source: Replica) -> None:
    """Proposes to make the source, which has ended, a part of this region, if this peer leads."""
    merging, ticks = source.merging, replica.watch.ticks
    assert merging is not None
    last_source, last_tick = replica.asked_to_merge
    is_patient = ticks < last_tick + 2 * replica.settings.raft.election_ticks
    if not replica.is_leader or (last_source == source.region.id and is_patient):
        return
    entries = source.raft.entries(merging.min_index, merging.index)
    if len(entries) != merging.index - merging.min_index + 1:
        return  # another replica of the source still has them
    with contextlib.suppress(ProposalDropped):
        replica.raft.propose(merges.encode_commit(source.region, merging, entries, replica.region))
        replica.asked_to_merge = (source.region.id, ticks)


def roll_back(source: Replica) -> None:
    """Proposes to go on after a merge that cannot be committed any more."""
    assert source.merging is not None
    if source.is_leader:
        with contextlib.suppress(ProposalDropped):
            source.raft.propose(merges.encode_rollback(source.merging, source.region))
