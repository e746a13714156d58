"""Clusters of emulated pd-servers that many tests look at: one before the first store came, one with three stores."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_stores import FakeStores, until
from pd_processes import PdProcesses

V1 = "/pd/api/v1"


@contextmanager
def three_members(home: Path) -> Iterator[PdProcesses]:
    servers = PdProcesses(home)
    servers.start()
    try:
        servers.wait_for_leader()
        yield servers
    finally:
        servers.close()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[PdProcesses]:
    """Three members for one test alone, which may break them."""
    with three_members(tmp_path) as servers:
        yield servers


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PdProcesses]:
    """Three members before anything was bootstrapped."""
    with three_members(tmp_path_factory.mktemp("fresh")) as servers:
        yield servers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PdProcesses]:
    """Three members, three stores, one region with three voters."""

    async def fill(servers: PdProcesses) -> None:
        stores = FakeStores(servers.client_ports, [f"127.0.0.1:3{place}160" for place in range(3)])
        try:
            await until(servers.are_introduced, "all members know one another")
            await stores.pd.find_leader()
            await stores.join()
            stores.start()
            await until(stores.has_three_voters, "three voters")
            await until(
                lambda: servers.told(0, f"{V1}/cluster/status")["is_initialized"], "the last heartbeat has arrived"
            )
            # A store that started in this second has no uptime yet.
            await until(lambda: "uptime" in servers.told(0, f"{V1}/store/3")["status"], "an uptime")
        finally:
            await stores.close()

    with three_members(tmp_path_factory.mktemp("whole")) as servers:
        asyncio.run(fill(servers))
        yield servers
