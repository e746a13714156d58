"""The catalogue of causes by scenes: each entry's signature, and which goes before which."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from readiness_scenes import (
    CLUSTER,
    NOW,
    PDS,
    TIKVS,
    failing,
    healthy,
    members_seen,
    saying,
    store,
    without,
)

from drillyard.judge import causes, ends
from drillyard.judge.causes import cause_of
from drillyard.judge.ends import Ended
from drillyard.judge.readiness import judge
from drillyard.judge.scene import Pace, Scene
from drillyard.observation import (
    CountSeen,
    DataPathSeen,
    Failure,
    Observation,
    PdMemberSeen,
    PdMembersSeen,
    Probe,
    ProcessSeen,
    SelfSeen,
    TimestampsSeen,
)
from drillyard.topology import Role

Change = Callable[[Observation], Observation]
NO_WAIT = Pace()
LONG_AGO, JUST_NOW = NOW - 600, NOW - 2


def line(text: str, ago_s: float = 1.0, level: str = "WARN") -> str:
    stamp = datetime.fromtimestamp(NOW - ago_s, UTC).strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]
    return f'[{stamp} +00:00] [{level}] [here.rs:1] ["{text}"]'


def ran_since(at: float, *names: str) -> Change:
    def change(seen: Observation) -> Observation:
        for name in names or (*PDS, *TIKVS):
            seen = saying(Probe.PROCESS, ProcessSeen(True, 100, at), name)(seen)
        return seen

    return change


def gone(name: str, *, signal: int | None = 9, asked: bool = False, code: int | None = None) -> Change:
    seen = ProcessSeen(False, started_at=LONG_AGO, code=code, signal=signal, asked=asked, ended_at=NOW - 5)
    return saying(Probe.PROCESS, seen, name)


def paused(name: str) -> Change:
    return saying(Probe.PROCESS, ProcessSeen(True, 100, LONG_AGO, paused=True), name)


def silent(name: str, *probes: Probe) -> Change:
    def change(seen: Observation) -> Observation:
        for probe in probes or (Probe.PD_MEMBERS, Probe.PD_SELF, Probe.PD_HEALTH):
            reading = seen.reading(probe, name)
            assert reading is not None
            seen = failing(seen, reading, Failure("timed-out", f"{name}: no answer within 1 s"))
        return seen

    return change


def unasked(*probes: Probe) -> Change:
    def change(seen: Observation) -> Observation:
        for reading in [one for one in seen.readings if one.probe in probes]:
            seen = without(seen, reading)
        return seen

    return change


NO_LEADER = replace(members_seen(), leader="")
FOREIGN = PdMembersSeen(CLUSTER + 1, "pd0", members_seen().members)
STRANGER = PdMembersSeen(CLUSTER, "pd9", (*members_seen().members, PdMemberSeen("pd9", ("http://127.0.0.1:1",))))
SHORT = saying(Probe.MISS_PEER, CountSeen(1, (2,)))
UNSERVED = saying(Probe.DATA_PATH, DataPathSeen(2, "tikv0", "write", "something odd"))


def end(name: str, *lines: str, signal: int | None = None, code: int | None = None, **more: bool | float) -> Ended:
    role = Role.PD if name in PDS else Role.TIKV
    at, asked, oom = float(more.get("at", NOW - 5)), bool(more.get("asked")), bool(more.get("oom"))
    return Ended(name, role, code, signal, asked, oom, lines=lines, at=at)


@dataclass(frozen=True)
class Case:
    name: str
    members: tuple[str, ...]
    changes: tuple[Change, ...]
    words: str = ""
    ends: tuple[Ended, ...] = ()
    logs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pace: Pace = NO_WAIT

    def scene(self) -> Scene:
        seen = ran_since(LONG_AGO)(healthy())
        for change in self.changes:
            seen = change(seen)
        return Scene(seen, judge(seen), self.ends, self.logs, self.pace, " --name x")


CASES = [
    # ends
    Case("out-of-memory", ("tikv1",), (gone("tikv1"),), ends=(end("tikv1", signal=9, oom=True),)),
    Case("disk-full", ("tikv1",), (gone("tikv1"),), ends=(end("tikv1", "No space left on device", code=1),)),
    Case("killed", ("tikv1",), (gone("tikv1"),), "somebody outside", ends=(end("tikv1", signal=9),)),
    Case("crashed", ("pd1",), (gone("pd1"),), "signal 11", ends=(end("pd1", signal=11),)),
    Case(
        "stopped",
        ("tikv1",),
        (gone("tikv1", asked=True),),
        "tikv1 was killed on request",
        ends=(end("tikv1", signal=9, asked=True),),
    ),
    Case("unknown", ("tikv1",), (gone("tikv1", signal=None, code=7),), "exit code 7", ends=(end("tikv1", code=7),)),
    Case("paused", ("tikv2",), (paused("tikv2"), silent("tikv2", Probe.STORE_SELF))),
    # the machine
    Case("machine-slept", (), (SHORT,), "42 s", pace=Pace(50, 1, slept_s=42.0)),
    Case("clock-jump", (), (SHORT,), "was set 90 s back", pace=Pace(5, 1, clock_set_s=-90.0)),
    Case("clock-jump", (), (SHORT,), "was set 3 s forwards", pace=Pace(5, 1, clock_set_s=3.0)),
    Case(
        "clock-jump",
        ("pd0",),
        (SHORT, saying(Probe.TIMESTAMPS, TimestampsSeen((999_000_000, 1), (999_000_000, 2)))),
        "1000 s behind",
    ),
    Case("clock-jump", ("pd0",), (store("tikv1", last_heartbeat=NOW - 3600),), "3600 s behind"),
    Case("clock-jump", ("pd0",), (store("tikv1", last_heartbeat=NOW + 60),), "60 s ahead of"),
    # PD as a whole
    Case("foreign-cluster", ("pd1",), (saying(Probe.PD_MEMBERS, FOREIGN, "pd1"),)),
    Case("unknown", ("pd2", "pd0", "pd1"), (saying(Probe.PD_MEMBERS, STRANGER, "pd2"),), "pd9, which we did not start"),
    Case(
        "pd-quorum-lost",
        ("pd0", "pd2"),
        (gone("pd0", asked=True), paused("pd2"), unasked(Probe.TIMESTAMPS)),
        "pd0 was killed on request, pd2 is paused",
        ends=(end("pd0", signal=9, asked=True),),
    ),
    Case(
        "pd-quorum-lost",
        ("pd1", "pd2"),
        (gone("pd1", signal=9), gone("pd2", signal=9)),
        "pd1 was ended by somebody else",
        ends=(end("pd1", signal=9), end("pd2", signal=9)),
    ),
    Case(
        "pd-quorum-lost",
        ("pd1", "pd2"),
        (silent("pd1"), silent("pd2"), saying(Probe.PD_SELF, SelfSeen(False, "HTTP 503"), "pd0")),
        "pd1 does not answer, pd2 does not answer",
    ),
    Case(
        "region-quorum-lost",
        ("tikv0", "tikv2"),
        (gone("tikv0"), gone("tikv2", asked=True)),
        ends=(end("tikv0", signal=9), end("tikv2", signal=9, asked=True)),
    ),
    Case("pd-no-leader", PDS, (saying(Probe.PD_MEMBERS, NO_LEADER),)),
    Case(  # the old leader knows that it leads no more; the others still name it
        "pd-no-leader",
        PDS,
        (saying(Probe.PD_MEMBERS, NO_LEADER, "pd0"), saying(Probe.PD_SELF, SelfSeen(False, "HTTP 503"))),
    ),
    Case("pd-no-leader", PDS, (saying(Probe.PD_SELF, SelfSeen(False, "HTTP 503")),)),
    Case(
        "pd-leader-unreachable",
        ("pd1", "pd2"),
        tuple(silent(name, Probe.PD_HEALTH) for name in PDS),
        "cannot reach the PD leader pd0",
    ),
    Case(
        "pd-leader-unreachable", ("pd1", "pd2"), (silent("pd1", Probe.PD_HEALTH), silent("pd2", Probe.PD_HEALTH)), "pd0"
    ),
    # members that run
    Case(
        "disk-full",
        ("tikv1",),
        (saying(Probe.DATA_PATH, DataPathSeen(2, "tikv1", "write", "disk full, store 2")),),
        "disk full",
    ),
    Case("disk-full", ("pd1",), (silent("pd1"),), logs={"pd1": (line("No space left on device"),)}),
    Case("open-files", ("tikv2",), (SHORT,), logs={"tikv2": (line("accept: Too many open files"),)}),
    Case("slow-disk", ("pd0",), (UNSERVED,), "took=2.5s", logs={"pd0": (line("slow fdatasync] [took=2.5s"),)}),
    Case("store-tombstone", ("tikv1",), (store("tikv1", state="Tombstone"),)),
    Case(
        "store-tombstone",
        ("tikv1",),
        (store("tikv1", gone=True),),
        logs={"tikv1": (line('store heartbeat failed"] [err="store is tombstone'),)},
    ),
    Case("store-offline", ("tikv1",), (store("tikv1", state="Offline"),)),
    Case("store-down", ("tikv1",), (store("tikv1", state="Down", last_heartbeat=NOW - 4000),), "4000 s ago"),
    Case("store-disconnected", ("tikv1",), (store("tikv1", state="Disconnected", last_heartbeat=NOW - 21),), "21 s"),
    Case("low-space", ("tikv2",), (SHORT, store("tikv2", capacity=100, available=10, region_count=200)), "10% left"),
    # what only time tells
    Case("not-serving", ("tikv1",), (silent("tikv1", Probe.STORE_SELF),), "no answer within 1 s"),
    Case("not-serving", ("pd2",), (silent("pd2"),)),
    Case(
        "hang",
        ("tikv1",),
        (ran_since(NOW - 9, "tikv1"), silent("tikv1", Probe.STORE_SELF)),
        "nothing new for 9 s",
        pace=Pace(9, 8.9),
    ),
    Case(
        "hang",
        ("tikv1",),
        (ran_since(NOW - 9, "tikv1"), silent("tikv1", Probe.STORE_SELF)),
        "nothing new for 8 s",
        logs={"tikv1": tuple(line(f"trying again, attempt {n}", 8 - n) for n in range(8))},
    ),
    Case(
        "slow-start",
        ("tikv1",),
        (ran_since(NOW - 9, "tikv1"), silent("tikv1", Probe.STORE_SELF)),
        "9.0 s ago",
        pace=Pace(9, 2),
    ),
    Case(
        "slow-start",
        ("tikv1",),
        (ran_since(NOW - 9, "tikv1"), silent("tikv1", Probe.STORE_SELF)),
        logs={"tikv1": (line("opening", 8), line("replaying", 3))},
    ),
    Case("unknown", ("tikv0",), (UNSERVED,), "gate data-path lacks this first: write of a key in region 2 at tikv0"),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{at}-{case.name}" for at, case in enumerate(CASES)])
def test_a_scene_has_this_cause(case: Case) -> None:
    cause = cause_of(case.scene())
    assert cause is not None
    assert (cause.name, cause.members) == (case.name, case.members), cause
    assert case.words in cause.text
    assert cause.data
    assert cause.mend
    assert not re.search(r"[{}]", cause.text + cause.data + cause.mend), "everything is filled in"


def test_every_entry_of_the_catalogue_has_a_scene_here() -> None:
    assert {known.name for known in causes.CATALOGUE} <= {case.name for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=[f"{at}-{case.name}" for at, case in enumerate(CASES)])
def test_a_command_means_this_deployment(case: Case) -> None:
    scene = case.scene()
    cause = cause_of(replace(scene, ends=tuple(replace(one, option=" --name x") for one in scene.ends)))
    assert cause is not None
    for command in re.findall(r"`drillyard [^`]*`", cause.mend):
        assert command.endswith(" --name x`")


REVIVED: list[tuple[tuple[Change, ...], str]] = [
    ((gone("pd0", asked=True), paused("pd1")), "`drillyard start pd0 --name x`"),
    (
        (paused("pd0"), paused("pd1"), paused("pd2")),
        "`drillyard resume pd0 --name x` and `drillyard resume pd1 --name x`",
    ),
    (
        (silent("pd1"), silent("pd2"), saying(Probe.PD_SELF, SelfSeen(False), "pd0")),
        "`drillyard restart pd1 --name x`",
    ),
    ((gone("tikv1", asked=True), paused("tikv0")), "`drillyard resume tikv0 --name x`"),
    (tuple(paused(name) for name in ("tikv0", "tikv1")), "`drillyard resume tikv0 --name x`"),
    ((paused("tikv0"),), "`drillyard resume tikv0 --name x`"),
    (tuple(gone(name) for name in (*PDS, *TIKVS)), "`drillyard up --name x`"),
]


@pytest.mark.parametrize(("changes", "mend"), REVIVED)
def test_what_brings_members_back_is_what_each_needs(changes: tuple[Change, ...], mend: str) -> None:
    ends_of = tuple(end(name, signal=9) for name in (*PDS, *TIKVS)) if "up" in mend else ()
    cause = cause_of(Case("", (), changes, ends=ends_of).scene())
    assert cause is not None
    assert cause.mend.rpartition(": ")[2] == mend


def test_a_healthy_cluster_has_no_cause_whatever_its_logs_say() -> None:
    logs = {name: (line("slow fdatasync"), line("Too many open files")) for name in (*PDS, *TIKVS)}
    seen = healthy()
    assert cause_of(Scene(seen, judge(seen), words=logs, pace=Pace(9, 1, slept_s=30))) is None


def test_nothing_runs_because_that_was_asked_for() -> None:
    names = (*PDS, *TIKVS)
    seen = healthy()
    for name in names:
        seen = gone(name, asked=True, signal=15)(seen)
    asked = tuple(end(name, signal=15, asked=True) for name in names)
    assert cause_of(Scene(seen, judge(seen), asked)) is None
    cause = cause_of(Scene(seen, judge(seen), (*asked[:-1], end("tikv2", signal=9))))
    assert cause is not None
    assert (cause.name, cause.members) == ("killed", ("tikv2",))


RACE, FULL = 'failed to get timestamp from PD: Other("dropped")', "No space left on device"
MISMATCH = "cluster ID mismatch, local 7 != remote 9"
# (what goes before, the scene)
PRECEDENCE: list[tuple[str, str, Case]] = [
    (
        "of two ends the root, not the first",
        "cluster-id-mismatch",
        Case(
            "",
            (),
            (gone("tikv0"), gone("tikv1")),
            ends=(end("tikv0", RACE, code=1, at=NOW - 9), end("tikv1", MISMATCH, code=1)),
        ),
    ),
    (
        "of two ends of one kind the first",
        "tikv1",
        Case(
            "",
            (),
            (gone("tikv0"), gone("tikv1")),
            ends=(end("tikv0", FULL, code=1), end("tikv1", FULL, code=1, at=NOW - 9)),
        ),
    ),
    (
        "what members say of their ends before the quorum that they were",
        "disk-full",
        Case("", (), (gone("pd0"), gone("pd1")), ends=(end("pd0", FULL, code=1), end("pd1", signal=9))),
    ),
    (
        "a lost quorum before the kills that lost it",
        "pd-quorum-lost",
        Case("", (), (gone("pd0"), gone("pd1")), ends=(end("pd0", signal=9), end("pd1", signal=9))),
    ),
    (
        "a lost quorum of PD before one of regions",
        "pd-quorum-lost",
        Case("", (), tuple(gone(name) for name in ("pd0", "pd1", "tikv0", "tikv1"))),
    ),
    (
        "a sleep before the silence that it cost",
        "machine-slept",
        Case("", (), (store("tikv1", state="Disconnected"),), pace=Pace(9, 1, slept_s=30)),
    ),
    (
        "an end before a sleep: waiting does not bring it back",
        "killed",
        Case("", (), (gone("tikv1"),), ends=(end("tikv1", signal=9),), pace=Pace(9, 1, slept_s=4.0)),
    ),
    (
        "what is stopped before a clock that is some seconds off",
        "stopped",
        Case(
            "",
            (),
            (
                gone("tikv1", asked=True),
                saying(Probe.TIMESTAMPS, TimestampsSeen((1_000_007_000, 1), (1_000_007_000, 2))),
            ),
            ends=(end("tikv1", signal=15, asked=True),),
        ),
    ),
    (
        "a quorum that is lost before an end that has nothing to do with it",
        "pd-quorum-lost",
        Case(
            "",
            (),
            (gone("pd0", asked=True), gone("pd1", asked=True), gone("tikv1")),
            ends=(
                end("tikv1", RACE, code=1),
                end("pd0", signal=15, asked=True),
                end("pd1", signal=15, asked=True),
            ),
        ),
    ),
    (
        "what those say that a quorum is lost by, though the first that said it runs again",
        "cluster-id-mismatch",
        Case(
            "",
            (),
            (gone("tikv1", code=1), gone("tikv2", code=1)),
            ends=tuple(end(name, MISMATCH, code=1, at=NOW - 9 + at) for at, name in enumerate(TIKVS)),
        ),
    ),
    (
        "a disk that is full before a store that is slow to be heard",
        "disk-full",
        Case(
            "",
            (),
            (store("tikv1", state="Disconnected"), silent("tikv1", Probe.STORE_SELF)),
            logs={"tikv1": (line("No space left on device"),)},
        ),
    ),
    (
        "an end before what PD says of the store",
        "killed",
        Case("", (), (gone("tikv1"), store("tikv1", state="Disconnected")), ends=(end("tikv1", signal=9),)),
    ),
    (
        "a pause before what PD says of the store",
        "paused",
        Case("", (), (paused("tikv1"), store("tikv1", state="Down"))),
    ),
    (
        "a slow disk before the leader that it costs",
        "slow-disk",
        Case("", (), (saying(Probe.PD_MEMBERS, NO_LEADER),), logs={"pd2": (line("slow fdatasync"),)}),
    ),
    (
        "a wrong clock before the staleness that it feigns",
        "clock-jump",
        Case("", (), (store("tikv0", last_heartbeat=NOW - 3600), store("tikv1", state="Disconnected"))),
    ),
]


@pytest.mark.parametrize(("wanted", "case"), [one[1:] for one in PRECEDENCE], ids=[one[0] for one in PRECEDENCE])
def test_the_root_goes_before_its_symptoms(wanted: str, case: Case) -> None:
    cause = cause_of(case.scene())
    assert cause is not None
    assert wanted in (cause.name, *cause.members), cause


NOT_THIS: list[tuple[str, Case]] = [
    ("open-files", Case("", (), (SHORT,), logs={"tikv2": (line("Too many open files", ago_s=90),)})),
    ("open-files", Case("", (), (SHORT,), logs={"tikv2": ("Too many open files, at an unknown time",)})),
    ("pd-no-leader", Case("", (), (ran_since(JUST_NOW), saying(Probe.PD_MEMBERS, NO_LEADER)))),
    ("pd-quorum-lost", Case("", (), (silent("pd1"), silent("pd2")))),
    ("pd-quorum-lost", Case("", (), (gone("pd1"),), ends=(end("pd1", signal=9),))),
    ("region-quorum-lost", Case("", (), (gone("tikv1"),), ends=(end("tikv1", signal=9),))),
    ("clock-jump", Case("", (), (store("tikv1", last_heartbeat=NOW - 12),))),
    ("machine-slept", Case("", (), (SHORT,), pace=Pace(9, 1, slept_s=2.0))),
    ("low-space", Case("", (), (store("tikv2", capacity=100, available=10, region_count=200, state="Disconnected"),))),
    ("slow-start", Case("", (), (silent("tikv1", Probe.STORE_SELF),), pace=Pace(9, 1))),
    ("machine-slept", Case("", (), (SHORT,), pace=Pace(99, 1, slept_s=9.0, woke_ago_s=60.0))),
    ("hang", Case("", (), (ran_since(NOW - 40), SHORT), pace=Pace(40, 8))),
    ("hang", Case("", (), (ran_since(NOW - 40), silent("pd0"), unasked(Probe.STORE_SELF)), pace=Pace(40, 2))),
    ("disk-full", Case("", (), (silent("pd1"), unasked(Probe.STORE_SELF)), logs={"tikv0": (line("disk full"),)})),
    (
        "pd-leader-unreachable",
        Case("", (), (silent("pd2"), silent("pd0", Probe.PD_HEALTH), silent("pd1", Probe.PD_HEALTH))),
    ),
    ("foreign-cluster", Case("", (), (saying(Probe.PD_MEMBERS, STRANGER, "pd2"),))),
]


@pytest.mark.parametrize(("name", "case"), NOT_THIS, ids=[f"{at}-{one[0]}" for at, one in enumerate(NOT_THIS)])
def test_what_only_looks_like_it_is_not_it(name: str, case: Case) -> None:
    cause = cause_of(case.scene())
    assert cause is not None
    assert cause.name != name


@pytest.mark.parametrize(
    ("text", "is_telling"),
    [
        (line("slow fdatasync"), True),
        (line("all is well", level="INFO"), False),
        (line("trouble", level="ERROR"), True),
        (line("cluster ID mismatch", level="INFO"), True),
        ("thread 'main' panicked at src/main.rs", True),
        ("Too many open files", True),
        (line("no panic: the word alone is enough", level="INFO"), True),
        ("", False),
    ],
)
def test_which_lines_matter(text: str, is_telling: bool) -> None:
    assert causes.is_telling(text) is is_telling


def test_every_cause_is_brought_about_for_real_by_some_test() -> None:
    tests = Path(__file__).parents[1]
    sources = [path.read_text() for tier in ("causes", "real") for path in sorted((tests / tier).glob("test_*.py"))]
    provoked = {
        name
        for source in sources
        for names in re.findall(r"^@(?:pytest\.mark\.)?provokes\(([^)]*)\)", source, re.MULTILINE)
        for name in re.findall(r'"([a-z-]+)"', names)
    }
    assert provoked == set(causes.names())


def test_names_are_stable_words_in_order_of_precedence() -> None:
    names = causes.names()
    assert len(names) == len(set(names)) >= 30
    assert all(re.fullmatch(r"[a-z][a-z-]+[a-z]", name) for name in names)
    assert names.index("pd-quorum-lost") < names.index("killed") < names.index("store-disconnected")
    assert {kind.name for kind in ends.KINDS} < set(names)
