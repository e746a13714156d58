"""Docker by its command line: asked for JSON, never scraped, and its refusals told with their mends.

Rules: the command line and not the daemon's socket, because it knows the user's context (OrbStack, a rootless daemon,
DOCKER_HOST). Arguments are lists; a call is bounded in time and ended with its caller. What the daemon says is turned
into records here and nowhere else. Nothing is decided here, and nothing is judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from drillyard.runtimes.abilities import StartRefused

ANSWER_S = 30.0  # for a question; what starts, stops or pulls brings its own time
PROJECT, SERVICE = "com.docker.compose.project", "com.docker.compose.service"
ONE_OFF = "com.docker.compose.oneoff"  # "True" for what `docker compose run` made: no member, whatever its service
KIND_LABEL = "drillyard.kind"  # on our own images: what kind of server is inside
KILLED_CODE = 128 + 9  # what a container that SIGKILL ended exits with
_LINE_LIMIT = 16 << 20  # of one event or log line


class DockerRefused(StartRefused):
    """Docker does not do what was asked. `output` is what it said, whole."""

    def __init__(self, wrong: str, mend: str, output: str = "") -> None:
        super().__init__(wrong, mend)
        self.output = output


@dataclass(frozen=True, slots=True)
class Container:
    """One container of a project as the daemon knows it."""

    id: str
    name: str
    service: str
    image: str
    kind: str
    status: str  # created, running, paused, restarting, exited, dead, …
    pid: int | None
    exit_code: int
    is_oom: bool
    error: str  # why it could not be started
    started_at: float | None
    started_text: str  # the same as the daemon writes it: with the id it names one run
    finished_at: float | None
    restarts: int  # by its restart policy, since it was last started by somebody
    command: tuple[str, ...]
    hosts: Mapping[str, str] = field(default_factory=dict)  # network -> address
    health: str = ""
    probe_output: str = ""
    ended_text: str = ""  # when its latest run that is over ended, as the daemon writes it; empty when there was none
    config_files: str = ""  # the Compose file that it was made from
    published: Mapping[int, int] = field(default_factory=dict)  # a port inside -> the port of this machine

    @property
    def is_running(self) -> bool:
        return self.status in ("running", "paused")

    @property
    def run(self) -> str:
        """What tells this run of the container from the next."""
        return f"{self.id[:12]}@{self.started_text}"


@dataclass(frozen=True, slots=True)
class DockerEvent:
    """Something that happened to a container: what, whose, when; the code of a `die`, the signal of a `kill`."""

    action: str
    service: str
    container_id: str
    at: float
    exit_code: int | None = None
    signal: str = ""


class Docker:
    """The docker command of this user."""

    def __init__(self, program: str = "docker") -> None:
        self._program = program

    async def run(
        self, *arguments: str, timeout_s: float = ANSWER_S, environment: Mapping[str, str] | None = None
    ) -> str:
        """What the command prints. Raises DockerRefused when it fails or takes too long."""
        process = await self._start(arguments, environment)
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await process.communicate()
        except TimeoutError:
            raise _silent(arguments, timeout_s) from None
        finally:
            await end(process)
        if process.returncode:
            raise refusal_of(arguments, err.decode("utf-8", "replace") or out.decode("utf-8", "replace"))
        return out.decode("utf-8", "replace")

    async def stream(self, *arguments: str) -> AsyncGenerator[str, None]:
        """Every line that the command prints, to stdout or stderr, until it ends or the caller has enough. Raises
        DockerRefused when it ends badly."""
        process = await self._start(arguments, None, err=asyncio.subprocess.STDOUT)
        assert process.stdout is not None
        last = b""
        try:
            while line := await process.stdout.readline():
                yield line.decode("utf-8", "replace").rstrip("\n")
                last = line
            if await process.wait():
                raise refusal_of(arguments, last.decode("utf-8", "replace"))
        finally:
            await end(process)

    async def lines(self, *arguments: str, timeout_s: float = ANSWER_S) -> list[str]:
        """What the command prints to either stream, line by line. Raises DockerRefused as `run` does."""
        try:
            async with asyncio.timeout(timeout_s), contextlib.aclosing(self.stream(*arguments)) as stream:
                return [line async for line in stream]
        except TimeoutError:
            raise _silent(arguments, timeout_s) from None

    async def piped(self, *arguments: str) -> asyncio.subprocess.Process:
        """The command as a process whose standard input stays open until the caller closes it."""
        return await self._start(arguments, None, asyncio.subprocess.STDOUT, asyncio.subprocess.PIPE)

    async def _start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None,
        err: int = asyncio.subprocess.PIPE,
        stdin: int = asyncio.subprocess.DEVNULL,
    ) -> asyncio.subprocess.Process:
        if shutil.which(self._program) is None:
            mend = "install Docker Engine (or OrbStack, Docker Desktop), or use `--runtime local`"
            raise DockerRefused(f"there is no `{self._program}` command here", mend)
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                self._program,
                *arguments,
                stdin=stdin,
                stdout=asyncio.subprocess.PIPE,
                stderr=err,
                env={**os.environ, **(environment or {})},
                limit=_LINE_LIMIT,
                process_group=0,  # a Ctrl-C is ours to handle: half a `compose up` has no defined state
            )
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await end(await starting)
            raise

    # --- what there is -----------------------------------------------------------------------------------------------

    async def server(self) -> dict[str, Any]:
        """The daemon's part of `docker version`: Version, Os, Arch, … Raises DockerRefused when it cannot be had."""
        told = json.loads(await self.run("version", "--format", "{{json .}}"))
        server: dict[str, Any] = told.get("Server") or {}
        return {**server, "Arch": server.get("Arch") or _component(server).get("Arch", "")}

    async def compose_version(self) -> tuple[int, ...]:
        """The version of the Compose plugin, empty when it does not tell one. Raises DockerRefused when there is none
        of v2 or newer."""
        try:
            version = str(json.loads(await self.run("compose", "version", "--format", "json"))["version"])
        except DockerRefused as refused:
            if is_unreachable(refused.output):
                raise
            version = ""
        except (ValueError, KeyError):
            version = ""
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        if not version or (numbers and numbers[0] < 2):
            mend = "install the plugin (package docker-compose-plugin or docker-compose-v2)"
            raise DockerRefused("`docker compose` is missing or older than v2", mend)
        return numbers

    async def containers(self, project: str) -> tuple[Container, ...]:
        """Every container of the project's services, running or not."""
        which = ("--filter", f"label={PROJECT}={project}", "--filter", f"label={ONE_OFF}=False")
        ids = (await self.run("ps", "-a", "-q", "--no-trunc", *which)).split()
        return tuple(_container(record) for record in await self.inspect("container", *ids))

    async def names_of(self, label: str) -> tuple[str, ...]:
        """The names of every container with this label."""
        return tuple((await self.run("ps", "-a", "--format", "{{.Names}}", "--filter", f"label={label}")).split())

    async def time(self) -> str:
        """The daemon's own time, which need not be this machine's, as its commands take it."""
        return (await self.run("info", "--format", "{{.SystemTime}}")).strip()

    async def inspect(self, what: str, *names: str) -> list[dict[str, Any]]:
        """The daemon's records of containers, images, networks or volumes; those that are gone are left out."""
        if not names:
            return []
        try:
            text = await self.run(what, "inspect", *names)
        except DockerRefused as refused:
            if "no such" not in refused.output.lower():
                raise
            if len(names) == 1:
                return []
            return [record for name in names for record in await self.inspect(what, name)]
        records: list[dict[str, Any]] = json.loads(text)
        return records

    async def labelled(self, what: str, project: str) -> tuple[str, ...]:
        """The names of the networks or volumes of a project."""
        listed = await self.run(what, "ls", "--format", "{{.Name}}", "--filter", f"label={PROJECT}={project}")
        return tuple(listed.split())

    async def volumes(self) -> tuple[str, ...]:
        """The names of every volume there is."""
        return tuple((await self.run("volume", "ls", "--format", "{{.Name}}")).split())

    async def events(self, project: str, since: str) -> AsyncGenerator[DockerEvent, None]:
        """What happens to the project's containers from `since` on, as it happens."""
        lines = self.stream(*_events_of(project), "--since", since)
        async with contextlib.aclosing(lines):
            async for line in lines:
                event = _event(line)
                if event is not None:
                    yield event

    async def past_events(self, project: str, since: str) -> list[DockerEvent]:
        """What happened to the project's containers, as far as the daemon remembers it: its latest 256 events."""
        told = await self.lines(*_events_of(project), "--since", since, "--until", await self.time())
        return [event for line in told if (event := _event(line)) is not None]


def _events_of(project: str) -> list[str]:
    actions = ("start", "die", "pause", "unpause", "oom", "kill")
    filters = [f"label={PROJECT}={project}", "type=container", *(f"event={action}" for action in actions)]
    return ["events", "--format", "{{json .}}", *(part for one in filters for part in ("--filter", one))]


def _silent(arguments: Sequence[str], timeout_s: float) -> DockerRefused:
    wrong = f"docker gave no answer within {timeout_s:g} s ({_told(arguments)})"
    return DockerRefused(wrong, "see whether `docker info` answers, and restart the daemon if not")


def refusal_of(arguments: Sequence[str], output: str) -> DockerRefused:
    """What docker's words mean, and what to do about it."""
    text = output.strip()
    for pattern, wrong, mend in _REFUSALS:
        found = re.search(pattern, text, re.IGNORECASE | re.DOTALL)
        if found is not None:
            told = {key: value for key, value in found.groupdict().items() if value is not None}
            told["at"] = f" at {told['at']}" if "at" in told else ""
            return DockerRefused(wrong.format_map(told), mend.format_map(told), text)
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "it did not say why")
    mend = "these are Docker's own words; `docker ps -a` shows what is there"
    return DockerRefused(f"`docker {_told(arguments)}` failed: {last.strip()}", mend, text)


def is_unreachable(output: str) -> bool:
    """Whether docker says that it cannot talk to its daemon."""
    return any(re.search(pattern, output, re.IGNORECASE | re.DOTALL) for pattern, *_ in _UNREACHABLE)


_UNREACHABLE: tuple[tuple[str, str, str], ...] = (
    (
        r"permission denied.*(?:docker daemon|docker API|docker\.sock)",
        "this user may not talk to the Docker daemon",
        "add the user to the group `docker` and log in again, or use a rootless daemon",
    ),
    (
        r"(?:cannot connect to the docker daemon|failed to connect to the docker API|error during connect)"
        r"(?:.*?(?P<at>(?:unix|tcp|ssh|npipe)://[^\s,;]+[^\s,;.?]))?",
        "no Docker daemon answers{at}",
        "start it (`systemctl start docker`, OrbStack, Docker Desktop), or use `--runtime local`",
    ),
)
_REFUSALS: tuple[tuple[str, str, str], ...] = (
    *_UNREACHABLE,
    (
        r"(?:is not a docker command|unknown command: docker compose|unknown (?:shorthand )?flag)",
        "`docker compose` is missing or older than v2",
        "install the plugin (package docker-compose-plugin or docker-compose-v2)",
    ),
    (
        r"(?:Bind for |listen tcp4? |exposing port TCP |bind host port (?:for )?)\S*?:(?P<port>\d+)\b.*"
        r"(?:already allocated|address already in use|not available)",
        "port {port} is taken",
        "stop what listens there, or move ours: PD_PORT, TIKV_PORT, TIKV_STATUS_PORT",
    ),
    (
        r"no space left on device",
        "there is no space left for Docker",
        "free some: `docker system df` tells who has it",
    ),
    (
        r"error setting rlimit",
        "the Docker daemon may not give a container so many open files",
        "raise the daemon's own limit; where no real TiKV runs, which needs 82,920, set TIKV_OPEN_FILES lower",
    ),
    (
        r"no matching manifest for (?P<platform>\S+)",
        "the image is not made for {platform}",
        "name a multi-architecture image, such as pingcap/pd and pingcap/tikv",
    ),
    (
        r"exec format error",
        "the image is made for another architecture than this machine's",
        "name a multi-architecture image, such as pingcap/pd and pingcap/tikv",
    ),
)


def kind_of(config: Mapping[str, Any]) -> str:
    """Whether the server in an image or container is emulated or real, by the label that our own images carry."""
    return "emulated" if (config.get("Labels") or {}).get(KIND_LABEL) == "emulated" else "real"


def _told(arguments: Sequence[str]) -> str:
    """The command without its options and what it is about."""
    if arguments[0] == "compose":
        return "compose " + next((one for one in arguments if one in ("create", "start", "up", "down", "ls")), "")
    return " ".join(one for one in arguments[:2] if not one.startswith("-"))


def _component(server: Mapping[str, Any]) -> dict[str, Any]:
    for component in server.get("Components") or []:
        if component.get("Name") == "Engine":
            details: dict[str, Any] = component.get("Details") or {}
            return details
    return {}


def _container(record: Mapping[str, Any]) -> Container:
    state, config, host = record["State"], record["Config"], record.get("HostConfig") or {}
    labels = config.get("Labels") or {}
    networks = (record.get("NetworkSettings") or {}).get("Networks") or {}
    health = state.get("Health") or {}
    probes = health.get("Log") or [{}]
    return Container(
        id=record["Id"],
        name=str(record["Name"]).lstrip("/"),
        service=labels.get(SERVICE, ""),
        image=config.get("Image", ""),
        kind=kind_of(config),
        status="restarting" if state.get("Restarting") else state["Status"],
        pid=state.get("Pid") or None,
        exit_code=state.get("ExitCode", 0),
        # The flag outlives the run that it is about, and also tells of a health check that was killed.
        is_oom=bool(state.get("OOMKilled")) and state.get("ExitCode") == KILLED_CODE,
        error=state.get("Error", ""),
        started_at=_time(state.get("StartedAt")),
        started_text=str(state.get("StartedAt")),
        finished_at=_time(state.get("FinishedAt")),
        restarts=record.get("RestartCount", 0),
        command=(str(record.get("Path", "")), *(record.get("Args") or ())),
        hosts={name: one["IPAddress"] for name, one in networks.items() if one.get("IPAddress")},
        health=health.get("Status", ""),
        probe_output=str((probes[-1] or {}).get("Output", "")).strip(),
        ended_text=str(state["FinishedAt"]) if _time(state.get("FinishedAt")) is not None else "",
        config_files=labels.get("com.docker.compose.project.config_files", ""),
        published={
            int(inside.partition("/")[0]): int(bindings[0]["HostPort"])
            for inside, bindings in (host.get("PortBindings") or {}).items()
            if bindings and bindings[0].get("HostPort", "").isdigit()
        },
    )


def _time(text: object) -> float | None:
    """Seconds since the epoch of a time as Go writes it; None for its zero."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", str(text))
    if match is None or match[1].startswith("0001"):
        return None
    zone = "+00:00" if match[3] == "Z" else match[3]
    return datetime.fromisoformat(match[1] + zone).timestamp() + float(match[2] or 0)


def _event(line: str) -> DockerEvent | None:
    try:
        record = json.loads(line)
        actor = record["Actor"]
        attributes = actor["Attributes"]
        if attributes.get(ONE_OFF) == "True":
            return None
        code = attributes.get("exitCode")
        return DockerEvent(
            action=str(record["Action"]),
            service=str(attributes.get(SERVICE, "")),
            container_id=str(actor["ID"]),
            at=record["timeNano"] / 1e9,
            exit_code=int(code) if code is not None else None,
            signal=str(attributes.get("signal", "")),
        )
    except (ValueError, KeyError, TypeError):
        return None  # a word of the daemon that is no event


async def end(process: asyncio.subprocess.Process) -> None:
    """End a command that still runs, by its group: `docker compose` is a child of `docker`."""
    if process.returncode is not None:
        return
    gone = (ProcessLookupError, PermissionError)  # the latter is macOS' word for a group of which only a zombie is left
    with contextlib.suppress(*gone):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(2.0):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(*gone):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
