"""The compose runtime: members are containers of one Compose project, and the Docker daemon is their keeper.

Rules: what runs is what the daemon says, asked anew each time. A stop that we ask for is written to the deployment's
journal before it is carried out, with the run that it ends, so that an exit is known as asked or unexpected later too;
an exit that the restart policy made good is counted and told all the same. A start brings up PD and leaves the stores
created and not started, until `start_rest`: a TiKV that asks for timestamps during PD's election does not survive it.
`stop` proves what it claims. A project that others started can be adopted; its file stays theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drillyard.runtimes import compose_file, compose_plans, journal, keeper_link, logs, ports
from drillyard.runtimes.abilities import (
    Ability,
    DeployedMember,
    Deployment,
    EventKind,
    Exit,
    LogTail,
    MemberContainer,
    MemberEvent,
    Misuse,
    Network,
    NoSuchDeployment,
    PlanDiffers,
    PlanUnreadable,
    PortTaken,
    Reach,
    StartRefused,
    StopReport,
    WrongState,
)
from drillyard.runtimes.compose_plans import ComposePlan, Images, Published
from drillyard.runtimes.docker import KILLED_CODE, Container, Docker, DockerEvent, DockerRefused, kind_of
from drillyard.runtimes.home import DEFAULT_NAME, Home, remove_data
from drillyard.runtimes.reach import RELAY_LABEL, WAYS, reach
from drillyard.topology import LOOPBACK, PREFERRED_PORTS, Member, Purpose, Role, Topology
from drillyard.waiting import Clock, Deadline, until

ABILITIES = frozenset(Ability)
PULL_S = 1800.0
CREATE_S = 120.0
STOP_S = 20.0 + sum(compose_file.GRACE_S.values())
LOG_LINES = 5000  # of each member, in a bundle
RUN_LOG_S, RUN_LOG_LATE_S = 120.0, 0.05  # how far back the last words of a run go; how late the daemon stamps them
FOLLOW_S, FOLLOW_POLL_S = 3600.0, 0.3
UP, STARTED, STOPPING = "up", "started", "stopping"  # what the journal holds
ENDING_SIGNALS = {"2", "3", "6", "9", "15"}  # as an event tells them; others are no wish that a container end
EMULATED_OPEN_FILES = "20000"  # what any daemon may give
Tell = Callable[[str], None]


class ComposeRuntime:
    """Deployments under one home. DRILLYARD_REACH (addresses or relay) decides how members are reached, instead of a
    trial."""

    name = "compose"

    def __init__(self, home: Path | Home | None = None, docker: Docker | None = None) -> None:
        self.home = home if isinstance(home, Home) else Home(home)
        self._docker = docker or Docker()

    @property
    def abilities(self) -> frozenset[Ability]:
        return ABILITIES

    def remembered(self, name: str = DEFAULT_NAME) -> ComposePlan | None:
        """The plan of an existing deployment; None when there is none of this name."""
        return compose_plans.load(self.home.directory(name))

    def names(self) -> tuple[str, ...]:
        """Every compose deployment that exists, readable or not."""
        return self.home.names(compose_plans.FILE)

    # --- plan and start ----------------------------------------------------------------------------------------------

    async def plan(
        self, topology: Topology | None = None, name: str = DEFAULT_NAME, images: Images | None = None
    ) -> ComposePlan:
        """Choose the published ports, and remember the plan. The file's variables are taken from the environment too.

        An existing deployment keeps its ports, images and data, unless other ones are asked for while it is down.
        """
        before = self.remembered(name)
        if before is not None and before.adopted:
            if topology is None and images is None:
                return before
            raise PlanDiffers(f"{before.project} was started by somebody else", "change its own Compose file instead")
        asked = _with_asked_ports(topology or (before.asked if before else compose_file.default_topology()))
        variables = _variables(before, images or Images())
        if before is not None and (before.asked, dict(before.variables)) == (asked, variables):
            return before
        compose_file.in_containers(asked)  # refuses what a container cannot have
        if before is not None:
            await self._check_change(before, asked)
        return await asyncio.to_thread(self._make_plan, name, asked, variables)

    async def _check_change(self, before: ComposePlan, asked: Topology) -> None:
        if any(container.is_running for container in await self._docker.containers(before.project)):
            mend = "take it down first, or use another name"
            raise PlanDiffers(f"deployment {before.name!r} runs with another plan", mend)
        names = [{(member.name, member.role) for member in topology.members} for topology in (before.asked, asked)]
        if names[0] != names[1] and await self._docker.labelled("volume", before.project):
            mend = "use another name, or take it down with its data first (`drillyard down --delete-data`)"
            raise PlanDiffers(f"deployment {before.name!r} exists with other members", mend)

    def _make_plan(self, name: str, asked: Topology, variables: Mapping[str, str]) -> ComposePlan:
        directory = self.home.directory(name)
        with self.home.planning():
            before = self.remembered(name)
            published = _choose_ports(asked, self.home.reserved(name), before.published if before else {})
            plan = ComposePlan(name, directory, project_of(name), asked, published, variables)
            compose_plans.save(plan)
            return plan

    async def start(self, plan: ComposePlan, tell: Tell = lambda _: None) -> Deployment:
        """Start PD, and leave the stores for `start_rest`. A deployment of which anything runs is returned as it is.

        `tell` hears what takes long or should be known: images that are pulled, emulation, the plan of memory.
        """
        with keeper_link.command_lock(plan.directory, "start"):
            server, _ = await asyncio.gather(self._docker.server(), self._docker.compose_version())
            if not any(one.is_running for one in await self._docker.containers(plan.project)):
                await (self._start_adopted(plan) if plan.adopted else self._start_own(plan, server, tell))
        return await self.deployment(plan.name)

    async def _start_own(self, plan: ComposePlan, server: Mapping[str, Any], tell: Tell) -> None:
        kinds = await self._have_images(plan, str(server.get("Arch", "")), tell)
        if kinds[plan.image_of(Role.TIKV)] == "emulated" and compose_file.TIKV_OPEN_FILES not in plan.variables:
            plan = replace(plan, variables={**plan.variables, compose_file.TIKV_OPEN_FILES: EMULATED_OPEN_FILES})
        await self._check_ports(plan)
        plan.write_file()
        compose_plans.save(plan)
        tell(_memory_words(plan))
        self._write(plan, UP)
        await self._compose(plan, "create", "--remove-orphans", timeout_s=CREATE_S)
        names = [member.name for member in plan.topology.of_role(Role.PD)]
        for name in names:
            self._write(plan, STARTED, name)
        await self._compose(plan, "start", *names, timeout_s=CREATE_S)

    async def _start_adopted(self, plan: ComposePlan) -> None:
        if not await self._docker.containers(plan.project):
            mend = "start it as it was started before (`docker compose up`)"
            raise WrongState(f"the containers of project {plan.project!r} are gone", mend)
        self._write(plan, UP)
        pds = [member.name for member in plan.topology.of_role(Role.PD)]
        await asyncio.gather(*(self._start_container(plan, name) for name in pds))

    async def start_rest(self, name: str) -> None:
        """Start every member that does not run."""
        plan = self._existing(name)
        deployment = await self.deployment(name)
        rest = [member.name for member in deployment.members if not member.running]
        if rest and not plan.adopted:
            for member in rest:
                self._write(plan, STARTED, member)
            await self._compose(plan, "up", "-d", "--no-deps", "--no-recreate", *rest, timeout_s=CREATE_S)
        else:
            await asyncio.gather(*(self._start_container(plan, member) for member in rest))

    async def _have_images(self, plan: ComposePlan, host_arch: str, tell: Tell) -> dict[str, str]:
        """Every image is here and fits the machine, or the start is refused before anything is made. Which kind of
        server is in each."""
        kinds: dict[str, str] = {}
        for image in sorted({plan.image_of(member.role) for member in plan.topology.members}):
            found = await self._docker.inspect("image", image)
            if not found:
                tell(f"pulling {image}")
                try:
                    await self._docker.run("pull", "--quiet", image, timeout_s=PULL_S)
                except DockerRefused as refused:
                    raise _image_missing(image, refused) from refused
                found = await self._docker.inspect("image", image)
            kinds[image] = kind_of((found[0].get("Config") or {}) if found else {})
            arch = str(found[0].get("Architecture", "")) if found else ""
            if arch and host_arch and arch != host_arch:
                tell(f"{image} is made for {arch}, this machine is {host_arch}: it runs under emulation, and slowly")
                await self._check_emulation(image, arch, host_arch)
        return kinds

    async def _check_emulation(self, image: str, arch: str, host_arch: str) -> None:
        shell = ("--entrypoint", "/bin/sh", image, "-c", "exit 0")
        try:
            await self._docker.run("run", "--rm", "--network", "none", *shell, timeout_s=CREATE_S)
        except DockerRefused as refused:
            mend = "name a multi-architecture image, such as pingcap/pd and pingcap/tikv"
            wrong = f"{image} is made for {arch}; this machine is {host_arch} and cannot emulate that"
            raise DockerRefused(wrong, mend, refused.output) from refused

    async def _check_ports(self, plan: ComposePlan) -> None:
        for (member, _), port in plan.published.items():
            if not ports.is_free(LOOPBACK, port):
                raise PortTaken(port, member, await self._owner_of(port))

    async def _owner_of(self, port: int) -> str:
        """Who has the port: a container by its name, else a process."""
        by_docker = (await self._docker.run("ps", "--filter", f"publish={port}", "--format", "{{.Names}}")).split()
        return f"container {by_docker[0]}" if by_docker else await asyncio.to_thread(ports.owner_of, port)

    async def adopt(self, project: str, name: str) -> Deployment:
        """Take a project that somebody started with plain `docker compose` as a deployment of this name."""
        if name in self.home.names():
            raise Misuse(f"there is a deployment {name!r} already", "give another name")
        containers = await self._docker.containers(project)
        if not containers:
            listed = json.loads(await self._docker.run("compose", "ls", "--all", "--format", "json") or "[]")
            known = ", ".join(str(one["Name"]) for one in listed) or "none"
            raise Misuse(f"there is no Compose project {project!r}", f"there are: {known}")
        members, services, published = _members_of(containers)
        if not members:
            raise Misuse(f"project {project!r} holds no PD and no TiKV", "name the project of a TiKV cluster")
        plan = ComposePlan(
            name=name,
            directory=self.home.directory(name),
            project=project,
            asked=Topology(members, compose_file.default_topology().profile),
            published=published,
            adopted=True,
            services=services,
        )
        compose_plans.save(plan)
        return await self.deployment(name)

    # --- look --------------------------------------------------------------------------------------------------------

    async def deployment(self, name: str = DEFAULT_NAME) -> Deployment:
        """What is there now, by the daemon's word."""
        plan = self._existing(name)
        containers = await self._docker.containers(plan.project)
        book = Book.read(plan.directory)
        lost = [one for one in containers if one.is_running and one.restarts]
        ends = await self._recent_ends(plan.project, lost) if lost else {}
        return _deployment(plan, {one.service: one for one in containers}, book, ends)

    async def list(self) -> tuple[Deployment, ...]:
        """Every deployment whose plan can be read; `names` also tells the others."""
        found = []
        for name in self.names():
            with contextlib.suppress(PlanUnreadable, NoSuchDeployment):
                found.append(await self.deployment(name))
        return tuple(found)

    async def _recent_ends(self, project: str, containers: Iterable[Container]) -> dict[str, RecentEnd]:
        """How each of these ended last, for a policy that started it again has overwritten it; only what the daemon
        still remembers."""
        since = min(one.finished_at or 0.0 for one in containers) - 1.0
        found: dict[str, RecentEnd] = {}
        oom: set[str] = set()
        until_now = ("--since", f"{since:.3f}", "--until", f"{time.time():.3f}")
        async with contextlib.aclosing(self._docker.events(project, *until_now)) as events:
            async for event in events:
                if event.action == "oom":
                    oom.add(event.container_id)
                elif event.action == "die" and event.exit_code is not None:
                    is_oom = event.container_id in oom and event.exit_code == KILLED_CODE
                    found[event.container_id] = RecentEnd(event.exit_code, is_oom)
                    oom.discard(event.container_id)
        return found

    async def watch(self, name: str = DEFAULT_NAME) -> AsyncGenerator[MemberEvent, None]:
        """Every event from now on, pushed by the daemon; first a replay of how each member is."""
        plan = self._existing(name)
        since = time.time()
        watcher = _Watcher(plan, {one.service: one for one in await self._docker.containers(plan.project)})
        for event in watcher.replays():
            yield event
        async with contextlib.aclosing(self._docker.events(plan.project, "--since", f"{since:.6f}")) as events:
            async for happened in events:
                if happened.action in ("start", "die"):
                    now = {one.service: one for one in await self._docker.containers(plan.project)}
                    told = watcher.see(happened, now.get(happened.service))
                else:
                    told = watcher.see(happened, None)
                if told is not None:
                    yield told

    async def tails(self, name: str, member: str, lines: int, ended_at: float | None = None) -> tuple[LogTail, ...]:
        """The end of a container's log, which holds its output too, or of what it had written when a run ended."""
        plan = self._existing(name)
        container = await self._container(plan, member)
        text = await self._log(container.name, lines, ended_at) if container and lines else b""
        where = f"docker logs {container.name}" if container else f"no container of {member}"
        return (LogTail(where, logs.last_lines(text, lines)),)

    async def follow(self, name: str, member: str | None) -> AsyncGenerator[tuple[str, str], None]:
        """Every line that the members write from now on, through their restarts."""
        plan = self._existing(name)
        deployment = await self.deployment(name)
        chosen = deployment.members if member is None else (deployment.member(member),)
        lines: asyncio.Queue[tuple[str, str] | BaseException] = asyncio.Queue(1000)
        tasks = [asyncio.create_task(self._follow_one(plan, one.name, lines)) for one in chosen]
        try:
            while True:
                line = await lines.get()
                if isinstance(line, BaseException):
                    raise line
                yield line
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_one(
        self, plan: ComposePlan, member: str, lines: asyncio.Queue[tuple[str, str] | BaseException]
    ) -> None:
        async def look() -> Container | None:
            found = await self._container(plan, member)
            return found if found is not None and found.is_running else None

        since = time.time()
        try:
            while True:
                container = await until(look, Deadline.after(Clock(), FOLLOW_S), poll_s=FOLLOW_POLL_S)
                if container is None:
                    continue
                stream = self._docker.stream("logs", "--follow", "--since", f"{since:.6f}", container.name)
                async with contextlib.aclosing(stream):
                    async for line in stream:
                        await lines.put((member, line))
                since = time.time()
        except DockerRefused as refused:
            await lines.put(refused)

    async def keepsakes(self, name: str) -> dict[str, bytes]:
        """Logs, the daemon's records, recent events, the project's files. What cannot be had is told in its place."""
        plan = self._existing(name)
        files = (compose_plans.FILE, compose_plans.COMPOSE_FILE, ".env", "journal.jsonl")
        kept = {f"deployment/{file}": logs.tail(plan.directory / file) for file in files}
        try:
            containers = await self._docker.containers(plan.project)
            records = await self._docker.inspect("container", *(one.id for one in containers))
            texts = await asyncio.gather(*(self._log(one.name, LOG_LINES) for one in containers))
            kept["docker/version.json"] = (await self._docker.run("version", "--format", "{{json .}}")).encode()
            kept["docker/events.txt"] = await self._recent_events(plan.project)
        except DockerRefused as refused:
            return {**kept, "docker/refused.txt": f"{refused}\n{refused.output}\n".encode()}
        by_service = {plan.service_of(member.name): member.name for member in plan.topology.members}
        for container, record, text in zip(containers, records, texts, strict=False):
            member = by_service.get(container.service, container.service)
            kept[f"logs/{member}.log"] = text[-logs.TAIL_BYTES :]
            kept[f"docker/{member}.json"] = json.dumps(record, indent=1).encode()
        return {name: content for name, content in kept.items() if content}

    async def _recent_events(self, project: str) -> bytes:
        told = []
        async with contextlib.aclosing(
            self._docker.events(project, "--since", "1h", "--until", f"{time.time():.3f}")
        ) as events:
            async for event in events:
                more = f" code {event.exit_code}" if event.exit_code is not None else f" {event.signal}".rstrip()
                told.append(f"{event.at:.3f} {event.service} {event.action}{more}\n")
        return "".join(told).encode()

    async def _log(self, container: str, lines: int, ended_at: float | None = None) -> bytes:
        """The end of a container's log. Its two streams come as they were written."""
        which = ["--tail", str(lines)]
        if ended_at is not None:  # a tail is counted from the end of the whole log
            which = ["--since", f"{ended_at - RUN_LOG_S:.3f}", "--until", f"{ended_at + RUN_LOG_LATE_S:.3f}"]
        async with contextlib.aclosing(self._docker.stream("logs", *which, container)) as stream:
            return "\n".join([line async for line in stream]).encode()

    @asynccontextmanager
    async def reach(self, deployment: Deployment) -> AsyncIterator[Reach]:
        """By the containers' addresses where they answer from here, else through a relay in the network."""
        decided = os.environ.get("DRILLYARD_REACH") or None
        if decided not in (None, *WAYS):
            raise Misuse(f"DRILLYARD_REACH={decided!r} is no way to reach a container", f"use {' or '.join(WAYS)}")
        async with reach(self._docker, deployment, decided) as way:
            yield way

    # --- act on a member ---------------------------------------------------------------------------------------------

    async def start_member(self, name: str, member: str) -> None:
        plan = self._existing(name)
        container = await self._member(plan, member)
        if container is not None and container.is_running:
            raise WrongState(f"{member} runs already", "see `drillyard status`")
        await self._start_container(plan, member)

    async def stop_member(self, name: str, member: str) -> Exit:
        return await self._end(name, member, "stop")

    async def kill_member(self, name: str, member: str) -> Exit:
        return await self._end(name, member, "kill")

    async def restart_member(self, name: str, member: str) -> None:
        plan = self._existing(name)
        container = await self._member(plan, member)
        if container is not None and container.is_running:
            await self._end(name, member, "restart")
        await self._start_container(plan, member)

    async def pause_member(self, name: str, member: str) -> None:
        container = await self._running(self._existing(name), member)
        if container.status == "paused":
            raise WrongState(f"{member} is paused already", "see `drillyard status`")
        await self._docker.run("pause", container.id)

    async def resume_member(self, name: str, member: str) -> None:
        container = await self._running(self._existing(name), member)
        if container.status != "paused":
            raise WrongState(f"{member} is not paused", "see `drillyard status`")
        await self._docker.run("unpause", container.id)

    async def _end(self, name: str, member: str, by: str) -> Exit:
        """Write down that this run's end is asked for, end it, and tell how it ended."""
        plan = self._existing(name)
        container = await self._running(plan, member)
        self._write(plan, STOPPING, member, by=by, run=container.run)
        if by == "kill":
            await self._docker.run("kill", container.id)
        else:
            await self._docker.run("stop", container.id, timeout_s=STOP_S)

        async def look() -> Container | None:
            found = await self._container(plan, member)
            return found if found is not None and not found.is_running else None

        ended = await until(look, Deadline.after(Clock(), STOP_S))
        if ended is None:
            raise DockerRefused(f"{member} does not end", "see `docker ps` and the daemon's log")
        how = _exit_of(ended, Book.read(plan.directory), None)
        assert how is not None
        return how

    async def _start_container(self, plan: ComposePlan, member: str) -> None:
        container = await self._container(plan, member)
        if container is None:
            raise WrongState(f"{member} has no container", f"`drillyard up --name {plan.name}` makes it")
        if container.status == "restarting":
            return  # its policy is at it
        self._write(plan, STARTED, member, restarts=container.restarts)
        await self._docker.run("start", container.id, timeout_s=CREATE_S)

    async def _running(self, plan: ComposePlan, member: str) -> Container:
        container = await self._member(plan, member)
        if container is None or not container.is_running:
            raise WrongState(f"{member} does not run", "see `drillyard status`")
        return container

    async def _member(self, plan: ComposePlan, member: str) -> Container | None:
        """The member's container; refuses a member that there is not, and a deployment that is down."""
        deployment = await self.deployment(plan.name)
        deployment.member(member)
        if not deployment.is_up:
            raise WrongState(f"deployment {plan.name!r} is down", "bring it up first (`drillyard up`)")
        return await self._container(plan, member)

    async def _container(self, plan: ComposePlan, member: str) -> Container | None:
        service = plan.service_of(member)
        return next((one for one in await self._docker.containers(plan.project) if one.service == service), None)

    # --- down --------------------------------------------------------------------------------------------------------

    async def stop(self, name: str = DEFAULT_NAME, *, delete_data: bool = False) -> StopReport:
        """Stop stores, then PD, remove containers and network, and prove that nothing is left. Volumes stay unless
        told otherwise. Works on a deployment that is down, and on one whose plan is damaged."""
        directory = self.home.directory(name)
        if not (directory / compose_plans.FILE).exists():
            raise NoSuchDeployment(name, self.home.names())
        with keeper_link.command_lock(directory, "stop"):
            plan = None
            with contextlib.suppress(PlanUnreadable):
                plan = compose_plans.load(directory)
            project = plan.project if plan else project_of(name)
            before = await self._docker.containers(project)
            ended = await self._stop_containers(directory, plan, before)
            await self._docker.run("compose", "-p", project, "down", "--remove-orphans", timeout_s=STOP_S)
            await self._remove_relays(name)
            volumes = await self._docker.labelled("volume", project)
            if delete_data and volumes:
                await self._docker.run("volume", "rm", *volumes)
            report = await self._prove(directory, project, plan, before)
            ran = {one.service for one in before if one.is_running}
            killed = [one for one in ended if one.exit_code == KILLED_CODE and not one.is_oom]
            forced = tuple(one.service for one in killed if one.service in ran)
            report = replace(report, stopped=tuple(sorted(ran)), killed=forced)
            is_forgotten = plan is not None and plan.adopted  # it can be adopted again, and not be started by us
            if report.is_clean and (delete_data or is_forgotten):
                removed = await asyncio.to_thread(remove_data, directory, report)
                return removed if delete_data else replace(report, left_paths=removed.left_paths)
            return report

    async def _stop_containers(
        self, directory: Path, plan: ComposePlan | None, before: Iterable[Container]
    ) -> tuple[Container, ...]:
        """Ask every container to end, stores before PD, and return how they ended."""
        running = [one for one in before if one.is_running or one.status == "restarting"]
        book = journal.Journal(directory / "journal.jsonl")
        by_service = {plan.service_of(m.name): m for m in plan.topology.members} if plan else {}
        for one in running:
            member = by_service.get(one.service)
            book.write(STOPPING, member.name if member else one.service, by="down", run=one.run)
        book.close()
        ranks = ({Role.TIKV}, {Role.PD}) if by_service else (set(Role),)
        for roles in ranks:
            chosen = [one for one in running if (m := by_service.get(one.service)) is None or m.role in roles]
            await asyncio.gather(*(self._docker.run("stop", one.id, timeout_s=STOP_S) for one in chosen))
        project = plan.project if plan else project_of(directory.name)
        return await self._docker.containers(project)

    async def _remove_relays(self, name: str) -> None:
        """A relay ends with its caller; one whose end was cut short is removed here."""
        left = await self._docker.run("ps", "-a", "-q", "--filter", f"label={RELAY_LABEL}={name}")
        if left.split():
            await self._docker.run("rm", "-f", *left.split())

    async def _prove(
        self, directory: Path, project: str, plan: ComposePlan | None, before: Iterable[Container]
    ) -> StopReport:
        containers, networks, volumes = await asyncio.gather(
            self._docker.containers(project),
            self._docker.labelled("network", project),
            self._docker.labelled("volume", project),
        )
        published = [port for _, port in plan.published.items()] if plan else []
        kept = [path for part in ("evidence",) if (path := directory / part).is_dir()]
        return StopReport(
            name=directory.name,
            stopped=(),
            killed=(),
            left_ports={port: await self._owner_of(port) for port in published if not ports.is_free(LOOPBACK, port)},
            left_objects=(*(f"container {one.name}" for one in containers), *(f"network {one}" for one in networks)),
            kept=(*kept, *(f"volume {one}" for one in volumes)),
            checked_ports=tuple(published),
            checked_containers=tuple(one.name for one in before),
        )

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _existing(self, name: str) -> ComposePlan:
        plan = self.remembered(name)
        if plan is None:
            raise NoSuchDeployment(name, self.home.names())
        return plan

    def _write(self, plan: ComposePlan, what: str, member: str = "", **more: object) -> None:
        book = journal.Journal(plan.directory / "journal.jsonl")
        book.write(what, member, **more)
        book.close()

    async def _compose(self, plan: ComposePlan, *arguments: str, timeout_s: float) -> str:
        files = ("-p", plan.project, "-f", str(plan.file), "--project-directory", str(plan.directory))
        return await self._docker.run("compose", *files, *arguments, timeout_s=timeout_s, environment=plan.environment)


@dataclass(frozen=True, slots=True)
class Book:
    """What the journal says since the latest start of the whole."""

    up_at: float | None
    asked: Mapping[str, str]  # a run whose end was asked for -> by what
    starts: Mapping[str, int]  # of each member, by us
    restarts: Mapping[str, int]  # of each member, by its policy before our latest start of it

    @classmethod
    def read(cls, directory: Path) -> Book:
        up_at: float | None = None
        asked: dict[str, str] = {}
        starts: dict[str, int] = {}
        restarts: dict[str, int] = {}
        for record in journal.read(directory / "journal.jsonl"):
            member = str(record.get("member", ""))
            if record["what"] == UP:
                up_at, starts, restarts = float(record["at"]), {}, {}
            elif record["what"] == STARTED:
                starts[member] = starts.get(member, 0) + 1
                restarts[member] = restarts.get(member, 0) + int(record.get("restarts", 0))
            elif record["what"] == STOPPING:
                asked[str(record["run"])] = str(record["by"])
        return cls(up_at, asked, starts, restarts)


@dataclass(frozen=True, slots=True)
class RecentEnd:
    """How a container ended that runs again."""

    code: int
    is_oom: bool


class _Watcher:
    """Turns the daemon's events into ours. It remembers each member's run, for an event does not tell it."""

    def __init__(self, plan: ComposePlan, containers: Mapping[str, Container]) -> None:
        self._plan = plan
        self._containers = containers
        self._members = {plan.service_of(member.name): member.name for member in plan.topology.members}
        self._runs = {service: one.run for service, one in containers.items()}
        self._signals: dict[str, str] = {}  # service -> the signal that it was last sent through Docker
        self._oom: set[str] = set()

    def replays(self) -> Iterable[MemberEvent]:
        book = Book.read(self._plan.directory)
        for service, one in self._containers.items():
            member = self._members.get(service)
            if member is None:
                continue
            how = None if one.is_running else _exit_of(one, book, None)
            if how is not None:
                yield MemberEvent(self._plan.name, member, EventKind.EXITED, how.at, None, how, is_replay=True)
            elif one.is_running:
                kind = EventKind.PAUSED if one.status == "paused" else EventKind.STARTED
                yield MemberEvent(self._plan.name, member, kind, one.started_at or 0.0, one.pid, is_replay=True)

    def see(self, event: DockerEvent, now: Container | None) -> MemberEvent | None:
        member = self._members.get(event.service)
        if member is None:
            return None
        kinds = {"pause": EventKind.PAUSED, "unpause": EventKind.RESUMED, "start": EventKind.STARTED}
        if event.action == "oom":
            self._oom.add(event.service)
        elif event.action == "kill" and event.signal in ENDING_SIGNALS:
            self._signals[event.service] = event.signal
        elif event.action == "die":
            how = self._exit(event, now)
            return MemberEvent(self._plan.name, member, EventKind.EXITED, event.at, None, how)
        elif event.action in kinds:
            if event.action == "start" and now is not None:
                self._runs[event.service] = now.run
                self._signals.pop(event.service, None)
            return MemberEvent(self._plan.name, member, kinds[event.action], event.at, now.pid if now else None)
        return None

    def _exit(self, event: DockerEvent, now: Container | None) -> Exit:
        service = event.service
        by = Book.read(self._plan.directory).asked.get(self._runs.get(service, ""), "")
        is_oom = event.exit_code == KILLED_CODE and (service in self._oom or (now is not None and now.is_oom))
        self._oom.discard(service)
        note = by or (f"signal {self._signals[service]} through Docker" if self._signals.get(service) else "")
        return _exit(event.exit_code or 0, bool(by), event.at, note, is_oom=is_oom)


def project_of(name: str) -> str:
    return f"drillyard-{name}"


# --- the daemon's records as ours ------------------------------------------------------------------------------------


def _deployment(
    plan: ComposePlan, containers: Mapping[str, Container], book: Book, ends: Mapping[str, RecentEnd]
) -> Deployment:
    topology = plan.topology
    members = []
    hosts: dict[str, str] = {}
    networks: set[str] = set()
    for member in topology.members:
        container = containers.get(plan.service_of(member.name))
        members.append(_member(plan, member, container, book, ends))
        if container is not None and container.is_running and container.hosts:
            network, hosts[member.name] = next(iter(container.hosts.items()))
            networks.add(network)
    published = {
        topology.member(name).address(purpose): f"{LOOPBACK}:{port}" for (name, purpose), port in plan.published.items()
    }
    started = [member.started_at for member in members if member.started_at is not None]
    return Deployment(
        name=plan.name,
        runtime="compose",
        abilities=ABILITIES,
        directory=plan.directory,
        topology=topology,
        members=tuple(members),
        keeper_pid=None,
        started_at=book.up_at if book.up_at is not None else min(started, default=None),
        network=Network(next(iter(sorted(networks)), f"{plan.project}_default"), hosts, published),
    )


def _member(
    plan: ComposePlan, member: Member, container: Container | None, book: Book, ends: Mapping[str, RecentEnd]
) -> DeployedMember:
    restarts = book.restarts.get(member.name, 0) + (container.restarts if container else 0)
    was_running = 1 if plan.adopted and book.up_at is None else 0  # somebody else's start
    starts = was_running + book.starts.get(member.name, 0) + restarts
    return DeployedMember(
        name=member.name,
        role=member.role,
        kind=container.kind if container else "real",
        pid=container.pid if container and container.is_running else None,
        running=container is not None and container.is_running,
        paused=container is not None and container.status == "paused",
        exit=_exit_of(container, book, ends.get(container.id)) if container else None,
        starts=starts,
        started_at=container.started_at if container else None,
        addresses=member.addresses,
        argv=container.command if container else (),
        container=MemberContainer(
            container.name, container.id[:12], container.image, container.health, container.probe_output
        )
        if container
        else None,
        restarts=restarts,
    )


def _exit_of(container: Container, book: Book, recent: RecentEnd | None) -> Exit | None:
    """How the latest run that is over ended; None when there was none since the latest start of the whole."""
    if book.up_at is not None and container.finished_at is not None and container.finished_at < book.up_at:
        return None
    if container.is_running:
        if not container.restarts or container.finished_at is None:
            return None
        note = "restarted by its policy" + ("" if container.restarts == 1 else f" {container.restarts} times")
        if recent is None:
            return Exit(None, None, False, container.finished_at, note)
        return _exit(recent.code, False, container.finished_at, note, is_oom=recent.is_oom)
    if container.finished_at is None:
        if not container.error:
            return None
        return Exit(container.exit_code, None, False, book.up_at or 0.0, f"could not be started: {container.error}")
    by = book.asked.get(container.run, "")
    note = by
    if by in ("stop", "restart", "down") and container.exit_code == KILLED_CODE:
        note = f"{by}, killed after its grace"
    elif container.status == "restarting":
        note = "its policy will start it again"
    elif container.error:
        note = container.error
    return _exit(container.exit_code, bool(by), container.finished_at, note, is_oom=container.is_oom)


def _exit(code: int, asked: bool, at: float, note: str, *, is_oom: bool) -> Exit:
    """Docker tells a signal as 128 + its number."""
    is_signal = 128 < code <= 128 + 64
    return Exit(None if is_signal else code, code - 128 if is_signal else None, asked, at, note, is_oom)


# --- plans -----------------------------------------------------------------------------------------------------------


def _variables(before: ComposePlan | None, images: Images) -> dict[str, str]:
    """The file's variables: as asked for, as set in this environment, as remembered."""
    remembered = dict(before.variables) if before else {}
    wanted = {name: value for name in compose_file.DEFAULTS if (value := os.environ.get(name))} | images.variables
    image = compose_file.TIKV_IMAGE
    if wanted.get(image, remembered.get(image)) != remembered.get(image):
        remembered.pop(compose_file.TIKV_OPEN_FILES, None)  # another server may not be content with so many
    return remembered | wanted


def _with_asked_ports(asked: Topology) -> Topology:
    """The topology with the ports that the environment asks for, as plain `docker compose` would take them."""
    members = {member.name: member for member in asked.members}
    for (role, purpose), variable in compose_file.PORT_VARIABLES.items():
        text = os.environ.get(variable)
        first = next(iter(asked.of_role(role)), None)
        if not text or first is None:
            continue
        if not text.isdigit():
            raise Misuse(f"{variable}={text!r} is no port", "give a number from 1 to 65535")
        members[first.name] = replace(members[first.name], ports={**members[first.name].ports, purpose: int(text)})
    return replace(asked, members=tuple(members.values()))


def _choose_ports(asked: Topology, reserved: Mapping[int, str], kept: Published) -> Published:
    """A port of this machine for everything that is published: as asked for, as before, else a free one."""
    chosen: dict[tuple[str, Purpose], int] = {}
    used = set(reserved)
    for key, port in compose_file.published(asked).items():
        if port is not None:
            if port in reserved:
                raise PortTaken(port, key[0], reserved[port])
            chosen[key] = port
            used.add(port)
    for key, port in compose_file.published(asked).items():
        if port is not None:
            continue
        before = kept.get(key)
        if before is not None and before not in used:
            chosen[key] = before
        else:
            wanted, step = PREFERRED_PORTS[asked.member(key[0]).role, key[1]]
            while wanted <= ports.HIGHEST and (wanted in used or not ports.is_free(LOOPBACK, wanted)):
                wanted += step
            if wanted > ports.HIGHEST:
                raise StartRefused(f"no free port is left for {key[0]}", "remove a deployment")
            chosen[key] = wanted
        used.add(chosen[key])
    return chosen


def _members_of(
    containers: Iterable[Container],
) -> tuple[tuple[Member, ...], dict[str, str], dict[tuple[str, Purpose], int]]:
    """The PD and TiKV among the containers, by the flags that they run with: members, their services, their ports."""
    members: list[Member] = []
    services: dict[str, str] = {}
    published: dict[tuple[str, Purpose], int] = {}
    for container in sorted(containers, key=lambda one: one.service):
        flags = _flags(container.command)
        role = Role.PD if "initial-cluster" in flags or "client-urls" in flags else Role.TIKV
        if role is Role.TIKV and not ("pd" in flags or "pd-endpoints" in flags):
            continue
        name = flags.get("name", container.service) if role is Role.PD else container.service
        names = {
            Purpose.CLIENT: "advertise-client-urls" if role is Role.PD else "advertise-addr",
            Purpose.PEER: "advertise-peer-urls",
            Purpose.STATUS: "advertise-status-addr",
        }
        addresses = {
            purpose: _address(flags.get(names[purpose], ""), container.service, port)
            for (of, purpose), port in compose_file.PORTS.items()
            if of is role
        }
        host = addresses[Purpose.CLIENT][0]
        taken = {purpose: port for purpose, (_, port) in addresses.items()}
        members.append(Member(name, role, host, taken))
        if name != container.service:
            services[name] = container.service
        published |= {(name, p): container.published[port] for p, port in taken.items() if port in container.published}
    ordered = sorted(members, key=lambda member: list(Role).index(member.role))
    return tuple(ordered), services, published


def _flags(command: Iterable[str]) -> dict[str, str]:
    """`--flag=value` and `--flag value`, by the flag's name."""
    found: dict[str, str] = {}
    rest = list(command)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("-"):
            continue
        if not equals and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
        found[name.lstrip("-")] = value
    return found


def _address(text: str, host: str, port: int) -> tuple[str, int]:
    """Host and port of an advertised URL or address; where none was given, the service's name and the usual port."""
    last = text.split(",")[0].rpartition("//")[2].rstrip("/")
    name, colon, number = last.rpartition(":")
    return (name, int(number)) if colon and number.isdigit() else (host, port)


# --- words -----------------------------------------------------------------------------------------------------------


def _memory_words(plan: ComposePlan) -> str:
    parts = []
    for role in Role:
        count = len(plan.topology.of_role(role))
        if count:
            parts.append(f"{count} {role.title} with {plan.environment[compose_file.MEMORY_OF[role]]} each")
    share = f"{compose_file.CACHE_SHARE:.0%}"
    return f"memory limits: {', '.join(parts)} (a TiKV's block cache: {share} of it)"


def _image_missing(image: str, refused: DockerRefused) -> DockerRefused:
    text = refused.output
    local = image.startswith("drillyard/")
    mend = "scripts/build-images makes it" if local else "see that the name is right and its registry can be reached"
    if "manifest unknown" in text or "not found" in text or "does not exist" in text:
        mend = (
            "scripts/build-images makes it"
            if local
            else "name an image and a tag that exist, such as pingcap/tikv:v8.5.5"
        )
    last = text.strip().splitlines()[-1].strip() if text.strip() else refused.wrong
    return DockerRefused(f"image {image} is not here and cannot be pulled: {last}", mend, text)
