"""A topology as a Compose file: the text that `docker compose` takes, and the variables that shape it from outside.

Rules: the text for the default topology is `subjects/tikv/docker-compose.yaml`, to the letter; it works with plain
`docker compose` and with a runtime alike, so nothing in it is a runtime's alone. Images, published ports and memory are
variables with defaults. A container is found by its name and listens on all of its own addresses; what is published is
published on loopback. Pure text: no Docker, no file.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace

from drillyard.runtimes.abilities import Misuse
from drillyard.topology import LOOPBACK, Files, Member, Profile, Purpose, Role, Topology, render_config

PD_IMAGE, TIKV_IMAGE = "PD_IMAGE", "TIKV_IMAGE"
PD_MEMORY, TIKV_MEMORY = "PD_MEMORY", "TIKV_MEMORY"
TIKV_OPEN_FILES = "TIKV_OPEN_FILES"
DEFAULTS: Mapping[str, str] = {  # the variables that are not ports, each with what holds when it is not set
    PD_IMAGE: "pingcap/pd:v8.5.5",
    TIKV_IMAGE: "pingcap/tikv:v8.5.5",
    PD_MEMORY: "512m",
    TIKV_MEMORY: "1536m",
    TIKV_OPEN_FILES: "100000",  # a real TiKV wants 82,920 and exits without them
}
IMAGE_OF = {Role.PD: PD_IMAGE, Role.TIKV: TIKV_IMAGE}
MEMORY_OF = {Role.PD: PD_MEMORY, Role.TIKV: TIKV_MEMORY}
PORTS: Mapping[tuple[Role, Purpose], int] = {  # inside a container everybody has the servers' own ports
    (Role.PD, Purpose.CLIENT): 2379,
    (Role.PD, Purpose.PEER): 2380,
    (Role.TIKV, Purpose.CLIENT): 20160,
    (Role.TIKV, Purpose.STATUS): 20180,
}
PORT_VARIABLES: Mapping[tuple[Role, Purpose], str] = {  # of the first member of each role, which alone is published
    (Role.PD, Purpose.CLIENT): "PD_PORT",
    (Role.TIKV, Purpose.CLIENT): "TIKV_PORT",
    (Role.TIKV, Purpose.STATUS): "TIKV_STATUS_PORT",
}
CONFIG_PATH = "/etc/drillyard/config.toml"
HEALTH_PATHS = {Role.PD: "/pd/api/v1/health", Role.TIKV: "/status"}
HEALTH_PURPOSE = {Role.PD: Purpose.CLIENT, Role.TIKV: Purpose.STATUS}
GRACE_S = {Role.PD: 30, Role.TIKV: 20}  # three real PD that are stopped together take 13 to 14 s
CACHE_SHARE = 0.45  # of its memory limit a real TiKV gives to its block cache

_PLAIN_KEY = re.compile(r"[a-z][a-z0-9_-]*[0-9]")  # never a word that YAML reads as something else

_HEADER = """\
# A TiKV cluster of {pd} PD and {tikv} TiKV. Printed by `drillyard render compose`; a test holds the two together.
#
#   docker compose -f subjects/tikv/docker-compose.yaml up -d
#   curl http://localhost:2379/pd/api/v1/health
#   curl -s http://localhost:2379/pd/api/v1/stores | grep -c '"state_name": "Up"'      # prints 3 when it is up
#   docker compose -f subjects/tikv/docker-compose.yaml down          # add --volumes to delete the data too
#
# Images. The default is a release that is built for ARM64 and AMD64. Another one: PD_IMAGE and TIKV_IMAGE. The older
# ARM64 images pingcap/pd-arm64:v6.0.0 and pingcap/tikv-arm64:v6.0.0 (they end there and have no `latest`):
#
#   docker compose -f subjects/tikv/docker-compose.yaml --env-file subjects/tikv/arm64.env up -d
#
# Ports. Only the first PD and the first TiKV are published, on loopback. A second project beside the first one:
#
#   export PD_PORT=12379 TIKV_PORT=30160 TIKV_STATUS_PORT=30180
#   docker compose -p second -f subjects/tikv/docker-compose.yaml up -d
#
# Memory. PD_MEMORY and TIKV_MEMORY are limits, {total} in all. A TiKV gives 45 % of its limit to its block cache.
#
# Open files. A real TiKV wants 82,920 and exits without them. A daemon that may not give so many refuses the start;
# other servers need less: TIKV_OPEN_FILES.
#
# Health checks ask every 2 s and wait 3 s, because a longer interval is a floor under the start: no TiKV is started
# before all PD have passed one. (`start_interval` would be better, but older daemons refuse it.) They take curl or
# wget, whichever the image has, and ask 127.0.0.1 too: BusyBox's wget tries one address only, which may be ::1. A PD
# passes when it knows a leader; whether the cluster works is another question: `drillyard verify`.
"""


def in_containers(asked: Topology) -> Topology:
    """The same members as containers. Raises Misuse for what a container cannot have."""
    members = []
    for member in asked.members:
        if member.host != LOOPBACK:
            mend = "leave the host out: a container is found by its name"
            raise Misuse(f"{member.name}: host {member.host!r} cannot be had in containers", mend)
        if Purpose.PEER in member.ports:
            mend = "leave it out: PD members find each other inside the network"
            raise Misuse(f"{member.name}: a peer port is not published", mend)
        ports = {purpose: port for (role, purpose), port in PORTS.items() if role is member.role}
        members.append(replace(member, host=member.name, ports=ports, listen="0.0.0.0"))  # noqa: S104 - its own
    return replace(asked, members=tuple(members))


def default_topology(pd: int = 3, tikv: int = 3, profile: Profile = Profile.UPSTREAM) -> Topology:
    """The usual topology, with the real servers' own timings: they are what one takes containers for."""
    return Topology.of(pd, tikv, profile)


def published(asked: Topology) -> dict[tuple[str, Purpose], int | None]:
    """What is published of it, and where if that was asked for: of the first PD and TiKV everything that clients use,
    of the others what was asked."""
    found: dict[tuple[str, Purpose], int | None] = {}
    for role, purpose in PORT_VARIABLES:
        for at, member in enumerate(asked.of_role(role)):
            if at == 0 or purpose in member.ports:
                found[member.name, purpose] = member.ports.get(purpose)
    return found


def variable_of(topology: Topology, name: str, purpose: Purpose) -> str:
    """The variable that moves a published port; empty for one that is written into the file."""
    member = topology.member(name)
    is_first = topology.of_role(member.role)[0].name == name
    return PORT_VARIABLES[member.role, purpose] if is_first else ""


def render(asked: Topology) -> str:
    """The file for a topology as it was asked for: hosts left out, asked-for ports are those of this machine."""
    topology = in_containers(asked)
    ports = published(asked)
    count = {role: len(topology.of_role(role)) for role in Role}
    limits = {role: _bytes(DEFAULTS[MEMORY_OF[role]]) for role in Role}
    total = sum(limits[role] * count[role] for role in Role) / (1 << 30)
    parts = [_HEADER.format(pd=count[Role.PD], tikv=count[Role.TIKV], total=f"{total:g} GiB"), "services:"]
    parts += ["\n".join(_service(topology, member, ports)) for member in topology.members]
    parts.append("volumes:\n" + "\n".join(f"  {_key(f'{member.name}-data')}:" for member in topology.members))
    configs = [(member, topology.overrides_of(member)) for member in topology.members]
    if any(config for _, config in configs):
        parts.append("configs:\n" + "\n".join(_config(member, config) for member, config in configs if config))
    return "\n".join([parts[0], parts[1], "\n\n".join(parts[2:])]) + "\n"


def _service(topology: Topology, member: Member, ports: Mapping[tuple[str, Purpose], int | None]) -> list[str]:
    role = member.role
    has_config = bool(topology.overrides_of(member))
    flags = topology.flags_of(member, Files("/data", CONFIG_PATH if has_config else ""))
    lines = [
        f"  {_key(member.name)}:",
        f"    image: {_variable(IMAGE_OF[role])}",
        "    command: >",
        *(f"      {_literal(shlex.quote(flag))}" for flag in flags),
    ]
    if role is Role.TIKV:
        waits = ", ".join(f"{_key(pd.name)}: {{condition: service_healthy}}" for pd in topology.of_role(Role.PD))
        lines.append(f"    depends_on: {{{waits}}}")
    mapped = [
        f"      - {json.dumps(f'{LOOPBACK}:{_host_port(topology, name, purpose, port)}:{member.ports[purpose]}')}"
        for (name, purpose), port in ports.items()
        if name == member.name
    ]
    if mapped:
        lines += ["    ports:", *mapped]
    lines += ["    volumes:", f"      - {_mount(member.name)}"]
    if has_config:
        lines += ["    configs:", f"      - source: {_key(f'{member.name}-config')}", f"        target: {CONFIG_PATH}"]
    lines += [
        "    healthcheck:",
        f"      test: {json.dumps(['CMD-SHELL', health_check(role)])}",
        "      interval: 2s",
        "      timeout: 3s",
        "      retries: 10",
        "      start_period: 30s",
        f"    mem_limit: {_variable(MEMORY_OF[role])}",
        *(["    ulimits:", f"      nofile: {_variable(TIKV_OPEN_FILES)}"] if role is Role.TIKV else []),
        f"    stop_grace_period: {GRACE_S[role]}s",
        "    restart: on-failure",
    ]
    return lines


def health_check(role: Role) -> str:
    """One shell line that fails on any HTTP error, with curl or with any wget."""
    port, path = PORTS[role, HEALTH_PURPOSE[role]], HEALTH_PATHS[role]
    url, numeric = f"http://localhost:{port}{path}", f"http://127.0.0.1:{port}{path}"
    wget = "wget -q -T 1 -O /dev/null"  # two of them fit into the timeout, or Docker would leave one behind
    curl = f"curl -fsS -m 2 -o /dev/null {url}"
    return f"if command -v curl >/dev/null; then {curl}; else {wget} {url} || {wget} {numeric}; fi"


def _config(member: Member, config: Mapping[str, object]) -> str:
    text = render_config(config)  # type: ignore[arg-type]
    lines = [f"  {_key(f'{member.name}-config')}:", "    content: |"]
    return "\n".join(lines + [f"      {_literal(line)}".rstrip() for line in text.splitlines()])


def _host_port(topology: Topology, name: str, purpose: Purpose, asked: int | None) -> str:
    variable = variable_of(topology, name, purpose)
    default = asked or PORTS[topology.member(name).role, purpose]
    return f"${{{variable}:-{default}}}" if variable else str(default)


def _variable(name: str) -> str:
    return f"${{{name}:-{DEFAULTS[name]}}}"


def _key(name: str) -> str:
    plain = name.removesuffix("-data").removesuffix("-config")
    return name if _PLAIN_KEY.fullmatch(plain) else json.dumps(name)


def _mount(name: str) -> str:
    mount = f"{name}-data:/data"
    return mount if _PLAIN_KEY.fullmatch(name) else json.dumps(mount)


def _literal(text: str) -> str:
    """Text in which Compose sees no variable."""
    return text.replace("$", "$$")


def _bytes(text: str) -> int:
    powers = {"k": 10, "m": 20, "g": 30}
    return int(text[:-1]) << powers[text[-1]]
