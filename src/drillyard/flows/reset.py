"""Warm reset: a running deployment as it was when it was new, without starting it anew. Every member runs, no key is
left, all six gates are open.

Rules: the evidence of an end that nobody asked for is saved before anything else. Members that are down are started,
those that are paused go on, and `verify` waits for the gates. A member that ends meanwhile is started once more,
because it may have been about to end when the reset began. Then all keys go, region by region through the leaders,
in every column family that RawKV of API version 1 can name: `default`, and `write` and `lock`, where transactions keep
theirs. Emptiness is proven by a scan and never concluded from a deletion; as long as the scan finds a key (somebody
still writes, a leader moves) it is deleted again until the time is over. What a store refuses to delete, as one with
API version 2 does, is told as a cluster that could not be emptied.

What stays: how regions are split, ids, timestamps, PD's configuration, the logs.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from drillyard.flows import evidence, up
from drillyard.flows.report import Ending, Report, ResetReport, Trouble, name_option
from drillyard.flows.up import TIMEOUT_S, Scope, UpRequest
from drillyard.runtimes.abilities import DeployedMember, Deployment, RuntimeRefusal, WrongState
from drillyard.waiting import Deadline, to_its_end, until

if TYPE_CHECKING:
    from drillyard.clients.tikv import Outcome, RawClient

FAMILIES = ("default", "write", "lock")
NO_SUCH_FAMILY = ("invalid cf name", "InvalidCf")  # in a store's answer to a deletion, and to a scan
REFUSED = "error"  # the kind of an outcome that is the same wherever and whenever one asks
CALL_S = 5.0
POLL_S = 0.01  # from a deletion to the scan that proves it


async def reset(scope: Scope, name: str, timeout_s: float = TIMEOUT_S) -> ResetReport:
    """Reset the deployment. One that does not come back in time is told in the report, with its evidence."""
    deadline = Deadline.after(scope.clock, timeout_s)
    done = await _come_back(scope, name, deadline)
    if done.ending is Ending.MEMBER_EXITED and done.report.may_be_removed:
        assert done.report.trouble is not None
        again = await _come_back(scope, name, deadline)
        started = tuple(dict.fromkeys((*done.started, *again.started)))
        done = ResetReport(again.report, started, done.resumed, evidence=done.report.trouble.evidence)
    if done.ending is not Ending.OK:
        return done
    emptying = _Emptying(scope, await scope.runtime.deployment(name))
    wrong = await emptying.run(deadline)
    done = replace(done, is_data_deleted=emptying.has_deleted)
    return replace(done, report=await _not_empty(scope, done.report, wrong)) if wrong else done


async def _come_back(scope: Scope, name: str, deadline: Deadline) -> ResetReport:
    """Start and resume, and wait for the gates."""
    deployment = await scope.runtime.deployment(name)
    try:
        saved = await evidence.save_unseen_end(scope.runtime, deployment, scope.clock.now())
    except evidence.EvidenceLost as lost:
        raise RuntimeRefusal(f"{name} is left as it is: {lost}", "make room for its evidence, then try again") from lost
    started = tuple(member.name for member in deployment.members if not member.running)
    resumed = tuple(member.name for member in deployment.members if member.running and member.paused)
    if deployment.is_up:
        await to_its_end(_bring_back(scope, deployment))
        report = await up.verify(scope, name, deadline.left_s)
    else:
        report = await up.up(scope, UpRequest(name, timeout_s=deadline.left_s))
    return ResetReport(report, started, resumed, evidence=saved)


async def _bring_back(scope: Scope, deployment: Deployment) -> None:
    """Start and resume; a member that got there by itself meanwhile is as it should be."""

    async def one(member: DeployedMember) -> None:
        act = scope.runtime.resume_member if member.running else scope.runtime.start_member
        with contextlib.suppress(WrongState):
            await act(deployment.name, member.name)

    await asyncio.gather(*(one(member) for member in deployment.members if not member.running or member.paused))


class _Emptying:
    """The deletion of all keys. Clients are imported late, because the RPC library costs a quarter of a second."""

    def __init__(self, scope: Scope, deployment: Deployment) -> None:
        self._scope = scope
        self._deployment = deployment
        self._wrong = "the scan was not answered"
        self._is_refused = False
        self.has_deleted = False

    async def run(self, deadline: Deadline) -> str:
        """Delete until a scan finds nothing: why that was not to be had, or empty."""
        from drillyard.clients.tikv import RawClient

        async with self._scope.runtime.reach(self._deployment) as reach:
            client = RawClient(self._deployment.pd_endpoints, timeout_s=CALL_S, dial=reach.dial)

            async def look() -> bool | None:
                are_empty = True
                for family in FAMILIES:
                    are_empty = await self._empty(client, family) and are_empty
                    if self._is_refused:
                        return False
                return are_empty or None

            try:
                found = await until(look, deadline, poll_s=POLL_S)
            finally:
                client.close()
        return "" if found else self._wrong

    async def _empty(self, client: RawClient, family: str) -> bool:
        """Whether a scan finds no key in the family; what it finds is deleted."""
        scan = await client.scan(b"", b"", 1, family)
        if scan.is_ok and not scan.pairs:
            return True
        if scan.kind == REFUSED and family != FAMILIES[0] and any(words in scan.reason for words in NO_SUCH_FAMILY):
            return True
        if not scan.is_ok:
            return self._failed(f"a scan of family {family} failed", scan)
        deletion = await client.delete_range(b"", b"", family)
        if not deletion.is_ok:
            return self._failed(f"the keys of family {family} could not be deleted", deletion)
        self.has_deleted = True
        self._wrong = f"family {family} had a key again after all were deleted: somebody writes"
        return False

    def _failed(self, what: str, outcome: Outcome) -> bool:
        self._wrong = f"{what}: {outcome.reason}"
        self._is_refused = self._is_refused or outcome.kind == REFUSED
        return False


async def _not_empty(scope: Scope, report: Report, wrong: str) -> Report:
    """The report of a cluster that works and could not be emptied."""
    name = report.deployment
    deployment = await scope.runtime.deployment(name)
    trouble = Trouble(
        Ending.NOT_READY,
        f"{name} could not be emptied: {wrong}",
        next_command=f"drillyard verify --wait{name_option(name)}",
    )
    report = replace(report, ending=Ending.NOT_READY)
    try:
        scene = evidence.Scene("not-emptied", deployment, None, replace(report, trouble=trouble), report.timeline)
        saved = str(await evidence.save(scope.runtime, scene, scope.clock.now()))
    except evidence.EvidenceLost as lost:
        saved = str(lost)
    return replace(report, trouble=replace(trouble, evidence=saved))
