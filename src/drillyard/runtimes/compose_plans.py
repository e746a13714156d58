"""A compose deployment's plan: its project, its topology and the variables of its file, remembered in compose.json.

Rules: as for the local plans: enough to come back with the same ports, images and data, and no more; the file that
Compose reads is made anew from it at each start. A project that was started by somebody else (`adopted`) has its
topology from its containers' own flags, and its file is its owner's: it can be operated and taken down, not started
from nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drillyard.runtimes import compose_file
from drillyard.runtimes.abilities import PlanUnreadable
from drillyard.runtimes.plans import topology_in, topology_out, write_private
from drillyard.topology import Purpose, Role, Topology, TopologyError

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
    path = directory / FILE
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise PlanUnreadable(
                f"{path} has format {content['format']!r}, this version reads {FORMAT}",
                "use the version that wrote it, or remove the deployment with its data",
            )
        return _plan_in(directory, content)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, TopologyError) as error:
        mend = "restore the file, or remove the deployment with its data (`drillyard down --delete-data`)"
        raise PlanUnreadable(f"{path} is damaged ({type(error).__name__}: {error})", mend) from error


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
