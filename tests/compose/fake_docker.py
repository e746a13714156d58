"""A `docker` command that says what a test wants it to say, and the records of containers that a daemon would give.

It is a small shell script: arguments that fit a pattern of the shell are answered with a text and an exit code, or with
lines of shell. Every call is written down.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import psutil

from drillyard.runtimes.docker import PROJECT, SERVICE, Container, Docker

ID = "4f8c3e2ab1d09c7de5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c"
STARTED = "2026-09-20T08:15:30.123456789Z"
NOW = "2026-09-20T09:00:00.123456789Z"  # by the daemon's clock
ZERO = "0001-01-01T00:00:00Z"


class FakeDocker:
    """A program in `directory`; the first answer whose pattern fits is given, so say the special before the usual."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cases: list[str] = []
        self.program = directory / "docker"
        self.called = directory / "called"
        self._records = directory / "records.json"
        self._write()

    @property
    def docker(self) -> Docker:
        return Docker(str(self.program))

    @property
    def calls(self) -> list[str]:
        """The arguments of every call, each on one line."""
        return self.called.read_text().splitlines() if self.called.exists() else []

    def says(self, pattern: str, out: object = "", *, err: str = "", code: int = 0) -> None:
        """Answer calls whose arguments fit with this text (or JSON of what is no text)."""
        text = out if isinstance(out, str) else json.dumps(out)
        shell = f"printf %s {shlex.quote(text)}; printf %s {shlex.quote(err)} >&2; exit {code}"
        self.does(pattern, shell)

    def holds(self, *records: dict[str, Any]) -> None:
        """Have these containers, whichever of them is asked for; a later call has others instead."""
        is_first = not self._records.exists()
        self._records.write_text(json.dumps(records))
        self._records.with_name("ids").write_text("".join(f"{one['Id']}\n" for one in records))
        if is_first:
            self.does("ps -a -q *", 'cat "$(dirname "$0")/ids"')
            self.does("container inspect *", 'cat "$(dirname "$0")/records.json"')

    def knows_the_time(self) -> None:
        """Answer what the daemon's own time is."""
        self.says("info --format {{.SystemTime}}", f"{NOW}\n")

    def is_empty(self) -> None:
        """Have no container and no volume of anybody."""
        self.says("ps *")
        self.says("volume ls *")

    def does(self, pattern: str, shell: str) -> None:
        """Answer calls whose arguments fit with what these lines do; they find the arguments in "$@"."""
        quoted = "".join(part if part == "*" else shlex.quote(part) for part in _parts(pattern))
        self._cases.append(f"  {quoted})\n{shell}\n  ;;")
        self._write()

    def _write(self) -> None:
        cases = "\n".join(self._cases)
        self.program.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$*\" >>{shlex.quote(str(self.called))}\n"
            f'case "$*" in\n{cases}\n  *) echo "no answer was planned for: $*" >&2; exit 99 ;;\nesac\n'
        )
        self.program.chmod(0o755)


def _parts(pattern: str) -> list[str]:
    """The pattern cut at its stars; they stay."""
    parts = [part for text in pattern.split("*") for part in (text, "*")][:-1]
    return [part for part in parts if part]


def record(
    service: str = "pd0",
    *,
    file: Path | str = "/home/me/docker-compose.yaml",
    state: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """What `docker container inspect` tells of a running container, shortened; `state` and `changes` overlay it.

    `file` is the Compose file that it was made from."""
    return {
        "Id": ID,
        "Created": "2026-09-20T08:15:29.98Z",
        "Path": "/pd-server",
        "Args": ["--name=pd0"],
        "State": {
            "Status": "running",
            "Running": True,
            "Paused": False,
            "Restarting": False,
            "OOMKilled": False,
            "Dead": False,
            "Pid": 4711,
            "ExitCode": 0,
            "Error": "",
            "StartedAt": STARTED,
            "FinishedAt": ZERO,
            "Health": {
                "Status": "healthy",
                "FailingStreak": 0,
                "Log": [{"Start": STARTED, "End": STARTED, "ExitCode": 0, "Output": "  ok\n"}],
            },
            **(state or {}),
        },
        "Image": "sha256:0f3c",
        "Name": f"/drillyard-default-{service}-1",
        "RestartCount": 0,
        "HostConfig": {
            "Memory": 536870912,
            "PortBindings": {"2379/tcp": [{"HostIp": "127.0.0.1", "HostPort": "12379"}]},
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 0},
        },
        "Config": {
            "Image": "pingcap/pd:v8.5.5",
            "Cmd": ["--name=pd0", "--data-dir=/data"],
            "Labels": {
                PROJECT: "drillyard-default",
                SERVICE: service,
                "com.docker.compose.oneoff": "False",
                "com.docker.compose.project.config_files": str(file),
            },
        },
        "NetworkSettings": {"Networks": {"drillyard-default_default": {"IPAddress": "172.18.0.2"}}},
        **changes,
    }


def container(service: str = "tikv0", status: str = "running", **changes: Any) -> Container:
    """A container as our records have it: one that runs, unless told otherwise."""
    told: dict[str, Any] = {
        "id": ID,
        "name": f"drillyard-default-{service}-1",
        "service": service,
        "image": "pingcap/tikv:v8.5.5",
        "kind": "real",
        "status": status,
        "pid": 4711 if status in ("running", "paused") else None,
        "exit_code": 0,
        "is_oom": False,
        "error": "",
        "started_at": 1000.0,
        "started_text": STARTED,
        "finished_at": None,
        "restarts": 0,
        "command": (),
        **changes,
    }
    return Container(**told)


def is_gone(pid: int) -> bool:
    """Whether no process of this pid does anything more."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
