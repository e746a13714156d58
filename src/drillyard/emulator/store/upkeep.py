"""What a leader knows of the other peers, and what it makes of that: who is recent, down or pending, and how much of
the log may be forgotten.

Rules: time is counted in this replica's own ticks. A peer is *recent* when it was heard within an election timeout and
the log can bring it up to date; *pending* when only a snapshot can; *down* when it has been silent for long. The log
is kept for every peer that lacks some of it, until it has grown long: then only for peers that are heard, and when it
is much too long for none. Nothing here changes a replica.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct, field

from drillyard.emulator.raft import Raft
from drillyard.emulator.store.region import Peer, Region
from drillyard.emulator.store.settings import Settings

MUCH_TOO_LONG = 4.0  # times the limit of the log
FORGET_AT_ONCE = 2000  # entries; the rest follows when they are gone


class PeerWatch:
    """When each other peer was heard last."""

    __slots__ = ("_heard", "ticks")

    def __init__(self) -> None:
        self.ticks = 0
        self._heard: dict[int, int] = {}

    def hear(self, peer_id: int) -> None:
        self._heard[peer_id] = self.ticks

    def expect(self, peer_id: int) -> None:
        """A new peer: it is silent from now on, not since ever."""
        self._heard.setdefault(peer_id, self.ticks)

    def expect_all(self, peers: Iterable[Peer]) -> None:
        """Leadership begins: whatever was heard before says nothing."""
        self._heard = {peer.id: self.ticks for peer in peers}

    def pass_time(self, ticks: int, silences: Mapping[int, int]) -> None:
        """So much time went by unnoticed, and each peer's store was heard so long ago."""
        self.ticks += ticks
        for peer_id, silence in silences.items():
            self._heard[peer_id] = max(self._heard.get(peer_id, 0), self.ticks - silence)

    def is_heard(self, peer_id: int, within: int) -> bool:
        oldest = self.ticks - within
        return self._heard.get(peer_id, oldest - 1) >= oldest

    def silence(self, peer_id: int) -> int:
        return self.ticks - self._heard.get(peer_id, self.ticks)


class Rest(Struct):
    """How far a replica is on its way to sleep (see `sleep`)."""

    is_asleep: bool = False
    is_asking: bool = False  # a leader asks its peers with each heartbeat
    is_used: bool = False  # it had work since its leader was elected, or since it slept: more may follow
    settled_ticks: int = 0
    since: int = 0  # the store's tick up to which time has passed for a sleeper
    agreed: set[int] = field(default_factory=set)  # peers that said that they sleep


def recent_peers(raft: Raft, watch: PeerWatch, within: int) -> set[int]:
    """Peers that could commit an entry at once, this one included."""
    truncated = raft.first_index - 1
    recent = {
        peer_id
        for peer_id, progress in raft.progress().items()
        if progress.match >= truncated and watch.is_heard(peer_id, within)
    }
    return recent | {raft.node}


def pending_peers(region: Region, raft: Raft) -> tuple[Peer, ...]:
    """Peers that the log cannot bring up to date: they wait for a snapshot, or are installing one."""
    truncated = raft.first_index - 1
    progress = raft.progress()
    return tuple(
        peer
        for peer in region.peers
        if peer.id != raft.node and (peer.id not in progress or progress[peer.id].match < truncated)
    )


def down_peers(region: Region, me: int, watch: PeerWatch, settings: Settings) -> tuple[tuple[Peer, int], ...]:
    """With the seconds."""
    silent = ((peer, watch.silence(peer.id) * settings.tick_ms // 1000) for peer in region.peers if peer.id != me)
    return tuple((peer, seconds) for peer, seconds in silent if seconds >= settings.max_peer_down_s)


def forgettable(raft: Raft, watch: PeerWatch, settings: Settings) -> int:
    """Up to where a leader should propose to forget the log; 0 for nowhere."""
    fullness = max(
        raft.log_bytes / settings.log_gc_bytes_limit,
        (raft.applied - raft.first_index) / settings.log_gc_count_limit,
    )
    waited_for = [
        progress.match
        for peer_id, progress in raft.progress().items()
        if peer_id != raft.node
        and fullness < MUCH_TOO_LONG
        and (fullness < 1 or watch.is_heard(peer_id, settings.raft.election_ticks))
    ]
    target = min(waited_for, default=raft.applied)
    target = min(target, raft.applied, raft.first_index + max(FORGET_AT_ONCE, settings.log_gc_threshold))
    if fullness < 1 and target - raft.first_index < settings.log_gc_threshold:
        return 0
    return target if target > raft.first_index else 0
