"""Placement over real processes, asked for as pd-ctl asks: three PD members, three stores and then a fourth."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from fake_stores import PdClient
from pd_processes import PdProcesses
from tikv_client import asynchronous as tikv_client
from tikv_members import TikvProcess, wait_until

from drillyard.wire import pdpb
from drillyard.wire.services import PD

V1 = "/pd/api/v1"
OPERATORS, SCHEDULERS = f"{V1}/operators", f"{V1}/schedulers"
KEYS = {b"k%03d" % place: b"v%03d" % place for place in range(60)}


class Yard:
    def __init__(self, pd: PdProcesses, stores: list[TikvProcess]) -> None:
        self.pd = pd
        self.stores = stores

    @property
    def endpoints(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.pd.client_ports]

    def ask(self, path: str) -> Any:
        return self.pd.ask(next(iter(self.pd.processes)), path)

    def do(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        return self.pd.send(next(iter(self.pd.processes)), method, path, body)

    def regions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (self.ask(f"{V1}/regions") or {}).get("regions", [])
        return sorted(found, key=lambda region: str(region["start_key"]))

    def places(self) -> list[set[int]]:
        """The stores of each region, once all of them have three voters, none of them pending; else nothing."""
        regions = self.regions()
        whole = [
            len(region["peers"]) == 3
            and all(peer["role_name"] == "Voter" for peer in region["peers"])
            and "pending_peers" not in region
            and region["leader"].get("store_id")
            for region in regions
        ]
        return [region_stores(region) for region in regions] if all(whole) else []

    def store_ids(self) -> list[int]:
        answer = self.ask(f"{V1}/stores") or {"stores": []}
        return sorted(each["store"]["id"] for each in answer["stores"] if each["store"]["state_name"] == "Up")

    def is_calm(self) -> bool:
        return bool(self.ask(OPERATORS) == [] and self.places())

    def write(self) -> None:
        async def put() -> None:
            client = await tikv_client.RawClient.connect(self.endpoints)
            await client.batch_put(KEYS)

        asyncio.run(put())

    def read(self) -> dict[bytes, bytes]:
        self.pd.wait_for_leader()  # this client does not survive a member that knows none

        async def scan() -> dict[bytes, bytes]:
            client = await tikv_client.RawClient.connect(self.endpoints)
            return dict(await client.scan(b"k", b"l", 100))

        return asyncio.run(scan())


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    home = tmp_path_factory.mktemp("placement")
    pd = PdProcesses(home)
    stores = [TikvProcess(home / f"tikv{place}", pd_endpoints(pd)) for place in range(4)]
    yard = Yard(pd, stores)
    try:
        pd.start()
        pd.wait_for_leader()
        for store in stores[:3]:
            store.start()
        wait_until("the first region has three voters", lambda: len(yard.places()) == 1)
        yield yard
    finally:
        for store in stores:
            store.kill()
        pd.close()


def region_stores(region: dict[str, Any]) -> set[int]:
    return {peer["store_id"] for peer in region["peers"]}


def pd_endpoints(pd: PdProcesses) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in pd.client_ports)


def test_a_region_is_split_merged_and_moved_and_a_store_is_emptied(yard: Yard) -> None:
    yard.write()
    (region,) = yard.regions()
    keys = [key.hex() for key in (b"k020", b"k040")]
    wanted = {"name": "split-region", "region_id": region["id"], "policy": "usekey", "keys": keys}
    assert yard.do("POST", OPERATORS, wanted) == (200, "The operator is created.")
    wait_until("three regions", lambda: len(yard.places()) == 3 and yard.is_calm())
    assert [each["start_key"] for each in yard.regions()] == ["", keys[0].upper(), keys[1].upper()]
    assert yard.read() == KEYS

    source, target = yard.regions()[1]["id"], yard.regions()[2]["id"]
    merge = {"name": "merge-region", "source_region_id": source, "target_region_id": target}
    assert yard.do("POST", OPERATORS, merge) == (200, "The operator is created.")
    wait_until("two regions", lambda: len(yard.places()) == 2 and yard.is_calm())
    assert yard.read() == KEYS

    assert yard.do("POST", f"{V1}/config", {"region-schedule-limit": 0})[0] == 200  # balance would move peers, too
    before = yard.store_ids()
    yard.stores[3].start()
    wait_until("a fourth store is up", lambda: len(yard.store_ids()) == 4)
    (fourth,) = set(yard.store_ids()) - set(before)
    region = yard.regions()[0]
    victim = region["leader"]["store_id"]
    move = {"name": "transfer-peer", "region_id": region["id"], "from_store_id": victim, "to_store_id": fourth}
    assert yard.do("POST", OPERATORS, move) == (200, "The operator is created.")
    wanted_place = (region_stores(region) - {victim}) | {fourth}
    wait_until("the peer has moved", lambda: yard.places()[:1] == [wanted_place] and yard.is_calm())
    records = "\n".join(yard.ask(f"{OPERATORS}/records"))
    for text in ("admin-merge-region", "admin-move-peer", "use joint consensus"):  # the last of each region
        assert text in records

    assert yard.do("DELETE", f"{V1}/store/{before[0]}")[0] == 200
    others = {*before, fourth} - {before[0]}
    wait_until("the store is empty", lambda: yard.places() == [others, others] and yard.is_calm())
    assert yard.read() == KEYS
    assert yard.do("POST", f"{V1}/config", {"region-schedule-limit": 2048})[0] == 200


def test_clients_split_and_scatter(yard: Yard) -> None:
    async def scenario() -> None:
        pd = PdClient(yard.pd.client_ports)
        try:
            await pd.find_leader()
            keys = [b"k010", b"k030", b"k050"]
            split = await pd.call(PD.SplitRegions, pdpb.SplitRegionsRequest(split_keys=keys, retry_limit=5))
            assert split.finished_percentage == 100
            assert len(split.regions_id) == 3
            request = pdpb.ScatterRegionRequest(regions_id=split.regions_id, group="g", retry_limit=5)
            assert (await pd.call(PD.ScatterRegion, request)).finished_percentage == 100
            known = await pd.call(PD.GetOperator, pdpb.GetOperatorRequest(region_id=split.regions_id[0]))
            assert known.desc in (b"scatter-region", b"region-splitter", b"balance-region")
            unknown = await pd.call(PD.GetOperator, pdpb.GetOperatorRequest(region_id=99999))
            assert (unknown.header.error.type, unknown.header.error.message) == (pdpb.REGION_NOT_FOUND, "Not Found")
            lost = await pd.call(PD.ScatterRegion, pdpb.ScatterRegionRequest(region_id=99999))
            assert lost.header.error.type == pdpb.REGION_NOT_FOUND
        finally:
            pd.close()

    wait_until("calm", yard.is_calm)
    asyncio.run(scenario())
    wait_until("calm again", yard.is_calm, timeout_s=60)
    assert yard.read() == KEYS


def test_schedulers_outlive_the_leader_of_pd(yard: Yard) -> None:
    wait_until("calm", yard.is_calm)
    defaults = yard.ask(SCHEDULERS)
    leaders = {region["leader"]["store_id"] for region in yard.regions()}
    store_id = leaders.pop()
    wanted = {"name": "evict-leader-scheduler", "store_id": store_id}
    assert yard.do("POST", SCHEDULERS, wanted) == (200, "The scheduler is created.")
    refused = "[PD:core:ErrPauseLeaderTransfer]store"
    granted = {"name": "grant-leader-scheduler", "store_id": store_id}
    status, message = yard.do("POST", SCHEDULERS, granted)
    assert (status, str(message)[: len(refused)]) == (500, refused)

    def leads_nothing() -> bool:
        return all(region["leader"].get("store_id", store_id) != store_id for region in yard.regions())

    wait_until("its leaders are gone", leads_nothing)
    leader = yard.pd.wait_for_leader()
    yard.pd.kill(leader)
    yard.pd.wait_for_leader()
    assert yard.ask(SCHEDULERS) == [*defaults, "evict-leader-scheduler"]
    listed = yard.ask(f"{V1}/scheduler-config/evict-leader-scheduler/list")
    assert list(listed["store-id-ranges"]) == [str(store_id)]
    assert yard.do("DELETE", f"{SCHEDULERS}/evict-leader-scheduler-{store_id}") == (200, None)
    assert yard.ask(SCHEDULERS) == defaults
    assert yard.do("DELETE", f"{SCHEDULERS}/evict-leader-scheduler")[0] == 404
    yard.pd.start(leader)


def test_settings_have_their_effect(yard: Yard) -> None:
    wait_until("calm", yard.is_calm, timeout_s=60)
    assert yard.do("POST", f"{V1}/config", {"max-replicas": 1}) == (200, "The config is updated.")

    def peers() -> set[int]:
        return {len(region["peers"]) for region in yard.regions()}

    wait_until("one peer each", lambda: peers() == {1})
    assert yard.do("POST", f"{V1}/config", {"replication.max-replicas": 3})[0] == 200
    wait_until("three peers each", lambda: peers() == {3} and yard.is_calm())
    assert yard.read() == KEYS
