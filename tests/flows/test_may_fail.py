"""What may still fail, asked of a stub cluster: by `status` in one bounded look, by `verify` behind the gates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_cluster import PDS, TIKVS, Heard, StubCluster, World

from drillyard.flows import inspect, lookout
from drillyard.flows.inspect import Standing
from drillyard.flows.report import Ending, Picture, Report
from drillyard.flows.up import verify
from drillyard.observation import Probe
from drillyard.runtimes.abilities import Exit, Network

Change = Callable[[StubCluster], object]
ANY_ONE = ("any 1 PD and any 1 TiKV may fail",)
REGIONS = "/pd/api/v1/regions/key"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a busy machine: who does not hang has answered by then."""
    monkeypatch.setattr(lookout, "GLANCE_S", 20.0)


def stand(directory: Path, change: Change = lambda stub: None) -> Standing:
    async def run() -> Standing:
        async with StubCluster(directory) as stub:
            change(stub)
            return await inspect.status(stub.scope(), "stub")

    return asyncio.run(run())


def text_of(told: Standing | Report) -> tuple[str, ...]:
    assert told.survivability is not None
    return told.survivability.text


def body(path: str, status: int, text: bytes) -> Change:
    return lambda stub: stub.world.bodies.__setitem__(f"/pd/api/v1/{path}", (status, text))


def end(member: str) -> Change:
    return lambda stub: stub.runtime.end(member, Exit(None, 9, False, time.time()))


CASES: list[tuple[str, Change, tuple[str, ...]]] = [
    ("healthy", lambda stub: None, ANY_ONE),
    (
        "a TiKV down",
        end("tikv1"),
        (
            "any 1 PD may fail",
            "no TiKV may fail: tikv1 is down, and losing tikv0 or tikv2 now would leave region 2 without a quorum",
        ),
    ),
    ("a PD down", end("pd1"), ("no PD may fail: pd1 is down", "any 1 TiKV may fail")),
    (
        "a replica that catches up",
        lambda stub: stub.world.pending.add(3),
        (
            "any 1 PD may fail",
            "losing tikv0 or tikv1 now would leave region 2 without a quorum (tikv2 still catches up)",
            "any 1 other TiKV may fail",
        ),
    ),
    (
        "more regions than are read",
        lambda stub: setattr(stub.world, "regions", 3000),
        (*ANY_ONE, "only the first 1024 regions were looked at"),
    ),
    (
        "an answer that makes no sense",
        body("regions/key", 200, b'{"regions": [{"id": 2, "peers": [{"role_name": "King", "id": 1, "store_id": 1}]}]}'),
        (
            "any 1 PD may fail",
            "not known how many TiKV may fail: pd0: the answer holds a peer with 'King' is not a valid PeerRole",
        ),
    ),
    (
        "no leader",
        lambda stub: stub.world.leader.update(dict.fromkeys(PDS, "")),
        ("any 1 PD may fail", "not known how many TiKV may fail: no PD member names a leader to ask"),
    ),
]


@pytest.mark.parametrize(("change", "text"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_status_and_verify_say_the_same(tmp_path: Path, change: Change, text: tuple[str, ...]) -> None:
    async def run() -> tuple[Standing, Report]:
        async with StubCluster(tmp_path) as stub:
            change(stub)
            return await inspect.status(stub.scope(), "stub"), await verify(stub.scope(), "stub")

    standing, report = asyncio.run(run())
    assert text_of(standing) == text
    assert text_of(report) == text


def test_status_tells_the_members_whoever_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    standing = stand(tmp_path, lambda stub: stub.world.hanging.update(PDS))
    assert [row.state for row in standing.members] == ["running"] * 6
    assert len(text_of(standing)) == 1
    assert text_of(standing)[0].startswith("not known: no PD answers (pd0: ")


def test_one_pd_that_hangs_hides_nothing_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "GLANCE_S", 4.0)
    first, second = text_of(stand(tmp_path, lambda stub: stub.world.hanging.add("pd2")))
    assert first.startswith("not known how many PD may fail: pd2: ")
    assert second == "any 1 TiKV may fail"


def test_containers_out_of_reach_are_not_asked_and_no_relay_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(dials: object) -> bool:
        return False

    monkeypatch.setattr(lookout, "is_reachable", never)
    (text,) = text_of(stand(tmp_path, lambda stub: setattr(stub.runtime, "network", Network("net"))))
    assert text.startswith("not known: no PD answers (pd0: not reached from here without a relay")


def test_only_status_asks_and_only_of_what_is_up(tmp_path: Path) -> None:
    async def run() -> World:
        async with StubCluster(tmp_path) as stub:
            scope = stub.scope()
            assert (await inspect.standing(scope, "stub")).survivability is None
            assert (await inspect.connection(scope, "stub")).standing.survivability is None
            for name in (*PDS, *TIKVS):
                end(name)(stub)
            assert (await inspect.status(scope, "stub")).survivability is None
            return stub.world

    assert asyncio.run(run()).asked == []


def test_while_gates_are_closed_no_region_is_asked_for(tmp_path: Path) -> None:
    class Healer(Heard):
        def __init__(self, world: World) -> None:
            super().__init__()
            self._world = world

        def see(self, picture: Picture) -> None:
            super().see(picture)
            assert (picture.observation.once(Probe.REGIONS) is not None) == picture.readiness.is_ready
            if len(self.pictures) == 3:
                self._world.checks.clear()

    async def run() -> tuple[Report, World]:
        async with StubCluster(tmp_path) as stub:
            stub.world.checks = {"miss-peer": 1}
            return await verify(stub.scope(Healer(stub.world)), "stub", wait_s=60), stub.world

    report, world = asyncio.run(run())
    assert report.ending is Ending.OK
    assert text_of(report) == ANY_ONE
    assert world.asked.count(REGIONS) == 1


def test_a_wait_that_ends_before_the_gates_are_open_has_not_asked(tmp_path: Path) -> None:
    async def run() -> tuple[Report, World]:
        async with StubCluster(tmp_path) as stub:
            stub.world.checks = {"miss-peer": 1}
            return await verify(stub.scope(), "stub", wait_s=0.1), stub.world

    report, world = asyncio.run(run())
    assert report.ending is Ending.NOT_READY
    assert report.survivability is None
    assert REGIONS not in world.asked
