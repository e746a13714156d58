"""What a runtime can do, and the records it answers with. Values and one protocol; nothing here acts.

Rules: a runtime states its abilities and is judged by them before a start, never by its name. Every end of a member is
an `Exit` that says whether it was asked for. Misuse raises a `Misuse`; what the machine refuses raises a `StartRefused`
or a `KeeperFailed`; each carries its mend.
"""

from __future__ import annotations

import signal as signals
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from drillyard.topology import Role, Topology

DEFAULT_NAME = "default"


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
    RESTART_POLICY = "restart-policy"  # brings back a member that crashed without being asked to, and counts it


@dataclass(frozen=True, slots=True)
class Exit:
    """How one run of a member ended. Code and signal are both None when nobody was left to see it."""

    code: int | None
    signal: int | None
    asked: bool
    at: float  # seconds since the epoch
    note: str = ""  # e.g. "keeper lost", "killed after 10 s of grace"
    is_oom: bool = False  # the kernel ended it because it used more memory than it may

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
        parts = (how, "asked" if self.asked else "unexpected", "out of memory" if self.is_oom else "", self.note)
        return ", ".join(part for part in parts if part)


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
class MemberFiles:
    """The files of a member that is a process of this machine."""

    data_dir: Path
    log_path: Path
    out_path: Path  # what it wrote to stdout and stderr


@dataclass(frozen=True, slots=True)
class MemberContainer:
    """The container that a member is."""

    name: str
    id: str
    image: str
    health: str = ""  # by the image's or the file's health check: "starting", "healthy", "unhealthy"
    probe_output: str = ""  # what the latest health check said


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
    addresses: Mapping[str, str]  # "client", "peer" (PD), "status" (TiKV) -> host:port, as the others find it
    argv: tuple[str, ...]
    files: MemberFiles | None = None
    container: MemberContainer | None = None
    restarts: int = 0  # how many of its starts were its restart policy's

    @property
    def is_held_back(self) -> bool:
        """Whether it was not started yet."""
        return not self.running and self.exit is None

    @property
    def is_down(self) -> bool:
        return not self.running and self.exit is not None

    @property
    def data_dir(self) -> Path:
        return self._files.data_dir

    @property
    def log_path(self) -> Path:
        return self._files.log_path

    @property
    def out_path(self) -> Path:
        return self._files.out_path

    @property
    def _files(self) -> MemberFiles:
        assert self.files is not None, f"{self.name} is a container and has no files here"
        return self.files


@dataclass(frozen=True, slots=True)
class Network:
    """The network that members which are containers live in, as it is to this machine."""

    name: str
    hosts: Mapping[str, str] = field(default_factory=dict)  # a running member's name -> its address in the network
    published: Mapping[str, str] = field(default_factory=dict)  # host:port in the network -> host:port here


@dataclass(frozen=True, slots=True)
class LogTail:
    """The last lines of one log, and where a person finds it: a path, or a command."""

    where: str
    lines: tuple[str, ...]


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
    network: Network | None = None  # None: the members listen on this machine itself

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
    left_objects: tuple[str, ...] = ()  # "container …", "network …", "volume …"
    data_deleted: bool = False
    kept: tuple[Path | str, ...] = ()  # what stays on purpose: data, logs, evidence; a volume by its name
    checked_pids: tuple[int, ...] = ()  # every process of the deployment that was looked for
    checked_ports: tuple[int, ...] = ()
    checked_containers: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        return not (self.left_pids or self.left_ports or self.left_paths or self.left_objects)


class RuntimeRefusal(Exception):
    """A runtime says no. The message says what is wrong; `mend` says what to do."""

    def __init__(self, wrong: str, mend: str) -> None:
        super().__init__(f"{wrong}; {mend}" if mend else wrong)
        self.wrong = wrong
        self.mend = mend


class Misuse(RuntimeRefusal):
    """The caller asked for something that cannot be: bad input."""


class NoSuchDeployment(Misuse):
    """There is no deployment of this name."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        there = f"there are: {', '.join(known)}" if known else "there is none yet: `drillyard up` makes one"
        super().__init__(f"there is no deployment {name!r}", there)


class NoSuchMember(Misuse):
    """The deployment has no member of this name."""

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
    """Somebody else has a port that a member wants."""

    def __init__(self, port: int, member: str, owner: str) -> None:
        mend = "stop that, or plan another port"
        super().__init__(f"port {port}, wanted by {member}, is taken by {owner}", mend)
        self.port = port
        self.member = member
        self.owner = owner


class ExecutableUnusable(StartRefused):
    """The named server cannot be run."""


class Busy(StartRefused):
    """Another command is starting or stopping this deployment."""


class KeeperFailed(RuntimeRefusal):
    """The deployment's keeper could not be started, or does not answer."""


class Reach:
    """How this machine reaches the members' addresses. This one: as they are."""

    words = ""  # how, for people; empty when there is nothing to tell

    def dial(self, address: str) -> str:
        """Where to connect for `address`, host:port both; raises OSError when there is no way to it now."""
        return address

    def renew(self, deployment: Deployment) -> None:
        """Take in what changed: a container that was started again may have another address."""


class Runtime(Protocol):
    """What every runtime offers. Members and deployments are named by strings; nothing here is a handle to keep."""

    @property
    def abilities(self) -> frozenset[Ability]: ...

    async def deployment(self, name: str) -> Deployment: ...

    async def list(self) -> tuple[Deployment, ...]: ...

    async def start_rest(self, name: str) -> None:
        """Start the members that were held back until PD grants timestamps."""

    async def start_member(self, name: str, member: str) -> None: ...

    async def stop_member(self, name: str, member: str) -> Exit: ...

    async def restart_member(self, name: str, member: str) -> None: ...

    async def kill_member(self, name: str, member: str) -> Exit: ...

    async def pause_member(self, name: str, member: str) -> None: ...

    async def resume_member(self, name: str, member: str) -> None: ...

    async def stop(self, name: str, *, delete_data: bool = False) -> StopReport: ...

    def watch(self, name: str) -> AsyncIterator[MemberEvent]: ...

    async def tails(self, name: str, member: str, lines: int, ended_at: float | None = None) -> tuple[LogTail, ...]:
        """The ends of a member's logs, the one that was written to last at the end. `ended_at` asks for the last words
        of the run that ended then, where the runtime can tell them from those of a later one."""

    def follow(self, name: str, member: str | None) -> AsyncIterator[tuple[str, str]]:
        """(member, line) for every line that is written from now on, of one member or of all."""

    async def keepsakes(self, name: str) -> Mapping[str, bytes]:
        """What the runtime itself knows of a deployment, for its evidence: relative path -> content, bounded."""

    def reach(self, deployment: Deployment) -> AbstractAsyncContextManager[Reach]: ...
