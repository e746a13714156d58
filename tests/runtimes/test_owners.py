"""Deployments that belong to a program: what the end of that program ends, and what the next one removes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from standins import STAND_INS, run, until, up

from drillyard.flows.operate import down_orphans
from drillyard.flows.up import Scope
from drillyard.runtimes import keeper_link, owners
from drillyard.runtimes.abilities import Busy, NoSuchDeployment
from drillyard.runtimes.local import LocalRuntime
from drillyard.topology import Topology

OWNER = f"""
import asyncio, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from standins import up
from drillyard.runtimes.local import LocalRuntime

runtime = LocalRuntime()
with runtime.home.own("a"):
    asyncio.run(up(runtime))
    print("up", flush=True)
    signal.pause()
"""


def killed_owner(home: Path) -> None:
    """A program that brings a deployment up as its own, and is killed."""
    environment = {**os.environ, "DRILLYARD_HOME": str(home)}
    owner = subprocess.Popen([sys.executable, "-c", OWNER], env=environment, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    owner.kill()
    owner.wait()


def test_members_stop_when_their_owner_is_killed_and_the_next_program_removes_the_rest(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        await asyncio.to_thread(killed_owner, runtime.home.root)
        directory = runtime.home.directory("a")
        await until(lambda: not keeper_link.is_alive(directory))
        after = await runtime.deployment("a")
        assert not after.is_up
        assert [str(member.exit) for member in after.members] == ["exit code 0, asked, owner gone"] * 2
        (gone,) = await down_orphans(Scope.of(runtime.home.root))
        assert (gone.deployment, gone.is_clean, gone.is_data_deleted, gone.evidence) == ("a", True, True, "")
        assert not directory.exists()
        assert await down_orphans(Scope.of(runtime.home.root)) == ()

    run(scenario())


def test_what_has_a_living_owner_or_none_is_no_orphan(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        await up(runtime, "nobodys")
        with runtime.home.own("ours"):
            await up(runtime, "ours")
            assert runtime.home.orphans() == ()
            with (
                pytest.raises(Busy, match="'ours' is another program's"),
                LocalRuntime(runtime.home.root).home.own("ours"),
            ):
                pass
            await runtime.stop("ours", delete_data=True)
        assert runtime.home.orphans() == ()
        assert runtime.names() == ("nobodys",)
        assert (await runtime.deployment("nobodys")).is_up

    run(scenario())


def test_an_owner_may_start_its_deployment_again(runtime: LocalRuntime) -> None:
    """The keeper that follows a lost one ends with the owner too."""

    async def scenario() -> None:
        with runtime.home.own("a"):
            first = await up(runtime)
            assert first.keeper_pid is not None
            os.kill(first.keeper_pid, signal.SIGKILL)
            await until(lambda: not keeper_link.is_alive(first.directory))
            assert (await runtime.start(await runtime.plan(name="a"))).is_up
        await until(lambda: not keeper_link.is_alive(first.directory))
        assert first.directory.exists(), "what is there at the end of the block stays"
        assert runtime.home.orphans() == ()

    run(scenario())


def test_one_looks_after_an_orphan_at_a_time(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        await runtime.plan(Topology.of(1, 1), "a", STAND_INS)
        (runtime.home.directory("a") / owners.FILE).touch()
        (orphan,) = runtime.home.orphans()
        with contextlib.closing(orphan):
            assert runtime.home.orphans() == ()
        (again,) = runtime.home.orphans()
        again.close()

    run(scenario())


def test_one_that_never_came_to_be_is_forgotten(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        directory = runtime.home.directory("a")
        directory.mkdir(parents=True)
        (directory / owners.FILE).touch()
        with pytest.raises(NoSuchDeployment):
            await runtime.stop("a")
        assert await down_orphans(Scope.of(runtime.home.root)) == ()
        assert not directory.exists()

    run(scenario())
