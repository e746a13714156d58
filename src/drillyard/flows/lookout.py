"""Eyes on one deployment: asks, judges and waits, one picture per cycle.

Rules: one cycle makes one observation, asked gate by gate, and judges it whole. While waiting, a cycle stops at the
first gate that is closed (the rest is "not asked yet"), so that a starting cluster is not burdened with questions that
cannot be answered; the data path, which writes, is asked last. The regions, which no gate needs, are asked for behind
that. An event of the runtime cuts a look short and starts the next, so that an exit ends a wait at once. What opened
and ended when goes to the time line. `glance` is a look without gates, at what survivability needs.

Not here: starting, stopping, evidence.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from drillyard.clients import calls
from drillyard.flows.report import Entry, Listener, Picture, cluster_id_of
from drillyard.judge.readiness import Gate, Status, judge, judge_gate
from drillyard.judge.scene import Pace
from drillyard.observation import (
    Failure,
    Observation,
    Probe,
    ProcessSeen,
    Reading,
    Started,
    StartedMember,
    StoresSeen,
    TimestampsSeen,
)
from drillyard.probes import Prober
from drillyard.runtimes.abilities import Deployment, EventKind, MemberEvent, Reach, Runtime
from drillyard.runtimes.reach import ByAddress, dials_of, is_reachable
from drillyard.topology import Role
from drillyard.waiting import Clock, Deadline, Wake, until

PATIENCE_S = 1.0  # for one answer while waiting: a member that hangs must not hide the others for long
ONE_LOOK_PATIENCE_S = 2.0  # for one answer when there is only one look
GLANCE_S = 1.0  # for all answers of a glance
STALE_PATIENCES = 4  # a picture that is older than so many answers may take is no longer how it is
FRESH_HEARTBEATS = 5  # a heartbeat is fresh for so many of its intervals, at most as long as PD says Up
MOST_FRESH_S = 20.0
BEAT_S = 0.5

Stage = Callable[[Observation], Awaitable[tuple[Reading, ...]]]


@dataclass(frozen=True, slots=True)
class Eyes:
    """What a lookout looks with."""

    runtime: Runtime
    clock: Clock
    listener: Listener


class Lookout:
    """Use as an async context: it follows the runtime's events while it is open."""

    def __init__(self, eyes: Eyes, deployment: Deployment, *, since: float | None = None, patience_s: float) -> None:
        self._eyes = eyes
        self._deployment = deployment
        self._name = deployment.name
        self._identity = deployment.directory / "data" / "cluster.json"
        self.started = started_of(deployment, _recalled(self._identity), since)
        self._patience_s = patience_s
        self._open = contextlib.AsyncExitStack()
        self._reach: Reach
        self._prober: Prober
        self._forgiven: dict[str, float] = {}
        self._began = eyes.clock.now() if since is None else since
        self._wake = Wake()
        self._cycles = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._tempo = Tempo(eyes.clock)
        self.timeline: list[Entry] = []
        self.opened: dict[Gate, float] = {}
        self.last: Picture | None = None

    async def __aenter__(self) -> Lookout:
        for member in self._deployment.members:
            if member.running and (member.started_at or 0.0) >= self._began:
                self.note(f"{member.name} started{_pid_words(member.pid)}", at=member.started_at, member=member.name)
        self._reach = await self._open.enter_async_context(self._eyes.runtime.reach(self._deployment))
        if self._reach.words:
            self.note(f"the members are reached {self._reach.words}")
        now, nonce = self._eyes.clock.now, os.urandom(8)
        self._prober = Prober(self.started, now, nonce, timeout_s=self._patience_s, dial=self._reach.dial)
        self._open.push_async_callback(self._prober.close)
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._tempo.beat())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._open.aclose()

    async def look(self, *, to_the_end: bool) -> Picture:
        """One cycle. `to_the_end` asks every question, whatever is closed."""
        self._cycles += 1
        deployment = await self._eyes.runtime.deployment(self._name)
        now = self._eyes.clock.now()
        self._reach.renew(deployment)
        seen = Observation(self._cycles, now, self.started, process_readings(deployment, now, self._forgiven))
        for gate, ask in self._stages():
            seen = seen.with_readings(await ask(seen))
            if not to_the_end and judge_gate(gate, seen).status is not Status.HOLDS:
                elapsed_s = self._eyes.clock.now() - self._began
                break
        else:
            elapsed_s = self._eyes.clock.now() - self._began
            seen = seen.with_readings(await self._prober.regions(seen))
        picture = Picture(deployment, seen, judge(seen), elapsed_s)
        self._note(picture)
        return picture

    async def until(self, is_over: Callable[[Picture], bool], timeout_s: float) -> tuple[Picture, bool]:
        """Look until a picture is over; the last picture, and whether it is. Ready is always over."""

        async def look() -> Picture | None:
            picture = await self.look(to_the_end=False)
            return picture if picture.readiness.is_ready or is_over(picture) else None

        found = await until(look, Deadline.after(self._eyes.clock, timeout_s), wake=self._wake)
        if found is not None:
            return found, True
        if self.last is None or self._eyes.clock.now() - self.last.observation.at > STALE_PATIENCES * self._patience_s:
            return await self.look(to_the_end=False), False  # what is told must be how it is, or why nobody knows
        return self.last, False

    def forgive(self, member: str, ended_at: float) -> None:
        """Count this end of the member no more, if it runs again."""
        self._forgiven[member] = ended_at

    def has_forgiven(self, member: str) -> bool:
        return member in self._forgiven

    @property
    def pace(self) -> Pace:
        """How the wait went until now."""
        return self._tempo.pace()

    def _stages(self) -> tuple[tuple[Gate, Stage], ...]:
        return (
            (Gate.PD_QUORUM, self._prober.pd_quorum),
            (Gate.TIMESTAMPS, self._prober.timestamps),
            (Gate.STORES_UP, self._prober.stores_up),
            (Gate.REPLICATED, self._prober.replicated),
            (Gate.DATA_PATH, self._prober.data_path),
        )

    # --- the time line -----------------------------------------------------------------------------------------------

    def note(self, text: str, *, at: float | None = None, member: str = "", gate: str = "") -> None:
        entry = Entry(self._eyes.clock.now() if at is None else at, text, member, gate)
        self.timeline.append(entry)
        self._eyes.listener.hear(entry)

    def _note(self, picture: Picture) -> None:
        before, self.last = self.last, picture
        self._tempo.see(picture)
        for verdict in picture.readiness.verdicts:
            gate, holds = verdict.gate, verdict.status is Status.HOLDS
            held = before is not None and before.readiness.of(gate).status is Status.HOLDS
            if holds and not held:
                self.opened.setdefault(gate, picture.elapsed_s)
                self.note(f"gate {gate} is open: {verdict.found}", gate=gate)
            elif held and not holds and verdict.status is Status.VIOLATED:
                self.note(f"gate {gate} is closed: {verdict.text}", gate=gate)
        if picture.readiness.of(Gate.PD_QUORUM).status is Status.HOLDS and self.started.cluster_id is None:
            _remember(self._identity, cluster_id_of(picture.observation))
        self._eyes.listener.see(picture)

    async def _follow(self) -> None:
        """Turn the runtime's events into entries, and wake the wait. A watch that ends leaves the poll."""
        async with contextlib.aclosing(self._eyes.runtime.watch(self._name)) as events:  # type: ignore[type-var]
            async for event in events:
                if not event.is_replay:
                    self.note(event_words(event), at=event.at, member=event.member)
                    self._wake.rouse()


class Tempo:
    """Whether anything moves, whether this machine stood still, and whether its clock was set."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = self._moved = self._woke = clock.monotonic()
        self._offset_s = clock.now() - clock.since_boot()
        self._slept_s = 0.0
        self._shape: object = None

    async def beat(self) -> None:
        """Be woken regularly: a beat that is late by seconds was slept through, by the machine or by us."""
        while True:
            before = self._clock.since_boot()
            await asyncio.sleep(BEAT_S)
            slept_s = self._clock.since_boot() - before - BEAT_S
            if slept_s > self._slept_s:
                self._slept_s, self._woke = slept_s, self._clock.monotonic()

    def see(self, picture: Picture) -> None:
        """A picture that differs from the last in who runs, who answers or what is placed where has moved."""
        shape = tuple((one.probe, one.member, _outline(one)) for one in picture.observation.readings)
        if shape != self._shape:
            self._shape, self._moved = shape, self._clock.monotonic()

    def pace(self) -> Pace:
        now = self._clock.monotonic()
        set_s = self._clock.now() - self._clock.since_boot() - self._offset_s
        return Pace(now - self._began, now - self._moved, self._slept_s, now - self._woke, set_s)


def _outline(reading: Reading) -> object:
    """A reading without what changes by itself (times, the words of a failure)."""
    if isinstance(reading.answer, StoresSeen):
        return tuple((one.store_id, one.state, one.leader_count, one.region_count) for one in reading.answer.stores)
    if reading.answer is None or isinstance(reading.answer, TimestampsSeen):
        return reading.answer is None
    return reading.answer


async def glance(clock: Clock, deployment: Deployment) -> Observation:
    """One look at what survivability needs, bounded in time whoever hangs. It starts no relay: containers that cannot
    be reached without one are not asked."""
    now = clock.now()
    seen = Observation(1, now, started_of(deployment, None), process_readings(deployment, now))
    if deployment.network is not None and not await is_reachable(dials_of(deployment).values()):
        return seen.with_readings(_out_of_reach(deployment, now))
    dial = ByAddress(deployment).dial if deployment.network is not None else calls.directly
    prober = Prober(seen.started, clock.now, b"", timeout_s=GLANCE_S / 2, dial=dial)
    try:
        async with asyncio.timeout(GLANCE_S):
            seen = seen.with_readings(await prober.pd_voices(seen))
            seen = seen.with_readings(await prober.stores_and_regions(seen))
    except TimeoutError:
        return seen
    finally:
        await prober.close()
    return seen


def _out_of_reach(deployment: Deployment, now: float) -> list[Reading]:
    failure = Failure("unreachable", "not reached from here without a relay, which `drillyard verify` starts")
    return [Reading(pd.name, Probe.PD_SELF, now, now, failure=failure) for pd in deployment.of_role(Role.PD)]


def event_words(event: MemberEvent) -> str:
    if event.kind is EventKind.EXITED:
        return f"{event.member} ended: {event.exit}"
    if event.kind is EventKind.STOPPING:
        return f"{event.member} is asked to end"
    return f"{event.member} {event.kind.value}{_pid_words(event.pid)}"


def _pid_words(pid: int | None) -> str:
    return f" (pid {pid})" if pid is not None else ""


def started_of(deployment: Deployment, cluster_id: int | None, since: float | None = None) -> Started:
    """What must be found, from what was deployed."""
    members = tuple(
        StartedMember(member.name, member.role, member.addresses["client"], member.addresses.get("status", ""))
        for member in deployment.members
    )
    intervals = [
        _seconds(deployment.topology.config_of(member).get("raftstore.pd-store-heartbeat-tick-interval", "10s"))
        for member in deployment.topology.of_role(Role.TIKV)
    ]
    fresh_s = min(MOST_FRESH_S, FRESH_HEARTBEATS * max(intervals, default=MOST_FRESH_S))
    return Started(members, cluster_id, fresh_s, since)


def process_readings(
    deployment: Deployment, now: float, forgiven: Mapping[str, float] | None = None
) -> tuple[Reading, ...]:
    readings = []
    for member in deployment.members:
        end = member.exit
        seen = ProcessSeen(
            running=member.running,
            pid=member.pid,
            started_at=member.started_at or 0.0,
            code=end.code if end else None,
            signal=end.signal if end else None,
            asked=end.asked if end else False,
            paused=member.paused,
            held_back=member.is_held_back and deployment.is_up,
            ended_at=end.at if end and end.at > (forgiven or {}).get(member.name, 0.0) else 0.0,
            restarts=member.restarts,
        )
        readings.append(Reading(member.name, Probe.PROCESS, now, now, seen))
    return tuple(readings)


def _seconds(text: object) -> float:
    """A duration as the servers' configuration writes it; what we cannot read counts as TiKV's own ten seconds."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    for unit in ("ms", "s", "m", "h"):
        number = str(text).removesuffix(unit)
        if number != str(text):
            with contextlib.suppress(ValueError):
                return float(number) * units[unit]
    return 10.0


def _recalled(path: Path) -> int | None:
    """The cluster id that a first proof recorded beside the data, so that a foreign cluster is told apart."""
    try:
        recorded = json.loads(path.read_bytes())["cluster_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return recorded if isinstance(recorded, int) else None


def _remember(path: Path, cluster_id: int) -> None:
    if path.parent.is_dir() and not path.exists():
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(json.dumps({"cluster_id": cluster_id}) + "\n")
        draft.replace(path)
