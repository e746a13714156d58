"""The checksum of RawKV: the CRC-64 of each pair, all XORed together, as TiKV's `Crc64_Xor`.

The CRC is the one of XZ: the polynomial of ECMA-182 with its bits reversed, begun at and ended by all ones. Pairs may
come in any order. It runs over a byte at a time, some megabytes a second, so whoever feeds it much does it in slices.
"""

from __future__ import annotations

_POLYNOMIAL = 0xC96C5795D7870F42
_ONES = (1 << 64) - 1


def _row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_row(byte) for byte in range(256))


class Crc64:
    """Of bytes that come piece by piece."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = _ONES

    def update(self, piece: bytes) -> None:
        state, table = self._state, _TABLE
        for byte in piece:
            state = table[(state ^ byte) & 0xFF] ^ state >> 8
        self._state = state

    @property
    def value(self) -> int:
        return self._state ^ _ONES
