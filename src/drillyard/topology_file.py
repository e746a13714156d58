"""A topology from TOML text: the edge where outside words come in.

Rules: an unknown key is refused and named, with the nearest known one; a value of the wrong kind names its field. The
file says `pd = 3` or has one `[[pd]]` table per member, and so for `tikv`. Reading the file from disk is the caller's.
"""

from __future__ import annotations

import difflib
import tomllib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from drillyard.topology import Member, Problem, Profile, Purpose, Role, Topology, TopologyError, flatten


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=_kebab)


class _MemberTable(_Table):
    name: str | None = None
    host: str | None = None
    client_port: StrictInt | None = None
    flags: list[str] = []
    config: dict[str, Any] = {}


class _PdTable(_MemberTable):
    peer_port: StrictInt | None = None


class _TikvTable(_MemberTable):
    status_port: StrictInt | None = None


class _File(_Table):
    profile: Literal["laptop", "upstream"] | None = None
    host: str = "127.0.0.1"
    pd: StrictInt | list[_PdTable] = Field(default=3)
    tikv: StrictInt | list[_TikvTable] = Field(default=3)
    pd_config: dict[str, Any] = {}
    tikv_config: dict[str, Any] = {}


def parse_topology(text: str, source: str = "topology file", usual: Profile = Profile.LAPTOP) -> Topology:
    """The topology that the TOML text describes; raises TopologyError with every problem found.

    `source` is what to call the text where no field can be named, `usual` the profile of a text that names none.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TopologyError([Problem(source, f"this is not TOML: {error}", "mend the named line")]) from error
    try:
        file = _File.model_validate(raw)
    except ValidationError as error:
        raise TopologyError([_problem(one) for one in _meant(error)]) from error
    members = [*_members(file, Role.PD), *_members(file, Role.TIKV)]
    if isinstance(file.pd, int) or isinstance(file.tikv, int):  # counts are checked where they are understood
        Topology.of(file.pd if isinstance(file.pd, int) else 1, file.tikv if isinstance(file.tikv, int) else 1)
    return Topology(tuple(members), usual if file.profile is None else Profile(file.profile))


def _members(file: _File, role: Role) -> list[Member]:
    tables = file.pd if role is Role.PD else file.tikv
    shared = flatten(file.pd_config if role is Role.PD else file.tikv_config)
    if isinstance(tables, int):
        return [Member(f"{role.value}{at}", role, file.host, config=shared) for at in range(tables)]
    members = []
    for at, table in enumerate[_PdTable | _TikvTable](tables):
        second = table.peer_port if isinstance(table, _PdTable) else table.status_port
        wished = {Purpose.CLIENT: table.client_port, Purpose.PEER if role is Role.PD else Purpose.STATUS: second}
        ports = {purpose: port for purpose, port in wished.items() if port is not None}
        name = f"{role.value}{at}" if table.name is None else table.name
        host = file.host if table.host is None else table.host
        config = {**shared, **flatten(table.config)}
        members.append(Member(name, role, host, ports, tuple(table.flags), config))
    return members


def _meant(error: ValidationError) -> list[dict[str, Any]]:
    """What is wrong, without the complaint that a list of tables is no count: who wrote tables meant tables."""
    found = [dict(one) for one in error.errors()]
    return [one for one in found if one["type"] != "int_type" or not isinstance(one["input"], list)] or found


def _problem(error: dict[str, Any]) -> Problem:
    # pydantic puts the name of the union's branch into the path; people wrote none of these
    path = [part for part in error["loc"] if not (isinstance(part, str) and ("[" in part or part in ("int", "str")))]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if error["type"] == "extra_forbidden":
        tables: dict[str, type[_Table]] = {"pd": _PdTable, "tikv": _TikvTable}
        table = tables.get(str(path[0]), _File) if len(path) > 1 else _File
        known = [_kebab(name) for name in table.model_fields]
        near = difflib.get_close_matches(str(path[-1]), known, 1)
        return Problem(where, "unknown key", f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}")
    return Problem(where, f"{error['input']!r} does not fit", _said(error))


def _said(error: dict[str, Any]) -> str:
    kinds = {"int_type": "write a whole number", "string_type": "write a string", "list_type": "write a list of tables"}
    kinds["model_type"] = "write a table"
    if error["type"] == "literal_error":
        return f"write one of {error['ctx']['expected']}"
    return kinds.get(error["type"], str(error["msg"]).lower())
