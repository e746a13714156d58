"""Docker by its command line: its words understood, its calls bounded and ended whole, its records turned into ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_docker import ID, NOW, STARTED, ZERO, FakeDocker, is_gone, record

from drillyard.runtimes import docker
from drillyard.runtimes.docker import Docker, DockerEvent, DockerRefused, refusal_of
from drillyard.waiting import Clock, Deadline, until

FOREVER_S, GONE_S = 60.0, 10.0
SOCKET = "unix:///var/run/docker.sock"
NO_DAEMON = "no Docker daemon answers"
NO_SOCKET = f"{NO_DAEMON} at {SOCKET}"
NO_RIGHT = "this user may not talk to the Docker daemon"
NO_COMPOSE = "`docker compose` is missing or older than v2"
NO_SPACE = "there is no space left for Docker"
OTHER_MACHINE = "the image is made for another architecture than this machine's"
PROXY = "Error response from daemon: driver failed programming external connectivity on endpoint pd0 (4f8c3e2a): "
NETWORK = "Error response from daemon: failed to set up container networking: "

# The words of Docker 20.10 to 29, of its Compose plugin, and of Docker Desktop.
REFUSALS = [
    (
        f"Cannot connect to the Docker daemon at {SOCKET}. Is the docker daemon running?",
        NO_SOCKET,
        "start it",
    ),
    (
        f"failed to connect to the docker API at {SOCKET}; check if the path is correct and if the daemon is running: "
        "dial unix /var/run/docker.sock: connect: no such file or directory",
        NO_SOCKET,
        "--runtime local",
    ),
    (
        "error during connect: Get http://docker.example.com:2375/v1.24/containers/json: dial tcp: i/o timeout",
        NO_DAEMON,
        "start it",
    ),
    (
        "Cannot connect to the Docker daemon at tcp://docker.example.com:2375. Is the docker daemon running?",
        f"{NO_DAEMON} at tcp://docker.example.com:2375",
        "start it",
    ),
    (
        f"Got permission denied while trying to connect to the Docker daemon socket at {SOCKET}: "
        'Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.24/containers/json": dial unix /var/run/docker.sock: '
        "connect: permission denied",
        NO_RIGHT,
        "group `docker`",
    ),
    (f"permission denied while trying to connect to the docker API at {SOCKET}", NO_RIGHT, "group `docker`"),
    (
        "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
        NO_RIGHT,
        "rootless",
    ),
    ("docker: 'compose' is not a docker command.\nSee 'docker --help'", NO_COMPOSE, "docker-compose-plugin"),
    ("docker: unknown command: docker compose\n\nRun 'docker --help' for more information", NO_COMPOSE, "install"),
    ("unknown shorthand flag: 'p' in -p\nSee 'docker --help'.", NO_COMPOSE, "docker-compose-v2"),
    (f"{PROXY}Bind for 127.0.0.1:2379 failed: port is already allocated", "port 2379 is taken", "PD_PORT"),
    (
        f"{PROXY}Error starting userland proxy: listen tcp4 127.0.0.1:2379: bind: address already in use",
        "port 2379 is taken",
        "stop what listens there",
    ),
    (
        "Error response from daemon: Ports are not available: exposing port TCP 127.0.0.1:20160 -> 0.0.0.0:0: "
        "listen tcp 127.0.0.1:20160: bind: address already in use",
        "port 20160 is taken",
        "TIKV_PORT",
    ),
    (
        f"{NETWORK}driver failed programming external connectivity on endpoint pd0 (4f8c3e2a): "
        "failed to bind host port for 127.0.0.1:2379:172.18.0.2:2379/tcp: address already in use",
        "port 2379 is taken",
        "PD_PORT",
    ),
    (
        f"{NETWORK}driver failed programming external connectivity on endpoint pd0 (4f8c3e2a): "
        "failed to bind host port 127.0.0.1:2379/tcp: address already in use",
        "port 2379 is taken",
        "PD_PORT",
    ),
    (
        "failed to register layer: Error processing tar file(exit status 1): write /bin/tikv-server: "
        "no space left on device",
        NO_SPACE,
        "docker system df",
    ),
    (
        "no matching manifest for linux/arm64/v8 in the manifest list entries",
        "the image is not made for linux/arm64/v8",
        "multi-architecture",
    ),
    ("exec /tikv-server: exec format error", OTHER_MACHINE, "multi-architecture"),
    (
        "Error response from daemon: failed to create task for container: OCI runtime create failed: "
        "runc create failed: unable to start container process: error during container init: "
        "error setting rlimits for ready process: "
        "error setting rlimit type 7: operation not permitted: unknown",
        "the Docker daemon may not give a container so many open files",
        "TIKV_OPEN_FILES",
    ),
]


@pytest.mark.parametrize(("words", "wrong", "mend"), REFUSALS, ids=[case[0][-40:] for case in REFUSALS])
def test_what_docker_refuses_is_told_plainly_with_its_mend(words: str, wrong: str, mend: str) -> None:
    refused = refusal_of(("compose", "up"), f"{words}\n")
    assert refused.wrong == wrong
    assert mend in refused.mend
    assert refused.output == words, "whole, for whoever looks closer"


@pytest.mark.parametrize(
    ("arguments", "words", "wrong"),
    [
        (("pull", "--quiet", "x"), "first\nsecond: gone\n\n", "`docker pull` failed: second: gone"),
        (("container", "inspect", "x"), "odd\n", "`docker container inspect` failed: odd"),
        (("compose", "-p", "x", "-f", "y", "create", "--pull"), "odd", "`docker compose create` failed: odd"),
        (("kill", "x"), " \n", "`docker kill x` failed: it did not say why"),
    ],
)
def test_any_other_refusal_quotes_its_last_line(arguments: tuple[str, ...], words: str, wrong: str) -> None:
    refused = refusal_of(arguments, words)
    assert refused.wrong == wrong
    assert refused.mend == "these are Docker's own words; `docker ps -a` shows what is there"


@pytest.mark.parametrize(("words", "wrong"), [case[:2] for case in REFUSALS], ids=[case[0][-40:] for case in REFUSALS])
def test_only_a_daemon_that_cannot_be_talked_to_is_unreachable(words: str, wrong: str) -> None:
    assert docker.is_unreachable(words) == wrong.startswith((NO_DAEMON, NO_RIGHT))


# --- calls -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path) -> FakeDocker:
    return FakeDocker(tmp_path)


def test_a_call_gives_what_the_command_prints(fake: FakeDocker) -> None:
    fake.says("ps -a --filter *", "grüß\n", err="a warning\n")
    assert asyncio.run(fake.docker.run("ps", "-a", "--filter", "a=b c; $d")) == "grüß\n"
    assert fake.calls == ["ps -a --filter a=b c; $d"]


@pytest.mark.parametrize(("out", "err"), [("", "it broke"), ("it broke", "")], ids=["stderr", "stdout"])
def test_a_call_that_fails_tells_what_the_command_said(fake: FakeDocker, out: str, err: str) -> None:
    fake.says("kill x", out, err=err, code=3)
    with pytest.raises(DockerRefused, match="`docker kill x` failed: it broke; these are Docker's own words"):
        asyncio.run(fake.docker.run("kill", "x"))


def test_a_call_has_our_environment_and_what_is_added_to_it(fake: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "orbstack")
    fake.does("up", 'echo "$DOCKER_CONTEXT $PD_IMAGE"')
    assert asyncio.run(fake.docker.run("up", environment={"PD_IMAGE": "pd"})) == "orbstack pd\n"


def test_without_a_docker_command_it_is_told_what_to_install(tmp_path: Path) -> None:
    nowhere = Docker(str(tmp_path / "docker"))
    with pytest.raises(DockerRefused, match=r"there is no `.*docker` command here") as raised:
        asyncio.run(nowhere.run("ps"))
    assert "install Docker Engine" in raised.value.mend


HANGS = 'sleep 600 & echo $$ $! >"$(dirname "$0")/pids"; wait'


async def pids_of(fake: FakeDocker) -> list[int]:
    """The fake's own pid and its child's, as soon as they are there."""

    async def look() -> list[int] | None:
        path = fake.program.with_name("pids")
        found = path.read_text().split() if path.exists() else []
        return [int(pid) for pid in found] if len(found) == 2 else None

    found = await until(look, Deadline.after(Clock(), FOREVER_S))
    assert found is not None, "the fake did not start"
    return found


async def ended(pids: list[int]) -> bool:
    """Whether all of these are gone in good time; those that are not are ended here."""

    async def look() -> bool | None:
        return all(is_gone(pid) for pid in pids) or None

    are_gone = await until(look, Deadline.after(Clock(), GONE_S)) is not None
    for pid in [] if are_gone else pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return are_gone


@pytest.mark.parametrize("stubborn", [False, True], ids=["ends when asked", "has to be killed"])
def test_a_call_that_hangs_is_ended_with_its_children(fake: FakeDocker, stubborn: bool) -> None:
    fake.does("ps", ('trap "" TERM; ' if stubborn else "") + HANGS)

    async def run() -> None:
        for timeout_s in (0.2, 2.0, 20.0):  # the shell must have come to its wait, or nothing is shown
            with pytest.raises(DockerRefused, match=rf"docker gave no answer within {timeout_s:g} s \(ps\)") as raised:
                await fake.docker.run("ps", timeout_s=timeout_s)
            assert "docker info" in raised.value.mend
            if fake.program.with_name("pids").exists():
                break
        assert await ended(await pids_of(fake))

    asyncio.run(run())


def test_a_call_whose_caller_goes_is_ended_with_its_children(fake: FakeDocker) -> None:
    fake.does("ps", HANGS)

    async def run() -> None:
        calling = asyncio.create_task(fake.docker.run("ps", timeout_s=FOREVER_S))
        pids = await pids_of(fake)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await ended(pids)

    asyncio.run(run())


def test_a_call_whose_caller_goes_while_it_is_being_started_is_ended_with_its_children(
    fake: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command may run already, and have children, before its start is known to be done."""
    fake.does("ps", HANGS)
    real = asyncio.create_subprocess_exec

    async def run() -> None:
        may_return, started = asyncio.Event(), []

        async def start(*program: str, **options: Any) -> asyncio.subprocess.Process:
            started.append(await real(*program, **options))
            await may_return.wait()
            return started[0]

        monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
        calling = asyncio.create_task(fake.docker.run("ps", timeout_s=FOREVER_S))
        pids = await pids_of(fake)
        calling.cancel()
        await asyncio.sleep(0)
        may_return.set()
        with pytest.raises(asyncio.CancelledError):
            await calling
        are_gone = await ended(pids)
        await started[0].communicate()  # whatever became of it, it is not left to the garbage collector
        assert are_gone

    asyncio.run(run())


def test_a_stream_that_is_left_is_ended_with_its_children(fake: FakeDocker) -> None:
    fake.does("logs --follow x", f"echo one; echo two >&2; {HANGS}")

    async def run() -> list[str]:
        lines = []
        async with contextlib.aclosing(fake.docker.stream("logs", "--follow", "x")) as stream:
            async for line in stream:
                lines.append(line)
                if len(lines) == 2:
                    break
            pids = await pids_of(fake)
        assert await ended(pids)
        return lines

    assert asyncio.run(run()) == ["one", "two"], "both of its outputs"


def test_a_stream_that_ends_badly_is_refused_with_its_last_line(fake: FakeDocker) -> None:
    fake.says("logs ends well", "one\ntwo\n")
    fake.says("logs ends badly", "one\n", err="Error response from daemon: no such container\n", code=1)
    lines: list[str] = []

    async def run(how: str) -> None:
        async for line in fake.docker.stream("logs", "ends", how):
            lines.append(line)  # noqa: PERF401 - what came before the refusal counts

    asyncio.run(run("well"))
    assert lines == ["one", "two"]
    lines.clear()
    with pytest.raises(DockerRefused, match="`docker logs ends` failed: Error response from daemon: no such container"):
        asyncio.run(run("badly"))
    assert lines == ["one", "Error response from daemon: no such container"], "what it said was passed on before"


def test_lines_are_those_of_both_outputs_as_they_were_written(fake: FakeDocker) -> None:
    fake.does("logs x", "echo one; echo two >&2; echo three")
    assert asyncio.run(fake.docker.lines("logs", "x")) == ["one", "two", "three"]


def test_lines_of_a_call_that_fails_are_a_refusal(fake: FakeDocker) -> None:
    fake.says("logs x", err=f"Cannot connect to the Docker daemon at {SOCKET}.", code=1)
    with pytest.raises(DockerRefused, match=NO_SOCKET):
        asyncio.run(fake.docker.lines("logs", "x"))


def test_lines_that_do_not_come_to_an_end_are_ended_with_their_children(fake: FakeDocker) -> None:
    fake.does("logs x", f"echo one; {HANGS}")

    async def run() -> None:
        for timeout_s in (0.2, 2.0, 20.0):
            with pytest.raises(DockerRefused, match=rf"docker gave no answer within {timeout_s:g} s \(logs x\)"):
                await fake.docker.lines("logs", "x", timeout_s=timeout_s)
            if fake.program.with_name("pids").exists():
                break
        assert await ended(await pids_of(fake))

    asyncio.run(run())


# --- what there is ---------------------------------------------------------------------------------------------------


def event(**changes: Any) -> dict[str, Any]:
    return {
        "Type": "container",
        "Action": "die",
        "Actor": {
            "ID": ID,
            "Attributes": {"com.docker.compose.service": "tikv1", "exitCode": "137", "name": "x-tikv1-1"},
        },
        "scope": "local",
        "time": 1790000000,
        "timeNano": 1790000000000000000,
        **changes,
    }


def test_events_that_are_none_are_passed_over(fake: FakeDocker) -> None:
    killed = event(Action="kill", Actor={"ID": ID, "Attributes": {"signal": "15"}})
    lines = [
        json.dumps(event()),
        "level=warning msg=odd",
        "null",
        "7",
        "[]",
        "{}",
        json.dumps(event(Actor={"ID": ID})),
        json.dumps(event(timeNano="soon")),
        json.dumps(event(Actor={"ID": ID, "Attributes": {"exitCode": "many"}})),
        "",
        json.dumps(killed),
    ]
    fake.says("events *", "\n".join(lines) + "\n")

    async def run() -> list[DockerEvent]:
        return [one async for one in fake.docker.events("drillyard-x", "5")]

    assert asyncio.run(run()) == [
        DockerEvent("die", "tikv1", ID, 1790000000.0, 137, ""),
        DockerEvent("kill", "", ID, 1790000000.0, None, "15"),
    ]
    assert "--filter label=com.docker.compose.project=drillyard-x --filter type=container" in fake.calls[0]
    assert fake.calls[0].endswith("--since 5"), "and no end of it"


def test_what_happened_is_asked_for_up_to_now_by_the_daemons_clock(fake: FakeDocker) -> None:
    fake.knows_the_time()
    fake.says("events *", f"level=warning msg=odd\n{json.dumps(event())}\n")
    happened = asyncio.run(fake.docker.past_events("drillyard-x", "5"))
    assert happened == [DockerEvent("die", "tikv1", ID, 1790000000.0, 137, "")]
    assert fake.calls[0] == "info --format {{.SystemTime}}"
    assert "--filter label=com.docker.compose.project=drillyard-x --filter type=container" in fake.calls[1]
    assert fake.calls[1].endswith(f"--since 5 --until {NOW}")


def test_a_daemon_that_does_not_come_to_the_end_of_what_happened_is_not_waited_for(
    fake: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.knows_the_time()
    fake.does("events *", f"echo '{json.dumps(event())}'; {HANGS}")
    monkeypatch.setattr(Docker.lines, "__kwdefaults__", {"timeout_s": 2.0})
    with pytest.raises(DockerRefused, match="docker gave no answer within 2 s"):
        asyncio.run(fake.docker.past_events("drillyard-x", "5"))


@pytest.mark.parametrize("ask", ["past", "coming"])
def test_events_that_end_badly_are_refused(fake: FakeDocker, ask: str) -> None:
    fake.knows_the_time()
    fake.says("events *", f"{json.dumps(event())}\n", err="error during connect: EOF", code=1)
    told: list[DockerEvent] = []

    async def run() -> None:
        if ask == "past":
            await fake.docker.past_events("drillyard-x", "5")
        async for one in fake.docker.events("drillyard-x", "5"):
            told.append(one)  # noqa: PERF401 - what came before the refusal counts

    with pytest.raises(DockerRefused, match=NO_DAEMON):
        asyncio.run(run())
    assert len(told) == (0 if ask == "past" else 1)


def test_what_a_container_of_docker_compose_run_does_is_no_members(fake: FakeDocker) -> None:
    labels = {"com.docker.compose.service": "tikv1", "exitCode": "0"}
    lines = [
        json.dumps(event(Actor={"ID": "run", "Attributes": {**labels, "com.docker.compose.oneoff": "True"}})),
        json.dumps(event(Actor={"ID": ID, "Attributes": {**labels, "com.docker.compose.oneoff": "False"}})),
    ]
    fake.knows_the_time()
    fake.says("events *", "\n".join(lines) + "\n")
    assert [one.container_id for one in asyncio.run(fake.docker.past_events("drillyard-x", "5"))] == [ID]


def test_what_is_gone_is_left_out_of_an_inspection(fake: FakeDocker) -> None:
    gone = "Error response from daemon: No such container: b"
    fake.says("container inspect a b c", [{"Id": "a"}, {"Id": "c"}], err=gone, code=1)
    fake.says("container inspect a", [{"Id": "a"}])
    fake.says("container inspect b", [], err=gone, code=1)
    fake.says("container inspect c", [{"Id": "c"}])
    assert asyncio.run(fake.docker.inspect("container", "a", "b", "c")) == [{"Id": "a"}, {"Id": "c"}]
    assert asyncio.run(fake.docker.inspect("container", "b")) == []
    assert asyncio.run(fake.docker.inspect("container")) == [], "nothing is asked about nothing"


def test_an_inspection_that_fails_otherwise_is_a_refusal(fake: FakeDocker) -> None:
    fake.says("image inspect a", err=f"Cannot connect to the Docker daemon at {SOCKET}.", code=1)
    with pytest.raises(DockerRefused, match=NO_DAEMON):
        asyncio.run(fake.docker.inspect("image", "a"))


def test_the_containers_of_a_project_are_found_by_its_label(fake: FakeDocker) -> None:
    which = "--filter label=com.docker.compose.project=drillyard-x --filter label=com.docker.compose.oneoff=False"
    fake.says(f"ps -a -q --no-trunc {which}", f"{ID}\n")
    fake.says(f"container inspect {ID}", [record()])
    found = asyncio.run(fake.docker.containers("drillyard-x"))
    assert [(one.id, one.service) for one in found] == [(ID, "pd0")]


def test_a_project_without_containers_has_none(fake: FakeDocker) -> None:
    fake.says("ps *", "")
    assert asyncio.run(fake.docker.containers("drillyard-x")) == ()


def test_containers_of_a_label_are_found_by_their_names(fake: FakeDocker) -> None:
    fake.says("ps -a --format {{.Names}} --filter label=drillyard.relay=x", "a\nb\n")
    assert asyncio.run(fake.docker.names_of("drillyard.relay=x")) == ("a", "b")


def test_networks_and_volumes_are_found_by_their_label(fake: FakeDocker) -> None:
    wanted = "volume ls --format {{.Name}} --filter label=com.docker.compose.project=drillyard-x"
    fake.says(wanted, "a\nb\n")
    assert asyncio.run(fake.docker.labelled("volume", "drillyard-x")) == ("a", "b")


@pytest.mark.parametrize(
    "server",
    [
        {"Version": "20.10.24", "Arch": "arm64"},
        {"Version": "29.0.0", "Components": [{"Name": "Engine", "Details": {"Arch": "arm64"}}, {"Name": "runc"}]},
    ],
    ids=["at the top", "in its component"],
)
def test_the_daemons_architecture_is_told_wherever_it_stands(fake: FakeDocker, server: dict[str, Any]) -> None:
    fake.says("version --format *", {"Client": {"Arch": "amd64"}, "Server": server})
    assert asyncio.run(fake.docker.server())["Arch"] == "arm64"


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("v2.27.0", (2, 27, 0)),
        ("2.5.0", (2, 5, 0)),
        ("5.0.1", (5, 0, 1)),
        ("dev", ()),
        ("v2.40.3-desktop.1", (2, 40, 3)),
    ],
)
def test_a_compose_of_v2_or_newer_will_do(fake: FakeDocker, version: str, numbers: tuple[int, ...]) -> None:
    fake.says("compose version --format json", {"version": version})
    assert asyncio.run(fake.docker.compose_version()) == numbers


NO_PLUGIN = "docker: 'compose' is not a docker command.\nSee 'docker --help'"


@pytest.mark.parametrize(
    ("out", "err", "code"),
    [
        ('{"version": "1.29.2"}', "", 0),
        ('{"version": "v1.29.2"}', "", 0),
        ("docker-compose version 1.29.2", "", 0),
        ("{}", "", 0),
        ("", NO_PLUGIN, 1),
        ("", "docker: unknown command: docker compose", 1),
        ("", "something else", 1),
    ],
    ids=["v1", "v1 with a v", "no JSON", "no version", "no plugin", "no plugin, newer words", "it fails"],
)
def test_an_older_compose_or_none_is_refused(fake: FakeDocker, out: str, err: str, code: int) -> None:
    fake.says("compose version --format json", out, err=err, code=code)
    with pytest.raises(DockerRefused, match=NO_COMPOSE) as raised:
        asyncio.run(fake.docker.compose_version())
    assert "docker-compose-plugin" in raised.value.mend


ASKS: list[Callable[[Docker], Awaitable[object]]] = [lambda one: one.compose_version(), lambda one: one.server()]


@pytest.mark.parametrize("ask", ASKS, ids=["compose", "server"])
@pytest.mark.parametrize(("words", "wrong"), [(REFUSALS[0][0], NO_DAEMON), (REFUSALS[4][0], NO_RIGHT)])
def test_a_daemon_that_cannot_be_had_is_told_as_such(
    fake: FakeDocker, ask: Callable[[Docker], Awaitable[object]], words: str, wrong: str
) -> None:
    fake.says("*", err=words, code=1)

    async def run() -> None:
        await ask(fake.docker)

    with pytest.raises(DockerRefused, match=wrong):
        asyncio.run(run())


# --- the daemon's records as ours ------------------------------------------------------------------------------------


def test_a_record_of_a_running_container() -> None:
    found = docker._container(record())
    assert found == docker.Container(
        id=ID,
        name="drillyard-default-pd0-1",
        service="pd0",
        image="pingcap/pd:v8.5.5",
        kind="real",
        status="running",
        pid=4711,
        exit_code=0,
        is_oom=False,
        error="",
        started_at=1789892130.123456789,
        started_text=STARTED,
        finished_at=None,
        restarts=0,
        command=("/pd-server", "--name=pd0"),
        hosts={"drillyard-default_default": "172.18.0.2"},
        health="healthy",
        probe_output="ok",
        config_files="/home/me/docker-compose.yaml",
        ended_text="",
        published={2379: 12379},
    )
    assert found.is_running
    assert found.run == f"{ID[:12]}@{STARTED}"


def test_a_record_of_a_container_that_never_started() -> None:
    state = {"Status": "created", "Running": False, "Pid": 0, "StartedAt": ZERO, "Health": None}
    settings = {"Networks": {"drillyard-default_default": {"IPAddress": ""}}}
    found = docker._container(record(state=state, NetworkSettings=settings))
    assert (found.status, found.pid, found.started_at, found.finished_at) == ("created", None, None, None)
    assert (found.health, found.probe_output, found.hosts, found.is_running) == ("", "", {}, False)


def test_a_record_with_next_to_nothing_in_it() -> None:
    config: dict[str, Any] = {"Labels": None, "Cmd": None}
    bare = {"Id": ID, "Name": "x", "Path": "/x", "Args": None, "State": {"Status": "dead"}, "Config": config}
    found = docker._container(bare)
    assert (found.name, found.service, found.command, found.published) == ("x", "", ("/x",), {})
    assert (found.started_at, found.finished_at, found.ended_text, found.restarts) == (None, None, "", 0)


def test_a_record_of_a_container_that_ended_tells_when_as_the_daemon_writes_it() -> None:
    found = docker._container(record(state={"Status": "exited", "FinishedAt": "2026-09-20T10:15:30.5+02:00"}))
    assert (found.finished_at, found.ended_text) == (1789892130.5, "2026-09-20T10:15:30.5+02:00")
    again = docker._container(record(state={"FinishedAt": "2026-09-20T08:15:29Z"}))
    assert (again.is_running, again.ended_text) == (True, "2026-09-20T08:15:29Z"), "also while it runs again"
    assert docker._container(record(state={"FinishedAt": ZERO})).ended_text == ""


def test_a_command_is_what_runs_whatever_of_it_is_the_images_own() -> None:
    """An entrypoint in the Compose file leaves `Cmd` empty."""
    config: dict[str, Any] = {"Image": "x", "Cmd": None, "Entrypoint": ["/tikv-server", "--pd=pd:2379"], "Labels": {}}
    found = docker._container(record(Path="/tikv-server", Args=["--pd=pd:2379"], Config=config))
    assert found.command == ("/tikv-server", "--pd=pd:2379")


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ({"Status": "paused", "Paused": True}, "paused"),
        ({"Status": "restarting", "Restarting": True}, "restarting"),
        ({"Status": "running", "Restarting": True}, "restarting"),
        ({"Status": "exited", "Running": False}, "exited"),
    ],
)
def test_a_container_between_two_runs_is_restarting(state: dict[str, Any], status: str) -> None:
    found = docker._container(record(state=state))
    assert found.status == status
    assert found.is_running == (status == "paused")


@pytest.mark.parametrize(
    ("flag", "code", "is_oom"),
    [(True, 137, True), (True, 1, False), (True, 0, False), (False, 137, False)],
    ids=["killed for it", "ended otherwise", "a health check was killed", "killed by somebody"],
)
def test_only_a_killed_container_was_out_of_memory(flag: bool, code: int, is_oom: bool) -> None:
    state = {"Status": "exited", "OOMKilled": flag, "ExitCode": code}
    assert docker._container(record(state=state)).is_oom is is_oom


@pytest.mark.parametrize(
    ("bindings", "published"),
    [
        (None, {}),
        ({"2379/tcp": None}, {}),
        ({"2379/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}, {}),
        (
            {"20160/tcp": [{"HostIp": "", "HostPort": "1"}], "20180/tcp": [{"HostIp": "", "HostPort": "2"}]},
            {20160: 1, 20180: 2},
        ),
    ],
    ids=["none", "exposed only", "left to the daemon", "two"],
)
def test_the_ports_that_were_asked_to_be_published(bindings: object, published: dict[int, int]) -> None:
    assert docker._container(record(HostConfig={"PortBindings": bindings})).published == published


@pytest.mark.parametrize(
    ("labels", "kind"),
    [({"drillyard.kind": "emulated"}, "emulated"), ({"drillyard.kind": "other"}, "real"), ({}, "real"), (None, "real")],
)
def test_our_own_images_say_that_their_server_is_emulated(labels: object, kind: str) -> None:
    assert docker.kind_of({"Labels": labels}) == kind


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (STARTED, 1789892130.123456789),
        ("2026-09-20T08:15:30Z", 1789892130.0),
        ("2026-09-20T10:15:30.5+02:00", 1789892130.5),
        ("2026-09-20T03:15:30.000000001-05:00", 1789892130.0),
        (ZERO, None),
        ("", None),
        (None, None),
        ("yesterday", None),
    ],
)
def test_a_time_as_go_writes_it(text: object, seconds: float | None) -> None:
    found = docker._time(text)
    assert found == (None if seconds is None else pytest.approx(seconds, abs=1e-6))
