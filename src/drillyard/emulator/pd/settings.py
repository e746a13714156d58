"""The settings by which PD places regions: sections `schedule` and `replication`, their defaults, and what may change.

Rules: names and defaults are PD 8.1's. A setting is listed here exactly if the emulator acts on it; what else the real
document has is shown by `config` at its default and cannot be changed. A value is checked before it goes into the
replicated state, so what is read from there is sound. `Placing` is all of them at one instant, typed.

It knows no documents and no flags: `config` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

Json = Any
SECOND_NS = 10**9
MAX_REPLICAS = 7
LEGAL_LEVELS = ("fatal", "error", "warn", "warning", "debug", "info")  # of the log
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_UNITS_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": SECOND_NS,
    "m": 60 * SECOND_NS,
    "h": 3600 * SECOND_NS,
    "d": 24 * 3600 * SECOND_NS,
}
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?")


def parse_duration(text: str) -> int | None:
    """Nanoseconds of a span such as 1h30m, 10s or 100ms; None if it is none."""
    parts = _SPAN.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return round(sum(float(number) * _UNITS_NS[unit] for number, unit in parts))


# ---- kinds of values: each reads JSON into a value, or raises ValueError ----


def _count(value: Json) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError("a whole number is wanted")
    return value


def _replicas(value: Json) -> int:
    if not 1 <= _count(value) <= MAX_REPLICAS:
        raise ValueError(f"between 1 and {MAX_REPLICAS} replicas are kept")
    return int(value)


def _ratio(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("a number from 0 to 1 is wanted")
    return float(value)


def _amount(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError("a number of at least 0 is wanted")
    return float(value)


def _span(value: Json) -> int:
    span = parse_duration(value) if isinstance(value, str) else None
    if span is None:
        raise ValueError("a duration such as 10s or 1h30m is wanted")
    return span


def _flag(value: Json) -> bool:
    """PD keeps its booleans as strings; clients send either."""
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise ValueError('"true" or "false" is wanted')
    return bool(value == "true")


def _labels(value: Json) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) and value else value or []
    if not isinstance(names, list) or not all(isinstance(each, str) and _LABEL.fullmatch(each) for each in names):
        raise ValueError("names of labels are wanted, with commas between them")
    return tuple(names)


def _label(value: Json) -> str:
    if value != "" and (not isinstance(value, str) or not _LABEL.fullmatch(value)):
        raise ValueError("the name of a label is wanted")
    return str(value)


def _policy(value: Json) -> str:
    if value not in ("count", "size"):
        raise ValueError("count or size is wanted")
    return str(value)


class Placing(Struct, frozen=True):
    """What placement goes by, at one instant. Sizes are in MiB, times in nanoseconds. Fields are PD's names."""

    max_replicas: int = 3
    location_labels: tuple[str, ...] = ()
    strictly_match_label: bool = False
    isolation_level: str = ""
    enable_placement_rules: bool = True
    max_snapshot_count: int = 64
    max_pending_peer_count: int = 64
    max_merge_region_size: int = 20
    max_merge_region_keys: int = 200_000
    split_merge_interval: int = 3600 * SECOND_NS
    enable_one_way_merge: bool = False
    enable_cross_table_merge: bool = True
    patrol_region_interval: int = 10**7
    max_store_down_time: int = 1800 * SECOND_NS
    leader_schedule_limit: int = 4
    leader_schedule_policy: str = "count"
    region_schedule_limit: int = 2048
    replica_schedule_limit: int = 64
    merge_schedule_limit: int = 8
    hot_region_schedule_limit: int = 4
    hot_region_cache_hits_threshold: int = 3
    tolerant_size_ratio: float = 0.0
    low_space_ratio: float = 0.8
    enable_remove_down_replica: bool = True
    enable_replace_offline_replica: bool = True
    enable_make_up_replica: bool = True
    enable_remove_extra_replica: bool = True
    enable_location_replacement: bool = True
    enable_joint_consensus: bool = True


_READERS: Mapping[type, Callable[[Json], Any]] = {bool: _flag, int: _count, str: _label}
_SPECIAL: Mapping[str, Callable[[Json], Any]] = {
    "max-replicas": _replicas,
    "location-labels": _labels,
    "split-merge-interval": _span,
    "patrol-region-interval": _span,
    "max-store-down-time": _span,
    "leader-schedule-policy": _policy,
    "tolerant-size-ratio": _amount,
    "low-space-ratio": _ratio,
}
_REPLICATION = ("max-replicas", "location-labels", "strictly-match-label", "isolation-level", "enable-placement-rules")


def _items() -> dict[str, Callable[[Json], Any]]:
    """The reader of every setting, by its full name."""
    items: dict[str, Callable[[Json], Any]] = {}
    usual = Placing()
    for field in Placing.__struct_fields__:
        name = field.replace("_", "-")
        section = "replication" if name in _REPLICATION else "schedule"
        items[f"{section}.{name}"] = _SPECIAL.get(name) or _READERS[type(getattr(usual, field))]
    return items


READERS = _items()


def full_name(key: str) -> str | None:
    """The name of a changeable setting, which clients may also give without its section."""
    return next((name for name in READERS if key in (name, name.partition(".")[2])), None)


def mistake_of(name: str, value: Json) -> str:
    """What is wrong with a value for a setting; nothing if it may be taken."""
    try:
        READERS[name](value)
    except ValueError as error:
        return str(error)
    return ""


def placing_of(first: Placing, changed: Mapping[str, str]) -> Placing:
    """The settings that a member started with, as they were changed since."""
    values: dict[str, Any] = {field: getattr(first, field) for field in Placing.__struct_fields__}
    for name, text in changed.items():
        if (reader := READERS.get(name)) is not None:
            values[name.partition(".")[2].replace("-", "_")] = reader(json.loads(text))
    return Placing(**values)
