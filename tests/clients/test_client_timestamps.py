"""PD's timestamps never go back, whoever grants them: every member is asked, one that was paused or killed too."""

from __future__ import annotations

import asyncio
import time

import pytest
from client_cluster import SERVED_S, ClientCluster
from client_faults import FAULTS, Fault

from drillyard.clients.calls import CallFailed
from drillyard.clients.pd import PdClient

PD_FAULTS = [fault for fault in FAULTS if fault.name.startswith("PD")]


class Grants:
    """Timestamps in the order in which they were granted, and by whom."""

    def __init__(self, endpoints: list[str]) -> None:
        self._pds = [PdClient(address, address) for address in endpoints]
        self.granted: list[tuple[int, int]] = []

    def close(self) -> None:
        for pd in self._pds:
            pd.close()

    async def more(self, rounds: int) -> None:
        """Ask all members in turn until so many rounds brought timestamps."""
        deadline = time.monotonic() + SERVED_S
        goal = len(self.granted) + rounds
        while len(self.granted) < goal:
            assert time.monotonic() < deadline, f"no timestamps within {SERVED_S:g} s"
            for pd in self._pds:
                try:
                    view = await pd.members(timeout_s=0.3)
                    self.granted += await pd.timestamps(view.header.cluster_id, 3, timeout_s=0.3)
                except CallFailed:
                    continue


async def through(cluster: ClientCluster, fault: Fault) -> list[tuple[int, int]]:
    grants = Grants(cluster.pd_endpoints)
    try:
        await grants.more(30)
        victim = await asyncio.to_thread(fault.choose, cluster)
        await asyncio.to_thread(fault.strike, cluster.cluster, victim)
        try:
            await grants.more(30)
        finally:
            await asyncio.to_thread(fault.undo, cluster.cluster, victim)
        await grants.more(30)
        await asyncio.to_thread(cluster.heal)
        await grants.more(30)
    finally:
        grants.close()
    return grants.granted


async def through_the_loss_of_all(cluster: ClientCluster) -> list[tuple[int, int]]:
    grants = Grants(cluster.pd_endpoints)
    try:
        await grants.more(30)
        await asyncio.to_thread(cluster.kill_all)
        await asyncio.to_thread(cluster.start, *cluster.all_members())
        await asyncio.to_thread(cluster.heal)
        await grants.more(30)
    finally:
        grants.close()
    return grants.granted


@pytest.mark.parametrize("fault", PD_FAULTS, ids=str)
def test_timestamps_rise_while(cluster: ClientCluster, fault: Fault) -> None:
    granted = asyncio.run(through(cluster, fault))
    assert granted == sorted(set(granted))


def test_timestamps_rise_over_a_restart_of_all(cluster: ClientCluster) -> None:
    granted = asyncio.run(through_the_loss_of_all(cluster))
    assert granted == sorted(set(granted))
