"""What differs from one cluster to another by nature, taken out of an answer before it is compared. Each rule says why.

Pure. Names, ids and ports are replaced by what they stand for, not dropped, so that a wrong one still shows. A time is
replaced only if there is one: zero stays zero.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Json = Any
Part = tuple[str, str]  # where in the answer, and what is there


# In texts: pattern, what stands for it, why.
TEXTS: tuple[tuple[str, str, str], ...] = (
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?\+0000 UTC|Z)?( m=[+-][\d.]+)?", "<time>", "when it happened"),
    (r"v8\.1\.0(-alpha)?", "<version>", "the real one is built from a commit before the release"),
    (r"duration:[\d.µmns]+s?\b", "duration:<span>", "how long it took"),
    (r"\(\d+\.?\d*[µmn]?s?\)", "(<span>)", "how long it took"),
    (r"timeout: ?\d{10}", "timeout: <time>", "when it will end"),
    (r'"TTL": ?"\d+"', '"TTL": "<span>"', "seconds may pass between the answers"),
)
# By the name of a field: what stands for any value but zero, why.
FIELDS: Mapping[str, tuple[str, str]] = {
    "start_timestamp": ("<time>", "when the member was started"),
    "end_timestamp": ("<time>", "when an interval of statistics ended"),
    "last_heartbeat": ("<time>", "when the store was heard last"),
    "expired_at": ("<time>", "when a safe point of a service will end"),
    "timestamp": ("<time>", "when a scheduler was looked at"),
    "physical": ("<time>", "milliseconds of a timestamp"),
    "uptime": ("<span>", "how long the store has run"),
    "TTL": ("<span>", "seconds may pass between the answers; endless is told apart"),
    "git_hash": ("<build>", "of which source it is built"),
    "build_ts": ("<build>", "when it was built"),
    "deploy_path": ("<path>", "where the executable is"),
    "file": ("<path>", "where the log is"),
    "filename": ("<path>", "where the log is"),
    "data-dir": ("<path>", "where the data are"),
    "logical": ("<number>", "how many timestamps were granted in this millisecond"),
}
# Fields that are a time when they are this large, and the bound of a size in a histogram otherwise.
TIMES_OR_SIZES = ("start", "end")
LONG_AGO_S = 10**9
# Lists that the real one writes in the order of a Go map, or by a measure that several have alike: by the beginning of
# the question. They are compared as sets.
UNORDERED = (
    "~/config/store",
    "~/hotspot",
    "~/labels",
    "~/operators",
    "~/regions",
    "~/schedulers",
    "~/stores",
    "~/trend",
    "GetAllStores",
)
ORDERED = ("~/regions/key", "~/regions/sibling", "~/regions/size", "~/regions/writeflow", "~/regions/range-holes")
ZERO = (0, "0", "", None, "0001-01-01T00:00:00Z")
MOST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Names:
    """What stands for the numbers of one cluster: cluster and member ids, ports, directories. Its leader is called pd0,
    whatever its name is."""

    by_value: Mapping[str, str]
    leader: str = "pd0"

    def called(self, text: str) -> str:
        """The text with the names of the leader and of pd0 exchanged, which also undoes it."""
        exchanged = {self.leader: "pd0", "pd0": self.leader}
        return re.sub(r"\bpd\d\b", lambda found: exchanged.get(found[0], found[0]), text)

    def plain(self, text: str) -> str:
        for value, name in self.by_value.items():
            text = text.replace(value, name)
        text = self.called(text)
        for pattern, name, _ in TEXTS:
            text = re.sub(pattern, name, text)
        return text


def normal(value: Json, names: Names, key: str = "") -> Json:
    """The same value with names for what is of one cluster; members in the order of their names."""
    if isinstance(value, dict):
        return {names.plain(field): normal(each, names, field) for field, each in value.items()}
    if isinstance(value, list):
        listed = [normal(each, names) for each in value]
        if listed and all(isinstance(each, dict) and "member_id" in each for each in listed):
            listed.sort(key=lambda each: str(each["name"]))  # the order is that of random ids
        return listed
    if key in FIELDS and value not in ZERO:
        return _endless(int(value)) if _is_endless(value) else FIELDS[key][0]
    if key in TIMES_OR_SIZES and isinstance(value, int) and value > LONG_AGO_S:
        return "<time>"
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return names.called(names.by_value[str(value)]) if str(value) in names.by_value else value
    if key == "initial-cluster":
        return ",".join(sorted(names.plain(each) for each in str(value).split(",")))
    return names.plain(value) if isinstance(value, str) else value


def is_unordered(path: str) -> bool:
    return path.startswith(UNORDERED) and not path.startswith(ORDERED)


def in_order(value: Json) -> Json:
    """The same with every list of objects or texts sorted."""
    if isinstance(value, dict):
        return {key: in_order(each) for key, each in value.items()}
    if isinstance(value, list):
        return sorted((in_order(each) for each in value), key=lambda each: json.dumps(each, sort_keys=True))
    return value


def _is_endless(value: Json) -> bool:
    return str(value).isdigit() and int(value) >= 1 << 62


def _endless(seconds: int) -> str:
    """The largest number there is, or that less the time of the answer."""
    return "<endless, from now on>" if MOST - seconds > LONG_AGO_S else "<endless>"


def parts(value: Json, where: str = "body") -> dict[str, str]:
    """Every leaf of an answer by its place, and the order of each object's fields, which readers see too."""
    found: dict[str, str] = {}
    _collect(value, where, found.__setitem__)
    return found


def _collect(value: Json, where: str, put: Callable[[str, str], None]) -> None:
    if isinstance(value, dict):
        put(f"{where}.<fields>", " ".join(value))
        for field, each in value.items():
            _collect(each, f"{where}.{field}", put)
    elif isinstance(value, list):
        put(f"{where}.<length>", str(len(value)))
        for place, each in enumerate(value):
            _collect(each, f"{where}.{place}", put)
    else:
        put(where, repr(value))


def unlike(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, Part]:
    """The parts that differ, with both values."""
    places = [*theirs, *(place for place in ours if place not in theirs)]
    return {
        place: (ours.get(place, "nothing"), theirs.get(place, "nothing"))
        for place in places
        if ours.get(place) != theirs.get(place)
    }
