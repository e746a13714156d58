"""What a runtime can do, and the records it answers with. Values and one protocol; nothing here acts.

Rules: a runtime states its abilities and is judged by them before a start, never by its name. Every end of a member is
an `Exit` that says whether it was asked for. Misuse raises a `Misuse`; what the machine refuses raises a `StartRefused`
or a `KeeperFailed`; each carries its mend.
"""

from __future__ import annotations

import signal as signals
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from drillyard.topology import Role, Topology


class Ability(Enum):
    START_MEMBER = "start-member"
    STOP_MEMBER = "stop-member"
    RESTART_MEMBER = "restart-member"
    KILL_MEMBER = "kill-member"
    PAUSE_MEMBER = "pause-member"
    RESUME_MEMBER = "resume-member"
    WATCH_EXITS = "watch-exits"
    READ_LOGS = "read-logs"
    DELETE_DATA = "delete-data"


@dataclass(frozen=True, slots=True)
class Exit:
    """How one run of a member ended. Code and signal are both None when nobody was left to see it."""

    code: int | None
    signal: int | None
    asked: bool
    at: float  # seconds since the epoch
    note: str = ""  # e.g. "keeper lost", "killed after 10 s of grace"

    @property
    def signal_name(self) -> str:
        if self.signal is None:
            return ""
        try:
            return signals.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"

    def __str__(self) -> str:
        how = self.signal_name or ("exit code unknown" if self.code is None else f"exit code {self.code}")
        why = "asked" if self.asked else "unexpected"
        return f"{how}, {why}" + (f", {self.note}" if self.note else "")


class EventKind(Enum):
    STARTED = "started"
    STOPPING = "stopping"  # a stop, kill or restart was asked for; written down before it is carried out
    EXITED = "exited"
    PAUSED = "paused"
    RESUMED = "resumed"


@dataclass(frozen=True, slots=True)
class MemberEvent:
    deployment: str
    member: str
    kind: EventKind
    at: float
    pid: int | None = None
    exit: Exit | None = None
    is_replay: bool = False  # tells the state at the moment the watch began, not something that happened since


@dataclass(frozen=True, slots=True)
class DeployedMember:
    name: str
    role: Role
    kind: str  # "emulated" or "real"
    pid: int | None  # None unless it runs
    running: bool
    paused: bool
    exit: Exit | None  # the latest exit since the deployment started; stays when the member was started again
    starts: int  # how many times it was started since the deployment started
    started_at: float | None
    addresses: Mapping[str, str]  # "client", "peer" (PD), "status" (TiKV) -> host:port
    data_dir: Path
    log_path: Path
    out_path: Path  # what it wrote to stdout and stderr
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Deployment:
    name: str
    runtime: str
    abilities: frozenset[Ability]
    directory: Path
    topology: Topology  # settled: every port is known
    members: tuple[DeployedMember, ...]
    keeper_pid: int | None  # None: no keeper, so nothing of it runs
    started_at: float | None
    is_stopping: bool = False  # a stop is on its way, whether or not its command still waits for it

    @property
    def is_up(self) -> bool:
        """Whether any member runs and is to go on running. If not, a start starts every member."""
        return not self.is_stopping and any(member.running for member in self.members)

    @property
    def evidence_dir(self) -> Path:
        return self.directory / "evidence"

    @property
    def pd_endpoints(self) -> tuple[str, ...]:
        return self.topology.pd_endpoints

    def member(self, name: str) -> DeployedMember:
        for member in self.members:
            if member.name == name:
                return member
        raise NoSuchMember(self.name, name, tuple(m.name for m in self.members))

    def of_role(self, role: Role) -> tuple[DeployedMember, ...]:
        return tuple(member for member in self.members if member.role is role)


@dataclass(frozen=True, slots=True)
class StopReport:
    """What `stop` did, and the proof that nothing is left: every `left_*` is empty when it is proven."""

    name: str
    stopped: tuple[str, ...]  # members that ran and now do not
    killed: tuple[str, ...]  # those of them that did not stop within their grace and were killed
    left_pids: tuple[int, ...] = ()
    left_ports: Mapping[int, str] = field(default_factory=dict)  # port -> who has it now
    left_paths: tuple[Path, ...] = ()  # sockets, and data whose removal was asked for
    data_deleted: bool = False
    kept: tuple[Path, ...] = ()  # what stays on purpose: data, logs, evidence
    checked_pids: tuple[int, ...] = ()  # every process of the deployment that was looked for
    checked_ports: tuple[int, ...] = ()

    @property
    def is_clean(self) -> bool:
        return not (self.left_pids or self.left_ports or self.left_paths)


class RuntimeRefusal(Exception):
    """A runtime says no. The message says what is wrong; `mend` says what to do."""

    def __init__(self, wrong: str, mend: str) -> None:
        super().__init__(f"{wrong}; {mend}" if mend else wrong)
        self.wrong = wrong
        self.mend = mend


class Misuse(RuntimeRefusal):
    """The caller asked for something that cannot be: bad input."""


class NoSuchDeployment(Misuse):
    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        there = f"there are: {', '.join(known)}" if known else "there is none yet: `drillyard up` makes one"
        super().__init__(f"there is no deployment {name!r}", there)


class NoSuchMember(Misuse):
    def __init__(self, deployment: str, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"deployment {deployment!r} has no member {name!r}", f"it has: {', '.join(known)}")


class WrongState(Misuse):
    """The member or deployment is not in a state in which this can be done (start of a running member, …)."""


class PlanUnreadable(Misuse):
    """The remembered plan of a deployment is damaged or from another version."""


class PlanDiffers(Misuse):
    """A deployment of this name exists with other members."""


class StartRefused(RuntimeRefusal):
    """The machine does not allow the start."""


class PortTaken(StartRefused):
    def __init__(self, port: int, member: str, owner: str) -> None:
        mend = "stop that, or plan another port"
        super().__init__(f"port {port}, wanted by {member}, is taken by {owner}", mend)
        self.port = port
        self.member = member
        self.owner = owner


class ExecutableUnusable(StartRefused):
    pass


class Busy(StartRefused):
    """Another command is starting or stopping this deployment."""


class KeeperFailed(RuntimeRefusal):
    """The deployment's keeper could not be started, or does not answer."""


class Runtime(Protocol):
    """What every runtime offers. Members and deployments are named by strings; nothing here is a handle to keep."""

    @property
    def abilities(self) -> frozenset[Ability]: ...

    async def deployment(self, name: str) -> Deployment: ...

    async def list(self) -> tuple[Deployment, ...]: ...

    async def start_member(self, name: str, member: str) -> None: ...

    async def stop_member(self, name: str, member: str) -> Exit: ...

    async def restart_member(self, name: str, member: str) -> None: ...

    async def kill_member(self, name: str, member: str) -> Exit: ...

    async def pause_member(self, name: str, member: str) -> None: ...

    async def resume_member(self, name: str, member: str) -> None: ...

    async def stop(self, name: str, *, delete_data: bool = False) -> StopReport: ...

    def watch(self, name: str) -> AsyncIterator[MemberEvent]: ...
