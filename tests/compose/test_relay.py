"""The way into a container network: the relay's few lines run as they are, and which way is taken when."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fake_docker import FakeDocker, container, is_gone

from drillyard.runtimes import compose, compose_file, reach
from drillyard.runtimes.abilities import Deployment, Misuse, Network
from drillyard.runtimes.compose import ComposeRuntime
from drillyard.runtimes.compose_exits import Book
from drillyard.runtimes.compose_plans import ComposePlan
from drillyard.runtimes.docker import Docker, DockerRefused
from drillyard.runtimes.home import Home
from drillyard.waiting import Clock, Deadline, until

PATIENCE_S = 60.0
Talk = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def two_free_ports() -> int:
    """The first of two neighbouring ports that nobody has."""
    while True:
        first = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("0.0.0.0", first))
            other.bind(("0.0.0.0", first + 1))
            return first


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address at which nobody listens and nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@asynccontextmanager
async def echo(prefix: bytes = b"") -> AsyncIterator[str]:
    """A server that gives back what it gets once its client has said everything; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(prefix + await reader.read())
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@asynccontextmanager
async def relay(*addresses: str) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """The relay as its container runs it, and its first port; another one if somebody was quicker to take that."""
    first, process = await started(addresses)
    while (line := await lines_of(process).readline()).strip() != b"ready":
        assert line == b"", line
        await process.wait()
        first, process = await started(addresses)
    try:
        yield first, process
    finally:
        close(process)
        await process.wait()


async def started(addresses: tuple[str, ...]) -> tuple[int, asyncio.subprocess.Process]:
    first, pipe = two_free_ports(), asyncio.subprocess.PIPE
    program = (sys.executable, "-c", reach.RELAY, str(first), *addresses)
    return first, await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe)


def lines_of(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    assert process.stdout is not None
    return process.stdout


def close(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()


def with_relay(addresses: Callable[[str], tuple[str, str]], work: Callable[[int], Awaitable[None]]) -> None:
    """Run `work` with the first port of a relay to two addresses, made of an echo server's."""

    async def run() -> None:
        async with asyncio.timeout(PATIENCE_S), echo() as there, relay(*addresses(there)) as (first, _):
            await work(first)

    asyncio.run(run())


async def talk(port: int) -> Talk:
    return await asyncio.open_connection("127.0.0.1", port)


def test_bytes_are_passed_both_ways_and_an_end_of_one_way_leaves_the_other() -> None:
    async def work(first: int) -> None:
        for port in (first, first + 1):
            reader, writer = await talk(port)
            writer.write(b"all that ")
            writer.write(b"\x00\xff is said")
            writer.write_eof()  # the echo answers only after it
            assert await reader.read() == b"all that \x00\xff is said"
            writer.close()

    with_relay(lambda there: (there, there), work)


def test_what_does_not_fit_at_once_is_passed_on_whole() -> None:
    data = bytes(range(256)) * 8192  # 2 MiB

    async def work(first: int) -> None:
        reader, writer = await talk(first)
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == data
        writer.close()

    with_relay(lambda there: (there, there), work)


def test_connections_are_many_and_each_its_own() -> None:
    async def say(port: int, word: bytes) -> bytes:
        reader, writer = await talk(port)
        writer.write(word)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer

    async def work(first: int) -> None:
        words = [b"%d" % at for at in range(20)]
        assert await asyncio.gather(*(say(first + at % 2, word) for at, word in enumerate(words))) == words

    with_relay(lambda there: (there, there), work)


def test_each_port_leads_to_its_own_address() -> None:
    async def run() -> list[bytes]:
        answers = []
        async with asyncio.timeout(PATIENCE_S), echo(b"one") as one, echo(b"two") as two, relay(one, two) as (first, _):
            for port in (first, first + 1):
                reader, writer = await talk(port)
                writer.write_eof()
                answers.append(await reader.read())
                writer.close()
        return answers

    assert asyncio.run(run()) == [b"one", b"two"]


def test_a_connection_to_nobody_is_closed_at_once_and_the_others_go_on(nowhere: str) -> None:
    async def work(first: int) -> None:
        reader, writer = await talk(first)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        reader, writer = await talk(first + 1)
        writer.write(b"still there")
        writer.write_eof()
        assert await reader.read() == b"still there"
        writer.close()

    with_relay(lambda there: (nowhere, there), work)


def test_it_ends_with_its_standard_input_whatever_it_passes_on() -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE_S), echo() as there, relay(there) as (first, process):
            reader, writer = await talk(first)
            writer.write(b"unfinished")
            await writer.drain()
            close(process)
            assert await process.wait() == 0
            with contextlib.suppress(ConnectionError):
                await reader.read()  # it ends, one way or the other
            writer.close()

    asyncio.run(run())


# --- which way -------------------------------------------------------------------------------------------------------


def test_an_address_that_answers_is_reachable(nowhere: str) -> None:
    async def run() -> None:
        async with echo() as there:
            assert await reach.is_reachable([there])
        assert await reach.is_reachable([nowhere]), "a refusal is an answer"
        assert await reach.is_reachable([]), "there is nothing that could not be reached"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"a:1": OSError(113, "No route to host")}, False),
        ({"a:1": TimeoutError()}, False),
        ({"a:1": OSError(113, "No route to host"), "b:2": ConnectionRefusedError()}, True),
        ({"a:1": TimeoutError(), "b:2": TimeoutError()}, False),
    ],
    ids=["no route", "silence", "one refuses", "all are silent"],
)
def test_one_answer_is_enough_and_silence_is_none(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, Exception], expected: bool
) -> None:
    async def connect(host: str, port: int) -> Talk:
        raise answers[f"{host}:{port}"]

    async def run() -> bool:
        monkeypatch.setattr(asyncio, "open_connection", connect)
        return await reach.is_reachable(answers)

    assert asyncio.run(run()) is expected


def test_an_address_that_hangs_is_not_waited_for_when_another_answers(
    monkeypatch: pytest.MonkeyPatch, nowhere: str
) -> None:
    monkeypatch.setattr(reach, "TRY_S", PATIENCE_S)
    real, hung = asyncio.open_connection, []

    async def connect(host: str, port: int) -> Talk:
        if host == "hangs":
            try:
                await asyncio.Event().wait()
            finally:
                hung.append("ended")
        return await real(host, port)

    async def run() -> bool:
        monkeypatch.setattr(asyncio, "open_connection", connect)
        async with asyncio.timeout(PATIENCE_S / 2):
            return await reach.is_reachable(["hangs:1", nowhere])

    assert asyncio.run(run())
    assert hung == ["ended"], "and nothing is left behind"


def deployment(tmp_path: Path, **hosts: str) -> Deployment:
    """One PD and one TiKV; those that run, with their addresses in the network."""
    plan = ComposePlan("x", tmp_path, "drillyard-x", compose_file.default_topology(1, 1))
    found = {
        name: container(name, "running" if name in hosts else "exited", hosts={"net": hosts.get(name, "")})
        for name in ("pd0", "tikv0")
    }
    return compose._deployment(plan, found, Book(), {})


def test_members_are_dialled_where_their_containers_are_now(tmp_path: Path) -> None:
    way = reach.ByAddress(deployment(tmp_path, pd0="172.18.0.2", tikv0="172.18.0.3"))
    assert way.dial("pd0:2379") == "172.18.0.2:2379"
    assert way.dial("tikv0:20160") == "172.18.0.3:20160"
    assert way.dial("tikv0:20180") == "172.18.0.3:20180"
    way.renew(deployment(tmp_path, pd0="172.18.0.9"))
    assert way.dial("pd0:2380") == "172.18.0.9:2380"
    with pytest.raises(ConnectionRefusedError, match="no container that runs has tikv0:20160"):
        way.dial("tikv0:20160")


@pytest.mark.parametrize("address", ["pd1:2379", "pd0:2378", "172.18.0.2:2379"])
def test_what_is_no_members_address_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConnectionRefusedError, match=f"no container that runs has {address}"):
        reach.ByAddress(deployment(tmp_path, pd0="172.18.0.2")).dial(address)


def test_without_a_network_nobody_is_dialled(tmp_path: Path) -> None:
    assert reach.dials_of(replace(deployment(tmp_path, pd0="172.18.0.2"), network=None)) == {}
    assert reach.dials_of(replace(deployment(tmp_path), network=Network("net"))) == {}


def test_a_relay_is_dialled_at_its_ports_of_this_machine() -> None:
    way = reach.ByRelay("drillyard-relay-x", {"pd0:2379": 33001})
    assert way.dial("pd0:2379") == "127.0.0.1:33001"
    assert way.words == "through the relay drillyard-relay-x"
    with pytest.raises(ConnectionRefusedError, match="the relay does not know pd1:2379"):
        way.dial("pd1:2379")


@pytest.mark.parametrize("answers", [True, False])
def test_which_way_it_is_is_tried(tmp_path: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    tried: list[str] = []

    async def is_reachable(dials: Iterable[str]) -> bool:
        tried.extend(dials)
        return answers

    monkeypatch.setattr(reach, "is_reachable", is_reachable)
    fake = FakeDocker(tmp_path)
    fake.says("image inspect *", [{"Id": "sha256:0f3c"}])
    fake.does("run *", "echo no such network: net; exit 125")

    async def run() -> str:
        async with reach.reach(fake.docker, deployment(tmp_path, pd0="172.18.0.2")) as way:
            return way.words

    if answers:
        assert asyncio.run(run()) == "by the containers' addresses"
        assert fake.calls == []
    else:
        with pytest.raises(DockerRefused, match="the relay into net did not start: no such network: net"):
            asyncio.run(run())
    assert set(tried) == {"172.18.0.2:2379", "172.18.0.2:2380"}


def test_a_relay_runs_as_long_as_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay for real, started by a `docker` that has something to say first and then only runs the lines."""
    first = two_free_ports()
    monkeypatch.setattr(reach, "FIRST_PORT", first)
    monkeypatch.setenv("DRILLYARD_RELAY_IMAGE", "mine:1")
    fake = FakeDocker(tmp_path)
    fake.says("image inspect mine:1", [{"Id": "sha256:0f3c"}])
    runs = 'while [ "$1" != -c ]; do shift; done; echo $$ >"$(dirname "$0")/pid"; '
    pulls = "echo 'Unable to find image locally'; echo 'WARNING: no logs are kept' >&2; "
    fake.does("run *", f'{runs}{pulls}exec {shlex.quote(sys.executable)} "$@"')
    ports = {f"{first + at}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(first + at)}] for at in range(2)}
    fake.says("container inspect drillyard-relay-x-*", [{"NetworkSettings": {"Ports": ports}}])

    async def run() -> None:
        async with asyncio.timeout(PATIENCE_S), echo(b"pd") as pd, echo(b"kv") as kv:
            addresses = [pd, kv]
            async with reach._relay(fake.docker, Network("net"), addresses, "x") as way:
                for at, word in enumerate((b"pd", b"kv")):
                    assert way.dial(addresses[at]) == f"127.0.0.1:{first + at}"
                    reader, writer = await talk(first + at)
                    writer.write_eof()
                    assert await reader.read() == word
                    writer.close()
            pid = int((tmp_path / "pid").read_text())

            async def look() -> bool | None:
                return is_gone(pid) or None

            assert await until(look, Deadline.after(Clock(), PATIENCE_S))

    asyncio.run(run())
    call = next(one for one in fake.calls if one.startswith("run "))
    assert call.startswith("run --rm -i --name drillyard-relay-x-")
    assert f"-p 127.0.0.1::{first} -p 127.0.0.1::{first + 1} --entrypoint python3 mine:1 -c" in call
    assert "--network net --label drillyard.relay=x" in call


def refusal_of_a_relay(docker: Docker) -> DockerRefused:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE_S), reach._relay(docker, Network("net"), ["pd0:2379"], "x"):
            raise AssertionError("unreachable")

    with pytest.raises(DockerRefused) as raised:
        asyncio.run(run())
    return raised.value


MEND = "name an image with Python that is here in DRILLYARD_RELAY_IMAGE"


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("echo 'a warning' >&2; echo 'exec: \"python3\": not found'; exit 127", 'a warning exec: "python3": not found'),
        ("echo not ready; exit 1", "not ready"),
        ("exit 1", ""),
        ("for at in $(seq 200); do echo line $at; done; exit 1", "line 199 line 200"),
    ],
    ids=["the words of docker", "a line that only holds the word", "no words", "the last of many"],
)
def test_a_relay_that_ends_before_it_is_ready_is_refused_with_its_words(tmp_path: Path, shell: str, words: str) -> None:
    fake = FakeDocker(tmp_path)
    fake.says("image inspect *", [{"Id": "sha256:0f3c"}])
    fake.does("run *", shell)
    refused = refusal_of_a_relay(fake.docker)
    start = "the relay into net did not start: "
    assert refused.wrong.startswith(start)
    assert refused.wrong.endswith(words)
    assert len(refused.wrong) <= len(start) + 300
    assert refused.mend == MEND


def test_a_relay_that_says_nothing_is_not_waited_for_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "RELAY_START_S", 2.0)
    monkeypatch.setattr(reach, "RELAY_END_S", 0.2)
    fake = FakeDocker(tmp_path)
    fake.says("image inspect *", [{"Id": "sha256:0f3c"}])
    fake.does("run *", 'echo $$ >"$(dirname "$0")/pid"; echo hm; exec sleep 600')
    refused = refusal_of_a_relay(fake.docker)
    assert refused.wrong == "the relay into net did not start: hm no word within 2 s"
    assert refused.mend == MEND
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_an_image_for_the_relay_that_is_not_here_is_pulled_first(tmp_path: Path) -> None:
    fake = FakeDocker(tmp_path)
    missing = "Error response from daemon: No such image: python:3-alpine"
    fake.says("image inspect *", [], err=missing, code=1)
    fake.says("pull *", err="Error response from daemon: pull access denied for python", code=1)

    async def run() -> None:
        async with reach.reach(fake.docker, deployment(tmp_path, pd0="172.18.0.2"), reach.BY_RELAY):
            raise AssertionError("unreachable")

    wrong = "the relay's image python:3-alpine is not here and cannot be pulled: .*pull access denied for python"
    with pytest.raises(DockerRefused, match=wrong) as raised:
        asyncio.run(run())
    assert raised.value.mend == MEND
    assert fake.calls[-1] == "pull --quiet python:3-alpine"


def test_the_way_may_be_decided_instead_of_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDocker(tmp_path)
    runtime = ComposeRuntime(Home(tmp_path), fake.docker)

    async def run() -> str:
        async with runtime.reach(deployment(tmp_path, pd0="172.18.0.2")) as way:
            return way.words

    async def never(dials: object) -> bool:
        raise AssertionError("nothing is tried")

    monkeypatch.setattr(reach, "is_reachable", never)
    monkeypatch.setenv("DRILLYARD_REACH", "addresses")
    assert asyncio.run(run()) == "by the containers' addresses"
    monkeypatch.setenv("DRILLYARD_REACH", "magic")
    with pytest.raises(Misuse, match="DRILLYARD_REACH='magic' is no way to reach a container; use addresses or relay"):
        asyncio.run(run())


def test_without_docker_there_is_no_relay(tmp_path: Path) -> None:
    nowhere = Docker(str(tmp_path / "docker"))

    async def run() -> None:
        async with reach.reach(nowhere, deployment(tmp_path, pd0="172.18.0.2"), reach.BY_RELAY):
            raise AssertionError("unreachable")

    with pytest.raises(DockerRefused, match=r"there is no `.*docker` command here"):
        asyncio.run(run())
