"""The steps of an operator: each one thing that a region's leader is asked to do, and how PD sees that it was done.

Rules: a step is a value. It is *finished* when the region, as its leader reports it, shows that; it is sent again, word
for word, until then. Stores carry a step out only while the region's epoch is the one that came with it, so a repeat
does no harm. A step has a *hindrance* when it can no longer be carried out, which ends its operator. `conf_changes`
says how much of the region's conf_ver this step has used up: if the region's has moved by more than its operator's
steps account for, somebody else changed the region, and the operator is stale.

Texts are PD's own. Which steps lead from here to there is the business of `builder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from msgspec import Struct, field

from drillyard.emulator.pd.picture import RegionView, StoreView
from drillyard.wire import eraftpb, metapb, pdpb

SECOND_NS = 10**9
FAST_NS = 60 * SECOND_NS
SLOW_NS = 600 * SECOND_NS
FAST_S_PER_MIB = 0.6
SLOW_S_PER_MIB = 6
SMALL_MIB = 20  # what moving a region costs of a store's limit depends on its size:
COST = 1000
SMALL_COST = 200
ADD_PEER = "add-peer"
REMOVE_PEER = "remove-peer"
Stores = Mapping[int, StoreView]


class Change(Struct):
    """What operators change on one store once they are done."""

    leaders: int = 0
    leader_size: int = 0
    regions: int = 0
    region_size: int = 0
    costs: dict[str, int] = field(default_factory=dict)


class Influence:
    """What steps change on each store."""

    def __init__(self) -> None:
        self.stores: dict[int, Change] = {}

    def on(self, store_id: int) -> Change:
        return self.stores.setdefault(store_id, Change())

    def cost(self, store_id: int, kind: str, size: int) -> None:
        """An empty region costs nothing."""
        price = COST if size > SMALL_MIB else SMALL_COST if size > 1 else 0
        if price:
            costs = self.on(store_id).costs
            costs[kind] = costs.get(kind, 0) + price


def fast_ns(size: int) -> int:
    return max(FAST_NS, int(FAST_S_PER_MIB * size) * SECOND_NS)


def slow_ns(size: int) -> int:
    return max(SLOW_NS, SLOW_S_PER_MIB * size * SECOND_NS)


class Step(Struct, frozen=True):
    """One step. `is_brisk`: PD repeats it after two seconds rather than five."""

    is_brisk: ClassVar[bool] = False

    @property
    def text(self) -> str:
        raise NotImplementedError

    def is_finished(self, region: RegionView) -> bool:
        raise NotImplementedError

    def hindrance(self, region: RegionView, stores: Stores) -> str:
        return ""

    def conf_changes(self, region: RegionView) -> int:
        return 0

    def influence(self, influence: Influence, region: RegionView) -> None:
        return None

    def timeout_ns(self, size: int) -> int:
        return fast_ns(size)

    def order(self, region: RegionView) -> pdpb.RegionHeartbeatResponse | None:
        """What the region's leader is told, less the address; None if there is nothing to say at the moment."""
        return None


def change_peers(changes: Sequence[pdpb.ChangePeer]) -> pdpb.RegionHeartbeatResponse:
    return pdpb.RegionHeartbeatResponse(change_peer_v2=pdpb.ChangePeerV2(changes=changes))


def _node(kind: eraftpb.ConfChangeType, peer_id: int, store_id: int) -> pdpb.ChangePeer:
    role = metapb.Learner if kind == eraftpb.AddLearnerNode else metapb.Voter
    return pdpb.ChangePeer(change_type=kind, peer=metapb.Peer(id=peer_id, store_id=store_id, role=role))


def _is(peer: metapb.Peer | None, peer_id: int) -> bool:
    return peer is not None and peer.id == peer_id


def _missing(stores: Stores, store_id: int) -> str:
    store = stores.get(store_id)
    if store is None:
        return "target store does not exist"
    return "target store is down" if store.is_down else ""


class AddLearner(Step, frozen=True):
    store_id: int
    peer_id: int
    is_light: bool = False  # as when regions are scattered: it costs nothing of the store's limit

    @property
    def text(self) -> str:
        return f"add learner peer {self.peer_id} on store {self.store_id}"

    def is_finished(self, region: RegionView) -> bool:
        peer = region.learner_on(self.store_id)
        return _is(peer, self.peer_id) and self.peer_id not in region.pending

    def hindrance(self, region: RegionView, stores: Stores) -> str:
        if missing := _missing(stores, self.store_id):
            return missing
        peer = region.on(self.store_id)
        if peer is not None and peer.id != self.peer_id:
            return f"peer {peer.id} has already existed in store {self.store_id}"
        return ""

    def conf_changes(self, region: RegionView) -> int:
        return int(_is(region.on(self.store_id), self.peer_id))

    def influence(self, influence: Influence, region: RegionView) -> None:
        change = influence.on(self.store_id)
        change.regions += 1
        change.region_size += region.size
        if not self.is_light:
            influence.cost(self.store_id, ADD_PEER, region.size)

    def timeout_ns(self, size: int) -> int:
        return slow_ns(size)

    def order(self, region: RegionView) -> pdpb.RegionHeartbeatResponse | None:
        if region.on(self.store_id) is not None:
            return None  # it is there, and still pending
        return change_peers([_node(eraftpb.AddLearnerNode, self.peer_id, self.store_id)])


class PromoteLearner(Step, frozen=True):
    store_id: int
    peer_id: int

    is_brisk = True

    @property
    def text(self) -> str:
        return f"promote learner peer {self.peer_id} on store {self.store_id} to voter"

    def is_finished(self, region: RegionView) -> bool:
        peer = region.on(self.store_id)
        return peer is not None and peer.id == self.peer_id and peer.role == metapb.Voter

    def hindrance(self, region: RegionView, stores: Stores) -> str:
        return "" if _is(region.on(self.store_id), self.peer_id) else "peer does not exist"

    def conf_changes(self, region: RegionView) -> int:
        return int(self.is_finished(region))

    def order(self, region: RegionView) -> pdpb.RegionHeartbeatResponse:
        return change_peers([self.change])

    @property
    def change(self) -> pdpb.ChangePeer:
        return _node(eraftpb.AddNode, self.peer_id, self.store_id)


class DemoteVoter(Struct, frozen=True):
    """Half of a joint change: never a step of its own."""

    store_id: int
    peer_id: int

    @property
    def text(self) -> str:
        return f"demote voter peer {self.peer_id} on store {self.store_id} to learner"

    @property
    def change(self) -> pdpb.ChangePeer:
        return _node(eraftpb.AddLearnerNode, self.peer_id, self.store_id)


class JointChange(Step, frozen=True):
    """What the two steps of a joint change share: who is promoted and who is demoted, all at once."""

    promoted: tuple[PromoteLearner, ...]
    demoted: tuple[DemoteVoter, ...]

    is_brisk = True
    prefix = ""

    @property
    def text(self) -> str:
        return ", ".join([self.prefix, *(each.text for each in self.promoted), *(each.text for each in self.demoted)])

    @property
    def size(self) -> int:
        return len(self.promoted) + len(self.demoted)

    def timeout_ns(self, size: int) -> int:
        return fast_ns(size) * (self.size + 1)

    def conf_changes(self, region: RegionView) -> int:
        done = all(self._is_promoted(region.on(each.store_id), each.peer_id) for each in self.promoted)
        for each in self.demoted:
            peer = region.on(each.store_id)  # it may have been removed since
            done = done and (peer is None or self._is_demoted(peer, each.peer_id))
        return self.size if done else 0

    def _is_promoted(self, peer: metapb.Peer | None, peer_id: int) -> bool:
        raise NotImplementedError

    def _is_demoted(self, peer: metapb.Peer | None, peer_id: int) -> bool:
        raise NotImplementedError

    def hindrance(self, region: RegionView, stores: Stores) -> str:
        roles = [(region.on(each.store_id), each.peer_id, metapb.IncomingVoter) for each in self.promoted]
        roles += [(region.on(each.store_id), each.peer_id, metapb.DemotingVoter) for each in self.demoted]
        inside = outside = 0
        for peer, peer_id, joint in roles:
            if peer is None or peer.id != peer_id:
                return "peer does not exist"
            if peer.role == joint:
                inside += 1
            elif peer.role in (metapb.Voter, metapb.Learner):
                outside += 1
            else:
                return "peer is in the other half of the joint state"
        count = sum(1 for peer in region.peers if peer.role in (metapb.IncomingVoter, metapb.DemotingVoter))
        if inside and outside:
            return "non-atomic joint consensus"
        return "some other peers are in joint state" if count != inside else ""


class EnterJoint(JointChange, frozen=True):
    prefix = "use joint consensus"

    def is_finished(self, region: RegionView) -> bool:
        return all(self._is_promoted(region.on(each.store_id), each.peer_id) for each in self.promoted) and all(
            self._is_demoted(region.on(each.store_id), each.peer_id) for each in self.demoted
        )

    def _is_promoted(self, peer: metapb.Peer | None, peer_id: int) -> bool:
        return peer is not None and peer.id == peer_id and peer.role in (metapb.Voter, metapb.IncomingVoter)

    def _is_demoted(self, peer: metapb.Peer | None, peer_id: int) -> bool:
        return peer is not None and peer.id == peer_id and peer.role in (metapb.Learner, metapb.DemotingVoter)

    def order(self, region: RegionView) -> pdpb.RegionHeartbeatResponse:
        return change_peers([*(each.change for each in self.promoted), *(each.change for each in self.demoted)])


class LeaveJoint(JointChange, frozen=True):
    prefix = "leave joint state"

    def is_finished(self, region: RegionView) -> bool:
        promoted = all(self._is_promoted(region.on(each.store_id), each.peer_id) for each in self.promoted)
        demoted = all(self._is_demoted(region.on(each.store_id), each.peer_id) for each in self.demoted)
        return promoted and demoted and not region.is_joint

    def _is_promoted(self, peer: metapb.Peer | None, peer_id: int) -> bool:
        return peer is not None and peer.id == peer_id and peer.role == metapb.Voter

    def _is_demoted(self, peer: metapb.Peer | None, peer_id: int) -> bool:
        return peer is not None and peer.id == peer_id and peer.role == metapb.Learner

    def hindrance(self, region: RegionView, stores: Stores) -> str:
        leader = region.on(region.leader.store_id)
        if leader is not None and leader.role == metapb.DemotingVoter:
            return "cannot demote leader peer"
        return JointChange.hindrance(self, region, stores)

    def order(self, region: RegionView) -> pdpb.RegionHeartbeatResponse:
        return change_peers([])


class RemovePeer(Step, frozen=True):
    store_id: int
    peer_id: int
    is_light: bool = False

    @property
    def text(self) -> str:
        return f"remove peer on store {self.store_id}"

    def is_finished(self, region: RegionView) -> bool:
        return region.on(self.store_id) is None

    def hindrance(self, region: RegionView, stores: Stores) -> str:
        return "cannot remove leader peer" if region.leader.store_id == self.store_id else ""

    def conf_changes(self, region: RegionView) -> int:
        return int(not _is(region.on(self.store_id), self.peer_id))

    def influence(self, influence: Influence, region: RegionView) -> None:
        change = influence.on(self.store_id)
        change.regions -= 1
        change.region_size -= region.size
        if not self.is_light:
            influence.cost(self.store_id, REMOVE_PEER, region.size)

    def order(self, region: RegionView) -> pdpb.RegionHeartbeatResponse:
        return change_peers([pdpb.ChangePeer(change_type=eraftpb.RemoveNode, peer=region.on(self.store_id))])


class TransferLeader(Step, frozen=True):
    """To one store, or to whichever of several takes it."""

    source: int
    target: int
    targets: tuple[int, ...] = ()

    is_brisk = True

    @property
    def text(self) -> str:
        return f"transfer leader from store {self.source} to store {self.target}"

    def is_finished(self, region: RegionView) -> bool:
        return region.leader.store_id in (self.target, *self.targets)

    def hindrance(self, region: RegionView, stores: Stores) -> str:
        if region.on(self.target) is None:
            return "peer does not existed"
        if region.voter_on(self.target) is None:
            return "peer already is a learner"
        return min(_missing(stores, each) for each in (*self.targets, self.target))

    def influence(self, influence: Influence, region: RegionView) -> None:
        source, target = influence.on(self.source), influence.on(self.target)
        source.leaders -= 1
        source.leader_size -= region.size
        target.leaders += 1
        target.leader_size += region.size

    def order(self, region: RegionView) -> pdpb.RegionHeartbeatResponse:
        peers = [peer for store_id in self.targets if (peer := region.on(store_id)) is not None]
        transfer = pdpb.TransferLeader(peer=region.on(self.target), peers=peers)
        return pdpb.RegionHeartbeatResponse(transfer_leader=transfer)


class SplitRegion(Step, frozen=True):
    """Finished as soon as the region's range is another one."""

    start: bytes
    end: bytes
    policy: pdpb.CheckPolicy
    keys: tuple[bytes, ...] = ()

    @property
    def text(self) -> str:
        return f"split region with policy {pdpb.CheckPolicy.Name(self.policy)}"

    def is_finished(self, region: RegionView) -> bool:
        return (region.meta.start_key, region.meta.end_key) != (self.start, self.end)

    def influence(self, influence: Influence, region: RegionView) -> None:
        for peer in region.peers:
            change = influence.on(peer.store_id)
            change.regions += 1
            change.leaders += peer.id == region.leader.id

    def order(self, region: RegionView) -> pdpb.RegionHeartbeatResponse:
        split = pdpb.SplitRegion(policy=self.policy, keys=self.keys)
        return pdpb.RegionHeartbeatResponse(split_region=split)


class MergeRegion(Step, frozen=True):
    """Both regions of a merge have it; only the source is told. The target's is finished when its range has grown.

    The source never finishes: it is gone, and its operator with it.
    """

    source: metapb.Region
    target: metapb.Region
    is_passive: bool

    @property
    def text(self) -> str:
        return f"merge region {self.source.id} into region {self.target.id}"

    def is_finished(self, region: RegionView) -> bool:
        before = (self.target.start_key, self.target.end_key)
        return self.is_passive and (region.meta.start_key, region.meta.end_key) != before

    def influence(self, influence: Influence, region: RegionView) -> None:
        if self.is_passive:
            for peer in region.peers:
                change = influence.on(peer.store_id)
                change.regions -= 1
                change.leaders -= peer.id == region.leader.id

    def timeout_ns(self, size: int) -> int:
        return fast_ns(size) * 10

    def order(self, region: RegionView) -> pdpb.RegionHeartbeatResponse | None:
        return None if self.is_passive else pdpb.RegionHeartbeatResponse(merge=pdpb.Merge(target=self.target))
