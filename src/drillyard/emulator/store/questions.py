"""Candidates' questions about regions that a split here has still to cut off: kept, and answered after the split.

Rules: the last one of each sender, for so many regions. Questions about a region of which nobody has asked for some
election timeouts are dropped: who still wants to lead asks once in each. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from drillyard.emulator.store.messages import Envelope

KEPT_REGIONS = 256
KEPT_TIMEOUTS = 4  # each as long as the shortest election timeout; the longest is almost two of these


class Questions:
    def __init__(self) -> None:
        self._ticks = 0
        self._kept: dict[int, tuple[int, dict[int, Envelope]]] = {}  # by region, who was asked of last is last
        # each with the tick of its last question, and the question of each sender

    def __len__(self) -> int:
        return len(self._kept)

    def tick(self, election_ticks: int) -> None:
        self._ticks += 1
        oldest = self._ticks - KEPT_TIMEOUTS * election_ticks
        for region_id in tuple(self._kept):
            if self._kept[region_id][0] >= oldest:
                break
            del self._kept[region_id]

    def keep(self, question: Envelope) -> None:
        region_id = question.region_id
        if len(self._kept) >= KEPT_REGIONS and region_id not in self._kept:
            return
        _, of_region = self._kept.pop(region_id, (0, {}))
        of_region[question.sender.id] = question
        self._kept[region_id] = self._ticks, of_region

    def take(self, region_id: int) -> Iterable[Envelope]:
        _, of_region = self._kept.pop(region_id, (0, {}))
        return of_region.values()
