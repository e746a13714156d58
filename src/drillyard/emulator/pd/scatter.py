"""Scattering: spreading regions, and who leads them, evenly over the stores, group by group.

Rules: within a group every store is to be picked equally often; what was picked is remembered for some minutes, so that
regions scattered one after the other spread as those of one request do. A peer stays where it is unless another store
was picked less often. Only a region that is whole is scattered. Additions cost nothing of the store limits.
"""

from __future__ import annotations

from collections import Counter

from msgspec import Struct, field

from drillyard.emulator.pd.builder import Builder
from drillyard.emulator.pd.checkers import Check
from drillyard.emulator.pd.fit import is_replicated
from drillyard.emulator.pd.operators import CannotBuild, Kind, Level, Operator
from drillyard.emulator.pd.picture import StoreView
from drillyard.emulator.pd.steps import SECOND_NS
from drillyard.wire import metapb

GROUP_NS = 180 * SECOND_NS


class Group(Struct):
    """How often each store was picked."""

    used_ns: int
    peers: Counter[int] = field(default_factory=Counter)
    leaders: Counter[int] = field(default_factory=Counter)


class Scatterer:
    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}

    def scatter(self, check: Check, name: str) -> Operator | None:
        """The operator that scatters a region; None if it is well where it is. `CannotBuild` if it may not be."""
        region, picture = check.region, check.picture
        if not is_replicated(region, picture):
            raise CannotBuild(f"region {region.id} is not fully replicated")
        if picture.is_hot(region.id):
            raise CannotBuild(f"region {region.id} is hot")
        group = self._group(name, picture.now_ns)
        roles, leaders = self._choose(check, group)
        if not leaders:
            raise CannotBuild(f"no target leader store found, region: {region.id}")
        leader = min(leaders, key=lambda store_id: (group.leaders[store_id], store_id))
        group.peers.update(roles.keys())
        group.leaders[leader] += 1
        if roles.keys() == region.stores and leader == region.leader.store_id:
            return None
        builder = Builder("scatter-region", region, check.tools).place(roles).lightly()
        operator = builder.lead(leader, is_forced=True).build(Kind.ADMIN)
        operator.level = Level.HIGH
        return operator

    def _group(self, name: str, now_ns: int) -> Group:
        self._groups = {key: each for key, each in self._groups.items() if now_ns - each.used_ns < GROUP_NS}
        group = self._groups.setdefault(name, Group(now_ns))
        group.used_ns = now_ns
        return group

    def _choose(self, check: Check, group: Group) -> tuple[dict[int, metapb.PeerRole], list[int]]:
        """Where each peer goes, and which stores may lead then."""
        roles: dict[int, metapb.PeerRole] = {}
        for peer in sorted(check.region.peers, key=lambda peer: peer.store_id):
            roles[self._place(check, group, peer, frozenset(roles))] = peer.role
        leaders = [store_id for store_id, role in roles.items() if role == metapb.Voter]
        return roles, [each for each in leaders if self._may_lead(check, each)]

    def _may_lead(self, check: Check, store_id: int) -> bool:
        peer, store = check.region.on(store_id), check.picture.store(store_id)
        return store is not None and store.is_usable and (peer is None or check.region.is_sound(peer))

    def _place(self, check: Check, group: Group, peer: metapb.Peer, taken: frozenset[int]) -> int:
        """The store that was picked least often; the peer's own unless another has been picked less."""
        held = check.region.stores
        stores = check.picture.stores
        source = stores[peer.store_id]
        free = [each for each in stores.values() if each.id not in held | taken and self._is_fit(check, source, each)]
        return min([source, *free], key=lambda store: (group.peers[store.id], store.id != source.id, store.id)).id

    def _is_fit(self, check: Check, source: StoreView, store: StoreView) -> bool:
        return (
            store.is_usable and check.chooser.may_stay(store) and check.chooser.keeps_place(check.region, source, store)
        )


def summary(done: int, failed: int) -> int:
    """What part of the regions was scattered, in percent."""
    return 100 if not failed else 100 - 100 * failed // (done + failed)
