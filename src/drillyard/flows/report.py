"""What a flow tells: the records that every face shows in the same words.

Rules: frozen records, made of what was observed and judged; nothing here asks, waits or prints. A face may lay them out
in its own way, but adds no sentence of its own about the cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from drillyard.judge.ends import Cause
from drillyard.judge.readiness import Gate, Readiness, Status, exit_words
from drillyard.judge.survivability import Survivability, survivability_of
from drillyard.observation import (
    Answer,
    CountSeen,
    Observation,
    PdHealthSeen,
    PdMembersSeen,
    Probe,
    ProcessSeen,
    RegionsSeen,
    SelfSeen,
    StoresSeen,
    TimestampsSeen,
)
from drillyard.runtimes.abilities import DEFAULT_NAME, DeployedMember, Deployment, Network
from drillyard.topology import Role

PAGE = "index.html"  # of an evidence bundle
EMULATOR_MARK = "drillyard"  # how our emulated servers begin their git hash


class Ending(StrEnum):
    """How a flow ended. Faces map each to an exit code."""

    OK = "ok"
    NOT_READY = "not-ready"
    MEMBER_EXITED = "member-exited"
    COULD_NOT_START = "could-not-start"
    INTERRUPTED = "interrupted"
    NOT_CLEAN = "not-clean"
    WRITES_LOST = "writes-lost"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the time line."""

    at: float
    text: str
    member: str = ""
    gate: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A deployment at one instant: its processes, what was read, and the verdicts over it."""

    deployment: Deployment
    observation: Observation
    readiness: Readiness
    elapsed_s: float


class Listener(Protocol):
    """Who wants to hear while a flow runs: each picture, each entry of the time line, and what is known of a flow that
    was interrupted and so returns nothing."""

    def see(self, picture: Picture) -> None: ...

    def hear(self, entry: Entry) -> None: ...

    def cut_short(self, trouble: Trouble) -> None: ...


class Silence:
    """Nobody listens."""

    def see(self, picture: Picture) -> None:
        pass

    def hear(self, entry: Entry) -> None:
        pass

    def cut_short(self, trouble: Trouble) -> None:
        pass


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One member as its runtime sees it. `kind` is emulated or real; `state` is running, paused,
    stopped (asked for), exited (not asked for) or not started; `exit_…` tell of its last end; `addresses` are host:port
    by purpose (client, peer, status)."""

    name: str
    role: str
    kind: str
    state: str
    pid: int | None
    exit_code: int | None
    exit_signal: str
    exit_asked: bool | None
    addresses: dict[str, str]
    log_path: Path | None  # None for a container, whose log Docker has
    version: str = ""
    container: str = ""
    restarts: int = 0  # by its restart policy
    exit_oom: bool = False

    @property
    def title(self) -> str:
        return Role(self.role).title

    @property
    def exit_text(self) -> str:
        if self.exit_asked is None:
            return ""
        how = self.exit_signal or ("exit code unknown" if self.exit_code is None else f"exit code {self.exit_code}")
        return f"{how}, {'asked' if self.exit_asked else 'unexpected'}{', out of memory' if self.exit_oom else ''}"


@dataclass(frozen=True, slots=True)
class GateRow:
    """The verdict of one gate: `status` is holds, violated or unknown; `members` are those that it lacks something of;
    `open_after_s` is when it opened in this wait."""

    gate: str
    status: str
    lacks: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    found: str = ""
    open_after_s: float | None = None

    @property
    def text(self) -> str:
        """What was found, or what it lacks."""
        return self.found or "; ".join(self.lacks)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a flow did not end well, and what to do: everything a person needs to go on from here."""

    ending: Ending
    text: str
    gate: str = ""
    lacks: tuple[str, ...] = ()
    last_reading: str = ""
    culprit: str = ""
    log_path: str = ""
    log_lines: tuple[str, ...] = ()
    evidence: str = ""
    next_command: str = ""
    state: str = ""
    cause: Cause | None = None
    is_down: bool = False  # nothing runs: the text and the next command say all that a person needs

    @property
    def is_saved(self) -> bool:
        """Whether `evidence` is a directory and not the reason why there is none."""
        return Path(self.evidence).is_absolute()


@dataclass(frozen=True, slots=True)
class Report:
    """The result of looking at a deployment, of waiting for it, or of the whole procedure."""

    deployment: str
    runtime: str
    ending: Ending
    is_ready: bool
    gates: tuple[GateRow, ...]
    members: tuple[MemberRow, ...]
    pd_endpoints: tuple[str, ...]
    network: Network | None = None  # None: the members listen on this machine itself
    pd_leader: str = ""
    cluster_id: int = 0
    proven: str = ""
    elapsed_s: float = 0.0
    timeline: tuple[Entry, ...] = ()
    trouble: Trouble | None = None
    survivability: Survivability | None = None  # None: a wait that ended before all gates were open did not ask

    @property
    def may_be_removed(self) -> bool:
        """Whether the deployment's data may go: there was no trouble, or its evidence is saved."""
        return self.trouble is None or self.trouble.is_saved


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What one full look found, and the directory in which all of it is kept, or why there is none."""

    report: Report
    evidence: str

    @property
    def page(self) -> Path | None:
        """Where to begin reading; None when nothing could be saved."""
        return Path(self.evidence) / PAGE if Path(self.evidence).is_absolute() else None


@dataclass(frozen=True, slots=True)
class DownReport:
    """What `down` did, and the proof that nothing is left."""

    deployment: str
    is_clean: bool
    stopped: tuple[str, ...] = ()
    killed: tuple[str, ...] = ()
    checked_pids: int = 0
    checked_ports: int = 0
    checked_containers: int = 0
    left: tuple[str, ...] = ()
    is_data_deleted: bool = False
    kept: tuple[str, ...] = ()
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class ResetReport:
    """What a warm reset found and did; its `report` says whether the deployment is ready, and then it is empty too."""

    report: Report
    started: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()
    is_data_deleted: bool = False
    evidence: str = ""  # of an end that nobody asked for, saved before the reset

    @property
    def ending(self) -> Ending:
        return self.report.ending


@dataclass(frozen=True, slots=True)
class ProofReport:
    """The whole procedure: brought up, proven, taken down, nothing left."""

    report: Report
    down: DownReport | None
    checks: tuple[tuple[str, bool], ...] = field(default=())

    @property
    def ending(self) -> Ending:
        if self.report.ending is not Ending.OK:
            return self.report.ending
        return Ending.OK if self.down is not None and self.down.is_clean else Ending.NOT_CLEAN


def report_of(picture: Picture, timeline: Iterable[Entry], opened: dict[Gate, float], ending: Ending) -> Report:
    """The records for one picture. `opened` says how many seconds after the start each gate opened."""
    deployment, observation = picture.deployment, picture.observation
    members = member_rows(deployment, observation)
    return Report(
        deployment=deployment.name,
        runtime=deployment.runtime,
        ending=ending,
        is_ready=picture.readiness.is_ready,
        gates=gate_rows(picture.readiness, opened),
        members=members,
        pd_endpoints=deployment.pd_endpoints,
        network=deployment.network,
        pd_leader=leader_of(observation),
        cluster_id=cluster_id_of(observation),
        proven=proven_words(members) if picture.readiness.is_ready else "",
        elapsed_s=picture.elapsed_s,
        timeline=tuple(sorted(timeline, key=lambda entry: entry.at)),
        survivability=survivability_of(observation) if observation.once(Probe.REGIONS) is not None else None,
    )


def gate_rows(readiness: Readiness, opened: dict[Gate, float]) -> tuple[GateRow, ...]:
    rows = []
    for verdict in readiness.verdicts:
        lacks = tuple(lack.text for lack in verdict.lacks)
        after_s = opened.get(verdict.gate) if verdict.status is Status.HOLDS else None
        rows.append(GateRow(verdict.gate.value, verdict.status.value, lacks, verdict.members, verdict.found, after_s))
    return tuple(rows)


def member_rows(deployment: Deployment, observation: Observation | None = None) -> tuple[MemberRow, ...]:
    versions = versions_of(observation) if observation is not None else {}
    return tuple(_member_row(member, versions.get(member.name, ("", ""))) for member in deployment.members)


def _member_row(member: DeployedMember, version: tuple[str, str]) -> MemberRow:
    told_kind, told_version = version
    end = None if member.running else member.exit
    return MemberRow(
        name=member.name,
        role=member.role.value,
        kind=told_kind or member.kind,
        state=state_of(member),
        pid=member.pid,
        exit_code=end.code if end else None,
        exit_signal=end.signal_name if end else "",
        exit_asked=end.asked if end else None,
        addresses=dict(member.addresses),
        log_path=member.files.log_path if member.files else None,
        version=told_version,
        container=member.container.name if member.container else "",
        restarts=member.restarts,
        exit_oom=end.is_oom if end else False,
    )


def name_option(name: str) -> str:
    """What to add to a command so that it means this deployment."""
    return "" if name == DEFAULT_NAME else f" --name {name}"


def state_of(member: DeployedMember) -> str:
    if member.running:
        return "paused" if member.paused else "running"
    if member.exit is None:
        return "not started"
    return "stopped" if member.exit.asked else "exited"


def leader_of(observation: Observation) -> str:
    """The PD leader, when all PD members that answered name the same."""
    named = {view.leader for view in _views(observation) if view.leader}
    return named.pop() if len(named) == 1 else ""


def cluster_id_of(observation: Observation) -> int:
    ids = {view.cluster_id for view in _views(observation) if view.cluster_id}
    return ids.pop() if len(ids) == 1 else 0


def versions_of(observation: Observation) -> dict[str, tuple[str, str]]:
    """By member: its kind ("real" or "emulated") and its version, in the members' own words."""
    found: dict[str, tuple[str, str]] = {}
    for view in _views(observation):
        for pd in view.members:
            if pd.version:
                found[pd.name] = _kind_of(pd.git_hash), pd.version.removeprefix("v")
    stores = observation.answer_once(Probe.STORES, StoresSeen)
    by_address = {store.address: store for store in stores.stores} if stores else {}
    for member in observation.started.of_role(Role.TIKV):
        store = by_address.get(member.address)
        if store is not None:
            found[member.name] = _kind_of(store.git_hash), store.version.removeprefix("v")
    return found


def proven_words(rows: Iterable[MemberRow]) -> str:
    """What runs, in one line: "emulated PD 8.1.0, emulated TiKV 8.1.0".

    A PD publishes its version some time after it serves; until then its siblings of the same kind speak for it.
    """
    versions: dict[tuple[str, str], set[str]] = {}
    for row in sorted(rows, key=lambda row: (row.role, row.kind)):
        versions.setdefault((row.kind, row.title), set()).add(row.version)
    told = {kind_title: sorted(found - {""}) or [""] for kind_title, found in versions.items()}
    return ", ".join(f"{kind} {title} {one}".strip() for (kind, title), found in told.items() for one in found)


def clock_text(at: float) -> str:
    """A time of day with milliseconds, in UTC as the members' logs have it."""
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}.{int(at % 1 * 1000):03d}"


def answer_words(answer: Answer | None) -> str:
    """What an answer says, in a few words."""
    if isinstance(answer, ProcessSeen):
        return exit_words(answer) if not answer.running else "paused" if answer.paused else "runs"
    if isinstance(answer, PdMembersSeen):
        names = ", ".join(member.name for member in answer.members)
        return f"leader {answer.leader or 'unknown'}, members {names or 'unknown'}, cluster {answer.cluster_id}"
    if isinstance(answer, PdHealthSeen):
        return ", ".join(f"{name} {'healthy' if healthy else 'not healthy'}" for name, healthy in answer.healthy)
    if isinstance(answer, StoresSeen):
        return ", ".join(
            f"{store.address} {store.state} ({store.leader_count} of {store.region_count} regions led)"
            for store in answer.stores
        )
    if isinstance(answer, CountSeen):
        regions = ", ".join(str(region) for region in answer.regions)
        return f"{answer.count}" + (f" (regions {regions})" if regions else "")
    if isinstance(answer, RegionsSeen):
        return f"{len(answer.regions)} regions" + ("" if answer.is_complete else ", and more")
    if isinstance(answer, SelfSeen):
        return f"healthy {str(answer.healthy).lower()} {answer.text}".strip()
    if isinstance(answer, TimestampsSeen):
        return f"{answer.first}, then {answer.second}"
    if answer is None:
        return ""
    if not answer.reason:
        return f"a key was written, read back and deleted in region {answer.region_id}"
    return f"{answer.step} in region {answer.region_id}: {answer.reason}"


def _kind_of(git_hash: str) -> str:
    return "emulated" if git_hash.startswith(EMULATOR_MARK) else "real"


def _views(observation: Observation) -> list[PdMembersSeen]:
    pds = observation.started.of_role(Role.PD)
    views = (observation.answer(Probe.PD_MEMBERS, member.name, PdMembersSeen) for member in pds)
    return [view for view in views if view is not None]
