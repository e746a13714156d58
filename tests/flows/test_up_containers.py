"""Waiting for a start on a runtime that holds stores back and has a restart policy: what is started when, what is
forgiven, and what ends the wait with which cause."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_cluster import TIKVS, Heard, StubCluster

from drillyard.flows.report import Ending, Picture, Report, Trouble
from drillyard.flows.up import UpRequest, up
from drillyard.judge.readiness import Gate, Status
from drillyard.runtimes.abilities import Exit
from drillyard.runtimes.docker import DockerRefused

RACE = (
    '[FATAL] [lib.rs:465] ["failed to get timestamp from PD: '
    'Other(\\"[components/pd_client/src/tso.rs:100]: Timestamp channel is dropped\\")"]'
)
FILES = (
    '[FATAL] ["the maximum number of open file descriptors is too small, got 20000, expect greater or equal to 82920"]'
)
ONCE_MORE = "asked for a timestamp before PD could grant one, and gave up; it is started once more"
Set = Callable[[StubCluster], None]


def bring_up(directory: Path, set_up: Set, heard: Heard | None = None) -> tuple[Report, StubCluster]:
    """`up` on a stub cluster whose members run or are held back as `set_up` has it."""

    async def run() -> tuple[Report, StubCluster]:
        async with StubCluster(directory) as stub:
            set_up(stub)
            return await up(stub.scope(heard), UpRequest("stub", timeout_s=60)), stub

    return asyncio.run(run())


def end(stub: StubCluster, member: str, words: str = "", *, code: int = 1) -> None:
    """The member says its last words and ends by itself."""
    say(stub, member, words)
    stub.runtime.end(member, Exit(code, None, False, time.time()))


def end_and_run_again(stub: StubCluster, member: str, words: str = "") -> None:
    """The same, and its restart policy is quicker than anybody who looks."""
    say(stub, member, words)
    stub.runtime.change(member, exit=Exit(1, None, False, time.time(), "restarted by its policy"), restarts=1, starts=2)


def say(stub: StubCluster, member: str, words: str) -> None:
    with (stub.directory / "logs" / f"{member}.log").open("a") as log:
        log.write(f"{words}\n")


def trouble_of(report: Report) -> Trouble:
    assert report.trouble is not None
    return report.trouble


def told(report: Report, words: str) -> list[str]:
    return [entry.text for entry in report.timeline if words in entry.text]


class Acting(Heard):
    """Does one thing after each picture, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], object]] = []

    def see(self, picture: Picture) -> None:
        super().see(picture)
        if self.steps:
            self.steps.pop(0)()


# --- held back -------------------------------------------------------------------------------------------------------


def test_members_that_are_held_back_are_started_once_and_after_the_timestamps_gate(tmp_path: Path) -> None:
    heard = Heard()
    before: list[list[Status]] = []

    def set_up(stub: StubCluster) -> None:
        stub.world.timestamps[:0] = [(500, 9), (500, 8), (500, 9), (500, 9)]  # two looks at which PD grants none
        stub.runtime.hold_back(*TIKVS)
        stub.runtime.after_start = lambda member: before.append(
            [picture.readiness.of(Gate.TIMESTAMPS).status for picture in heard.pictures]
        )

    report, stub = bring_up(tmp_path, set_up, heard)
    assert report.ending is Ending.OK
    assert stub.runtime.rest_starts == 1
    assert len(before) == 3, "each of them"
    assert before[0][:3] == [Status.VIOLATED, Status.VIOLATED, Status.HOLDS]
    first = heard.pictures[0].readiness.of(Gate.PROCESSES)
    assert first.status is Status.UNKNOWN
    assert first.members == TIKVS
    opened = [entry.gate for entry in report.timeline if entry.gate]
    assert opened.index("timestamps") < opened.index("processes") < opened.index("stores-up")


def test_nobody_is_started_while_pd_has_no_quorum(tmp_path: Path) -> None:
    heard = Acting()
    starts: list[int] = []

    def set_up(stub: StubCluster) -> None:
        stub.runtime.hold_back(*TIKVS)
        stub.world.leader = dict.fromkeys(stub.world.leader, "")
        heard.steps = [
            lambda: starts.append(stub.runtime.rest_starts),
            lambda: stub.world.leader.update(dict.fromkeys(stub.world.leader, "pd0")),
        ]

    report, stub = bring_up(tmp_path, set_up, heard)
    assert report.ending is Ending.OK
    assert starts == [0]
    assert stub.runtime.rest_starts == 1


def test_where_nothing_is_held_back_nothing_is_started(tmp_path: Path) -> None:
    report, stub = bring_up(tmp_path, lambda stub: None)
    assert report.ending is Ending.OK
    assert (stub.runtime.rest_starts, stub.runtime.started_again) == (0, [])


def test_a_refused_start_of_the_rest_ends_the_wait_and_saves_evidence(tmp_path: Path) -> None:
    heard = Heard()
    mend = "raise the daemon's own limit"

    def set_up(stub: StubCluster) -> None:
        stub.runtime.hold_back(*TIKVS)
        stub.runtime.rest_refusal = DockerRefused("the daemon may not give so many open files", mend)

    with pytest.raises(DockerRefused, match="the daemon may not give so many open files; raise the daemon's own limit"):
        bring_up(tmp_path, set_up, heard)
    trouble = heard.trouble
    assert trouble is not None
    assert trouble.text == (
        "stub: the daemon may not give so many open files; raise the daemon's own limit; the members go on as they are"
    )
    assert trouble.is_saved
    assert trouble.state.startswith("3 of 6 members run")
    bundle = Path(trouble.evidence)
    assert bundle.name.endswith("-cut-short")
    assert mend in (bundle / "timeline.txt").read_text()
    assert "Welcome, I am pd0" in (bundle / "logs" / "pd0.log").read_text()
    assert json.loads((bundle / "verdicts.json").read_text())


# --- forgiven --------------------------------------------------------------------------------------------------------


def falling(stub: StubCluster, member: str, times: int, how: Callable[[StubCluster, str, str], None]) -> None:
    """The stores are held back; this member loses the race after each of its first starts."""
    stub.runtime.hold_back(*TIKVS)
    left = [times]

    def fall(started: str) -> None:
        if started == member and left[0]:
            left[0] -= 1
            how(stub, member, RACE)

    stub.runtime.after_start = fall


def test_a_store_that_lost_the_race_for_a_timestamp_is_started_once_more(tmp_path: Path) -> None:
    report, stub = bring_up(tmp_path, lambda stub: falling(stub, "tikv1", 1, end))
    assert report.ending is Ending.OK
    assert report.trouble is None
    assert stub.runtime.started_again == ["tikv1"]
    assert told(report, "once more") == [f"tikv1 {ONCE_MORE}"]
    assert told(report, "tikv1 ended: exit code 1, unexpected")


def test_two_stores_that_lost_the_race_are_forgiven_both(tmp_path: Path) -> None:
    def set_up(stub: StubCluster) -> None:
        stub.runtime.hold_back(*TIKVS)
        fallen: set[str] = set()

        def fall(started: str) -> None:
            if started != "tikv0" and started not in fallen:
                fallen.add(started)
                end(stub, started, RACE)

        stub.runtime.after_start = fall

    report, stub = bring_up(tmp_path, set_up)
    assert report.ending is Ending.OK
    assert sorted(stub.runtime.started_again) == ["tikv1", "tikv2"]
    assert sorted(told(report, "once more")) == [f"tikv1 {ONCE_MORE}", f"tikv2 {ONCE_MORE}"]


def test_a_lost_race_that_a_policy_made_good_is_forgiven_without_a_start(tmp_path: Path) -> None:
    report, stub = bring_up(tmp_path, lambda stub: falling(stub, "tikv1", 1, end_and_run_again))
    assert report.ending is Ending.OK
    assert stub.runtime.started_again == []
    assert told(report, "once more") == [f"tikv1 {ONCE_MORE}"]
    processes = next(row for row in report.gates if row.gate == Gate.PROCESSES)
    assert processes.text == "6 of 6 members run; tikv1 was restarted once by its policy"


def test_a_second_lost_race_ends_the_wait(tmp_path: Path) -> None:
    report, stub = bring_up(tmp_path, lambda stub: falling(stub, "tikv1", 2, end))
    assert report.ending is Ending.MEMBER_EXITED
    assert stub.runtime.started_again == ["tikv1"]
    assert told(report, "once more") == [f"tikv1 {ONCE_MORE}"]
    trouble = trouble_of(report)
    assert trouble.culprit == "tikv1"
    assert trouble.cause is not None
    assert trouble.cause.name == "timestamp-race"
    assert trouble.is_saved


@pytest.mark.parametrize("how", [end, end_and_run_again], ids=["it is down", "it runs again"])
def test_the_end_of_a_pd_is_never_forgiven(tmp_path: Path, how: Callable[[StubCluster, str, str], None]) -> None:
    heard = Acting()

    def set_up(stub: StubCluster) -> None:
        stub.runtime.hold_back(*TIKVS)
        stub.world.timestamps[:0] = [(500, 9), (500, 8)]
        heard.steps = [lambda: how(stub, "pd1", RACE)]

    report, stub = bring_up(tmp_path, set_up, heard)
    assert report.ending is Ending.MEMBER_EXITED
    assert stub.runtime.started_again == []
    assert told(report, "once more") == []
    assert trouble_of(report).culprit == "pd1"


def test_another_end_beside_a_lost_race_is_not_forgiven(tmp_path: Path) -> None:
    def set_up(stub: StubCluster) -> None:
        stub.runtime.hold_back(*TIKVS)

        def fall(started: str) -> None:
            if started == "tikv2":  # the last of them, so that both ends are in one picture
                end(stub, "tikv1", RACE)
                end(stub, "tikv2", FILES)

        stub.runtime.after_start = fall

    report, stub = bring_up(tmp_path, set_up)
    assert report.ending is Ending.MEMBER_EXITED
    assert stub.runtime.started_again == []


# --- not forgiven ----------------------------------------------------------------------------------------------------


def test_an_end_that_a_policy_made_good_ends_the_wait_all_the_same(tmp_path: Path) -> None:
    heard = Acting()

    def set_up(stub: StubCluster) -> None:
        stub.world.checks = {"pending-peer": 1}  # not ready, so that there is a wait
        heard.steps = [lambda: end_and_run_again(stub, "tikv1")]

    report, _ = bring_up(tmp_path, set_up, heard)
    assert report.ending is Ending.MEMBER_EXITED
    trouble = trouble_of(report)
    assert trouble.gate == "processes"
    assert trouble.lacks == ("tikv1 exited with code 1, and runs again",)
    assert trouble.text.startswith("stub lost tikv1 (exit code 1, unexpected, restarted by its policy): gate processes")
    assert trouble.state == "6 of 6 members run"
    assert trouble.cause is not None
    assert (trouble.cause.name, trouble.cause.members) == ("unknown", ("tikv1",)), "nobody guesses"


def test_an_end_before_the_wait_that_was_made_good_is_history(tmp_path: Path) -> None:
    old = Exit(1, None, False, time.time() - 60, "restarted by its policy")
    report, _ = bring_up(tmp_path, lambda stub: stub.runtime.change("tikv1", exit=old, restarts=1))
    assert report.ending is Ending.OK


CAUSES: list[tuple[str, str, Exit, str]] = [
    ("open files", FILES, Exit(1, None, False, 0.0), "open-files"),
    ("out of memory", "", Exit(None, 9, False, 0.0, "", True), "out-of-memory"),
    ("docker kill", "", Exit(None, 9, False, 0.0, "signal 9 through Docker"), "killed"),
    ("a crash", "", Exit(None, 11, False, 0.0), "crashed"),
    ("could not be started", "", Exit(127, None, False, 0.0, "could not be started: exec: no such file"), "cannot-run"),
]


@pytest.mark.parametrize(("words", "how", "name"), [case[1:] for case in CAUSES], ids=[case[0] for case in CAUSES])
def test_the_cause_of_an_end_is_in_the_trouble(tmp_path: Path, words: str, how: Exit, name: str) -> None:
    def set_up(stub: StubCluster) -> None:
        stub.runtime.hold_back(*TIKVS)

        def fall(started: str) -> None:
            if started == "tikv2":
                say(stub, "tikv2", words)
                now = Exit(how.code, how.signal, False, time.time(), how.note, how.is_oom)
                stub.runtime.end("tikv2", now)

        stub.runtime.after_start = fall

    report, stub = bring_up(tmp_path, set_up)
    assert report.ending is Ending.MEMBER_EXITED
    assert stub.runtime.started_again == []
    trouble = trouble_of(report)
    assert trouble.culprit == "tikv2"
    assert trouble.cause is not None
    assert trouble.cause.name == name
    kept = json.loads((Path(trouble.evidence) / "report.json").read_text())
    assert kept["trouble"]["cause"]["name"] == name
