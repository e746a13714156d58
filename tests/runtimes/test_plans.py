"""Plans: which ports are chosen, who owns a taken one, what is remembered, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from standins import STAND_INS, run, up

from drillyard.runtimes import keeper_link, plans, ports
from drillyard.runtimes.abilities import (
    ExecutableUnusable,
    Misuse,
    PlanDiffers,
    PlanUnreadable,
    PortTaken,
    StartRefused,
)
from drillyard.runtimes.home import default_home
from drillyard.runtimes.local import LocalRuntime
from drillyard.runtimes.plans import Executable, Executables
from drillyard.topology import PREFERRED_PORTS, Member, Profile, Purpose, Role, Topology


@pytest.fixture
def taken_port() -> tuple[int, socket.socket]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener.getsockname()[1], listener


def ports_of(topology: Topology) -> list[tuple[int, ...]]:
    return [tuple(member.ports.values()) for member in topology.members]


def test_the_well_known_ports_are_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drillyard.runtimes.ports.PREFERRED_PORTS", PREFERRED_PORTS)
    monkeypatch.setattr(ports, "is_free", lambda host, port: True)
    monkeypatch.setattr(ports.Hold, "take", lambda hold, host, port: True)
    assert ports_of(ports.assign(Topology.of(), {}, {}, ports.Hold())) == [
        (2379, 2380),
        (2381, 2382),
        (2383, 2384),
        (20160, 20180),
        (20161, 20181),
        (20162, 20182),
    ]


def test_taken_and_reserved_ports_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drillyard.runtimes.ports.PREFERRED_PORTS", PREFERRED_PORTS)
    monkeypatch.setattr(ports, "is_free", lambda host, port: port != 20160)
    monkeypatch.setattr(ports.Hold, "take", lambda hold, host, port: True)
    settled = ports.assign(Topology.of(1, 2), {2379: "x", 20181: "y"}, {}, ports.Hold())
    assert ports_of(settled) == [(2381, 2380), (20161, 20180), (20162, 20182)]


def test_a_plan_never_gives_one_port_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda host, port: True)
    settled = ports.assign(Topology.of(50, 50), {}, {}, ports.Hold())
    chosen = [port for member in settled.members for port in member.ports.values()]
    assert len(set(chosen)) == len(chosen) == 200


def test_an_asked_port_that_is_taken_names_its_owner(runtime: LocalRuntime, taken_port: tuple[int, object]) -> None:
    topology = Topology((Member("pd0", Role.PD, ports={Purpose.CLIENT: taken_port[0]}),))
    with pytest.raises(PortTaken, match=rf"port {taken_port[0]}, wanted by pd0, is taken by pid {os.getpid()} \("):
        asyncio.run(runtime.plan(topology, "a", STAND_INS))
    assert runtime.names() == ()  # a refused plan leaves nothing to remember


def test_an_owner_that_cannot_be_seen_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.net_connections", lambda kind: [])
    assert ports.owner_of(1) == "an unknown owner (not visible to this user)"


def test_an_address_that_nobody_could_have_is_told_apart_from_a_taken_one() -> None:
    with pytest.raises(StartRefused, match=r"nobody could listen on 192\.0\.2\.1:5000 here"):  # a documentation address
        ports.is_free("192.0.2.1", 5000)


def test_a_port_taken_since_is_named_at_the_start(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        plan = await runtime.plan(Topology.of(1, 1), "a", STAND_INS)
        port = plan.topology.member("tikv0").ports[Purpose.STATUS]
        with socket.socket() as stranger:
            stranger.bind(("0.0.0.0", port))  # a wildcard listener counts as well
            stranger.listen()
            with pytest.raises(PortTaken) as caught:
                await runtime.start(plan)
        assert (caught.value.port, caught.value.member) == (port, "tikv0")
        assert f"pid {os.getpid()}" in caught.value.owner
        assert (await runtime.start(plan)).is_up

    run(scenario())


def test_two_deployments_side_by_side(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        first, second = await up(runtime, "a"), await up(runtime, "b")
        assert not set(ports.claims(first.topology)) & set(ports.claims(second.topology))
        assert (await runtime.stop("a")).is_clean
        assert [(d.name, d.is_up) for d in await runtime.list()] == [("a", False), ("b", True)]
        third = await runtime.plan(Topology.of(1, 1), "c", STAND_INS)
        assert not set(ports.claims(first.topology)) & set(ports.claims(third.topology))  # a down deployment owns them
        wanted = next(iter(ports.claims(second.topology)))
        asked = Topology((Member("pd0", Role.PD, ports={Purpose.CLIENT: wanted}),))
        with pytest.raises(PortTaken, match="is taken by pd0 of deployment 'b'"):
            await runtime.plan(asked, "d")

    run(scenario())


def test_the_same_wish_finds_the_same_plan(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        first = await runtime.plan(Topology.of(), "a", STAND_INS)
        assert await runtime.plan(Topology.of(), "a") == first
        assert await runtime.plan(name="a") == first
        assert runtime.remembered("a") == first

    run(scenario())


def test_other_timings_keep_the_ports(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        first = await runtime.plan(Topology.of(), "a", STAND_INS)
        second = await runtime.plan(Topology.of(profile=Profile.UPSTREAM), "a")
        assert second.topology.profile is Profile.UPSTREAM
        assert ports_of(second.topology) == ports_of(first.topology)

    run(scenario())


def test_a_running_deployment_keeps_its_plan(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        await up(runtime)
        with pytest.raises(PlanDiffers, match="runs with another plan"):
            await runtime.plan(Topology.of(profile=Profile.UPSTREAM), "a")

    run(scenario())


def test_other_members_are_refused_once_there_is_data(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        await runtime.plan(Topology.of(1, 2), "a", STAND_INS)
        await runtime.plan(Topology.of(1, 1), "a", STAND_INS)  # nothing was started yet
        await runtime.start(await runtime.plan(name="a"))
        async for event in runtime.watch("a"):
            assert event.deployment == "a"
            break
        data = runtime.home.directory("a") / "data"
        (data / "pd0").mkdir(exist_ok=True)
        await runtime.stop("a")
        with pytest.raises(PlanDiffers, match="exists with other members; use another name"):
            await runtime.plan(Topology.of(1, 2), "a")
        await runtime.stop("a", delete_data=True)
        await runtime.plan(Topology.of(1, 2), "a")

    run(scenario())


@pytest.mark.parametrize("name", ["", "A", "../a", "a/b", "a" * 33, "-a", "a b"])
def test_names_that_are_refused(runtime: LocalRuntime, name: str) -> None:
    with pytest.raises(Misuse, match="is no deployment name; use 1 to 32 small letters"):
        asyncio.run(runtime.plan(name=name))


def test_only_loopback(runtime: LocalRuntime) -> None:
    with pytest.raises(Misuse, match=r"pd0: host '0\.0\.0\.0' is not on this machine's loopback"):
        asyncio.run(runtime.plan(Topology((Member("pd0", Role.PD, "0.0.0.0"),))))


def _set(key: str, value: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), key: value})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:100], "is damaged"),
        (lambda text: "", "is damaged"),
        (lambda text: "[]", "is damaged"),
        (_set("format", 99), "has format 99, this version reads 1"),
        (_set("topology", None), "is damaged"),
        (_set("executables", {}), "is damaged"),
        (lambda text: text.replace('"peer"', '"pier"'), "is damaged"),
        (lambda text: re.sub(r'"client": \d+,', "", text), "a port is missing"),
    ],
)
def test_a_damaged_plan_is_named_and_can_be_removed(
    runtime: LocalRuntime, damage: Callable[[str], str], words: str
) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        path = deployment.directory / "plan.json"
        path.write_text(damage(path.read_text()))
        with pytest.raises(PlanUnreadable, match=words) as caught:
            await runtime.deployment("a")
        assert str(path) in str(caught.value)
        assert (runtime.names(), await runtime.list()) == (("a",), ())
        await runtime.plan(Topology.of(1, 1), "b", STAND_INS)  # the others are not harmed
        report = await runtime.stop("a", delete_data=True)
        assert (report.is_clean, report.data_deleted, set(report.stopped)) == (True, True, {"pd0", "tikv0"})

    run(scenario())


def test_a_deployment_whose_plan_was_removed_can_still_be_stopped(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        (deployment.directory / "plan.json").unlink()
        report = await runtime.stop("a", delete_data=True)
        assert (report.is_clean, set(report.stopped)) == (True, {"pd0", "tikv0"})
        assert not deployment.directory.exists()

    run(scenario())


def test_a_long_home_still_has_a_socket(tmp_path: Path) -> None:
    runtime = LocalRuntime(tmp_path / ("long" * 20) / ("path" * 20))

    async def scenario() -> None:
        deployment = await up(runtime)
        socket_path = keeper_link.socket_path(deployment.directory)
        assert len(os.fsencode(socket_path)) < 104
        assert socket_path.stat().st_mode & 0o077 == 0
        assert socket_path.parent.stat().st_mode & 0o077 == 0
        assert (await runtime.stop("a", delete_data=True)).is_clean
        assert not socket_path.exists()

    run(scenario())


def test_the_home_is_asked_for_or_the_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRILLYARD_HOME", str(tmp_path))
    assert default_home() == tmp_path
    monkeypatch.delenv("DRILLYARD_HOME")
    assert default_home().name == "drillyard"


def test_real_executables_are_checked_when_named_and_when_started(runtime: LocalRuntime, tmp_path: Path) -> None:
    binary = tmp_path / "pd-server"
    with pytest.raises(ExecutableUnusable, match="does not exist; name a pd-server"):
        Executable.real(binary)
    binary.write_text("#!/bin/sh\n")
    with pytest.raises(ExecutableUnusable, match="is not executable"):
        Executable.real(binary)
    binary.chmod(0o755)
    executables = Executables(Executable.real(binary), STAND_INS.tikv)

    async def scenario() -> None:
        plan = await runtime.plan(Topology.of(1, 1), "a", executables)
        assert plan.argv(plan.topology.member("pd0"))[0] == str(binary)
        assert runtime.remembered("a") == plan
        binary.unlink()
        with pytest.raises(ExecutableUnusable, match="cannot be run; put it back"):
            await runtime.start(plan)

    run(scenario())


def test_by_default_the_emulator_runs_the_flags(runtime: LocalRuntime) -> None:
    plan = asyncio.run(runtime.plan(Topology.of(), "a"))
    argv = plan.argv(plan.topology.member("tikv0"))
    assert argv[1:4] == ("-P", "-m", "drillyard.emulator.tikv.server")
    assert argv[4].startswith("--addr=127.0.0.1:")


def test_a_private_file_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    plans.write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_deployment_under_another_home_that_does_not_listen_yet_owns_its_ports(tmp_path: Path) -> None:
    async def scenario() -> None:
        runtimes = [LocalRuntime(tmp_path / home) for home in ("mine", "other")]
        mine, other = [set(ports.claims((await runtime.plan(Topology.of(2, 2))).topology)) for runtime in runtimes]
        assert not mine & other

    run(scenario())


def test_the_keeper_holds_the_ports_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        runtime = LocalRuntime(tmp_path / "home")
        deployment = await up(runtime)
        host, _, port = deployment.member("pd0").addresses["client"].partition(":")
        await runtime.kill_member("a", "pd0")
        assert not ports.Hold().take(host, int(port))
        await runtime.stop("a")
        assert ports.Hold().take(host, int(port))

    run(scenario())
