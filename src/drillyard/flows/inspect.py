"""Look without gates: how deployments and members are, what may still fail, what the logs say, where to connect.

Rules: how members are is the runtime's word alone, so these answer at once, also about a deployment that hangs. Only
`status` asks members something, for what may still fail: one look of at most a second, and what it does not learn is
told as not known. `connection` tries whether an address can be reached, and asks nothing there. Following a log ends
with the caller.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from drillyard.flows.report import MemberRow, member_rows
from drillyard.flows.up import Scope
from drillyard.judge.survivability import Survivability, survivability_of
from drillyard.runtimes.abilities import DeployedMember, Deployment, Network, PlanUnreadable, RuntimeRefusal
from drillyard.runtimes.reach import dials_of, is_reachable


@dataclass(frozen=True, slots=True)
class Standing:
    """How one deployment stands."""

    name: str
    runtime: str
    is_up: bool
    directory: Path
    members: tuple[MemberRow, ...]
    pd_endpoints: tuple[str, ...]
    network: Network | None = None  # None: the members listen on this machine itself
    survivability: Survivability | None = None  # None: nobody was asked

    @property
    def running(self) -> int:
        return sum(1 for member in self.members if member.state == "running")


@dataclass(frozen=True, slots=True)
class Listing:
    """Every deployment; of those in `unreadable` only the name is known, because their plan is damaged, of those in
    `unreachable` the name and why their runtime cannot be asked."""

    standings: tuple[Standing, ...]
    unreadable: tuple[str, ...] = ()
    unreachable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a member's log or output, as it was written."""

    member: str
    text: str


async def standing(scope: Scope, name: str) -> Standing:
    """By the runtime's word alone."""
    return _standing(await scope.runtime.deployment(name))


async def status(scope: Scope, name: str) -> Standing:
    """By the runtime's word, and what may still fail; of a deployment that is down nobody is asked."""
    deployment = await scope.runtime.deployment(name)
    if not deployment.is_up:
        return _standing(deployment)
    # Imported late: the RPC library is not cheap, and what only tells the runtime's word does without.
    from drillyard.flows.lookout import glance

    seen = await glance(scope.clock, deployment)
    return replace(_standing(deployment), survivability=survivability_of(seen))


@dataclass(frozen=True, slots=True)
class Connection:
    """Where clients connect: the PD endpoints, and for members in a network what works from this machine."""

    standing: Standing
    is_reachable: bool  # whether the addresses (in a network: the containers') answer from here


async def connection(scope: Scope, name: str) -> Connection:
    deployment = await scope.runtime.deployment(name)
    reachable = deployment.network is None or await is_reachable(dials_of(deployment).values())
    return Connection(_standing(deployment), reachable)


async def listing(scope: Scope) -> Listing:
    found = tuple(_standing(deployment) for deployment in await scope.runtime.list())
    read = {standing.name for standing in found}
    unreadable, unreachable = [], []
    for name in scope.runtime.names():
        if name not in read:
            try:
                await scope.runtime.deployment(name)
            except PlanUnreadable:
                unreadable.append(name)
            except RuntimeRefusal as refused:
                unreachable.append((name, str(refused)))
    return Listing(found, tuple(unreadable), tuple(unreachable))


async def logs(scope: Scope, name: str, member: str | None, lines: int) -> tuple[LogLine, ...]:
    """The last lines of one member's logs, or of every member's; of a member's logs the one that was written to last is
    told last, because lines of an output carry no time."""
    deployment = await scope.runtime.deployment(name)
    found: list[LogLine] = []
    for one in _chosen(deployment, member):
        for tail in await scope.runtime.tails(name, one.name, lines):
            found.extend(LogLine(one.name, text) for text in tail.lines)
    return tuple(found)


async def follow(scope: Scope, name: str, member: str | None) -> AsyncIterator[LogLine]:
    """Every line that is written from now on, until the caller has enough."""
    async with contextlib.aclosing(scope.runtime.follow(name, member)) as lines:  # type: ignore[type-var]
        async for one, text in lines:
            yield LogLine(one, text)


def _chosen(deployment: Deployment, member: str | None) -> tuple[DeployedMember, ...]:
    return deployment.members if member is None else (deployment.member(member),)


def _standing(deployment: Deployment) -> Standing:
    return Standing(
        name=deployment.name,
        runtime=deployment.runtime,
        is_up=deployment.is_up,
        directory=deployment.directory,
        members=member_rows(deployment),
        pd_endpoints=deployment.pd_endpoints,
        network=deployment.network,
    )
