"""Numbers that look random, all from one seed: pure, and the same for ever, so that a run can be repeated.

They are the output of SHAKE-128 over the seed, a block at a time: a simulation draws a thousand numbers for each second
that it simulates, and a block costs less than the arithmetic of a generator in Python would.
"""

from __future__ import annotations

from hashlib import shake_128
from struct import Struct

_BLOCK = Struct("<128Q")


class Chance:
    __slots__ = ("_blocks", "_numbers", "_seed")

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._blocks = 0
        self._numbers: list[int] = []

    def below(self, n: int) -> int:
        if not self._numbers:
            self._draw()
        return self._numbers.pop() % n

    def _draw(self) -> None:
        self._blocks += 1
        block = shake_128(b"%d/%d" % (self._seed, self._blocks)).digest(_BLOCK.size)
        self._numbers += _BLOCK.unpack(block)
