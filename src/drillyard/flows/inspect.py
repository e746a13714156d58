"""Look without judging: how deployments and members are, what their logs say, where to connect.

Rules: nothing here asks a member anything; the runtime's word is enough, so these answer at once, also about a
deployment that hangs. Following a log polls the file, because members write it themselves, and ends with the caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from drillyard.flows import evidence
from drillyard.flows.report import MemberRow, member_rows
from drillyard.flows.up import Scope
from drillyard.runtimes.abilities import DeployedMember, Deployment
from drillyard.waiting import Deadline, until

FOLLOW_POLL_S = 0.1
FOLLOW_SLICE_S = 3600.0
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Standing:
    """How one deployment stands."""

    name: str
    runtime: str
    is_up: bool
    directory: Path
    members: tuple[MemberRow, ...]
    pd_endpoints: tuple[str, ...]

    @property
    def running(self) -> int:
        return sum(1 for member in self.members if member.state == "running")


@dataclass(frozen=True, slots=True)
class Listing:
    """Every deployment; of those in `unreadable` only the name is known, because their plan is damaged."""

    standings: tuple[Standing, ...]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogLine:
    member: str
    text: str


async def status(scope: Scope, name: str) -> Standing:
    return _standing(await scope.runtime.deployment(name))


async def listing(scope: Scope) -> Listing:
    found = tuple(_standing(deployment) for deployment in await scope.runtime.list())
    read = {standing.name for standing in found}
    return Listing(found, tuple(name for name in scope.runtime.names() if name not in read))


async def logs(scope: Scope, name: str, member: str | None, lines: int) -> tuple[LogLine, ...]:
    """The last lines of one member's log, or of every member's: its log file, and its output when that has any.

    Lines of an output carry no time: of the two files the one that was written to last is told last.
    """
    deployment = await scope.runtime.deployment(name)
    found: list[LogLine] = []
    for one in _chosen(deployment, member):
        for path in evidence.by_last_written(one):
            found.extend(LogLine(one.name, text) for text in evidence.tail_lines(path, lines))
    return tuple(found)


async def follow(scope: Scope, name: str, member: str | None) -> AsyncIterator[LogLine]:
    """Every line that is written from now on, until the caller has enough."""
    deployment = await scope.runtime.deployment(name)
    followed = [
        _Followed(one.name, path) for one in _chosen(deployment, member) for path in evidence.by_last_written(one)
    ]

    async def look() -> list[LogLine] | None:
        return [LogLine(one.member, text) for one in followed for text in one.read()] or None

    while True:
        for line in await until(look, Deadline.after(scope.clock, FOLLOW_SLICE_S), poll_s=FOLLOW_POLL_S) or []:
            yield line


class _Followed:
    """One file from its present end on; a file that was cut or made anew is read from its beginning."""

    def __init__(self, member: str, path: Path) -> None:
        self.member = member
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def read(self) -> list[str]:
        try:
            size = self._path.stat().st_size
            if size < self._at:
                self._at, self._rest = 0, b""
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read(_CHUNK)
        except OSError:
            return []
        self._at += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]


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
    )
