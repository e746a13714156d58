"""Bring a deployment up and wait until it is proven, or look at one that is there.

`up`: plan, start, wait by gates, report. On a deployment that runs already it starts nothing and waits only for the
proof. `verify`: one look, or a wait. Rules: a member that ends during a wait ends the wait at once; a wait that fails
or is interrupted saves its evidence before it returns; members that run are left running, for they are evidence too,
and the report says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from drillyard.flows import evidence
from drillyard.flows.report import (
    Ending,
    Entry,
    Listener,
    Picture,
    Report,
    Silence,
    Trouble,
    answer_words,
    report_of,
    state_of,
)
from drillyard.judge.readiness import Verdict
from drillyard.observation import Reading
from drillyard.runtimes.abilities import DeployedMember, Deployment, Misuse, RuntimeRefusal
from drillyard.runtimes.local import DEFAULT_NAME, LocalRuntime
from drillyard.runtimes.plans import Executable, Executables, Plan
from drillyard.topology import Role, Topology
from drillyard.waiting import Clock

if TYPE_CHECKING:
    from drillyard.flows.lookout import Lookout

LAST_LINES = 8
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class UpRequest:
    """What to bring up. Without a topology an existing deployment comes back as it was, or the usual one is made."""

    name: str = DEFAULT_NAME
    topology: Topology | None = None
    pd_binary: str | None = None
    tikv_binary: str | None = None
    timeout_s: float = TIMEOUT_S

    def executables(self) -> Executables | None:
        if self.pd_binary is None and self.tikv_binary is None:
            return None
        return Executables(_executable(self.pd_binary), _executable(self.tikv_binary))


@dataclass(frozen=True, slots=True)
class Scope:
    """What every flow works with."""

    runtime: LocalRuntime
    clock: Clock
    listener: Listener

    @classmethod
    def of(cls, home: Path | None = None, listener: Listener | None = None) -> Scope:
        return cls(LocalRuntime(home), Clock(), listener or Silence())


async def up(scope: Scope, request: UpRequest) -> Report:
    """Start what does not run yet and wait for all six gates."""
    began = scope.clock.now()
    if request.topology is not None and not request.topology.of_role(Role.TIKV):
        raise Misuse("the topology has no TiKV", "add at least one: without a store no gate after PD's can open")
    plan = await scope.runtime.plan(request.topology, request.name, request.executables())
    deployment = await scope.runtime.deployment(request.name)
    if not deployment.is_up:
        with contextlib.suppress(evidence.EvidenceLost):  # a start removes nothing
            await evidence.save_unseen_end(deployment, scope.clock.now())
        deployment = await _start(scope, plan)
    return await _wait(scope, _Wait(deployment, began, request.timeout_s, _any_member_is_down))


async def verify(scope: Scope, name: str, wait_s: float | None = None) -> Report:
    """Judge a deployment from one look, or wait up to `wait_s` for it to become ready."""
    began = scope.clock.now()
    deployment = await scope.runtime.deployment(name)
    if wait_s is not None:
        return await _wait(scope, _Wait(deployment, began, wait_s, lambda picture: _fell(picture, began)))
    # Imported late: the RPC library costs a quarter of a second, which the start of the members does not wait for.
    from drillyard.flows.lookout import ONE_LOOK_PATIENCE_S, Eyes, Lookout

    eyes = Eyes(scope.runtime, scope.clock, scope.listener)
    async with Lookout(eyes, deployment, since=began, patience_s=ONE_LOOK_PATIENCE_S) as lookout:
        picture = await lookout.look(to_the_end=True)
    ending = Ending.OK if picture.readiness.is_ready else Ending.NOT_READY
    report = report_of(picture, lookout.timeline, {}, ending)
    return report if ending is Ending.OK else replace(report, trouble=trouble_of(picture, ending, "is not ready"))


@dataclass(frozen=True, slots=True)
class _Wait:
    deployment: Deployment
    began: float
    timeout_s: float
    is_over: Callable[[Picture], bool]


async def _wait(scope: Scope, wait: _Wait) -> Report:
    from drillyard.flows.lookout import PATIENCE_S, Eyes, Lookout

    eyes = Eyes(scope.runtime, scope.clock, scope.listener)
    async with Lookout(eyes, wait.deployment, since=wait.began, patience_s=PATIENCE_S) as lookout:
        try:
            picture, is_over = await lookout.until(wait.is_over, wait.timeout_s)
        except (asyncio.CancelledError, RuntimeRefusal) as error:
            cause = "interrupted" if isinstance(error, asyncio.CancelledError) else str(error)
            await _save_cut_short(scope, wait.deployment, cause, lookout)
            raise
        if picture.readiness.is_ready:
            return report_of(picture, lookout.timeline, lookout.opened, Ending.OK)
        fell = is_over and _fell(picture, wait.began)
        ending = Ending.MEMBER_EXITED if fell else Ending.NOT_READY
        happened = "" if fell else f"is not ready after {picture.elapsed_s:.1f} s"
        trouble = trouble_of(picture, ending, happened)
        report = replace(report_of(picture, lookout.timeline, lookout.opened, ending), trouble=trouble)
        timeline = tuple(lookout.timeline)
        scene = evidence.Scene(ending.value, picture.deployment, picture, report, timeline)
        return replace(report, trouble=replace(trouble, evidence=await _save(scope, scene)))


async def _start(scope: Scope, plan: Plan) -> Deployment:
    """Start the members. An interruption waits for the start to be done: half a start has no defined state."""
    starting = asyncio.ensure_future(scope.runtime.start(plan))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _save_cut_short(scope, await starting, "interrupted")
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
        evidence=await _save(scope, evidence.Scene("cut-short", deployment, picture, None, entries)),
        next_command=f"drillyard verify --wait{name_option(deployment.name)}",
        state=_state_words(deployment),
    )
    scope.listener.cut_short(trouble)


async def _save(scope: Scope, scene: evidence.Scene) -> str:
    """Where the bundle is, or why there is none: what it is about must be told all the same."""
    try:
        return str(await evidence.save(scene, scope.clock.now()))
    except evidence.EvidenceLost as lost:
        return str(lost)


# --- what is wrong, told so that one can go on from there ------------------------------------------------------------


def trouble_of(picture: Picture, ending: Ending, happened: str) -> Trouble:
    """The first closed gate, what it lacks, the last reading, the culprit's last words and the next command."""
    verdict = picture.readiness.first_closed
    assert verdict is not None, "only a picture that is not ready has a trouble"
    deployment = picture.deployment
    culprit = next((member for member in deployment.members if member.name in verdict.members[:1]), None)
    path, lines = evidence.last_words(culprit, LAST_LINES) if culprit else (None, ())
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
        log_path=str(path or ""),
        log_lines=lines,
        next_command=_next_command(deployment, verdict, culprit),
        state=_state_words(deployment),
        is_down=is_down,
    )


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


def name_option(name: str) -> str:
    """What to add to a command so that it means this deployment."""
    return "" if name == DEFAULT_NAME else f" --name {name}"


def _state_words(deployment: Deployment) -> str:
    states = [(member.name, state_of(member)) for member in deployment.members]
    running = sum(1 for _, state in states if state == "running")
    others = ", ".join(f"{name} {state}" for name, state in states if state != "running")
    return f"{running} of {len(states)} members run" + (f" ({others})" if others else "")


def _any_member_is_down(picture: Picture) -> bool:
    return any(not member.running for member in picture.deployment.members)


def _fell(picture: Picture, since: float) -> bool:
    """A member ended during the wait, or ended before it without being asked to."""
    ends = [member.exit for member in picture.deployment.members if not member.running and member.exit is not None]
    return any(end.at >= since or not end.asked for end in ends)


def _executable(binary: str | None) -> Executable:
    return Executable() if binary is None else Executable.real(binary)
