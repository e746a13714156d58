"""Act on a deployment: one member, or take the whole down.

Rules: an operation on a member is carried out and recorded by the runtime, and reported with the state it left. `down`
saves the evidence of an end that nobody asked for before it stops anything, also when the command that should have
done so was killed; it proves that nothing is left, and says what stays on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path

from drillyard.flows import evidence
from drillyard.flows.inspect import Standing, standing
from drillyard.flows.report import DownReport, Ending, MemberRow, Trouble, member_rows, name_option
from drillyard.flows.up import Scope
from drillyard.runtimes.abilities import Deployment, NoSuchDeployment, RuntimeRefusal, WrongState
from drillyard.waiting import to_its_end


class Operation(StrEnum):
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    KILL = "kill"
    PAUSE = "pause"
    RESUME = "resume"


async def operate(scope: Scope, name: str, operation: Operation, member: str) -> MemberRow:
    """Do it, to its end also when interrupted (half a restart is a stop), and tell how the member is afterwards."""
    runtime = scope.runtime
    acts: dict[Operation, Callable[[str, str], Awaitable[object]]] = {
        Operation.START: runtime.start_member,
        Operation.STOP: runtime.stop_member,
        Operation.RESTART: runtime.restart_member,
        Operation.KILL: runtime.kill_member,
        Operation.PAUSE: runtime.pause_member,
        Operation.RESUME: runtime.resume_member,
    }
    try:
        await to_its_end(_done(acts[operation](name, member)))
    except WrongState as refused:
        mend = _mend(await runtime.deployment(name), operation, member) or refused.mend
        raise WrongState(refused.wrong, mend) from refused
    return next(row for row in member_rows(await runtime.deployment(name)) if row.name == member)


async def _done(act: Awaitable[object]) -> None:
    await act


def _mend(deployment: Deployment, operation: Operation, name: str) -> str:
    """The command that changes the state which refused the operation; empty when none surely does."""
    member, option = deployment.member(name), name_option(deployment.name)
    if deployment.is_stopping:
        return ""
    if not deployment.is_up:
        return f"`drillyard up{option}`"
    if not member.running:
        return f"`drillyard start {name}{option}`"
    if member.paused and operation in (Operation.START, Operation.PAUSE):
        return f"`drillyard resume {name}{option}`"
    return ""


async def down(scope: Scope, name: str, *, delete_data: bool = False) -> DownReport:
    """Stop everything and prove that nothing of it is left."""
    try:
        saved = await _save_unseen_end(scope, name)
    except evidence.EvidenceLost as lost:
        saved, delete_data = f"{lost}; data and logs are kept", False
    try:
        report = await scope.runtime.stop(name, delete_data=delete_data)
    except asyncio.CancelledError:
        text = f"{name}: interrupted; it was taken down to the end all the same"
        scope.listener.cut_short(Trouble(Ending.INTERRUPTED, text, next_command=f"drillyard down{name_option(name)}"))
        raise
    left = (
        *(f"process {pid}" for pid in report.left_pids),
        *(f"port {port}, used by {owner}" for port, owner in report.left_ports.items()),
        *(str(path) for path in report.left_paths),
        *report.left_objects,
    )
    return DownReport(
        deployment=name,
        is_clean=report.is_clean,
        stopped=report.stopped,
        killed=report.killed,
        checked_pids=len(report.checked_pids),
        checked_ports=len(report.checked_ports),
        checked_containers=len(report.checked_containers),
        left=left,
        is_data_deleted=report.data_deleted,
        kept=tuple(str(path) for path in report.kept),
        evidence=saved,
    )


async def down_orphans(scope: Scope) -> tuple[DownReport, ...]:
    """Take down, with their data, the deployments whose owner was killed. What cannot be now is left for later."""
    done = []
    for orphan in await asyncio.to_thread(scope.runtime.orphans):
        with contextlib.closing(orphan), contextlib.suppress(RuntimeRefusal):
            try:
                done.append(await down(scope, orphan.name, delete_data=True))
            except NoSuchDeployment:
                orphan.forget()
    return tuple(done)


async def adopt(scope: Scope, project: str, name: str) -> Standing:
    """Take a Compose project that somebody else started as a deployment, and tell how it stands."""
    await scope.runtime.adopt(project, name)
    return await standing(scope, name)


async def save_evidence(scope: Scope, name: str, reason: str) -> Path:
    """A bundle of how the deployment is now; what the members answer is in PD's view and their logs."""
    deployment = await scope.runtime.deployment(name)
    return await evidence.save(scope.runtime, evidence.Scene(reason, deployment), scope.clock.now())


async def _save_unseen_end(scope: Scope, name: str) -> str:
    """The bundle's directory, when a member ended unasked and no bundle was written since; else empty."""
    try:
        deployment = await scope.runtime.deployment(name)
    except RuntimeRefusal:
        return ""  # a damaged plan or a stuck keeper: there is no picture to save, and `down` must still go on
    return await evidence.save_unseen_end(scope.runtime, deployment, scope.clock.now())
