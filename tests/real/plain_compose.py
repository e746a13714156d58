"""subjects/tikv/docker-compose.yaml as a person uses it: with the `docker` command alone, and none of our code between.

A `Project` is one use of the file: a name and published ports of its own, and nothing left of it at the end. What it
tells comes from `docker inspect`, from the daemon's events and from the published ports.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tikv_members import wait_until

from ports import free_port

SUBJECT = Path(__file__).parents[2] / "subjects" / "tikv"
FILE = SUBJECT / "docker-compose.yaml"
LOCAL = SUBJECT / "local.env"
ARM64 = SUBJECT / "arm64.env"

REAL_PD = "drillyard/pd-source:local"
EMULATED_PD = "drillyard/pd-emulator:local"
EMULATED_TIKV = "drillyard/tikv-emulator:local"

PDS = ("pd0", "pd1", "pd2")
TIKVS = ("tikv0", "tikv1", "tikv2")
SIX = (*PDS, *TIKVS)

COMMAND_S = 240.0
PATIENCE_S = 120.0
# images/README.md, run-server: until its shell has set its traps, up to 60 ms were seen, a signal is lost.
DEAF = dt.timedelta(milliseconds=150)

Done = subprocess.CompletedProcess[str]


def bare_environment(**variables: str) -> dict[str, str]:
    """What the docker command itself needs, and nothing that the file could read."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {name: text for name, text in os.environ.items() if name.startswith("DOCKER_")} | variables


def attempt(*command: str, environment: Mapping[str, str] | None = None) -> Done:
    """A command that may fail."""
    environment = bare_environment() if environment is None else environment
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_S
    )


def must(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """What the command prints."""
    done = attempt(*command, environment=environment)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def config(*options: str, env_file: Path | None = None) -> str:
    """What `docker compose config` prints in an environment that sets nothing."""
    chosen = () if env_file is None else ("--env-file", str(env_file))
    return must("docker", "compose", "-f", str(FILE), *chosen, "config", *options)


def new_name() -> str:
    return f"drillyard-test-{secrets.token_hex(4)}"


def instant(text: str) -> dt.datetime | None:
    """None for what has not been yet."""
    return None if text.startswith("0001-") else dt.datetime.fromisoformat(text)


@dataclass(frozen=True)
class Container:
    """What `docker inspect` tells of one service."""

    id: str
    service: str
    image: str
    status: str
    exit_code: int
    out_of_memory: bool
    started: dt.datetime | None
    restarts: int
    health: str
    health_says: str
    published: dict[str, list[str]]

    @staticmethod
    def of(told: Any) -> Container:
        state = told["State"]
        health = state.get("Health") or {"Status": "none", "Log": None}
        ports = told["HostConfig"]["PortBindings"] or {}
        return Container(
            id=told["Id"],
            service=told["Config"]["Labels"]["com.docker.compose.service"],
            image=told["Config"]["Image"],
            status=state["Status"],
            exit_code=state["ExitCode"],
            out_of_memory=state["OOMKilled"],
            started=instant(state["StartedAt"]),
            restarts=told["RestartCount"],
            health=health["Status"],
            health_says=health["Log"][-1]["Output"] if health["Log"] else "",
            published={port: [f"{on['HostIp']}:{on['HostPort']}" for on in ons] for port, ons in ports.items()},
        )


@dataclass(frozen=True)
class Event:
    """One that the daemon told of a container of the project."""

    at: dt.datetime
    service: str
    action: str
    signal: str

    @staticmethod
    def of(told: Any) -> Event:
        attributes = told["Actor"]["Attributes"]
        at = dt.datetime.fromtimestamp(told["timeNano"] // 1000 / 1e6, dt.UTC)
        return Event(at, attributes["com.docker.compose.service"], told["Action"], attributes.get("signal", ""))


class Project:
    """One use of the file, with the images of `local.env` unless variables name others. Nothing is left of it after."""

    def __init__(self, *, overlay: Path | None = None, **variables: str) -> None:
        self.name = new_name()
        self.pd_port, self.tikv_port, self.tikv_status_port = (free_port() for _ in range(3))
        ports = {"PD_PORT": self.pd_port, "TIKV_PORT": self.tikv_port, "TIKV_STATUS_PORT": self.tikv_status_port}
        self._environment = bare_environment(**{name: str(port) for name, port in ports.items()}, **variables)
        files = [FILE] if overlay is None else [FILE, overlay]
        chosen = [word for file in files for word in ("-f", str(file))]
        self._compose = ["docker", "compose", "-p", self.name, *chosen, "--env-file", str(LOCAL)]
        self._label = f"label=com.docker.compose.project={self.name}"
        self._underway: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Project:
        self._events = tempfile.TemporaryFile()  # closed in __exit__
        # From a moment before the listener's start, or the first events could be missed.
        command = ["docker", "events", "--since", f"{time.time():.6f}", "--filter", self._label]
        command += ["--filter", "type=container", "--format", "{{json .}}"]
        self._listener = subprocess.Popen(command, env=bare_environment(), stdout=self._events)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for process in self._underway:
                end(process, signal.SIGKILL)
            # A real PD takes 12 s to end by itself; that it does so is for tests to see, not for the clearing away.
            attempt("docker", "compose", "-p", self.name, "kill")
            attempt("docker", "compose", "-p", self.name, "down", "--volumes", "--timeout", "1")
            # What an interrupted `up` was about to make may come late, and `down` by name does not see all of it.
            wait_until(f"nothing is left of {self.name}", self._is_swept, COMMAND_S)
        finally:
            end(self._listener, signal.SIGTERM)
            self._events.close()

    def _is_swept(self) -> bool:
        left = self.left()
        for kind, names in left.items():
            if names:
                attempt("docker", kind, "rm", "--force", *names)
        return not any(left.values())

    def left(self) -> dict[str, list[str]]:
        """The containers, networks and volumes that there are."""
        asks = {"container": ("--all", "--format={{.Names}}"), "network": (), "volume": ()}
        return {
            kind: must("docker", kind, "ls", "--filter", self._label, *(options or ("--format={{.Name}}",))).split()
            for kind, options in asks.items()
        }

    def try_compose(self, *arguments: str) -> Done:
        return attempt(*self._compose, *arguments, environment=self._environment)

    def compose(self, *arguments: str) -> str:
        return must(*self._compose, *arguments, environment=self._environment)

    def up(self) -> None:
        self.compose("up", "-d")

    def begin_up(self) -> subprocess.Popen[bytes]:
        """`up -d` in the background."""
        process = subprocess.Popen(
            [*self._compose, "up", "-d"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._underway.append(process)
        return process

    def execute(self, service: str, *command: str) -> Done:
        return attempt("docker", "exec", self.container(service).id, *command)

    def containers(self) -> dict[str, Container]:
        """By service; those that were only created too."""
        ids = must("docker", "ps", "--all", "--quiet", "--no-trunc", "--filter", self._label).split()
        if not ids:
            return {}
        # One of them may be gone since; then inspect tells of the others and fails.
        told = json.loads(attempt("docker", "inspect", "--type=container", *ids).stdout or "[]")
        return {container.service: container for container in map(Container.of, told)}

    def container(self, service: str) -> Container:
        return self.containers()[service]

    def events(self) -> list[Event]:
        size = os.fstat(self._events.fileno()).st_size
        lines = os.pread(self._events.fileno(), size, 0).split(b"\n")[:-1]  # what has no end yet is not told yet
        return [Event.of(json.loads(line)) for line in lines]

    def wait_for_event(self, action: str, service: str, *, times: int = 1) -> Event:
        def seen() -> Event | None:
            found = [event for event in self.events() if (event.action, event.service) == (action, service)]
            return found[times - 1] if len(found) >= times else None

        event = wait_until(f"{service} tells {action!r} {times} time(s)", seen, PATIENCE_S)
        assert isinstance(event, Event)
        return event

    def wait_until_healthy(self) -> None:
        def are() -> bool:
            return {name: container.health for name, container in self.containers().items()} == dict.fromkeys(
                SIX, "healthy"
            )

        wait_until("all six containers are healthy", are, PATIENCE_S)

    def get(self, path: str) -> str | None:
        """What the first PD answers on its published port, as `get` below."""
        return get(f"http://localhost:{self.pd_port}/pd/api/v1/{path}")

    def stores_up(self) -> int:
        """As `grep -c` counts them."""
        return sum('"state_name": "Up"' in line for line in (self.get("stores") or "").splitlines())

    def wait_until_three_stores_are_up(self) -> None:
        wait_until("three stores are Up", lambda: self.stores_up() == 3, PATIENCE_S)

    def stores(self) -> list[Any]:
        return list(json.loads(self.get("stores") or '{"stores": []}')["stores"])

    def cluster_id(self) -> int:
        return int(json.loads(self.get("cluster") or "{}")["id"])

    def stop(self) -> None:
        """Ends all that runs, and leaves the containers. Waits until each of them is old enough to hear it."""
        wait_until("no container is deaf", self._can_hear, PATIENCE_S)
        self.compose("stop")

    def _can_hear(self) -> bool:
        heard = dt.datetime.now(dt.UTC) - DEAF
        running = [container for container in self.containers().values() if container.status == "running"]
        return all(container.started is not None and container.started < heard for container in running)

    def stop_what_is_still_starting(self) -> None:
        """Stops until nothing runs; the daemon may still be carrying out what an interrupted `up` asked for."""

        def is_quiet() -> bool:
            if any(container.status != "exited" for container in self.that_ran().values()):
                self.stop()
                return False
            last = max((event.at for event in self.events()), default=None)
            return last is None or dt.datetime.now(dt.UTC) - last > dt.timedelta(seconds=1)

        wait_until("everything has stopped", is_quiet, COMMAND_S)

    def that_ran(self) -> dict[str, Container]:
        return {name: container for name, container in self.containers().items() if container.started is not None}

    def assert_ended_in_good_order(self) -> None:
        """Each container that ever ran ended with 0 by itself, when it was asked to, within its grace."""
        ran = self.that_ran()
        assert {name: (container.status, container.exit_code) for name, container in ran.items()} == dict.fromkeys(
            ran, ("exited", 0)
        )
        assert not [name for name, container in ran.items() if container.out_of_memory]
        for name in ran:
            self.wait_for_event("die", name)
        killed = [event.service for event in self.events() if event.action == "kill" and event.signal == "9"]
        assert not killed


def end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
    process.wait(COMMAND_S)


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, as a terminal does it: to the command and to the plugin that it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
    process.wait(COMMAND_S)


# A proxy of the environment has no business with a port of this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str) -> str | None:
    """The body of an answer 200; None when nothing answers, or something else."""
    try:
        with _opener.open(url, timeout=10) as answer:
            return str(answer.read().decode()) if answer.status == 200 else None
    except OSError:
        return None


# Debian builds BusyBox without a time limit for wget, and then it crashes when -T is given. Images that have BusyBox's
# wget (Alpine's) have one that knows it. So here another program keeps the limit; all else is BusyBox's own.
_WGET = """#!/bin/sh
limit=900
left=$#
while [ "$left" -gt 0 ]; do
    case $1 in
        -T) limit=$2; shift; left=$((left - 1)) ;;
        *) set -- "$@" "$1" ;;
    esac
    shift
    left=$((left - 1))
done
exec timeout "$limit" /bin/busybox wget "$@"
"""


def busybox() -> Path:
    """The executable that runs without the libraries of its system."""
    if shutil.which("busybox") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        must("apt-get", "update")
        must("apt-get", "install", "--yes", "--no-install-recommends", "busybox-static")
    found = shutil.which("busybox")
    if found is None:
        raise AssertionError("busybox is missing; apt-get install busybox-static")
    return Path(found)


@contextlib.contextmanager
def image(kind: str, base: str, home: Path, *, with_wget: bool) -> Iterator[str]:
    """The base without curl, and with BusyBox's wget if wanted; the name is the image's while this lasts."""
    name = f"drillyard/test-{kind}:{secrets.token_hex(4)}"
    home.mkdir()
    lines = [f"FROM {base}", 'RUN rm "$(command -v curl)" && ! command -v wget']
    if with_wget:
        shutil.copy(busybox(), home / "busybox")
        (home / "wget").write_text(_WGET)
        (home / "wget").chmod(0o755)
        # One of another machine would not start here; better to learn it now.
        lines += ["COPY busybox /bin/busybox", "COPY wget /usr/bin/wget", "RUN wget -T 2 --help"]
    (home / "Dockerfile").write_text("\n".join(lines) + "\n")
    try:
        must("docker", "build", "--quiet", "--tag", name, str(home), environment=bare_environment(DOCKER_BUILDKIT="0"))
        yield name
    finally:
        attempt("docker", "image", "rm", "--force", name)


# On the ports of both servers. Other paths than the one that is asked about get the opposite answer.
_SERVER = """
import http.server, pathlib, threading

class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        code, path, body = pathlib.Path("/answer").read_text().split(" ", 2)
        code = int(code) if self.path == path else 500 if code == "200" else 200
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

servers = [http.server.ThreadingHTTPServer(("0.0.0.0", port), Answers) for port in (2379, 20180)]
for server in servers:
    threading.Thread(target=server.serve_forever).start()
print("ready", flush=True)
"""


class Answering:
    """A container in which something answers the health checks as it is told to."""

    def __init__(self, image: str, *options: str) -> None:
        self._name = new_name()
        self._options = (*options, "--entrypoint", "python3", image, "-u", "-c", _SERVER)

    def __enter__(self) -> Answering:
        try:
            must("docker", "run", "--detach", "--name", self._name, *self._options)
            wait_until("the server answers", lambda: "ready" in must("docker", "logs", self._name), PATIENCE_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        attempt("docker", "rm", "--force", "--volumes", self._name)

    def answer(self, code: int, path: str, body: str) -> None:
        must("docker", "exec", self._name, "sh", "-c", f"printf %s '{code} {path} {body}' >/answer")

    def shell(self, line: str) -> Done:
        """As the daemon runs the line of a health check."""
        return attempt("docker", "exec", self._name, "/bin/sh", "-c", line)
