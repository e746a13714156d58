"""What the compose runtime does with Docker's commands: whose containers it touches, what it starts, ends and removes
in which order, what it refuses, and what it keeps for evidence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_docker import STARTED, ZERO, FakeDocker, record

from drillyard.runtimes import compose_file, compose_plans, journal, ports
from drillyard.runtimes.abilities import Exit, Misuse, PlanDiffers, WrongState
from drillyard.runtimes.compose import ComposeRuntime
from drillyard.runtimes.compose_plans import ComposePlan
from drillyard.runtimes.docker import DockerRefused
from drillyard.runtimes.home import Home
from drillyard.topology import Member, Profile, Purpose, Role, Topology
from drillyard.waiting import Clock, Deadline, until

FOREVER_S = 60.0
ENDED = "2026-09-20T08:45:00Z"
ENDED_AT = 1789893900.0
PORTS = {("pd0", Purpose.CLIENT): 12379, ("tikv0", Purpose.CLIENT): 30160, ("tikv0", Purpose.STATUS): 30180}
LOOKS = (
    *("ps ", "container inspect ", "image inspect ", "network ls ", "volume ls "),
    *("version ", "compose version ", "info ", "events "),
)
GONE = "Error response from daemon: No such container: x"


@pytest.fixture
def fake(tmp_path: Path) -> FakeDocker:
    return FakeDocker(tmp_path)


@pytest.fixture
def runtime(tmp_path: Path, fake: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> ComposeRuntime:
    monkeypatch.setattr(ports, "is_free", lambda host, port: True)
    return ComposeRuntime(Home(tmp_path / "home"), fake.docker)


@pytest.fixture
def plan(runtime: ComposeRuntime) -> ComposePlan:
    """Two PD and two TiKV, planned."""
    return planned(runtime, compose_file.default_topology(2, 2))


def planned(runtime: ComposeRuntime, topology: Topology, **changes: Any) -> ComposePlan:
    directory = runtime.home.directory("default")
    made = replace(ComposePlan("default", directory, "drillyard-default", topology, PORTS), **changes)
    compose_plans.save(made)
    return made


def id_of(service: str) -> str:
    return f"{service}-".ljust(64, "0")


def run_of(service: str) -> str:
    return f"{id_of(service)[:12]}@{STARTED}"


def one(plan: ComposePlan, service: str, status: str = "running", **state: Any) -> dict[str, Any]:
    """The record of a container of the plan's own project."""
    told = {"Status": status, "Restarting": status == "restarting", **state}
    if status == "created":
        told = {"StartedAt": ZERO, **told}
    if status in ("exited", "restarting"):
        told = {"FinishedAt": ENDED, "Pid": 0, **told}
    return record(service, file=plan.file, state=told, Id=id_of(service))


def all_of(plan: ComposePlan, status: str = "running") -> list[dict[str, Any]]:
    return [one(plan, member.name, status) for member in plan.topology.members]


def acts_of(fake: FakeDocker) -> list[str]:
    """The calls that change something."""
    return [call for call in fake.calls if not call.startswith(LOOKS)]


def written(plan: ComposePlan, what: str) -> list[dict[str, Any]]:
    return [entry for entry in journal.read(plan.directory / "journal.jsonl") if entry["what"] == what]


def compose(plan: ComposePlan, *words: str) -> str:
    """A call of Compose with the plan's file."""
    options = ("-p", plan.project, "-f", str(plan.file), "--project-directory", str(plan.directory))
    return " ".join(("compose", *options, *words))


# --- whose containers they are ---------------------------------------------------------------------------------------

Act = Callable[[ComposeRuntime, ComposePlan], Awaitable[object]]
ACTS: list[tuple[str, Act]] = [
    ("deployment", lambda runtime, plan: runtime.deployment()),
    ("stop", lambda runtime, plan: runtime.stop()),
    ("stop with the data", lambda runtime, plan: runtime.stop(delete_data=True)),
    ("start", lambda runtime, plan: runtime.start(plan)),
    ("start of the rest", lambda runtime, plan: runtime.start_rest("default")),
    ("kill of a member", lambda runtime, plan: runtime.kill_member("default", "pd0")),
    ("keepsakes", lambda runtime, plan: runtime.keepsakes("default")),
]


def answers(fake: FakeDocker, version: str = "2.30.0") -> None:
    """Answer what a start asks of the daemon, of Compose and of the images, which are all here."""
    fake.says("version --format *", {"Server": {"Version": "29.0.0", "Arch": "amd64"}})
    fake.says("compose version *", {"version": version})
    fake.says("image inspect *", [{"Architecture": "amd64", "Config": {"Labels": {"drillyard.kind": "emulated"}}}])


@pytest.mark.parametrize("act", [case[1] for case in ACTS], ids=[case[0] for case in ACTS])
@pytest.mark.parametrize("is_readable", [True, False], ids=["", "with a damaged plan"])
def test_containers_of_another_homes_file_are_not_touched(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker, act: Act, is_readable: bool
) -> None:
    theirs = "/another/home/deployments/default/docker-compose.yaml"
    fake.holds(one(plan, "pd1"), record("pd0", file=theirs))
    answers(fake)
    if not is_readable:
        (plan.directory / "compose.json").write_text("{")
        act = ACTS[1][1]  # the one thing that can be done with it

    async def run() -> None:
        await act(runtime, plan)

    with pytest.raises(PlanDiffers) as raised:
        asyncio.run(run())
    assert raised.value.wrong == f"project drillyard-default runs from {theirs}, and is not this home's"
    assert raised.value.mend == "use another name (--name), or the home that it belongs to (DRILLYARD_HOME)"
    assert acts_of(fake) == []
    assert not (plan.directory / "journal.jsonl").exists(), "and nothing is claimed to have been done"


def test_a_home_is_known_by_whichever_way_leads_to_it(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "home")
    fake.holds(record("pd0", file=tmp_path / "link" / "deployments" / "default" / "docker-compose.yaml"))
    assert asyncio.run(runtime.deployment()).member("pd0").running


def test_an_adopted_project_runs_from_its_owners_file(runtime: ComposeRuntime, fake: FakeDocker) -> None:
    topology = compose_file.in_containers(compose_file.default_topology(1, 1))
    planned(runtime, topology, adopted=True, project="mine")
    fake.holds(record("pd0", file="/home/me/docker-compose.yaml"))
    assert asyncio.run(runtime.deployment()).member("pd0").running


# --- start -----------------------------------------------------------------------------------------------------------


def starts(fake: FakeDocker, plan: ComposePlan, version: str = "2.30.0") -> None:
    """Answer a start from nothing: what Compose creates is there afterwards."""
    answers(fake, version)
    fake.holds()
    made = [one(plan, member.name, "created") for member in plan.topology.members]
    fake.program.with_name("made").write_text(json.dumps(made))
    fake.program.with_name("made-ids").write_text("".join(f"{each['Id']}\n" for each in made))
    fake.does("compose * create *", 'cd "$(dirname "$0")"; cp made records.json; cp made-ids ids')
    fake.says("compose * start *")


LEASE = (Member("pd0", Role.PD, config={"lease": 9}), Member("tikv0", Role.TIKV))
LAPTOP = compose_file.default_topology(3, 3, Profile.LAPTOP)
OLD: list[tuple[str, str, Topology, bool]] = [
    ("2.20.0, a profile of ours", "2.20.0", LAPTOP, True),
    ("v2.20.0, settings of one's own", "v2.20.0", Topology(LEASE, Profile.UPSTREAM), True),
    ("2.23.0", "2.23.0", LAPTOP, True),
    ("2.20.0, fewer stores than replicas", "2.20.0", compose_file.default_topology(1, 1), True),
    ("2.20.0, the servers' own settings", "2.20.0", compose_file.default_topology(3, 3, Profile.UPSTREAM), False),
    ("2.23.1", "2.23.1", LAPTOP, False),
    ("a version that is not told", "dev", LAPTOP, False),
]


@pytest.mark.parametrize(
    ("version", "topology", "is_refused"), [case[1:] for case in OLD], ids=[case[0] for case in OLD]
)
def test_settings_want_a_compose_that_can_write_them(
    runtime: ComposeRuntime, fake: FakeDocker, version: str, topology: Topology, is_refused: bool
) -> None:
    """Plain `docker compose` takes the settings from the file itself, which older ones cannot."""
    plan = planned(runtime, topology)
    starts(fake, plan, version)
    if not is_refused:
        assert len(asyncio.run(runtime.start(plan)).members) == len(topology.members)
        assert acts_of(fake)[0] == compose(plan, "create", "--remove-orphans")
        return
    with pytest.raises(DockerRefused) as raised:
        asyncio.run(runtime.start(plan))
    told = version.lstrip("v")
    assert raised.value.wrong == f"`docker compose` {told} cannot write settings into a container"
    mend = "install 2.23.1 or newer, or use `--profile upstream`, three stores and no settings of your own"
    assert raised.value.mend == mend
    assert acts_of(fake) == [], "before anything is made"
    assert not plan.file.exists()


def test_a_start_makes_all_and_starts_pd_alone(runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker) -> None:
    starts(fake, plan)
    told: list[str] = []
    found = asyncio.run(runtime.start(plan, told.append))
    assert acts_of(fake) == [compose(plan, "create", "--remove-orphans"), compose(plan, "start", "pd0", "pd1")]
    assert [entry["member"] for entry in written(plan, "started")] == ["pd0", "pd1"]
    up = written(plan, "up")
    assert [(entry["ends"], set(entry["kinds"].values())) for entry in up] == [({}, {"emulated"})]
    assert [member.name for member in found.members if member.role is Role.TIKV and member.is_held_back] == [
        "tikv0",
        "tikv1",
    ]
    assert told == ["memory limits: 2 PD with 512m each, 2 TiKV with 1536m each (a TiKV's block cache: 45% of it)"]
    remembered = compose_plans.load(plan.directory)
    assert remembered is not None
    assert remembered.environment["TIKV_OPEN_FILES"] == "20000", "an emulated store is content with few"


def test_a_start_writes_down_which_ends_it_finds(runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker) -> None:
    """They are over and done; and what is overwritten by a start is told with it."""
    answers(fake)
    fake.holds(one(plan, "pd0", "exited"), one(plan, "pd1", "created"), one(plan, "tikv0", "exited", ExitCode=137))
    fake.says("compose * create *")
    fake.says("compose * start *")
    found = asyncio.run(runtime.start(plan))
    assert [entry["ends"] for entry in written(plan, "up")] == [{"pd0": ENDED, "tikv0": ENDED}]
    assert [(entry["member"], entry["ended"]) for entry in written(plan, "started")] == [("pd0", ENDED), ("pd1", "")]
    assert [member.exit for member in found.members] == [None] * 4
    assert found.member("tikv0").is_held_back


def test_a_start_that_is_interrupted_is_carried_to_its_end(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker
) -> None:
    answers(fake)
    fake.holds()
    directory = fake.program.parent
    fake.does("compose * create *", 'cd "$(dirname "$0")"; : >creating; until [ -e go ]; do sleep 0.02; done')
    fake.says("compose * start *")

    async def is_creating() -> bool | None:
        return (directory / "creating").exists() or None

    async def run() -> None:
        starting = asyncio.create_task(runtime.start(plan))
        assert await until(is_creating, Deadline.after(Clock(), FOREVER_S))
        starting.cancel()
        await asyncio.sleep(0)
        (directory / "go").touch()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(run())
    assert acts_of(fake)[-1] == compose(plan, "start", "pd0", "pd1")


def test_a_pd_that_an_interrupted_start_left_is_started_by_the_next(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker
) -> None:
    fake.holds(one(plan, "pd0"), one(plan, "pd1", "created"), one(plan, "tikv0", "created"), one(plan, "tikv1"))
    answers(fake)
    fake.says("compose * start *")
    asyncio.run(runtime.start(plan))
    assert acts_of(fake) == [compose(plan, "start", "pd1")], "no store: those are for later"
    assert [entry["member"] for entry in written(plan, "started")] == ["pd1"]
    assert written(plan, "up") == [], "what runs was not started anew"


@pytest.mark.parametrize("status", ["running", "exited", "paused"])
def test_a_start_of_what_runs_leaves_the_others_as_they_are(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker, status: str
) -> None:
    """One that ended alone is somebody's to look at."""
    fake.holds(one(plan, "pd0"), one(plan, "pd1", status, ExitCode=1), one(plan, "tikv0"), one(plan, "tikv1"))
    answers(fake)
    fake.knows_the_time()
    fake.says("events *")
    asyncio.run(runtime.start(plan))
    assert acts_of(fake) == []
    assert not (plan.directory / "journal.jsonl").exists()


# --- adopt -----------------------------------------------------------------------------------------------------------

FILE = "/home/me/docker-compose.yaml"
KV = ["--addr=0.0.0.0:20160", "--advertise-addr=kv:20160", "--pd=pd:2379"]
PD = ["--client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://pd:2379"]


def theirs(service: str, number: int, arguments: list[str], **state: Any) -> dict[str, Any]:
    name = f"{service}-{number}"
    return record(service, file=FILE, state=state, Id=id_of(name), Name=f"/mine-{name}", Args=arguments)


def test_a_project_is_adopted_as_it_is(runtime: ComposeRuntime, fake: FakeDocker) -> None:
    """Also with one of its stores ended: that was before, and nobody's to look at."""
    fake.holds(theirs("pd", 1, PD), theirs("kv", 1, KV, Status="exited", FinishedAt=ENDED))
    found = asyncio.run(runtime.adopt("mine", "own"))
    assert [(member.name, member.running, member.exit) for member in found.members] == [
        ("pd", True, None),
        ("kv", False, None),
    ]
    plan = compose_plans.load(runtime.home.directory("own"))
    assert plan is not None
    assert (plan.adopted, plan.project) == (True, "mine")
    (adopted,) = written(plan, "adopted")
    assert (adopted["ends"], adopted["kinds"]) == ({"kv": ENDED}, {"pd": "real", "kv": "real"})
    assert acts_of(fake) == [], "nothing of it is touched"


def test_a_service_with_several_containers_is_no_member(runtime: ComposeRuntime, fake: FakeDocker) -> None:
    fake.holds(theirs("pd", 1, PD), theirs("kv", 1, KV), theirs("kv", 2, KV))
    with pytest.raises(Misuse) as raised:
        asyncio.run(runtime.adopt("mine", "own"))
    assert raised.value.wrong == "service 'kv' has several containers"
    assert raised.value.mend == "a member is one container: scale it to one"
    assert runtime.home.names() == (), "and nothing is remembered"


def test_ones_own_deployment_is_not_adopted(runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker) -> None:
    fake.holds(*all_of(plan))
    with pytest.raises(Misuse) as raised:
        asyncio.run(runtime.adopt("drillyard-default", "own"))
    assert raised.value.wrong == "project 'drillyard-default' is deployment 'default' already"
    assert raised.value.mend == "use `--name default`"
    assert runtime.home.names() == ("default",)


# --- act on a member -------------------------------------------------------------------------------------------------


def test_a_member_that_its_policy_starts_again_and_again_is_not_started(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker
) -> None:
    fake.holds(one(plan, "pd0"), one(plan, "tikv0", "restarting", ExitCode=1))
    fake.knows_the_time()
    fake.says("events *")
    with pytest.raises(WrongState) as raised:
        asyncio.run(runtime.start_member("default", "tikv0"))
    assert raised.value.wrong == "tikv0 ends again and again, and its policy starts it each time"
    assert raised.value.mend == "`drillyard logs tikv0` tells why; `drillyard stop tikv0` ends it"
    assert acts_of(fake) == []
    assert written(plan, "started") == []


@pytest.mark.parametrize("others", ["running", "exited"], ids=["", "and is the last"])
@pytest.mark.parametrize("by", ["stop", "kill"])
def test_a_member_between_two_runs_is_kept_from_the_next(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker, by: str, others: str
) -> None:
    """`docker kill` refuses one that does not run; its end was before anybody asked for one."""
    fake.holds(one(plan, "pd0", others), one(plan, "tikv0", "restarting", ExitCode=1))
    fake.knows_the_time()
    fake.says("events *")
    after = [one(plan, "pd0", others), one(plan, "tikv0", "exited", ExitCode=1)]
    fake.program.with_name("after").write_text(json.dumps(after))
    fake.does(f"stop {id_of('tikv0')}", 'cd "$(dirname "$0")"; cp after records.json')
    act = runtime.stop_member if by == "stop" else runtime.kill_member
    how = asyncio.run(act("default", "tikv0"))
    assert how == Exit(1, None, False, ENDED_AT)
    assert acts_of(fake) == [f"stop {id_of('tikv0')}"]
    assert written(plan, "stopping") == []


@pytest.mark.parametrize(
    ("by", "code", "expected"),
    [("stop", 0, Exit(0, None, True, ENDED_AT, "stop")), ("kill", 137, Exit(None, 9, True, ENDED_AT, "kill"))],
    ids=["stop", "kill"],
)
def test_an_end_of_ours_is_written_down_before_it_is_asked_for(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker, by: str, code: int, expected: Exit
) -> None:
    fake.holds(one(plan, "pd0"), one(plan, "tikv0"))
    after = [one(plan, "pd0"), one(plan, "tikv0", "exited", ExitCode=code)]
    fake.program.with_name("after").write_text(json.dumps(after))
    book = plan.directory / "journal.jsonl"
    fake.does(f"{by} *", f'cd "$(dirname "$0")"; cp after records.json; cp "{book}" before')
    act = runtime.stop_member if by == "stop" else runtime.kill_member
    assert asyncio.run(act("default", "tikv0")) == expected
    (stopping,) = journal.read(fake.program.with_name("before"))
    assert (stopping["member"], stopping["by"], stopping["run"]) == ("tikv0", by, run_of("tikv0"))
    assert acts_of(fake) == [f"{by} {id_of('tikv0')}"]


# --- down ------------------------------------------------------------------------------------------------------------


def goes_down(fake: FakeDocker, *, relay: str = "", volumes: str = "") -> None:
    """Answer a `down`: what is removed is not there afterwards."""
    emptied = 'cd "$(dirname "$0")"; : >ids; echo "[]" >records.json'
    fake.program.with_name("relays").write_text(relay)
    fake.does("ps -a --format * --filter label=drillyard.relay=default", 'cat "$(dirname "$0")/relays"')
    fake.says("ps -a --format * --filter label=com.docker.compose.project=drillyard-default")
    fake.does("rm -f *", ': >"$(dirname "$0")/relays"')
    fake.does("compose -p drillyard-default down *", emptied)
    fake.says("network ls *")
    fake.says("volume ls *", volumes)
    fake.says("volume rm *")


def test_stores_end_before_pd_and_nothing_is_left(runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker) -> None:
    fake.holds(*all_of(plan))
    fake.says("stop *")
    goes_down(fake, volumes="drillyard-default_pd0-data\n")
    report = asyncio.run(runtime.stop())
    calls = acts_of(fake)
    assert set(calls[:2]) == {f"stop {id_of('tikv0')}", f"stop {id_of('tikv1')}"}
    assert set(calls[2:4]) == {f"stop {id_of('pd0')}", f"stop {id_of('pd1')}"}
    assert calls[4:] == ["compose -p drillyard-default down --remove-orphans"], "and its volumes stay"
    assert report.is_clean
    assert report.stopped == ("pd0", "pd1", "tikv0", "tikv1")
    assert report.kept == ("volume drillyard-default_pd0-data",)
    asked = [(entry["member"], entry["by"], entry["run"]) for entry in written(plan, "stopping")]
    assert asked == [(name, "down", run_of(name)) for name in ("pd0", "pd1", "tikv0", "tikv1")]
    assert len(written(plan, "down")) == 1


def test_with_the_data_go_the_volumes_also_those_without_a_name(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker
) -> None:
    fake.holds(*all_of(plan, "exited"))
    goes_down(fake)
    report = asyncio.run(runtime.stop(delete_data=True))
    assert acts_of(fake) == ["compose -p drillyard-default down --remove-orphans --volumes"], "nothing runs any more"
    assert report.data_deleted
    assert runtime.names() == ()


def test_a_container_that_vanished_meanwhile_keeps_nobody_from_going_down(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker
) -> None:
    fake.holds(*all_of(plan))
    fake.says(f"stop {id_of('tikv0')}", err=GONE, code=1)
    fake.says("stop *")
    goes_down(fake)
    assert asyncio.run(runtime.stop()).is_clean
    assert acts_of(fake)[-1] == "compose -p drillyard-default down --remove-orphans"
    assert len([call for call in fake.calls if call.startswith("stop ")]) == 4, "the others are stopped all the same"


def test_a_container_that_cannot_be_stopped_is_told_and_nothing_is_removed(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker
) -> None:
    fake.holds(*all_of(plan))
    fake.says(f"stop {id_of('tikv0')}", err="tried to kill container, but did not receive an exit event", code=1)
    fake.says("stop *")
    goes_down(fake)
    with pytest.raises(DockerRefused, match="did not receive an exit event"):
        asyncio.run(runtime.stop())
    assert {call.split()[0] for call in acts_of(fake)} == {"stop"}
    assert f"stop {id_of('pd0')}" not in fake.calls, "PD is there for the stores as long as one of them may run"
    assert written(plan, "down") == []


def test_a_member_between_two_runs_is_stopped_by_a_down_and_its_end_stays_unasked(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker
) -> None:
    fake.holds(one(plan, "pd0"), one(plan, "pd1", "exited"), one(plan, "tikv0", "restarting", ExitCode=1))
    fake.says("stop *")
    goes_down(fake)
    asyncio.run(runtime.stop())
    assert acts_of(fake)[:2] == [f"stop {id_of('tikv0')}", f"stop {id_of('pd0')}"]
    assert [entry["member"] for entry in written(plan, "stopping")] == ["pd0"]


def test_a_relay_that_was_left_is_removed_before_its_network(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker
) -> None:
    fake.holds(*all_of(plan, "exited"))
    goes_down(fake, relay="drillyard-relay-default-1\ndrillyard-relay-default-2\n")
    report = asyncio.run(runtime.stop())
    assert acts_of(fake) == [
        "rm -f drillyard-relay-default-1",
        "rm -f drillyard-relay-default-2",
        "compose -p drillyard-default down --remove-orphans",
    ]
    assert report.is_clean


def test_what_is_left_is_told_by_its_name(runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker) -> None:
    """A container of `docker compose run` too, which is no member and holds the network."""
    fake.holds()
    fake.says("ps -a --format * --filter label=com.docker.compose.project=*", "drillyard-default-pd0-run-1\n")
    fake.says("network ls *", "drillyard-default_default\n")
    goes_down(fake)
    report = asyncio.run(runtime.stop())
    assert not report.is_clean
    assert report.left_objects == ("container drillyard-default-pd0-run-1", "network drillyard-default_default")


# --- what is kept ----------------------------------------------------------------------------------------------------


def keeps(fake: FakeDocker) -> None:
    fake.says("version --format *", {"Server": {"Version": "29.0.0"}})
    fake.knows_the_time()
    fake.says("events *")


def test_logs_and_records_are_kept_by_their_containers(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker
) -> None:
    fake.holds(*reversed(all_of(plan)))
    keeps(fake)
    fake.does("logs *", "eval last=\\${$#}; echo of $last")
    kept = asyncio.run(runtime.keepsakes("default"))
    for member in plan.topology.members:
        assert kept[f"logs/{member.name}.log"] == f"of drillyard-default-{member.name}-1".encode()
        assert json.loads(kept[f"docker/{member.name}.json"])["Id"] == id_of(member.name)
    assert json.loads(kept["docker/version.json"])["Server"]["Version"] == "29.0.0"


def test_a_container_that_vanishes_meanwhile_does_not_lend_its_place_to_another(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker
) -> None:
    """It is there when they are listed, and gone when they are looked at."""
    there = all_of(plan)
    whole = " ".join(each["Id"] for each in there)
    once = f"if [ -e seen ]; then echo '{GONE}' >&2; exit 1; fi; : >seen; cat all"
    fake.program.with_name("all").write_text(json.dumps(there))
    fake.says("ps -a -q *", "".join(f"{each['Id']}\n" for each in there))
    fake.does(f"container inspect {whole}", f'cd "$(dirname "$0")"; {once}')
    for each in there[1:]:
        fake.says(f"container inspect {each['Id']}", [each])
    fake.says("container inspect *", err=GONE, code=1)
    keeps(fake)
    fake.says("logs * drillyard-default-pd0-1", err=GONE, code=1)
    fake.does("logs *", "eval last=\\${$#}; echo of $last")
    kept = asyncio.run(runtime.keepsakes("default"))
    assert kept["logs/pd0.log"].startswith(b"not to be had: "), "what cannot be had is told in its place"
    assert b"No such container" in kept["logs/pd0.log"]
    assert json.loads(kept["docker/pd0.json"]) == {"not to be had": "the container vanished meanwhile"}
    for name in ("pd1", "tikv0", "tikv1"):
        assert kept[f"logs/{name}.log"] == f"of drillyard-default-{name}-1".encode()
        assert json.loads(kept[f"docker/{name}.json"])["Id"] == id_of(name)


def test_recent_events_are_kept_as_lines(runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker) -> None:
    labels = {"com.docker.compose.service": "tikv0"}
    events = [
        {"Action": "kill", "Actor": {"ID": "x", "Attributes": {**labels, "signal": "15"}}, "timeNano": 5 * 10**9},
        {"Action": "die", "Actor": {"ID": "x", "Attributes": {**labels, "exitCode": "0"}}, "timeNano": 6 * 10**9},
        {"Action": "start", "Actor": {"ID": "x", "Attributes": labels}, "timeNano": 7 * 10**9},
    ]
    fake.holds(*all_of(plan))
    fake.says("events *", "".join(f"{json.dumps(event)}\n" for event in events))
    keeps(fake)
    fake.says("logs *")
    kept = asyncio.run(runtime.keepsakes("default"))
    assert kept["docker/events.txt"] == b"5.000 tikv0 kill 15\n6.000 tikv0 die code 0\n7.000 tikv0 start\n"
    assert "logs/pd0.log" not in kept, "what is empty is left out"
    assert {"deployment/compose.json"} <= set(kept)


def test_a_daemon_that_refuses_leaves_the_projects_own_files(
    runtime: ComposeRuntime, plan: ComposePlan, fake: FakeDocker
) -> None:
    fake.says("*", err="Cannot connect to the Docker daemon at unix:///x.sock.", code=1)
    kept = asyncio.run(runtime.keepsakes("default"))
    assert b"no Docker daemon answers at unix:///x.sock" in kept["docker/refused.txt"]
    assert "deployment/compose.json" in kept
