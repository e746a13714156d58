"""The outage ruler: do something to a member, and measure what clients lose by it.

Rules: canaries ask for every region's writes, and for timestamps when the member is a PD, before the operation, through
it, and until each is served steadily again or the time is over; what was found is judged by `judge.outage`. Nothing is
done to a cluster that is not served to begin with. The operation is carried out as without measuring, and never undone.
The canaries' keys are deleted at the end, also of an interrupted measurement; what could not be deleted is told.

The watch ends as soon as every canary is steady, whether or not PD has noticed by then: PD calls a store Disconnected
after 20 s, and nobody waits for that unasked. `watch_s` asks: so long after the operation PD's notice is waited for.

Of many regions a bounded number is measured, those that the member leads first; all canaries together write at most so
often a second, so that the measurement is no load of its own. With many, each is coarser; the report says how coarse.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from drillyard.flows.operate import Operation, operate
from drillyard.flows.report import Ending, Entry, MemberRow, Trouble, member_rows, name_option
from drillyard.flows.up import TIMEOUT_S, Scope
from drillyard.judge import outage
from drillyard.judge.outage import Outage, Strike, Watch
from drillyard.observation import PdChange, PdWord, Result
from drillyard.runtimes.abilities import Deployment, Misuse, RuntimeRefusal, WrongState
from drillyard.topology import Role
from drillyard.waiting import Deadline, to_its_end, until

if TYPE_CHECKING:
    from drillyard.canaries import PdWatch, RegionCanary, Stage, TimestampCanary
    from drillyard.clients.tikv import RawClient
    from drillyard.wire import metapb

MEASURED = (Operation.STOP, Operation.RESTART, Operation.KILL, Operation.PAUSE)
MOST_REGIONS = 64
MOST_SCANNED = 1024
PACE_S = 0.005  # a canary rests so long between two writes, or longer where there are many
MOST_WRITES_S = 400
WARM_WRITES = 5  # in a row, and it counts as served
WARM_S = 30.0
LAST_READ_S = 1.0
CLEAN_S = 3.0
MOST_NAMES = 5
DONE = {Operation.STOP: "stopped", Operation.RESTART: "restarted", Operation.KILL: "killed", Operation.PAUSE: "paused"}


@dataclass(frozen=True, slots=True)
class Order:
    """What to do and measure. `timeout_s` is how long after it the service may be away, `watch_s` how long PD's notice
    is waited for."""

    deployment: str
    operation: Operation
    member: str
    timeout_s: float = TIMEOUT_S
    watch_s: float = 0.0

    def check(self) -> None:
        if self.operation not in MEASURED:
            mend = f"measure one of: {', '.join(MEASURED)}"
            raise Misuse(f"{self.operation} takes no service away", mend)
        if not self.timeout_s > 0 or self.watch_s < 0:
            raise Misuse("that is no time to wait", "give a timeout of more than 0 s, and a watch of 0 s or more")


@dataclass(frozen=True, slots=True)
class OutageReport:
    """What an operation cost those who use the cluster."""

    order: Order
    strike: Strike
    row: MemberRow  # the member afterwards
    regions: tuple[Outage, ...]
    timestamps: Outage | None  # None: the member is no PD
    changes: tuple[PdChange, ...]
    watched_s: float
    pace_s: float
    left_out: int  # regions
    keys_left: tuple[bytes, ...]

    @property
    def outages(self) -> tuple[Outage, ...]:
        return (*self.regions, *([self.timestamps] if self.timestamps is not None else []))

    @property
    def ending(self) -> Ending:
        if any(one.lost for one in self.outages):
            return Ending.WRITES_LOST
        return Ending.OK if all(one.is_served for one in self.outages) else Ending.NOT_READY

    @property
    def trouble(self) -> Trouble | None:
        if self.ending is Ending.OK:
            return None
        lost = sum(one.lost or 0 for one in self.regions)
        fallen = (self.timestamps.lost or 0) if self.timestamps is not None else 0
        away = [name_of(one) for one in self.outages if not one.is_served]
        lacks = []
        if lost:
            lacks.append(f"{lost} acknowledged {'write is' if lost == 1 else 'writes are'} lost")
        if fallen:
            lacks.append(f"{fallen} {'timestamp' if fallen == 1 else 'timestamps'} went back")
        if away:
            lacks.append(f"not served again within {self.order.timeout_s:g} s: {_some(away)}")
        next_command = f"drillyard verify{name_option(self.order.deployment)}"
        return Trouble(self.ending, lacks[0], lacks=tuple(lacks), next_command=next_command)


async def measure(scope: Scope, order: Order) -> OutageReport:
    """Do it, and tell what it cost. Refuses when the cluster is not served before."""
    order.check()
    deployment = await scope.runtime.deployment(order.deployment)
    deployment.member(order.member)
    if not deployment.is_up:
        raise WrongState(f"{order.deployment} is down", f"`drillyard up{name_option(order.deployment)}`")
    async with AsyncExitStack() as opened:
        ruler = await _ruler(scope, order, deployment, opened)
        try:
            await ruler.warm_up()
            await ruler.strike()
            await ruler.watch()
            await to_its_end(ruler.finish())
        except BaseException as error:
            await to_its_end(ruler.finish())
            if isinstance(error, asyncio.CancelledError):
                scope.listener.cut_short(ruler.interruption())
            raise
        return ruler.report()


async def _ruler(scope: Scope, order: Order, deployment: Deployment, opened: AsyncExitStack) -> _Ruler:
    """Find the regions and make the canaries."""
    # Imported late: the RPC library costs a quarter of a second, which no other command pays for.
    from drillyard.canaries import ATTEMPT_S, PdWatch, Stage, TimestampCanary
    from drillyard.clients.calls import CallFailed
    from drillyard.clients.tikv import RawClient, Stores

    base = scope.clock.now() - scope.clock.monotonic()

    def now() -> float:
        """The time of day when the measurement began, and from there without its jumps."""
        return base + scope.clock.monotonic()

    reach = await opened.enter_async_context(scope.runtime.reach(deployment))
    pds = {member.name: member.addresses["client"] for member in deployment.of_role(Role.PD)}
    names = {member.addresses["client"]: member.name for member in deployment.of_role(Role.TIKV)}
    pd = PdWatch(pds, names, now, reach.dial)
    opened.callback(pd.close)
    stores = Stores(ATTEMPT_S, reach.dial)
    opened.callback(stores.close)
    cleaner = RawClient(list(pds.values()), timeout_s=ATTEMPT_S, dial=reach.dial)
    opened.callback(cleaner.close)
    try:
        await pd.begin()
        found, count = await pd.regions(MOST_SCANNED)
    except CallFailed as failed:
        raise _not_served(order, f"PD does not tell its regions: {failed.text}") from failed
    found = sorted(found, key=lambda one: pd.member_of(one[1]) != order.member)[:MOST_REGIONS]
    pace_s = max(PACE_S, len(found) / MOST_WRITES_S)
    stage = Stage(stores, pd.addresses, names, now, pace_s)
    regions = _canaries(stage, found)
    is_pd = deployment.member(order.member).role is Role.PD
    timestamps = TimestampCanary(pd, now, pace_s) if is_pd else None
    tools = _Tools(scope, reach.renew, pd, cleaner, now)
    return _Ruler(tools, order, _Cast(tuple(regions), timestamps, pace_s, count - len(regions)))


def _canaries(stage: Stage, found: Iterable[tuple[metapb.Region, int]]) -> list[RegionCanary]:
    from drillyard.canaries import RegionCanary, keys_in

    nonce, made = os.urandom(8), []
    for region, leader in found:
        keys = keys_in(region.start_key, region.end_key, nonce)
        if keys is not None:
            made.append(RegionCanary(stage, region, leader, keys))
    return made


def _not_served(order: Order, why: str) -> RuntimeRefusal:
    mend = f"see `drillyard verify{name_option(order.deployment)}`, or do it without --measure"
    return RuntimeRefusal(f"nothing was done to {order.member}, because there is no outage to measure: {why}", mend)


@dataclass(frozen=True, slots=True)
class _Tools:
    scope: Scope
    renew: Callable[[Deployment], None]
    pd: PdWatch
    cleaner: RawClient
    now: Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Cast:
    """The canaries, how long each rests between two writes, and how many regions have none."""

    regions: tuple[RegionCanary, ...]
    timestamps: TimestampCanary | None
    pace_s: float
    left_out: int

    @property
    def all(self) -> tuple[RegionCanary | TimestampCanary, ...]:
        return (*self.regions, *([self.timestamps] if self.timestamps is not None else []))


class _Ruler:
    """One measurement: warm up, strike, watch, finish, in this order; finish from anywhere."""

    def __init__(self, tools: _Tools, order: Order, cast: _Cast) -> None:
        self._tools = tools
        self._order = order
        self._cast = cast
        self._canaries: list[asyncio.Task[None]] = []
        self._pd: asyncio.Task[None] | None = None
        self._asked_at: float | None = None
        self._done_at = 0.0
        self._until: float | None = None
        self._row: MemberRow | None = None
        self._keys_left: tuple[bytes, ...] = ()
        self._told = _Told()

    # --- the steps ---------------------------------------------------------------------------------------------------

    async def warm_up(self) -> None:
        """Begin, and wait until every canary is served."""
        self._canaries = [asyncio.create_task(canary.run()) for canary in self._cast.all]
        self._pd = asyncio.create_task(self._tools.pd.follow(self._cast.regions))

        async def look() -> bool | None:
            self._raise_faults()
            return not self._cold() or None

        if not await until(look, Deadline.after(self._tools.scope.clock, min(WARM_S, self._order.timeout_s))):
            raise _not_served(self._order, f"not served: {_some(self._cold())}")
        self._note(f"served before: {_some(self._names(self._cast.all))}")

    async def strike(self) -> None:
        """The operation itself, as without measuring."""
        order, scope = self._order, self._tools.scope
        self._note(f"{order.member} is to be {DONE[order.operation]}", order.member)
        self._asked_at = self._tools.now()
        try:
            await operate(scope, order.deployment, order.operation, order.member)
        finally:
            self._done_at = self._tools.now()
        self._note(f"{order.member} is {DONE[order.operation]}", order.member)
        self._tools.renew(await scope.runtime.deployment(order.deployment))

    async def watch(self) -> None:
        """Until all canaries are served steadily and PD's notice was waited for, or the time is over."""
        longest_s = max(self._order.timeout_s, self._order.watch_s)
        began = self._tools.scope.clock.monotonic()

        async def look() -> bool | None:
            self._raise_faults()
            self._tell()
            elapsed_s = self._tools.scope.clock.monotonic() - began
            if not all(outage.is_steady(canary.history, self._done_at) for canary in self._cast.all):
                return elapsed_s >= self._order.timeout_s or None
            return elapsed_s >= self._order.watch_s or self._is_noticed() or None

        await until(look, Deadline.after(self._tools.scope.clock, longest_s))

    async def finish(self) -> None:
        """End the canaries, each with a last read where it is served, delete their keys, and look at the member."""
        from drillyard.canaries import ATTEMPT_S, ROUND_S

        if self._row is not None:
            return
        for canary in self._cast.all:
            canary.end()
        if self._canaries:
            await asyncio.wait(self._canaries, timeout=ATTEMPT_S + ROUND_S)
        self._until = self._until or self._tools.now()
        tasks = [*self._canaries, *([self._pd] if self._pd is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        served = [canary for canary in self._cast.all if canary.is_served]
        await asyncio.gather(*(canary.look(LAST_READ_S) for canary in served))
        written = [canary for canary in self._cast.regions if canary.history]
        left = await asyncio.gather(*(self._delete(canary, key) for canary in written for key in canary.keys))
        self._keys_left = tuple(key for key in left if key is not None)
        deployment = await self._tools.scope.runtime.deployment(self._order.deployment)
        self._row = next(row for row in member_rows(deployment) if row.name == self._order.member)

    async def _delete(self, canary: RegionCanary, key: bytes) -> bytes | None:
        """The key, if it could not be deleted. Where nobody serves, one attempt says so."""

        async def look() -> bool | None:
            return (await self._tools.cleaner.delete(key)).is_ok or None

        patience_s = CLEAN_S if canary.is_served else 0.0
        clock = self._tools.scope.clock
        is_deleted = await until(look, Deadline.after(clock, patience_s)) if patience_s else await look()
        return None if is_deleted else key

    # --- what came of it ---------------------------------------------------------------------------------------------

    def report(self) -> OutageReport:
        assert self._asked_at is not None
        assert self._until is not None
        assert self._row is not None
        changes = tuple(self._tools.pd.changes)
        role = Role.PD if self._cast.timestamps is not None else Role.TIKV
        strike = Strike(self._order.member, role, self._asked_at, self._done_at)
        watch = Watch(strike, changes, self._until)
        timestamps = self._cast.timestamps
        return OutageReport(
            order=self._order,
            strike=strike,
            row=self._row,
            regions=tuple(outage.judge_region(one.region_id, one.history, watch) for one in self._cast.regions),
            timestamps=outage.judge_timestamps(timestamps.history, watch) if timestamps is not None else None,
            changes=tuple(change for change in changes if change.at > self._asked_at),
            watched_s=self._until - self._done_at,
            pace_s=self._cast.pace_s,
            left_out=self._cast.left_out,
            keys_left=self._keys_left,
        )

    def interruption(self) -> Trouble:
        """What is known of a measurement that was interrupted."""
        done = DONE[self._order.operation]
        if self._asked_at is None:
            return Trouble(Ending.INTERRUPTED, f"interrupted before {self._order.member} was {done}: nothing was done")
        report = self.report()
        text = f"interrupted; {self._order.member} is {done}, and {report.watched_s:.3f} s were watched"
        next_command = f"drillyard verify{name_option(self._order.deployment)}"
        return Trouble(Ending.INTERRUPTED, text, lacks=(text, *lines_of(report)), next_command=next_command)

    # --- on the way --------------------------------------------------------------------------------------------------

    def _cold(self) -> list[str]:
        """The services that are not yet served WARM_WRITES times in a row."""
        return self._names(canary for canary in self._cast.all if not _is_warm(canary))

    def _names(self, canaries: Iterable[RegionCanary | TimestampCanary]) -> list[str]:
        ids = {id(region): f"region {region.region_id}" for region in self._cast.regions}
        return [ids.get(id(canary), "timestamps") for canary in canaries]

    def _is_noticed(self) -> bool:
        assert self._asked_at is not None
        role = Role.PD if self._cast.timestamps is not None else Role.TIKV
        strike = Strike(self._order.member, role, self._asked_at, self._done_at)
        ids = [one.region_id for one in self._cast.regions] or [0]
        return all(outage.noticed(region_id, strike, self._tools.pd.changes) is not None for region_id in ids)

    def _raise_faults(self) -> None:
        for task in (*self._canaries, self._pd):
            if task is not None and task.done():
                task.result()

    def _tell(self) -> None:
        """What changed since it was told last, for whoever waits."""
        for change in self._tools.pd.changes[self._told.changes :]:
            self._note(f"PD: {_change_words(change)}")
        self._told.changes = len(self._tools.pd.changes)
        away = self._names(canary for canary in self._cast.all if not canary.is_served)
        if away != self._told.away:
            self._note(f"not served: {_some(away)}" if away else "all are served again")
            self._told.away = away

    def _note(self, text: str, member: str = "") -> None:
        self._tools.scope.listener.hear(Entry(self._tools.scope.clock.now(), text, member))


@dataclass(slots=True)
class _Told:
    """How far the listener was told."""

    changes: int = 0
    away: list[str] = field(default_factory=list)


def _is_warm(canary: RegionCanary | TimestampCanary) -> bool:
    last = canary.history[-WARM_WRITES:]
    return len(last) == WARM_WRITES and all(attempt.result is Result.OK for attempt in last)


# --- words -----------------------------------------------------------------------------------------------------------


def name_of(one: Outage) -> str:
    return f"region {one.region_id}" if one.region_id else "timestamps"


def lines_of(report: OutageReport) -> tuple[str, ...]:
    """The report as text, a line for each service."""
    strike, order = report.strike, report.order
    took_s = strike.done_at - strike.asked_at
    head = f"{order.member} {DONE[order.operation]} at {_time(strike.asked_at)}, done +{took_s:.3f} s"
    head += f", watched for {report.watched_s:.3f} s after that; one write every {report.pace_s * 1000:.0f} ms"
    lines = [head, *(_line(one, report) for one in report.outages)]
    if report.left_out:
        total = report.left_out + len(report.regions)
        lines.append(f"{report.left_out} of {total} regions were not measured")
    if report.keys_left:
        keys = ", ".join(key.hex().upper() for key in report.keys_left)
        lines.append(f"keys of ours that may be left, because they could not be deleted (hexadecimal): {keys}")
    return tuple(lines)


def _some(names: Sequence[str]) -> str:
    """A list of names that fits a line."""
    rest = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _line(one: Outage, report: OutageReport) -> str:
    asked_at, thing = report.strike.asked_at, "write" if one.region_id else "timestamp"
    parts = []
    if one.gap is None:
        parts.append(f"no outage seen: longest gap {one.longest_s * 1000:.0f} ms")
    else:
        parts.append(f"last good {thing} {_time(one.gap.begins)} ({_after(one.gap.begins, asked_at)})")
    if one.noticed is None:
        parts.append("PD did not notice by then")
    else:
        parts.append(f"PD noticed {_after(one.noticed.at, asked_at)} ({_notice_words(one.noticed)})")
    if one.moved is not None:
        parts.append(f"leader moved {one.moved.before} → {one.moved.after} at {_after(one.moved.at, asked_at)}")
    if one.gap is not None and one.gap.ends is not None:
        parts.append(f"first good {thing} {_after(one.gap.ends, asked_at)}, outage {one.gap.length_s:.3f} s")
    elif one.gap is not None:
        parts.append(f"not served again within {report.watched_s:.3f} s")
    text = f"{name_of(one)}: {', '.join(parts)}"
    if one.further:
        together_s = sum(gap.length_s for gap in one.further)
        text += f"; {len(one.further)} more interruptions, {together_s:.3f} s together"
    if not one.is_steady and (one.gap is None or one.gap.ends is not None):
        text += "; not served steadily by then"
    lost = "not known, for nothing was read since" if one.lost is None else str(one.lost)
    return f"{text}; {'acknowledged writes lost' if one.region_id else 'timestamps that went back'}: {lost}"


def _notice_words(change: PdChange) -> str:
    match change.word:
        case PdWord.REGION_LEADER:
            return f"led by {change.after}"
        case PdWord.STORE_STATE:
            return f"store {change.after}"
        case PdWord.PD_LEADER:
            return f"PD led by {change.after}"


def _change_words(change: PdChange) -> str:
    match change.word:
        case PdWord.REGION_LEADER:
            return f"region {change.subject} is led by {change.after}, was {change.before}"
        case PdWord.STORE_STATE:
            return f"{change.subject} is {change.after}, was {change.before}"
        case PdWord.PD_LEADER:
            return f"PD is led by {change.after}, was {change.before}"


def _after(at: float, asked_at: float) -> str:
    return f"{at - asked_at:+.3f} s"


def _time(at: float) -> str:
    """Of day, on this machine's clock."""
    return datetime.fromtimestamp(at).strftime("%H:%M:%S.%f")[:-3]
