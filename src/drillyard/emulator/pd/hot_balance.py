"""Where the load of hot peers should go: one leader or one peer at a time, from the store that carries most.

Rules: flow is told a minute late, so what was moved lately is left alone for three looks, and its flow is counted where
it went. A move must help: afterwards its target carries clearly less than its source did before. Leaders are
transferred where that is enough, because that is cheap; peers are moved otherwise. Bytes decide, keys do not: a
simplification of the real one, which ranks moves by several dimensions at once.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from drillyard.emulator.pd.hotspots import READ, WRITE, HotPeer, HotPeers
from drillyard.emulator.pd.picture import Picture, RegionView, StoreView

TOLERANCE = 1.05  # how much more than the mean a store may carry
GAIN = 0.95  # what a target carries afterwards, at most, of what the source carried
QUIET_NS = 3 * WRITE.look_s * 10**9


class Move(Struct, frozen=True):
    kind: str
    region_id: int
    source: int
    target: int
    rate: float
    is_transfer: bool


MayGo = Callable[[RegionView, StoreView, StoreView], bool]


class Freedom(Struct, frozen=True):
    """Whether a region's leadership, or its peer, may go from one store to another."""

    transfer: MayGo
    move: MayGo


class Flows:
    """What is written and read, and what was done about it lately."""

    def __init__(self) -> None:
        self._kinds = {"write": HotPeers(WRITE), "read": HotPeers(READ)}
        self._recent: dict[int, tuple[int, Move]] = {}  # by region

    def watch(self, written: HotPeers, read: HotPeers) -> None:
        self._kinds = {"write": written, "read": read}

    def regions(self, hits: int) -> frozenset[int]:
        """The regions that have a hot peer."""
        peers = (each for kind in self._kinds.values() for hot in kind.hot(hits).values() for each in hot)
        return frozenset(peer.region_id for peer in peers)

    def note(self, move: Move, now_ns: int) -> None:
        self._recent[move.region_id] = (now_ns, move)

    def relief(self, kind: str, picture: Picture, freedom: Freedom) -> Move | None:
        """The move that relieves the most loaded store, if there is one that helps. The hottest peers come first."""
        now_ns = picture.now_ns
        self._recent = {each: made for each, made in self._recent.items() if now_ns - made[0] < QUIET_NS}
        hot = self._kinds[kind].hot(picture.placing.hot_region_cache_hits_threshold)
        for is_transfer in (True, False):
            loads = self._loads(kind, hot, picture, is_transfer=is_transfer)
            if len(loads) < 2 or not any(loads.values()):
                continue
            source = max(loads, key=lambda store_id: (loads[store_id], -store_id))
            if loads[source] <= TOLERANCE * sum(loads.values()) / len(loads):
                continue
            for peer in hot.get(source, []):
                if peer.region_id in self._recent or (is_transfer and not peer.is_leader):
                    continue
                if target := self._target(peer, loads, picture, freedom.transfer if is_transfer else freedom.move):
                    return Move(kind, peer.region_id, source, target, peer.byte_rate, is_transfer)
        return None

    def _loads(
        self, kind: str, hot: dict[int, list[HotPeer]], picture: Picture, *, is_transfer: bool
    ) -> dict[int, float]:
        """What each store carries, with what is on its way. A transfer shifts what leaders carry, a move all of it."""
        loads = {
            store_id: sum(peer.byte_rate for peer in hot.get(store_id, []) if peer.is_leader or not is_transfer)
            for store_id, store in picture.stores.items()
            if store.is_up
        }
        for _, move in self._recent.values():
            if move.kind == kind and move.is_transfer == is_transfer:
                for store_id, rate in ((move.source, -move.rate), (move.target, move.rate)):
                    if store_id in loads:
                        loads[store_id] = max(0.0, loads[store_id] + rate)
        return loads

    def _target(self, peer: HotPeer, loads: dict[int, float], picture: Picture, may_go: MayGo) -> int:
        region, source = picture.region(peer.region_id), picture.store(peer.store_id)
        if region is None or source is None:
            return 0
        able = [
            store_id
            for store_id, load in loads.items()
            if load + peer.byte_rate < GAIN * loads[peer.store_id]
            and store_id != peer.store_id
            and may_go(region, source, picture.stores[store_id])
        ]
        return min(able, key=lambda store_id: (loads[store_id], store_id), default=0)
