"""A deployment under a temporary home on free ports, driven by the command line as a user drives it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from bench.plan import BenchFailed

COMMAND = Path(sys.executable).with_name("drillyard")
LIMIT_S = 120.0

_LINE = re.compile(r'^\[(?P<at>[^\]]+)\] \[[A-Z]+\] \[[^\]]+\] \["?(?P<text>[^"\]]*)')


@dataclass(frozen=True, slots=True)
class Ran:
    document: dict[str, Any]
    began: float  # seconds since the epoch
    took_s: float
    cpu_s: float  # of the command and of what it waited for


@dataclass(frozen=True, slots=True)
class Said:
    """A line of a member's log."""

    at: float  # seconds since the epoch
    member: str
    text: str  # its first part


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployment's home and topology file."""

    home: Path
    topology: Path

    def run(self, *arguments: str) -> Ran:
        environment = {**os.environ, "DRILLYARD_HOME": str(self.home)}
        started, began, used_s = time.time(), time.perf_counter(), _waited_for_s()
        done = subprocess.run(
            [COMMAND, *arguments, "--json"], env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        took_s = time.perf_counter() - began
        if done.returncode:
            raise BenchFailed(f"drillyard {' '.join(arguments)} ended with {done.returncode}: {done.stdout[-2000:]}")
        return Ran(json.loads(done.stdout), started, took_s, _waited_for_s() - used_s)

    def up(self) -> Ran:
        return self.run("up", "--topology", str(self.topology))

    def members(self) -> dict[str, dict[str, Any]]:
        standing = self.run("status").document
        rows = _find(standing, "members")
        return {row["name"]: row for row in rows}

    def log(self) -> Iterator[Said]:
        """What the members have written so far."""
        for name, row in self.members().items():
            for line in Path(row["log_path"]).read_text(encoding="utf-8").splitlines():
                if found := _LINE.match(line):
                    at = datetime.strptime(found["at"], "%Y/%m/%d %H:%M:%S.%f %z").timestamp()
                    yield Said(at, name, found["text"])

    def memory_mb(self) -> list[tuple[float, float]]:
        """RSS and PSS of every member."""
        return [memory_mb(row["pid"]) for row in self.members().values()]


def memory_mb(pid: int) -> tuple[float, float]:
    """RSS and PSS; where the system keeps no PSS, the RSS stands for it."""
    memory = psutil.Process(pid).memory_full_info()
    return memory.rss / 1e6, getattr(memory, "pss", memory.rss) / 1e6


def cpu_s(members: dict[str, dict[str, Any]]) -> float:
    """What all members have used so far, in user and system mode."""
    times = [psutil.Process(row["pid"]).cpu_times() for row in members.values()]
    return sum(each.user + each.system for each in times)


def _waited_for_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def pd_addresses(members: dict[str, dict[str, Any]]) -> list[str]:
    return [row["addresses"]["client"] for row in members.values() if row["role"] == "pd"]


def reported_s(up: Ran) -> float:
    """When `up` saw the last gate open, in seconds since the epoch."""
    timeline = _find(up.document, "timeline")
    return max(float(entry["at"]) for entry in timeline if entry["gate"])


def _find(document: dict[str, Any], part: str) -> Any:
    """The part, at the top of the document or one level down."""
    if part in document:
        return document[part]
    inner = (value for value in document.values() if isinstance(value, dict) and part in value)
    found = next(inner, None)
    if found is None:
        raise BenchFailed(f"the document of {document.get('command')} has no {part}")
    return found[part]


@contextmanager
def temporary(pds: int = 3, stores: int = 3) -> Iterator[Deployment]:
    """A home and free ports for the block; whatever still runs in it is taken down at its end."""
    home = Path(tempfile.mkdtemp(prefix="drillyard-bench-"))
    topology = home / "topology.toml"
    topology.write_text(_topology(pds, stores), encoding="utf-8")
    deployment = Deployment(home, topology)
    try:
        yield deployment
    finally:
        if deployment.run("list").document["deployments"]:
            deployment.run("down", "--delete-data")
        shutil.rmtree(home)


@contextmanager
def standing(pds: int = 3, stores: int = 3) -> Iterator[Deployment]:
    """The same, up and ready."""
    with temporary(pds, stores) as deployment:
        deployment.up()
        yield deployment


def _topology(pds: int, stores: int) -> str:
    ports = _free_ports(2 * (pds + stores))
    tables = [f"[[pd]]\nclient-port = {ports.pop()}\npeer-port = {ports.pop()}\n" for _ in range(pds)]
    tables += [f"[[tikv]]\nclient-port = {ports.pop()}\nstatus-port = {ports.pop()}\n" for _ in range(stores)]
    return "\n".join(tables)


def _free_ports(count: int) -> list[int]:
    """Free ports below those that the system lends to connecting programs, so that a restart finds them free."""
    found: list[int] = []
    for port in random.sample(range(21000, 32000), 400):
        with socket.socket() as probe:
            if len(found) < count and probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
    return found
