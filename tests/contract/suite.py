"""The contract: what every runtime owes for every mix of members, as scenarios that any tier can run on its subject.

A scenario is given a Subject and judges only from outside: by what the runtime answers, by sockets that accept or
refuse, and by the life of processes. It knows neither stand-ins nor emulators, real servers or containers. A tier makes
its subjects and runs `pytest.mark.parametrize("scenario", SCENARIOS)` over them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from drillyard.clients.calls import CallFailed
from drillyard.clients.pd import PdClient
from drillyard.runtimes.abilities import DeployedMember, Deployment, EventKind, MemberEvent, Runtime, StopReport
from drillyard.runtimes.local import LocalRuntime
from drillyard.runtimes.plans import Executables
from drillyard.runtimes.processes import identity
from drillyard.topology import PURPOSES, Role, Topology
from ports import free_port

SERVING_S = 60.0  # what the slowest real server may take on a busy machine
NAME = "contract"


class Subject(ABC):
    """A runtime and the members to run on it."""

    runtime: Runtime
    topology: Topology

    @abstractmethod
    async def begin(self) -> Deployment:
        """Plan and start the members that are not held back."""

    @abstractmethod
    async def kill_from_outside(self, member: DeployedMember) -> None:
        """End the member behind the runtime's back, with SIGKILL."""

    @abstractmethod
    def is_alive(self, member: DeployedMember) -> bool:
        """Whether the very process that this record tells of lives."""

    @abstractmethod
    def check_nothing_left(self, report: StopReport, deployment: Deployment) -> None:
        """Fail when the stop left anything, or did not look for all that there was."""

    @abstractmethod
    def has_data(self, deployment: Deployment) -> bool:
        """Whether every member's data is there."""

    async def start(self) -> Deployment:
        """The deployment, once every address of every member accepts connections."""
        deployment = await self.begin()
        if any(member.is_held_back for member in deployment.members):
            await until(self.grants_timestamps)
            await self.runtime.start_rest(NAME)
        for member in deployment.members:
            await until(lambda member=member: self.serves(member.name))  # type: ignore[misc]
        return await self.runtime.deployment(NAME)

    async def grants_timestamps(self) -> bool:
        deployment = await self.runtime.deployment(NAME)
        async with self.runtime.reach(deployment) as reach:
            pds = {m.name: PdClient(m.name, m.addresses["client"], reach.dial) for m in deployment.of_role(Role.PD)}
            try:
                view = await next(iter(pds.values())).members(timeout_s=1)
                await pds[view.leader.name].timestamps(view.header.cluster_id, 1, timeout_s=1)
            except (CallFailed, KeyError):
                return False
            finally:
                for client in pds.values():
                    client.close()
        return True

    async def look(self, member: str) -> DeployedMember:
        return (await self.runtime.deployment(NAME)).member(member)

    async def serves(self, member: str) -> bool:
        return all(await self._accepting(member))

    async def is_silent(self, member: str) -> bool:
        return not any(await self._accepting(member))

    async def _accepting(self, member: str) -> list[bool]:
        """Of each address of the member, whether it accepts connections."""
        deployment = await self.runtime.deployment(NAME)
        async with self.runtime.reach(deployment) as reach:
            return [_accepts(reach.dial, address) for address in deployment.member(member).addresses.values()]

    @abstractmethod
    async def clear(self) -> None:
        """Take the deployment down with its data, if there is one."""


@dataclass
class LocalSubject(Subject):
    """Members as processes of this machine."""

    runtime: LocalRuntime
    executables: Executables
    topology: Topology

    async def begin(self) -> Deployment:
        return await self.runtime.start(await self.runtime.plan(self.topology, NAME, self.executables))

    async def kill_from_outside(self, member: DeployedMember) -> None:
        assert member.pid is not None
        os.kill(member.pid, signal.SIGKILL)

    def is_alive(self, member: DeployedMember) -> bool:
        return identity(member.pid or 0) is not None

    def check_nothing_left(self, report: StopReport, deployment: Deployment) -> None:
        assert len(report.checked_pids) == len(deployment.members) + 1
        assert not any(identity(pid) for pid in report.checked_pids)
        assert not any(_accepts(str, address) for m in deployment.members for address in m.addresses.values())

    def has_data(self, deployment: Deployment) -> bool:
        return all(any(m.data_dir.iterdir()) for m in deployment.members)

    async def clear(self) -> None:
        if NAME in self.runtime.names():
            await self.runtime.stop(NAME, delete_data=True)


def settled(topology: Topology) -> Topology:
    """The topology on ports that are free now."""
    keys = [(member.name, purpose) for member in topology.members for purpose in PURPOSES[member.role]]
    return topology.settle({key: free_port() for key in keys})


def _accepts(dial: Callable[[str], str], address: str) -> bool:
    try:
        host, _, port = dial(address).rpartition(":")
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((host, int(port))) == 0
    except OSError:
        return False


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + SERVING_S
    while not await is_so():
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.02)


async def first_exit(events: AsyncIterator[MemberEvent]) -> MemberEvent:
    async for event in events:
        if event.kind is EventKind.EXITED:  # pushed, or told at the beginning when the watch came late
            return event
    raise AssertionError("the watch ended before any member's exit was told")


async def start_runs_every_member(subject: Subject) -> None:
    deployment = await subject.start()
    assert [m.name for m in deployment.members] == [m.name for m in subject.topology.members]
    for member in deployment.members:
        found = await subject.look(member.name)
        assert (found.running, found.paused, found.exit, found.starts) == (True, False, None, 1)
        assert subject.is_alive(found)
        assert any(tail.lines for tail in await subject.runtime.tails(NAME, member.name, 5))


async def a_killed_member_is_recorded_and_comes_back(subject: Subject) -> None:
    deployment = await subject.start()
    for role in Role:
        member = deployment.of_role(role)[-1]
        how = await subject.runtime.kill_member(NAME, member.name)
        assert (how.code, how.signal, how.asked) == (None, signal.SIGKILL, True)
        found = await subject.look(member.name)
        assert (found.running, found.pid, found.exit) == (False, None, how)
        assert await subject.is_silent(member.name)
        await subject.runtime.start_member(NAME, member.name)
        await until(lambda member=member: subject.serves(member.name))  # type: ignore[misc]
        again = await subject.look(member.name)
        assert (again.running, again.starts, again.restarts, again.addresses) == (True, 2, 0, member.addresses)
        assert again.pid != member.pid
    others = [m for role in Role for m in deployment.of_role(role)[:-1]]
    assert [(await subject.look(m.name)).pid for m in others] == [m.pid for m in others]


async def an_exit_that_nobody_asked_for_is_pushed(subject: Subject) -> None:
    deployment = await subject.start()
    victim = deployment.of_role(Role.TIKV)[0]
    waiting = asyncio.create_task(first_exit(subject.runtime.watch(NAME)))
    await subject.kill_from_outside(victim)
    event = await waiting
    assert event.exit is not None
    assert (event.member, event.exit.signal, event.exit.asked) == (victim.name, signal.SIGKILL, False)


async def a_paused_member_goes_on_where_it_was(subject: Subject) -> None:
    deployment = await subject.start()
    member = deployment.of_role(Role.PD)[-1]
    await subject.runtime.pause_member(NAME, member.name)
    assert (await subject.look(member.name)).paused
    await subject.runtime.resume_member(NAME, member.name)
    found = await subject.look(member.name)
    assert (found.paused, found.running, found.pid) == (False, True, member.pid)


async def a_paused_member_can_be_killed(subject: Subject) -> None:
    deployment = await subject.start()
    member = deployment.of_role(Role.TIKV)[-1]
    await subject.runtime.pause_member(NAME, member.name)
    how = await subject.runtime.kill_member(NAME, member.name)
    assert (how.signal, how.asked) == (signal.SIGKILL, True)
    found = await subject.look(member.name)
    assert (found.running, found.paused) == (False, False)


async def a_stopped_member_ends_by_itself(subject: Subject) -> None:
    deployment = await subject.start()
    member = deployment.of_role(Role.TIKV)[-1]
    how = await subject.runtime.stop_member(NAME, member.name)
    assert (how.code, how.signal, how.asked) == (0, None, True)
    await subject.runtime.restart_member(NAME, member.name)
    await until(lambda: subject.serves(member.name))
    await subject.runtime.restart_member(NAME, member.name)
    await until(lambda: subject.serves(member.name))
    assert (await subject.look(member.name)).starts == 3


async def a_stop_proves_that_nothing_is_left_and_data_stays(subject: Subject) -> None:
    deployment = await subject.start()
    report = await subject.runtime.stop(NAME)
    assert report.is_clean
    assert report.killed == ()  # each ended by itself when asked
    assert set(report.stopped) == {m.name for m in deployment.members}
    subject.check_nothing_left(report, deployment)
    assert subject.has_data(deployment)
    again = await subject.start()
    assert [m.addresses for m in again.members] == [m.addresses for m in deployment.members]
    report = await subject.runtime.stop(NAME, delete_data=True)
    assert (report.is_clean, report.data_deleted) == (True, True)
    assert not deployment.directory.exists()


SCENARIOS: tuple[Callable[[Subject], Coroutine[Any, Any, None]], ...] = (
    start_runs_every_member,
    a_killed_member_is_recorded_and_comes_back,
    an_exit_that_nobody_asked_for_is_pushed,
    a_paused_member_goes_on_where_it_was,
    a_paused_member_can_be_killed,
    a_stopped_member_ends_by_itself,
    a_stop_proves_that_nothing_is_left_and_data_stays,
)


def run(scenario: Callable[[Subject], Coroutine[Any, Any, None]], subject: Subject) -> None:
    """Run one scenario, and take the deployment down whatever came of it."""

    async def both() -> None:
        try:
            await scenario(subject)
        finally:
            await subject.clear()

    asyncio.run(both())
