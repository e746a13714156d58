"""Operators that people ask for: `pd-ctl operator add …`, and what clients ask to scatter and to split.

Rules: what is asked is checked as the real PD checks it, in its order and its words; what cannot be done is `Refused`
with the HTTP status that goes with it. What is asked for takes precedence over what PD does by itself, and is not held
up by store limits. Names and forms are those of the HTTP interface; gRPC uses the parts that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from drillyard.emulator.pd.builder import Builder
from drillyard.emulator.pd.checkers import Check, merge
from drillyard.emulator.pd.fit import is_replicated
from drillyard.emulator.pd.operators import CannotBuild, Kind, Operator, split_operator
from drillyard.emulator.pd.picture import Picture, RegionView
from drillyard.emulator.pd.placement import Placement
from drillyard.emulator.pd.scatter import summary
from drillyard.wire import metapb, pdpb
from drillyard.wire.keys import from_hex

CANNOT_ADD = "[PD:operator:ErrAddOperator]failed to add operator, maybe already have one"
ROLES = {
    "voter": metapb.Voter,
    "leader": metapb.Voter,
    "follower": metapb.Voter,
    "learner": metapb.Learner,
}
POLICIES = {"SCAN": pdpb.SCAN, "APPROXIMATE": pdpb.APPROXIMATE, "USEKEY": pdpb.USEKEY}
Json = Any


class Refused(Exception):
    """It is not done, and why, in PD's words; `status` is HTTP's."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Desk(Struct, frozen=True):
    """Takes requests for one placement at one instant."""

    placement: Placement
    picture: Picture

    @classmethod
    def at(cls, placement: Placement, now_ns: int) -> Desk:
        return cls(placement, placement.picture(now_ns))

    def add(self, wanted: Mapping[str, Json]) -> Json:
        """Does what a body of POST operators asks for; what is answered beside that it was done, if anything."""
        name = wanted.get("name")
        if not isinstance(name, str):
            raise Refused("missing operator name", 400)
        handler = HANDLERS.get(name)
        if handler is None:
            raise Refused("unknown operator", 400)
        try:
            return handler(self, wanted)
        except CannotBuild as error:
            raise Refused(str(error)) from error

    # ---- what they have in common ----

    def region(self, region_id: int) -> RegionView:
        region = self.picture.region(region_id)
        if region is None:
            raise Refused(f"[PD:region:ErrRegionNotFound]region {region_id} not found")
        return region

    def check(self, region: RegionView) -> Check:
        return self.placement.check_of(region, self.picture)

    def build(self, desc: str, region: RegionView, *, may_be_joint: bool = False) -> Builder:
        return Builder(desc, region, self.check(region).tools, may_be_joint=may_be_joint)

    def start(self, *operators: Operator) -> None:
        if not self.placement.controller.add(self.picture, *operators):
            raise Refused(CANNOT_ADD)

    def see_to_store(self, store_id: int) -> None:
        """Whether a store can be given a peer by hand."""
        if self.picture.is_tombstone(store_id):
            raise Refused(f"[PD:core:ErrStoreRemoved]store {store_id} has been removed")
        store = self.picture.store(store_id)
        if store is None:
            raise Refused(f"[PD:core:ErrStoreNotFound]store {store_id} not found")
        if store.is_unhealthy:
            raise Refused(f"[PD:core:ErrStoreUnhealthy]store {store_id} is unhealthy")

    # ---- leaders and peers ----

    def transfer_leader(self, wanted: Mapping[str, Json]) -> None:
        region_id = _whole(wanted, "region_id", "missing region id")
        store_id = _whole(wanted, "to_store_id", "missing store id to transfer leader to")
        region = self.region(region_id)
        if region.voter_on(store_id) is None:
            raise Refused(f"region has no voter in store {store_id}")
        builder = self.build("admin-transfer-leader", region, may_be_joint=True)
        self.start(builder.lead(store_id).build(Kind.ADMIN))

    def transfer_region(self, wanted: Mapping[str, Json]) -> None:
        region_id = _whole(wanted, "region_id", "missing region id")
        stores = _wholes(wanted.get("to_store_ids"), "invalid store ids to transfer region to")
        if not stores:
            raise Refused("missing store ids to transfer region to", 400)
        given = wanted.get("peer_roles")
        roles = given if isinstance(given, list) and len(given) == len(stores) else [""] * len(stores)
        region = self.region(region_id)
        if self.picture.placing.enable_placement_rules and not all(isinstance(each, str) and each for each in roles):
            raise Refused("transfer region without peer role is not supported when placement rules enabled")
        for store_id in stores:
            self.see_to_store(store_id)
        by_store = {store_id: str(role or "voter") for store_id, role in zip(stores, roles, strict=True)}
        if unknown := [role for role in by_store.values() if role not in ROLES]:
            raise Refused(f"invalid peer role {unknown[0]}")
        leaders = [store_id for store_id, role in by_store.items() if role == "leader"]
        if len(leaders) > 1:
            raise Refused("region cannot have multiple leaders")
        if not leaders and "voter" not in by_store.values():
            raise Refused("region need at least 1 voter or leader")
        builder = self.build("admin-move-region", region)
        builder.place({store_id: ROLES[role] for store_id, role in by_store.items()})
        builder.follow(store_id for store_id, role in by_store.items() if role == "follower")
        if leaders:
            builder.lead(leaders[0])
        self.start(builder.build(Kind.ADMIN))

    def transfer_peer(self, wanted: Mapping[str, Json]) -> None:
        region_id = _whole(wanted, "region_id", "missing region id")
        source = _whole(wanted, "from_store_id", "invalid store id to transfer peer from")
        target = _whole(wanted, "to_store_id", "invalid store id to transfer peer to")
        region = self.region(region_id)
        peer = region.on(source)
        if peer is None:
            raise Refused(f"region has no peer in store {source}")
        self.see_to_store(target)
        self.start(self.build("admin-move-peer", region).remove(source).add(target, peer.role).build(Kind.ADMIN))

    def add_peer(self, wanted: Mapping[str, Json]) -> None:
        self._add_peer(wanted, "admin-add-peer", metapb.Voter)

    def add_learner(self, wanted: Mapping[str, Json]) -> None:
        self._add_peer(wanted, "admin-add-learner", metapb.Learner)

    def _add_peer(self, wanted: Mapping[str, Json], desc: str, role: metapb.PeerRole) -> None:
        region_id = _whole(wanted, "region_id", "missing region id")
        store_id = _whole(wanted, "store_id", "invalid store id to transfer peer to")
        region = self.region(region_id)
        if region.on(store_id) is not None:
            raise Refused(f"region already has peer in store {store_id}")
        self.see_to_store(store_id)
        self.start(self.build(desc, region).add(store_id, role).build(Kind.ADMIN))

    def remove_peer(self, wanted: Mapping[str, Json]) -> None:
        region_id = _whole(wanted, "region_id", "missing region id")
        store_id = _whole(wanted, "store_id", "invalid store id to transfer peer to")
        region = self.region(region_id)
        if region.on(store_id) is None:
            raise Refused(f"region has no peer in store {store_id}")
        self.start(self.build("admin-remove-peer", region).remove(store_id).build(Kind.ADMIN))

    # ---- ranges ----

    def merge_region(self, wanted: Mapping[str, Json]) -> None:
        source = self.region(_whole(wanted, "source_region_id", "missing region id"))
        target = self.region(_whole(wanted, "target_region_id", "invalid target region id to merge to"))
        for region in (source, target):
            if not region.is_healthy or not is_replicated(region, self.picture):
                raise Refused(f"[PD:region:ErrRegionAbnormalPeer]region {region.id} has abnormal peer")
        follows = source.meta.start_key == target.meta.end_key and source.meta.start_key
        precedes = source.meta.end_key == target.meta.start_key and source.meta.end_key
        if not follows and not precedes:
            raise Refused("[PD:region:ErrRegionNotAdjacent]two regions are not adjacent")
        self.start(*merge("admin-merge-region", self.check(source), target, Kind.ADMIN))

    def split_region(self, wanted: Mapping[str, Json]) -> None:
        region_id = _whole(wanted, "region_id", "missing region id")
        policy = wanted.get("policy")
        if not isinstance(policy, str):
            raise Refused("missing split policy", 400)
        texts = wanted.get("keys") or []
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise Refused("bad format keys", 400)
        region = self.region(region_id)
        chosen = POLICIES.get(policy.upper())
        if chosen is None:
            raise Refused(f"check policy {policy} is not supported")
        keys: list[bytes] = []
        for text in texts if chosen == pdpb.USEKEY else ():
            try:
                keys.append(from_hex(text))
            except ValueError as error:
                raise Refused(f"split key {text} is not in hex format") from error
        self.start(split_operator("admin-split-region", region, Kind.ADMIN, chosen, keys))

    def scatter_region(self, wanted: Mapping[str, Json]) -> None:
        region = self.region(_whole(wanted, "region_id", "missing region id"))
        if self.picture.is_hot(region.id):
            raise Refused(f"region {region.id} is a hot region")
        self.scatter(region, _text(wanted, "group"))

    def scatter_regions(self, wanted: Mapping[str, Json]) -> Json:
        start, end = _text(wanted, "start_key"), _text(wanted, "end_key")
        if start and end:
            try:
                within = self.picture.within(from_hex(start), from_hex(end))
            except ValueError as error:
                return {"processed-percentage": 0, "error": f"encoding/hex: {error}"}
            region_ids: Sequence[int] = [region.id for region in within]
        else:
            region_ids = _wholes(wanted.get("region_ids"), "region_ids is invalid")
        try:
            self.check_scatter(region_ids)
            failed = self.scatter_all(region_ids, _text(wanted, "group"))
        except Refused as refused:
            return {"processed-percentage": 0, "error": refused.message}
        return {"processed-percentage": summary(len(region_ids) - len(failed), len(failed)), "error": ""}

    def scatter(self, region: RegionView, group: str) -> None:
        operator = self.placement.scatterer.scatter(self.check(region), group)
        if operator is not None:
            self.start(operator)

    def check_scatter(self, region_ids: Sequence[int]) -> None:
        """Raises `Refused` for what the real one does not even try."""
        if not region_ids:
            raise Refused("empty region")
        if len(region_ids) == 1 and self.picture.region(region_ids[0]) is None:
            raise Refused("region not found")

    def scatter_all(self, region_ids: Sequence[int], group: str) -> list[int]:
        """Scatters regions; which of them could not be. Nobody tries again here: who asks may."""
        failed: list[int] = []
        for region_id in region_ids:
            region = self.picture.region(region_id)
            try:
                if region is None:
                    raise Refused(f"failed to find region {region_id}")
                self.scatter(region, group)
            except (Refused, CannotBuild):
                failed.append(region_id)
        return failed

    def split_at(self, keys: Sequence[bytes]) -> dict[int, list[bytes]]:
        """Begins to split regions at keys; the keys of each region that it was begun for."""
        by_region: dict[int, list[bytes]] = {}
        for key in sorted(set(keys)):
            found = self.picture.find(key)
            if found is not None and found.meta.start_key != key and is_replicated(found, self.picture):
                by_region.setdefault(found.id, []).append(key)
        for region_id, mine in list(by_region.items()):
            try:
                operator = split_operator("region-splitter", self.region(region_id), Kind.NONE, pdpb.USEKEY, mine)
                self.start(operator)
            except (Refused, CannotBuild):
                del by_region[region_id]
        return by_region


HANDLERS: dict[str, Callable[[Desk, Mapping[str, Json]], Json]] = {
    "transfer-leader": Desk.transfer_leader,
    "transfer-region": Desk.transfer_region,
    "transfer-peer": Desk.transfer_peer,
    "add-peer": Desk.add_peer,
    "add-learner": Desk.add_learner,
    "remove-peer": Desk.remove_peer,
    "merge-region": Desk.merge_region,
    "split-region": Desk.split_region,
    "scatter-region": Desk.scatter_region,
    "scatter-regions": Desk.scatter_regions,
}


def _whole(wanted: Mapping[str, Json], key: str, missing: str) -> int:
    """A number, as JSON has it: without a fraction, or with one that is dropped."""
    value = wanted.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 64:
        raise Refused(missing, 400)
    return int(value)


def _wholes(value: Json, invalid: str) -> list[int]:
    if not isinstance(value, list):
        raise Refused(invalid, 400)
    return [_whole({"": each}, "", invalid) for each in value]


def _text(wanted: Mapping[str, Json], key: str) -> str:
    value = wanted.get(key)
    return value if isinstance(value, str) else ""
