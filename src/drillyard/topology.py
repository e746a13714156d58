"""The topology: which members there are, where they listen, and the very flags the real servers take for it.

Pure: no file, socket or clock is touched here. A topology may leave ports open (None); a runtime plans them and hands
back a settled topology, and only a settled one can be rendered. Whether a port is free, and what runs the flags, is
not known here. Everything that can be wrong with a topology is reported at once, each problem with its field and mend.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

ConfigValue = str | int | float | bool | Sequence["ConfigValue"]
Config = Mapping[str, ConfigValue]  # dotted key -> value, e.g. {"raftstore.raft-heartbeat-ticks": 2}

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
NAME_RULE = "use 1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit"
LOOPBACK = "127.0.0.1"
FULL_REPLICAS = 3  # what PD aims at unless it is told otherwise
MOST_MEMBERS = 50  # of one role; more would be a slip of the keyboard on one machine


class Role(Enum):
    PD = "pd"
    TIKV = "tikv"

    @property
    def title(self) -> str:
        """Its name as people write it."""
        return "PD" if self is Role.PD else "TiKV"


class Purpose(Enum):
    """What one address of a member is for. A TiKV's client address also serves the other stores."""

    CLIENT = "client"
    PEER = "peer"
    STATUS = "status"


PURPOSES: Mapping[Role, tuple[Purpose, ...]] = {
    Role.PD: (Purpose.CLIENT, Purpose.PEER),
    Role.TIKV: (Purpose.CLIENT, Purpose.STATUS),
}
PREFERRED_PORTS: Mapping[tuple[Role, Purpose], tuple[int, int]] = {  # first port, and the step to the next member's
    (Role.PD, Purpose.CLIENT): (2379, 2),
    (Role.PD, Purpose.PEER): (2380, 2),
    (Role.TIKV, Purpose.CLIENT): (20160, 1),
    (Role.TIKV, Purpose.STATUS): (20180, 1),
}
OWN_FLAGS: Mapping[Role, frozenset[str]] = {  # written by `flags_of`; giving one a second time would contradict it
    Role.PD: frozenset(
        {
            "name",
            "data-dir",
            "client-urls",
            "advertise-client-urls",
            "peer-urls",
            "advertise-peer-urls",
            "initial-cluster",
            "config",
            "log-file",
            "L",
        }
    ),
    Role.TIKV: frozenset(
        {
            "addr",
            "A",
            "advertise-addr",
            "status-addr",
            "advertise-status-addr",
            "data-dir",
            "s",
            "pd",
            "pd-endpoints",
            "config",
            "C",
            "log-file",
            "f",
            "log-level",
            "L",
        }
    ),
}


class Profile(Enum):
    """Timings, through the real configuration keys: `laptop` for a small machine, `upstream` as the servers' own."""

    LAPTOP = "laptop"
    UPSTREAM = "upstream"

    def config_of(self, role: Role) -> Config:
        return _PROFILES[self, role]


_PROFILES: Mapping[tuple[Profile, Role], Config] = {
    (Profile.LAPTOP, Role.PD): {"tick-interval": "100ms", "election-interval": "1s", "lease": 2},
    (Profile.UPSTREAM, Role.PD): {"tick-interval": "500ms", "election-interval": "3s", "lease": 3},
    (Profile.LAPTOP, Role.TIKV): {
        "raftstore.raft-base-tick-interval": "100ms",
        "raftstore.raft-heartbeat-ticks": 2,
        "raftstore.raft-election-timeout-ticks": 10,
        "raftstore.raft-store-max-leader-lease": "900ms",  # a real TiKV wants it below its election timeout
        "raftstore.pd-heartbeat-tick-interval": "1s",
        "raftstore.pd-store-heartbeat-tick-interval": "1s",
    },
    (Profile.UPSTREAM, Role.TIKV): {
        "raftstore.raft-base-tick-interval": "1s",
        "raftstore.raft-heartbeat-ticks": 2,
        "raftstore.raft-election-timeout-ticks": 10,
        "raftstore.raft-store-max-leader-lease": "9s",
        "raftstore.pd-heartbeat-tick-interval": "1m",
        "raftstore.pd-store-heartbeat-tick-interval": "10s",
    },
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the field, what is wrong with it, and what to do."""

    field: str
    wrong: str
    mend: str

    def __str__(self) -> str:
        return f"{self.field}: {self.wrong}; {self.mend}"


class TopologyError(ValueError):
    """The topology cannot be built. Carries every problem found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Member:
    """One PD or TiKV as it is wanted. A port that is absent is chosen by the runtime's plan.

    `host` is where the others find it, `listen` the address it binds when that is another one: a container is found by
    its name and listens on all of its own addresses.
    """

    name: str
    role: Role
    host: str = LOOPBACK
    ports: Mapping[Purpose, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    config: Config = field(default_factory=dict)
    listen: str = ""

    def address(self, purpose: Purpose) -> str:
        return _join(self.host, self.ports[purpose])

    def bind_address(self, purpose: Purpose) -> str:
        return _join(self.listen or self.host, self.ports[purpose])

    @property
    def addresses(self) -> dict[str, str]:
        """Every settled address by the name of its purpose."""
        return {p.value: self.address(p) for p in PURPOSES[self.role] if p in self.ports}


@dataclass(frozen=True, slots=True)
class Topology:
    members: tuple[Member, ...]
    profile: Profile = Profile.LAPTOP

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise TopologyError(problems)

    @classmethod
    def of(cls, pd: int = 3, tikv: int = 3, profile: Profile = Profile.LAPTOP) -> Topology:
        """The usual topology: pd0, pd1, … and tikv0, tikv1, …, ports left to the plan."""
        problems = [
            Problem(role.value, f"{count} {role.title} members", f"give a number from 1 to {MOST_MEMBERS}")
            for role, count, least in ((Role.PD, pd, 1), (Role.TIKV, tikv, 0))
            if not least <= count <= MOST_MEMBERS
        ]
        if problems:
            raise TopologyError(problems)
        names = [(f"pd{i}", Role.PD) for i in range(pd)] + [(f"tikv{i}", Role.TIKV) for i in range(tikv)]
        return cls(tuple(Member(name, role) for name, role in names), profile)

    def of_role(self, role: Role) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.role is role)

    def member(self, name: str) -> Member:
        """The member called `name`; KeyError when there is none."""
        for member in self.members:
            if member.name == name:
                return member
        raise KeyError(name)

    @property
    def is_settled(self) -> bool:
        return all(purpose in m.ports for m in self.members for purpose in PURPOSES[m.role])

    def settle(self, ports: Mapping[tuple[str, Purpose], int]) -> Topology:
        """The same topology with the planned ports filled in; ports that were asked for stay."""
        settled = []
        for member in self.members:
            planned = {p: ports[member.name, p] for p in PURPOSES[member.role] if (member.name, p) in ports}
            settled.append(replace(member, ports={**planned, **member.ports}))
        return replace(self, members=tuple(settled))

    @property
    def pd_quorum(self) -> int:
        return quorum(len(self.of_role(Role.PD)))

    @property
    def replicas(self) -> int:
        """How many replicas of a region PD is told to keep: three, or one where there are fewer than three stores."""
        return FULL_REPLICAS if len(self.of_role(Role.TIKV)) >= FULL_REPLICAS else 1

    def config_of(self, member: Member) -> dict[str, ConfigValue]:
        """What goes into the member's configuration file: the profile, overlaid by the member's own keys."""
        config: dict[str, ConfigValue] = dict(self.profile.config_of(member.role))
        if member.role is Role.PD:
            config["replication.max-replicas"] = self.replicas
        return {**config, **member.config}

    def overrides_of(self, member: Member) -> dict[str, ConfigValue]:
        """What of its configuration differs from the servers' own defaults, which the upstream profile has."""
        own = {**Profile.UPSTREAM.config_of(member.role), "replication.max-replicas": FULL_REPLICAS}
        return {key: value for key, value in self.config_of(member).items() if own.get(key) != value}

    def flags_of(self, member: Member, files: Files) -> tuple[str, ...]:
        """The exact flags for the real server (and so for the emulated one)."""
        if member.role is Role.PD:
            initial = ",".join(f"{m.name}=http://{m.address(Purpose.PEER)}" for m in self.of_role(Role.PD))
            own: tuple[str, ...] = (
                f"--name={member.name}",
                f"--data-dir={files.data_dir}",
                f"--client-urls=http://{member.bind_address(Purpose.CLIENT)}",
                f"--advertise-client-urls=http://{member.address(Purpose.CLIENT)}",
                f"--peer-urls=http://{member.bind_address(Purpose.PEER)}",
                f"--advertise-peer-urls=http://{member.address(Purpose.PEER)}",
                f"--initial-cluster={initial}",
            )
        else:
            own = (
                f"--addr={member.bind_address(Purpose.CLIENT)}",
                f"--advertise-addr={member.address(Purpose.CLIENT)}",
                f"--status-addr={member.bind_address(Purpose.STATUS)}",
                f"--advertise-status-addr={member.address(Purpose.STATUS)}",
                f"--data-dir={files.data_dir}",
                f"--pd={','.join(self.pd_endpoints)}",
            )
        config = (f"--config={files.config}",) if files.config else ()
        log = (f"--log-file={files.log}", "-L", files.log_level) if files.log else ()
        return (*own, *config, *log, *member.flags)

    @property
    def pd_endpoints(self) -> tuple[str, ...]:
        return tuple(m.address(Purpose.CLIENT) for m in self.of_role(Role.PD))


@dataclass(frozen=True, slots=True)
class Files:
    """Where one member keeps its things; strings, because a container's paths are not this machine's.

    Without a `config` file the servers' defaults hold; without a `log` file the log goes to stderr, as in a container.
    """

    data_dir: str
    config: str = ""
    log: str = ""
    log_level: str = "info"


def quorum(voters: int) -> int:
    """How many of `voters` must agree."""
    return voters // 2 + 1


def tolerated(voters: int) -> int:
    """How many of `voters` may be lost with the rest still a quorum."""
    return (voters - 1) // 2 if voters else 0


def render_config(config: Config) -> str:
    """Dotted keys as TOML text: plain keys first, then one table after the other, in sorted order."""
    tables: dict[str, list[str]] = {}
    for key in sorted(config):
        table, _, last = key.rpartition(".")
        tables.setdefault(table, []).append(f"{last} = {_toml(config[key])}")
    parts = ["\n".join(([f"[{table}]"] if table else []) + lines) for table, lines in sorted(tables.items())]
    return "\n\n".join(parts) + "\n"


def flatten(nested: Mapping[str, object], before: str = "") -> dict[str, ConfigValue]:
    """Nested tables as dotted keys; raises TopologyError for values that TOML has and the servers' keys do not."""
    flat: dict[str, ConfigValue] = {}
    for key, value in nested.items():
        dotted = f"{before}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{dotted}."))
        elif isinstance(value, str | int | float | list):
            flat[dotted] = value
        else:
            raise TopologyError([Problem(dotted, f"{value!r} cannot be a setting", "write a string, number or list")])
    return flat


def _toml(value: ConfigValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
    return "[" + ", ".join(_toml(item) for item in value) + "]"


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _problems(topology: Topology) -> Iterator[Problem]:
    if not topology.of_role(Role.PD):
        yield Problem("pd", "there is no PD member", "add at least one: every TiKV registers with PD")
    names: set[str] = set()
    owners: dict[str, str] = {}
    seen = dict.fromkeys(Role, 0)
    for member in topology.members:
        place = f"{member.role.value}[{seen[member.role]}] ({member.name})"  # where a topology file has it
        seen[member.role] += 1
        if not NAME.fullmatch(member.name):
            yield Problem(f"{place}.name", f"{member.name!r} is no member name", NAME_RULE)
        if member.name in names:
            yield Problem(
                f"{place}.name", f"there is a member {member.name!r} already", "give each member its own name"
            )
        names.add(member.name)
        if not member.host or any(c.isspace() or c in "/,=@" for c in member.host):
            yield Problem(f"{place}.host", f"{member.host!r} is no host", "write a host name or an IP address")
        yield from _port_problems(place, member, owners)
        yield from _flag_problems(place, member)


def _port_problems(place: str, member: Member, owners: dict[str, str]) -> Iterator[Problem]:
    for purpose, port in member.ports.items():
        where = f"{place}.{purpose.value}-port"
        if purpose not in PURPOSES[member.role]:
            known = " and ".join(f"{p.value}-port" for p in PURPOSES[member.role])
            yield Problem(where, f"a {member.role.title} has no such port", f"it has {known}")
        elif not 1 <= port <= 65535:
            yield Problem(where, f"port {port} is out of range", "use 1 to 65535, or leave it out to have one chosen")
        elif (address := member.address(purpose)) in owners:
            mend = "give one of them another port, or leave it out to have one chosen"
            yield Problem(where, f"{address} is {owners[address]} already", mend)
        else:
            owners[address] = f"the {purpose.value} address of {member.name}"


def _flag_problems(place: str, member: Member) -> Iterator[Problem]:
    for flag in member.flags:
        name = flag.lstrip("-").partition("=")[0]
        if flag.startswith("-") and name in OWN_FLAGS[member.role]:
            yield Problem(
                f"{place}.flags", f"{flag} is set by the topology", "leave it out, or set the topology's field"
            )
