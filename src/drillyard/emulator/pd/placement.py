"""PD's one placement rule: every region has its full number of voters, each on a store of its own.

Rules: one change at a time; a new replica joins as a learner, and is promoted once its region's leader no longer calls
it pending or down. New replicas go to the store with the fewest regions among those that are Up and hold none of the
region. A step is repeated word for word, ids and all, until the region's epoch shows that it was taken: stores drop a
step whose epoch is not theirs, so a repeat does no harm. When the chosen store is no longer Up, another is chosen.

It removes only learners beyond the full number; balance, merges and splits are not its business. It sends nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from drillyard.wire import eraftpb, metapb, pdpb

RECORDS = 100  # finished operators that are remembered
TIMEOUT = "11m0s"


@dataclass(frozen=True, slots=True)
class RegionView:
    """A region as its leader reports it. Pending and down are ids of peers."""

    meta: metapb.Region
    leader: metapb.Peer
    pending: frozenset[int] = frozenset()
    down: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Operator:
    """What is being done to one region, step by step: PD's own placement steps, not the people who run it."""

    region_id: int
    name: str
    brief: str
    kind: str
    epoch: tuple[int, int]  # version and conf_ver when it was made
    steps: tuple[str, ...]
    store_id: int
    peer_id: int
    created_ns: int
    current: int = 0
    ended_ns: int = 0
    success: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One change for a region to make now; none at all leaves the joint configuration."""

    text: str
    changes: tuple[tuple[eraftpb.ConfChangeType, metapb.Peer], ...]


@dataclass(slots=True)
class Ended:
    """What the last decision ended or began, for the log."""

    added: list[Operator] = field(default_factory=list)
    finished: list[Operator] = field(default_factory=list)
    cancelled: list[Operator] = field(default_factory=list)


class Placement:
    """The running operators of one leader. A new leader begins without any: the regions show what is left to do."""

    def __init__(self, replicas: int) -> None:
        self.replicas = replicas
        self.running: dict[int, Operator] = {}
        self.records: deque[Operator] = deque(maxlen=RECORDS)

    def decide(
        self, region: RegionView, up: Mapping[int, int], take_id: Callable[[], int], now_ns: int
    ) -> tuple[Step | None, Ended]:
        """The step for a region now. `up` has the number of regions of each store that may take a peer.

        `take_id` gives a fresh id, or 0 when there is none at the moment.
        """
        ended = Ended()
        operator = self.running.get(region.meta.id)
        if operator is not None and (end := self._ending(operator, region, up)):
            del self.running[region.meta.id]
            done = replace(operator, ended_ns=now_ns, success=end == "finished", current=len(operator.steps))
            self.records.append(done)
            (ended.finished if done.success else ended.cancelled).append(done)
            operator = None
        if operator is None:
            operator = self._plan(region, up, take_id, now_ns)
            if operator is not None:
                self.running[region.meta.id] = operator
                ended.added.append(operator)
        return self._step(region), ended

    def forget(self, regions: Iterable[int]) -> None:
        for region_id in regions:
            self.running.pop(region_id, None)

    def _ending(self, operator: Operator, region: RegionView, up: Mapping[int, int]) -> str:
        peer = _peer(region.meta, operator.peer_id)
        if operator.name == "remove-orphan-peer":
            return "finished" if peer is None else ""
        if peer is not None:
            return "finished" if peer.role == metapb.Voter else ""
        # Its peer is not there. If the region changed since, the peer may have come and gone: that id stays dead.
        is_moved = operator.epoch[1] != region.meta.region_epoch.conf_ver
        return "cancelled" if is_moved or operator.store_id not in up else ""

    def _plan(
        self, region: RegionView, up: Mapping[int, int], take_id: Callable[[], int], now_ns: int
    ) -> Operator | None:
        """The next operator that a region needs, if any can be had."""
        meta = region.meta
        epoch = (meta.region_epoch.version, meta.region_epoch.conf_ver)
        learners = [peer for peer in meta.peers if peer.role == metapb.Learner]
        missing = self.replicas - len(_voters(meta))

        def operator(name: str, brief: str, kind: str, *steps: str, peer: metapb.Peer) -> Operator:
            return Operator(meta.id, name, brief, kind, epoch, steps, peer.store_id, peer.id, now_ns)

        if missing <= 0:
            for orphan in learners:
                brief = f"rm peer: store [{orphan.store_id}]"
                return operator("remove-orphan-peer", brief, "region", _removal(orphan), peer=orphan)
            return None
        ready = [peer for peer in learners if _is_sound(peer, region)]
        for learner in ready:
            brief = f"promote learner: store [{learner.store_id}]"
            return operator("promote-learner", brief, "unknown", _promotion(learner), peer=learner)
        if sum(1 for learner in learners if learner.store_id in up) >= missing:
            return None  # enough are on their way
        store_id = self._choose(meta, up)
        peer_id = take_id() if store_id else 0
        if not peer_id:
            return None
        peer = metapb.Peer(id=peer_id, store_id=store_id, role=metapb.Learner)
        brief = f"add peer: store [{store_id}]"
        steps = (_addition(peer), _promotion(peer))
        return operator("add-rule-peer", brief, "replica,region", *steps, peer=peer)

    def _choose(self, meta: metapb.Region, up: Mapping[int, int]) -> int:
        """The Up store with the fewest regions, counting those on their way there; 0 if none is free."""
        holders = {peer.store_id for peer in meta.peers}
        coming = Counter(each.store_id for each in self.running.values() if each.current == 0)
        free = [(regions + coming[store_id], store_id) for store_id, regions in up.items() if store_id not in holders]
        return min(free)[1] if free else 0

    def _step(self, region: RegionView) -> Step | None:
        """What the region has to do now; its operator moves on with it."""
        if any(peer.role in (metapb.IncomingVoter, metapb.DemotingVoter) for peer in region.meta.peers):
            return Step("leave joint state", ())
        operator = self.running.get(region.meta.id)
        if operator is None:
            return None
        peer = _peer(region.meta, operator.peer_id)
        if operator.name == "remove-orphan-peer":
            return None if peer is None else Step(_removal(peer), ((eraftpb.RemoveNode, peer),))
        if peer is None:
            learner = metapb.Peer(id=operator.peer_id, store_id=operator.store_id, role=metapb.Learner)
            return Step(_addition(learner), ((eraftpb.AddLearnerNode, learner),))
        if len(operator.steps) > 1 and operator.current == 0:
            self.running[region.meta.id] = replace(operator, current=1)
        if not _is_sound(peer, region):
            return None
        return Step(_promotion(peer), ((eraftpb.AddNode, metapb.Peer(id=peer.id, store_id=peer.store_id)),))


def response_of(step: Step, region: RegionView) -> pdpb.RegionHeartbeatResponse:
    """A step as the leader of the region is told it."""
    changes = [pdpb.ChangePeer(change_type=kind, peer=peer) for kind, peer in step.changes]
    return pdpb.RegionHeartbeatResponse(
        region_id=region.meta.id,
        region_epoch=region.meta.region_epoch,
        target_peer=region.leader,
        change_peer_v2=pdpb.ChangePeerV2(changes=changes),
    )


def _voters(meta: metapb.Region) -> list[metapb.Peer]:
    return [peer for peer in meta.peers if peer.role in (metapb.Voter, metapb.IncomingVoter)]


def _peer(meta: metapb.Region, peer_id: int) -> metapb.Peer | None:
    return next((peer for peer in meta.peers if peer.id == peer_id), None)


def _is_sound(peer: metapb.Peer, region: RegionView) -> bool:
    return peer.id not in region.pending and peer.id not in region.down


def _addition(peer: metapb.Peer) -> str:
    return f"add learner peer {peer.id} on store {peer.store_id}"


def _promotion(peer: metapb.Peer) -> str:
    return f"promote learner peer {peer.id} on store {peer.store_id} to voter"


def _removal(peer: metapb.Peer) -> str:
    return f"remove peer on store {peer.store_id}"
