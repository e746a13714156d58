"""Which peers are hot: those through which much is written or read for some time, as PD tells them from the rest.

Rules: what is written is heard of each region from its leader, and counts for every peer; what is read, of each peer
from its store. Reports add up to a look: a minute for writes, ten seconds for reads. A peer is taken in when one report
reaches a threshold, becomes hotter with each look that does and colder with each that does not, and is forgotten after
some cold looks or when nothing is heard of it. What it is said to carry is the median of its last five looks, so that
one burst makes nobody hot. It remembers for one lead only, and moves nothing.

Requests are not counted here: no store of the emulator reports them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median

from msgspec import Struct, field

from drillyard.wire import metapb

TOP = 60  # peers of a store, above which the threshold follows the least of them
TOP_RATIO = 0.8
LOOKS = 5
SHORTEST_REPORT_S = 3
LOOKS_UNHEARD = 3
THRESHOLD_NS = 8 * 10**9  # so long a threshold counts, as in PD: to make one is a walk over a store's peers


class Kind(Struct, frozen=True):
    """Writes or reads: when a peer counts as hot. Rates are of a second."""

    name: str
    look_s: int
    bytes: float
    keys: float
    patience: int  # cold looks until a peer is forgotten


WRITE = Kind("write", 60, 1 << 10, 32, 2)
READ = Kind("read", 10, 8 << 10, 128, 12)


class Flow(Struct, frozen=True):
    """What one report says went through."""

    bytes: int
    keys: int
    seconds: int
    now_ns: int


class HotPeer(Struct):
    store_id: int
    region_id: int
    is_leader: bool
    stores: tuple[int, ...]
    degree: int = 0
    patience: int = 0
    heard_ns: int = 0
    _looks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=LOOKS))
    _bytes: int = 0
    _keys: int = 0
    _seconds: int = 0

    @property
    def byte_rate(self) -> float:
        return median(look[0] for look in self._looks) if self._looks else 0.0

    @property
    def key_rate(self) -> float:
        return median(look[1] for look in self._looks) if self._looks else 0.0

    def add(self, flow: Flow, look_s: int) -> tuple[float, float] | None:
        """Takes a report in; the rates of the look that it completes, if it does."""
        self.heard_ns = flow.now_ns
        self._bytes += flow.bytes
        self._keys += flow.keys
        self._seconds += flow.seconds
        if self._seconds < look_s:
            return None
        look = (self._bytes / self._seconds, self._keys / self._seconds)
        self._bytes = self._keys = self._seconds = 0
        self._looks.append(look)
        return look


class HotPeers:
    """The hot peers of one kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._peers: dict[int, dict[int, HotPeer]] = {}  # store -> region -> peer
        self._made: dict[int, tuple[int, tuple[float, float]]] = {}  # store -> when its thresholds were made, and they

    def hear(self, region: metapb.Region, leader: metapb.Peer, store_id: int, flow: Flow) -> None:
        """What went through the peer of a region on a store."""
        if flow.seconds < SHORTEST_REPORT_S:
            return
        peers = self._peers.setdefault(store_id, {})
        peer = peers.get(region.id)
        thresholds = self._thresholds(store_id, flow.now_ns)
        stores = tuple(each.store_id for each in region.peers)
        if peer is None:
            rates = (flow.bytes / flow.seconds, flow.keys / flow.seconds)
            if not _reaches(rates, thresholds):
                return
            peer = peers[region.id] = HotPeer(store_id, region.id, leader.store_id == store_id, stores)
        peer.is_leader, peer.stores = leader.store_id == store_id, stores
        look = peer.add(flow, self.kind.look_s)
        if look is None:
            return
        if _reaches(look, thresholds):
            peer.degree += 1
            peer.patience = self.kind.patience if peer.degree == 1 else min(peer.patience + 1, self.kind.patience)
        else:
            peer.degree -= 1
            peer.patience -= 1
            if peer.patience <= 0:
                del peers[region.id]

    def keep(self, region_of: Callable[[int], metapb.Region | None], now_ns: int) -> None:
        """Forgets peers that are no more, and those of which nothing was heard for long."""
        oldest_ns = now_ns - LOOKS_UNHEARD * self.kind.look_s * 10**9
        for store_id, peers in self._peers.items():
            for region_id, peer in list(peers.items()):
                region = region_of(region_id)
                is_there = region is not None and any(each.store_id == store_id for each in region.peers)
                if not is_there or peer.heard_ns < oldest_ns:
                    del peers[region_id]

    def hot(self, hits: int) -> dict[int, list[HotPeer]]:
        """Of each store, the peers that were hot often enough and are so now; the hottest first."""
        least = hits * (WRITE.look_s // self.kind.look_s)
        return {
            store_id: sorted(
                (each for each in peers.values() if each.degree >= least and each.patience == self.kind.patience),
                key=lambda each: -each.byte_rate,
            )
            for store_id, peers in sorted(self._peers.items())
        }

    def _thresholds(self, store_id: int, now_ns: int) -> tuple[float, float]:
        peers = self._peers.get(store_id, {}).values()
        if len(peers) < TOP:
            return self.kind.bytes, self.kind.keys
        made_ns, thresholds = self._made.get(store_id, (now_ns - THRESHOLD_NS, (0.0, 0.0)))
        if now_ns - made_ns < THRESHOLD_NS:
            return thresholds
        rates = (sorted(peer.byte_rate for peer in peers), sorted(peer.key_rate for peer in peers))
        thresholds = (
            max(self.kind.bytes, TOP_RATIO * rates[0][-TOP]),
            max(self.kind.keys, TOP_RATIO * rates[1][-TOP]),
        )
        self._made[store_id] = now_ns, thresholds
        return thresholds


def _reaches(rates: tuple[float, float], thresholds: tuple[float, float]) -> bool:
    return rates[0] >= thresholds[0] or rates[1] >= thresholds[1]
