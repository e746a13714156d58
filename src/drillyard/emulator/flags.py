"""Flags and configuration files of the emulated servers, as the real ones take them.

Flags are `--flag=value`, `--flag value` or `-L level`; the configuration is TOML with the servers' own keys. Rules:
whatever is not known or does not parse is refused by name, with what would be accepted; nothing is guessed and nothing
ignored. Values arrive parsed; what they mean is the server's business.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from msgspec import Struct

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|µs|ms|s|m|h|d)")
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


class BadFlag(Exception):
    """A flag or key that cannot be used: which one, why, and what to do."""


class Flag(Struct, frozen=True):
    """One flag; `parse` turns its text into the value, and None makes it a switch."""

    name: str
    default: Any = None
    parse: Callable[[Any], Any] | None = str
    about: str = ""
    short: str = ""

    def __str__(self) -> str:
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


class Key(Struct, frozen=True):
    """One key of the configuration file, with dots for tables: `raftstore.raft-heartbeat-ticks`."""

    name: str
    default: Any
    parse: Callable[[Any], Any]


def parse_flags(flags: Sequence[Flag], arguments: Sequence[str]) -> dict[str, Any]:
    """The value of every flag, by name. A flag given twice counts as given last."""
    by_name = {f"--{flag.name}": flag for flag in flags} | {f"-{flag.short}": flag for flag in flags if flag.short}
    values = {flag.name: flag.default for flag in flags}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.partition("=")
        flag = by_name.get(name) or by_name.get(f"-{name}")  # Go's servers take -name for --name
        if flag is None:
            refuse(f"unknown {'flag' if name.startswith('-') else 'argument'} {name}", _nearest(name, by_name))
        if flag.parse is None:
            values[flag.name] = _parsed(name, boolean, text) if equals else True
            continue
        if not equals:
            if not rest:
                refuse(f"{name} has no value", f"write {name}=VALUE")
            text = rest.pop(0)
        values[flag.name] = _parsed(name, flag.parse, text)
    return values


def usage(program: str, flags: Sequence[Flag]) -> str:
    width = max(len(str(flag)) for flag in flags)
    lines = [f"  {flag!s:<{width}}  {flag.about}".rstrip() for flag in flags]
    return "\n".join([f"Usage: {program} [flags]", "", *lines, ""])


def load_config(path: str | Path, keys: Sequence[Key]) -> dict[str, Any]:
    """The value of every key, from a TOML file; keys that it leaves out have their default."""
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        refuse(f"--config {path}: {error.strerror}", "give the path of a readable file")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        refuse(f"--config {path}: {error}", "mend the file: it must be TOML in UTF-8")
    known = {key.name: key for key in keys}
    values = {key.name: key.default for key in keys}
    for name, value in _flattened(tree, ""):
        if name not in known:
            refuse(f"{path}: unknown key {name}", _nearest(name, known))
        values[name] = _parsed(f"{path}: {name}", known[name].parse, value)
    return values


def duration(value: Any) -> float:
    """Seconds, from text such as 100ms, 1s or 1h30m."""
    text = str(value).replace(" ", "")
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("a duration is written like 100ms, 1s or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def size(value: Any) -> int:
    """Bytes, from text such as 5GiB, 512MB (both count in 1024s, as in TiKV) or a plain number."""
    match = None if isinstance(value, bool) else _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("a size is written like 5GiB, 512MB or 4096")
    return int(float(match[1]) * 1024 ** _POWERS[match[2].upper()])


def integer(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    raise ValueError("a whole number is wanted")


def only(number: int) -> Callable[[Any], int]:
    """A number of which this server knows one value."""

    def parse(value: Any) -> int:
        if integer(value) != number:
            raise ValueError(f"only {number} is known here")
        return number

    return parse


def boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise ValueError("true or false is wanted")


def text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("text is wanted")


def one_of(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if str(value).lower() in choices:
            return str(value).lower()
        raise ValueError(f"one of {', '.join(choices)} is wanted")

    return parse


def positive(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same kind of value, but more than zero."""

    def checked(value: Any) -> Any:
        parsed = parse(value)
        if parsed <= 0:
            raise ValueError("it must be more than zero")
        return parsed

    return checked


def address(value: Any) -> tuple[str, int]:
    """Host and port, from 127.0.0.1:20160 or [::1]:20160."""
    host, colon, port = str(value).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError("an address is written host:port, with a port up to 65535")
    return host, int(port)


def refuse(wrong: str, mend: str) -> NoReturn:
    raise BadFlag(f"{wrong}; {mend}" if mend else wrong)


def _parsed(name: str, parse: Callable[[Any], Any], value: Any) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise BadFlag(f"{name}: {value!r} is not usable; {error}") from None


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"


def _flattened(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            flat += _flattened(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
