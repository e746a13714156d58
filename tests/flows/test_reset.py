"""A warm reset over sockets: what is brought back, what is deleted, and what is told of one that fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_cluster import StubCluster, World

from drillyard.flows.report import Ending, ResetReport
from drillyard.flows.reset import reset
from drillyard.runtimes.abilities import Exit, RuntimeRefusal

Arrange = Callable[[StubCluster], object]
PATIENCE_S = 30.0


def after_reset(
    directory: Path, arrange: Arrange = lambda stub: None, timeout_s: float = PATIENCE_S
) -> tuple[ResetReport, World]:
    async def run() -> tuple[ResetReport, World]:
        async with StubCluster(directory) as stub:
            stub.world.keys.update({b"": b"empty key", b"a": b"1", b"\xff\xff\xff\xff": b"last"})
            arrange(stub)
            return await reset(stub.scope(), "stub", timeout_s), stub.world

    return asyncio.run(run())


def test_every_key_goes_and_every_member_comes_back(tmp_path: Path) -> None:
    def arrange(stub: StubCluster) -> None:
        stub.runtime.change("tikv1", running=False, pid=None, exit=Exit(None, 9, True, time.time() - 5))
        stub.runtime.change("pd2", paused=True)

    done, world = after_reset(tmp_path, arrange)
    assert done.ending is Ending.OK, done.report.trouble
    assert (done.started, done.resumed, done.is_data_deleted, done.evidence) == (("tikv1",), ("pd2",), True, "")
    assert {row.state for row in done.report.members} == {"running"}
    assert world.keys == {}


def test_what_is_as_new_is_left_alone(tmp_path: Path) -> None:
    done, _ = after_reset(tmp_path, lambda stub: stub.world.keys.clear())
    assert done.ending is Ending.OK
    assert (done.started, done.resumed, done.is_data_deleted) == ((), (), False)


def test_a_write_that_comes_late_is_deleted_too(tmp_path: Path) -> None:
    done, world = after_reset(tmp_path, lambda stub: setattr(stub.world, "returning_keys", 3))
    assert done.ending is Ending.OK
    assert world.keys == {}


NOT_EMPTIED = [
    (
        "a store that refuses",
        lambda stub: setattr(stub.world, "scan_refusal", "api version in the request, V1, does not match"),
        PATIENCE_S,
        "a scan of family default failed: api version in the request, V1, does not match",
    ),
    (
        "somebody who goes on writing",
        lambda stub: setattr(stub.world, "returning_keys", 1 << 60),
        2.0,
        "family default had a key again after all were deleted: somebody writes",
    ),
]


@pytest.mark.parametrize(
    ("arrange", "timeout_s", "told"), [case[1:] for case in NOT_EMPTIED], ids=[case[0] for case in NOT_EMPTIED]
)
def test_what_cannot_be_emptied_is_told_with_evidence(
    tmp_path: Path, arrange: Arrange, timeout_s: float, told: str
) -> None:
    done, _ = after_reset(tmp_path, arrange, timeout_s)
    trouble = done.report.trouble
    assert done.ending is Ending.NOT_READY
    assert trouble is not None
    assert trouble.text == f"stub could not be emptied: {told}"
    assert (Path(trouble.evidence) / "report.json").is_file()


def test_a_gate_that_stays_closed_ends_it_and_nothing_is_deleted(tmp_path: Path) -> None:
    done, world = after_reset(tmp_path, lambda stub: stub.world.health.update(pd1=False), 1.0)
    assert done.ending is Ending.NOT_READY
    assert done.report.trouble is not None
    assert done.report.trouble.gate == "pd-quorum"
    assert Path(done.report.trouble.evidence).is_dir()
    assert world.keys


def test_an_end_that_nobody_asked_for_is_kept_before_anything_is_changed(tmp_path: Path) -> None:
    def arrange(stub: StubCluster) -> None:
        stub.runtime.change("tikv2", running=False, pid=None, exit=Exit(1, None, False, time.time()))

    done, _ = after_reset(tmp_path, arrange)
    assert done.ending is Ending.OK, done.report.trouble
    assert '"code": 1' in (Path(done.evidence) / "members.json").read_text()


def test_a_member_that_was_about_to_end_is_started_once_more(tmp_path: Path) -> None:
    """Its end is seen by the wait, and so is that of one that cannot live."""

    def ends(stub: StubCluster, times: int) -> None:
        def end(_: str) -> None:
            nonlocal times
            if times:
                times -= 1
                stub.runtime.end("tikv2", Exit(1, None, False, time.time() + 0.01))

        stub.runtime.change("tikv1", running=False, pid=None, exit=Exit(None, 9, True, time.time() - 5))
        stub.runtime.after_start = end

    done, world = after_reset(tmp_path / "once", lambda stub: ends(stub, 1))
    assert done.ending is Ending.OK, done.report.trouble
    assert done.started == ("tikv1", "tikv2")
    assert '"code": 1' in (Path(done.evidence) / "members.json").read_text()
    assert world.keys == {}
    done, world = after_reset(tmp_path / "always", lambda stub: ends(stub, 100))
    assert done.ending is Ending.MEMBER_EXITED
    assert world.keys


def test_without_room_for_evidence_nothing_is_changed(tmp_path: Path) -> None:
    (tmp_path / "evidence").write_text("no directory")

    async def run() -> World:
        async with StubCluster(tmp_path) as stub:
            stub.world.keys[b"a"] = b"1"
            stub.runtime.change("tikv2", running=False, pid=None, exit=Exit(1, None, False, time.time()))
            with pytest.raises(RuntimeRefusal, match="stub is left as it is: evidence could not be saved"):
                await reset(stub.scope(), "stub")
            assert stub.runtime.started_again == []
            return stub.world

    assert asyncio.run(run()).keys
