"""A cluster put together by hand, for one look of a checker or one turn of a scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.hotspots import READ, WRITE, Flow, HotPeers
from drillyard.emulator.pd.operators import Operator
from drillyard.emulator.pd.picture import Picture, RegionView
from drillyard.emulator.pd.placement import Placement
from drillyard.emulator.pd.reports import Reports
from drillyard.emulator.pd.schedulers import Scene
from drillyard.emulator.pd.settings import Placing
from drillyard.wire import drillpb, metapb, pdpb

SECOND_NS = 10**9
HOUR_NS = 3600 * SECOND_NS
GIB = 1 << 30
MIB = 1 << 20
ROLES = {"": metapb.Voter, "L": metapb.Learner, "+": metapb.IncomingVoter, "-": metapb.DemotingVoter}


@dataclass(frozen=True, slots=True)
class Health:
    """What a leader says of its region. Peers are named by their stores."""

    pending: tuple[int, ...] = ()
    down: tuple[int, ...] = ()
    leader: int = 0  # none: the first peer's store


SOUND = Health()


class Bench:
    def __init__(self, **placing: Any) -> None:
        self.now_ns = 10**18
        self.cluster = Cluster()
        self.cluster.lead = drillpb.PdLead(term=1)
        self.cluster.bootstrapped = True
        self.reports = Reports()
        self.placing = Placing(**placing)
        self.ids = count(1000)
        self.hot = HotPeers(WRITE)
        self.placement = Placement(self.cluster, self.reports, lambda: self.placing, lambda: next(self.ids))

    def store(self, store_id: int, silent_s: int = 0, state: metapb.StoreState = metapb.Up, **stats: Any) -> None:
        labels = stats.pop("labels", {})
        self.cluster.stores[store_id] = metapb.Store(
            id=store_id,
            state=state,
            node_state=metapb.Removing if state == metapb.Offline else metapb.Serving,
            labels=[metapb.StoreLabel(key=key, value=value) for key, value in labels.items()],
        )
        given = {"capacity": 1000 * GIB, "available": 900 * GIB, **stats}
        self.reports.hear_store(pdpb.StoreStats(store_id=store_id, **given), self.now_ns - silent_s * SECOND_NS)

    def stores(self, *store_ids: int, labels: Mapping[int, str] | None = None) -> Bench:
        for store_id in store_ids:
            self.store(store_id, labels={"zone": labels[store_id]} if labels else {})
        return self

    def region(
        self, region_id: int, peers: str, health: Health = SOUND, size: int = 10, keys: tuple[bytes, bytes] = (b"", b"")
    ) -> metapb.Region:
        """Peers as "1 2 3L 4+ 5-": their stores and roles. Their ids are the region's and the store's together."""
        metas = [
            metapb.Peer(
                id=region_id * 100 + int(text.rstrip("L+-")),
                store_id=int(text.rstrip("L+-")),
                role=ROLES[text.lstrip("0123456789")],
            )
            for text in peers.split()
        ]
        meta = metapb.Region(
            id=region_id,
            start_key=keys[0],
            end_key=keys[1],
            region_epoch=metapb.RegionEpoch(version=5, conf_ver=5),
            peers=metas,
        )
        on = {peer.store_id: peer for peer in metas}
        assert not self.cluster.regions.put(meta)
        self.reports.hear_region(
            pdpb.RegionHeartbeatRequest(
                region=meta,
                leader=on[health.leader] if health.leader else metas[0],
                term=6,
                approximate_size=size * MIB,
                approximate_keys=size * 1000,
                pending_peers=[on[store_id] for store_id in health.pending],
                down_peers=[pdpb.PeerStats(peer=on[store_id], down_seconds=4000) for store_id in health.down],
            )
        )
        return meta

    def flow(self, region_id: int, megabytes_s: int) -> None:
        """So much was written to a region every second, for five minutes on end."""
        meta = self.cluster.regions.get(region_id)
        assert meta is not None
        leader = self.reports.regions[region_id].leader
        for minute in range(5):
            flow = Flow(megabytes_s * MIB * 60, 6000, 60, self.now_ns - (4 - minute) * 60 * SECOND_NS)
            for peer in meta.peers:
                self.hot.hear(meta, leader, peer.store_id, flow)
        self.placement.flows.watch(self.hot, HotPeers(READ))

    # ---- looks ----

    def picture(self) -> Picture:
        return self.placement.picture(self.now_ns)

    def view(self, region_id: int) -> RegionView:
        view = self.picture().region(region_id)
        assert view is not None
        return view

    def wanted(self, region_id: int) -> list[Operator]:
        """What a region needs, as the checkers see it."""
        picture = self.picture()
        region = picture.region(region_id)
        assert region is not None
        return list(self.placement._wanted(self.placement.check_of(region, picture)))

    def scene(self) -> Scene:
        return self.placement._scene(self.picture())


def told(operators: list[Operator]) -> list[str]:
    """Names and briefs, as PD shows them."""
    return [f"{each.desc}: {each.brief}" for each in operators]


def steps(operator: Operator) -> list[str]:
    return [step.text for step in operator.steps]
