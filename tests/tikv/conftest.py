from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_pd import FakePd
from tikv_cluster import Cluster
from tikv_members import TikvProcess


class SteadyProcess(TikvProcess):
    """Leads on through moments in which the machine lets nobody run: its tests ask a place once."""

    config = "raft-election-timeout-ticks = 100\n"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three stores that nobody harms."""
    home = tmp_path_factory.mktemp("stores")
    with FakePd() as pd:
        members = [SteadyProcess(home / f"tikv{number}", pd.endpoints) for number in range(3)]
        try:
            for member in members:
                member.start()
            cluster = Cluster(pd, members)
            cluster.wait_replicated()
            yield cluster
        finally:
            for member in members:
                member.kill()


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[Cluster]:
    """Stores of this test's own, none started yet, under two PD members."""
    with FakePd(members=2) as pd:
        members = [TikvProcess(tmp_path / f"tikv{number}", pd.endpoints) for number in range(3)]
        try:
            yield Cluster(pd, members)
        finally:
            for member in members:
                member.kill()
