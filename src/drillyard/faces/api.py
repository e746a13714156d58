"""The Python API: clusters as contexts, and the yard of deployments on this machine. The CLI is its first user.

    async with drillyard.cluster() as c:           # six members, proven healthy, gone when the block ends
        print(c.pd_endpoints)
        await c.kill("tikv1")
        report = await c.verify()

    with drillyard.cluster_sync(name="mine", keep=True) as c: ...

Rules: nothing is decided here, only put together. A cluster without a name is made for the block and removed with its
data after it, also when the program is killed; one that was there before is left as it was found; `keep` leaves what
was made. What cannot be made ready raises `NotReady` with the whole report. Before anything is removed after a failure,
also one of the block, its evidence is saved.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from drillyard.flows import inspect, operate, up
from drillyard.flows.evidence import EvidenceLost
from drillyard.flows.inspect import Connection, Listing, LogLine, Standing
from drillyard.flows.operate import Operation
from drillyard.flows.prove import prove
from drillyard.flows.report import Diagnosis, DownReport, Ending, Listener, MemberRow, ProofReport, Report, ResetReport
from drillyard.flows.reset import reset
from drillyard.flows.up import TIMEOUT_S, Scope, UpRequest
from drillyard.judge.survivability import Survivability
from drillyard.runtimes.abilities import DEFAULT_NAME, RuntimeRefusal
from drillyard.runtimes.choice import COMPOSE
from drillyard.runtimes.compose_plans import Images
from drillyard.topology import Problem, Profile, Role, Topology, TopologyError
from drillyard.waiting import to_its_end

if TYPE_CHECKING:  # what few programs ask for is imported when they do: every command pays for imports
    from drillyard.flows.conformance.table import ConformanceReport
    from drillyard.flows.measure import OutageReport

T = TypeVar("T")

__all__ = [
    "DEFAULT_NAME",
    "Cluster",
    "Diagnosis",
    "DownReport",
    "Ending",
    "Listener",
    "Listing",
    "LogLine",
    "MemberRow",
    "NotReady",
    "Operation",
    "ProofReport",
    "Report",
    "ResetReport",
    "RuntimeRefusal",
    "Standing",
    "Survivability",
    "SyncCluster",
    "Wanted",
    "Yard",
    "cluster",
    "cluster_sync",
]


class NotReady(Exception):
    """A cluster was asked for and did not become ready. `report` tells all that is known."""

    def __init__(self, report: Report) -> None:
        trouble = report.trouble
        super().__init__(f"{trouble.text}; evidence: {trouble.evidence}" if trouble else report.ending.value)
        self.report = report


@dataclass(frozen=True, slots=True)
class Wanted:
    """What cluster is wanted. Counts, profile and file are left open to take an existing deployment as it is."""

    pd: int | None = None
    tikv: int | None = None
    profile: str | None = None
    topology: Topology | str | os.PathLike[str] | None = None
    pd_binary: str | None = None
    tikv_binary: str | None = None
    timeout_s: float = TIMEOUT_S
    runtime: str | None = None
    version: str | None = None
    pd_image: str | None = None
    tikv_image: str | None = None

    def request(self, name: str) -> UpRequest:
        if not self.timeout_s > 0:
            raise TopologyError([Problem("timeout", f"{self.timeout_s:g} s is no time to wait", "give more than 0")])
        return UpRequest(
            name=name,
            topology=self._topology(),
            pd_binary=self.pd_binary,
            tikv_binary=self.tikv_binary,
            timeout_s=self.timeout_s,
            runtime=self.runtime,
            images=self._images(),
        )

    def _images(self) -> Images | None:
        if self.version is None and self.pd_image is None and self.tikv_image is None:
            return None
        tagged = {role: f"pingcap/{role.value}:{self.version}" if self.version else None for role in Role}
        return Images(self.pd_image or tagged[Role.PD], self.tikv_image or tagged[Role.TIKV])

    def _topology(self) -> Topology | None:
        counts = (self.pd, self.tikv, self.profile)
        if self.topology is not None and any(value is not None for value in counts):
            problem = Problem("topology", "a topology and counts or a profile were given", "give one or the other")
            raise TopologyError([problem])
        if isinstance(self.topology, Topology):
            return self.topology
        if self.topology is not None:
            return _read_topology(Path(self.topology), usual_profile(self.runtime))
        if all(value is None for value in counts):
            return None
        pd, tikv = (3 if count is None else count for count in (self.pd, self.tikv))
        if tikv == 0:
            raise TopologyError([Problem("tikv", "0 TiKV members", "give a number from 1 to 50")])
        return Topology.of(pd, tikv, _profile(self.profile or usual_profile(self.runtime).value))


class WantedOptions(TypedDict, total=False):
    """The fields of `Wanted` as options of `cluster`."""

    pd: int | None
    tikv: int | None
    profile: str | None
    topology: Topology | str | os.PathLike[str] | None
    pd_binary: str | None
    tikv_binary: str | None
    timeout_s: float
    runtime: str | None
    version: str | None
    pd_image: str | None
    tikv_image: str | None


class ClusterOptions(WantedOptions, total=False):
    """The options of `cluster_sync`: those of `cluster`."""

    keep: bool
    home: str | os.PathLike[str] | None
    listener: Listener | None


class Yard:
    """Every deployment under one home (DRILLYARD_HOME, or this user's state directory)."""

    def __init__(self, home: str | os.PathLike[str] | None = None, listener: Listener | None = None) -> None:
        self._scope = Scope.of(Path(home) if home is not None else None, listener)

    async def up(self, wanted: Wanted | None = None, name: str = DEFAULT_NAME) -> Report:
        """Bring up, or take as it runs, and wait for all six gates. How that ended is told in the report; what cannot
        be started at all is raised (`RuntimeRefusal`, `TopologyError`)."""
        return await up.up(self._scope, (wanted or Wanted()).request(name))

    async def prove(self, wanted: Wanted | None = None, name: str | None = None) -> ProofReport:
        """The whole procedure: a new deployment up, proven, and down with nothing left. Raises refusals before anything
        is started, `Misuse` for a name that is there already; what happens afterwards is told in the report."""
        return await prove(self._scope, (wanted or Wanted()).request(name or new_name("prove")))

    async def adopt(self, project: str, name: str) -> Standing:
        """Take a Compose project that somebody else started as the deployment `name`. Raises `Misuse` when there is no
        such project, or a deployment of this name."""
        return await operate.adopt(self._scope, project, name)

    async def conformance(self, report: str | os.PathLike[str] | None = None) -> ConformanceReport:
        """Run official clients, pd-ctl and a real PD, those that are on this machine, on clusters made for it; `report`
        is where the table is written as a page."""
        from drillyard.flows.conformance.suite import conformance
        from drillyard.flows.conformance.table import markdown

        page = Path(report) if report is not None else None
        if page is not None:
            await asyncio.to_thread(page.touch)  # a run of a minute must not end with a path that cannot be written
        found = await conformance(self._scope)
        if page is not None:
            await asyncio.to_thread(page.write_text, markdown(found), "utf-8")
        return found

    async def down_orphans(self) -> tuple[DownReport, ...]:
        """Take down what `cluster` made for programs that were killed meanwhile."""
        return await operate.down_orphans(self._scope)

    def own(self, name: str) -> AbstractContextManager[None]:
        """What comes to be under this name in the block lives no longer than this process."""
        return self._scope.runtime.own(name)

    async def list(self) -> Listing:
        """Every deployment, by the word of what runs its members."""
        return await inspect.listing(self._scope)

    def cluster(self, name: str = DEFAULT_NAME) -> Cluster:
        """A handle on a deployment, which need not exist until it is used."""
        return Cluster(self._scope, name)

    def exists(self, name: str) -> bool:
        """Whether there is a deployment of this name, up or down."""
        return self._scope.runtime.remembered(name) is not None


class Cluster:
    """One deployment. `report` is what its last proof found, None before there was one."""

    def __init__(self, scope: Scope, name: str, report: Report | None = None) -> None:
        self._scope = scope
        self.name = name
        self.report = report

    @property
    def pd_endpoints(self) -> tuple[str, ...]:
        """Where clients connect: host:port of every PD."""
        plan = self._scope.runtime.remembered(self.name)
        return plan.topology.pd_endpoints if plan is not None else ()

    async def verify(self, wait_s: float | None = None) -> Report:
        """Judge it from outside: once, or for at most `wait_s` seconds until it is ready. What is found is told in the
        report, also that it is down. Raises `NoSuchDeployment`."""
        self.report = await up.verify(self._scope, self.name, wait_s)
        return self.report

    async def diagnose(self) -> Diagnosis:
        """Look at everything once and keep it as evidence, with a page to read, whatever is found."""
        diagnosis = await up.diagnose(self._scope, self.name)
        self.report = diagnosis.report
        return diagnosis

    async def status(self) -> Standing:
        """How its members are by the runtime's word, and from one look of at most a second what may still fail. Raises
        `NoSuchDeployment`."""
        return await inspect.status(self._scope, self.name)

    async def connection(self) -> Connection:
        """Where clients connect, and what of that works from this machine."""
        return await inspect.connection(self._scope, self.name)

    async def start(self, member: str) -> MemberRow:
        """Start a member that does not run; it is not waited for until it serves. Raises `WrongState` when it runs, as
        all of these do when the deployment is down, and `NoSuchMember`."""
        return await self.operate(Operation.START, member)

    async def stop(self, member: str) -> MemberRow:
        """Stop a member in good order (SIGTERM) and wait for its end."""
        return await self.operate(Operation.STOP, member)

    async def restart(self, member: str) -> MemberRow:
        """Stop a member and start it again."""
        return await self.operate(Operation.RESTART, member)

    async def kill(self, member: str) -> MemberRow:
        """End a member at once (SIGKILL)."""
        return await self.operate(Operation.KILL, member)

    async def pause(self, member: str) -> MemberRow:
        """Freeze a member (SIGSTOP): it keeps its connections and answers nothing."""
        return await self.operate(Operation.PAUSE, member)

    async def resume(self, member: str) -> MemberRow:
        """Let a paused member go on (SIGCONT)."""
        return await self.operate(Operation.RESUME, member)

    async def operate(self, operation: Operation, member: str) -> MemberRow:
        """Any of the six above by its name; the member as it is afterwards."""
        return await operate.operate(self._scope, self.name, operation, member)

    async def measure(
        self, operation: Operation | str, member: str, *, timeout_s: float = TIMEOUT_S, watch_s: float = 0.0
    ) -> OutageReport:
        """Do it, and measure what clients lose by it: kill, stop, pause or restart. `timeout_s` is how long the service
        may be away, `watch_s` how long after it is back PD is given to notice."""
        from drillyard.flows.measure import Order, measure

        return await measure(self._scope, Order(self.name, Operation(operation), member, timeout_s, watch_s))

    async def logs(self, member: str | None = None, lines: int = 100) -> tuple[LogLine, ...]:
        """The last lines of each log, of one member or of all; also of a deployment that is down."""
        return await inspect.logs(self._scope, self.name, member, lines)

    def follow(self, member: str | None = None) -> AsyncIterator[LogLine]:
        """Every line that is written from now on, without end."""
        return inspect.follow(self._scope, self.name, member)

    async def reset(self, timeout_s: float = TIMEOUT_S) -> ResetReport:
        """Bring every member back and delete ALL keys: as it was when it was new, proven by all gates and a scan."""
        done = await reset(self._scope, self.name, timeout_s)
        self.report = done.report
        return done

    async def save_evidence(self, reason: str) -> Path:
        """Write an evidence bundle now, and return its directory. `reason` is a part of its name. Raises
        `EvidenceLost`."""
        return await operate.save_evidence(self._scope, self.name, reason)

    async def down(self, *, delete_data: bool = False) -> DownReport:
        """Stop all members and prove that nothing is left. Data and logs go only if they are to be deleted and the
        evidence of an end that nobody asked for could be saved before; evidence stays in any case."""
        return await operate.down(self._scope, self.name, delete_data=delete_data)


@asynccontextmanager
async def cluster(
    name: str | None = None,
    *,
    keep: bool = False,
    home: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
    **wanted: Unpack[WantedOptions],
) -> AsyncIterator[Cluster]:
    """A cluster for the block; what is wanted is as in `Wanted`. Raises `NotReady`, or a refusal with its mend."""
    yard = Yard(home, listener)
    chosen = name or new_name("cluster")
    handle = yard.cluster(chosen)
    await yard.down_orphans()
    existed = yard.exists(chosen)
    was_up = existed and (await inspect.standing(yard._scope, chosen)).is_up
    is_saved = True
    with nullcontext() if keep or existed else yard.own(chosen):
        try:
            report = await yard.up(Wanted(**wanted), chosen)
            if report.ending is not Ending.OK:
                is_saved = report.may_be_removed
                raise NotReady(report)
            handle.report = report
            try:
                yield handle
            except BaseException as error:
                if not (keep or was_up):
                    is_saved = await to_its_end(_save_for(handle, error))
                raise
        finally:
            if not (keep or was_up) and yard.exists(chosen):
                await to_its_end(handle.down(delete_data=not existed and is_saved))


async def _save_for(handle: Cluster, error: BaseException) -> bool:
    """Save evidence for a block that failed and note on its error where; whether the data may now be removed."""
    try:
        bundle = await handle.save_evidence("block-failed")
    except (EvidenceLost, RuntimeRefusal) as lost:
        error.add_note(f"drillyard: {lost}")
        return False
    error.add_note(f"drillyard: evidence is in {bundle}")
    return True


class SyncCluster:
    """The same cluster for code without an event loop: every call blocks until it is done."""

    def __init__(self, loop: _LoopThread, handle: Cluster) -> None:
        self._loop = loop
        self._handle = handle

    def __repr__(self) -> str:
        return f"<SyncCluster {self.name}>"

    @property
    def name(self) -> str:
        return self._handle.name

    @property
    def report(self) -> Report | None:
        return self._handle.report

    @property
    def pd_endpoints(self) -> tuple[str, ...]:
        return self._handle.pd_endpoints

    def verify(self, wait_s: float | None = None) -> Report:
        return self._loop.run(self._handle.verify(wait_s))

    def diagnose(self) -> Diagnosis:
        return self._loop.run(self._handle.diagnose())

    def status(self) -> Standing:
        return self._loop.run(self._handle.status())

    def start(self, member: str) -> MemberRow:
        return self._loop.run(self._handle.start(member))

    def stop(self, member: str) -> MemberRow:
        return self._loop.run(self._handle.stop(member))

    def restart(self, member: str) -> MemberRow:
        return self._loop.run(self._handle.restart(member))

    def kill(self, member: str) -> MemberRow:
        return self._loop.run(self._handle.kill(member))

    def pause(self, member: str) -> MemberRow:
        return self._loop.run(self._handle.pause(member))

    def resume(self, member: str) -> MemberRow:
        return self._loop.run(self._handle.resume(member))

    def measure(
        self, operation: Operation | str, member: str, *, timeout_s: float = TIMEOUT_S, watch_s: float = 0.0
    ) -> OutageReport:
        return self._loop.run(self._handle.measure(operation, member, timeout_s=timeout_s, watch_s=watch_s))

    def logs(self, member: str | None = None, lines: int = 100) -> tuple[LogLine, ...]:
        return self._loop.run(self._handle.logs(member, lines))

    def reset(self, timeout_s: float = TIMEOUT_S) -> ResetReport:
        return self._loop.run(self._handle.reset(timeout_s))

    def save_evidence(self, reason: str) -> Path:
        return self._loop.run(self._handle.save_evidence(reason))

    def down(self, *, delete_data: bool = False) -> DownReport:
        return self._loop.run(self._handle.down(delete_data=delete_data))


@contextmanager
def cluster_sync(name: str | None = None, **options: Unpack[ClusterOptions]) -> Iterator[SyncCluster]:
    """`cluster` for code without an event loop; takes the same options."""
    with _LoopThread() as loop:
        context = cluster(name, **options)
        handle = loop.run(context.__aenter__())
        try:
            yield SyncCluster(loop, handle)
        except BaseException as error:
            if not loop.run(context.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            loop.run(context.__aexit__(None, None, None))


def down_orphans_sync() -> tuple[DownReport, ...]:
    """`Yard.down_orphans` for code without an event loop."""
    with _LoopThread() as loop:
        return loop.run(Yard().down_orphans())


class _LoopThread:
    """An event loop in a thread of its own. What interrupts a caller cancels its call and waits for its clean-up."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="drillyard", daemon=True)

    def __enter__(self) -> _LoopThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                self._settle()
            raise

    def _settle(self) -> None:
        """Wait until every cancelled call has cleaned up after itself."""

        async def rest() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(rest(), self._loop).result()


def new_name(stem: str) -> str:
    """A deployment name that nobody else chooses."""
    return f"{stem}-{secrets.token_hex(4)}"


def _read_topology(path: Path, usual: Profile) -> Topology:
    from drillyard.topology_file import parse_topology

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise TopologyError([Problem("topology", f"{path} cannot be read: {why}", "name a TOML file")]) from error
    return parse_topology(text, str(path), usual)


def usual_profile(runtime: str | None) -> Profile:
    """The timings that are taken when none are asked for: containers are for the real servers' own."""
    return Profile.UPSTREAM if runtime == COMPOSE else Profile.LAPTOP


def render_compose(wanted: Wanted) -> str:
    """The Compose file of the topology that is wanted; the usual one is subjects/tikv/docker-compose.yaml."""
    from drillyard.runtimes import compose_file

    topology = wanted.request(DEFAULT_NAME).topology
    return compose_file.render(topology or compose_file.default_topology())


def _profile(name: str) -> Profile:
    try:
        return Profile(name)
    except ValueError:
        known = " or ".join(profile.value for profile in Profile)
        raise TopologyError([Problem("profile", f"{name!r} is no profile", f"use {known}")]) from None
