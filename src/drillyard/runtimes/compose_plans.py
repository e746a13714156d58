"""A compose deployment's plan: its project, its topology and the variables of its file, remembered in compose.json.

Rules: as for the local plans: enough to come back with the same ports, images and data, and no more; the file that
Compose reads is made anew from it at each start. A project that was started by somebody else (`adopted`) has its
topology from its containers' own flags, and its file is its owner's: it can be operated and taken down, not started
from nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drillyard.runtimes import compose_file, ports
from drillyard.runtimes.abilities import Misuse, PortTaken, StartRefused
from drillyard.runtimes.plans import read_plan, topology_in, topology_out, write_private
from drillyard.topology import LOOPBACK, PREFERRED_PORTS, Member, Purpose, Role, Topology

if TYPE_CHECKING:
    from drillyard.runtimes.docker import Container

FILE = "compose.json"
COMPOSE_FILE = "docker-compose.yaml"
FORMAT = 1

Published = Mapping[tuple[str, Purpose], int]


@dataclass(frozen=True, slots=True)
class Images:
    """The images that were asked for; None leaves it at what was remembered, or the default."""

    pd: str | None = None
    tikv: str | None = None

    @property
    def variables(self) -> dict[str, str]:
        asked = {compose_file.PD_IMAGE: self.pd, compose_file.TIKV_IMAGE: self.tikv}
        return {variable: image for variable, image in asked.items() if image is not None}


@dataclass(frozen=True, slots=True)
class ComposePlan:
    name: str
    directory: Path
    project: str
    asked: Topology  # as it was asked for; the ports in it are those of this machine
    published: Published = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)  # images and memory, by the file's names for them
    adopted: bool = False
    services: Mapping[str, str] = field(default_factory=dict)  # member -> its service, where the two differ

    @property
    def topology(self) -> Topology:
        """As the containers have it: settled."""
        return self.asked if self.adopted else compose_file.in_containers(self.asked)

    @property
    def file(self) -> Path:
        return self.directory / COMPOSE_FILE

    @property
    def claims(self) -> dict[int, str]:
        """Every published port and the member that wants it."""
        return {port: name for (name, _), port in self.published.items()}

    @property
    def environment(self) -> dict[str, str]:
        """Every variable of the file, so that nothing of the caller's environment shapes it a second time."""
        ports = {
            variable: str(port)
            for (name, purpose), port in self.published.items()
            if (variable := compose_file.variable_of(self.asked, name, purpose))
        }
        return {**compose_file.DEFAULTS, **self.variables, **ports}

    def service_of(self, member: str) -> str:
        return self.services.get(member, member)

    def image_of(self, role: Role) -> str:
        return self.environment[compose_file.IMAGE_OF[role]]

    def write_file(self) -> None:
        """The file that Compose reads, and the variables beside it for whoever calls Compose by hand."""
        members = tuple(
            replace(m, ports={purpose: port for (name, purpose), port in self.published.items() if name == m.name})
            for m in self.asked.members
        )
        write_private(self.file, compose_file.render(replace(self.asked, members=members)))
        lines = (f"{variable}={value}" for variable, value in sorted(self.environment.items()))
        write_private(self.directory / ".env", "\n".join(lines) + "\n")


def save(plan: ComposePlan) -> None:
    plan.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "name": plan.name,
        "project": plan.project,
        "asked": topology_out(plan.asked),
        "published": [[name, purpose.value, port] for (name, purpose), port in plan.published.items()],
        "variables": dict(plan.variables),
        "adopted": plan.adopted,
        "services": dict(plan.services),
    }
    write_private(plan.directory / FILE, json.dumps(content, indent=1) + "\n")


def load(directory: Path) -> ComposePlan | None:
    """The remembered plan; None when there is none. Raises PlanUnreadable."""
    return read_plan(directory / FILE, FORMAT, lambda content: _plan_in(directory, content))


def _plan_in(directory: Path, content: dict[str, Any]) -> ComposePlan:
    return ComposePlan(
        name=directory.name,
        directory=directory,
        project=str(content["project"]),
        asked=topology_in(content["asked"]),
        published={(str(name), Purpose(purpose)): int(port) for name, purpose, port in content["published"]},
        variables={str(key): str(value) for key, value in content["variables"].items()},
        adopted=bool(content["adopted"]),
        services={str(key): str(value) for key, value in content["services"].items()},
    )


# --- making one: from what is asked for, or from what somebody else started -----------------------------------------


def variables_of(before: ComposePlan | None, images: Images) -> dict[str, str]:
    """The file's variables: as asked for, as set in this environment, as remembered."""
    remembered = dict(before.variables) if before else {}
    wanted = {name: value for name in compose_file.DEFAULTS if (value := os.environ.get(name))} | images.variables
    image = compose_file.TIKV_IMAGE
    if wanted.get(image, remembered.get(image)) != remembered.get(image):
        remembered.pop(compose_file.TIKV_OPEN_FILES, None)  # another server may not be content with so many
    return remembered | wanted


def with_asked_ports(asked: Topology) -> Topology:
    """The topology with the ports that the environment asks for, as plain `docker compose` would take them."""
    members = {member.name: member for member in asked.members}
    for (role, purpose), variable in compose_file.PORT_VARIABLES.items():
        text = os.environ.get(variable)
        first = next(iter(asked.of_role(role)), None)
        if not text or first is None:
            continue
        if not (text.isascii() and text.isdecimal()):
            raise Misuse(f"{variable}={text!r} is no port", "give a number from 1 to 65535")
        members[first.name] = replace(members[first.name], ports={**members[first.name].ports, purpose: int(text)})
    return replace(asked, members=tuple(members.values()))


def choose_ports(asked: Topology, reserved: Mapping[int, str], kept: Published) -> Published:
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


def members_of(
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
