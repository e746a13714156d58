"""Three emulated stores under a stand-in for PD."""

from __future__ import annotations

from dataclasses import dataclass

from fake_pd import FakePd
from tikv_members import Place, TikvProcess, wait_until


@dataclass
class Cluster:
    pd: FakePd
    members: list[TikvProcess]

    def member(self, store_id: int) -> TikvProcess:
        address = self.pd.snapshot(lambda mind: mind.stores[store_id].address)
        return next(member for member in self.members if member.address == address)

    def place(self) -> Place:
        region, leader = self.pd.snapshot(lambda mind: (mind.region, mind.leader))
        assert region is not None
        assert leader is not None
        return Place(self.member(leader.store_id).address, region, leader)

    def is_replicated(self) -> bool:
        reports = self.pd.snapshot(lambda mind: mind.reports[-1:])
        return bool(reports) and len(reports[0].region.peers) == 3 and not reports[0].pending_peers

    def wait_replicated(self) -> None:
        wait_until(
            "the region has three voters",
            lambda: self.is_replicated() and all(peer.role == 0 for peer in self.place().region.peers),
        )
