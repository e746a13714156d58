"""docs/api.md: the Python API: signatures and docstrings of what `drillyard` offers, and of the records it returns.

Rules: docstrings are the truth, and nothing is told here that they do not tell. Every class of ours that a public call
takes, returns or raises is on the page.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from drillyard.faces import api
from drillyard.flows.conformance.table import ConformanceReport
from drillyard.flows.evidence import EvidenceLost
from drillyard.flows.measure import OutageReport
from drillyard.judge.ends import Cause
from drillyard.runtimes import abilities
from drillyard.topology import TopologyError

INTRODUCTION = """\
# Python API

What a program uses is `drillyard.cluster` and `drillyard.cluster_sync`; both give a handle on one deployment, which is
made and proven before the block begins and gone with its data after it. `drillyard.faces.api` has the rest. Importing
`drillyard` loads nothing else until a name of it is used.

```python
import asyncio

import drillyard


async def main() -> None:
    async with drillyard.cluster() as cluster:
        await cluster.kill("tikv0")
        report = await cluster.verify()
        assert not report.is_ready
        assert report.trouble is not None and report.trouble.cause is not None
        print(report.trouble.cause.name)  # prints: stopped


asyncio.run(main())
```

Names end in their unit: `timeout_s`, `open_after_s` are seconds, and a point in time (`at`) is seconds since the epoch.
All records are frozen dataclasses. Addresses are `host:port`.

Two families of error: misuse and refusals are raised, with what is wrong and the mend in the message
(`RuntimeRefusal`, `TopologyError`); what happens to the cluster is told in the report, and only `cluster` and
`cluster_sync`, which promise one that is ready, raise `NotReady` with it.
"""
ENTRANCE = ("cluster", "cluster_sync")
HANDLES = ("Cluster", "SyncCluster", "Yard", "Wanted")
ERRORS = ("NotReady", "TopologyError", "RuntimeRefusal", "EvidenceLost")
RECORD_MODULES = ("drillyard.flows.", "drillyard.judge.", "drillyard.faces.")
LATE = {one.__name__: one for one in (ConformanceReport, OutageReport)}  # the API knows these by name until it is asked
NOT_SHOWN = {"Scope", "UpRequest", "request"}  # how the parts are put together


def text() -> str:
    listed = {name: getattr(api, name) for name in api.__all__}
    records = [one for one in _records(listed) if one.__name__ not in {*HANDLES, *ERRORS}]
    parts = [INTRODUCTION, "## Clusters as contexts\n", *(_function(listed[name]) for name in ENTRANCE)]
    parts += ["## Handles\n", *(_class(listed[name]) for name in HANDLES)]
    parts += ["## Records\n", *(_class(one) for one in sorted(records, key=lambda one: one.__name__))]
    parts += ["## Errors\n", *(_class(one) for one in _errors())]
    return "\n".join(parts)


def _errors() -> Iterator[type]:
    yield api.NotReady
    yield TopologyError
    yield abilities.RuntimeRefusal
    for one in vars(abilities).values():
        if inspect.isclass(one) and issubclass(one, abilities.RuntimeRefusal) and one is not abilities.RuntimeRefusal:
            yield one
    yield EvidenceLost


def _records(listed: dict[str, Any]) -> list[type]:
    """The public classes and every record that they lead to."""
    found: dict[type, None] = {}
    waiting = [one for one in listed.values() if inspect.isclass(one)]
    while waiting:
        one = waiting.pop()
        if one in found or one.__name__ in NOT_SHOWN:
            continue
        found[one] = None
        for hinted in _hints(one):
            waiting += [inner for inner in _classes_in(hinted) if inner.__module__.startswith(RECORD_MODULES)]
    return [*found, *([Cause] if Cause not in found else [])]


def _hints(one: type) -> Iterator[Any]:
    if dataclasses.is_dataclass(one):
        yield from _resolved(one).values()
    for _, member in members(one):
        called = member.fget if isinstance(member, property) else member
        yield from _resolved(called).values()


def _resolved(one: Any) -> dict[str, Any]:
    module = inspect.getmodule(one)
    return typing.get_type_hints(one, vars(typing) | LATE | (vars(module) if module else {}))


def _classes_in(hint: Any) -> Iterator[type]:
    if inspect.isclass(hint) and not typing.get_args(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from _classes_in(inner)


def members(one: type) -> list[tuple[str, Any]]:
    """Its own public methods and properties, in the order in which they are written."""
    return [
        (name, member)
        for name, member in vars(one).items()
        if not name.startswith("_")
        and name not in NOT_SHOWN
        and (inspect.isfunction(member) or isinstance(member, property))
    ]


def _function(function: Any) -> str:
    return f"### {function.__name__}\n\n```text\n{_signature(function, 100)}\n```\n\n{_doc(function)}\n"


def _class(one: type) -> str:
    bases = [f"A kind of `{base.__name__}`." for base in one.__bases__ if issubclass(base, Exception)]
    parts = [f"### {one.__name__}", " ".join([*bases, _doc(one)]).strip()]
    items: list[str] = []
    if issubclass(one, enum.Enum):
        items += [f"- `{member.name}`: `{member.value!r}`" for member in one]
    elif dataclasses.is_dataclass(one):
        items += _fields(one)
    for name, member in members(one):
        if isinstance(member, property):
            assert member.fget is not None
            told = f"{name}: {_plain(inspect.signature(member.fget).return_annotation)}"
        else:
            told = _signature(member)
        items.append(_item(told, _doc(member)))
    return "\n\n".join(part for part in (*parts, "\n".join(items)) if part) + "\n"


def _fields(one: type) -> list[str]:
    """A line for each field: its name, type, default and, from the comment behind it, what it is."""
    comments = dict(re.findall(r"^    (\w+): [^#\n]*  # (.*)$", inspect.getsource(one), re.MULTILINE))
    lines = []
    for field in dataclasses.fields(one):
        default = "" if field.default is dataclasses.MISSING else f" = {_value(field.default)}"
        lines.append(_item(f"{field.name}: {_plain(field.type)}{default}", comments.get(field.name, "")))
    return lines


def _item(told: str, about: str) -> str:
    return f"- `{told}`: {about}" if about else f"- `{told}`"


def _value(default: object) -> str:
    return f"{type(default).__name__}.{default.name}" if isinstance(default, enum.Enum) else repr(default)


def _signature(function: Any, width: int | None = None) -> str:
    """As it is written, without the self; on several lines where one would be wider than that."""
    signature = inspect.signature(function)
    words: list[str] = []
    for one in signature.parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        stars = "**" if one.kind is one.VAR_KEYWORD else ""
        default = "" if one.default is one.empty else f" = {_value(one.default)}"
        words.append(f"{stars}{one.name}: {_plain(one.annotation)}{default}")
    name = f"{'async ' if inspect.iscoroutinefunction(function) else ''}{function.__name__}"
    returned = _plain(signature.return_annotation)
    line = f"{name}({', '.join(words)}) -> {returned}"
    if width is None or len(line) <= width:
        return line
    return f"{name}(\n{''.join(f'    {word},{chr(10)}' for word in words)}) -> {returned}"


def _plain(annotation: object) -> str:
    """An annotation without the quotes that postponed ones have."""
    return str(annotation).replace("'", "").replace("typing.", "")


def _doc(one: Any) -> str:
    """Its own docstring, on one line: dataclasses without one get their signature, others their base's."""
    doc = vars(one).get("__doc__") if inspect.isclass(one) else one.__doc__
    if not doc or (inspect.isclass(one) and doc.startswith(f"{one.__name__}(")):
        return ""
    return " ".join(doc.split())
