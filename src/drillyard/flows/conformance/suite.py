"""The conformance run: clusters of emulated members, a real PD over emulated stores, and every program on them in turn.

Rules: each cluster is made for the run, belongs to it, and is gone with its data after it, however it ends. A program
that is not on this machine is a row that was not run, with the mend. A cluster that does not become ready is a row that
failed, with what it lacks. Raw and transactional data do not share a cluster, because their keys are of another shape.
What the programs are made to do is in `jobs`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from drillyard.flows.conformance import jobs, programs
from drillyard.flows.conformance.jobs import Job, Subject
from drillyard.flows.conformance.programs import Missing
from drillyard.flows.conformance.table import Check, ConformanceReport, Row, lines_of
from drillyard.flows.operate import down
from drillyard.flows.report import Ending, Entry, Report
from drillyard.flows.up import Scope, UpRequest, up
from drillyard.topology import Topology
from drillyard.waiting import to_its_end

READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Part:
    """One cluster and the jobs that are done on it, in this order. `pd` is a real PD's executable."""

    name: str
    jobs: tuple[Job, ...]
    tikv: int = 3
    pd: str = ""


PARTS = (
    Part("raw", jobs.RAW),
    Part("txn", jobs.TRANSACTIONAL),
    Part("pd-ctl", jobs.PD_CTL, tikv=4),
    Part("pd81", jobs.REAL_PD_81, tikv=4, pd="pd-server-81"),
    Part("pd66", jobs.REAL_PD_66, tikv=4, pd="pd-server-66"),
)


async def conformance(scope: Scope) -> ConformanceReport:
    """Run everything that is on this machine, and tell what every program could do."""
    began, started = scope.clock.now(), scope.clock.monotonic()
    rows: list[Row] = []
    emulated = ""
    for part in PARTS:
        absent = {job: missing for job in part.jobs if (missing := await _missing(job)) is not None}
        rows += [_told(scope, _not_run(job, missing)) for job, missing in absent.items()]
        there = [job for job in part.jobs if job not in absent]
        if not there:
            continue
        async with _cluster(scope, part) as report:
            emulated = emulated or _version(report)
            subject = Subject(scope.clock, report)
            for job in there:
                rows.append(_told(scope, await _done(job, subject)))
    return ConformanceReport(tuple(rows), began, emulated, scope.clock.monotonic() - started)


async def _missing(job: Job) -> Missing | None:
    """What is lacking on this machine for the job."""
    for name in job.executables:
        try:
            programs.executable(name)
        except Missing as missing:
            return missing
    try:
        await job.version()
    except Missing as missing:
        return missing
    return None


@asynccontextmanager
async def _cluster(scope: Scope, part: Part) -> AsyncIterator[Report]:
    """A cluster of the part's shape, gone with its data afterwards."""
    name = f"conformance-{part.name}-{secrets.token_hex(3)}"
    binary = str(programs.executable(part.pd)) if part.pd else None
    request = UpRequest(name=name, topology=Topology.of(3, part.tikv), pd_binary=binary, timeout_s=READY_S)
    with scope.runtime.own(name):
        try:
            yield await up(Scope(scope.runtime, scope.clock, _Deaf()), request)
        finally:
            if scope.runtime.remembered(name) is not None:
                await to_its_end(down(scope, name, delete_data=True))


class _Deaf:
    """The clusters' own starts are not what is told."""

    def see(self, picture: object) -> None:
        pass

    def hear(self, entry: Entry) -> None:
        pass

    def cut_short(self, trouble: object) -> None:
        pass


async def _done(job: Job, subject: Subject) -> Row:
    version = await job.version()
    trouble = subject.report.trouble
    if subject.report.ending is not Ending.OK and trouble is not None:
        checks: tuple[Check, ...] = (Check("six gates open", False, trouble.text),)
    else:
        checks = await job.run(subject)
    return Row(job.program, version, job.area, checks)


def _not_run(job: Job, missing: Missing) -> Row:
    return Row(job.program, "", job.area, not_run=str(missing), mend=missing.mend)


def _told(scope: Scope, row: Row) -> Row:
    for line in lines_of(row):
        scope.listener.hear(Entry(scope.clock.now(), line))
    return row


def _version(report: Report) -> str:
    """What the emulated members say they are."""
    return next((row.version for row in report.members if row.kind == "emulated" and row.version), "")
