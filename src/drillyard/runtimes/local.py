"""The local runtime: members are processes of this machine, watched over by one keeper per deployment.

Everything lies under `home`: deployments/<name>/{plan.json, data/, logs/, config/, evidence/, journal.jsonl, …}.

Rules: a deployment is a directory and, while it runs, a keeper; this object holds no more than the ports of what it
planned and has not started, so any number of commands may look at once. Starting and stopping a whole deployment takes
its command lock; ports are planned under one lock for all. `stop` proves what it claims. Nothing is judged here:
whether the members work is for others to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from drillyard.runtimes import journal, keeper_link, logs, plans, ports
from drillyard.runtimes.abilities import (
    DEFAULT_NAME,
    Ability,
    DeployedMember,
    Deployment,
    EventKind,
    Exit,
    KeeperFailed,
    LogTail,
    MemberEvent,
    MemberFiles,
    Misuse,
    NoSuchDeployment,
    NoSuchMember,
    PlanDiffers,
    PlanUnreadable,
    Reach,
    StopReport,
    WrongState,
)
from drillyard.runtimes.home import Home, remove_data
from drillyard.runtimes.keeper_link import KeeperGone
from drillyard.runtimes.plans import Executables, Plan
from drillyard.runtimes.processes import identity, signal_if_same
from drillyard.topology import Member, Role, Topology
from drillyard.waiting import to_its_end

MEMBER_MARGIN_S = 10.0  # what a request may take on top of the member's grace
STOP_MARGIN_S = 10.0  # what a stop may take on top of the graces of both roles
KEEPER_LEAVES_S = 5.0
ABILITIES = frozenset(Ability) - {Ability.RESTART_POLICY}
GUARD = "pdeathsig" if sys.platform == "linux" else "pipe"  # what ends the members of a keeper that was killed


class LocalRuntime:
    """Deployments under one home. All methods may be called from any event loop, any number of times."""

    name = "local"

    def __init__(self, home: Path | Home | None = None) -> None:
        self.home = home if isinstance(home, Home) else Home(home)
        self._holds: dict[str, ports.Hold] = {}  # of deployments that were planned and not started yet

    @property
    def abilities(self) -> frozenset[Ability]:
        return ABILITIES

    def remembered(self, name: str = DEFAULT_NAME) -> Plan | None:
        """The plan of an existing deployment; None when there is none of this name."""
        return plans.load(self.home.directory(name))

    def names(self) -> tuple[str, ...]:
        """Every deployment that exists, readable or not."""
        return self.home.names(plans.FILE)

    async def plan(
        self,
        topology: Topology | None = None,
        name: str = DEFAULT_NAME,
        executables: Executables | None = None,
    ) -> Plan:
        """Choose and reserve the ports, and remember the plan.

        An existing deployment keeps its ports and data: without a topology its plan is taken as it is; a topology with
        the same members changes what else was asked (profile, flags, settings); other members are refused.
        """
        before = self.remembered(name)
        if before is not None and topology is None and executables in (None, before.executables):
            return before
        if before is not None and topology == before.asked and executables in (None, before.executables):
            return before
        if before is not None and await self._is_up(before):
            raise PlanDiffers(f"deployment {name!r} runs with another plan", "take it down first, or use another name")
        asked = topology or (before.asked if before else Topology.of())
        chosen = executables or (before.executables if before else Executables())
        return await asyncio.to_thread(self._make_plan, name, asked, chosen)

    def _make_plan(self, name: str, asked: Topology, executables: Executables) -> Plan:
        for member in asked.members:
            if not _is_loopback(member.host):
                wrong = f"{member.name}: host {member.host!r} is not on this machine's loopback"
                raise Misuse(wrong, "use 127.0.0.1: a local deployment is reachable from this machine only")
        with self.home.planning():
            before = self.remembered(name)
            kept = {}
            if before is not None:
                if _shape(before.topology) != _shape(asked) and any(before.directory.glob("data/*")):
                    mend = "use another name, or take it down with its data first (`drillyard down --delete-data`)"
                    raise PlanDiffers(f"deployment {name!r} exists with other members", mend)
                kept = {(m.name, purpose): port for m in before.topology.members for purpose, port in m.ports.items()}
            self._holds.pop(name, None)
            hold = ports.Hold()
            settled = ports.assign(asked, self.home.reserved(name), kept, hold)
            self._holds[name] = hold
            made = Plan(name, self.home.directory(name), asked, settled, executables)
            plans.save(made)
            return made

    async def start(self, plan: Plan) -> Deployment:
        """Start every member and return at once; whether they come up is for the caller to probe.

        A deployment that runs is returned as it is. Members that ended under a living keeper are only started when
        all of them did: one that ended alone is somebody's to look at.
        """
        with keeper_link.command_lock(plan.directory, "start") as lock:
            await to_its_end(self._start(plan, lock))
        return await self.deployment(plan.name)

    async def _start(self, plan: Plan, lock: int) -> None:
        state = await self._state(plan.directory)
        if state.is_closing:  # somebody's stop that is still on its way; join it, then start afresh
            await self._stop_keeper(plan.directory, state)
        if state.keeper is None or state.is_closing:
            await asyncio.to_thread(self._launch, plan, lock)
        elif all(run["pid"] is None for run in state.runs.values()):
            for member in plan.topology.members:
                await self._ask(plan, "start", member.name)

    def _launch(self, plan: Plan, lock: int) -> None:
        for role in Role:
            if plan.topology.of_role(role):
                plan.executables.of(role).check()
        reserved = self.home.reserved(plan.name)
        ports.check_free(plan.topology.members, reserved)
        if not (plan.directory / plans.FILE).exists():
            plans.save(plan)
        socket = keeper_link.socket_path(plan.directory)
        plan.write_files(socket, GUARD)
        hold = self._holds.pop(plan.name, None) or ports.Hold()
        for member in plan.topology.members:
            for port in member.ports.values():
                hold.take(member.host, port)
        try:
            keeper_link.launch(plan.directory, lock, hold.handles, self.home.lifeline(plan.name))
        finally:
            hold.release()

    async def deployment(self, name: str = DEFAULT_NAME) -> Deployment:
        """What is there now: plan, processes, exits. A keeper that was lost is noticed and swept after here."""
        plan = self._existing(name)
        return _deployment(plan, await self._state(plan.directory))

    async def list(self) -> tuple[Deployment, ...]:
        """Every deployment whose plan can be read; `names` also tells the others."""
        found = []
        for name in self.names():
            with contextlib.suppress(PlanUnreadable, NoSuchDeployment):
                found.append(await self.deployment(name))
        return tuple(found)

    async def start_member(self, name: str, member: str) -> None:
        """Start it, unless somebody has one of its ports meanwhile: then it would only end, and not say who."""
        plan = self._existing(name)
        run = (await self._state(plan.directory)).runs.get(member)
        if run is not None and run["pid"] is None:
            await asyncio.to_thread(ports.check_free, [plan.topology.member(member)], {})
        await self._ask_member(name, "start", member)

    async def stop_member(self, name: str, member: str) -> Exit:
        return _exit(await self._ask_member(name, "stop", member))

    async def restart_member(self, name: str, member: str) -> None:
        await self._ask_member(name, "restart", member)

    async def kill_member(self, name: str, member: str) -> Exit:
        return _exit(await self._ask_member(name, "kill", member))

    async def pause_member(self, name: str, member: str) -> None:
        await self._ask_member(name, "pause", member)

    async def resume_member(self, name: str, member: str) -> None:
        await self._ask_member(name, "resume", member)

    async def watch(self, name: str = DEFAULT_NAME) -> AsyncGenerator[MemberEvent, None]:
        """Every event from now on, pushed as it happens; ends when the deployment is down.

        The first events are replays: one per member that tells how it is now, so that nothing is lost between a look
        and the watch. When the keeper is lost, the exits that the sweep wrote down come last.
        """
        plan = self._existing(name)
        state = await self._state(plan.directory)
        seen = journal.State()
        while state.keeper is not None:  # a keeper that found us too slow hung up: then once more, from a replay
            with contextlib.suppress(KeeperGone):
                messages = keeper_link.subscribe(keeper_link.socket_path(plan.directory))
                async with contextlib.aclosing(messages):
                    async for message in messages:
                        for event in _events(name, seen, message):
                            yield event
            state = await self._state(plan.directory)
        for member, run in seen.runs.items():
            after = state.runs.get(member)
            if run["pid"] is not None and after is not None and after["pid"] is None and after["exit"] is not None:
                yield MemberEvent(name, member, EventKind.EXITED, after["exit"]["at"], run["pid"], _exit(after["exit"]))

    async def start_rest(self, name: str) -> None:
        """Nothing is held back here: the emulated members ask PD until it answers."""

    async def tails(self, name: str, member: str, lines: int, ended_at: float | None = None) -> tuple[LogTail, ...]:
        """The ends of a member's log and output, the one that was written to last at the end."""
        found = (await self.deployment(name)).member(member)
        return tuple(
            LogTail(str(path), logs.tail_lines(path, lines))
            for path in logs.by_last_written((found.log_path, found.out_path))
        )

    async def follow(self, name: str, member: str | None) -> AsyncGenerator[tuple[str, str], None]:
        """Every line that the members write from now on, to their logs or their output."""
        deployment = await self.deployment(name)
        chosen = deployment.members if member is None else (deployment.member(member),)
        files = [(one.name, path) for one in chosen for path in logs.by_last_written((one.log_path, one.out_path))]
        async for line in logs.follow(files):
            yield line

    async def keepsakes(self, name: str) -> dict[str, bytes]:
        """Logs, configuration, and what the keeper wrote down."""
        plan = self._existing(name)
        return await asyncio.to_thread(_keepsakes, plan)

    @asynccontextmanager
    async def reach(self, deployment: Deployment) -> AsyncIterator[Reach]:
        """The members listen on this machine's loopback."""
        yield Reach()

    async def stop(self, name: str = DEFAULT_NAME, *, delete_data: bool = False) -> StopReport:
        """Stop stores, then PDs, then the keeper, and prove that nothing is left. Data stays unless told otherwise.

        Works on a deployment that is down already, whose keeper was lost or is stuck, or whose plan is damaged or gone.
        """
        directory = self.home.directory(name)
        if not (directory / plans.FILE).exists() and not keeper_link.is_alive(directory):
            raise NoSuchDeployment(name, self.names())
        with keeper_link.command_lock(directory, "stop"):
            topology = None
            with contextlib.suppress(PlanUnreadable):
                plan = plans.load(directory)
                topology = plan.topology if plan else None
            known = _processes(journal.fold(journal.read(directory / "journal.jsonl")))
            before = await self._state(directory, may_kill=True)
            answer: dict[str, Any] = {"stopped": [], "killed": []}
            if before.keeper is not None:
                answer = await self._stop_keeper(directory, before)
            report = await asyncio.to_thread(_prove, directory, known, topology)
            report = replace(report, stopped=tuple(answer["stopped"]), killed=tuple(answer["killed"]))
            if delete_data and report.is_clean:
                report = await asyncio.to_thread(remove_data, directory, report)
            return report

    async def _stop_keeper(self, directory: Path, state: journal.State) -> dict[str, Any]:
        socket = keeper_link.socket_path(directory)
        patience = sum(plans.GRACE_S.values()) + STOP_MARGIN_S
        try:
            answer = await keeper_link.ask(socket, "stop-all", timeout_s=patience)
        except KeeperGone:  # lost on the way; or it lives, and somebody removed its socket
            return await self._end_keeper(directory, state, signal.SIGTERM, patience)
        except KeeperFailed:
            return await self._end_keeper(directory, state, signal.SIGKILL, KEEPER_LEAVES_S)
        keeper = _processes(state)[-1:]
        if await asyncio.to_thread(keeper_link.wait_gone, keeper, KEEPER_LEAVES_S):
            await self._end_keeper(directory, state, signal.SIGKILL, KEEPER_LEAVES_S)
        return answer

    async def _end_keeper(
        self, directory: Path, state: journal.State, number: int, patience_s: float
    ) -> dict[str, Any]:
        """End a keeper that cannot be asked; its members end with it, and the sweep makes sure."""
        for signal_number, wait_s in ((number, patience_s), (signal.SIGKILL, KEEPER_LEAVES_S)):
            pid, known = _processes(state)[-1]
            if known is not None and signal_if_same(pid, known, signal_number):
                await asyncio.to_thread(keeper_link.wait_gone, [(pid, known)], wait_s)
        await asyncio.to_thread(keeper_link.sweep, directory)
        ran = [name for name, run in state.runs.items() if run["pid"] is not None]
        after = journal.fold(journal.read(directory / "journal.jsonl")).runs
        ended = {name: after[name]["exit"] for name in ran if after[name]["exit"] is not None}
        return {"stopped": ran, "killed": [name for name, end in ended.items() if end["code"] is None]}

    def _existing(self, name: str) -> Plan:
        plan = self.remembered(name)
        if plan is None:
            raise NoSuchDeployment(name, self.names())
        return plan

    async def _is_up(self, plan: Plan) -> bool:
        return (await self._state(plan.directory)).keeper is not None

    async def _state(self, directory: Path, *, may_kill: bool = False) -> journal.State:
        """The state as the living keeper tells it, or as the journal does when none lives (sweeping if need be)."""
        book = directory / "journal.jsonl"
        deadline = asyncio.get_running_loop().time() + keeper_link.NO_SOCKET_S
        while True:
            if not keeper_link.is_alive(directory) and await asyncio.to_thread(keeper_link.sweep, directory):
                return journal.fold(journal.read(book))
            try:
                answer = await keeper_link.ask(keeper_link.socket_path(directory), "status")
            except KeeperGone:
                if asyncio.get_running_loop().time() < deadline:
                    await asyncio.sleep(0.02)  # it is between its lock and its socket, or being swept after
                    continue
                if not may_kill:
                    raise KeeperFailed("the keeper has no socket", "`drillyard down` ends it") from None
                return journal.fold(journal.read(book))
            except KeeperFailed:
                if not may_kill:
                    raise
                return journal.fold(journal.read(book))
            state = journal.fold(journal.read(book))
            state.runs, state.is_closing = answer["runs"], answer["closing"]
            return state

    async def _ask_member(self, name: str, do: str, member: str) -> dict[str, Any]:
        plan = self._existing(name)
        try:
            plan.topology.member(member)
        except KeyError:
            known = tuple(m.name for m in plan.topology.members)
            raise NoSuchMember(name, member, known) from None
        if (await self._state(plan.directory)).keeper is None:
            raise WrongState(f"deployment {name!r} is down", "bring it up first (`drillyard up`)")
        return await self._ask(plan, do, member)

    async def _ask(self, plan: Plan, do: str, member: str) -> dict[str, Any]:
        patience = plans.GRACE_S[plan.topology.member(member).role] + MEMBER_MARGIN_S
        socket = keeper_link.socket_path(plan.directory)
        try:
            answer = await keeper_link.ask(socket, do, member, timeout_s=patience)
        except KeeperGone:
            raise KeeperFailed(f"the keeper of {plan.name!r} was lost on the way", "see `drillyard status`") from None
        record: dict[str, Any] = answer["record"]
        return record


def _keepsakes(plan: Plan) -> dict[str, bytes]:
    names = [member.name for member in plan.topology.members]
    kept = {f"deployment/{name}": plan.directory / name for name in (plans.FILE, "launch.json", "journal.jsonl")}
    kept |= {f"deployment/config/{path.name}": path for path in sorted(plan.directory.glob("config/*.toml"))}
    kept |= {f"logs/{path.name}": path for name in names for path in (plan.log_path(name), plan.out_path(name))}
    return {name: logs.both_ends(path) for name, path in kept.items() if path.is_file()}


def _shape(topology: Topology) -> set[tuple[str, Role]]:
    return {(member.name, member.role) for member in topology.members}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _deployment(plan: Plan, state: journal.State) -> Deployment:
    members = tuple(_member(plan, member, state.runs.get(member.name)) for member in plan.topology.members)
    keeper = state.keeper["keeper"] if state.keeper else None
    return Deployment(
        name=plan.name,
        runtime="local",
        abilities=ABILITIES,
        directory=plan.directory,
        topology=plan.topology,
        members=members,
        keeper_pid=keeper,
        started_at=state.started_at,
        is_stopping=state.is_closing,
    )


def _member(plan: Plan, member: Member, run: dict[str, Any] | None) -> DeployedMember:
    run = run or journal.new_run()
    return DeployedMember(
        name=member.name,
        role=member.role,
        kind=plan.executables.of(member.role).kind,
        pid=run["pid"],
        running=run["pid"] is not None,
        paused=run["paused"],
        exit=_exit(run["exit"]) if run["exit"] else None,
        starts=run["starts"],
        started_at=run["started_at"],
        addresses=member.addresses,
        argv=plan.argv(member),
        files=MemberFiles(plan.data_dir(member.name), plan.log_path(member.name), plan.out_path(member.name)),
    )


def _exit(record: dict[str, Any]) -> Exit:
    return Exit(record["code"], record["signal"], record["asked"], record["at"], record["note"])


def _events(deployment: str, seen: journal.State, message: dict[str, Any]) -> Iterator[MemberEvent]:
    """What one message of the keeper says: its first tells how everything is, each later one what happened."""
    if "runs" in message:
        seen.runs = message["runs"]
        yield from _replays(deployment, seen.runs)
        return
    seen.apply(message)
    with contextlib.suppress(ValueError):  # an escalation is no event of its own: it shows in the exit's note
        kind = EventKind(message["what"])
        how = _exit(message) if kind is EventKind.EXITED else None
        yield MemberEvent(deployment, message["member"], kind, message["at"], message.get("pid"), how)


def _replays(deployment: str, runs: dict[str, dict[str, Any]]) -> Iterator[MemberEvent]:
    for member, run in runs.items():
        if run["pid"] is None and run["exit"] is not None:
            ended = run["exit"]
            yield MemberEvent(deployment, member, EventKind.EXITED, ended["at"], None, _exit(ended), is_replay=True)
        elif run["pid"] is not None:
            kind = EventKind.PAUSED if run["paused"] else EventKind.STARTED
            yield MemberEvent(deployment, member, kind, run["started_at"], run["pid"], is_replay=True)


def _processes(state: journal.State) -> list[tuple[int, str | None]]:
    """Every process of the deployment by pid and identity, the keeper last."""
    known = [(run["pid"], run["identity"]) for run in state.runs.values() if run["pid"] is not None]
    if state.keeper is not None:
        known.append((state.keeper["keeper"], state.keeper["identity"]))
    return known


def _prove(directory: Path, known: list[tuple[int, str | None]], topology: Topology | None) -> StopReport:
    """Look for every process, port and socket that the deployment had."""
    members = topology.members if topology else ()
    addresses = [(member.host, port) for member in members for port in member.ports.values()]
    socket = keeper_link.socket_path(directory)
    if not keeper_link.is_alive(directory):
        socket.unlink(missing_ok=True)  # a lost keeper could not remove its own
    kept = tuple(path for part in ("data", "logs", "evidence") if (path := directory / part).is_dir())
    return StopReport(
        name=directory.name,
        stopped=(),
        killed=(),
        left_pids=tuple(pid for pid, start in known if start is not None and identity(pid) == start),
        left_ports={port: ports.owner_of(port) for host, port in addresses if not ports.is_free(host, port)},
        left_paths=(socket,) if socket.exists() else (),
        kept=kept,
        checked_pids=tuple(pid for pid, _ in known),
        checked_ports=tuple(port for _, port in addresses),
    )
