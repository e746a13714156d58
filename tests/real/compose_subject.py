"""Clusters of containers for tests: which images, and a project that leaves nothing whatever becomes of its test.

Images come from `scripts/build-images`, or are named in DRILLYARD_TEST_PD_IMAGE and DRILLYARD_TEST_TIKV_IMAGE, as
`./yard verify-vendor` does. A missing one is an error: who runs these tests wants them run.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite import NAME, Subject

from drillyard.runtimes.abilities import DeployedMember, Deployment, StopReport
from drillyard.runtimes.compose import ComposeRuntime
from drillyard.runtimes.compose_plans import Images
from drillyard.topology import Topology

REAL_PD = Images(
    os.environ.get("DRILLYARD_TEST_PD_IMAGE", "drillyard/pd-source:local"),
    os.environ.get("DRILLYARD_TEST_TIKV_IMAGE", "drillyard/tikv-emulator:local"),
)
EMULATED = Images("drillyard/pd-emulator:local", "drillyard/tikv-emulator:local")


def docker(*words: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


def inspect(container: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(docker("inspect", container))[0]
    return record


def objects_of(project: str) -> list[str]:
    """Every container, network and volume of a project."""
    label = f"label=com.docker.compose.project={project}"
    found = docker("ps", "-aq", "--filter", label).split()
    for what in ("network", "volume"):
        found += docker(what, "ls", "-q", "--filter", label).split()
    return found


def remove_project(project: str) -> None:
    """By force; for what a failed test left."""
    label = f"label=com.docker.compose.project={project}"
    for what, ls in (("rm -f", "ps -aq"), ("network rm", "network ls -q"), ("volume rm", "volume ls -q")):
        found = docker(*ls.split(), "--filter", label).split()
        if found:
            docker(*what.split(), *found, check=False)


@dataclass
class ComposeSubject(Subject):
    """Members as containers of one project."""

    runtime: ComposeRuntime
    images: Images
    topology: Topology

    async def begin(self) -> Deployment:
        return await self.runtime.start(await self.runtime.plan(self.topology, NAME, self.images))

    async def kill_from_outside(self, member: DeployedMember) -> None:
        assert member.container is not None
        docker("kill", member.container.name)

    def is_alive(self, member: DeployedMember) -> bool:
        assert member.container is not None
        return bool(inspect(member.container.name)["State"]["Pid"] == member.pid)

    def check_nothing_left(self, report: StopReport, deployment: Deployment) -> None:
        assert len(report.checked_containers) == len(deployment.members)
        assert docker("ps", "-aq", "--filter", f"label=com.docker.compose.project=drillyard-{NAME}") == ""
        for port in report.checked_ports:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0

    def has_data(self, deployment: Deployment) -> bool:
        volumes = {f"drillyard-{NAME}_{member.name}-data" for member in deployment.members}
        return volumes <= set(docker("volume", "ls", "-q").split())

    async def clear(self) -> None:
        if NAME in self.runtime.names():
            await self.runtime.stop(NAME, delete_data=True)
        remove_project(f"drillyard-{NAME}")


def runtime_at(home: Path) -> ComposeRuntime:
    return ComposeRuntime(home)
