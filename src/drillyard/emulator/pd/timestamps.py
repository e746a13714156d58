"""The timestamps that PD's leader gives away: milliseconds << 18 | a counter within the millisecond.

Rules: no stamp is given twice, and none is lower than an earlier one, whatever clocks, leaders and restarts do. For
that, every leader stays below a bound that all members agreed on before it was used, and starts at or above the bound
of the one before it. The clock only says how far to go forward: when it jumps back, or lags behind the bound of the
last leader, time stands still here and the counter moves.

It does not know who leads: the shell must make sure, after a request came in, that it still does.
"""

from __future__ import annotations

from msgspec import Struct

LOGICAL_BITS = 18
LOGICAL_END = 1 << LOGICAL_BITS


class Stamp(Struct, frozen=True):
    """The last of the stamps that were granted together."""

    physical: int
    logical: int


class Oracle:
    """One leader's grants, from its start to the end of its lead."""

    def __init__(self, start_ms: int, bound_ms: int) -> None:
        self._physical = start_ms
        self._logical = 0
        self._bound_ms = bound_ms

    @property
    def physical_ms(self) -> int:
        return self._physical

    @property
    def bound_ms(self) -> int:
        return self._bound_ms

    def raise_bound(self, bound_ms: int) -> None:
        self._bound_ms = max(self._bound_ms, bound_ms)

    def grant(self, count: int, now_ms: int) -> Stamp | None:
        """The last of `count` new stamps; None if the bound has to rise first (see `wanted_bound`)."""
        if not 0 < count < LOGICAL_END:
            raise ValueError(f"a batch holds 1 to {LOGICAL_END - 1} timestamps, not {count}")
        physical, logical = self._physical, self._logical
        if now_ms > physical:
            physical, logical = now_ms, 0
        if logical + count >= LOGICAL_END:
            physical, logical = physical + 1, 0
        if physical >= self._bound_ms:
            return None
        self._physical, self._logical = physical, logical + count
        return Stamp(self._physical, self._logical)

    def wanted_bound(self, now_ms: int, window_ms: int) -> int:
        """The bound that leaves a full window from now."""
        return max(self._physical + 1, now_ms) + window_ms

    def is_short(self, now_ms: int, reserve_ms: int) -> bool:
        """Whether less than the reserve is left before grants would have to wait."""
        return max(self._physical, now_ms) + reserve_ms >= self._bound_ms
