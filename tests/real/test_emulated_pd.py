"""The emulated PD beside a real one of its era: the same questions, in the same order, must get the same answers.

Answers are compared by status, type and shape over HTTP, and word for word over gRPC. pd-ctl, built from the real PD's
source, is run on the emulated one.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fake_stores import FakeStores, PdClient, until
from google.protobuf import text_format
from pd_processes import PdProcesses, fetch
from real_pd import RealPd, executable

from drillyard.wire import metapb, pdpb
from drillyard.wire.rpc import RpcError
from drillyard.wire.services import PD

V1 = "/pd/api/v1"
FOREVER = (1 << 63) - 1
PATHS = [
    "/",
    "/ping",
    "/health",
    "/nosuch",
    "/pd/ping",
    "/pd/health",
    "/pd/nosuch",
    f"{V1}/ping",
    f"{V1}/health",
    f"{V1}/members",
    f"{V1}/leader",
    f"{V1}/version",
    f"{V1}/status",
    f"{V1}/cluster",
    f"{V1}/cluster/status",
    f"{V1}/config",
    f"{V1}/config/schedule",
    f"{V1}/config/replicate",
    f"{V1}/config/pd-server",
    f"{V1}/config/label-property",
    f"{V1}/config/cluster-version",
    f"{V1}/config/replication-mode",
    f"{V1}/gc/safepoint",
    f"{V1}/stores",
    f"{V1}/stores?state=0",
    f"{V1}/stores?state=x",
    f"{V1}/stores/check?state=up",
    f"{V1}/stores/check?state=nonsense",
    f"{V1}/stores/limit",
    f"{V1}/store/1",
    f"{V1}/store/99",
    f"{V1}/store/abc",
    f"{V1}/labels",
    f"{V1}/regions",
    f"{V1}/regions/count",
    f"{V1}/regions/key?key=",
    f"{V1}/regions/key?key=a&limit=x",
    f"{V1}/regions/store/1",
    f"{V1}/regions/store/77",
    f"{V1}/regions/store/abc",
    f"{V1}/regions/sibling/4",
    f"{V1}/regions/sibling/99",
    f"{V1}/regions/sibling/abc",
    f"{V1}/regions/range-holes",
    f"{V1}/regions/size",
    f"{V1}/regions/keys",
    f"{V1}/regions/confver",
    f"{V1}/regions/version",
    f"{V1}/regions/check/miss-peer",
    f"{V1}/regions/check/extra-peer",
    f"{V1}/regions/check/pending-peer",
    f"{V1}/regions/check/down-peer",
    f"{V1}/regions/check/learner-peer",
    f"{V1}/regions/check/offline-peer",
    f"{V1}/regions/check/hist-size",
    f"{V1}/regions/check/hist-keys",
    f"{V1}/region/id/4",
    f"{V1}/region/id/99",
    f"{V1}/region/id/abc",
    f"{V1}/region/key/a",
    f"{V1}/region/key/61?format=hex",
    f"{V1}/region/key/6?format=hex",
    f"{V1}/stats/region",
    f"{V1}/operators",
    f"{V1}/operators?kind=region",
    f"{V1}/operators/4",
    f"{V1}/operators/abc",
    f"{V1}/operators/records",
    f"{V1}/nosuch",
]
# What the emulator says otherwise, and why.
OTHERWISE = {
    f"{V1}/config": "the schedulers' own settings: none runs here",
    f"{V1}/config/schedule": "the schedulers' own settings: none runs here",
}


@dataclass(frozen=True, slots=True)
class Pair:
    emulated: PdProcesses
    real: RealPd

    def clients(self) -> list[PdClient]:
        return [PdClient(self.emulated.client_ports), PdClient(self.real.client_ports)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    emulated = PdProcesses(tmp_path_factory.mktemp("emulated"))
    emulated.start()
    try:
        emulated.wait_for_leader()
        with RealPd("81", tmp_path_factory.mktemp("real")) as real:
            yield Pair(emulated, real)
    finally:
        emulated.close()


def shape_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shape_of(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape_of(value[0])] if value else []
    return "number" if type(value) in (int, float) else type(value).__name__


def seen(port: int, path: str) -> tuple[int, str, str]:
    status, kind, body = fetch(port, path)
    try:
        return status, kind, json.dumps(shape_of(json.loads(body)))
    except ValueError:
        return status, kind, body.decode()


def differences(pair: Pair) -> str:
    found = []
    for path in PATHS:
        for place in range(3):  # leaders and followers
            ours, theirs = seen(pair.emulated.client_ports[place], path), seen(pair.real.client_ports[place], path)
            if path in OTHERWISE:
                ours, theirs = (*ours[:2], ""), (*theirs[:2], "")
            if ours != theirs:
                found.append(f"{path}\n  emulated {ours}\n  real     {theirs}")
    return "\n".join(found)


async def answer_of(client: PdClient, method: Any, request: Any) -> str:
    """What one call was answered, without what differs from cluster to cluster."""
    request.header.cluster_id = request.header.cluster_id or client.cluster_id
    try:
        answer = await client.channels[client.leader_port].unary(method, request, timeout_s=5)
        said = text_format.MessageToString(answer, print_unknown_fields=False)
    except RpcError as error:
        said = str(error)
    return re.sub(r"TTL: \d+", "TTL", said.replace(str(client.cluster_id), "CLUSTER"))


def store(number: int, **changes: Any) -> metapb.Store:
    fields = {"id": number, "address": f"127.0.0.1:3{number}160", "version": "8.1.0", **changes}
    return metapb.Store(**fields)


def first_region() -> metapb.Region:
    epoch = metapb.RegionEpoch(conf_ver=1, version=1)
    return metapb.Region(id=4, region_epoch=epoch, peers=[metapb.Peer(id=5, store_id=1)])


def wrong() -> pdpb.RequestHeader:
    return pdpb.RequestHeader(cluster_id=1)


def bootstrap(**changes: Any) -> pdpb.BootstrapRequest:
    return pdpb.BootstrapRequest(**{"store": store(1), "region": first_region(), **changes})


def service_safe_point(service: bytes, lifetime_s: int, safe_point: int) -> pdpb.UpdateServiceGCSafePointRequest:
    return pdpb.UpdateServiceGCSafePointRequest(service_id=service, TTL=lifetime_s, safe_point=safe_point)


def without_peers() -> metapb.Region:
    region = first_region()
    del region.peers[:]
    return region


# In this order, on both.
CALLS: list[tuple[Any, Callable[[], Any]]] = [
    (PD.AllocID, lambda: pdpb.AllocIDRequest(header=wrong())),
    (PD.AllocID, pdpb.AllocIDRequest),
    (PD.AllocID, pdpb.AllocIDRequest),
    (PD.IsBootstrapped, pdpb.IsBootstrappedRequest),
    (PD.GetStore, lambda: pdpb.GetStoreRequest(store_id=1)),
    (PD.GetAllStores, pdpb.GetAllStoresRequest),
    (PD.GetRegion, lambda: pdpb.GetRegionRequest(region_key=b"a")),
    (PD.PutStore, lambda: pdpb.PutStoreRequest(store=store(1))),
    (PD.StoreHeartbeat, lambda: pdpb.StoreHeartbeatRequest(stats=pdpb.StoreStats(store_id=1))),
    (PD.GetClusterConfig, pdpb.GetClusterConfigRequest),
    (PD.Bootstrap, lambda: bootstrap(store=None)),
    (PD.Bootstrap, lambda: bootstrap(region=None)),
    (PD.Bootstrap, lambda: bootstrap(region=without_peers())),
    (PD.Bootstrap, lambda: bootstrap(store=store(7))),
    (PD.Bootstrap, bootstrap),
    (PD.Bootstrap, bootstrap),
    (PD.IsBootstrapped, pdpb.IsBootstrappedRequest),
    (PD.PutStore, lambda: pdpb.PutStoreRequest(store=store(1))),
    (PD.PutStore, lambda: pdpb.PutStoreRequest(store=store(2))),
    (PD.PutStore, lambda: pdpb.PutStoreRequest(store=store(3, version="6.0.0"))),
    (PD.GetStore, lambda: pdpb.GetStoreRequest(store_id=2)),
    (PD.GetStore, lambda: pdpb.GetStoreRequest(store_id=9999)),
    (PD.GetAllStores, pdpb.GetAllStoresRequest),
    (PD.StoreHeartbeat, lambda: pdpb.StoreHeartbeatRequest(stats=pdpb.StoreStats(store_id=9999))),
    (PD.GetRegion, lambda: pdpb.GetRegionRequest(region_key=b"a")),
    (PD.GetPrevRegion, lambda: pdpb.GetRegionRequest(region_key=b"a")),
    (PD.GetRegionByID, lambda: pdpb.GetRegionByIDRequest(region_id=4)),
    (PD.GetRegionByID, lambda: pdpb.GetRegionByIDRequest(region_id=99)),
    (PD.ScanRegions, lambda: pdpb.ScanRegionsRequest(limit=10)),
    (PD.GetOperator, lambda: pdpb.GetOperatorRequest(region_id=4)),
    (PD.GetClusterConfig, pdpb.GetClusterConfigRequest),
    (PD.GetGCSafePoint, pdpb.GetGCSafePointRequest),
    (PD.UpdateGCSafePoint, lambda: pdpb.UpdateGCSafePointRequest(safe_point=50)),
    (PD.UpdateGCSafePoint, lambda: pdpb.UpdateGCSafePointRequest(safe_point=40)),
    (PD.GetGCSafePoint, pdpb.GetGCSafePointRequest),
    (PD.UpdateServiceGCSafePoint, lambda: service_safe_point(b"br", 1000, 60)),
    (PD.UpdateServiceGCSafePoint, lambda: service_safe_point(b"gc_worker", 1 << 62, 55)),
    (PD.UpdateServiceGCSafePoint, lambda: service_safe_point(b"gc_worker", FOREVER, 55)),
    (PD.UpdateServiceGCSafePoint, lambda: service_safe_point(b"br", 1000, 70)),
    (PD.UpdateServiceGCSafePoint, lambda: service_safe_point(b"gc_worker", FOREVER, 80)),
    (PD.UpdateServiceGCSafePoint, lambda: service_safe_point(b"cdc", 1000, 10)),
    (PD.UpdateServiceGCSafePoint, lambda: service_safe_point(b"br", 0, 0)),
    (PD.UpdateServiceGCSafePoint, lambda: service_safe_point(b"gc_worker", 0, 0)),
    (PD.UpdateServiceGCSafePoint, lambda: service_safe_point(b"", 100, 90)),
    (PD.GetClusterInfo, pdpb.GetClusterInfoRequest),
    (PD.AllocID, pdpb.AllocIDRequest),
]


def test_http_before_bootstrap(pair: Pair) -> None:
    assert differences(pair) == ""


def test_grpc_word_for_word(pair: Pair) -> None:
    async def said_by(client: PdClient) -> list[str]:
        await client.find_leader()
        try:
            return [f"{method.name}: {await answer_of(client, method, make())}" for method, make in CALLS]
        finally:
            client.close()

    async def scenario() -> tuple[list[str], list[str]]:
        ours, theirs = pair.clients()
        return await said_by(ours), await said_by(theirs)

    ours, theirs = asyncio.run(scenario())
    assert [
        f"\nemulated {our}\nreal     {their}" for our, their in zip(ours, theirs, strict=True) if our != their
    ] == []


def test_an_address_that_is_taken(pair: Pair) -> None:
    async def said_by(client: PdClient) -> str:
        await client.find_leader()
        taken = pdpb.PutStoreRequest(store=store(9, address="127.0.0.1:31160"))
        answer = await client.call(PD.PutStore, taken)
        client.close()
        return answer.header.error.message.partition(":")[0]

    async def scenario() -> list[str]:
        return [await said_by(client) for client in pair.clients()]

    assert asyncio.run(scenario()) == ["duplicated store address"] * 2


def test_http_after_bootstrap(pair: Pair) -> None:
    """Two stores that never sent a heartbeat, and a region whose leader nobody knows."""
    assert differences(pair) == ""


def test_a_region_in_the_middle_of_a_change(pair: Pair) -> None:
    """Every role that a peer can have, one pending and one down: what survivability is judged from."""
    roles = (metapb.Voter, metapb.IncomingVoter, metapb.DemotingVoter, metapb.Learner)
    peers = [metapb.Peer(id=5 + at, store_id=1 + at, role=role) for at, role in enumerate(roles)]
    region = metapb.Region(id=4, region_epoch=metapb.RegionEpoch(conf_ver=5, version=1), peers=peers)
    down = [pdpb.PeerStats(peer=peers[1], down_seconds=7)]

    def region_of(port: int) -> dict[str, Any]:
        regions = json.loads(fetch(port, f"{V1}/regions/key?key=&limit=1025")[2])["regions"]
        return {key: regions[0].get(key) for key in ("id", "peers", "leader", "pending_peers", "down_peers")}

    async def report(client: PdClient) -> None:
        await client.find_leader()
        request = pdpb.RegionHeartbeatRequest(header=client.header(), region=region, leader=peers[0], term=6)
        request.down_peers.extend(down)
        request.pending_peers.extend(peers[2:3])
        leader = client.leader_port
        async with client.channels[leader].open(PD.RegionHeartbeat) as stream:
            await stream.send(request)
            await until(lambda: region_of(leader)["pending_peers"], "PD knows of the pending peer")
        client.close()

    async def scenario() -> None:
        for client in pair.clients():
            await report(client)

    asyncio.run(scenario())
    ours, theirs = region_of(pair.emulated.client_ports[0]), region_of(pair.real.client_ports[0])
    assert ours == theirs
    assert [peer["role_name"] for peer in ours["peers"]] == ["Voter", "IncomingVoter", "DemotingVoter", "Learner"]
    assert [peer["id"] for peer in ours["pending_peers"]] == [7]
    assert [stats["peer"]["id"] for stats in ours["down_peers"]] == [6]


@pytest.mark.parametrize(
    "command",
    [
        "health",
        "member",
        "member leader show",
        "cluster",
        "cluster status",
        "store",
        "store 1",
        "region",
        "region 4",
        "region key --format=raw a",
        "region check miss-peer",
        "region store 1",
        "region sibling 4",
        "config show",
        "config show all",
        "config show replication",
        "config show cluster-version",
        "operator show",
        "scheduler show",
        "service-gc-safepoint",
        "label",
    ],
)
def test_pd_ctl(whole: PdProcesses, command: str) -> None:
    done = control(whole, *command.split())
    json.loads(done)


def test_pd_ctl_changes_a_setting(whole: PdProcesses) -> None:
    assert "Success" in control(whole, "config", "set", "max-store-down-time", "45m")
    assert json.loads(control(whole, "config", "show"))["schedule"]["max-store-down-time"] == "45m0s"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PdProcesses]:
    """An emulated PD with three stores."""
    servers = PdProcesses(tmp_path_factory.mktemp("whole"))
    servers.start()

    async def fill() -> None:
        stores = FakeStores(servers.client_ports, [f"127.0.0.1:3{place}160" for place in range(3)])
        await stores.join()
        await stores.beat_once()
        await stores.close()

    try:
        servers.wait_for_leader()
        asyncio.run(fill())
        yield servers
    finally:
        servers.close()


def control(servers: PdProcesses, *arguments: str) -> str:
    command = [str(executable("pd-ctl")), "-u", f"http://127.0.0.1:{servers.client_ports[0]}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
