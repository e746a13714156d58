"""Which of the replicas that miss their leader may campaign: as many at once as the stores can hear out. Pure.

An election costs each store a millisecond or two. When a thousand regions miss their leaders together, as after a
restart of all stores, and all of them ask, no answer comes before the one who asked gives up and asks again: more work
than can be done, for ever. So campaigns have a window, like the segments that TCP may have under way.

Rules:
- A campaign is *open* until its region is settled under a leader, whoever that is, or until it would be begun anew. At
  most `window` are open. The window halves when one came to nothing, once in an election timeout; each that is decided
  widens it by one, up to what it began with.
- Where no quorum of stores is heard nothing can be decided: such campaigns neither wait for the window nor fill it.
- Each store has an order of its own, so that stores that begin together do not begin with the same regions. Within it
  replicas take turns, so that none waits for ever. Time stands still for those that wait.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping

from drillyard.emulator.store.region import scattered
from drillyard.emulator.store.replica import Replica

CAMPAIGNS_A_TICK = 40  # at the beginning and at most; also of those that cannot be decided
FEWEST = 4


class Campaigns:
    """Of one store. `hears_quorum` says whether the stores of a replica's peers are heard."""

    def __init__(self, store_id: int, hears_quorum: Callable[[Replica], bool]) -> None:
        self._store_id = store_id
        self._hears_quorum = hears_quorum
        self._window = CAMPAIGNS_A_TICK
        self._narrowed = 0  # when the window was halved last
        self._open: dict[int, int] = {}  # region -> since when
        self._last = (0, 0)  # the place in the order of who was admitted last, and its region
        self._ticks = 0

    def admit(self, impatient: Mapping[int, Replica], here: Mapping[int, Replica], election_ticks: int) -> set[int]:
        """In each tick: who may go on, of the replicas whose next tick begins a campaign."""
        self._ticks += 1
        self._close(here, election_ticks)
        if not impatient:
            return set()
        hopeful: list[int] = []
        hopeless: list[int] = []
        for region_id, replica in impatient.items():
            (hopeful if self._hears_quorum(replica) else hopeless).append(region_id)
        free = max(0, self._window - len(self._open))
        admitted = self._next(hopeful, free)
        self._open |= dict.fromkeys(admitted, self._ticks)
        return {*admitted, *self._next(hopeless, CAMPAIGNS_A_TICK)}

    def _close(self, here: Mapping[int, Replica], election_ticks: int) -> None:
        for region_id, since in tuple(self._open.items()):
            replica = here.get(region_id)
            if replica is None or replica.rest.is_asleep or replica.raft.is_settled:
                self._window = min(CAMPAIGNS_A_TICK, self._window + 1)
            elif self._ticks - since < 2 * election_ticks:
                continue
            elif self._ticks - self._narrowed >= election_ticks:
                self._window, self._narrowed = max(FEWEST, self._window // 2), self._ticks
            del self._open[region_id]

    def _next(self, region_ids: list[int], count: int) -> list[int]:
        if len(region_ids) <= count:
            return region_ids
        turns = sorted((scattered(region_id, self._store_id), region_id) for region_id in region_ids)
        first = bisect_right(turns, self._last)
        turns = (turns[first:] + turns[:first])[:count]
        self._last = turns[-1] if turns else self._last
        return [region_id for _, region_id in turns]
