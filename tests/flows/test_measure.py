"""Measuring an operation over sockets, on stubs that lose, refuse and hang as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_cluster import PDS, Heard, StubCluster, regions_of

from drillyard.canaries import keys_in
from drillyard.flows import measure
from drillyard.flows.measure import Order, OutageReport, lines_of
from drillyard.flows.operate import Operation
from drillyard.flows.report import Ending
from drillyard.observation import PdWord
from drillyard.runtimes.abilities import Misuse, NoSuchMember, RuntimeRefusal
from drillyard.waiting import Clock, Deadline, until
from drillyard.wire import errorpb
from drillyard.wire.keys import PROBE_PREFIX

Strike = Callable[[StubCluster], None]
NOT_LEADER = errorpb.Error(message="peer is not leader", not_leader=errorpb.NotLeader(region_id=2))
PATIENCE_S = 60.0
AWAY_S = 0.3


def order(member: str = "tikv0", operation: Operation = Operation.KILL, timeout_s: float = PATIENCE_S) -> Order:
    return Order("stub", operation, member, timeout_s)


def measured(
    directory: Path, strike: Strike, wanted: Order | None = None, prepare: Strike = lambda stub: None
) -> tuple[OutageReport, StubCluster]:
    """One measurement of a stub cluster; `strike` is what the operation does to it."""

    async def run() -> tuple[OutageReport, StubCluster]:
        async with StubCluster(directory) as stub:
            prepare(stub)
            stub.runtime.at_operation = lambda member: strike(stub)
            return await measure.measure(stub.scope(), wanted or order()), stub

    return asyncio.run(run())


def refuse_for_a_while(stub: StubCluster) -> None:
    stub.world.refusal = NOT_LEADER
    asyncio.get_running_loop().call_later(AWAY_S, setattr, stub.world, "refusal", None)


def test_an_outage_with_nothing_lost_and_nothing_left_behind(tmp_path: Path) -> None:
    report, stub = measured(tmp_path, refuse_for_a_while)
    (one,) = report.regions
    assert stub.runtime.operated == [("kill", "tikv0")]
    assert one.gap is not None
    assert one.gap.length_s >= AWAY_S
    assert (one.region_id, one.lost, one.is_served, report.ending, report.trouble) == (2, 0, True, Ending.OK, None)
    assert (stub.world.keys, report.keys_left, report.left_out) == ({}, (), 0)
    told = lines_of(report)
    assert told[0].startswith("tikv0 killed at ")
    assert told[1].startswith("region 2: last good write ")
    assert f"outage {one.gap.length_s:.3f} s; acknowledged writes lost: 0" in told[1]


def test_acknowledged_writes_that_are_gone_are_counted_though_later_ones_hide_them(tmp_path: Path) -> None:
    def lose_three(stub: StubCluster) -> None:
        refuse_for_a_while(stub)
        key = next(key for key in stub.world.keys if key.endswith(b"/0"))
        stub.world.keys[key] = b"%d" % (int(stub.world.keys[key]) - 3)

    report, _ = measured(tmp_path, lose_three)
    assert [one.lost for one in report.regions] == [3]
    assert report.regions[0].is_served
    assert report.ending is Ending.WRITES_LOST
    assert report.trouble is not None
    assert report.trouble.text == "3 acknowledged writes are lost"


def test_a_member_that_nobody_misses(tmp_path: Path) -> None:
    report, _ = measured(tmp_path, lambda stub: None, order("tikv2"))
    (one,) = report.regions
    assert (one.gap, one.noticed, one.moved, one.lost, report.ending) == (None, None, None, 0, Ending.OK)
    assert "region 2: no outage seen: longest gap " in lines_of(report)[1]


def test_not_served_again_is_a_result(tmp_path: Path) -> None:
    report, stub = measured(tmp_path, lambda stub: setattr(stub.world, "refusal", NOT_LEADER), order(timeout_s=2.0))
    (one,) = report.regions
    assert (one.is_served, one.lost, report.ending) == (False, None, Ending.NOT_READY)
    assert report.trouble is not None
    assert report.trouble.text == "not served again within 2 s: region 2"
    assert "not served again within " in lines_of(report)[1]
    assert stub.world.keys == {}


def test_a_leader_that_hangs_hides_nothing(tmp_path: Path) -> None:
    report, _ = measured(tmp_path, lambda stub: stub.world.hanging.add("tikv0"), order(operation=Operation.PAUSE))
    (one,) = report.regions
    assert one.gap is not None
    assert (one.gap.left, one.gap.came in ("tikv1", "tikv2"), one.is_served, one.lost) == ("tikv0", True, True, 0)
    assert one.moved is not None


def test_timestamps_are_measured_when_the_member_is_a_pd(tmp_path: Path) -> None:
    def move_pd(stub: StubCluster) -> None:
        stub.world.leader = dict.fromkeys(PDS, "pd1")
        stub.world.hanging.add("pd0")

    def many(stub: StubCluster) -> None:
        stub.world.timestamps = [(500, number) for number in range(1, 100_000)]

    report, _ = measured(tmp_path, move_pd, order("pd0", Operation.PAUSE), many)
    assert report.timestamps is not None
    assert (report.timestamps.lost, report.ending) == (0, Ending.OK)
    for one in report.outages:
        assert one.noticed is not None
        assert (one.noticed.word, one.noticed.after) == (PdWord.PD_LEADER, "pd1")


def test_timestamps_that_go_back_are_told(tmp_path: Path) -> None:
    def back(stub: StubCluster) -> None:
        stub.world.timestamps = [(400, 1), *((600, number) for number in range(1, 100_000))]

    def many(stub: StubCluster) -> None:
        stub.world.timestamps = [(500, number) for number in range(1, 100_000)]

    report, _ = measured(tmp_path, back, order("pd0"), many)
    assert report.timestamps is not None
    assert (report.timestamps.lost, report.ending) == (1, Ending.WRITES_LOST)
    assert report.trouble is not None
    assert report.trouble.text == "1 timestamp went back"


def test_many_regions_are_measured_in_part_and_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST_REGIONS", 8)
    seen: set[bytes] = set()

    def prepare(stub: StubCluster) -> None:
        stub.world.regions = 10

    report, stub = measured(tmp_path, lambda stub: seen.update(stub.world.keys), prepare=prepare)
    assert [one.region_id for one in report.regions] == [*range(2, 10)]
    assert report.left_out == 2
    assert "2 of 10 regions were not measured" in lines_of(report)
    assert report.pace_s > measure.PACE_S, "all together write no more often than few"
    assert len({key for key in seen if key.endswith(b"/0")}) == 8, "each has a key of its own"
    assert stub.world.keys == {}


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda stub: setattr(stub.world, "refusal", NOT_LEADER), "not served: region 2"),
        (lambda stub: stub.world.leader.update(dict.fromkeys(PDS, "")), "no PD member names a leader"),
    ],
    ids=["a region that refuses", "no PD leader"],
)
def test_nothing_is_done_to_what_is_not_served_before(tmp_path: Path, prepare: Strike, why: str) -> None:
    struck: list[StubCluster] = []
    with pytest.raises(RuntimeRefusal, match=f"nothing was done to tikv0.*{why}"):
        measured(tmp_path, struck.append, order(timeout_s=1.0), prepare)
    assert struck == []


def test_an_interruption_tells_what_is_known_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async def run() -> None:
        async with StubCluster(tmp_path) as stub:
            stub.runtime.at_operation = lambda member: setattr(stub.world, "refusal", NOT_LEADER)
            heard = Heard()
            task = asyncio.create_task(measure.measure(stub.scope(heard), order()))

            async def is_told() -> bool | None:
                return any(entry.text == "not served: region 2" for entry in heard.entries) or None

            assert await until(is_told, Deadline.after(Clock(), PATIENCE_S))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert heard.trouble is not None
            assert heard.trouble.text.startswith("interrupted; tikv0 is killed, and ")
            assert any("region 2: last good write " in line for line in heard.trouble.lacks)
            assert stub.world.keys == {}

    asyncio.run(run())


def test_an_interruption_before_the_operation_does_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with StubCluster(tmp_path) as stub:
            stub.world.refusal = NOT_LEADER  # so that it never gets warm
            heard = Heard()
            task = asyncio.create_task(measure.measure(stub.scope(heard), order()))

            async def writes() -> bool | None:
                return bool(stub.world.puts) or None

            assert await until(writes, Deadline.after(Clock(), PATIENCE_S), poll_s=0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert heard.trouble is not None
            assert heard.trouble.text == "interrupted before tikv0 was killed: nothing was done"
            assert stub.runtime.operated == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("wanted", "error", "told"),
    [
        (order(operation=Operation.START), Misuse, "start takes no service away"),
        (order(timeout_s=0), Misuse, "no time to wait"),
        (order("tikv9"), NoSuchMember, "no member 'tikv9'"),
    ],
)
def test_misuse(tmp_path: Path, wanted: Order, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        measured(tmp_path, lambda stub: None, wanted)


NONCE = b"12345678"


@pytest.mark.parametrize(
    ("start", "end", "stem"),
    [
        (b"", b"", PROBE_PREFIX),
        (b"k", b"", PROBE_PREFIX),
        (PROBE_PREFIX, PROBE_PREFIX + b"\xff", PROBE_PREFIX),
        (b"", b"k", b"\x00drillyard/probe/"),
        (b"k", b"l", b"k\x00drillyard/probe/"),
        (PROBE_PREFIX + b"\xff", b"", PROBE_PREFIX + b"\xff\x00drillyard/probe/"),
        (b"k", b"k\x00", None),
    ],
)
def test_keys_lie_in_their_region(start: bytes, end: bytes, stem: bytes | None) -> None:
    keys = keys_in(start, end, NONCE)
    assert keys == (None if stem is None else (stem + NONCE + b"/0", stem + NONCE + b"/1"))


def test_the_stubs_regions_tile_the_key_space() -> None:
    regions = regions_of(3)
    assert [(one.id, one.start_key, one.end_key) for one in regions] == [
        (2, b"", b"0001"),
        (3, b"0001", b"0002"),
        (4, b"0002", b""),
    ]
