"""A cluster in containers, and links between them that are cut inside their own network namespaces."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compose_subject import inspect, remove_project
from shell import Shell

from drillyard.runtimes.compose_plans import Images
from ports import free_ports


@contextmanager
def containers(home: Path, name: str, images: Images) -> Iterator[Shell]:
    """A deployment that is up on ports of its own; nothing of it is left afterwards."""
    shell = Shell(home)
    shell.env |= {"PD_IMAGE": images.pd or "", "TIKV_IMAGE": images.tikv or ""}
    shell.env |= zip(("PD_PORT", "TIKV_PORT", "TIKV_STATUS_PORT"), map(str, free_ports(3)), strict=True)
    try:
        ran = shell("up", "--runtime", "compose", "--name", name, "--json")
        assert ran.code == 0, ran
        yield shell
    finally:
        shell("down", "--name", name, "--delete-data")
        remove_project(f"drillyard-{name}")


class Cuts:
    """Packets that the containers of a project drop, by iptables in their network namespaces."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._rules: list[tuple[str, tuple[str, ...]]] = []

    def container(self, member: str) -> str:
        return f"{self._project}-{member}-1"

    def address(self, member: str) -> str:
        networks = inspect(self.container(member))["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])

    def drop(self, member: str, *rule: str) -> None:
        self._iptables(member, "-A", *rule)
        self._rules.append((member, rule))

    def between(self, one: str, other: str) -> None:
        """Nothing goes either way."""
        self.drop(one, "OUTPUT", "-d", self.address(other))
        self.drop(one, "INPUT", "-s", self.address(other))

    def mend(self) -> None:
        while self._rules:
            member, rule = self._rules.pop()
            self._iptables(member, "-D", *rule)

    def _iptables(self, member: str, do: str, chain: str, *match: str) -> None:
        pid = inspect(self.container(member))["State"]["Pid"]
        command = ["nsenter", "--target", str(pid), "--net", "iptables", "-w", do, chain, *match, "-j", "DROP"]
        subprocess.run(command, check=True, capture_output=True, timeout=20)
