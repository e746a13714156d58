"""The watch over stores that leave: who can be buried, how far the others have come, and which tombstones are old.

Rules: PD looks every ten seconds. A store that is Offline and empty is buried; the size of its regions at each look is
its history, from which speed and remaining time are told as PD tells them: over the last ten minutes, and without end
while nothing moves. The histories are the leader's own and begin again with each lead. It moves no region.
"""

from __future__ import annotations

import sys
from collections import deque

from msgspec import Struct, field

from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.reports import Reports
from drillyard.emulator.pd.stores import TOMBSTONE_KEPT_NS
from drillyard.wire import drillpb, metapb

LOOK_EVERY_NS = 10 * 10**9
WINDOW = 61  # looks: ten minutes
FOREVER_S = sys.float_info.max


class Progress(Struct, frozen=True):
    """How far a store has come. `fraction` is 1 when nothing is left."""

    fraction: float
    speed: float  # MiB a second
    left_s: float


class _History(Struct):
    total: float
    sizes: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def progress(self) -> Progress:
        remaining = self.sizes[-1]
        looks = len(self.sizes) - 1
        speed = max(0.0, (self.sizes[0] - remaining) / (looks * LOOK_EVERY_NS / 10**9)) if looks else 0.0
        fraction = 1 - remaining / self.total if self.total else 1.0
        return Progress(fraction, speed, remaining / speed if speed else FOREVER_S)


class Departures:
    def __init__(self) -> None:
        self._histories: dict[int, _History] = {}
        self._look_at_ns = 0

    def progress(self) -> dict[int, Progress]:
        """Of the stores that are leaving now."""
        return {store_id: history.progress() for store_id, history in sorted(self._histories.items())}

    def look(self, cluster: Cluster, reports: Reports, now_ns: int) -> list[drillpb.PdCommand]:
        """What is to be done about the stores now; between two looks, nothing."""
        leaving = {store.id for store in cluster.stores.values() if store.state == metapb.Offline}
        for store_id in self._histories.keys() - leaving:
            del self._histories[store_id]
        is_due = now_ns >= self._look_at_ns
        if not is_due and leaving <= self._histories.keys():
            return []
        sizes = _sizes(cluster, reports) if leaving else {}  # a walk over all regions
        for store_id in leaving:
            size = float(sizes.get(store_id, 0))
            if store_id not in self._histories:
                self._histories[store_id] = _History(size, deque([size], maxlen=WINDOW))
            elif is_due:
                history = self._histories[store_id]
                history.total = max(history.total, size)
                history.sizes.append(size)
        if not is_due:
            return []
        self._look_at_ns = now_ns + LOOK_EVERY_NS
        return _commands(cluster, reports, now_ns)


def _commands(cluster: Cluster, reports: Reports, now_ns: int) -> list[drillpb.PdCommand]:
    commands = []
    for store_id, store in sorted(cluster.stores.items()):
        if cluster.regions.peers[store_id]:
            continue
        if store.state == metapb.Offline:
            commands.append(drillpb.PdCommand(bury_store=store_id))
        elif store.state == metapb.Tombstone and now_ns - reports.last_heard_ns(store) > TOMBSTONE_KEPT_NS:
            commands.append(drillpb.PdCommand(forget_store=store_id))
    return commands


def _sizes(cluster: Cluster, reports: Reports) -> dict[int, int]:
    return {store_id: total.region_size for store_id, total in reports.totals(cluster).items()}
