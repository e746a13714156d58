"""The six gates as tables: what is wrong, which gate says so, in which words; and unknown fed everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from readiness_scenes import (
    CLUSTER,
    NOW,
    PDS,
    failing,
    healthy,
    members_seen,
    pd_address,
    saying,
    store,
    without,
)

from drillyard.judge.readiness import PROBES_OF, Gate, Status, judge
from drillyard.observation import (
    CountSeen,
    DataPathSeen,
    Failure,
    Observation,
    PdHealthSeen,
    PdMemberSeen,
    Probe,
    ProcessSeen,
    Reading,
    SelfSeen,
    Started,
    TimestampsSeen,
)

Change = Callable[[Observation], Observation]

FEEDS = {
    Probe.PROCESS: {Gate.PROCESSES},
    Probe.PD_MEMBERS: {Gate.PD_QUORUM},
    Probe.PD_SELF: {Gate.PD_QUORUM},
    Probe.PD_HEALTH: {Gate.PD_QUORUM},
    Probe.TIMESTAMPS: {Gate.TIMESTAMPS},
    Probe.STORES: {Gate.STORES_UP, Gate.REPLICATED},
    Probe.STORE_SELF: {Gate.STORES_UP},
    Probe.REGION_COUNT: {Gate.REPLICATED},
    Probe.MAX_REPLICAS: {Gate.REPLICATED},
    Probe.MISS_PEER: {Gate.REPLICATED},
    Probe.DOWN_PEER: {Gate.REPLICATED},
    Probe.PENDING_PEER: {Gate.REPLICATED},
    Probe.LEARNER_PEER: {Gate.REPLICATED},
    Probe.DATA_PATH: {Gate.DATA_PATH},
}


def gates_fed(probe: Probe, member: str) -> set[Gate]:
    """The gates that need this reading: a store's process also tells whether its heartbeat is of this run."""
    extra = {Gate.STORES_UP} if probe is Probe.PROCESS and member.startswith("tikv") else set()
    return FEEDS[probe] | extra


def test_everything_right_is_ready() -> None:
    readiness = judge(healthy())
    assert [v.status for v in readiness.verdicts] == [Status.HOLDS] * 6
    assert [v.gate for v in readiness.verdicts] == list(Gate)
    assert readiness.is_ready
    assert readiness.first_closed is None
    assert [v.found for v in readiness.verdicts] == [
        "6 of 6 members run",
        "3 of 3 PD healthy, leader pd0",
        "PD grants increasing timestamps",
        "3 of 3 stores Up",
        "every region has 3 voters and a leader",
        "a key was written, read back and deleted",
    ]


def test_every_probe_feeds_a_gate() -> None:
    assert set(FEEDS) == set(Probe) - {Probe.REGIONS}, "which is for survivability alone"
    assert {reading.probe for reading in healthy().readings} == set(FEEDS)


@pytest.mark.parametrize("at", range(len(healthy().readings)), ids=lambda i: f"reading{i}")
@pytest.mark.parametrize("how", ["not asked", "not answered"])
def test_a_reading_less_is_unknown_never_healthy_never_broken(at: int, how: str) -> None:
    scene = healthy()
    gone = scene.readings[at]
    failure = Failure("timed-out", "no answer within 500 ms")
    changed = without(scene, gone) if how == "not asked" else failing(scene, gone, failure)
    readiness = judge(changed)
    for verdict in readiness.verdicts:
        expected = Status.UNKNOWN if verdict.gate in gates_fed(gone.probe, gone.member) else Status.HOLDS
        assert verdict.status is expected, (gone, verdict)
        assert bool(verdict.found) == (expected is Status.HOLDS)
    assert not readiness.is_ready
    assert readiness.first_closed is not None
    words = readiness.first_closed.text
    assert ("not asked yet" if how == "not asked" else "no answer within 500 ms") in words or "not known" in words
    if gone.probe in (Probe.PROCESS, Probe.PD_MEMBERS, Probe.PD_SELF, Probe.PD_HEALTH, Probe.STORE_SELF):
        assert readiness.first_closed.members == (gone.member,)


def test_no_reading_at_all_is_unknown_everywhere() -> None:
    nothing = replace(healthy(), readings=())
    assert [v.status for v in judge(nothing).verdicts] == [Status.UNKNOWN] * 6


def test_nothing_started_is_never_ready() -> None:
    nothing = Observation(1, NOW, Started(()), healthy().readings)
    readiness = judge(nothing)
    assert not readiness.is_ready
    assert readiness.of(Gate.PROCESSES).status is Status.VIOLATED
    assert readiness.of(Gate.PD_QUORUM).status is Status.VIOLATED
    assert readiness.of(Gate.STORES_UP).status is Status.VIOLATED


def test_a_broken_member_stays_violated_whatever_else_is_unknown() -> None:
    scene = saying(Probe.PROCESS, ProcessSeen(False, code=1), "tikv1")(healthy())
    unknown = failing(scene, scene.readings[0], Failure("timed-out", "no answer"))
    verdict = judge(unknown).of(Gate.PROCESSES)
    assert verdict.status is Status.VIOLATED
    assert verdict.members == ("tikv1", "pd0"), "the broken before the unknown"
    assert verdict.text.startswith("tikv1 exited with code 1; pd0 gave no answer")


def health(**marks: bool) -> PdHealthSeen:
    return PdHealthSeen(tuple({**dict.fromkeys(PDS, True), **marks}.items()))


THREE = members_seen()
FOREIGN_NAME = replace(THREE, members=(*THREE.members, PdMemberSeen("stranger", ("http://127.0.0.1:9",))))
MOVED = replace(THREE, members=(PdMemberSeen("pd0", ("http://10.0.0.9:2379",)), *THREE.members[1:]))

VIOLATIONS: list[tuple[str, Gate, tuple[Change, ...], str, tuple[str, ...]]] = [
    (
        "exit code",
        Gate.PROCESSES,
        (saying(Probe.PROCESS, ProcessSeen(False, code=3), "tikv2"),),
        "tikv2 exited with code 3",
        ("tikv2",),
    ),
    (
        "signal",
        Gate.PROCESSES,
        (saying(Probe.PROCESS, ProcessSeen(False, signal=9), "pd1"),),
        "pd1 was ended by signal 9",
        ("pd1",),
    ),
    (
        "asked stop",
        Gate.PROCESSES,
        (saying(Probe.PROCESS, ProcessSeen(False, code=0, asked=True), "pd1"),),
        "pd1 exited with code 0 (asked for)",
        ("pd1",),
    ),
    (
        "paused",
        Gate.PROCESSES,
        (saying(Probe.PROCESS, ProcessSeen(True, 7, NOW - 9, paused=True), "tikv0"),),
        "tikv0 is paused",
        ("tikv0",),
    ),
    (
        "no cluster id",
        Gate.PD_QUORUM,
        (saying(Probe.PD_MEMBERS, replace(THREE, cluster_id=0), "pd2"),),
        "pd2 has no cluster id yet",
        ("pd2",),
    ),
    (
        "foreign cluster",
        Gate.PD_QUORUM,
        (saying(Probe.PD_MEMBERS, replace(THREE, cluster_id=42)),),
        f"pd0 answers for cluster 42, ours is {CLUSTER}: this is a foreign cluster",
        PDS,
    ),
    (
        "two clusters",
        Gate.PD_QUORUM,
        (
            lambda o: replace(o, started=replace(o.started, cluster_id=None)),
            saying(Probe.PD_MEMBERS, replace(THREE, cluster_id=42), "pd1"),
        ),
        f"the PD members answer for different clusters: pd0 for {CLUSTER}, pd1 for 42, pd2 for {CLUSTER}",
        PDS,
    ),
    (
        "foreign member name",
        Gate.PD_QUORUM,
        (saying(Probe.PD_MEMBERS, FOREIGN_NAME, "pd1"),),
        "pd1 lists stranger, which we did not start",
        ("pd1",),
    ),
    (
        "member missing",
        Gate.PD_QUORUM,
        (saying(Probe.PD_MEMBERS, replace(THREE, members=THREE.members[:2]), "pd0"),),
        "pd0 does not list pd2",
        ("pd0", "pd2"),
    ),
    (
        "same name elsewhere",
        Gate.PD_QUORUM,
        (saying(Probe.PD_MEMBERS, MOVED, "pd1"),),
        f"pd1 knows pd0 at http://10.0.0.9:2379, we started it at {pd_address('pd0')}",
        ("pd0",),
    ),
    (
        "no leader",
        Gate.PD_QUORUM,
        (saying(Probe.PD_MEMBERS, replace(THREE, leader=""), "pd2"),),
        "pd2 knows no PD leader",
        ("pd2",),
    ),
    (
        "two leaders",
        Gate.PD_QUORUM,
        (saying(Probe.PD_MEMBERS, replace(THREE, leader="pd1"), "pd2"),),
        "the PD members name different leaders: pd0 says pd0, pd1 says pd0, pd2 says pd1",
        PDS,
    ),
    (
        "foreign leader",
        Gate.PD_QUORUM,
        (saying(Probe.PD_MEMBERS, replace(THREE, leader="stranger")),),
        "pd0 names stranger as PD leader, which we did not start",
        PDS,
    ),
    (
        "own word",
        Gate.PD_QUORUM,
        (saying(Probe.PD_SELF, SelfSeen(False, "no quorum"), "pd1"),),
        "pd1 says that it is not healthy: no quorum",
        ("pd1",),
    ),
    (
        "200 with a false in the body",
        Gate.PD_QUORUM,
        (saying(Probe.PD_HEALTH, health(pd2=False), "pd0"),),
        "pd2 counts as not healthy in the health list from pd0",
        ("pd2",),
    ),
    (
        "missing in the body",
        Gate.PD_QUORUM,
        (saying(Probe.PD_HEALTH, PdHealthSeen((("pd0", True), ("pd1", True))), "pd0"),),
        "pd2 is missing in the health list from pd0",
        ("pd2",),
    ),
    (
        "empty body",
        Gate.PD_QUORUM,
        (saying(Probe.PD_HEALTH, PdHealthSeen(()), "pd0"),),
        "pd0 is missing in the health list from pd0",
        PDS,
    ),
    (
        "equal timestamps",
        Gate.TIMESTAMPS,
        (saying(Probe.TIMESTAMPS, TimestampsSeen((500, 2), (500, 2))),),
        "timestamps do not increase: (500, 2) was followed by (500, 2)",
        (),
    ),
    (
        "timestamps back",
        Gate.TIMESTAMPS,
        (saying(Probe.TIMESTAMPS, TimestampsSeen((500, 2), (499, 900))),),
        "timestamps do not increase",
        (),
    ),
    (
        "not registered",
        Gate.STORES_UP,
        (store("tikv1", gone=True),),
        "tikv1 is not registered with PD under 127.0.0.1:20161",
        ("tikv1",),
    ),
    (
        "disconnected",
        Gate.STORES_UP,
        (store("tikv1", state="Disconnected", last_heartbeat=NOW - 23),),
        "tikv1 is Disconnected, not Up (last heartbeat was 23.0 s ago)",
        ("tikv1",),
    ),
    (
        "never a heartbeat",
        Gate.STORES_UP,
        (store("tikv1", state="Down", last_heartbeat=0.0),),
        "tikv1 is Down, not Up (no heartbeat yet)",
        ("tikv1",),
    ),
    (
        "heartbeat of the run before",
        Gate.STORES_UP,
        (
            store("tikv2", last_heartbeat=NOW - 2),
            saying(Probe.PROCESS, ProcessSeen(True, 100, NOW - 1), "tikv2"),
        ),
        "tikv2 is Up in PD's list, but has sent no heartbeat since it was started",
        ("tikv2",),
    ),
    (
        "stale heartbeat",
        Gate.STORES_UP,
        (store("tikv2", last_heartbeat=NOW - 7),),
        "tikv2 is Up in PD's list, but its last heartbeat was 7.0 s ago",
        ("tikv2",),
    ),
    (
        "store says no",
        Gate.STORES_UP,
        (saying(Probe.STORE_SELF, SelfSeen(False, "HTTP 503"), "tikv0"),),
        "tikv0 says that it is not healthy: HTTP 503",
        ("tikv0",),
    ),
    ("no region", Gate.REPLICATED, (saying(Probe.REGION_COUNT, CountSeen(0)),), "PD knows no region yet", ()),
    (
        "no leader of a region",
        Gate.REPLICATED,
        (store("tikv0", leader_count=0),),
        "1 of 1 region without a leader",
        (),
    ),
    (
        "replicas do not add up",
        Gate.REPLICATED,
        (store("tikv2", region_count=0),),
        "1 region with 2 of 3 replicas",
        (),
    ),
    (
        "too few replicas",
        Gate.REPLICATED,
        (saying(Probe.MISS_PEER, CountSeen(1, (2,))),),
        "1 region (2) with too few replicas",
        (),
    ),
    ("down", Gate.REPLICATED, (saying(Probe.DOWN_PEER, CountSeen(2)),), "2 regions with a down replica", ()),
    (
        "pending",
        Gate.REPLICATED,
        (saying(Probe.PENDING_PEER, CountSeen(1)),),
        "1 region with a replica that still catches up",
        (),
    ),
    (
        "learner",
        Gate.REPLICATED,
        (saying(Probe.LEARNER_PEER, CountSeen(1)),),
        "1 region with a replica that is not a voter yet",
        (),
    ),
    (
        "key refused",
        Gate.DATA_PATH,
        (saying(Probe.DATA_PATH, DataPathSeen(2, "tikv1", "put", "not leader")),),
        "put of a key in region 2 at tikv1: not leader",
        ("tikv1",),
    ),
]


@pytest.mark.parametrize(
    ("gate", "changes", "words", "members"), [v[1:] for v in VIOLATIONS], ids=[v[0] for v in VIOLATIONS]
)
def test_a_wrong_answer_violates_its_gate_and_names_the_member(
    gate: Gate, changes: tuple[Change, ...], words: str, members: tuple[str, ...]
) -> None:
    scene = healthy()
    for change in changes:
        scene = change(scene)
    readiness = judge(scene)
    verdict = readiness.of(gate)
    assert verdict.status is Status.VIOLATED
    assert words in verdict.text
    assert set(members) <= set(verdict.members)
    assert not readiness.is_ready
    assert readiness.first_closed is verdict, "every gate before it holds"
    assert all(lack.reading is not None and lack.reading.probe in PROBES_OF[gate] for lack in verdict.lacks)


@pytest.mark.parametrize("case", VIOLATIONS, ids=[v[0] for v in VIOLATIONS])
def test_a_violation_is_never_washed_out_by_one_more_unknown(
    case: tuple[str, Gate, tuple[Change, ...], str, object],
) -> None:
    """Drop any one reading beside the wrong answer: the gate may become unknown, but it never holds."""
    scene = healthy()
    for change in case[2]:
        scene = change(scene)
    for gone in scene.readings:
        assert judge(without(scene, gone)).of(case[1]).status is not Status.HOLDS


def test_a_member_started_again_after_an_asked_stop_counts_as_running() -> None:
    seen = ProcessSeen(True, 200, NOW - 30, code=0, asked=True)
    assert judge(saying(Probe.PROCESS, seen, "tikv1")(healthy())).is_ready


def test_the_cluster_id_is_learned_when_none_is_known_yet() -> None:
    scene = healthy()
    assert judge(replace(scene, started=replace(scene.started, cluster_id=None))).is_ready


def test_pd_may_list_more_stores_than_were_started() -> None:
    """Somebody may add a store of their own; ours must all be there."""
    scene = healthy()
    fewer = replace(scene.started, members=scene.started.members[:5])
    assert judge(replace(scene, started=fewer)).is_ready


@pytest.mark.parametrize("pair", list(itertools.combinations(range(len(healthy().readings)), 2))[::7], ids=str)
def test_two_readings_less_never_hold_either(pair: tuple[int, int]) -> None:
    scene = healthy()
    gone = [scene.readings[i] for i in pair]
    for reading in gone:
        scene = without(scene, reading)
    fed = set().union(*(gates_fed(reading.probe, reading.member) for reading in gone))
    for verdict in judge(scene).verdicts:
        assert (verdict.status is Status.UNKNOWN) == (verdict.gate in fed)


def test_a_reading_has_an_answer_of_its_kind_or_a_failure() -> None:
    failure = Failure("timed-out", "no answer")
    with pytest.raises(TypeError, match="CountSeen is no answer to process"):
        Reading("pd0", Probe.PROCESS, NOW, NOW, CountSeen(1))
    with pytest.raises(ValueError, match="an answer or a failure"):
        Reading("pd0", Probe.PROCESS, NOW, NOW)
    with pytest.raises(ValueError, match="and not both"):
        Reading("pd0", Probe.MISS_PEER, NOW, NOW, CountSeen(1), failure)
