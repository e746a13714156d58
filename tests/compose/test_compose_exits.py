"""How containers ended: asked or not, by what, what a policy made good; and the daemon's events turned into ours."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_docker import ID, STARTED, ZERO, FakeDocker, container, record
from fake_docker import NOW as THE_TIME

from drillyard.runtimes import compose, compose_file, compose_plans
from drillyard.runtimes.abilities import Deployment, EventKind, Exit, MemberEvent
from drillyard.runtimes.compose import ComposeRuntime
from drillyard.runtimes.compose_exits import Book, RecentEnd, Watcher, exit_of, is_worth_asking, recent_ends
from drillyard.runtimes.compose_plans import ComposePlan
from drillyard.runtimes.docker import Container, DockerEvent
from drillyard.runtimes.home import Home
from drillyard.runtimes.journal import Journal
from drillyard.topology import Member, Profile, Purpose, Role, Topology

RUN = f"{ID[:12]}@{STARTED}"
NEXT_STARTED = "2026-09-20T09:00:00.5Z"
AT = 2000.0
THEN = "2026-09-20T08:15:30Z"
ENDED_THEN: dict[str, Any] = {"finished_at": AT, "ended_text": THEN}
NOTHING = Book()
KNOWN = Book(known_ends={"tikv0": THEN})


def asked_by(by: str) -> Book:
    return replace(NOTHING, asked={RUN: by})


def ended(code: int, **changes: Any) -> Container:
    return container(**{"status": "exited", "exit_code": code, "finished_at": AT, **changes})


# --- one container ---------------------------------------------------------------------------------------------------

EXITS: list[tuple[str, Container, Book, RecentEnd | None, Exit | None]] = [
    ("it runs", container(), NOTHING, None, None),
    ("it is paused", container(status="paused"), NOTHING, None, None),
    ("it was never started", container(status="created", started_at=None), NOTHING, None, None),
    ("by itself, well", ended(0), NOTHING, None, Exit(0, None, False, AT)),
    ("by itself, badly", ended(1), NOTHING, None, Exit(1, None, False, AT)),
    ("killed from outside", ended(137), NOTHING, None, Exit(None, 9, False, AT)),
    ("crashed", ended(139), NOTHING, None, Exit(None, 11, False, AT)),
    ("a code that is no signal", ended(255), NOTHING, None, Exit(255, None, False, AT)),
    ("128 is no signal", ended(128), NOTHING, None, Exit(128, None, False, AT)),
    ("stopped", ended(0), asked_by("stop"), None, Exit(0, None, True, AT, "stop")),
    ("killed, as asked", ended(137), asked_by("kill"), None, Exit(None, 9, True, AT, "kill")),
    ("restarted", ended(143), asked_by("restart"), None, Exit(None, 15, True, AT, "restart")),
    ("taken down", ended(0), asked_by("down"), None, Exit(0, None, True, AT, "down")),
    *(
        (f"{by}, too slow", ended(137), asked_by(by), None, Exit(None, 9, True, AT, f"{by}, killed after its grace"))
        for by in ("stop", "restart", "down")
    ),
    (
        "another run's end was asked for",
        ended(0, started_text=NEXT_STARTED),
        asked_by("stop"),
        None,
        Exit(0, None, False, AT),
    ),
    ("out of memory", ended(137, is_oom=True), NOTHING, None, Exit(None, 9, False, AT, "", True)),
    (
        "between two runs",
        ended(1, status="restarting", restarts=2),
        NOTHING,
        None,
        Exit(1, None, False, AT, "its policy will start it again"),
    ),
    (
        "the daemon has a word",
        ended(127, error="no such device"),
        NOTHING,
        None,
        Exit(127, None, False, AT, "no such device"),
    ),
    (
        "restarted by its policy, code forgotten",
        container(restarts=1, finished_at=AT),
        NOTHING,
        None,
        Exit(None, None, False, AT, "restarted by its policy"),
    ),
    (
        "restarted by its policy",
        container(restarts=1, finished_at=AT),
        NOTHING,
        RecentEnd(1, False),
        Exit(1, None, False, AT, "restarted by its policy"),
    ),
    (
        "restarted several times",
        container(restarts=3, finished_at=AT),
        NOTHING,
        RecentEnd(139, False),
        Exit(None, 11, False, AT, "restarted by its policy 3 times"),
    ),
    (
        "restarted after it was out of memory",
        container(restarts=1, finished_at=AT),
        NOTHING,
        RecentEnd(137, True),
        Exit(None, 9, False, AT, "restarted by its policy", True),
    ),
    ("started by us after an end", container(**ENDED_THEN), KNOWN, RecentEnd(0), None),
    ("held back, with an end of before", ended(0, ended_text=THEN), KNOWN, None, None),
    (
        "started by somebody else after a later end",
        container(finished_at=AT, ended_text="later"),
        KNOWN,
        RecentEnd(0, signal="15"),
        Exit(0, None, False, AT, "started again by somebody else"),
    ),
    (
        "restarted by its policy after a start of ours",
        container(restarts=1, finished_at=AT, ended_text="later"),
        KNOWN,
        RecentEnd(1),
        Exit(1, None, False, AT, "restarted by its policy"),
    ),
    (
        "docker stop by somebody, seen later",
        ended(0),
        NOTHING,
        RecentEnd(0, signal="15"),
        Exit(0, None, False, AT, "signal 15 through Docker"),
    ),
    (
        "not started again, for the daemon refused",
        ended(128, ended_text=THEN, error="port is taken"),
        KNOWN,
        None,
        Exit(128, None, False, AT, "could not be started: port is taken"),
    ),
]


@pytest.mark.parametrize(
    ("one", "book", "recent", "expected"), [case[1:] for case in EXITS], ids=[case[0] for case in EXITS]
)
def test_how_a_container_ended(one: Container, book: Book, recent: RecentEnd | None, expected: Exit | None) -> None:
    assert exit_of("tikv0", one, book, recent) == expected


def test_a_container_that_could_not_be_started_says_why() -> None:
    one = container(status="created", exit_code=127, error="exec: no such file", started_at=None)
    found = exit_of("tikv0", one, NOTHING)
    assert found is not None
    assert (found.code, found.asked, found.note) == (127, False, "could not be started: exec: no such file")


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path: Path) -> ComposePlan:
    ports = {("pd0", Purpose.CLIENT): 12379, ("tikv0", Purpose.CLIENT): 30160, ("tikv0", Purpose.STATUS): 30180}
    directory = tmp_path / "deployments" / "default"
    made = ComposePlan("default", directory, "drillyard-default", compose_file.default_topology(), ports)
    compose_plans.save(made)
    return made


def write(plan: ComposePlan, *records: tuple[str, str, dict[str, object]]) -> None:
    book = Journal(plan.directory / "journal.jsonl")
    for what, member, more in records:
        book.write(what, member, **more)
    book.close()


def deployed(plan: ComposePlan, *containers: Container, ends: dict[str, RecentEnd] | None = None) -> Deployment:
    by_service = {one.service: one for one in containers}
    return compose._deployment(plan, by_service, Book.read(plan.directory), ends or {})


def test_nothing_is_there_before_the_first_start(plan: ComposePlan) -> None:
    found = deployed(plan)
    assert (found.is_up, found.started_at) == (False, None)
    assert all(member.is_held_back and member.starts == 0 for member in found.members)
    assert all(member.container is None and member.argv == () for member in found.members)


def test_members_that_were_created_and_not_started_are_held_back(plan: ComposePlan) -> None:
    write(plan, ("up", "", {}), *(("started", f"pd{at}", {}) for at in range(3)))
    pds = [container(f"pd{at}", id=f"pd{at}") for at in range(3)]
    tikvs = [container(f"tikv{at}", "created", id=f"tikv{at}", started_at=None) for at in range(3)]
    found = deployed(plan, *pds, *tikvs)
    assert found.is_up
    assert [member.name for member in found.members if member.is_held_back] == ["tikv0", "tikv1", "tikv2"]
    assert [member.starts for member in found.members] == [1, 1, 1, 0, 0, 0]
    assert not any(member.is_down for member in found.members)


def test_a_member_that_could_not_be_started_is_down_and_not_held_back(plan: ComposePlan) -> None:
    found = deployed(plan, container("pd0", "created", error="port is taken", exit_code=128)).member("pd0")
    assert found.is_down
    assert not found.is_held_back


def test_a_member_is_told_with_its_container(plan: ComposePlan) -> None:
    one = container("pd0", "paused", health="unhealthy", probe_output="no leader", command=("--name=pd0",), kind="x")
    found = deployed(plan, one).member("pd0")
    assert (found.running, found.paused, found.pid, found.kind, found.argv) == (True, True, 4711, "x", ("--name=pd0",))
    assert found.container is not None
    assert (found.container.id, found.container.health, found.container.probe_output) == (
        ID[:12],
        "unhealthy",
        "no leader",
    )
    assert found.addresses == {"client": "pd0:2379", "peer": "pd0:2380"}
    assert found.files is None


def test_the_network_is_told_with_who_is_where_in_it_and_what_is_published(plan: ComposePlan) -> None:
    running = container("pd0", hosts={"drillyard-default_default": "172.18.0.2"})
    gone = container("pd1", "exited", finished_at=AT, hosts={"drillyard-default_default": "172.18.0.3"})
    network = deployed(plan, running, gone).network
    assert network is not None
    assert (network.name, network.hosts) == ("drillyard-default_default", {"pd0": "172.18.0.2"})
    assert network.published == {
        "pd0:2379": "127.0.0.1:12379",
        "tikv0:20160": "127.0.0.1:30160",
        "tikv0:20180": "127.0.0.1:30180",
    }
    empty = deployed(plan).network
    assert empty is not None
    assert empty.name == "drillyard-default_default"


def test_starts_and_restarts_are_counted_since_the_whole_was_started(plan: ComposePlan) -> None:
    write(
        plan,
        ("up", "", {}),
        ("started", "pd0", {}),
        ("started", "pd0", {"restarts": 5}),
        ("up", "", {}),
        ("started", "pd0", {}),
        ("started", "tikv0", {}),
        ("started", "tikv0", {"restarts": 2}),
        ("started", "tikv0", {"restarts": 0}),
    )
    found = deployed(plan, container("pd0"), container("tikv0", restarts=1, finished_at=AT))
    assert (found.member("pd0").starts, found.member("pd0").restarts) == (1, 0)
    assert (found.member("tikv0").starts, found.member("tikv0").restarts) == (6, 3), "three by us, three by its policy"


def test_an_end_of_before_the_whole_was_started_is_over_and_done(plan: ComposePlan) -> None:
    """After a reboot or a `docker compose stop` the containers are still there, exited; a start finds them so."""
    ends = dict.fromkeys(("pd0", "tikv0", "tikv1"), THEN)
    asked: tuple[str, str, dict[str, object]] = ("stopping", "tikv0", {"by": "down", "run": RUN})
    write(plan, asked, ("up", "", {"ends": ends}), ("started", "pd0", {"ended": THEN}))
    stopped = (ended(0, ended_text=THEN), ended(137, service="tikv1", id="b", ended_text=THEN))
    found = deployed(plan, container("pd0", **ENDED_THEN), *stopped)
    assert [found.member(name).exit for name in ("pd0", "tikv0", "tikv1")] == [None, None, None]
    assert found.member("tikv0").is_held_back
    assert found.member("tikv1").is_held_back
    assert not any(member.is_down for member in found.members)


def test_a_container_that_was_removed_by_hand_is_an_end(plan: ComposePlan) -> None:
    write(plan, ("up", "", {"kinds": {"tikv0": "emulated"}}), ("started", "pd0", {}), ("started", "tikv0", {}))
    found = deployed(plan, container("pd0"))
    gone = found.member("tikv0")
    assert gone.exit is not None
    assert (gone.exit.asked, gone.exit.note, gone.is_held_back) == (False, "its container was removed", False)
    assert gone.kind == "emulated", "it is not forgotten with its container"
    assert found.member("tikv1").is_held_back, "that one was never started"
    write(plan, ("down", "", {}))
    assert deployed(plan).member("tikv0").exit is None, "taken down, and not lost"


def test_an_end_since_the_whole_was_started_counts(plan: ComposePlan) -> None:
    write(plan, ("up", "", {}), ("started", "tikv0", {}))
    found = deployed(plan, ended(1, ended_text="later")).member("tikv0")
    assert found.exit == Exit(1, None, False, AT), "whatever this machine's clock says"
    assert found.is_down


def test_a_book_tells_which_runs_were_asked_to_end(plan: ComposePlan) -> None:
    write(
        plan,
        ("stopping", "pd0", {"by": "stop", "run": "a@1"}),
        ("up", "", {}),
        ("stopping", "pd0", {"by": "kill", "run": "a@2"}),
    )
    book = Book.read(plan.directory)
    assert book.asked == {"a@1": "stop", "a@2": "kill"}, "also of the whole before, for it may end only now"
    assert book.up_at is not None
    assert Book.read(plan.directory / "nowhere") == NOTHING


def test_a_book_tells_what_was_there_when_we_started_it(plan: ComposePlan) -> None:
    write(
        plan,
        ("up", "", {"ends": {"pd0": "1", "tikv0": "2"}, "kinds": {"pd0": "real", "tikv0": "emulated"}}),
        ("started", "pd0", {"ended": "1"}),
        ("started", "tikv0", {"ended": "3"}),
    )
    book = Book.read(plan.directory)
    assert book.known_ends == {"pd0": "1", "tikv0": "3"}, "by the latest start"
    assert book.kinds == {"pd0": "real", "tikv0": "emulated"}
    assert set(book.started_at) == {"pd0", "tikv0"}
    assert not book.is_down
    write(plan, ("down", "", {}))
    assert Book.read(plan.directory).is_down
    write(plan, ("up", "", {"ends": {"pd0": "4"}}))
    book = Book.read(plan.directory)
    assert (book.is_down, book.known_ends, book.starts, book.started_at) == (False, {"pd0": "4"}, {}, {})


def test_an_adoption_is_no_start_of_ours(plan: ComposePlan) -> None:
    write(plan, ("adopted", "", {"ends": {"kv": THEN}, "kinds": {"kv": "real"}}))
    book = Book.read(plan.directory)
    assert (book.up_at, book.is_down, book.known_ends, book.kinds) == (None, False, {"kv": THEN}, {"kv": "real"})
    found = deployed(adopted(plan), container("pd"), ended(0, service="kv", ended_text=THEN))
    assert found.member("kv").exit is None, "what was before is nobody's to look at"
    gone = deployed(adopted(plan), container("pd")).member("kv").exit
    assert gone is not None
    assert gone.note == "its container was removed", "though the start was not ours"


def adopted(plan: ComposePlan) -> ComposePlan:
    topology = Topology(
        (
            Member("pd-a", Role.PD, "pd", {Purpose.CLIENT: 2379, Purpose.PEER: 2380}),
            Member("kv", Role.TIKV, "kv", {Purpose.CLIENT: 20160, Purpose.STATUS: 20180}),
        ),
        Profile.UPSTREAM,
    )
    return replace(plan, asked=topology, published={}, adopted=True, services={"pd-a": "pd"})


def test_an_adopted_project_was_started_once_by_somebody(plan: ComposePlan) -> None:
    found = deployed(adopted(plan), container("pd", started_at=900.0), container("kv", restarts=1, finished_at=AT))
    assert [(member.name, member.starts) for member in found.members] == [("pd-a", 1), ("kv", 2)]
    assert found.started_at == 900.0
    assert found.member("pd-a").running


def test_a_start_of_ours_counts_beside_the_one_that_was_adopted(plan: ComposePlan) -> None:
    write(plan, ("started", "pd-a", {"restarts": 0}))
    found = deployed(adopted(plan), container("pd"), container("kv"))
    assert found.member("pd-a").starts == 2


def test_an_adopted_project_that_we_started_from_nothing_was_started_by_us(plan: ComposePlan) -> None:
    write(plan, ("adopted", "", {}), ("up", "", {}), ("started", "pd-a", {}))
    found = deployed(adopted(plan), container("pd"), container("kv", "exited", finished_at=AT))
    assert [(member.name, member.starts) for member in found.members] == [("pd-a", 1), ("kv", 0)]


def line(action: str, at: float, **attributes: str) -> str:
    actor = {"ID": ID, "Attributes": {"com.docker.compose.service": "tikv0", **attributes}}
    return json.dumps({"Action": action, "Actor": actor, "timeNano": int(at * 1e9)}) + "\n"


REMEMBERED = [
    ("what the daemon remembers", line("die", 5, exitCode="1"), Exit(1, None, False, 1789892130.0, "")),
    (
        "only the latest end",
        line("die", 5, exitCode="1") + line("die", 6, exitCode="139"),
        Exit(None, 11, False, 1789892130.0, ""),
    ),
    (
        "out of memory",
        line("oom", 5) + line("die", 6, exitCode="137"),
        Exit(None, 9, False, 1789892130.0, "", True),
    ),
    (
        "out of memory was an end before",
        line("oom", 5) + line("die", 6, exitCode="137") + line("die", 7, exitCode="1"),
        Exit(1, None, False, 1789892130.0, ""),
    ),
    ("nothing remembered", "", Exit(None, None, False, 1789892130.0, "")),
]


@pytest.mark.parametrize(
    ("events", "expected"), [case[1:] for case in REMEMBERED], ids=[case[0] for case in REMEMBERED]
)
def test_an_end_that_a_policy_made_good_is_told_with_what_the_daemon_remembers(
    plan: ComposePlan, tmp_path: Path, events: str, expected: Exit
) -> None:
    fake = FakeDocker(tmp_path)
    fake.holds(record("tikv0", file=plan.file, state={"FinishedAt": THEN}, RestartCount=1))
    fake.knows_the_time()
    fake.says("events *", events)
    runtime = ComposeRuntime(Home(tmp_path), fake.docker)
    found = asyncio.run(runtime.deployment("default")).member("tikv0")
    assert found.exit == replace(expected, note="restarted by its policy")
    assert (found.running, found.restarts) == (True, 1)
    assert "--since 1789892060.000" in fake.calls[-1], "from before the end that is looked for, and what led to it"


def test_nobodys_end_is_looked_for_while_no_policy_made_one_good(plan: ComposePlan, tmp_path: Path) -> None:
    fake = FakeDocker(tmp_path)
    fake.holds(record("tikv0", file=plan.file))
    asyncio.run(ComposeRuntime(Home(tmp_path), fake.docker).deployment("default"))
    assert len(fake.calls) == 2


def test_an_end_that_nobody_watched_is_told_with_the_signal_that_the_daemon_remembers(
    plan: ComposePlan, tmp_path: Path
) -> None:
    fake = FakeDocker(tmp_path)
    fake.holds(record("tikv0", file=plan.file, state={"Status": "exited", "FinishedAt": THEN}))
    fake.knows_the_time()
    fake.says("events *", line("kill", 5, signal="15") + line("die", 6, exitCode="0"))
    runtime = ComposeRuntime(Home(tmp_path), fake.docker)
    found = asyncio.run(runtime.deployment("default")).member("tikv0")
    assert found.exit == Exit(0, None, False, 1789892130.0, "signal 15 through Docker")
    assert compose.STOP_S == 70.0
    assert f"--since 1789892060.000 --until {THE_TIME}" in fake.calls[-1], "from before a `docker stop` of it began"
    write(plan, ("stopping", "tikv0", {"by": "stop", "run": RUN}))
    asked = len(fake.calls)
    found = asyncio.run(runtime.deployment("default")).member("tikv0")
    assert found.exit == Exit(0, None, True, 1789892130.0, "stop")
    assert len(fake.calls) == asked + 2, "an end that was asked for needs no more words"


WORTH: list[tuple[str, Container, Book, bool]] = [
    ("it never ended", container(), NOTHING, False),
    ("it was never started", container(status="created", started_at=None), NOTHING, False),
    ("it ended by itself", ended(1, ended_text=THEN), NOTHING, True),
    ("its policy will start it", ended(1, status="restarting", ended_text=THEN), NOTHING, True),
    ("its end was asked for", ended(0, ended_text=THEN), asked_by("stop"), False),
    ("another run's end was asked for", ended(0, ended_text=THEN, started_text=NEXT_STARTED), asked_by("stop"), True),
    ("it runs again", container(**ENDED_THEN), NOTHING, True),
    ("it runs again, and this run is to end", container(**ENDED_THEN), asked_by("stop"), True),
    ("it ended before we started it", container(**ENDED_THEN), KNOWN, False),
    ("it ended before, and is held back", ended(0, ended_text=THEN), KNOWN, False),
    ("it ended once more", ended(0, ended_text="later"), KNOWN, True),
]


@pytest.mark.parametrize(("one", "book", "is_worth"), [case[1:] for case in WORTH], ids=[case[0] for case in WORTH])
def test_what_the_daemon_remembers_is_asked_for_where_it_may_tell_more(
    one: Container, book: Book, is_worth: bool
) -> None:
    assert is_worth_asking("tikv0", one, book) is is_worth


# --- events ----------------------------------------------------------------------------------------------------------


def watching(plan: ComposePlan, *now: Container) -> Watcher:
    members = {member.name: member.name for member in plan.topology.members}
    return Watcher(plan.name, plan.directory, members, now)


def event(action: str, service: str = "tikv0", **changes: Any) -> DockerEvent:
    told: dict[str, Any] = {"action": action, "service": service, "container_id": ID, "at": AT, **changes}
    return DockerEvent(**told)


def died(code: int) -> DockerEvent:
    return event("die", exit_code=code)


def kill(number: int) -> DockerEvent:
    return event("kill", signal=str(number))


def start() -> DockerEvent:
    return event("start")


NOW, AGAIN = container(pid=4711), container(pid=4712, started_text=NEXT_STARTED, started_at=AT)
GONE = ended(137)
OOM = ended(137, is_oom=True)
Seen = list[tuple[DockerEvent, Container | None]]
Told = list[tuple[EventKind, int | None, Exit | None]]

# In the orders in which Docker 20.10 sends them; it also sends `stop` and `restart`, which are not asked for.
EVENTS: list[tuple[str, str, Seen, Told]] = [
    (
        "docker stop by somebody",
        "",
        [(kill(15), None), (died(0), ended(0))],
        [(EventKind.EXITED, None, Exit(0, None, False, AT, "signal 15 through Docker"))],
    ),
    (
        "docker stop by somebody, too slow",
        "",
        [(kill(15), None), (kill(9), None), (died(137), GONE)],
        [(EventKind.EXITED, None, Exit(None, 9, False, AT, "signal 9 through Docker"))],
    ),
    (
        "docker kill by somebody",
        "",
        [(kill(9), None), (died(137), GONE)],
        [(EventKind.EXITED, None, Exit(None, 9, False, AT, "signal 9 through Docker"))],
    ),
    (
        "our stop",
        "stop",
        [(kill(15), None), (died(0), ended(0))],
        [(EventKind.EXITED, None, Exit(0, None, True, AT, "stop"))],
    ),
    (
        "our kill",
        "kill",
        [(kill(9), None), (died(137), GONE)],
        [(EventKind.EXITED, None, Exit(None, 9, True, AT, "kill"))],
    ),
    (
        "our restart",
        "restart",
        [(kill(15), None), (died(143), ended(143)), (start(), AGAIN)],
        [(EventKind.EXITED, None, Exit(None, 15, True, AT, "restart")), (EventKind.STARTED, 4712, None)],
    ),
    (
        "kill -9 of the process",
        "",
        [(died(137), GONE)],
        [(EventKind.EXITED, None, Exit(None, 9, False, AT))],
    ),
    (
        "out of memory, told before",
        "",
        [(event("oom"), None), (died(137), GONE)],
        [(EventKind.EXITED, None, Exit(None, 9, False, AT, "", True))],
    ),
    (
        "out of memory, told by the container alone",
        "",
        [(died(137), OOM)],
        [(EventKind.EXITED, None, Exit(None, 9, False, AT, "", True))],
    ),
    (
        "a health check was out of memory",
        "",
        [(event("oom"), None), (died(1), ended(1))],
        [(EventKind.EXITED, None, Exit(1, None, False, AT))],
    ),
    (
        "paused and resumed",
        "",
        [(event("pause"), None), (event("unpause"), None)],
        [(EventKind.PAUSED, None, None), (EventKind.RESUMED, None, None)],
    ),
    (
        "its policy starts it again, and the run after an asked one is not asked",
        "stop",
        [(died(1), AGAIN), (start(), AGAIN), (died(1), None)],
        [
            (EventKind.EXITED, None, Exit(1, None, True, AT, "stop")),
            (EventKind.STARTED, 4712, None),
            (EventKind.EXITED, None, Exit(1, None, False, AT)),
        ],
    ),
    (
        "a signal of the run before is forgotten",
        "",
        [(kill(9), None), (died(137), GONE), (start(), AGAIN), (died(1), ended(1))],
        [
            (EventKind.EXITED, None, Exit(None, 9, False, AT, "signal 9 through Docker")),
            (EventKind.STARTED, 4712, None),
            (EventKind.EXITED, None, Exit(1, None, False, AT)),
        ],
    ),
    ("a container of no member", "", [(event("die", "grafana", exit_code=1), None)], []),
    ("an event of no service", "", [(event("start", ""), None)], []),
    ("something else", "", [(event("exec_die"), None)], []),
]


@pytest.mark.parametrize(("by", "seen", "told"), [case[1:] for case in EVENTS], ids=[case[0] for case in EVENTS])
def test_events_are_told_as_ours(plan: ComposePlan, by: str, seen: Seen, told: Told) -> None:
    watcher = watching(plan, NOW)
    if by:
        write(plan, ("stopping", "tikv0", {"by": by, "run": NOW.run}))
    found = [ours for happened, now in seen if (ours := watcher.see(happened, now)) is not None]
    assert [(ours.kind, ours.pid, ours.exit) for ours in found] == told
    assert all((ours.deployment, ours.member, ours.at) == ("default", "tikv0", AT) for ours in found)
    assert not any(ours.is_replay for ours in found)


def test_a_member_that_is_started_while_it_is_watched_is_known_by_its_run(plan: ComposePlan) -> None:
    """Held back when the watch began, then started, then stopped by us."""
    watcher = watching(plan, container(status="created", started_text=ZERO))
    watcher.see(start(), NOW)
    write(plan, ("stopping", "tikv0", {"by": "stop", "run": NOW.run}))
    told = watcher.see(died(0), ended(0))
    assert told is not None
    assert told.exit == Exit(0, None, True, AT, "stop")


def test_a_watch_begins_with_how_each_member_is(plan: ComposePlan) -> None:
    containers = {
        "pd0": container("pd0", started_at=900.0),
        "pd1": container("pd1", "paused", started_at=901.0),
        "pd2": ended(1, service="pd2"),
        "tikv0": container(status="created", started_at=None),
        "tikv1": container("tikv1", restarts=1, finished_at=AT, started_at=902.0),
        "grafana": container("grafana"),
    }
    replays = list(watching(plan, *containers.values()).replays())
    name = plan.name
    assert replays == [
        MemberEvent(name, "pd0", EventKind.STARTED, 900.0, 4711, is_replay=True),
        MemberEvent(name, "pd1", EventKind.PAUSED, 901.0, 4711, is_replay=True),
        MemberEvent(name, "pd2", EventKind.EXITED, AT, None, Exit(1, None, False, AT), is_replay=True),
        MemberEvent(name, "tikv1", EventKind.STARTED, 902.0, 4711, is_replay=True),
    ]


def test_a_watch_pushes_what_the_daemon_pushes(plan: ComposePlan, tmp_path: Path) -> None:
    fake = FakeDocker(tmp_path)
    fake.holds(record("tikv0", file=plan.file))
    fake.knows_the_time()
    fake.says("events *", line("pause", 5) + line("unpause", 6) + line("die", 7, exitCode="0"))
    runtime = ComposeRuntime(Home(tmp_path), fake.docker)

    async def run() -> list[EventKind]:
        return [one.kind async for one in runtime.watch("default")]

    assert asyncio.run(run()) == [EventKind.STARTED, EventKind.PAUSED, EventKind.RESUMED, EventKind.EXITED]
    assert fake.calls[0] == "info --format {{.SystemTime}}", "before it looks, or what happens meanwhile is lost"
    events = next(call for call in fake.calls if call.startswith("events "))
    assert events.endswith(f"--since {THE_TIME}")


def of(other: str, happened: DockerEvent) -> DockerEvent:
    return replace(happened, container_id=other)


RECENT: list[tuple[str, list[DockerEvent], dict[str, RecentEnd]]] = [
    ("nothing", [], {}),
    ("it died", [died(1)], {ID: RecentEnd(1)}),
    ("its latest end", [died(1), start(), died(139), start()], {ID: RecentEnd(139)}),
    ("docker stop", [kill(15), died(0)], {ID: RecentEnd(0, signal="15")}),
    ("docker stop, too slow", [kill(15), kill(9), died(137)], {ID: RecentEnd(137, signal="9")}),
    ("docker restart", [kill(15), died(143), start()], {ID: RecentEnd(143, signal="15")}),
    ("docker kill, then an end of its own", [kill(9), died(137), start(), died(1)], {ID: RecentEnd(1)}),
    ("a signal that it outlived, then a start", [kill(15), start(), died(1)], {ID: RecentEnd(1)}),
    ("a signal that ends nobody", [kill(1), kill(10), died(1)], {ID: RecentEnd(1)}),
    ("out of memory", [event("oom"), died(137)], {ID: RecentEnd(137, is_oom=True)}),
    ("a health check out of memory", [event("oom"), died(1)], {ID: RecentEnd(1)}),
    ("out of memory an end before", [event("oom"), died(137), start(), died(137)], {ID: RecentEnd(137)}),
    ("a health check out of memory an end before", [event("oom"), died(1), start(), died(137)], {ID: RecentEnd(137)}),
    ("an end of which no code is told", [event("die")], {}),
    ("only a start is remembered", [start(), event("pause"), event("unpause")], {}),
    (
        "each container its own",
        [of("a", kill(9)), of("b", event("oom")), of("b", died(137)), of("a", died(137)), of("c", kill(15))],
        {"a": RecentEnd(137, signal="9"), "b": RecentEnd(137, is_oom=True)},
    ),
]


@pytest.mark.parametrize(("events", "ends"), [case[1:] for case in RECENT], ids=[case[0] for case in RECENT])
def test_the_latest_end_of_each_container_is_taken_from_the_events(
    events: list[DockerEvent], ends: dict[str, RecentEnd]
) -> None:
    assert recent_ends(events) == ends


# --- projects that others started ------------------------------------------------------------------------------------

WITH_EQUALS = ("--client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://pd:2379", "--data-dir=/data")
WITH_SPACE = ("--addr", "0.0.0.0:20160", "--advertise-addr", "kv:20161", "--pd-endpoints", "pd:2379")
BARE_PD = ("--initial-cluster=pd=http://pd:2380",)
WITH_PROGRAM = ("/bin/tikv-server", "--pd=pd:2379", "--advertise-addr=kv:20160")
SEVERAL = ("--client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", "https://a.example:1/,http://b:2")


@pytest.mark.parametrize(
    ("service", "command", "member"),
    [
        ("pd", WITH_EQUALS, Member("pd", Role.PD, "pd", {Purpose.CLIENT: 2379, Purpose.PEER: 2380})),
        (
            "pd",
            (*WITH_EQUALS, "--name=pd-a", "--advertise-peer-urls=http://10.1.2.3:2390"),
            Member("pd-a", Role.PD, "pd", {Purpose.CLIENT: 2379, Purpose.PEER: 2390}),
        ),
        ("pd", BARE_PD, Member("pd", Role.PD, "pd", {Purpose.CLIENT: 2379, Purpose.PEER: 2380})),
        ("pd", SEVERAL, Member("pd", Role.PD, "a.example", {Purpose.CLIENT: 1, Purpose.PEER: 2380})),
        ("kv", WITH_SPACE, Member("kv", Role.TIKV, "kv", {Purpose.CLIENT: 20161, Purpose.STATUS: 20180})),
        ("kv", WITH_PROGRAM, Member("kv", Role.TIKV, "kv", {Purpose.CLIENT: 20160, Purpose.STATUS: 20180})),
        (
            "kv",
            ("--pd=pd:2379", "--name=other", "--advertise-status-addr=kv:7"),
            Member("kv", Role.TIKV, "kv", {Purpose.CLIENT: 20160, Purpose.STATUS: 7}),
        ),
    ],
    ids=["equals", "another name", "next to nothing", "several urls", "spaces", "with its program", "TiKV has no name"],
)
def test_a_member_is_known_by_the_flags_it_runs_with(service: str, command: tuple[str, ...], member: Member) -> None:
    members, services, _ = compose_plans.members_of([container(service, command=command)])
    assert members == (member,)
    assert services == ({} if member.name == service else {member.name: service})


def test_a_project_is_taken_with_its_ports_and_without_what_is_no_member() -> None:
    found = [
        container("kv", command=WITH_SPACE, published={20161: 30161, 20180: 30180, 9999: 1}),
        container("grafana", command=("--config=/etc/grafana.ini",), published={3000: 3000}),
        container("init", command=("sh", "-c", "--pd-ctl x")),
        container("pd", command=(*WITH_EQUALS, "--name=pd-a"), published={2379: 12379}),
    ]
    members, services, published = compose_plans.members_of(found)
    assert [member.name for member in members] == ["pd-a", "kv"], "PD first"
    assert services == {"pd-a": "pd"}
    assert published == {
        ("pd-a", Purpose.CLIENT): 12379,
        ("kv", Purpose.CLIENT): 30161,
        ("kv", Purpose.STATUS): 30180,
    }
