"""What containers add to the gates: members held back, ends that a restart policy made good, stores low on space."""

from __future__ import annotations

from dataclasses import replace

import pytest
from readiness_scenes import NOW, TIKVS, healthy, saying, store_address, stores_seen

from drillyard.judge.readiness import Gate, Readiness, Status, judge
from drillyard.observation import Observation, Probe, ProcessSeen, StoreSeen, StoresSeen

SINCE = NOW - 60
GIB = 1 << 30


def waited_for(*changes: tuple[str, ProcessSeen], since: float | None = SINCE) -> Readiness:
    """The verdicts over a healthy scene in which these members' processes are seen so, during a wait since then."""
    scene = healthy()
    for member, seen in changes:
        scene = saying(Probe.PROCESS, seen, member)(scene)
    return judge(replace(scene, started=replace(scene.started, since=since)))


def running(**changes: object) -> ProcessSeen:
    return replace(ProcessSeen(True, 200, NOW - 30), **changes)  # type: ignore[arg-type]


# --- held back -------------------------------------------------------------------------------------------------------

HELD = ProcessSeen(False, held_back=True)


def test_members_that_are_held_back_are_not_known_and_not_broken() -> None:
    verdict = waited_for(*((name, HELD) for name in TIKVS)).of(Gate.PROCESSES)
    assert verdict.status is Status.UNKNOWN
    assert verdict.members == TIKVS
    assert [lack.text for lack in verdict.lacks] == [
        f"{name} is held back until PD grants timestamps" for name in TIKVS
    ]
    assert not any(lack.is_broken for lack in verdict.lacks)
    assert all(lack.reading is not None for lack in verdict.lacks)


def test_members_that_are_held_back_close_no_gate_of_pd() -> None:
    readiness = waited_for(*((name, HELD) for name in TIKVS))
    assert not readiness.is_ready
    assert readiness.of(Gate.PD_QUORUM).status is Status.HOLDS
    assert readiness.of(Gate.TIMESTAMPS).status is Status.HOLDS


def test_an_end_beside_members_that_are_held_back_is_told_first() -> None:
    verdict = waited_for(("tikv0", HELD), ("pd2", ProcessSeen(False, code=1, ended_at=NOW))).of(Gate.PROCESSES)
    assert verdict.status is Status.VIOLATED
    assert verdict.members == ("pd2", "tikv0")
    assert verdict.text == "pd2 exited with code 1; tikv0 is held back until PD grants timestamps"


# --- ends that were made good ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (running(code=1, ended_at=SINCE), "tikv1 exited with code 1, and runs again"),
        (running(code=1, ended_at=NOW - 1, restarts=1), "tikv1 exited with code 1, and runs again"),
        (running(signal=9, ended_at=NOW), "tikv1 was ended by signal 9, and runs again"),
    ],
    ids=["at once", "by its policy", "a signal"],
)
def test_an_unasked_end_during_the_wait_counts_though_it_runs_again(seen: ProcessSeen, words: str) -> None:
    verdict = waited_for(("tikv1", seen)).of(Gate.PROCESSES)
    assert verdict.status is Status.VIOLATED
    assert (verdict.text, verdict.members) == (words, ("tikv1",))
    assert verdict.lacks[0].reading is not None


@pytest.mark.parametrize(
    ("seen", "since"),
    [
        (running(code=1, ended_at=SINCE - 0.001), SINCE),
        (running(code=0, asked=True, ended_at=NOW), SINCE),
        (running(code=1, ended_at=NOW), None),
        (running(), SINCE),
        (running(code=1, ended_at=0.0), SINCE),
    ],
    ids=["before the wait", "asked for", "nobody waits", "never", "forgiven"],
)
def test_an_older_an_asked_or_a_forgiven_end_is_made_good(seen: ProcessSeen, since: float | None) -> None:
    assert waited_for(("tikv1", seen), since=since).is_ready


def test_a_pause_is_told_as_such_whatever_ended_before() -> None:
    seen = running(paused=True, code=1, ended_at=NOW)
    assert waited_for(("pd0", seen)).of(Gate.PROCESSES).text == "pd0 is paused"


@pytest.mark.parametrize(
    ("restarts", "words"),
    [
        ({}, "6 of 6 members run"),
        ({"pd1": 1}, "6 of 6 members run; pd1 was restarted once by its policy"),
        ({"pd1": 11}, "6 of 6 members run; pd1 was restarted 11 times by its policy"),
        (
            {"pd1": 1, "tikv2": 2},
            "6 of 6 members run; pd1 was restarted once by its policy; tikv2 was restarted 2 times by its policy",
        ),
    ],
    ids=["none", "once", "often", "two members"],
)
def test_restarts_are_told_in_what_was_found(restarts: dict[str, int], words: str) -> None:
    changes = [(name, running(restarts=count, ended_at=SINCE - 9, code=1)) for name, count in restarts.items()]
    readiness = waited_for(*changes)
    assert readiness.is_ready
    assert readiness.of(Gate.PROCESSES).found == words


# --- low on space ----------------------------------------------------------------------------------------------------


def with_stores(**changes: object) -> Observation:
    """A healthy scene in which the last store differs."""
    *others, last = stores_seen().stores
    assert last.address == store_address("tikv2")
    changed = replace(last, **changes)  # type: ignore[arg-type]
    return saying(Probe.STORES, StoresSeen((*others, changed)))(healthy())


def test_low_space_is_told_where_replicas_are_missing() -> None:
    verdict = judge(with_stores(region_count=0, capacity=10 * GIB, available=GIB)).of(Gate.REPLICATED)
    assert verdict.status is Status.VIOLATED
    assert [lack.text for lack in verdict.lacks] == [
        "1 region with 2 of 3 replicas",
        "tikv2 is low on space (10% left): PD places no replica there below 20%",
    ]
    assert verdict.members == ("tikv2",)
    assert all(lack.reading is not None and lack.reading.probe is Probe.STORES for lack in verdict.lacks)


def test_low_space_closes_nothing_while_every_replica_is_there() -> None:
    readiness = judge(with_stores(capacity=10 * GIB, available=GIB))
    assert readiness.is_ready
    assert "space" not in readiness.of(Gate.REPLICATED).found


def test_a_store_of_somebody_else_that_is_low_is_told_by_its_address() -> None:
    scene = with_stores(region_count=0)
    stranger = StoreSeen(9, "10.0.0.9:20160", "Up", NOW, 0, 0, capacity=10 * GIB, available=0)
    seen = scene.answer_once(Probe.STORES, StoresSeen)
    assert seen is not None
    changed = saying(Probe.STORES, StoresSeen((*seen.stores, stranger)))(scene)
    assert "10.0.0.9:20160 is low on space (0% left)" in judge(changed).of(Gate.REPLICATED).text


@pytest.mark.parametrize(
    ("capacity", "available", "regions", "is_low"),
    [
        (10 * GIB, 2 * GIB - 1, 0, True),
        (10 * GIB, 2 * GIB, 0, False),
        (100 * GIB, 9 * GIB, 99, False),
        (100 * GIB, 8 * GIB + 1, 0, False),
        (100 * GIB, 8 * GIB, 99, True),
        (100 * GIB, 9 * GIB, 100, True),
        (100 * GIB, 20 * GIB, 100, False),
        (0, 0, 500, False),
    ],
    ids=[
        "below a fifth",
        "a fifth",
        "few regions, more than 8 GiB",
        "few regions, just more than 8 GiB",
        "few regions, 8 GiB",
        "many regions, more than 8 GiB",
        "many regions, a fifth",
        "not known",
    ],
)
def test_a_store_is_low_as_pd_has_it(capacity: int, available: int, regions: int, is_low: bool) -> None:
    seen = StoreSeen(1, "a:1", "Up", NOW, 0, regions, capacity=capacity, available=available)
    assert seen.is_low_on_space is is_low
