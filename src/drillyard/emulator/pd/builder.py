"""How a region gets from the peers that it has to those that it should have: the steps, in a safe order.

Rules: with joint consensus, new peers join as learners, all roles change at once in one joint configuration, and what
is not wanted any more is removed as a learner at the end; so the number of voters that vote never falls below what it
was. One single change needs no joint configuration, and without joint consensus each is made alone, additions first.
A leader that is to go hands over before it is demoted; a region has a voter on the target of every transfer.

A builder is used once: say what to change, then `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from drillyard.emulator.pd.operators import CannotBuild, Kind, Operator
from drillyard.emulator.pd.picture import Picture, RegionView, StoreView
from drillyard.emulator.pd.steps import (
    AddLearner,
    DemoteVoter,
    EnterJoint,
    LeaveJoint,
    PromoteLearner,
    RemovePeer,
    Step,
    TransferLeader,
)
from drillyard.wire import metapb

Peers = dict[int, metapb.Peer]  # by store


class Tools(Struct, frozen=True):
    """What operators are built with. `take_id` gives a fresh id, or 0 when there is none at the moment.

    `may_lead` says whether a store takes leaders now.
    """

    picture: Picture
    take_id: Callable[[], int]
    may_lead: Callable[[StoreView], bool]


class Builder:
    def __init__(self, desc: str, region: RegionView, tools: Tools, *, may_be_joint: bool = False) -> None:
        if all(peer.id != region.leader.id for peer in region.peers):
            raise CannotBuild("cannot build operator for region with no leader")
        if region.is_joint and not may_be_joint:
            raise CannotBuild("cannot build operator for region which is in joint state")
        self._desc = desc
        self._region = region
        self._tools = tools
        self._origin: Peers = {peer.store_id: peer for peer in region.peers}
        self._target: Peers = dict(self._origin)
        self._unhealthy = {peer.store_id for peer in region.peers if not region.is_sound(peer)}
        self._leader = region.leader.store_id  # as the steps so far leave it
        self._wanted_leader = 0
        self._leaders: tuple[int, ...] = ()
        self._followers: frozenset[int] = frozenset()
        self._is_forced = False
        self._is_light = False
        self._uses_joint = tools.picture.placing.enable_joint_consensus
        self._steps: list[Step] = []

    # ---- what to change ----

    def add(self, store_id: int, role: metapb.PeerRole = metapb.Voter) -> Builder:
        if store_id in self._target:
            raise CannotBuild(f"cannot add peer to {store_id}: already have peer {self._target[store_id].id}")
        self._target[store_id] = metapb.Peer(store_id=store_id, role=role)
        return self

    def remove(self, store_id: int) -> Builder:
        if store_id not in self._target:
            raise CannotBuild(f"cannot remove peer from {store_id}: not found")
        del self._target[store_id]
        return self

    def promote(self, store_id: int) -> Builder:
        peer = self._target.get(store_id)
        if peer is None:
            raise CannotBuild(f"cannot promote peer {store_id}: not found")
        if peer.role != metapb.Learner:
            raise CannotBuild(f"cannot promote peer {store_id}: is not learner")
        if store_id in self._unhealthy:
            raise CannotBuild(f"cannot promote peer {store_id}: unhealthy")
        self._target[store_id] = _as(peer, metapb.Voter)
        return self

    def lead(self, store_id: int, *others: int, is_forced: bool = False) -> Builder:
        """Who is to lead afterwards; `others` would do as well. Forced: whatever the store's state."""
        peer = self._target.get(store_id)
        if peer is None:
            raise CannotBuild(f"cannot transfer leader to {store_id}: not found")
        if peer.role == metapb.Learner:
            raise CannotBuild(f"cannot transfer leader to {store_id}: not voter")
        if store_id in self._unhealthy:
            raise CannotBuild(f"cannot transfer leader to {store_id}: unhealthy")
        self._wanted_leader, self._leaders, self._is_forced = store_id, tuple(sorted(others)), is_forced
        return self

    def place(self, roles: Mapping[int, metapb.PeerRole]) -> Builder:
        """The stores that the region is to have, with a role each."""
        self._target = {store_id: metapb.Peer(store_id=store_id, role=role) for store_id, role in roles.items()}
        return self

    def follow(self, store_ids: Iterable[int]) -> Builder:
        """Stores that must not lead."""
        self._followers = frozenset(store_ids)
        return self

    def lightly(self) -> Builder:
        """Additions that cost nothing of the store limits."""
        self._is_light = True
        return self

    # ---- building ----

    def build(self, kind: Kind) -> Operator:
        steps, brief, kind = self.plan(kind)
        region = self._region
        return Operator(self._desc, brief, region.id, region.epoch, kind, region.size, tuple(steps))

    def plan(self, kind: Kind) -> tuple[list[Step], str, Kind]:
        """The steps, PD's brief of them, and the kind with what they include."""
        if not any(peer.role != metapb.Learner for peer in self._target.values()):
            raise CannotBuild("cannot create operator: target peers have no voter")
        removed = {each: peer for each, peer in self._origin.items() if each not in self._target}
        added = {each: self._fresh(peer) for each, peer in self._target.items() if each not in self._origin}
        kept = [each for each in sorted(self._origin) if each in self._target]
        promoted = {each: self._kept(each) for each in kept if self._turns(each, from_learner=True)}
        demoted = {each: self._kept(each) for each in kept if self._turns(each, from_learner=False)}
        if self._wanted_leader not in self._target or self._target[self._wanted_leader].role == metapb.Learner:
            self._wanted_leader = 0
        if self._wanted_leader and not self._may_lead(self._wanted_leader, is_forced=self._is_forced):
            raise CannotBuild("cannot create operator: target leader is not allowed")
        brief = self._brief(added, removed, promoted, demoted)
        changes = len(added) + len(removed) + len(promoted)
        is_single = changes <= 1 and not demoted and not (len(removed) == 1 and len(self._target) == 1)
        if self._uses_joint and not is_single:
            kind = self._jointly(kind, added, removed, (promoted, demoted))
        else:
            kind = self._singly(kind, added, removed, (promoted, demoted))
        if not self._steps:
            raise CannotBuild("no operator step is built")
        return self._steps, brief, kind

    def _fresh(self, peer: metapb.Peer) -> metapb.Peer:
        peer_id = self._tools.take_id()
        if not peer_id:
            raise CannotBuild("no id is at hand for a new peer")
        return metapb.Peer(id=peer_id, store_id=peer.store_id, role=peer.role)

    def _kept(self, store_id: int) -> metapb.Peer:
        return _as(self._origin[store_id], self._target[store_id].role)

    def _turns(self, store_id: int, *, from_learner: bool) -> bool:
        was, becomes = self._origin[store_id].role == metapb.Learner, self._target[store_id].role == metapb.Learner
        return was != becomes and was == from_learner

    def _brief(self, added: Peers, removed: Peers, promoted: Peers, demoted: Peers) -> str:
        if added and removed:
            return f"mv {'light ' if self._is_light else ''}peer: store {_ids(removed)} to {_ids(added)}"
        if added:
            return f"add peer: store {_ids(added)}"
        if removed and promoted:  # the real one has the two stores the wrong way round, too
            return f"promote peer: store {_ids(removed)}, rm peer: store {_ids(promoted)}"
        if removed and demoted:
            return f"demote peer: store {_ids(demoted)}, rm peer: store {_ids(removed)}"
        if removed:
            return f"rm peer: store {_ids(removed)}"
        if promoted:
            return f"promote peer: store {_ids(promoted)}"
        if demoted:
            return f"demote peer: store {_ids(demoted)}"
        if self._leaders:
            shown = " ".join(str(each) for each in self._leaders)
            compatible = f"or to {self._wanted_leader} (for compatibility)"
            return f"evict leader: from store {self._leader} to one in [{shown}], {compatible}"
        return f"transfer leader: store {self._leader} to {self._wanted_leader}"

    # ---- all at once ----

    def _jointly(self, kind: Kind, added: Peers, removed: Peers, turned: tuple[Peers, Peers]) -> Kind:
        promoted, demoted = dict(turned[0]), dict(turned[1])
        for store_id in sorted(added):
            peer = added[store_id]
            self._steps.append(AddLearner(store_id, peer.id, self._is_light))
            if peer.role != metapb.Learner:
                promoted[store_id] = peer
            kind |= Kind.REGION
        leader = self._choose_leader(promoted)
        if not leader:
            raise CannotBuild("no valid leader")
        demoted |= {store_id: peer for store_id, peer in removed.items() if peer.role != metapb.Learner}
        enter = EnterJoint(*_halves(promoted, demoted))
        was_voter = leader in self._origin and self._origin[leader].role != metapb.Learner
        stays = self._leader in self._target and self._target[self._leader].role != metapb.Learner
        moves = leader != self._leader
        if moves and was_voter:
            self._transfer(leader)
        if enter.size:
            self._steps.append(enter)
        if moves and not was_voter and not stays:
            self._transfer(leader)  # inside the joint state: only there both vote
        if enter.size > 1:
            self._steps.append(LeaveJoint(enter.promoted, enter.demoted))
        if moves and not was_voter and stays:
            self._transfer(leader)
        if moves:
            kind |= Kind.LEADER
        for store_id in sorted(removed):
            self._steps.append(RemovePeer(store_id, removed[store_id].id))
            kind |= Kind.REGION
        return kind

    # ---- one by one ----

    def _singly(self, kind: Kind, added: Peers, removed: Peers, turned: tuple[Peers, Peers]) -> Kind:
        promoted, demoted = turned
        for store_id in sorted(added):
            peer = added[store_id]
            self._steps.append(AddLearner(store_id, peer.id, self._is_light))
            if peer.role != metapb.Learner:
                self._steps.append(PromoteLearner(store_id, peer.id))
            kind |= Kind.REGION
        self._steps += [PromoteLearner(store_id, peer.id) for store_id, peer in sorted(promoted.items())]
        leader = self._choose_leader({**added, **promoted})
        if leader and leader != self._leader:
            self._transfer(leader)
            kind |= Kind.LEADER
        if self._leader in removed or self._leader in demoted:
            raise CannotBuild("fail to build operator: plan is empty, maybe no valid leader")
        for store_id in sorted(removed):
            self._steps.append(RemovePeer(store_id, removed[store_id].id))
            kind |= Kind.REGION
        for store_id, peer in sorted(demoted.items()):
            # A voter cannot become a learner in a single change: it goes, and comes back as another peer.
            learner = self._fresh(peer)
            self._steps += [RemovePeer(store_id, peer.id), AddLearner(store_id, learner.id, self._is_light)]
            kind |= Kind.REGION
        return kind

    # ---- leaders ----

    def _transfer(self, target: int) -> None:
        self._steps.append(TransferLeader(self._leader, target, self._leaders))
        self._leader = target

    def _may_lead(self, store_id: int, *, is_forced: bool) -> bool:
        if store_id == self._leader:
            return True
        store = self._tools.picture.store(store_id)
        return store is not None and (is_forced or self._tools.may_lead(store))

    def _choose_leader(self, fresh: Peers) -> int:
        """Who leads afterwards: who was asked for; else whoever leads now, if it stays; else an old voter."""
        if self._wanted_leader:
            return self._wanted_leader
        able = [
            store_id
            for store_id, peer in sorted(self._target.items())
            if peer.role not in (metapb.Learner, metapb.DemotingVoter)
            and store_id not in self._followers
            and self._may_lead(store_id, is_forced=self._is_forced)
        ]

        def merit(store_id: int) -> tuple[bool, bool, bool]:
            store = self._tools.picture.store(store_id)
            return store is not None and store.is_up, store_id == self._leader, store_id not in fresh

        return max(able, key=merit, default=0)


def leave_joint(region: RegionView, tools: Tools) -> Operator:
    """The operator that ends a joint state which nobody's operator accounts for any more."""
    promoted = {peer.store_id: peer for peer in region.peers if peer.role == metapb.IncomingVoter}
    demoted = {peer.store_id: peer for peer in region.peers if peer.role == metapb.DemotingVoter}
    steps: list[Step] = []
    kind = Kind.NONE
    if (now := region.on(region.leader.store_id)) is None or now.role == metapb.DemotingVoter:
        able = [peer for peer in region.peers if peer.role in (metapb.Voter, metapb.IncomingVoter)]
        stores = {peer.store_id: tools.picture.store(peer.store_id) for peer in able}
        merit = [(store is not None and tools.may_lead(store), -store_id) for store_id, store in stores.items()]
        if not merit:
            raise CannotBuild("no target leader")
        steps.append(TransferLeader(region.leader.store_id, -max(merit)[1]))
        kind |= Kind.LEADER
    steps.append(LeaveJoint(*_halves(promoted, demoted)))
    brief = f"promote peer: store {_ids(promoted)}" if promoted else f"demote peer: store {_ids(demoted)}"
    return Operator("leave-joint-state", brief, region.id, region.epoch, kind, region.size, tuple(steps))


def _halves(promoted: Peers, demoted: Peers) -> tuple[tuple[PromoteLearner, ...], tuple[DemoteVoter, ...]]:
    return (
        tuple(PromoteLearner(store_id, peer.id) for store_id, peer in sorted(promoted.items())),
        tuple(DemoteVoter(store_id, peer.id) for store_id, peer in sorted(demoted.items())),
    )


def _as(peer: metapb.Peer, role: metapb.PeerRole) -> metapb.Peer:
    return metapb.Peer(id=peer.id, store_id=peer.store_id, role=role)


def _ids(peers: Iterable[int]) -> str:
    return f"[{' '.join(str(each) for each in peers)}]"
