"""When a peer becomes hot, stays so, and is forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

import pytest

from drillyard.emulator.pd import hotspots
from drillyard.emulator.pd.hotspots import READ, WRITE, Flow, HotPeers
from drillyard.wire import metapb

SECOND = 10**9
MIB = 1 << 20


def region(region_id: int, *stores: int) -> metapb.Region:
    return metapb.Region(id=region_id, peers=[metapb.Peer(id=region_id * 10 + each, store_id=each) for each in stores])


class Writes:
    """One region on stores 1 to 3 that reports how much was written, and the hot peers that come of it."""

    def __init__(self) -> None:
        self.hot = HotPeers(WRITE)
        self.region = region(7, 1, 2, 3)
        self.now_s = 1000

    def report(self, rate: float, seconds: int = 60, *, leader: int = 1) -> None:
        self.now_s += seconds
        flow = Flow(int(rate * seconds), 0, seconds, self.now_s * SECOND)
        for peer in self.region.peers:
            self.hot.hear(self.region, metapb.Peer(store_id=leader), peer.store_id, flow)

    def degrees(self, hits: int = 0) -> dict[int, int]:
        return {store: peers[0].degree for store, peers in self.hot.hot(hits).items() if peers}


def test_a_peer_is_hot_after_as_many_hot_minutes_as_are_asked_for() -> None:
    writes = Writes()
    for minute in range(1, 5):
        writes.report(2048)
        assert writes.degrees() == dict.fromkeys((1, 2, 3), minute)
        assert bool(writes.degrees(3)) is (minute >= 3)
    assert [peer.is_leader for peers in writes.hot.hot(3).values() for peer in peers] == [True, False, False]


@pytest.mark.parametrize(("rate", "is_taken_in"), [(1023, False), (1024, True)])
def test_the_threshold(rate: float, is_taken_in: bool) -> None:
    writes = Writes()
    writes.report(rate)
    assert bool(writes.degrees()) is is_taken_in


def test_short_reports_add_up_to_a_minute_and_the_shortest_do_not_count() -> None:
    writes = Writes()
    for _ in range(5):
        writes.report(4096, seconds=10)
        writes.report(1 << 40, seconds=2)
    assert writes.degrees() == {}
    writes.report(4096, seconds=10)
    assert writes.degrees() == {1: 1, 2: 1, 3: 1}
    assert {peer.byte_rate for peers in writes.hot.hot(0).values() for peer in peers} == {4096}


def test_one_burst_does_not_raise_what_a_peer_is_said_to_carry() -> None:
    writes = Writes()
    for rate in (2048, 2048, 1 << 30, 2048, 2048):
        writes.report(rate)
    assert {peer.byte_rate for peers in writes.hot.hot(0).values() for peer in peers} == {2048}


def test_a_peer_cools_down_and_is_forgotten() -> None:
    writes = Writes()
    for _ in range(4):
        writes.report(2048)
    writes.report(0)
    assert writes.degrees() == {}  # not shown while it is doubtful
    writes.report(2048)
    assert writes.degrees() == {1: 4, 2: 4, 3: 4}
    writes.report(0)
    writes.report(0)
    writes.report(2048)
    assert writes.degrees() == {1: 1, 2: 1, 3: 1}  # begun again


def test_what_is_no_more_or_silent_is_forgotten() -> None:
    writes = Writes()
    writes.report(2048)
    moved = region(7, 1, 2)
    writes.hot.keep({7: moved}.get, writes.now_s * SECOND)
    assert set(writes.degrees()) == {1, 2}
    writes.hot.keep({7: moved}.get, (writes.now_s + 181) * SECOND)
    assert writes.degrees() == {}
    writes.report(2048)
    writes.hot.keep(lambda region_id: None, writes.now_s * SECOND)
    assert writes.degrees() == {}


def test_among_many_hot_peers_only_those_near_the_top_are_taken_in() -> None:
    hot, now_ns = HotPeers(WRITE), 10**12
    for region_id in range(1, 61):
        hot.hear(region(region_id, 1), metapb.Peer(store_id=1), 1, Flow(60 * MIB, 0, 60, now_ns))
    hot.hear(region(100, 1), metapb.Peer(store_id=1), 1, Flow(60 * MIB // 2, 0, 60, now_ns))
    hot.hear(region(101, 1), metapb.Peer(store_id=1), 1, Flow(60 * MIB, 0, 60, now_ns))
    taken = {peer.region_id for peer in hot.hot(0)[1]}
    assert 100 not in taken
    assert 101 in taken


def test_reads_are_looked_at_six_times_as_often() -> None:
    hot = HotPeers(READ)
    for look in range(1, 19):
        hot.hear(region(7, 1), metapb.Peer(store_id=1), 1, Flow(0, 2000, 10, look * 10 * SECOND))
        assert bool(hot.hot(3)[1]) is (look >= 18)


def test_a_threshold_is_not_made_for_every_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a thousand hot peers on a store, one made for each report would hold a member up for seconds."""
    medians = 0

    def counted(rates: Iterable[float]) -> float:
        nonlocal medians
        medians += 1
        return median(rates)

    monkeypatch.setattr(hotspots, "median", counted)
    hot, leader = HotPeers(WRITE), metapb.Peer(store_id=1)
    for minute in (1, 2):
        for region_id in range(1, 1001):
            flow = Flow(60 * MIB, 0, 60, minute * 60 * SECOND)
            hot.hear(region(region_id, 1), leader, 1, flow)
    assert medians < 10_000
    hot.hear(region(1001, 1), leader, 1, Flow(60 << 10, 0, 60, 130 * SECOND))
    assert len(hot.hot(0)[1]) == 1000  # too little beside the others, by a threshold that is of now
