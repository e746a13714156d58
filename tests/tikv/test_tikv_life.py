"""How a store starts, what stops it by name, and what it survives."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from fake_pd import FakePd
from tikv_cluster import Cluster
from tikv_members import TikvProcess, call, kind_of, wait_until

from drillyard.wire import kvrpcpb, metapb, pdpb
from drillyard.wire.services import TIKV
from ports import free_port


def start_all(cluster: Cluster) -> None:
    for member in cluster.members:
        member.start()
    cluster.wait_replicated()


def put(cluster: Cluster, key: bytes, value: bytes) -> None:
    """Writes through whoever leads, as often as it takes."""

    def attempt() -> bool:
        import grpc

        place = cluster.place()
        request = kvrpcpb.RawPutRequest(context=place.context(), key=key, value=value)
        try:
            answer = call(place.address, TIKV.RawPut, request, timeout_s=2)
        except grpc.RpcError:
            return False
        assert answer.error == ""
        return not answer.HasField("region_error")

    wait_until(f"{key!r} is written", attempt)


def get(cluster: Cluster, key: bytes) -> bytes:
    def attempt() -> Any:
        import grpc

        place = cluster.place()
        try:
            answer = call(
                place.address, TIKV.RawGet, kvrpcpb.RawGetRequest(context=place.context(), key=key), timeout_s=2
            )
        except grpc.RpcError:
            return None
        return None if answer.HasField("region_error") else answer

    value: bytes = wait_until(f"{key!r} is read", attempt).value
    return value


def test_a_killed_leader_is_replaced_and_comes_back(fragile: Cluster) -> None:
    start_all(fragile)
    put(fragile, b"before", b"1")
    killed = fragile.member(fragile.place().leader.store_id)
    killed.kill()
    put(fragile, b"meanwhile", b"2")
    assert fragile.member(fragile.place().leader.store_id) is not killed
    killed.start()
    wait_until(
        "nobody is pending",
        lambda: not fragile.pd.snapshot(lambda mind: list(mind.reports[-1].pending_peers)),
    )
    assert get(fragile, b"before") == b"1"
    assert get(fragile, b"meanwhile") == b"2"


def test_all_killed_at_once_lose_nothing_that_was_acknowledged(fragile: Cluster) -> None:
    start_all(fragile)
    for number in range(50):
        put(fragile, b"k%d" % number, b"v%d" % number)
    for member in fragile.members:
        member.send(signal.SIGKILL)
    for member in fragile.members:
        member.kill()
    for member in fragile.members:
        member.start()
    for number in range(50):
        assert get(fragile, b"k%d" % number) == b"v%d" % number
    assert sorted(fragile.pd.snapshot(lambda mind: list(mind.stores))) == sorted(
        {peer.store_id for peer in fragile.place().region.peers}
    )


def test_a_new_peer_catches_up_by_a_snapshot_of_many_parts(fragile: Cluster) -> None:
    fragile.pd.mind.wanted_voters = 1
    fragile.members[0].start()
    wait_until("the region is led", lambda: fragile.pd.snapshot(lambda mind: mind.leader))
    place = fragile.place()
    for number in range(8):
        pairs = [kvrpcpb.KvPair(key=b"k%02d-%03d" % (number, item), value=b"v" * 1000) for item in range(200)]
        request = kvrpcpb.RawBatchPutRequest(context=place.context(), pairs=pairs)
        assert not call(place.address, TIKV.RawBatchPut, request).HasField("region_error")
    large = kvrpcpb.RawPutRequest(context=place.context(), key=b"large", value=b"x" * (3 << 20))
    assert not call(place.address, TIKV.RawPut, large).HasField("region_error")
    fragile.pd.mind.wanted_voters = 3
    for member in fragile.members[1:]:
        member.start()
    fragile.wait_replicated()
    fragile.members[0].kill()
    assert len(get(fragile, b"large")) == 3 << 20
    place = fragile.place()
    scanned = call(
        place.address,
        TIKV.RawScan,
        kvrpcpb.RawScanRequest(context=place.context(), start_key=b"k", end_key=b"l", limit=5000, key_only=True),
    )
    assert len(scanned.kvs) == 1600


def test_the_stream_follows_the_leader_of_pd(fragile: Cluster) -> None:
    start_all(fragile)
    reports = fragile.pd.snapshot(lambda mind: len(mind.reports))
    fragile.pd.lead(1)
    wait_until("the region is reported to the new leader", lambda: len(fragile.pd.mind.reports) > reports)
    fragile.pd.kill(0)
    put(fragile, b"k", b"v")
    beats = fragile.pd.snapshot(lambda mind: mind.beats.clear())
    assert beats is None
    wait_until("all stores are heard by the new leader", lambda: fragile.pd.snapshot(lambda mind: len(mind.beats)) == 3)


def test_stores_wait_for_pd(tmp_path: Path) -> None:
    port = free_port()
    member = TikvProcess(tmp_path / "tikv", f"127.0.0.1:{port}").start()
    try:
        wait_until("it says that it waits", lambda: "failed to connect to PD" in member.log_text)
        assert member.process is not None
        assert member.process.poll() is None
        member.send(signal.SIGTERM)
        assert member.ends()[0] == 0
    finally:
        member.kill()


def queue(cluster: Cluster, fill: Any) -> None:
    """Lets PD say something to the region's leader at the next heartbeat."""
    place = cluster.place()
    step = pdpb.RegionHeartbeatResponse(
        header=pdpb.ResponseHeader(cluster_id=cluster.pd.mind.cluster_id),
        region_id=place.region.id,
        region_epoch=place.region.region_epoch,
        target_peer=place.leader,
    )
    fill(step)
    cluster.pd.do(lambda: cluster.pd.mind.queued.append(step))


def test_steps_of_pd_are_obeyed_once_and_unknown_ones_declined(fragile: Cluster) -> None:
    start_all(fragile)
    place = fragile.place()
    target = next(peer for peer in place.region.peers if peer.id != place.leader.id)
    queue(fragile, lambda step: step.merge.target.CopyFrom(metapb.Region(id=99)))
    leader = fragile.member(place.leader.store_id)
    wait_until(
        "the merge is declined in words",
        lambda: "the target region 99 is not here" in leader.log_text,
    )
    for _ in range(2):
        queue(fragile, lambda step: step.transfer_leader.peer.CopyFrom(target))
    wait_until("leadership is transferred", lambda: fragile.place().leader.id == target.id)
    assert fragile.place().region == place.region
    put(fragile, b"k", b"v")


# ---- named stops ----


def test_data_of_another_cluster(fragile: Cluster, tmp_path: Path) -> None:
    member = fragile.members[0].start()
    wait_until("it serves", lambda: "ready to serve" in member.log_text)
    member.kill()
    with FakePd(cluster_id=4712) as other:
        member.pd = other.endpoints
        code, said = member.start().ends()
    assert code == 1
    assert "cluster ID mismatch" in said
    assert "4711" in said
    assert "4712" in said


def test_pd_that_turns_into_another_cluster(fragile: Cluster) -> None:
    member = fragile.members[0].start()
    wait_until("it serves", lambda: "ready to serve" in member.log_text)

    def replace_cluster() -> None:
        fragile.pd.mind.cluster_id = 9999

    fragile.pd.do(replace_cluster)
    code, said = member.ends()
    assert code == 1
    assert "cluster" in said
    assert "9999" in said


def test_an_address_that_another_store_has(fragile: Cluster) -> None:
    first, second = fragile.members[:2]
    first.start()
    wait_until("it serves", lambda: "ready to serve" in first.log_text)
    second.extra = (f"--advertise-addr={first.address}",)
    code, said = second.start().ends()
    assert code == 1
    assert "duplicated store address" in said
    assert first.address in said


def test_a_port_that_is_taken(fragile: Cluster) -> None:
    member = fragile.members[0]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        member.port = taken.getsockname()[1]
        code, said = member.start().ends()
    assert code == 1
    assert str(member.port) in said
    assert not fragile.pd.mind.stores


def test_a_directory_that_is_not_ours(fragile: Cluster) -> None:
    member = fragile.members[0]
    foreign = member.home / "data"
    foreign.mkdir(parents=True)
    (foreign / "precious.txt").write_text("do not touch")
    code, said = member.start().ends()
    assert code == 1
    assert str(foreign) in said
    assert [path.name for path in foreign.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("flag", "word"),
    [
        ("--nosuch=1", "--nosuch"),
        ("--addr=nowhere", "--addr"),
        ("--log-level=loud", "--log-level"),
        ("--labels=zone", "--labels"),
    ],
)
def test_flags_that_cannot_be_used(fragile: Cluster, flag: str, word: str) -> None:
    member = fragile.members[0]
    member.extra = (flag,)
    code, said = member.start().ends()
    assert code == 2
    assert word in said


def test_a_store_with_little_room_says_so_before_it_breaks(fragile: Cluster) -> None:
    member = fragile.members[0]
    fragile.pd.mind.wanted_voters = 1
    member.start()
    wait_until("the region is led", lambda: fragile.pd.snapshot(lambda mind: mind.leader))
    put(fragile, b"k", b"v")
    member.send(signal.SIGTERM)
    member.ends()
    with (member.home / "tikv.toml").open("a") as config:
        config.write('[storage]\nreserve-space = "100PiB"\n')
    text = (member.home / "tikv.toml").read_text()
    (member.home / "full.toml").write_text(text)
    member.extra = (f"--config={member.home / 'full.toml'}",)
    member.start()
    assert get(fragile, b"k") == b"v"
    place = fragile.place()
    answer = call(place.address, TIKV.RawPut, kvrpcpb.RawPutRequest(context=place.context(), key=b"k", value=b"w"))
    assert kind_of(answer.region_error) == "disk_full"
    assert list(answer.region_error.disk_full.store_id) == [place.leader.store_id]
    assert get(fragile, b"k") == b"v"
