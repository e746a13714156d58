"""Looking at and waiting for a cluster over sockets: what stubs say, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_cluster import CLUSTER, PDS, Heard, StubCluster, World

from drillyard.flows import evidence, lookout
from drillyard.flows.report import Ending, MemberRow, Picture, Report, proven_words
from drillyard.flows.up import verify
from drillyard.judge.readiness import Gate, Status
from drillyard.runtimes.abilities import Exit
from drillyard.wire import errorpb

Change = Callable[[World], object]


def look(directory: Path, change: Change = lambda world: None) -> Report:
    """One verification of a stub cluster, after one change to it."""

    async def run() -> Report:
        async with StubCluster(directory) as stub:
            change(stub.world)
            with pytest.MonkeyPatch.context() as monkeypatch:
                if stub.world.hanging:
                    monkeypatch.setattr(lookout, "ONE_LOOK_PATIENCE_S", 2.0)
                    monkeypatch.setattr(evidence, "VIEW_PATIENCE_S", 1.0)
                return await verify(stub.scope(), "stub")

    return asyncio.run(run())


def gate_of(report: Report, gate: Gate) -> tuple[str, str]:
    row = next(row for row in report.gates if row.gate == gate)
    return row.status, row.text


def test_a_healthy_cluster_is_proven_with_its_kinds_and_versions(tmp_path: Path) -> None:
    report = look(tmp_path)
    assert [row.status for row in report.gates] == [Status.HOLDS] * 6, report.gates
    assert report.ending is Ending.OK
    assert report.trouble is None
    assert report.proven == "emulated PD 8.1.0, emulated TiKV 8.1.0"
    assert report.cluster_id == CLUSTER
    assert report.pd_leader == "pd0"


def test_a_real_pd_is_told_from_an_emulated_one(tmp_path: Path) -> None:
    report = look(tmp_path, lambda world: setattr(world, "pd_hash", "7179657d129b"))
    assert report.proven == "real PD 8.1.0, emulated TiKV 8.1.0"
    assert {row.name: row.kind for row in report.members}["pd1"] == "real"


def test_a_version_that_nobody_tells_closes_no_gate(tmp_path: Path) -> None:
    report = look(tmp_path, body("members", 500, b"redirect failed"))
    assert report.is_ready
    assert report.proven == "emulated PD, emulated TiKV 8.1.0", "the kind is then what was started"


def test_the_data_path_leaves_no_key_behind(tmp_path: Path) -> None:
    async def run() -> World:
        async with StubCluster(tmp_path) as stub:
            await verify(stub.scope(), "stub")
            return stub.world

    world = asyncio.run(run())
    assert world.puts == 1
    assert world.keys == {}


def body(path: str, status: int, text: bytes) -> Change:
    return lambda world: world.bodies.__setitem__(f"/pd/api/v1/{path}", (status, text))


NOT_LEADER = errorpb.Error(message="peer is not leader", not_leader=errorpb.NotLeader(region_id=2))

LIES: list[tuple[str, Change, Gate, Status, str]] = [
    (
        "200 with a false in the body",
        lambda world: world.health.update(pd2=False),
        Gate.PD_QUORUM,
        Status.VIOLATED,
        "pd2 counts as not healthy in the health list from pd0",
    ),
    (
        "a PD without quorum",
        lambda world: world.own_health.update(pd1=False),
        Gate.PD_QUORUM,
        Status.VIOLATED,
        "pd1 says that it is not healthy",
    ),
    (
        "503 while there is no leader",
        body("health", 503, b"no leader"),
        Gate.PD_QUORUM,
        Status.UNKNOWN,
        "answered HTTP 503: no leader",
    ),
    (
        "forwarding fails",
        body("stores", 500, b"[PD:apiutil:ErrRedirect]redirect failed"),
        Gate.STORES_UP,
        Status.UNKNOWN,
        "answered HTTP 500: [PD:apiutil:ErrRedirect]redirect failed",
    ),
    (
        "a foreign PD at one address",
        lambda world: world.cluster_id.update(pd1=42),
        Gate.PD_QUORUM,
        Status.VIOLATED,
        "the PD members answer for different clusters",
    ),
    (
        "split brain",
        lambda world: world.leader.update(pd2="pd1"),
        Gate.PD_QUORUM,
        Status.VIOLATED,
        "name different leaders",
    ),
    (
        "a PD that hangs",
        lambda world: world.hanging.add("pd1"),
        Gate.PD_QUORUM,
        Status.UNKNOWN,
        "pd1 gave no answer (pd-members, pd-self, pd-health)",
    ),
    (
        "a TiKV that hangs but is still Up for PD",
        lambda world: world.hanging.add("tikv2"),
        Gate.STORES_UP,
        Status.UNKNOWN,
        "tikv2 gave no answer (store-self)",
    ),
    (
        "timestamps that go back",
        lambda world: world.timestamps.__setitem__(slice(None), [(500, 9), (500, 8)]),
        Gate.TIMESTAMPS,
        Status.VIOLATED,
        "timestamps do not increase",
    ),
    (
        "a store missing",
        lambda world: world.store_state.pop("tikv1"),
        Gate.STORES_UP,
        Status.VIOLATED,
        "tikv1 is not registered with PD",
    ),
    (
        "a stale heartbeat",
        lambda world: world.heartbeat_age_s.update(tikv0=12.0),
        Gate.STORES_UP,
        Status.VIOLATED,
        "tikv0 is Up in PD's list, but its last heartbeat was 12",
    ),
    (
        "a heartbeat of the run before",
        lambda world: world.heartbeat_age_s.update(tikv0=60.0),
        Gate.STORES_UP,
        Status.VIOLATED,
        "tikv0 is Up in PD's list, but has sent no heartbeat since it was started",
    ),
    ("no JSON", body("stores", 200, b"<html>"), Gate.STORES_UP, Status.UNKNOWN, "the answer is no JSON: '<html>'"),
    ("other JSON", body("stores", 200, b"[]"), Gate.STORES_UP, Status.UNKNOWN, "the answer has no 'stores'"),
    (
        "words for numbers",
        body("regions/count", 200, b'{"count": "many"}'),
        Gate.REPLICATED,
        Status.UNKNOWN,
        "'many' where a number belongs",
    ),
    (
        "a region short of a peer",
        lambda world: world.checks.update({"miss-peer": 1}),
        Gate.REPLICATED,
        Status.VIOLATED,
        "1 region (2) with too few replicas",
    ),
    (
        "replicas that do not add up",
        lambda world: setattr(world, "max_replicas", 5),
        Gate.REPLICATED,
        Status.VIOLATED,
        "1 region with 3 of 5 replicas",
    ),
    (
        "a store that refuses",
        lambda world: setattr(world, "refusal", NOT_LEADER),
        Gate.DATA_PATH,
        Status.VIOLATED,
        "write of a key in region 2 at tikv0: not leader: peer is not leader",
    ),
    (
        "a store that loses what it acknowledged",
        lambda world: setattr(world, "loses_writes", True),
        Gate.DATA_PATH,
        Status.VIOLATED,
        "read back of a key in region 2 at tikv0: wanted b'1', got None",
    ),
]


@pytest.mark.parametrize(("change", "gate", "status", "words"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_lie_closes_its_gate_in_plain_words(
    tmp_path: Path, change: Change, gate: Gate, status: Status, words: str
) -> None:
    report = look(tmp_path, change)
    told, text = gate_of(report, gate)
    assert told == status, report.gates
    assert words in text
    assert report.ending is Ending.NOT_READY
    assert report.trouble is not None
    assert report.trouble.next_command.startswith("drillyard ")


def test_a_member_whose_ports_are_closed_is_unknown_not_broken(tmp_path: Path) -> None:
    async def run() -> Report:
        async with StubCluster(tmp_path) as stub:
            await stub.cut("pd2")
            return await verify(stub.scope(), "stub")

    status, text = gate_of(asyncio.run(run()), Gate.PD_QUORUM)
    assert status == Status.UNKNOWN
    assert "pd2 gave no answer" in text
    assert "nothing listens at" in text


@pytest.mark.parametrize(("member", "gate"), [("pd2", Gate.PD_QUORUM), ("tikv1", Gate.STORES_UP)])
def test_whoever_answers_where_a_member_does_not_run_is_not_taken_for_it(
    tmp_path: Path, member: str, gate: Gate
) -> None:
    async def run() -> Report:
        async with StubCluster(tmp_path) as stub:  # its ports stay open
            stub.runtime.end(member, Exit(None, 9, True, 0.0))
            return await verify(stub.scope(), "stub")

    status, text = gate_of(asyncio.run(run()), gate)
    assert status == Status.UNKNOWN
    assert f"{member} gave no answer" in text
    assert "its process does not run" in text


def test_the_cluster_id_is_remembered_and_a_foreign_cluster_told(tmp_path: Path) -> None:
    assert look(tmp_path).is_ready

    def another(world: World) -> None:
        world.cluster_id.update(dict.fromkeys(PDS, 42))

    status, text = gate_of(look(tmp_path, another), Gate.PD_QUORUM)
    assert status == Status.VIOLATED
    assert f"pd0 answers for cluster 42, ours is {CLUSTER}: this is a foreign cluster" in text


# --- waiting ---------------------------------------------------------------------------------------------------------


class Healer(Heard):
    """Heals one thing a picture, and remembers the first closed gate of each."""

    def __init__(self, steps: list[Callable[[], object]]) -> None:
        super().__init__()
        self._steps = steps
        self.closed: list[str] = []

    def see(self, picture: Picture) -> None:
        super().see(picture)
        closed = picture.readiness.first_closed
        self.closed.append(closed.gate.value if closed else "")
        if self._steps:
            self._steps.pop(0)()


def test_a_wait_sees_the_gates_open_in_order(tmp_path: Path) -> None:
    async def run() -> tuple[Report, Healer]:
        async with StubCluster(tmp_path) as stub:
            world = stub.world
            world.leader = dict.fromkeys(PDS, "")
            world.store_state = {}
            world.checks = {"pending-peer": 1}
            healer = Healer(
                [
                    lambda: world.leader.update(dict.fromkeys(PDS, "pd0")),
                    lambda: world.store_state.update(tikv0="Up", tikv1="Up", tikv2="Up"),
                    lambda: world.checks.clear(),
                ]
            )
            return await verify(stub.scope(healer), "stub", wait_s=60), healer

    report, healer = asyncio.run(run())
    assert report.ending is Ending.OK
    assert healer.closed == ["pd-quorum", "stores-up", "replicated", ""]
    assert all(row.open_after_s is not None for row in report.gates)
    opened = [entry.gate for entry in report.timeline if entry.gate]
    assert opened == [gate.value for gate in Gate]


def test_what_is_behind_a_closed_gate_is_not_asked_while_waiting(tmp_path: Path) -> None:
    async def run() -> Picture:
        async with StubCluster(tmp_path) as stub:
            stub.world.checks = {"miss-peer": 1}
            heard = Healer([lambda: stub.world.checks.clear()])
            await verify(stub.scope(heard), "stub", wait_s=60)
            assert stub.world.puts == 1, "no key was written while a gate before it was closed"
            return heard.pictures[0]

    first = asyncio.run(run())
    assert first.readiness.of(Gate.DATA_PATH).status is Status.UNKNOWN
    assert first.readiness.of(Gate.DATA_PATH).text == "not known (data-path): not asked yet"


def test_an_exit_ends_the_wait_at_once_and_leaves_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while another member hangs: the event cuts the look short."""
    monkeypatch.setattr(evidence, "VIEW_PATIENCE_S", 2.0)

    async def run() -> tuple[Report, StubCluster]:
        async with StubCluster(tmp_path) as stub:
            stub.world.hanging = {"pd1", "pd2"}
            waiting = asyncio.create_task(verify(stub.scope(), "stub", wait_s=3600))
            heard = asyncio.get_running_loop().time() + 60
            while not stub.runtime._events:
                assert asyncio.get_running_loop().time() < heard
                await asyncio.sleep(0.001)
            stub.runtime.end("tikv1", Exit(7, None, asked=False, at=time.time()))
            return await waiting, stub

    report, _ = asyncio.run(run())
    trouble = report.trouble
    assert report.ending is Ending.MEMBER_EXITED
    assert trouble is not None
    assert trouble.text == (
        "stub lost tikv1 (exit code 7, unexpected): gate processes is closed: tikv1 exited with code 7"
    )
    assert trouble.culprit == "tikv1"
    assert trouble.log_lines == ('[INFO] ["Welcome, I am tikv1"]',)
    assert trouble.next_command == "drillyard logs tikv1 --name stub"
    assert "5 of 6 members run (tikv1 exited)" in trouble.state
    bundle = Path(trouble.evidence)
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o700
    members = json.loads((bundle / "members.json").read_text())
    assert next(one for one in members if one["name"] == "tikv1")["exit"]["code"] == 7
    assert (bundle / "logs" / "tikv1.log").read_text() == '[INFO] ["Welcome, I am tikv1"]\n'
    assert "tikv1 ended: exit code 7, unexpected" in (bundle / "timeline.txt").read_text()
    assert "GET /pd/api/v1/stores\nHTTP 200" in (bundle / "pd" / "pd0.txt").read_text()
    assert "no answer: " in (bundle / "pd" / "pd1.txt").read_text()
    for path in bundle.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_when_nothing_runs_one_sentence_says_so_and_who_ended_unasked(tmp_path: Path) -> None:
    async def run() -> Report:
        async with StubCluster(tmp_path) as stub:
            for member in (await stub.runtime.deployment("stub")).members:
                asked = member.name != "tikv1"
                stub.runtime.end(member.name, Exit(0 if asked else 7, None, asked, time.time()))
            return await verify(stub.scope(), "stub")

    trouble = asyncio.run(run()).trouble
    assert trouble is not None
    assert trouble.is_down
    assert trouble.text == "stub is down: none of its members runs (tikv1 ended: exit code 7, unexpected)"
    assert trouble.next_command == "drillyard up --name stub"
    assert len(trouble.lacks) == 6, "every fact is kept"


def test_a_deadline_names_the_first_closed_gate_the_reading_and_the_next_command(tmp_path: Path) -> None:
    async def run() -> Report:
        async with StubCluster(tmp_path) as stub:
            stub.world.store_state["tikv2"] = "Disconnected"
            return await verify(stub.scope(), "stub", wait_s=0.3)

    report = asyncio.run(run())
    trouble = report.trouble
    assert report.ending is Ending.NOT_READY
    assert trouble is not None
    words = r"stub is not ready after \d+\.\d s: gate stores-up is closed: tikv2 is Disconnected, not Up"
    assert re.match(words, trouble.text), trouble.text
    assert trouble.gate == "stores-up"
    assert trouble.last_reading.startswith("stores by pd0 at ")
    assert trouble.next_command == "drillyard logs tikv2 --name stub"
    readings = json.loads((Path(trouble.evidence) / "readings.json").read_text())
    assert {reading["probe"] for reading in readings} >= {"process", "pd-members", "stores"}


READINGS: list[tuple[Change, str]] = [
    (
        lambda world: world.health.update(pd2=False),
        r"pd-health by pd0 at [\d:.]+: pd0 healthy, pd1 healthy, pd2 not healthy",
    ),
    (
        lambda world: world.leader.update(dict.fromkeys(PDS, "")),
        r"pd-members by pd0 at [\d:.]+: leader unknown, members",
    ),
    (lambda world: world.own_health.update(pd1=False), r"pd-self by pd1 at [\d:.]+: healthy false HTTP 503"),
    (
        lambda world: world.store_state.pop("tikv1"),
        r"stores by pd0 at [\d:.]+: 127.0.0.1:\d+ Up \(1 of 1 regions led\), 127",
    ),
    (lambda world: world.checks.update({"miss-peer": 1}), r"miss-peer by pd0 at [\d:.]+: 1 \(regions 2\)"),
    (lambda world: setattr(world, "refusal", NOT_LEADER), r"data-path at [\d:.]+: write in region 2: not leader"),
    (lambda world: world.hanging.add("pd1"), r"pd-members by pd1 at [\d:.]+: no answer: .* within 2000 ms"),
]


@pytest.mark.parametrize(("change", "words"), READINGS, ids=[words.split(" at ")[0] for _, words in READINGS])
def test_the_last_reading_is_told_in_words(tmp_path: Path, change: Change, words: str) -> None:
    trouble = look(tmp_path, change).trouble
    assert trouble is not None
    assert re.match(words, trouble.last_reading), trouble.last_reading


def test_an_interruption_saves_evidence_and_stays_an_interruption(tmp_path: Path) -> None:
    heard = Heard()

    async def run() -> None:
        async with StubCluster(tmp_path) as stub:
            stub.world.checks = {"miss-peer": 1}
            waiting = asyncio.create_task(verify(stub.scope(heard), "stub", wait_s=3600))
            deadline = asyncio.get_running_loop().time() + 60
            while not heard.pictures:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.001)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(run())
    assert heard.trouble is not None
    assert heard.trouble.ending is Ending.INTERRUPTED
    assert "6 of 6 members run" in heard.trouble.state
    assert (Path(heard.trouble.evidence) / "readings.json").exists()


def test_bundles_of_one_second_do_not_overwrite_each_other(tmp_path: Path) -> None:
    async def run() -> list[Path]:
        async with StubCluster(tmp_path) as stub:
            scene = evidence.Scene("twice", await stub.runtime.deployment("stub"))
            return [await evidence.save(stub.scope().runtime, scene, 1_000_000.5) for _ in range(2)]

    first, second = asyncio.run(run())
    assert first.name == "19700112T134640Z-twice"
    assert second.name == "19700112T134640Z-twice-2"


def test_evidence_that_cannot_be_saved_is_told_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str | bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("drillyard.flows.bundle._write", full)

    async def run() -> Report:
        async with StubCluster(tmp_path) as stub:
            stub.world.checks = {"miss-peer": 1}
            return await verify(stub.scope(), "stub", wait_s=0.1)

    report = asyncio.run(run())
    assert report.trouble is not None
    assert report.trouble.evidence == "evidence could not be saved: No space left on device"
    assert report.trouble.gate == "replicated", "what it is about is told all the same"
    assert not report.may_be_removed


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ([("pd", "emulated", "8.1.0"), ("pd", "emulated", "")], "emulated PD 8.1.0"),
        ([("pd", "emulated", ""), ("pd", "emulated", "")], "emulated PD"),
        ([("tikv", "emulated", "8.1.0"), ("pd", "real", "6.6.0")], "real PD 6.6.0, emulated TiKV 8.1.0"),
        ([("pd", "real", "8.1.0"), ("pd", "real", "6.6.0")], "real PD 6.6.0, real PD 8.1.0"),
    ],
)
def test_what_runs_in_one_line(versions: list[tuple[str, str, str]], words: str) -> None:
    rows = [
        MemberRow(f"m{at}", role, kind, "running", 1, None, "", None, {}, Path(), version)
        for at, (role, kind, version) in enumerate(versions)
    ]
    assert proven_words(rows) == words
