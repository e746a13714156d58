"""Bring a deployment up and wait until it is proven, or look at one that is there.

`up`: plan, start, wait by gates, report. On a deployment that runs already it starts nothing and waits only for the
proof. `verify`: one look, or a wait. `diagnose`: one look, kept as evidence whatever it found. Rules: members that the
runtime holds back are started when PD grants timestamps; a member that ends during a wait ends the wait at once, also
if a restart policy brings it back. One end is forgiven once: that of a TiKV which asked for a timestamp too early. A
wait that fails or is interrupted saves its evidence before it returns; members that run are left running, for they are
evidence too, and the report says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from drillyard.flows import evidence
from drillyard.flows.report import (
    Diagnosis,
    Ending,
    Entry,
    Listener,
    Picture,
    Report,
    Silence,
    Trouble,
    answer_words,
    name_option,
    report_of,
    state_of,
)
from drillyard.judge import causes, ends
from drillyard.judge.ends import Cause
from drillyard.judge.readiness import Gate, Status, Verdict
from drillyard.judge.scene import Pace, Scene
from drillyard.observation import Probe, ProcessSeen, Reading
from drillyard.runtimes.abilities import (
    DEFAULT_NAME,
    DeployedMember,
    Deployment,
    LogTail,
    Misuse,
    RuntimeRefusal,
    WrongState,
)
from drillyard.runtimes.choice import Runtimes, Wish
from drillyard.runtimes.compose_plans import ComposePlan, Images
from drillyard.runtimes.plans import Executable, Executables, Plan
from drillyard.topology import Role, Topology
from drillyard.waiting import Clock, Deadline, to_its_end

if TYPE_CHECKING:
    from drillyard.flows.lookout import Lookout

LAST_LINES = 8
CRASH_LOOP_S = 60.0  # a member that ended so lately and was restarted may do so again
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class UpRequest:
    """What to bring up. Without a topology an existing deployment comes back as it was, or the usual one is made."""

    name: str = DEFAULT_NAME
    topology: Topology | None = None
    pd_binary: str | None = None
    tikv_binary: str | None = None
    timeout_s: float = TIMEOUT_S
    runtime: str | None = None
    images: Images | None = None

    def wish(self) -> Wish:
        executables = None
        if self.pd_binary is not None or self.tikv_binary is not None:
            executables = Executables(_executable(self.pd_binary), _executable(self.tikv_binary))
        return Wish(self.name, self.runtime, self.topology, executables, self.images)


@dataclass(frozen=True, slots=True)
class Scope:
    """What every flow works with."""

    runtime: Runtimes
    clock: Clock
    listener: Listener

    @classmethod
    def of(cls, home: Path | None = None, listener: Listener | None = None) -> Scope:
        return cls(Runtimes(home), Clock(), listener or Silence())


async def up(scope: Scope, request: UpRequest) -> Report:
    """Start what does not run yet and wait for all six gates."""
    began = scope.clock.now()
    if request.topology is not None and not request.topology.of_role(Role.TIKV):
        raise Misuse("the topology has no TiKV", "add at least one: without a store no gate after PD's can open")
    plan = await scope.runtime.plan(request.wish())
    deployment = await scope.runtime.deployment(request.name)
    told: list[Entry] = []
    if not deployment.is_up:
        with contextlib.suppress(evidence.EvidenceLost):  # a start removes nothing
            await evidence.save_unseen_end(scope.runtime, deployment, scope.clock.now())
        deployment = await _start(scope, plan, told)
    is_over = partial(_is_cut_short, since=began)
    return await _wait(scope, _Wait(deployment, began, request.timeout_s, is_over, tuple(told)))


async def verify(scope: Scope, name: str, wait_s: float | None = None) -> Report:
    """Judge a deployment from one look, or wait up to `wait_s` for it to become ready."""
    began = scope.clock.now()
    deployment = await scope.runtime.deployment(name)
    if wait_s is not None:
        return await _wait(scope, _Wait(deployment, began, wait_s, partial(_fell, since=began)))
    report, _ = await _look(scope, deployment, began)
    return report


async def diagnose(scope: Scope, name: str) -> Diagnosis:
    """One look with every question asked, as `verify` has it, and a bundle of all that can be known."""
    began = scope.clock.now()
    report, picture = await _look(scope, await scope.runtime.deployment(name), began)
    scene = evidence.Scene("diagnosis", picture.deployment, picture, report, report.timeline)
    saved = await _save(scope, scene)
    if report.trouble is not None:
        report = replace(report, trouble=replace(report.trouble, evidence=saved))
    return Diagnosis(report, saved)


async def _look(scope: Scope, deployment: Deployment, began: float) -> tuple[Report, Picture]:
    # Imported late: the RPC library costs a quarter of a second, which the start of the members does not wait for.
    from drillyard.flows.lookout import ONE_LOOK_PATIENCE_S, Eyes, Lookout

    eyes = Eyes(scope.runtime, scope.clock, scope.listener)
    async with Lookout(eyes, deployment, since=began, patience_s=ONE_LOOK_PATIENCE_S) as lookout:
        picture = await lookout.look(to_the_end=True)
    ending = Ending.OK if picture.readiness.is_ready else Ending.NOT_READY
    report = report_of(picture, lookout.timeline, {}, ending)
    if ending is Ending.OK:
        return report, picture
    pace = replace(lookout.pace, waited_s=0.0, quiet_s=0.0)  # one look has waited for nothing
    trouble = await _trouble_of(scope, picture, pace, (ending, "is not ready"))
    return replace(report, trouble=trouble), picture


@dataclass(frozen=True, slots=True)
class _Wait:
    deployment: Deployment
    began: float
    timeout_s: float
    is_over: Callable[[Picture], bool]
    told: tuple[Entry, ...] = ()  # what was heard before the wait began


async def _wait(scope: Scope, wait: _Wait) -> Report:
    from drillyard.flows.lookout import PATIENCE_S, Eyes, Lookout

    eyes = Eyes(scope.runtime, scope.clock, scope.listener)
    lookout = Lookout(eyes, wait.deployment, since=wait.began, patience_s=PATIENCE_S)
    lookout.timeline.extend(wait.told)
    try:
        async with lookout:
            picture, is_over = await _until_proven(scope, wait, lookout)
    except (asyncio.CancelledError, RuntimeRefusal) as error:
        cause = "interrupted" if isinstance(error, asyncio.CancelledError) else str(error)
        await _save_cut_short(scope, wait.deployment, cause, lookout)
        raise
    if picture.readiness.is_ready:
        return report_of(picture, lookout.timeline, lookout.opened, Ending.OK)
    fell = is_over and _fell(picture, wait.began)
    ending = Ending.MEMBER_EXITED if fell else Ending.NOT_READY
    happened = "" if fell else f"is not ready after {picture.elapsed_s:.1f} s"
    trouble = await _trouble_of(scope, picture, lookout.pace, (ending, happened))
    report = replace(report_of(picture, lookout.timeline, lookout.opened, ending), trouble=trouble)
    scene = evidence.Scene(ending.value, picture.deployment, picture, report, tuple(lookout.timeline))
    return replace(report, trouble=replace(trouble, evidence=await _save(scope, scene)))


async def _until_proven(scope: Scope, wait: _Wait, lookout: Lookout) -> tuple[Picture, bool]:
    """The picture that ends the wait, and whether it was over before its time."""
    deadline = Deadline.after(scope.clock, wait.timeout_s)
    rest = _Rest(scope.runtime, wait.deployment.name)
    try:
        while True:
            picture, is_over = await lookout.until(
                lambda picture: rest.start_when_due(picture) or wait.is_over(picture), deadline.left_s
            )
            rest.check()
            if picture.readiness.is_ready or not is_over or not await _forgive(scope, wait, lookout, picture):
                return picture, is_over
    finally:
        await rest.settle()


class _Rest:
    """The members that are held back. Their start is a task of its own, because a look may be cut short at any time."""

    def __init__(self, runtime: Runtimes, name: str) -> None:
        self._runtime = runtime
        self._name = name
        self._starting: asyncio.Future[None] | None = None

    def start_when_due(self, picture: Picture) -> bool:
        """Start them once, as soon as PD grants timestamps; whether that has failed."""
        is_due = picture.readiness.of(Gate.TIMESTAMPS).status is Status.HOLDS
        if self._starting is None and is_due and any(member.is_held_back for member in picture.deployment.members):
            self._starting = asyncio.ensure_future(to_its_end(self._runtime.start_rest(self._name)))
        return self._starting is not None and self._starting.done() and self._starting.exception() is not None

    def check(self) -> None:
        """Raise what their start raised."""
        if self._starting is not None and self._starting.done():
            self._starting.result()

    async def settle(self) -> None:
        """Half a start has no defined state."""
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)


async def _forgive(scope: Scope, wait: _Wait, lookout: Lookout, picture: Picture) -> bool:
    """Whether every end in the picture is a TiKV's first loss of the race for a timestamp; those run again then."""
    races = []
    for member in picture.deployment.members:
        if not _has_fallen(picture, member, wait.began):
            continue
        words = await _last_words(scope, picture.deployment, member, wait.began)
        cause = ends.cause_of(evidence.ended(picture.deployment, member, words.lines))
        is_race = cause is not None and cause.name == ends.TIMESTAMP_RACE
        if member.role is not Role.TIKV or not is_race or lookout.has_forgiven(member.name):
            return False
        races.append((member, cause))
    for member, cause in races:
        assert member.exit is not None
        assert cause is not None
        lookout.forgive(member.name, member.exit.at)
        lookout.note(f"{cause.text}; it is started once more", member=member.name)
        if not member.running:
            with contextlib.suppress(WrongState):  # its restart policy was quicker
                await scope.runtime.start_member(picture.deployment.name, member.name)
    return bool(races)


async def _start(scope: Scope, plan: Plan | ComposePlan, told: list[Entry]) -> Deployment:
    """Start the members. A start that is refused or interrupted on the way saves the evidence of what was made."""

    def tell(text: str) -> None:
        told.append(Entry(scope.clock.now(), text))
        scope.listener.hear(told[-1])

    try:
        return await scope.runtime.start(plan, tell)
    except (asyncio.CancelledError, RuntimeRefusal) as error:
        with contextlib.suppress(RuntimeRefusal):
            deployment = await scope.runtime.deployment(plan.name)
            if any(member.running or member.exit is not None for member in deployment.members):
                cause = "interrupted" if isinstance(error, asyncio.CancelledError) else str(error)
                await _save_cut_short(scope, deployment, cause)
        raise


async def _save_cut_short(scope: Scope, deployment: Deployment, cause: str, lookout: Lookout | None = None) -> None:
    """The evidence of a wait that does not come to its end, and a word to the listener about where it is."""
    now = scope.clock.now()
    with contextlib.suppress(RuntimeRefusal):
        deployment = await scope.runtime.deployment(deployment.name)
    entries = (*(lookout.timeline if lookout else ()), Entry(now, cause))
    picture = lookout.last if lookout else None
    trouble = Trouble(
        Ending.INTERRUPTED,
        f"{deployment.name}: {cause}; the members go on as they are",
        next_command=f"drillyard verify --wait{name_option(deployment.name)}",
        state=_state_words(deployment),
    )
    scene = evidence.Scene("cut-short", deployment, picture, None, entries, trouble)
    scope.listener.cut_short(replace(trouble, evidence=await _save(scope, scene)))


async def _save(scope: Scope, scene: evidence.Scene) -> str:
    """Where the bundle is, or why there is none: what it is about must be told all the same."""
    try:
        return str(await evidence.save(scope.runtime, scene, scope.clock.now()))
    except evidence.EvidenceLost as lost:
        return str(lost)


# --- what is wrong, told so that one can go on from there ------------------------------------------------------------


async def _trouble_of(scope: Scope, picture: Picture, pace: Pace, end: tuple[Ending, str]) -> Trouble:
    """The first closed gate, what it lacks, the last reading, the culprit's last words, the cause and the next
    command. `end` is how the flow ended, and what happened in words if no member's end is to be told."""
    ending, happened = end
    verdict = picture.readiness.first_closed
    assert verdict is not None, "only a picture that is not ready has a trouble"
    deployment = picture.deployment
    said = await _all_last_words(scope, picture)
    cause = _cause_of(picture, pace, {name: words.lines for name, words in said.items()})
    fallen = [m for m in deployment.members if _has_fallen(picture, m, picture.observation.started.since or 0.0)]
    told = [m for m in deployment.members if cause is not None and m.name in cause.members[:1]]
    named = [m for m in deployment.members if m.name in verdict.members[:1]]
    fell = sorted(fallen, key=lambda member: member not in told) if ending is Ending.MEMBER_EXITED else []
    culprit = next(iter(fell or told or named), None)
    words = said[culprit.name].last if culprit else LogTail("", ())
    lacks = tuple(lack.text for lack in verdict.lacks)
    subject = happened or _end_words(culprit)
    text = f"{deployment.name} {subject}: gate {verdict.gate} is {_closed_words(verdict)}: {lacks[0]}"
    # One that falls while it is watched is another matter: how it fell must be told.
    is_down = ending is Ending.NOT_READY and not any(member.running for member in deployment.members)
    return Trouble(
        ending=ending,
        text=_down_words(deployment) if is_down else text,
        gate=verdict.gate.value,
        lacks=lacks,
        last_reading=_last_reading(verdict),
        culprit=culprit.name if culprit else "",
        log_path=words.where,
        log_lines=words.lines[-LAST_LINES:],
        cause=cause,
        next_command=_next_command(deployment, verdict, culprit),
        state=_state_words(deployment),
        is_down=is_down,
    )


def _cause_of(picture: Picture, pace: Pace, words: Mapping[str, tuple[str, ...]]) -> Cause | None:
    deployment, since = picture.deployment, picture.observation.started.since or 0.0
    ended = [m for m in deployment.members if _speaks_of_its_end(m, since) or _keeps_falling(picture, m)]
    told = tuple(evidence.ended(deployment, member, words[member.name]) for member in ended)
    option = name_option(deployment.name)
    return causes.cause_of(Scene(picture.observation, picture.readiness, told, words, pace, option))


@dataclass(frozen=True, slots=True)
class _Words:
    """The ends of one member's logs: what it says in any of them, and the one that tells its last words."""

    tails: tuple[LogTail, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(line for tail in self.tails for line in tail.lines)

    @property
    def last(self) -> LogTail:
        return next((tail for tail in reversed(self.tails) if tail.lines), self.tails[-1])


async def _all_last_words(scope: Scope, picture: Picture) -> dict[str, _Words]:
    members, since = picture.deployment.members, picture.observation.started.since or 0.0
    words = await asyncio.gather(*(_last_words(scope, picture.deployment, member, since) for member in members))
    return {member.name: one for member, one in zip(members, words, strict=True)}


async def _last_words(scope: Scope, deployment: Deployment, member: DeployedMember, since: float) -> _Words:
    """Enough to look for a cause in: before the member's latest end, when that is what it speaks of and nobody asked
    for it."""
    end = member.exit
    ended_at = end.at if end is not None and not end.asked and _speaks_of_its_end(member, since) else None
    try:
        tails = await scope.runtime.tails(deployment.name, member.name, ends.LINES, ended_at)
    except RuntimeRefusal as refused:
        tails = (LogTail(str(refused), ()),)
    return _Words(tails or (LogTail("", ()),))


def _speaks_of_its_end(member: DeployedMember, since: float) -> bool:
    """Whether a member's end counts: it is down, or ended since then without being asked to and runs again."""
    end = member.exit
    return end is not None and (not member.running or (not end.asked and end.at >= since))


def _keeps_falling(picture: Picture, member: DeployedMember) -> bool:
    """A restart policy brings it back, and not for long."""
    return bool(member.restarts and member.exit and picture.observation.at - member.exit.at < CRASH_LOOP_S)


def _down_words(deployment: Deployment) -> str:
    ends = [(member.name, member.exit) for member in deployment.members]
    unasked = ", ".join(f"{name} ended: {end}" for name, end in ends if end is not None and not end.asked)
    return f"{deployment.name} is down: none of its members runs" + (f" ({unasked})" if unasked else "")


def _end_words(culprit: DeployedMember | None) -> str:
    if culprit is None or culprit.exit is None:
        return "lost a member"
    return f"lost {culprit.name} ({culprit.exit})"


def _closed_words(verdict: Verdict) -> str:
    return "closed" if any(lack.is_broken for lack in verdict.lacks) else "not proven"


def _last_reading(verdict: Verdict) -> str:
    """The reading that says what the gate lacks first."""
    reading = next((lack.reading for lack in verdict.lacks if lack.reading is not None), None)
    return _reading_words(reading) if reading is not None else ""


def _reading_words(reading: Reading) -> str:
    who = f" by {reading.member}" if reading.member else ""
    said = f"no answer: {reading.failure.text}" if reading.failure is not None else answer_words(reading.answer)
    return f"{reading.probe}{who} at {evidence.clock_text(reading.answered_at)}: {said}"


def _next_command(deployment: Deployment, verdict: Verdict, culprit: DeployedMember | None) -> str:
    option = name_option(deployment.name)
    if culprit is None:
        return f"drillyard verify --wait{option}"
    if culprit.running and culprit.paused:
        return f"drillyard resume {culprit.name}{option}"
    if not deployment.is_up:
        return f"drillyard up{option}"
    if not culprit.running and culprit.exit is not None and culprit.exit.asked:
        return f"drillyard start {culprit.name}{option}"
    return f"drillyard logs {culprit.name}{option}"


def _state_words(deployment: Deployment) -> str:
    states = [(member.name, state_of(member)) for member in deployment.members]
    running = sum(1 for _, state in states if state == "running")
    others = ", ".join(f"{name} {state}" for name, state in states if state != "running")
    return f"{running} of {len(states)} members run" + (f" ({others})" if others else "")


def _is_cut_short(picture: Picture, since: float) -> bool:
    """Nobody who waits for a start wants to wait on when a member is down, however it came to that."""
    seen = [
        picture.observation.answer(Probe.PROCESS, member.name, ProcessSeen) for member in picture.deployment.members
    ]
    is_down = any(one is not None and not one.running and one.ended_at for one in seen)
    return is_down or _fell(picture, since)


def _fell(picture: Picture, since: float) -> bool:
    """A member ended during the wait, or ended before it without being asked to and does not run."""
    return any(_has_fallen(picture, member, since) for member in picture.deployment.members)


def _has_fallen(picture: Picture, member: DeployedMember, since: float) -> bool:
    seen = picture.observation.answer(Probe.PROCESS, member.name, ProcessSeen)
    if seen is None or not seen.ended_at:
        return False
    is_new = seen.ended_at >= since
    return is_new and not seen.asked if seen.running else is_new or not seen.asked


def _executable(binary: str | None) -> Executable:
    return Executable() if binary is None else Executable.real(binary)
