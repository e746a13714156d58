"""Values that carry when they expire, as a store keeps them whose `storage.enable-ttl` is set (API version V1TTL).

Rules: the value is followed by eight bytes, the second of the Unix clock from which on it is no longer there; 0 is
never. Every pair of such a store has them, and no pair of any other. The time is an argument everywhere, and what is
decided by it in a region's log carries it along, because replicas must decide alike.
"""

from __future__ import annotations

import struct

from msgspec import Struct

_EXPIRY = struct.Struct(">Q")
NEVER = 0
LAST_S = (1 << 64) - 1  # longer lives end here


class Mortal(Struct, frozen=True):
    """A value and its end."""

    value: bytes
    expires_s: int

    def is_over(self, now_s: int) -> bool:
        return self.expires_s != NEVER and self.expires_s <= now_s


def pack(value: bytes, expires_s: int) -> bytes:
    return value + _EXPIRY.pack(expires_s)


def unpack(packed: bytes) -> Mortal:
    """Raises ValueError for what no such store can have written."""
    if len(packed) < _EXPIRY.size:
        raise ValueError(f"a value of {len(packed)} bytes carries no expiry")
    return Mortal(packed[: -_EXPIRY.size], _EXPIRY.unpack_from(packed, len(packed) - _EXPIRY.size)[0])


def living(packed: bytes | None, now_s: int) -> bytes | None:
    """The value, unless it is not there any more."""
    if packed is None:
        return None
    mortal = unpack(packed)
    return None if mortal.is_over(now_s) else mortal.value


def expiry_of(ttl_s: int, now_s: int) -> int:
    """When what is written now with this time to live expires; without one, never."""
    return min(now_s + ttl_s, LAST_S) if ttl_s else NEVER


def pack_time(now_s: int) -> bytes:
    return _EXPIRY.pack(now_s)


def unpack_time(packed: bytes) -> int:
    """Raises ValueError for what is no time."""
    if len(packed) != _EXPIRY.size:
        raise ValueError(f"a time has {_EXPIRY.size} bytes, not {len(packed)}")
    return int(_EXPIRY.unpack(packed)[0])
