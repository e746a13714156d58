"""A deployment's plan: its settled topology and its executables, remembered in plan.json.

Rules: what is remembered is enough to come back on the same ports with the same data, and no more; flags, configuration
files and the launch list of the keeper are made anew from it at each start. Files are for their owner only. A plan that
cannot be read is refused with its path, never guessed at.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from drillyard.runtimes.abilities import ExecutableUnusable, PlanUnreadable
from drillyard.topology import Files, Member, Profile, Purpose, Role, Topology, TopologyError, render_config

T = TypeVar("T")

FILE = "plan.json"
PLAN_FORMAT = 1
SOCKET_PATH_LIMIT = 100  # the shortest limit of any system is 104 bytes with the closing zero
EMULATED, REAL = "emulated", "real"
GRACE_S = {Role.TIKV: 10.0, Role.PD: 20.0}  # real PDs that are stopped together take 13 to 14 s
RANK = {Role.TIKV: 0, Role.PD: 1}  # stores are stopped before PD


@dataclass(frozen=True, slots=True)
class Executable:
    """What runs the flags of one role. An empty `argv` is our emulator in this Python."""

    kind: str = EMULATED
    argv: tuple[str, ...] = ()

    @classmethod
    def real(cls, binary: str | Path) -> Executable:
        """A real server, by path or by a name on PATH; refused unless it can be run."""
        found = shutil.which(str(binary))
        if found is None:
            why = "is not executable" if Path(binary).is_file() else "does not exist"
            raise ExecutableUnusable(f"{binary} {why}", "name a pd-server or tikv-server that can be run")
        return cls(REAL, (str(Path(found).absolute()),))

    def command(self, role: Role) -> tuple[str, ...]:
        if self.argv:
            return self.argv
        return (sys.executable, "-P", "-m", f"drillyard.emulator.{role.value}.server")

    def check(self) -> None:
        if self.argv and not os.access(self.argv[0], os.X_OK):
            raise ExecutableUnusable(f"{self.argv[0]} cannot be run", "put it back, or name another executable")


@dataclass(frozen=True, slots=True)
class Executables:
    pd: Executable = Executable()
    tikv: Executable = Executable()

    def of(self, role: Role) -> Executable:
        return self.pd if role is Role.PD else self.tikv


@dataclass(frozen=True, slots=True)
class Plan:
    name: str
    directory: Path
    asked: Topology  # as it was asked for, ports open: asking for the same again finds this plan
    topology: Topology  # settled
    executables: Executables

    def data_dir(self, member: str) -> Path:
        return self.directory / "data" / member

    def log_path(self, member: str) -> Path:
        return self.directory / "logs" / f"{member}.log"

    def out_path(self, member: str) -> Path:
        return self.directory / "logs" / f"{member}.out"

    def config_path(self, member: str) -> Path:
        return self.directory / "config" / f"{member}.toml"

    def argv(self, member: Member) -> tuple[str, ...]:
        paths = (self.data_dir(member.name), self.config_path(member.name), self.log_path(member.name))
        files = Files(*(str(path) for path in paths))
        return (*self.executables.of(member.role).command(member.role), *self.topology.flags_of(member, files))

    def write_files(self, socket: Path, guard: str) -> None:
        """Everything that the keeper and the members read, made anew."""
        for part in ("data", "logs", "config", "evidence"):
            (self.directory / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        for member in self.topology.members:
            write_private(self.config_path(member.name), render_config(self.topology.config_of(member)))
        members = [
            {
                "name": member.name,
                "argv": self.argv(member),
                "out": str(self.out_path(member.name)),
                "rank": RANK[member.role],
                "grace_s": GRACE_S[member.role],
            }
            for member in self.topology.members
        ]
        launch = {"socket": str(socket), "guard": guard, "members": members}
        write_private(self.directory / "launch.json", json.dumps(launch, indent=1))


def write_private(path: Path, text: str) -> None:
    """Replace the file whole, readable by its owner only; a crash leaves the old or the new one."""
    draft = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def save(plan: Plan) -> None:
    plan.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = {
        "format": PLAN_FORMAT,
        "name": plan.name,
        "asked": topology_out(plan.asked),
        "topology": topology_out(plan.topology),
        "executables": asdict(plan.executables),
    }
    write_private(plan.directory / FILE, json.dumps(content, indent=1) + "\n")


def load(directory: Path) -> Plan | None:
    """The remembered plan; None when there is none. Raises PlanUnreadable."""
    return read_plan(directory / FILE, PLAN_FORMAT, lambda content: _plan_in(directory, content))


def _plan_in(directory: Path, content: dict[str, Any]) -> Plan:
    asked, topology = topology_in(content["asked"]), topology_in(content["topology"])
    pd, tikv = (_executable_in(content["executables"][role]) for role in ("pd", "tikv"))
    if not topology.is_settled:
        raise ValueError("a port is missing")
    return Plan(directory.name, directory, asked, topology, Executables(pd, tikv))


def read_plan(path: Path, known_format: int, parse: Callable[[dict[str, Any]], T]) -> T | None:
    """What a plan file of either runtime holds; None when there is none. Raises PlanUnreadable."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != known_format:
            raise PlanUnreadable(
                f"{path} has format {content['format']!r}, this version reads {known_format}",
                "use the version that wrote it, or remove the deployment with its data",
            )
        return parse(content)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, TopologyError) as error:
        mend = "restore the file, or remove the deployment with its data (`drillyard down --delete-data`)"
        raise PlanUnreadable(f"{path} is damaged ({type(error).__name__}: {error})", mend) from error


def topology_out(topology: Topology) -> dict[str, Any]:
    """A topology as a plan file has it."""
    members = [
        {
            "name": member.name,
            "role": member.role.value,
            "host": member.host,
            "ports": {purpose.value: port for purpose, port in member.ports.items()},
            "flags": list(member.flags),
            "config": dict(member.config),
        }
        for member in topology.members
    ]
    return {"profile": topology.profile.value, "members": members}


def topology_in(content: dict[str, Any]) -> Topology:
    members = []
    for one in content["members"]:
        ports = {Purpose(purpose): int(port) for purpose, port in one["ports"].items()}
        name, host, flags = str(one["name"]), str(one["host"]), tuple(str(flag) for flag in one["flags"])
        members.append(Member(name, Role(one["role"]), host, ports, flags, dict(one["config"])))
    return Topology(tuple(members), Profile(content["profile"]))


def _executable_in(content: dict[str, Any]) -> Executable:
    return Executable(str(content["kind"]), tuple(str(part) for part in content["argv"]))
