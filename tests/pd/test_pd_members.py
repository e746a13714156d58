"""Three PD members as processes: quorum, failure, restart, and what their clients may rely on through all of it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_stores import FakeStores, PdClient, until
from pd_processes import PdProcesses

from drillyard.emulator.storage import Batch, Storage
from drillyard.wire import drillpb, metapb, pdpb
from drillyard.wire.rpc import Channel, RpcError, Status
from drillyard.wire.services import HEALTH, MEMBERS, PD

V1 = "/pd/api/v1"


def fake_stores(servers: PdProcesses) -> FakeStores:
    return FakeStores(servers.client_ports, [f"127.0.0.1:3{place}160" for place in range(3)])


async def stamps_of(client: PdClient, count: int) -> AsyncIterator[tuple[int, int]]:
    """(first, last) of each batch of timestamps, for as long as anybody asks; never a repeat of a lost request."""
    while True:
        if not client.leader_port:
            await client.find_leader()
        try:
            async with client.channels[client.leader_port].open(PD.Tso) as stream:
                while True:
                    await stream.send(pdpb.TsoRequest(header=client.header(), count=count))
                    answer = await asyncio.wait_for(stream.recv(), 5)
                    assert answer is not None
                    last = (answer.timestamp.physical << 18) + answer.timestamp.logical
                    yield last - count + 1, last
        except (RpcError, TimeoutError):
            client.leader_port = 0


def test_timestamps_grow_and_ids_are_unique_over_the_deaths_of_leaders(servers: PdProcesses) -> None:
    async def scenario() -> None:
        asker, allocator = PdClient(servers.client_ports), PdClient(servers.client_ports)
        given: list[tuple[int, int]] = []
        ids: list[int] = []
        is_over = asyncio.Event()

        async def ask() -> None:
            async for first, last in stamps_of(asker, 7):
                given.append((first, last))
                if is_over.is_set():
                    return

        async def allocate() -> None:
            while not is_over.is_set():
                try:
                    ids.append((await allocator.call(PD.AllocID, pdpb.AllocIDRequest(), repeat=False)).id)
                except RpcError:
                    allocator.leader_port = 0

        async def more(what: str) -> None:
            stamps, taken = len(given) + 50, len(ids) + 50
            await until(lambda: len(given) > stamps and len(ids) > taken, what)

        askers = [asyncio.create_task(ask()), asyncio.create_task(allocate())]
        for _ in range(2):
            await more("answers")
            leader = await asyncio.to_thread(servers.wait_for_leader)
            servers.kill(leader)
            await asyncio.to_thread(servers.wait_for_leader)
            servers.start(leader)
        await more("answers after the last death")
        is_over.set()
        await asyncio.gather(*askers)
        asker.close()
        allocator.close()
        flat = [edge for pair in given for edge in pair]
        assert flat == sorted(flat)
        assert len(set(flat)) == len(flat)
        assert len(set(ids)) == len(ids)

    asyncio.run(scenario())


def test_a_stopped_leader_gives_away_no_old_timestamps(servers: PdProcesses) -> None:
    """Its clients' requests wait in its socket while another member leads; awake again, it must not answer them."""

    async def scenario() -> None:
        old = servers.wait_for_leader()
        client = PdClient(servers.client_ports)
        await client.find_leader()
        channel = Channel("127.0.0.1", servers.client_ports[old])
        async with channel.open(PD.Tso) as stream:
            request = pdpb.TsoRequest(header=client.header(), count=1)
            await stream.send(request)
            assert await stream.recv() is not None
            servers.signal(old, signal.SIGSTOP)
            await stream.send(request)
            others = [place for place in range(3) if place != old]
            await until(lambda: servers.leader(*others) in others, "another leader")
            client.leader_port = 0
            del client.channels[servers.client_ports[old]]
            newest = await anext(aiter(stamps_of(client, 1)))
            servers.signal(old, signal.SIGCONT)
            try:
                answer = await stream.recv()
            except RpcError:
                answer = None
        if answer is not None:
            assert (answer.timestamp.physical << 18) + answer.timestamp.logical > newest[1]
        channel.close()
        client.close()

    asyncio.run(scenario())


def test_nothing_is_lost_when_all_members_die_at_once(servers: PdProcesses) -> None:
    async def before() -> tuple[int, int, int]:
        stores = fake_stores(servers)
        await stores.pd.find_leader()
        await stores.join()
        stores.start()
        await until(stores.has_three_voters, "three voters")
        await until(
            lambda: (
                b'"learner' not in servers.get(0, f"{V1}/regions")[2].lower()
                and servers.told(0, f"{V1}/cluster/status")["is_initialized"]
            ),
            "PD has heard of them",
        )
        request = pdpb.UpdateGCSafePointRequest(safe_point=77)
        assert (await stores.pd.call(PD.UpdateGCSafePoint, request)).new_safe_point == 77
        last_id = (await stores.pd.call(PD.AllocID, pdpb.AllocIDRequest())).id
        _, last = await anext(aiter(stamps_of(stores.pd, 1)))
        await stores.close()
        return stores.pd.cluster_id, last_id, last

    async def after() -> tuple[int, int, int]:
        client = PdClient(servers.client_ports)
        await client.find_leader()
        assert (await client.call(PD.IsBootstrapped, pdpb.IsBootstrappedRequest())).bootstrapped
        assert (await client.call(PD.GetGCSafePoint, pdpb.GetGCSafePointRequest())).safe_point == 77
        stores = (await client.call(PD.GetAllStores, pdpb.GetAllStoresRequest())).stores
        assert [store.address for store in stores] == [f"127.0.0.1:3{place}160" for place in range(3)]
        region = (await client.call(PD.GetRegion, pdpb.GetRegionRequest(region_key=b"k"))).region
        assert [peer.role for peer in region.peers] == [metapb.Voter] * 3
        next_id = (await client.call(PD.AllocID, pdpb.AllocIDRequest())).id
        first, _ = await anext(aiter(stamps_of(client, 1)))
        client.close()
        return client.cluster_id, next_id, first

    cluster_id, last_id, last = asyncio.run(before())
    servers.kill(0, 1, 2)
    servers.start()
    servers.wait_for_leader()
    came_back = asyncio.run(after())
    assert came_back[0] == cluster_id
    assert came_back[1] > last_id
    assert came_back[2] > last


def test_stores_go_on_with_the_next_leader(servers: PdProcesses) -> None:
    async def scenario() -> None:
        stores = fake_stores(servers)
        await stores.pd.find_leader()
        await stores.join()
        stores.start()
        await until(stores.has_three_voters, "three voters")
        leader = await asyncio.to_thread(servers.wait_for_leader)
        servers.kill(leader)
        place = (leader + 1) % 3

        def is_whole() -> bool:
            shown = servers.ask(place, f"{V1}/stores")
            region = servers.ask(place, f"{V1}/region/key/k")
            return (
                bool(shown and region)
                and [each["store"]["state_name"] for each in shown["stores"]] == ["Up"] * 3
                and region["leader"].get("store_id") == stores.stores[0].id
            )

        await until(is_whole, "three stores Up and the region's leader known")
        expected = {name: number != leader for number, name in enumerate(servers.names)}

        def is_told() -> bool:
            return {each["name"]: each["health"] for each in servers.ask(place, f"{V1}/health") or ()} == expected

        await until(is_told, "only the one that was killed is ill")
        assert not stores.errors
        await stores.close()

    asyncio.run(scenario())


def test_without_a_quorum_nothing_is_given_away_and_questions_are_answered_soon(servers: PdProcesses) -> None:
    leader = servers.wait_for_leader()
    servers.kill(*(place for place in range(3) if place != leader))

    async def ask() -> None:
        client = PdClient(servers.client_ports)
        client.leader_port = servers.client_ports[leader]

        async def is_refused() -> bool:
            try:
                await client.call(PD.GetGCSafePoint, pdpb.GetGCSafePointRequest(), repeat=False)
            except RpcError:
                return True
            return False

        await until(is_refused, "a refusal")
        client.close()

    asyncio.run(ask())
    deadline = time.monotonic() + 20
    while servers.get(leader, f"{V1}/stores") != (503, "text/plain; charset=utf-8", b"no leader\n"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert servers.get(leader, "/health") == (503, "text/plain; charset=utf-8", b'{"health":"false"}')
    servers.start((leader + 1) % 3)
    servers.wait_for_leader()


def test_a_follower_does_not_hang_on_a_dead_or_stopped_leader(servers: PdProcesses) -> None:
    for _ in range(5):  # where this process stood still between stop and question, another member leads already
        leader = servers.wait_for_leader()
        follower = (leader + 1) % 3
        servers.signal(leader, signal.SIGSTOP)
        status, content_type, body = servers.get(follower, f"{V1}/members")
        servers.signal(leader, signal.SIGCONT)
        if status != 200:
            break
    assert (status, content_type) in ((500, "text/plain; charset=utf-8"), (503, "text/plain; charset=utf-8"))
    assert body in (b"[PD:apiutil:ErrRedirect]redirect failed\n", b"no leader\n")
    servers.wait_for_leader()


def test_a_member_that_was_away_for_long_catches_up_by_a_snapshot(servers: PdProcesses) -> None:
    leader = servers.wait_for_leader()
    away = (leader + 1) % 3
    servers.kill(away)

    async def work() -> None:
        client = PdClient(servers.client_ports)
        await client.find_leader()
        for turn in range(26):
            requests = [
                client.call(PD.UpdateGCSafePoint, pdpb.UpdateGCSafePointRequest(safe_point=turn * 100 + place))
                for place in range(100)
            ]
            await asyncio.gather(*requests)
        client.close()

    async def bootstrap() -> None:
        stores = fake_stores(servers)
        await stores.pd.find_leader()
        await stores.join()
        await stores.close()

    asyncio.run(bootstrap())
    asyncio.run(work())
    servers.start(away)
    log = servers.home / f"{servers.names[away]}.log"
    deadline = time.monotonic() + 20
    while "installed a snapshot" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    servers.kill(leader)
    assert servers.wait_for_leader() != leader
    safe_points = servers.ask(away, f"{V1}/gc/safepoint")
    assert safe_points["gc_safe_point"] == 2599


def test_a_clean_stop(servers: PdProcesses) -> None:
    assert [servers.terminate(place) for place in range(3)] == [0, 0, 0]
    servers.start()
    servers.wait_for_leader()


def test_a_member_that_lost_its_data_directory_is_refused(servers: PdProcesses) -> None:
    leader = servers.wait_for_leader()
    lost = (leader + 1) % 3
    deadline = time.monotonic() + 20
    while not all(each.get("client_urls") for each in servers.told(leader, f"{V1}/members")["members"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    servers.kill(lost)
    shutil.rmtree(servers.home / servers.names[lost])
    code, said = servers.run_to_its_end(lost)
    assert code == 1
    assert "has already been part of this cluster with another data directory" in said


def test_a_lost_data_directory_is_noticed_before_the_member_votes(servers: PdProcesses) -> None:
    """Everything is down; one of the two that come back has lost its data, and must not elect the other."""
    leader = servers.wait_for_leader()
    lost, other = (leader + 1) % 3, (leader + 2) % 3
    deadline = time.monotonic() + 20
    while not all(each.get("client_urls") for each in servers.told(leader, f"{V1}/members")["members"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    servers.kill(0, 1, 2)
    shutil.rmtree(servers.home / servers.names[lost])
    servers.start(lost)
    servers.start(other)
    assert servers.processes.pop(lost).wait(timeout=20) == 1
    assert servers.get(other, f"{V1}/leader")[0] in (0, 503)
    servers.start(leader)
    servers.wait_for_leader()


def test_flags_of_another_member_do_not_open_a_data_directory(servers: PdProcesses) -> None:
    servers.kill(2)
    other = servers.initial_cluster.rpartition(",")[0]
    code, said = servers.run_to_its_end(
        2, initial_cluster=f"{other},pdx=http://127.0.0.1:1,{servers.names[2]}=" + url(servers)
    )
    assert code == 1
    assert "give the same --name, --initial-cluster and peer URLs" in said


def url(servers: PdProcesses) -> str:
    return f"http://127.0.0.1:{servers.peer_ports[2]}"


def test_a_new_member_with_another_idea_of_the_cluster_is_refused(servers: PdProcesses) -> None:
    servers.kill(2)
    code, said = servers.run_to_its_end(
        2,
        initial_cluster=f"{servers.initial_cluster},more=http://127.0.0.1:1",
        data_dir=str(servers.home / "elsewhere"),
    )
    assert code == 1
    assert "was started with another --initial-cluster" in said


def test_a_data_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    servers = PdProcesses(tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letters").write_text("dear")
    code, said = servers.run_to_its_end(0, data_dir=str(foreign))
    assert code == 1
    assert "is no data directory of an emulated member" in said
    assert [each.name for each in foreign.iterdir()] == ["letters"]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (b"pd/identity", "who this member is cannot be read"),
        (b"pd/snapshot", "the snapshot of PD's state cannot be read"),
    ],
)
def test_a_record_that_cannot_be_read_stops_the_member_by_name(tmp_path: Path, key: bytes, words: str) -> None:
    servers = PdProcesses(tmp_path, members=1)
    storage = Storage.open(tmp_path / "pd0", "pd")
    batch = Batch()
    batch.put(key, b"\xff\xff garbage")
    storage.write(batch)
    storage.close()
    code, said = servers.run_to_its_end(0)
    assert code == 1
    assert "is corrupted" in said
    assert words in said


def test_one_member_alone(tmp_path: Path) -> None:
    servers = PdProcesses(tmp_path, members=1)
    servers.start()
    try:
        assert servers.wait_for_leader() == 0
        servers.kill(0)
        servers.start()
        assert servers.wait_for_leader() == 0
    finally:
        servers.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "stranger"}, "has no member stranger"),
        ({"client_urls": "127.0.0.1:2379"}, "give one URL like"),
        ({"client_urls": "https://127.0.0.1:2379"}, "no TLS"),
        ({"peer_urls": "http://127.0.0.1:1"}, "make them the same"),
        ({"initial_cluster": "pd0"}, "write it like"),
        ({"initial_cluster": "pd0=http://127.0.0.1:1,pd0=http://127.0.0.1:2"}, "twice"),
        ({"nonsense": "1"}, "unknown flag --nonsense"),
    ],
)
def test_bad_flags_are_named(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    code, said = PdProcesses(tmp_path).run_to_its_end(0, **changes)
    assert code == 2
    assert words in said


def test_unknown_keys_of_the_configuration_are_named(tmp_path: Path) -> None:
    servers = PdProcesses(tmp_path)
    (tmp_path / "pd.toml").write_text("tick-intervall = '1s'\n")
    code, said = servers.run_to_its_end(0)
    assert code == 2
    assert "unknown key tick-intervall; did you mean tick-interval?" in said


def test_what_bad_requests_are_told(servers: PdProcesses) -> None:
    async def scenario() -> None:
        client = PdClient(servers.client_ports)
        await client.find_leader()
        leader = client.channels[client.leader_port]
        follower = next(channel for port, channel in client.channels.items() if port != client.leader_port)
        header, wrong = client.header(), pdpb.RequestHeader(cluster_id=1)

        async def refused(channel: Channel, method: object, request: object) -> tuple[Status, str]:
            with pytest.raises(RpcError) as caught:
                await channel.unary(method, request, timeout_s=5)  # type: ignore[arg-type, type-var]
            return caught.value.status, caught.value.message

        mismatch = (Status.FAILED_PRECONDITION, f"mismatch cluster id, need {client.cluster_id} but got 1")
        assert await refused(leader, PD.AllocID, pdpb.AllocIDRequest(header=wrong)) == mismatch
        assert await refused(follower, PD.AllocID, pdpb.AllocIDRequest(header=header)) == (
            Status.UNAVAILABLE,
            "not leader",
        )
        answer = await leader.unary(PD.GetMembers, pdpb.GetMembersRequest(header=wrong))
        assert (len(answer.members), answer.header.cluster_id) == (3, client.cluster_id)
        assert (await follower.unary(PD.GetMembers, pdpb.GetMembersRequest())).leader == answer.leader
        unborn = await leader.unary(PD.GetStore, pdpb.GetStoreRequest(header=header, store_id=1))
        assert (unborn.header.error.type, unborn.header.error.message) == (
            pdpb.NOT_BOOTSTRAPPED,
            "cluster is not bootstrapped",
        )
        stores = fake_stores(servers)
        stores.pd.leader_port, stores.pd.cluster_id = client.leader_port, client.cluster_id
        await stores.join()
        again = pdpb.BootstrapRequest(header=header, store=stores.stores[0], region=stores.region)
        assert (await leader.unary(PD.Bootstrap, again)).header.error.type == pdpb.ALREADY_BOOTSTRAPPED
        unknown = await leader.unary(PD.GetStore, pdpb.GetStoreRequest(header=header, store_id=9999))
        assert unknown.header.error.message == "invalid store ID 9999, not found"
        stats = pdpb.StoreStats(store_id=9999)
        beat = await leader.unary(PD.StoreHeartbeat, pdpb.StoreHeartbeatRequest(header=header, stats=stats))
        assert beat.header.error.message == "store 9999 not found"
        nowhere = await leader.unary(PD.GetRegionByID, pdpb.GetRegionByIDRequest(header=header, region_id=99))
        assert not nowhere.HasField("region")
        assert not nowhere.HasField("header") or not nowhere.header.HasField("error")
        none = await leader.unary(PD.GetOperator, pdpb.GetOperatorRequest(header=header, region_id=4))
        assert (none.header.error.type, none.header.error.message) == (pdpb.REGION_NOT_FOUND, "Not Found")
        config = await leader.unary(PD.GetClusterConfig, pdpb.GetClusterConfigRequest(header=header))
        assert config.cluster == metapb.Cluster(id=client.cluster_id, max_peer_count=3)
        assert (await follower.unary(HEALTH.Check, HEALTH.Check.request())).status == 1
        assert (await leader.unary(PD.GetClusterInfo, pdpb.GetClusterInfoRequest())).serviceModes == [pdpb.PD_SVC_MODE]
        await stores.close()
        client.close()

    asyncio.run(scenario())


def test_streams_refuse_what_calls_refuse(servers: PdProcesses) -> None:
    async def ending(channel: Channel, count: int, cluster_id: int) -> tuple[Status, str]:
        header = pdpb.RequestHeader(cluster_id=cluster_id)
        return await end_of(channel, PD.Tso, pdpb.TsoRequest(header=header, count=count))

    async def end_of(channel: Channel, method: Any, request: Any) -> tuple[Status, str]:
        """How a stream ends that was sent one request."""
        try:
            async with channel.open(method) as stream:
                await stream.send(request)
                await stream.recv()
        except RpcError as error:
            return error.status, error.message
        raise AssertionError("the stream was served")

    async def scenario() -> None:
        client = PdClient(servers.client_ports)
        await client.find_leader()
        leader = client.channels[client.leader_port]
        follower = next(channel for port, channel in client.channels.items() if port != client.leader_port)
        assert (await ending(leader, 1, 1))[0] is Status.FAILED_PRECONDITION
        status, message = await ending(follower, 1, client.cluster_id)
        assert status is Status.UNKNOWN
        assert "is not leader" in message
        assert "count should be positive" in (await ending(leader, 0, client.cluster_id))[1]
        assert "count should be less" in (await ending(leader, 1 << 18, client.cluster_id))[1]
        beat = pdpb.RegionHeartbeatRequest(header=client.header())
        assert await end_of(follower, PD.RegionHeartbeat, beat) == (Status.UNAVAILABLE, "not leader")
        client.close()

    asyncio.run(scenario())


def test_old_epochs_are_refused_by_name(servers: PdProcesses) -> None:
    async def scenario() -> None:
        stores = fake_stores(servers)
        await stores.pd.find_leader()
        await stores.join()
        stores.start()
        await until(stores.has_three_voters, "three voters")
        old = stores.heartbeat()
        old.region.region_epoch.conf_ver = 2
        async with stores.pd.channels[stores.pd.leader_port].open(PD.RegionHeartbeat) as stream:
            await stream.send(old)
            answer = await stream.recv()
            while answer is not None and not answer.header.HasField("error"):
                answer = await stream.recv()
            assert answer is not None
            assert answer.header.error.message.startswith("region is stale")
        await stores.close()

    asyncio.run(scenario())


def test_heartbeats_that_make_no_sense_are_refused_and_the_stream_lives_on(servers: PdProcesses) -> None:
    async def scenario() -> None:
        stores = fake_stores(servers)
        await stores.pd.find_leader()
        await stores.join()
        nobody, nothing, alone, backwards = (stores.heartbeat() for _ in range(4))
        nobody.leader.id = 0
        nothing.region.id = 0
        del alone.region.peers[:]
        backwards.region.start_key, backwards.region.end_key = b"z", b"a"
        said: list[str] = []
        async with stores.pd.channels[stores.pd.leader_port].open(PD.RegionHeartbeat) as stream:
            for request in (nobody, nothing, alone, backwards):
                await stream.send(request)
            while len(said) < 4:
                answer = await stream.recv()
                assert answer is not None
                if answer.header.HasField("error"):
                    said.append(answer.header.error.message)
            stranger = stores.heartbeat()
            stranger.leader.store_id = 9999
            await stream.send(stranger)
            with pytest.raises(RpcError, match="invalid store ID 9999, not found"):
                await end_of_stream(stream)
        assert said == [
            "invalid request leader",
            "invalid request region",
            "invalid region, zero region peer count",
            "invalid region, its end key is not after its start key",
        ]
        await stores.close()

    async def end_of_stream(stream: Any) -> None:
        while await stream.recv() is not None:
            pass

    asyncio.run(scenario())


def test_bytes_that_are_no_message(servers: PdProcesses) -> None:
    leader = servers.wait_for_leader()
    channel = grpc.insecure_channel(f"127.0.0.1:{servers.client_ports[leader]}")
    call = channel.unary_unary("/pdpb.PD/GetStore")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff\xff", timeout=5)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/pdpb.PD/Nonsense")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    channel.close()
    assert servers.get(leader, f"{V1}/ping")[0] == 200


def test_introductions_of_strangers_are_refused(servers: PdProcesses) -> None:
    async def scenario() -> Status:
        channel = Channel("127.0.0.1", servers.peer_ports[0])
        with pytest.raises(RpcError) as caught:
            await channel.unary(MEMBERS.Introduce, drillpb.IntroduceRequest(group_id=5), timeout_s=5)
        channel.close()
        return caught.value.status

    assert asyncio.run(scenario()) is Status.FAILED_PRECONDITION


def test_the_calls_of_an_official_client(servers: PdProcesses) -> None:
    """tikv-python's own PD client: over two regions, with endpoints of which one is dead, past a leader's death."""
    from tikv._backoff import Backoff
    from tikv._region import RegionCache
    from tikv._sync._pd import PDClient
    from tikv._sync._transport import Transport

    async def fill() -> FakeStores:
        stores = fake_stores(servers)
        await stores.pd.find_leader()
        await stores.join()
        left, right = stores.heartbeat(), stores.heartbeat()
        for beat in (left, right):
            beat.region.region_epoch.version = 2
        left.region.end_key = right.region.start_key = b"m"
        right.region.id = (await stores.pd.call(PD.AllocID, pdpb.AllocIDRequest())).id
        async with stores.pd.channels[stores.pd.leader_port].open(PD.RegionHeartbeat) as stream:
            await stream.send(left)
            await stream.send(right)
            leader = servers.client_ports.index(stores.pd.leader_port)
            await until(lambda: servers.told(leader, f"{V1}/regions/count")["count"] == 2, "two regions")
        await stores.close()
        return stores

    stores = asyncio.run(fill())
    endpoints = ["127.0.0.1:1", *(f"127.0.0.1:{port}" for port in servers.client_ports)]
    client = PDClient(endpoints, Transport(), RegionCache())
    for _ in range(2):
        assert client.region(b"a", Backoff(20)).end == b"m"
        assert client.region(b"m", Backoff(20)).start == b"m"
        assert client.region_by_end(b"m", Backoff(20)).end == b"m"
        assert [each.start for each in client.scan_regions(b"", b"", 10, Backoff(20))] == [b"", b"m"]
        assert client.store_address(stores.stores[0].id, Backoff(20)) == "127.0.0.1:30160"
        if len(servers.processes) == 3:
            servers.kill(servers.wait_for_leader())
