"""A store that stands still without dying: writes go on without it, and nobody keeps for it more than is bounded."""

from __future__ import annotations

import signal

import psutil
import pytest
from tikv_cluster import Cluster
from tikv_members import Place, TikvProcess, call, wait_until

from drillyard.wire import kvrpcpb
from drillyard.wire.services import TIKV

VALUE = b"x" * (512 << 10)
WRITES = 160  # 80 MiB: more than a log keeps for a peer that is silent, and than a queue to it holds
MOST_GROWTH = 160 << 20


def put(place: Place, key: bytes, value: bytes) -> bool:
    request = kvrpcpb.RawPutRequest(context=place.context(), key=key, value=value)
    return not call(place.address, TIKV.RawPut, request).HasField("region_error")


@pytest.mark.timeout(120)
def test_a_store_that_stands_still(fragile: Cluster) -> None:
    for member in fragile.members:
        member.start()
    fragile.wait_replicated()
    place = fragile.place()
    leader = fragile.member(place.leader.store_id)
    stalled = next(member for member in fragile.members if member is not leader)
    _a_follower(place, leader, stalled)
    wait_until("the follower has caught up", fragile.is_replicated)
    _the_leader(fragile)


def _a_follower(place: Place, leader: TikvProcess, stalled: TikvProcess) -> None:
    assert leader.process is not None
    process = psutil.Process(leader.process.pid)
    before = process.memory_info().rss
    stalled.send(signal.SIGSTOP)
    try:
        for number in range(WRITES):
            assert put(place, b"stall %d" % (number % 8), VALUE)  # each within the time for a call
        grown = process.memory_info().rss - before
        assert grown < MOST_GROWTH, f"{grown >> 20} MiB are kept for a store that does not read"
    finally:
        stalled.send(signal.SIGCONT)


def _the_leader(fragile: Cluster) -> None:
    """It is replaced while it stands still, and follows when it goes on."""
    place = fragile.place()
    leader = fragile.member(place.leader.store_id)
    leader.send(signal.SIGSTOP)
    try:
        wait_until("another leader", lambda: fragile.place().leader.store_id != place.leader.store_id)
        wait_until("it serves", lambda: put(fragile.place(), b"after", b"v"))
    finally:
        leader.send(signal.SIGCONT)
    wait_until("all three follow", fragile.is_replicated)
    answers: list[kvrpcpb.RawGetResponse] = []

    def is_answered() -> bool:
        """Not by a region error: who leads may have changed once more when the former leader went on."""
        place = fragile.place()
        request = kvrpcpb.RawGetRequest(context=place.context(), key=b"after")
        answers.append(call(place.address, TIKV.RawGet, request))
        return not answers[-1].HasField("region_error")

    wait_until("a read is answered", is_answered)
    assert answers[-1].value == b"v"
