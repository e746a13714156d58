"""The configuration while the store runs: what POST /config may change, and how a change is refused.

Rules: a change is taken whole or not at all, and is in effect when it is answered. Which keys may change is TiKV's
list, cut to what means something here; the others can be changed in the file, before a start. Refusals speak TiKV's
words. A change is not written to the file: the next start has what the file says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drillyard.emulator.flags import Key

FIXED = frozenset(
    {
        "server.addr",
        "server.advertise-addr",
        "server.status-addr",
        "server.advertise-status-addr",
        "server.labels",
        "pd.endpoints",
        "log.file.filename",
        "storage.data-dir",
        "storage.reserve-space",
        "storage.api-version",
        "storage.enable-ttl",
    }
)
# Those that TiKV shows only when all of them are asked for.
HIDDEN = frozenset(
    {
        "raftstore.raft-base-tick-interval",
        "raftstore.raft-heartbeat-ticks",
        "raftstore.raft-election-timeout-ticks",
    }
)

Values = Mapping[str, Any]


class ConfigRefused(Exception):
    """Why nothing was changed, as Rust shows it."""


class OnlineConfig:
    """`apply` puts the values into effect, or raises ValueError for values that do not go together."""

    def __init__(self, keys: Sequence[Key], values: Values, apply: Callable[[Values], None]) -> None:
        self._keys = {key.name: key for key in keys}
        self._apply = apply
        self.values = dict(values)

    def change(self, asked: Mapping[str, str]) -> None:
        changed = dict(self.values)
        for name, text in asked.items():
            key = self._key_of(name)
            try:
                changed[key.name] = key.parse(text.strip('"'))
            except ValueError as error:
                raise ConfigRefused(_shown(f"failed to parse: {text}")) from error
        try:
            self._apply(changed)
        except ValueError as error:
            raise ConfigRefused(_shown(str(error))) from error
        self.values = changed

    def _key_of(self, name: str) -> Key:
        written = name.replace("_", "-").replace("raft-store", "raftstore")
        key = self._keys.get(written)
        if key is None:
            raise ConfigRefused(_shown(f"unexpect fields: {name.rpartition('.')[2].replace('-', '_')}"))
        if key.name in FIXED:
            last = key.name.rpartition(".")[2].replace("-", "_")
            raise ConfigRefused(_shown(f"config {last} can not be changed"))
        return key


def decode(body: bytes) -> dict[str, str]:
    """The names and values of a request's body; raises ConfigRefused for what is none."""
    try:
        document = json.loads(body)
    except ValueError as error:  # broken UTF-8 is one too
        raise ConfigRefused(f'Error("{error}")') from error
    if not isinstance(document, dict):
        raise ConfigRefused(_shown("wrong format"))
    return {name: _text(value) for name, value in document.items()}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | str):
        return str(value)
    raise ConfigRefused(_shown("array type are not supported" if isinstance(value, list) else "wrong format"))


def _shown(text: str) -> str:
    """As Rust shows an error that is a text."""
    return json.dumps(text, ensure_ascii=False)
