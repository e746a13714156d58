"""The whole procedure in one command: bring a new deployment up, prove it from outside, take it down, prove that too.

Rules: it works on a deployment of its own, that did not exist before, and removes it with its data whatever happened;
evidence is saved before that and stays. The checks of the original request (PD's health by its body, every store `Up`)
are told by name beside the gates they belong to.
"""

from __future__ import annotations

from dataclasses import replace

from drillyard.flows.operate import down
from drillyard.flows.report import DownReport, Ending, Entry, ProofReport, Report
from drillyard.flows.up import Scope, UpRequest, up
from drillyard.judge.readiness import Gate, Status
from drillyard.runtimes.abilities import Misuse
from drillyard.waiting import to_its_end


async def prove(scope: Scope, request: UpRequest) -> ProofReport:
    """Up, six gates, down; one report. The deployment must not exist."""
    if scope.runtime.remembered(request.name) is not None:
        mend = "give another name, or take it down with its data first (`drillyard down --delete-data`)"
        raise Misuse(f"deployment {request.name!r} exists, and a proof starts from nothing", mend)
    try:
        report = await up(scope, request)
    except BaseException:
        await _take_down(scope, request.name)
        raise
    taken = await _take_down(scope, request.name, delete_data=report.may_be_removed)
    entries = (*report.timeline, Entry(scope.clock.now(), _down_words(taken)))
    return ProofReport(replace(report, timeline=entries), taken, checks_of(report, taken))


def checks_of(report: Report, taken: DownReport | None) -> tuple[tuple[str, bool], ...]:
    """The list of what was asked for, each with whether it was found."""
    holds = {row.gate for row in report.gates if row.status == Status.HOLDS}
    roles = [row.role for row in report.members]
    gates = tuple((f"gate {gate.value}", gate.value in holds) for gate in Gate)
    return (
        ("no member ended", report.ending is not Ending.MEMBER_EXITED and Gate.PROCESSES in holds),
        (f"PD health 200, {roles.count('pd')} of {roles.count('pd')} healthy in the body", Gate.PD_QUORUM in holds),
        (f"{roles.count('tikv')} stores Up", Gate.STORES_UP in holds),
        *gates,
        ("taken down, nothing left", taken is not None and taken.is_clean and taken.is_data_deleted),
    )


async def _take_down(scope: Scope, name: str, *, delete_data: bool = True) -> DownReport | None:
    """Down, with the data unless that is the only evidence. An interruption waits for it: half a clean-up is worst."""
    if scope.runtime.remembered(name) is None:
        return None
    return await to_its_end(down(scope, name, delete_data=delete_data))


def _down_words(taken: DownReport | None) -> str:
    if taken is None:
        return "nothing to take down"
    return "down, nothing left" if taken.is_clean else f"down, but left: {', '.join(taken.left)}"
