"""The compose runtime: members are containers of one Compose project, and the Docker daemon is their keeper.

Rules: what runs is what the daemon says, asked anew each time; who wanted an end is read from the deployment's journal
(compose_exits.py). A start brings up PD and leaves the stores created and not started, until `start_rest`: a TiKV that
asks for timestamps during PD's election does not survive it. What makes or removes containers is carried to its end,
also when the caller is interrupted. `stop` proves what it claims. A project belongs to the file that it was made from:
one of another home is refused; one that others started can be adopted, and its file stays theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from drillyard.runtimes import compose_exits, compose_file, compose_plans, journal, keeper_link, logs, ports
from drillyard.runtimes.abilities import (
    DEFAULT_NAME,
    Ability,
    DeployedMember,
    Deployment,
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
    StopReport,
    WrongState,
)
from drillyard.runtimes.compose_exits import Book, RecentEnd, Watcher
from drillyard.runtimes.compose_plans import ComposePlan, Images
from drillyard.runtimes.docker import KILLED_CODE, PROJECT, Container, Docker, DockerRefused, kind_of
from drillyard.runtimes.home import Home, remove_data
from drillyard.runtimes.reach import RELAY_LABEL, WAYS, reach
from drillyard.topology import LOOPBACK, Member, Role, Topology
from drillyard.waiting import Clock, Deadline, to_its_end, until

ABILITIES = frozenset(Ability)
PULL_S = 1800.0
CREATE_S = 120.0
STOP_S = 20.0 + sum(compose_file.GRACE_S.values())
LOG_LINES = 5000  # of each member, in a bundle
RUN_LOG_S, RUN_LOG_LATE_S = 120.0, 0.05  # how far back the last words of a run go; how late the daemon stamps them
FOLLOW_S, FOLLOW_POLL_S = 3600.0, 0.3
EMULATED_OPEN_FILES = "20000"  # what any daemon may give
CONFIGS_SINCE = (2, 23, 1)  # of Compose: settings written into the file
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
        usual = before.asked if before else compose_file.default_topology()
        asked = compose_plans.with_asked_ports(topology or usual)
        variables = compose_plans.variables_of(before, images or Images())
        if before is not None and (before.asked, dict(before.variables)) == (asked, variables):
            return before
        compose_file.in_containers(asked)  # refuses what a container cannot have
        await (self._check_change(before, asked) if before is not None else self._check_unused(name))
        return await asyncio.to_thread(self._make_plan, name, asked, variables)

    async def _check_unused(self, name: str) -> None:
        """A new deployment does not come upon the containers or the data of another home's, or of one forgotten."""
        project = project_of(name)
        left = [f"container {one}" for one in await self._docker.names_of(f"{PROJECT}={project}")]
        left += [f"volume {one}" for one in await self._docker.labelled("volume", project)]
        if left:
            mend = "use another name (--name), or remove what it names if nobody needs it"
            raise PlanDiffers(f"project {project} is there already, and not from this home: {', '.join(left)}", mend)

    async def _check_change(self, before: ComposePlan, asked: Topology) -> None:
        if any(container.is_running for container in await self._containers(before)):
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
            kept = before.published if before else {}
            published = compose_plans.choose_ports(asked, self.home.reserved(name), kept)
            plan = ComposePlan(name, directory, project_of(name), asked, published, variables)
            compose_plans.save(plan)
            return plan

    async def start(self, plan: ComposePlan, tell: Tell = lambda _: None) -> Deployment:
        """Start PD, and leave the stores for `start_rest`. Of a deployment that runs, only a PD that a start which was
        cut short has left unstarted is started.

        `tell` hears what takes long or should be known: images that are pulled, emulation, the plan of memory. Until
        anything is made, an interruption ends it at once.
        """
        with keeper_link.command_lock(plan.directory, "start"):
            server, version = await asyncio.gather(self._docker.server(), self._docker.compose_version())
            before = await self._containers(plan)
            if any(one.is_running for one in before):
                await to_its_end(self._start_left_over(plan, before))
            elif plan.adopted:
                await to_its_end(self._start_adopted(plan, before))
            else:
                ready, kinds = await self._prepare(plan, server, version, tell)
                await to_its_end(self._create(ready, before, kinds))
        return await self.deployment(plan.name)

    async def _prepare(
        self, plan: ComposePlan, server: Mapping[str, Any], version: tuple[int, ...], tell: Tell
    ) -> tuple[ComposePlan, dict[str, str]]:
        """Everything that may refuse the start before anything is made; the plan as it will run, and what kind of
        server each member is."""
        has_settings = any(plan.topology.overrides_of(member) for member in plan.topology.members)
        if has_settings and version and version < CONFIGS_SINCE:
            told, least = (".".join(str(part) for part in one) for one in (version, CONFIGS_SINCE))
            mend = f"install {least} or newer, or use `--profile upstream`, three stores and no settings of your own"
            raise DockerRefused(f"`docker compose` {told} cannot write settings into a container", mend)
        kinds = await self._have_images(plan, str(server.get("Arch", "")), tell)
        if kinds[plan.image_of(Role.TIKV)] == "emulated" and compose_file.TIKV_OPEN_FILES not in plan.variables:
            plan = replace(plan, variables={**plan.variables, compose_file.TIKV_OPEN_FILES: EMULATED_OPEN_FILES})
        await self._check_ports(plan)
        tell(_memory_words(plan))
        return plan, {member.name: kinds[plan.image_of(member.role)] for member in plan.topology.members}

    async def _create(self, plan: ComposePlan, before: Iterable[Container], kinds: Mapping[str, str]) -> None:
        plan.write_file()
        compose_plans.save(plan)
        self._write(plan, compose_exits.UP, ends=self._ends(plan, before), kinds=dict(kinds))
        await self._compose(plan, "create", "--remove-orphans")
        await self._start_services(plan, [member.name for member in plan.topology.of_role(Role.PD)], "start")

    async def _start_left_over(self, plan: ComposePlan, before: Iterable[Container]) -> None:
        created = {one.service for one in before if one.status == "created"}
        left = [pd.name for pd in plan.topology.of_role(Role.PD) if plan.service_of(pd.name) in created]
        if left and not plan.adopted:
            await self._start_services(plan, left, "start")

    async def _start_adopted(self, plan: ComposePlan, before: tuple[Container, ...]) -> None:
        if not before:
            mend = "start it as it was started before (`docker compose up`)"
            raise WrongState(f"the containers of project {plan.project!r} are gone", mend)
        self._write(plan, compose_exits.UP, ends=self._ends(plan, before))
        pds = [member.name for member in plan.topology.of_role(Role.PD)]
        await asyncio.gather(*(self._start_container(plan, name) for name in pds))

    async def start_rest(self, name: str) -> None:
        """Start every member that was never started since the whole was."""
        plan = self._existing(name)
        deployment = await self.deployment(name)
        rest = [member.name for member in deployment.members if member.is_held_back]
        if plan.adopted:
            await asyncio.gather(*(self._start_container(plan, member) for member in rest))
        elif rest:
            await self._start_services(plan, rest, "up", "-d", "--no-deps", "--no-recreate")

    async def _start_services(self, plan: ComposePlan, members: Iterable[str], *command: str) -> None:
        """Start members through Compose, each start written down first."""
        chosen = list(members)
        containers = {one.service: one for one in await self._containers(plan)}
        for member in chosen:
            self._write_start(plan, member, containers.get(plan.service_of(member)))
        await self._compose(plan, *command, *chosen)

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
        own = next((one for one in self.names() if self._project_of(one) == project), None)
        if own is not None:
            raise Misuse(f"project {project!r} is deployment {own!r} already", f"use `--name {own}`")
        services_seen = [one.service for one in containers]
        if scaled := sorted({service for service in services_seen if services_seen.count(service) > 1}):
            raise Misuse(f"service {scaled[0]!r} has several containers", "a member is one container: scale it to one")
        members, services, published = compose_plans.members_of(containers)
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
        kinds = {member.name: one.kind for member, one in _by_member(plan, containers)}
        self._write(plan, compose_exits.ADOPTED, ends=self._ends(plan, containers), kinds=kinds)
        return await self.deployment(name)

    # --- look --------------------------------------------------------------------------------------------------------

    async def deployment(self, name: str = DEFAULT_NAME) -> Deployment:
        """What is there now, by the daemon's word."""
        plan = self._existing(name)
        containers = await self._containers(plan)
        book = Book.read(plan.directory)
        ends = await self._recent_ends(plan, containers, book)
        return _deployment(plan, {one.service: one for one in containers}, book, ends)

    async def list(self) -> tuple[Deployment, ...]:
        """Every deployment whose plan can be read; `names` also tells the others."""
        found = []
        for name in self.names():
            with contextlib.suppress(PlanUnreadable, PlanDiffers, NoSuchDeployment):
                found.append(await self.deployment(name))
        return tuple(found)

    async def _recent_ends(
        self, plan: ComposePlan, containers: Iterable[Container], book: Book
    ) -> Mapping[str, RecentEnd]:
        """What the daemon still remembers of ends that a container's record does not tell well."""
        found = _by_member(plan, containers)
        asked = [one for member, one in found if compose_exits.is_worth_asking(member.name, one, book)]
        if not asked:
            return {}
        since = min(one.finished_at or 0.0 for one in asked) - STOP_S
        return compose_exits.recent_ends(await self._docker.past_events(plan.project, f"{since:.3f}"))

    async def watch(self, name: str = DEFAULT_NAME) -> AsyncGenerator[MemberEvent, None]:
        """Every event from now on, pushed by the daemon; first a replay of how each member is."""
        plan = self._existing(name)
        since = await self._docker.time()
        members = {plan.service_of(member.name): member.name for member in plan.topology.members}
        watcher = Watcher(plan.name, plan.directory, members, await self._containers(plan))
        for event in watcher.replays():
            yield event
        async with contextlib.aclosing(self._docker.events(plan.project, since)) as events:
            async for happened in events:
                now = None
                if happened.action in ("start", "die"):
                    found = await self._containers(plan)
                    now = next((one for one in found if one.service == happened.service), None)
                told = watcher.see(happened, now)
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

        try:
            since = await self._docker.time()
            while True:
                container = await until(look, Deadline.after(Clock(), FOLLOW_S), poll_s=FOLLOW_POLL_S)
                if container is None:
                    continue
                stream = self._docker.stream("logs", "--follow", "--since", since, container.name)
                async with contextlib.aclosing(stream):
                    async for line in stream:
                        await lines.put((member, line))
                since = await self._docker.time()
        except DockerRefused as refused:
            await lines.put(refused)

    async def keepsakes(self, name: str) -> dict[str, bytes]:
        """Logs, the daemon's records, recent events, the project's files. What cannot be had is told in its place."""
        plan = self._existing(name)
        files = (compose_plans.FILE, compose_plans.COMPOSE_FILE, ".env", compose_exits.JOURNAL)
        kept = {f"deployment/{file}": logs.tail(plan.directory / file) for file in files}
        try:
            containers = await self._containers(plan)
            records = {one["Id"]: one for one in await self._docker.inspect("container", *(c.id for c in containers))}
            kept["docker/version.json"] = (await self._docker.run("version", "--format", "{{json .}}")).encode()
            kept["docker/events.txt"] = await self._events_text(plan.project)
        except DockerRefused as refused:
            return {**kept, "docker/refused.txt": f"{refused}\n{refused.output}\n".encode()}
        by_service = {plan.service_of(member.name): member.name for member in plan.topology.members}
        texts = await asyncio.gather(*(self._log(c.name, LOG_LINES) for c in containers), return_exceptions=True)
        for container, text in zip(containers, texts, strict=True):
            member = by_service.get(container.service, container.service)
            content = text if isinstance(text, bytes) else f"not to be had: {text}\n".encode()
            is_whole = content.count(b"\n") + 1 < LOG_LINES
            told = b"" if is_whole else b"[drillyard: the last %d lines; the daemon may have more]\n" % LOG_LINES
            kept[f"logs/{member}.log"] = told + logs.shorten(content, 0, logs.TAIL_BYTES)
            record = records.get(container.id, {"not to be had": "the container vanished meanwhile"})
            kept[f"docker/{member}.json"] = json.dumps(record, indent=1).encode()
        return {name: content for name, content in kept.items() if content}

    async def _events_text(self, project: str) -> bytes:
        told = []
        for event in await self._docker.past_events(project, "1h"):
            more = f" code {event.exit_code}" if event.exit_code is not None else f" {event.signal}".rstrip()
            told.append(f"{event.at:.3f} {event.service} {event.action}{more}\n")
        return "".join(told).encode()

    async def _log(self, container: str, lines: int, ended_at: float | None = None) -> bytes:
        """The end of a container's log. Its two streams come as they were written."""
        which = ["--tail", str(lines)]
        if ended_at is not None:  # a tail is counted from the end of the whole log
            which = ["--since", f"{ended_at - RUN_LOG_S:.3f}", "--until", f"{ended_at + RUN_LOG_LATE_S:.3f}"]
        return "\n".join(await self._docker.lines("logs", *which, container)).encode()

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
        if container is not None and container.status == "restarting":
            raise WrongState(
                f"{member} ends again and again, and its policy starts it each time",
                f"`drillyard logs {member}` tells why; `drillyard stop {member}` ends it",
            )
        await self._start_container(plan, member)

    async def stop_member(self, name: str, member: str) -> Exit:
        return await self._end(name, member, "stop")

    async def kill_member(self, name: str, member: str) -> Exit:
        return await self._end(name, member, "kill")

    async def restart_member(self, name: str, member: str) -> None:
        plan = self._existing(name)
        container = await self._member(plan, member)
        if container is not None and (container.is_running or container.status == "restarting"):
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
        if container.is_running:  # one between two runs has ended unasked, and stays so
            self._write(plan, compose_exits.STOPPING, member, by=by, run=container.run)
        if by == "kill" and container.is_running:
            await self._docker.run("kill", container.id)
        else:
            await self._docker.run("stop", container.id, timeout_s=STOP_S)

        async def look() -> Container | None:
            found = await self._container(plan, member)
            return found if found is not None and found.status in ("exited", "dead") else None

        ended = await until(look, Deadline.after(Clock(), STOP_S))
        how = compose_exits.exit_of(member, ended, Book.read(plan.directory)) if ended is not None else None
        if how is None:
            raise DockerRefused(f"{member} does not end", "see `docker ps -a` and the daemon's log")
        return how

    async def _start_container(self, plan: ComposePlan, member: str) -> None:
        container = await self._container(plan, member)
        if container is None:
            raise WrongState(
                f"{member} has no container", f"`drillyard down --name {plan.name}`, then bring it up anew"
            )
        self._write_start(plan, member, container)
        await self._docker.run("start", container.id, timeout_s=CREATE_S)

    async def _running(self, plan: ComposePlan, member: str) -> Container:
        container = await self._member(plan, member)
        if container is None or not (container.is_running or container.status == "restarting"):
            raise WrongState(f"{member} does not run", "see `drillyard status`")
        return container

    async def _member(self, plan: ComposePlan, member: str) -> Container | None:
        """The member's container; refuses a member that there is not, and a deployment that is down."""
        deployment = await self.deployment(plan.name)
        deployment.member(member)
        container = await self._container(plan, member)
        if not deployment.is_up and (container is None or container.status != "restarting"):
            raise WrongState(f"deployment {plan.name!r} is down", "bring it up first (`drillyard up`)")
        return container

    async def _container(self, plan: ComposePlan, member: str) -> Container | None:
        service = plan.service_of(member)
        return next((one for one in await self._containers(plan) if one.service == service), None)

    async def _containers(self, plan: ComposePlan) -> tuple[Container, ...]:
        """The containers of the plan's project. Raises PlanDiffers when they were made from another file than ours."""
        found = await self._docker.containers(plan.project)
        if not plan.adopted:
            _refuse_strangers(plan.project, plan.file, found)
        return found

    # --- down --------------------------------------------------------------------------------------------------------

    async def stop(self, name: str = DEFAULT_NAME, *, delete_data: bool = False) -> StopReport:
        """Stop stores, then PD, remove containers and network, and prove that nothing is left. Volumes stay unless
        told otherwise. Works on a deployment that is down, and on one whose plan is damaged."""
        directory = self.home.directory(name)
        if not (directory / compose_plans.FILE).exists():
            raise NoSuchDeployment(name, self.home.names())
        with keeper_link.command_lock(directory, "stop"):
            return await to_its_end(self._stop(directory, delete_data=delete_data))

    async def _stop(self, directory: Path, *, delete_data: bool) -> StopReport:
        plan = None
        with contextlib.suppress(PlanUnreadable):
            plan = compose_plans.load(directory)
        project = plan.project if plan else project_of(directory.name)
        before = await self._docker.containers(project)
        if plan is None or not plan.adopted:
            _refuse_strangers(project, directory / compose_plans.COMPOSE_FILE, before)
        await self._stop_containers(directory, plan, before)
        ended = await self._docker.containers(project)
        await self._remove_relays(directory.name)
        volumes = ("--volumes",) if delete_data else ()  # those without a name too
        await self._docker.run("compose", "-p", project, "down", "--remove-orphans", *volumes, timeout_s=STOP_S)
        left = await self._volumes(project, plan)
        if delete_data and left:
            await self._docker.run("volume", "rm", *left)
        book = journal.Journal(directory / compose_exits.JOURNAL)
        book.write(compose_exits.DOWN)
        book.close()
        ran = {one.service for one in before if one.is_running}
        killed = [one for one in ended if one.exit_code == KILLED_CODE and not one.is_oom]
        forced = tuple(one.service for one in killed if one.service in ran)
        report = await self._prove(directory, project, plan, before)
        report = replace(report, stopped=tuple(sorted(ran)), killed=forced)
        is_forgotten = plan is not None and plan.adopted  # it can be adopted again, and not be started by us
        if report.is_clean and (delete_data or is_forgotten):
            removed = await asyncio.to_thread(remove_data, directory, report)
            return removed if delete_data else replace(report, left_paths=removed.left_paths)
        return report

    async def _stop_containers(self, directory: Path, plan: ComposePlan | None, before: Iterable[Container]) -> None:
        """Ask every container to end, stores before PD."""
        by_service = {plan.service_of(m.name): m for m in plan.topology.members} if plan else {}
        book = journal.Journal(directory / compose_exits.JOURNAL)
        for one in before:
            if one.is_running:
                member = by_service.get(one.service)
                book.write(compose_exits.STOPPING, member.name if member else one.service, by="down", run=one.run)
        book.close()
        alive = [one for one in before if one.is_running or one.status == "restarting"]
        stores = [one for one in alive if (m := by_service.get(one.service)) is not None and m.role is Role.TIKV]
        for chosen in (stores, [one for one in alive if one not in stores]):
            stops = (self._stop_one(one) for one in chosen)
            refusals = [one for one in await asyncio.gather(*stops, return_exceptions=True) if one is not None]
            if refusals:
                raise refusals[0]

    async def _stop_one(self, container: Container) -> None:
        try:
            await self._docker.run("stop", container.id, timeout_s=STOP_S)
        except DockerRefused as refused:
            if "no such container" not in refused.output.lower():  # somebody else was quicker
                raise

    async def _remove_relays(self, name: str) -> None:
        """A relay ends with its caller; one whose end was cut short is removed here, before its network."""
        for relay in await self._docker.names_of(f"{RELAY_LABEL}={name}"):
            try:
                await self._docker.run("rm", "-f", relay)
            except DockerRefused as refused:
                if not re.search("no such container|already in progress", refused.output, re.IGNORECASE):
                    raise

    async def _volumes(self, project: str, plan: ComposePlan | None) -> tuple[str, ...]:
        """The volumes of a project: those that Compose made, and those of the file that somebody made before it."""
        found = list(await self._docker.labelled("volume", project))
        if plan is not None and not plan.adopted:
            ours = {f"{project}_{member.name}-data" for member in plan.topology.members}
            found += [one for one in await self._docker.volumes() if one in ours and one not in found]
        return tuple(found)

    async def _prove(
        self, directory: Path, project: str, plan: ComposePlan | None, before: Iterable[Container]
    ) -> StopReport:
        containers, relays, networks, volumes = await asyncio.gather(
            self._docker.names_of(f"{PROJECT}={project}"),
            self._docker.names_of(f"{RELAY_LABEL}={directory.name}"),
            self._docker.labelled("network", project),
            self._volumes(project, plan),
        )
        published = [port for _, port in plan.published.items()] if plan else []
        kept = [path for part in ("evidence",) if (path := directory / part).is_dir()]
        left = (*(f"container {one}" for one in (*containers, *relays)), *(f"network {one}" for one in networks))
        return StopReport(
            name=directory.name,
            stopped=(),
            killed=(),
            left_ports={port: await self._owner_of(port) for port in published if not ports.is_free(LOOPBACK, port)},
            left_objects=left,
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

    def _project_of(self, name: str) -> str:
        """The project of a deployment, also of one whose plan is damaged."""
        with contextlib.suppress(PlanUnreadable):
            if (plan := self.remembered(name)) is not None:
                return plan.project
        return project_of(name)

    def _write(self, plan: ComposePlan, what: str, member: str = "", **more: object) -> None:
        book = journal.Journal(plan.directory / compose_exits.JOURNAL)
        book.write(what, member, **more)
        book.close()

    def _write_start(self, plan: ComposePlan, member: str, container: Container | None) -> None:
        """Write down that we start a member, with what is overwritten by that."""
        restarts, ended = (container.restarts, container.ended_text) if container else (0, "")
        self._write(plan, compose_exits.STARTED, member, restarts=restarts, ended=ended)

    def _ends(self, plan: ComposePlan, containers: Iterable[Container]) -> dict[str, str]:
        """When each member ended last, before a start of the whole: such ends are over and done."""
        return {member.name: one.ended_text for member, one in _by_member(plan, containers) if one.ended_text}

    async def _compose(self, plan: ComposePlan, *arguments: str) -> str:
        files = ("-p", plan.project, "-f", str(plan.file), "--project-directory", str(plan.directory))
        return await self._docker.run("compose", *files, *arguments, timeout_s=CREATE_S, environment=plan.environment)


def _by_member(plan: ComposePlan, containers: Iterable[Container]) -> list[tuple[Member, Container]]:
    by_service = {one.service: one for one in containers}
    found = ((member, by_service.get(plan.service_of(member.name))) for member in plan.topology.members)
    return [(member, one) for member, one in found if one is not None]


def project_of(name: str) -> str:
    return f"drillyard-{name}"


def _refuse_strangers(project: str, file: Path, containers: Iterable[Container]) -> None:
    """Refuse to touch containers that were made from another Compose file: another home's, or somebody's own."""
    for one in containers:
        if one.config_files and Path(one.config_files).resolve() != file.resolve():
            wrong = f"project {project} runs from {one.config_files}, and is not this home's"
            raise PlanDiffers(wrong, "use another name (--name), or the home that it belongs to (DRILLYARD_HOME)")


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
        if container is None:
            end = compose_exits.removed(member.name, book, is_adopted=plan.adopted)
        else:
            end = compose_exits.exit_of(member.name, container, book, ends.get(container.id))
        members.append(_member(plan, member, container, book, end))
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
    plan: ComposePlan, member: Member, container: Container | None, book: Book, end: Exit | None
) -> DeployedMember:
    restarts = book.restarts.get(member.name, 0) + (container.restarts if container else 0)
    was_running = 1 if plan.adopted and book.up_at is None else 0  # somebody else's start
    starts = was_running + book.starts.get(member.name, 0) + restarts
    told = None
    if container is not None:
        words = (container.image, container.health, container.probe_output)
        told = MemberContainer(container.name, container.id[:12], *words)
    return DeployedMember(
        name=member.name,
        role=member.role,
        kind=container.kind if container else book.kinds.get(member.name, "real"),
        pid=container.pid if container and container.is_running else None,
        running=container is not None and container.is_running,
        paused=container is not None and container.status == "paused",
        exit=end,
        starts=starts,
        started_at=container.started_at if container else None,
        addresses=member.addresses,
        argv=container.command if container else (),
        container=told,
        restarts=restarts,
    )


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
    if image.startswith("drillyard/"):
        mend = "scripts/build-images makes it"
    elif "manifest unknown" in text or "not found" in text or "does not exist" in text:
        mend = "name an image and a tag that exist, such as pingcap/tikv:v8.5.5"
    else:
        mend = "see that its name is right and its registry can be reached; docs/compose.md tells how to do without one"
    last = text.strip().splitlines()[-1].strip() if text.strip() else refused.wrong
    return DockerRefused(f"image {image} is not here and cannot be pulled: {last}", mend, text)
